"""kill -9 between every two statements of a write: the store holds what was before or what was meant, nothing else."""

import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import select

from onebasis.coefficients.store import TaskStore
from onebasis.coefficients.tables import FILES, VERSIONS
from onebasis.core.errors import TaskNotFound
from onebasis.core.ids import digest_of
from onebasis.storage.database import Database
from tests.coefficients.builders import coefficients, started
from tests.coefficients.dying_writer import BASIS, N_MOST, first_file, second_file

OTHER = coefficients(BASIS, seed=7)


def prepare(url: str, operation: str) -> None:
    """Victims with one version; with two, where a write is to go back to the first."""
    database = Database(url)
    registry = started(TaskStore(database), BASIS)
    registry.register("other", OTHER)
    for n in range(N_MOST):
        registry.register(f"victim-{n}", first_file(n))
        if operation == "rollback":
            registry.register(f"victim-{n}", second_file(n))
    database.close()


def history(registry, name: str) -> list[str]:
    """Digests of a task, oldest first; none if it is deleted. Every body is whole."""
    try:
        versions = registry.versions(name, 100)
    except TaskNotFound:
        return []
    for version in versions:
        assert digest_of(registry.content(name, version.digest)[1]) == version.digest
    return [version.digest for version in reversed(versions)]


@pytest.mark.parametrize("operation", ["put", "rollback", "delete"])
def test_a_write_that_is_killed_anywhere_is_there_or_not_and_never_lost_once_acknowledged(
    store_url, tmp_path, operation
):
    prepare(store_url, operation)
    command = [sys.executable, "-m", "tests.coefficients.dying_writer", store_url, operation, str(tmp_path)]
    subprocess.run(command, cwd=Path(__file__).parents[2], check=True, timeout=120)

    database = Database(store_url)
    registry = started(TaskStore(database), BASIS)
    outcomes = []
    for n in range(N_MOST):
        first, second = digest_of(first_file(n)), digest_of(second_file(n))
        before, after = {
            "put": ([first], [first, second]),
            "rollback": ([first, second], [first, second, first]),
            "delete": ([first], []),
        }[operation]
        found = history(registry, f"victim-{n}")
        assert found in (before, after), f"killed at {n}"
        is_acknowledged = (tmp_path / f"acknowledged-{n}").exists()
        assert found == after or not is_acknowledged, f"the acknowledged write {n} is lost"
        outcomes.append(found == after)
        if found:
            assert registry.resolve(f"victim-{n}").coefficients.digest == found[-1]
    n_points = outcomes.index(True)
    assert n_points > 8, "deaths before the commit"
    assert any((tmp_path / f"acknowledged-{n}").exists() for n in range(N_MOST))
    assert registry.content("other")[1] == OTHER
    registry.register("other", first_file(0))  # no lock is left behind
    with database.reading() as connection:
        named = set(connection.execute(select(VERSIONS.c.digest).where(VERSIONS.c.digest.is_not(None))).scalars())
        assert set(connection.execute(select(FILES.c.digest)).scalars()) == named, "no file is left that nobody names"
    database.close()
