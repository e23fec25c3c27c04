"""Ended requests by task, with a bound on how many tasks have a series of their own."""

import threading
from collections import Counter
from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

BASE_LABEL = "__base__"  # these two can't be task names: a name begins with a letter or digit
OTHER_LABEL = "__other__"
_MAX_SCORES = 10_000


class TaskRequests(Collector):
    """Invariant: `_shown` has at most `n_shown` tasks, and a series rises by the requests that ended, never otherwise.

    The busiest tasks are shown by name, the others together. A score is the number of a task's requests, halved now
    and then, so it follows the rate. A task that has twice the score of the quietest shown one takes its place. The
    series of the quiet one ends: its count is not moved to the others, where Prometheus would take it for requests of
    this moment. Any thread, under `_lock`.
    """

    def __init__(self, *, n_shown: int, half_life: int) -> None:
        self._n_shown = n_shown
        self._half_life = half_life
        self._lock = threading.Lock()
        self._shown: dict[str, Counter[str]] = {}  # task -> outcome -> ended requests
        self._base: Counter[str] = Counter()
        self._others: Counter[str] = Counter()
        self._scores: dict[str, float] = {}
        self._n_until_halved = half_life

    def observe(self, task: str | None, outcome: str) -> None:
        """Count one ended request; `task` None for the base."""
        with self._lock:
            if task is None:
                self._base[outcome] += 1
                return
            self._raise_score(task)
            if task not in self._shown:
                self._show_if_busy(task)
            self._shown.get(task, self._others)[outcome] += 1

    def collect(self) -> Iterator[CounterMetricFamily]:
        family = CounterMetricFamily(
            "onebasis_task_requests",
            f"Ended requests; the {self._n_shown} busiest tasks by name, the rest as {OTHER_LABEL}.",
            labels=["task", "outcome"],
        )
        with self._lock:
            for task, counts in (*self._shown.items(), (BASE_LABEL, self._base), (OTHER_LABEL, self._others)):
                for outcome, n in counts.items():
                    family.add_metric([task, outcome], n)
        yield family

    def _raise_score(self, task: str) -> None:
        self._scores[task] = self._scores.get(task, 0.0) + 1.0
        self._n_until_halved -= 1
        if self._n_until_halved <= 0 or len(self._scores) > _MAX_SCORES:
            self._n_until_halved = self._half_life
            self._scores = {
                name: score / 2 for name, score in self._scores.items() if score >= 1.0 or name in self._shown
            }

    def _show_if_busy(self, task: str) -> None:
        if len(self._shown) >= self._n_shown:
            quietest = min(self._shown, key=lambda name: self._scores.get(name, 0.0))
            if self._scores.get(task, 0.0) < 2.0 * max(1.0, self._scores.get(quietest, 0.0)):
                return
            del self._shown[quietest]
        self._shown[task] = Counter()
