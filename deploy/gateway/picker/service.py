"""The ext_proc service: reads the task of a request, answers with the replica that shall have it."""

import json
import random
from collections.abc import AsyncIterator
from typing import Any, Final

from envoy.config.core.v3.base_pb2 import HeaderValue, HeaderValueOption
from envoy.extensions.filters.http.ext_proc.v3.processing_mode_pb2 import ProcessingMode
from envoy.service.ext_proc.v3 import external_processor_pb2 as ext_proc
from envoy.service.ext_proc.v3.external_processor_pb2_grpc import ExternalProcessorServicer

from picker.replicas import Replicas
from picker.scores import ranked

_DESTINATION: Final = "x-gateway-destination-endpoint"
_GENERATIONS: Final = frozenset({"/v1/completions", "/v1/chat/completions"})


class Picker(ExternalProcessorServicer):  # type: ignore[misc]  # generated code has no types
    """One `Process` is one HTTP request: its headers, and of a generation its whole body. Event loop only.

    Where no replica is ready it chooses none, and the gateway answers as without a picker.
    """

    def __init__(self, replicas: Replicas, rng: random.Random) -> None:
        self._replicas = replicas
        self._rng = rng

    async def Process(  # noqa: N802  the name of the call in the .proto file
        self, messages: AsyncIterator[Any], _context: object
    ) -> AsyncIterator[ext_proc.ProcessingResponse]:
        """Answer each message; the choice comes with the body where there is one to read, else with the headers."""
        async for message in messages:
            if message.HasField("request_headers"):
                if _is_generation(message.request_headers):
                    yield _BODY_PLEASE
                else:
                    chosen = ext_proc.HeadersResponse(response=self._choose(task=None))
                    yield ext_proc.ProcessingResponse(request_headers=chosen)
            elif message.HasField("request_body"):
                chosen = ext_proc.BodyResponse(response=self._choose(task_of(message.request_body.body)))
                yield ext_proc.ProcessingResponse(request_body=chosen)

    def _choose(self, task: str | None) -> ext_proc.CommonResponse:
        """Best first: the gateway goes down the list when it can't connect."""
        loads = self._replicas.ready()
        if not loads:
            return ext_proc.CommonResponse()
        endpoints = ranked(loads, task, self._rng)
        self._replicas.picked(endpoints[0])
        destination = HeaderValueOption(
            header=HeaderValue(key=_DESTINATION, raw_value=",".join(endpoints).encode()),
            append_action=HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD,
        )
        return ext_proc.CommonResponse(header_mutation=ext_proc.HeaderMutation(set_headers=[destination]))


def task_of(body: bytes) -> str | None:
    """What `model` names, without its digest; None where there is no such thing: the replica says what is wrong."""
    try:
        model = json.loads(body)["model"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return None
    return model.partition("@")[0] if isinstance(model, str) else None


def _is_generation(headers: Any) -> bool:
    found = {header.key: header.raw_value.decode("latin-1") or header.value for header in headers.headers.headers}
    is_post = found.get(":method") == "POST" and not headers.end_of_stream
    return is_post and found.get(":path", "").partition("?")[0] in _GENERATIONS


_BODY_PLEASE: Final = ext_proc.ProcessingResponse(
    request_headers=ext_proc.HeadersResponse(),
    mode_override=ProcessingMode(
        request_header_mode=ProcessingMode.SEND,
        request_body_mode=ProcessingMode.BUFFERED,
        response_header_mode=ProcessingMode.SKIP,
    ),
)
