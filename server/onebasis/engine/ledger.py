"""Which requests were accepted and have had no ending yet, and how many more may come."""

import math
import threading
import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass

from onebasis.core.errors import QueueFull, ServeError, TenantQueueFull
from onebasis.core.request import TokenEvent
from onebasis.engine.sequence import EngineSequence

_N_ENDINGS = 64  # that the service rate is measured over
_LONGEST_RETRY_S = 60


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """Bounds of what is in flight, in sequences.

    max_waiting_per_tenant: that one tenant may have waiting while it fills the batch alone. Requests without a tenant
        share the whole queue.
    """

    max_running: int
    max_waiting: int
    max_waiting_per_tenant: int

    @property
    def max_in_flight(self) -> int:
        return self.max_running + self.max_waiting

    @property
    def max_in_flight_per_tenant(self) -> int:
        return self.max_running + min(self.max_waiting, self.max_waiting_per_tenant)


class Ledger:
    """Invariant: `_open` holds each accepted sequence until somebody takes its ending, which one caller alone can.

    Any thread, under `_lock`. Tokens are told under it, so that nobody hears one after the ending; sinks don't block.
    """

    def __init__(self, limits: QueueLimits) -> None:
        self._limits = limits
        self._lock = threading.Lock()
        self._open: dict[str, EngineSequence] = {}
        self._n_by_tenant: Counter[str] = Counter()
        self._ended_s: deque[float] = deque(maxlen=_N_ENDINGS)
        self._closed_by: ServeError | None = None

    @property
    def is_closed(self) -> bool:
        return self._closed_by is not None

    @property
    def n_open(self) -> int:
        return len(self._open)

    def accept(self, sequences: Sequence[EngineSequence]) -> None:
        """Accept all or none. Raises QueueFull, TenantQueueFull, or the error that the ledger was closed with."""
        tenants = Counter(s.request.tenant for s in sequences if s.request.tenant is not None)
        with self._lock:
            if self._closed_by is not None:
                raise self._closed_by.with_traceback(None)
            if len(self._open) + len(sequences) > self._limits.max_in_flight:
                raise QueueFull(self._limits.max_in_flight, retry_after_s=self._retry_after_s(len(self._open)))
            for tenant, n_new in tenants.items():
                n_open, limit = self._n_by_tenant[tenant], self._limits.max_in_flight_per_tenant
                if n_open + n_new > limit:
                    raise TenantQueueFull(limit, retry_after_s=self._retry_after_s(n_open))
            self._open.update((sequence.request_id, sequence) for sequence in sequences)
            self._n_by_tenant.update(tenants)

    def tell(self, sequence: EngineSequence, event: TokenEvent) -> None:
        """Hand a token to its request, unless that has ended. Raises what the sink raises."""
        with self._lock:
            if sequence.request_id in self._open:
                sequence.request.sink(event)

    def take(self, sequence: EngineSequence) -> bool:
        """Close this request. True for the first caller, who now owes it the one ending; False ever after."""
        with self._lock:
            if self._open.pop(sequence.request_id, None) is None:
                return False
            self._ended_s.append(time.monotonic())
            self._forget_tenant(sequence)
            return True

    def close(self, error: ServeError) -> list[EngineSequence]:
        """Accept no more from now on; the caller owes an ending to all that are returned. Later calls return none."""
        with self._lock:
            if self._closed_by is None:
                self._closed_by = error
            taken = list(self._open.values())
            self._open.clear()
            self._n_by_tenant.clear()
            return taken

    def _forget_tenant(self, sequence: EngineSequence) -> None:
        tenant = sequence.request.tenant
        if tenant is None:
            return
        self._n_by_tenant[tenant] -= 1
        if not self._n_by_tenant[tenant]:
            del self._n_by_tenant[tenant]  # tenants come and go; what is kept follows what is in flight

    def _retry_after_s(self, n_ahead: int) -> int:
        """How long `n_ahead` sequences take at the rate of the latest endings; 1 s where none was measured."""
        if len(self._ended_s) < 2:
            return 1
        rate = (len(self._ended_s) - 1) / max(1e-6, time.monotonic() - self._ended_s[0])
        return min(_LONGEST_RETRY_S, max(1, math.ceil(n_ahead / rate)))
