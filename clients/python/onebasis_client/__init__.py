"""Client of a onebasis server: generate under tasks, register and manage them. `OneBasis`, or `AsyncOneBasis`."""

from onebasis_client import api_errors
from onebasis_client.async_client import AsyncOneBasis
from onebasis_client.client import OneBasis
from onebasis_client.errors import (
    ApiError,
    CannotConnect,
    ConnectionLost,
    OneBasisError,
    TimedOut,
    TransportError,
    UnexpectedReply,
)
from onebasis_client.retries import Backoff
from onebasis_client.version import __version__

__all__ = [
    "ApiError",
    "AsyncOneBasis",
    "Backoff",
    "CannotConnect",
    "ConnectionLost",
    "OneBasis",
    "OneBasisError",
    "TimedOut",
    "TransportError",
    "UnexpectedReply",
    "__version__",
    "api_errors",
]
