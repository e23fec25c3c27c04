"""What a restart finds: the same tasks, and whatever has become unusable meanwhile."""

import pytest
from sqlalchemy import text

from onebasis.core.errors import TaskUnusable
from onebasis.core.ids import digest_of
from onebasis.telemetry.reports import RegistrySnapshot
from tests.coefficients.builders import BASE, basis_spec, coefficients, started

BASIS, OTHER_BASIS = basis_spec(), basis_spec(seed=1)
ONE = coefficients(BASIS, provenance={"score": 0.5})
TWO = coefficients(BASIS, form="diag", k=2)


@pytest.fixture
def registry(store):
    return started(store, BASIS)


def test_counts_follow_every_change_and_a_restart_counts_the_same(registry, store):
    for work, wanted in [
        (lambda: registry.register("a", ONE), RegistrySnapshot(n_registered=1, size_bytes=len(ONE), n_retired=0)),
        (lambda: registry.register("a", ONE), RegistrySnapshot(n_registered=1, size_bytes=len(ONE), n_retired=0)),
        (lambda: registry.register("a", TWO), RegistrySnapshot(n_registered=1, size_bytes=len(TWO), n_retired=1)),
        (
            lambda: registry.register("b", ONE),
            RegistrySnapshot(n_registered=2, size_bytes=len(ONE) + len(TWO), n_retired=1),
        ),
        (lambda: registry.delete("a"), RegistrySnapshot(n_registered=1, size_bytes=len(ONE), n_retired=3)),
        (
            lambda: registry.register("a", TWO),
            RegistrySnapshot(n_registered=2, size_bytes=len(ONE) + len(TWO), n_retired=3),
        ),
    ]:
        work()
        assert registry.snapshot() == wanted
        assert started(store, BASIS).snapshot() == wanted


def test_a_restart_finds_the_same_tasks(registry, store):
    for name, data in (("b", ONE), ("a", ONE), ("a", TWO), ("gone", ONE)):
        registry.register(name, data)
    registry.delete("gone")
    again = started(store, BASIS)
    assert [task.name for task in again.page(limit=9).tasks] == ["a", "b"]
    for name in ("a", "b"):
        before, after = registry.get(name), again.get(name)
        assert (after.digest, after.generation, after.created_at) == (before.digest, before.generation, 1234)
        assert after.state == "ready"
        assert after.coefficients.flat_cores().tolist() == before.coefficients.flat_cores().tolist()
    assert again.resolve(f"a@{digest_of(ONE)}").coefficients.digest == digest_of(ONE)


def damage(database, data: bytes, wrong: bytes) -> None:
    statement = text("UPDATE coefficient_files SET body = :body WHERE digest = :digest")
    with database.writing() as connection:
        connection.execute(statement, {"body": wrong, "digest": digest_of(data)})


@pytest.mark.parametrize(
    ("wrong", "reason"), [(b"rubbish!" * 9, "safetensors"), (TWO[:-2] + b"\x01\x01", "are damaged"), (b"", "found 0")]
)
def test_a_damaged_task_is_listed_kept_and_stops_nothing(registry, store, database, caplog, wrong, reason):
    registry.register("bad", TWO)
    registry.register("good", ONE)
    damage(database, TWO, wrong)
    again = started(store, BASIS)
    assert [(task.name, task.state) for task in again.page(limit=9).tasks] == [("bad", "unusable"), ("good", "ready")]
    bad = again.get("bad")
    assert reason in bad.reason
    assert (bad.coefficients, bad.form, bad.size_bytes) == (None, None, len(TWO))
    assert "bad" in caplog.text
    assert reason in caplog.text
    for model in ("bad", f"bad@{digest_of(TWO)}"):
        with pytest.raises(TaskUnusable, match=reason) as caught:
            again.resolve(model)
        assert caught.value.code == "task_unusable"
    assert again.content("bad") == (digest_of(TWO), wrong)
    assert again.register("bad", ONE).replaced
    assert again.get("bad").state == "ready"


@pytest.mark.parametrize(
    ("basis", "base_name", "reason"),
    [
        (OTHER_BASIS, BASE, f"this server runs {OTHER_BASIS.digest}"),
        (None, BASE, "runs the base model alone"),
        (BASIS, "a", "is the name of the base model"),
    ],
)
def test_tasks_that_do_not_fit_the_new_start_wait_for_a_better_one(registry, store, basis, base_name, reason):
    registry.register("a", ONE)
    other = started(store, basis, base_name)
    task = other.get("a")
    assert task.state == "unusable"
    assert reason in task.reason
    if base_name == "a":
        assert other.resolve("a") is None, "the base keeps its name"
    else:
        with pytest.raises(TaskUnusable, match=reason):
            other.resolve("a")
    assert other.content("a") == (digest_of(ONE), ONE)
    assert started(store, BASIS).get("a").state == "ready"


def test_an_old_version_for_another_basis_is_unusable_not_unknown(registry, store):
    registry.register("a", ONE)
    moved = started(store, OTHER_BASIS)
    moved.register("a", coefficients(OTHER_BASIS))
    with pytest.raises(TaskUnusable, match="re-export it against that one"):
        moved.resolve(f"a@{digest_of(ONE)}")
