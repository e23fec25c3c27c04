import pytest

from onebasis.coefficients.store import TaskStore


@pytest.fixture
def store(database):
    return TaskStore(database)
