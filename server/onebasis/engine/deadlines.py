"""Whose time is up. No clock: times are passed in."""

import heapq

from onebasis.engine.sequence import EngineSequence


class Deadlines:
    """Invariant: each sequence in `_open`, by request id, has an entry in `_heap`. Engine thread only."""

    def __init__(self) -> None:
        self._open: dict[str, EngineSequence] = {}
        self._heap: list[tuple[float, str]] = []

    def __len__(self) -> int:
        return len(self._open)

    def add(self, sequence: EngineSequence) -> None:
        """Watch a sequence; nothing to do for one without a deadline."""
        if sequence.request.deadline_s is not None:
            self._open[sequence.request_id] = sequence
            heapq.heappush(self._heap, (sequence.request.deadline_s, sequence.request_id))

    def remove(self, sequence: EngineSequence) -> None:
        """Watch it no more. Its entry stays until it is due or until such entries are most of the heap."""
        if self._open.pop(sequence.request_id, None) is not None and len(self._heap) > 2 * len(self._open) + 64:
            self._heap = [entry for entry in self._heap if entry[1] in self._open]
            heapq.heapify(self._heap)

    def passed(self, now_s: float) -> tuple[EngineSequence, ...]:
        """Sequences whose deadline is not after `now_s`, the earliest first. They are watched no more."""
        passed: list[EngineSequence] = []
        while self._heap and self._heap[0][0] <= now_s:
            due_s, request_id = heapq.heappop(self._heap)
            sequence = self._open.get(request_id)
            if sequence is not None and sequence.request.deadline_s == due_s:  # else of one that ended
                passed.append(self._open.pop(request_id))
        return tuple(passed)
