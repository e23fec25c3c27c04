"""What is wrong with the server for now, or with the time that a request has."""

from onebasis.core.errors.tree import CapacityError, ServeError


class QueueFull(CapacityError):
    """The bounded queue of waiting requests is full. `retry_after_s` follows from the measured service rate."""

    code = "queue_full"

    def __init__(self, limit: int, *, retry_after_s: int = 1) -> None:
        super().__init__(f"{limit} requests run or wait, the most this server takes; retry in {retry_after_s} s")
        self.retry_after_s = retry_after_s


class TenantQueueFull(CapacityError):
    """One tenant's share of the queue is full; others still get in."""

    code = "tenant_queue_full"

    def __init__(self, limit: int, *, retry_after_s: int = 1) -> None:
        super().__init__(
            f"{limit} requests of your tenant run or wait, the most one tenant may have; retry in {retry_after_s} s"
        )
        self.retry_after_s = retry_after_s


class EngineStopped(CapacityError):
    """The engine ended before the request did."""

    code = "engine_stopped"

    def __init__(self, reason: str = "it was stopped") -> None:
        super().__init__(f"the engine has ended ({reason}); retry on another replica or after the restart")


class Draining(CapacityError):
    """The server is about to end: it takes nothing new, and what was not done in time is cut."""

    code = "draining"
    retry_after_s = 5

    def __init__(self) -> None:
        super().__init__("this server is shutting down; retry on another replica or after the restart")


class DeadlineExceeded(ServeError):
    """The request had no more time. Retrying it unchanged is rarely wise, so the answer says not to."""

    code = "deadline_exceeded"

    def __init__(self, *, allowed_s: float, n_output: int, max_tokens: int) -> None:
        super().__init__(
            f"the {allowed_s:.2f} s for this request are over, {n_output} of at most {max_tokens} tokens were made; "
            f"raise timeout, lower max_tokens, or send it when the server has less to do"
        )


class ResidualMemoryFull(CapacityError):
    """The residuals of running requests take the memory that there is for residuals. Other tasks are not affected."""

    code = "residual_memory_full"

    def __init__(self, *, needed_bytes: int, used_bytes: int, limit_bytes: int) -> None:
        super().__init__(
            f"the task's residual needs {needed_bytes} bytes, those of running requests take {used_bytes} of the "
            f"{limit_bytes} there are; retry later, or raise --residual-mib"
        )


class StoreUnavailable(CapacityError):
    """The task store can't be read or written now. A write that ends so was not acknowledged."""

    code = "store_unavailable"

    def __init__(self, reason: str) -> None:
        super().__init__(f"the task store does not answer ({reason}); retry later")


class StoreDamaged(ServeError):
    """Part of the task store can't be read any more."""

    code = "store_damaged"

    def __init__(self, reason: str) -> None:
        super().__init__(f"the task store is damaged here ({reason}); upload the task again or restore a backup")
