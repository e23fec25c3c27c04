"""Keeps a registry near its store, whoever else writes there."""

import logging
import threading
from typing import Final

from onebasis.coefficients.registry import TaskRegistry
from onebasis.core.errors import StoreDamaged, StoreUnavailable

_LOG: Final = logging.getLogger(__name__)


class Follower:
    """Owns one thread that lets the registry follow the store, again and again. `start` and `stop` once each.

    A store that fails is asked again after the same pause; meanwhile the registry serves what it knows, and its
    snapshot says how old that is.

    Args:
        interval_s: pause between two readings. What others write is served here after it, and the reading's time.
    """

    def __init__(self, registry: TaskRegistry, *, interval_s: float = 0.5) -> None:
        self._registry = registry
        self._interval_s = interval_s
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="onebasis-registry", daemon=True)

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the thread after the reading it is at."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        is_failing = False
        while not self._stopping.wait(self._interval_s):
            try:
                self._registry.follow()
            except (StoreUnavailable, StoreDamaged) as error:
                if not is_failing:
                    _LOG.warning("the registry can't follow its store and serves what it knows: %s", error)
                is_failing = True
            except Exception:
                _LOG.exception("the registry could not follow its store; a bug")
            else:
                if is_failing:
                    _LOG.info("the registry follows its store again")
                is_failing = False
