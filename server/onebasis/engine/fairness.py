"""Whose turn is next: virtual token counters, from "Fairness in Serving Large Language Models" (VTC), arXiv 2401.00588.

Each client has a counter of the tokens it was served, and the smallest counter among those with work waiting is next.
A client that begins to wait is lifted to the smallest counter of those that do: time spent idle is not saved up. So
two clients that both have work waiting never get far apart, whatever either of them sends (Theorem 4.4 there: by at
most 2 * max(w_in * longest prompt, w_out * tokens of a full batch)).
"""

import heapq
from typing import Final, Generic, TypeVar

INPUT_TOKEN_COST: Final = 1
OUTPUT_TOKEN_COST: Final = 2
"""An output token takes a step of its own, an input token shares one; the paper's weights."""

_KEPT_ENTRIES = 256

Client = TypeVar("Client")


class FairShares(Generic[Client]):
    """The counters of all clients that compete. Choosing takes O(log clients), a charge O(1).

    Invariant: every waiting client has one live entry in `_heap`, the one with its number in `_waiting`, and that
    entry's counter is not above its true one. `_floor` never falls, and no waiting client's counter is below it.
    A counter that is not above the floor says nothing, and may be forgotten.
    """

    def __init__(self) -> None:
        self._counters: dict[Client, int] = {}
        self._waiting: dict[Client, int] = {}  # client -> number of its entry; the earlier one wins a tie
        self._heap: list[tuple[int, int, Client]] = []
        self._floor = 0
        self._n_joined = 0
        self._tidy_at = _KEPT_ENTRIES

    @property
    def n_waiting(self) -> int:
        """Clients that wait."""
        return len(self._waiting)

    def debts(self) -> dict[Client, int]:
        """Of every waiting client, the tokens that it is behind the one served most. From any thread."""
        counters = {client: self._counters.get(client, 0) for client in tuple(self._waiting)}
        most = max(counters.values(), default=0)
        return {client: most - counter for client, counter in counters.items()}

    def join(self, client: Client) -> None:
        """The client has work waiting from now on."""
        if self._waiting:
            self.first()  # brings the floor up to date
        counter = self._counters[client] = max(self._counters.get(client, 0), self._floor)
        self._n_joined += 1
        self._waiting[client] = self._n_joined
        heapq.heappush(self._heap, (counter, self._n_joined, client))

    def leave(self, client: Client) -> None:
        """The client has no more work waiting. What it was served is remembered."""
        del self._waiting[client]
        if len(self._heap) + len(self._counters) > self._tidy_at:
            self._tidy()

    def charge(self, client: Client, cost: int) -> None:
        """The client was served, waiting or not."""
        self._counters[client] = max(self._counters.get(client, 0), self._floor) + cost

    def first(self) -> Client:
        """The waiting client that was served least. Raises IndexError when nobody waits."""
        while True:
            counter, number, client = self._heap[0]
            if self._waiting.get(client) != number:
                heapq.heappop(self._heap)
            elif counter < self._counters[client]:
                heapq.heapreplace(self._heap, (self._counters[client], number, client))
            else:
                self._floor = max(self._floor, counter)
                return client

    def check_integrity(self) -> None:
        """Raise AssertionError if the invariant is broken."""
        live = {client: counter for counter, number, client in self._heap if self._waiting.get(client) == number}
        if live.keys() != self._waiting.keys():
            raise AssertionError("a client waits and has no entry")
        if any(not self._floor <= counter <= self._counters[client] for client, counter in live.items()):
            raise AssertionError("a waiting client's counter is below its entry or the floor")

    def _tidy(self) -> None:
        """Forget dead entries, and idle clients whom the floor has passed: they would be lifted to it anyway."""
        self._heap = [entry for entry in self._heap if self._waiting.get(entry[2]) == entry[1]]
        heapq.heapify(self._heap)
        self._counters = {
            client: counter
            for client, counter in self._counters.items()
            if counter > self._floor or client in self._waiting
        }
        self._tidy_at = 2 * (len(self._heap) + len(self._counters)) + _KEPT_ENTRIES
