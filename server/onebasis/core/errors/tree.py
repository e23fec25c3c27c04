"""The root of the errors and its branches."""

from typing import ClassVar


class ServeError(Exception):
    """Base of the tree. Raised itself only for a bug of ours."""

    code: ClassVar[str] = "internal"
    param: str | None = None


class RequestError(ServeError):
    """The request is wrong; the message says what was found, what is allowed and what to do."""

    code = "invalid_request"


class CapacityError(ServeError):
    """The server can't take the request now; the same request may succeed later."""

    retry_after_s: int = 1


class SetupError(ServeError):
    """The operator's input is wrong: a flag, a model folder, a basis file, a data set."""

    code = "setup"
