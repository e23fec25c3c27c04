"""Sequences that wait to run, and which of them is next. No torch, no clock."""

from bisect import insort
from collections import Counter, OrderedDict
from collections.abc import Iterator

from onebasis.engine.fairness import FairShares
from onebasis.engine.sequence import EngineSequence

_Line = OrderedDict[str, EngineSequence]  # by request id, in order of arrival


class WaitingQueue:
    """Classes by priority; in a class first those that were preempted, then fair turns (`_PriorityClass`).

    Adding, removing and finding the next take O(log clients), however many sequences wait.
    Invariant: every class in `_classes` has a sequence, `_priorities` are their sorted keys, and the counts agree.
    Engine thread only, but for `task_names` and `debts_by_tenant`.
    """

    def __init__(self) -> None:
        self._classes: dict[int, _PriorityClass] = {}
        self._priorities: list[int] = []
        self._n_by_task: Counter[str | None] = Counter()

    def __len__(self) -> int:
        return sum(map(len, self._classes.values()))

    def __iter__(self) -> Iterator[EngineSequence]:
        """All of them, by class; each task's in order of arrival."""
        for priority in self._priorities:
            yield from self._classes[priority]

    def priorities(self) -> tuple[int, ...]:
        """Of the classes that have somebody waiting, the most urgent first."""
        return tuple(self._priorities)

    def task_names(self) -> tuple[str, ...]:
        """Tasks that sequences wait for. From any thread."""
        return tuple(name for name in tuple(self._n_by_task) if name is not None)

    def debts_by_tenant(self) -> dict[str | None, int]:
        """Of every waiting tenant, the tokens it is behind the most served of its class. From any thread."""
        debts: dict[str | None, int] = {}
        for members in tuple(self._classes.values()):
            for tenant, debt in members.debts().items():
                debts[tenant] = max(debt, debts.get(tenant, 0))
        return debts

    def head(self, priority: int) -> EngineSequence | None:
        """Who is next in a class, None if nobody is."""
        return self._classes[priority].head() if priority in self._classes else None

    def add(self, sequence: EngineSequence) -> None:
        """A new sequence goes to the end of its task's line."""
        self._class_for(sequence).add(sequence)
        self._count(sequence, 1)

    def put_back(self, sequence: EngineSequence) -> None:
        """A preempted sequence goes before all that have not run yet. Put the youngest back first."""
        self._class_for(sequence).put_back(sequence)
        self._count(sequence, 1)

    def remove(self, sequence: EngineSequence) -> None:
        """Take a sequence out, wherever it is. Raises KeyError if it does not wait."""
        members = self._classes[sequence.priority]
        members.remove(sequence)
        self._count(sequence, -1)
        if not len(members):
            del self._classes[sequence.priority]
            self._priorities.remove(sequence.priority)

    def charge(self, sequence: EngineSequence, cost: int) -> None:
        """The sequence was served. Forgotten when nobody of its class waits: there is nothing to share then."""
        if sequence.priority in self._classes:
            self._classes[sequence.priority].charge(sequence, cost)

    def check_integrity(self) -> None:
        """Raise AssertionError if an invariant is broken. O(waiting)."""
        if self._priorities != sorted(self._classes) or not all(map(len, self._classes.values())):
            raise AssertionError("classes and priorities differ, or a class is empty")
        if Counter(sequence.task_name for sequence in self) != self._n_by_task:
            raise AssertionError("the counts by task are wrong")
        for members in self._classes.values():
            members.check_integrity()

    def _class_for(self, sequence: EngineSequence) -> "_PriorityClass":
        if sequence.priority not in self._classes:
            self._classes[sequence.priority] = _PriorityClass()
            insort(self._priorities, sequence.priority)
        return self._classes[sequence.priority]

    def _count(self, sequence: EngineSequence, change: int) -> None:
        self._n_by_task[sequence.task_name] += change
        if not self._n_by_task[sequence.task_name]:
            del self._n_by_task[sequence.task_name]


class _PriorityClass:
    """Turns go to the tenant that was served least, among its sequences to the task that was, and there by arrival.

    Invariant: a sequence is in `_returning` or in one line; a tenant has an entry in `_tasks`, and waits in `_tenants`,
    exactly while it has a line, and a task waits in its tenant's shares exactly while it has one.
    """

    def __init__(self) -> None:
        self._returning: _Line = OrderedDict()  # preempted, the oldest first
        self._lines: dict[tuple[str | None, str | None], _Line] = {}
        self._tenants: FairShares[str | None] = FairShares()
        self._tasks: dict[str | None, FairShares[str | None]] = {}
        self._n_in_lines = 0

    def __len__(self) -> int:
        return len(self._returning) + self._n_in_lines

    def __iter__(self) -> Iterator[EngineSequence]:
        yield from self._returning.values()
        for line in self._lines.values():
            yield from line.values()

    def head(self) -> EngineSequence:
        if self._returning:
            return next(iter(self._returning.values()))
        tenant = self._tenants.first()
        return next(iter(self._lines[tenant, self._tasks[tenant].first()].values()))

    def debts(self) -> dict[str | None, int]:
        return self._tenants.debts()

    def add(self, sequence: EngineSequence) -> None:
        tenant, task = sequence.tenant, sequence.task_name
        if tenant not in self._tasks:
            self._tasks[tenant] = FairShares()
            self._tenants.join(tenant)
        if (tenant, task) not in self._lines:
            self._lines[tenant, task] = OrderedDict()
            self._tasks[tenant].join(task)
        self._lines[tenant, task][sequence.request_id] = sequence
        self._n_in_lines += 1

    def put_back(self, sequence: EngineSequence) -> None:
        self._returning[sequence.request_id] = sequence
        self._returning.move_to_end(sequence.request_id, last=False)

    def remove(self, sequence: EngineSequence) -> None:
        if self._returning.pop(sequence.request_id, None) is not None:
            return
        tenant, task = sequence.tenant, sequence.task_name
        line = self._lines[tenant, task]
        del line[sequence.request_id]
        self._n_in_lines -= 1
        if line:
            return
        del self._lines[tenant, task]
        self._tasks[tenant].leave(task)
        if self._tasks[tenant].n_waiting == 0:
            del self._tasks[tenant]
            self._tenants.leave(tenant)

    def charge(self, sequence: EngineSequence, cost: int) -> None:
        self._tenants.charge(sequence.tenant, cost)
        if sequence.tenant in self._tasks:
            self._tasks[sequence.tenant].charge(sequence.task_name, cost)

    def check_integrity(self) -> None:
        if sum(map(len, self._lines.values())) != self._n_in_lines or not all(self._lines.values()):
            raise AssertionError("the count of the lines is wrong, or a line is empty")
        if {tenant for tenant, _ in self._lines} != self._tasks.keys() or self._tenants.n_waiting != len(self._tasks):
            raise AssertionError("a tenant waits without a line, or has one and does not wait")
        if sum(shares.n_waiting for shares in self._tasks.values()) != len(self._lines):
            raise AssertionError("a task waits without a line, or has one and does not wait")
        for shares in (self._tenants, *self._tasks.values()):
            shares.check_integrity()
