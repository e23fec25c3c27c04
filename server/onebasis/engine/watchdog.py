"""Notices that the engine's thread stands still or is gone, from a thread of its own."""

import threading
from collections.abc import Callable

_POLLS_PER_STALL = 10


class Watchdog:
    """Calls `on_failure` once, with the reason, when the heart has not beaten for `stall_s` or the thread is dead.

    It counts the time that it was awake itself, so a process that was stopped and continued is not taken for a stall.
    A native call that holds the interpreter's lock stops this thread, too; then only a probe from outside notices.

    Args:
        n_beats: grows while the engine lives, idle or not; at least four times in stall_s.
        is_running: whether the engine's thread is there.
    """

    def __init__(
        self,
        *,
        n_beats: Callable[[], int],
        is_running: Callable[[], bool],
        stall_s: float,
        on_failure: Callable[[str], None],
    ) -> None:
        self._n_beats = n_beats
        self._is_running = is_running
        self._stall_s = stall_s
        self._on_failure = on_failure
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="onebasis-watchdog", daemon=True)

    def start(self) -> None:
        """Begin to watch. Call once, after the engine's thread has started."""
        self._thread.start()

    def stop(self) -> None:
        """Watch no longer. May be called before `start`, or again."""
        self._stopped.set()

    def _run(self) -> None:
        seen, n_still = self._n_beats(), 0
        while not self._stopped.wait(self._stall_s / _POLLS_PER_STALL):
            beats = self._n_beats()
            seen, n_still = beats, n_still + 1 if beats == seen else 0
            if not self._is_running():
                self._on_failure("its thread has ended")
                return
            if n_still >= _POLLS_PER_STALL:
                self._on_failure(f"no step has ended for {self._stall_s:g} s")
                return
