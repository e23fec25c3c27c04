"""Everything this client raises on purpose, as one tree.

OneBasisError
  ApiError            the server answered with an error; raised itself for a bug of the server
    RequestError      the caller can fix it           these, and a class for each code of the server,
    CapacityError     retry later                     are in api_errors.py
  TransportError      no usable answer
    CannotConnect     the request never reached a server
    ConnectionLost    the connection broke after the request was sent
    TimedOut          no answer within the timeout
    UnexpectedReply   not the answer of a onebasis server
"""


class OneBasisError(Exception):
    """Base of the tree."""


class ApiError(OneBasisError):
    """The server answered with an error.

    Attributes:
        code: the server's stable code, also when this client has no class for it.
        status: HTTP status; None for an error event in a stream, whose status was sent before.
        param: the field, header or query parameter at fault.
        request_id: what the server's log has the request under.
        retry_after_s: how long the server asks to wait before the next attempt.
    """

    code: str = "internal"

    def __init_subclass__(cls, *, code: str | None = None) -> None:
        if code is not None:
            cls.code = code

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        status: int | None = None,
        param: str | None = None,
        request_id: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        if code is not None:
            self.code = code
        self.status = status
        self.param = param
        self.request_id = request_id
        self.retry_after_s = retry_after_s


class TransportError(OneBasisError):
    """No usable answer. Whether the server acted on the request depends on the subclass."""


class CannotConnect(TransportError):
    """No connection: the request never reached a server."""


class ConnectionLost(TransportError):
    """The connection broke after the request was sent. The server may have acted on it.

    Attributes:
        heard: part of the answer had come.
    """

    def __init__(self, message: str, *, heard: bool = False) -> None:
        super().__init__(message)
        self.heard = heard


class TimedOut(TransportError):
    """Nothing came within the timeout. The server may have acted on the request."""


class UnexpectedReply(TransportError):
    """Not the answer of a onebasis server: another service, a proxy, or a version too far apart."""
