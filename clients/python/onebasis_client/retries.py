"""When to send a request again, and after how long. Decisions only; the clients do the waiting."""

import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from onebasis_client.api_errors import RequestError
from onebasis_client.calls import Request, Stage
from onebasis_client.errors import ApiError, CannotConnect, ConnectionLost, OneBasisError

_MOST_DOUBLINGS: Final = 64  # longer than anybody waits, and far from the largest float


class RetryRule(Protocol):
    """Decides after each failed attempt."""

    def pause_s(self, request: Request, error: OneBasisError, n_failed: int, /) -> float | None:
        """Seconds to wait before the next attempt, or None to give up. `n_failed` counts from 1."""
        ...


@dataclass(frozen=True, slots=True)
class Backoff:
    """Pauses that double, each shortened at random by up to half, so that clients do not come back all at once.

    What the server asks for in Retry-After is waited for in full.

    Args:
        n_retries: attempts after the first.
        longest_s: longest pause of our own.
        longest_retry_after_s: a server that asks for more gets no further attempt. Below the 60 s of a quota that time
            alone does not free.
        random: numbers in [0, 1).
    """

    n_retries: int = 3
    first_s: float = 0.25
    longest_s: float = 8.0
    longest_retry_after_s: float = 30.0
    random: Callable[[], float] = random.random

    def pause_s(self, request: Request, error: OneBasisError, n_failed: int, /) -> float | None:
        if n_failed > self.n_retries or stage_of(error) > request.retry_through:
            return None
        doubled_s = math.ldexp(self.first_s, min(n_failed - 1, _MOST_DOUBLINGS))
        pause_s = min(self.longest_s, doubled_s) * (1 - self.random() / 2)
        asked_s = error.retry_after_s if isinstance(error, ApiError) else None
        if asked_s is None:
            return pause_s
        return asked_s + pause_s if asked_s <= self.longest_retry_after_s else None


@dataclass(frozen=True, slots=True)
class Until:
    """Tries until a point of time.monotonic(), whatever is wrong, as long as it may become right by itself."""

    deadline_s: float
    interval_s: float = 0.2

    def pause_s(self, _request: Request, error: OneBasisError, _n_failed: int, /) -> float | None:
        left_s = self.deadline_s - time.monotonic()
        return None if left_s <= 0 or isinstance(error, RequestError) else min(self.interval_s, left_s)


def stage_of(error: OneBasisError) -> Stage:
    """How far the failed attempt may have come.

    A timeout is final: the caller has said how long to wait.
    """
    match error:
        case CannotConnect():
            return Stage.NOT_RUN
        case ConnectionLost(heard=heard):
            return Stage.HEARD if heard else Stage.NOT_HEARD
        case ApiError(status=429):
            return Stage.NOT_RUN
        case ApiError(status=503):
            return Stage.NOT_HEARD  # a write may have been stored although the store failed to say so
    return Stage.FINAL
