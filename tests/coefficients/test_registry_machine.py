"""The registry as a state machine: two replicas on one store against a model that is a dictionary."""

import itertools
from dataclasses import dataclass, field

import numpy as np
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import select

from onebasis.coefficients import tables
from onebasis.coefficients.blend import Blends
from onebasis.coefficients.preconditions import ANY, Precondition
from onebasis.coefficients.store import TaskStore
from onebasis.core.errors import ModelNotFound, PreconditionFailed, TaskNotFound, VersionNotFound
from onebasis.core.ids import digest_of
from onebasis.storage.database import Database
from tests.coefficients.builders import basis_spec, coefficients, started

BASIS = basis_spec()
FILES = [coefficients(BASIS, seed=seed) for seed in range(3)] + [coefficients(BASIS, form="diag", k=2)]
DIGESTS = [digest_of(data) for data in FILES]
REPLICAS = st.integers(0, 1)
NAMES = st.sampled_from(["a", "b"])
WHICH = st.integers(0, len(FILES) - 1)


@dataclass
class Expected:
    """A name's versions since ever: digests, None for a delete. A generation is a position, counted from 1."""

    versions: list[str | None] = field(default_factory=list)

    @property
    def current(self) -> str | None:
        return self.versions[-1] if self.versions else None

    def since_delete(self) -> list[str]:
        found: list[str] = []
        for digest in self.versions:
            found = [*found, digest] if digest is not None else []
        return found


class RegistryMachine(RuleBasedStateMachine):
    """`_seen`: the generation of each name that a replica must know at least."""

    url = ""
    numbers = itertools.count()

    def __init__(self) -> None:
        super().__init__()
        self._prefix = f"{next(self.numbers)}-"
        self._databases = [Database(self.url), Database(self.url)]
        self._registries = [started(TaskStore(database), BASIS) for database in self._databases]
        self._expected: dict[str, Expected] = {name: Expected() for name in ("a", "b")}
        self._seen: list[dict[str, int]] = [{}, {}]

    def teardown(self) -> None:
        for database in self._databases:
            database.close()

    def _at(self, name: str) -> str:
        return self._prefix + name

    def _wrote(self, replica: int, name: str, digest: str | None) -> None:
        self._expected[name].versions.append(digest)
        self._knows_all(replica)
        self._check_current(replica, name)

    def _knows_all(self, replica: int) -> None:
        self._seen[replica] = {name: len(expected.versions) for name, expected in self._expected.items()}

    def _check_current(self, replica: int, name: str) -> None:
        """What the replica says now was true at some moment since it last looked."""
        versions = [None, *self._expected[name].versions]
        possible = versions[self._seen[replica].get(name, 0) :]
        try:
            found: str | None = self._registries[replica].get(self._at(name)).digest
        except TaskNotFound:
            self._knows_all(replica)  # it has looked into the store before it said so
            assert self._expected[name].current is None
        else:
            assert found in possible

    @initialize(which=WHICH)
    def begin(self, which):
        self.put(0, "a", which)

    @rule(replica=REPLICAS, name=NAMES, which=WHICH)
    def put(self, replica, name, which):
        done = self._registries[replica].register(self._at(name), FILES[which])
        expected = self._expected[name]
        assert done.created == (expected.current != DIGESTS[which])
        assert done.replaced == (done.created and expected.current is not None)
        if done.created:
            self._wrote(replica, name, DIGESTS[which])
        assert (done.task.digest, done.task.generation) == (DIGESTS[which], len(expected.versions))

    @rule(replica=REPLICAS, name=NAMES, which=WHICH, demanded=st.sampled_from([ANY, *DIGESTS]), is_match=st.booleans())
    def put_on_condition(self, replica, name, which, demanded, is_match):
        current = self._expected[name].current
        is_named = current is not None and demanded in (ANY, current)
        wanted = Precondition(if_match=(demanded,)) if is_match else Precondition(if_none_match=(demanded,))
        try:
            done = self._registries[replica].register(self._at(name), FILES[which], precondition=wanted)
        except PreconditionFailed:
            assert is_named != is_match
        else:
            assert is_named == is_match
            if done.created:
                self._wrote(replica, name, DIGESTS[which])

    @rule(replica=REPLICAS, name=NAMES)
    def delete(self, replica, name):
        current = self._expected[name].current
        try:
            gone = self._registries[replica].delete(self._at(name))
        except TaskNotFound:
            assert current is None
        else:
            assert gone.digest == current
            self._wrote(replica, name, None)

    @rule(replica=REPLICAS, name=NAMES, which=WHICH)
    def roll_back(self, replica, name, which):
        known = self._expected[name].since_delete()
        try:
            done = self._registries[replica].roll_back(self._at(name), DIGESTS[which])
        except TaskNotFound:
            assert not known
        except VersionNotFound:
            assert known
            assert DIGESTS[which] not in known
        else:
            assert DIGESTS[which] in known
            assert done.created == (known[-1] != DIGESTS[which])
            if done.created:
                self._wrote(replica, name, DIGESTS[which])

    @rule(replica=REPLICAS, name=NAMES)
    def read(self, replica, name):
        self._check_current(replica, name)

    @rule(replica=REPLICAS)
    def follow(self, replica):
        self._registries[replica].follow()
        self._knows_all(replica)
        found = self._registries[replica].page(1000).tasks
        live = {self._at(name): expected.current for name, expected in self._expected.items() if expected.current}
        assert {task.name: task.digest for task in found if task.name.startswith(self._prefix)} == live

    @rule(replica=REPLICAS, name=NAMES)
    def read_history(self, replica, name):
        known = self._expected[name].since_delete()
        try:
            found = self._registries[replica].versions(self._at(name), 1000)
        except TaskNotFound:
            assert not known
        else:
            assert [version.digest for version in reversed(found)] == known
            assert found[0].generation == len(self._expected[name].versions)

    @rule(replica=REPLICAS, name=NAMES, which=WHICH)
    def resolve_a_version(self, replica, name, which):
        """One that it has had since the last delete is always found; another is denied by who knows of that delete."""
        known = self._expected[name].since_delete()
        try:
            found = self._registries[replica].resolve(f"{self._at(name)}@{DIGESTS[which]}")
        except ModelNotFound:
            assert DIGESTS[which] not in known
        else:
            assert found.coefficients.digest == DIGESTS[which]
            is_up_to_date = self._seen[replica].get(name) == len(self._expected[name].versions)
            assert DIGESTS[which] in known or not is_up_to_date

    @precondition(lambda self: self._expected["a"].current and self._expected["b"].current)
    @rule(replica=REPLICAS, weight=st.sampled_from([-1.0, 0.5, 2.0]))
    def blend(self, replica, weight):
        """Of the versions that the replica knows, and exactly their weighted sum."""
        registry = self._registries[replica]
        parts = [(self._at("a"), 1.0), (self._at("b"), weight)]
        cores = [registry.resolve(name).coefficients.flat_cores().astype(np.float64) for name, _ in parts]
        found = Blends(registry, BASIS).resolve(parts).coefficients.flat_cores()
        np.testing.assert_array_equal(found, (cores[0] + weight * cores[1]).astype(np.float32))

    @invariant()
    def nothing_is_kept_that_no_client_can_name(self):
        """Tombstones aside. Other runs of the machine have left their tasks in the store."""
        with self._databases[0].reading() as connection:
            wanted = (tables.VERSIONS.c[column] for column in ("name", "generation", "digest"))
            stored = connection.execute(select(*wanted)).all()
            files = set(connection.execute(select(tables.FILES.c.digest)).scalars())
        assert files == {digest for _, _, digest in stored if digest is not None}
        for name, expected in self._expected.items():
            found = [digest for at, _, digest in sorted(stored) if at == self._at(name)]
            n_kept = len(expected.since_delete())
            assert found == expected.versions[max(0, len(expected.versions) - n_kept - 1) :]

    @rule(replica=REPLICAS)
    def restart(self, replica):
        self._databases[replica].close()
        self._databases[replica] = Database(self.url)
        self._registries[replica] = started(TaskStore(self._databases[replica]), BASIS)
        self.follow(replica)


def test_two_replicas_do_what_the_model_does(store_url):
    class Machine(RegistryMachine):
        url = store_url

    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=50,
            stateful_step_count=30,
            deadline=None,
            phases=[Phase.generate],  # shrinking would take minutes
            derandomize=True,
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )
