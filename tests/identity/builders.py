"""Callers and clocks for tests of identity."""

from onebasis.identity.caller import Caller, Scope

ADMIN = Caller(key_id="key-admin", tenant=None, scopes=frozenset({Scope.ADMIN}), request_id="req-1")
GENERATE = frozenset({Scope.GENERATE})


class Clock:
    """A time that only the test moves."""

    def __init__(self, now_s: float = 1000.0) -> None:
        self.now_s = now_s

    def __call__(self) -> float:
        return self.now_s
