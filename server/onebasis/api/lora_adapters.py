"""vLLM's two routes for adapters on the server's disk. Off unless the operator names a folder for them.

Names, fields and texts of success are vLLM's, so that controllers made for it work; refusals have our envelope.
"""

import os
import stat
from pathlib import Path
from typing import Annotated, Final

from fastapi import APIRouter
from fastapi.responses import PlainTextResponse
from pydantic import Field

from onebasis.api.auth import REGISTER, CallerDep
from onebasis.api.deps import ServicesDep
from onebasis.api.json_object import JsonObject
from onebasis.coefficients.preconditions import ANY, NO_PRECONDITION, Precondition
from onebasis.core.errors import BodyTooLarge, InvalidParameter, PreconditionFailed, RouteNotFound, TaskAlreadyLoaded
from onebasis.identity.errors import PermissionDenied

router = APIRouter(tags=["vLLM compatibility"], dependencies=[REGISTER])

_SUFFIX: Final = ".coef.safetensors"


class LoadBody(JsonObject):
    """POST /v1/load_lora_adapter."""

    lora_name: Annotated[str, Field(min_length=1, max_length=256)]
    lora_path: Annotated[str, Field(min_length=1, max_length=4096, description=f"a *{_SUFFIX} file under the root")]
    load_inplace: Annotated[bool, Field(description="replace a task of that name")] = False


class UnloadBody(JsonObject):
    """POST /v1/unload_lora_adapter."""

    lora_name: Annotated[str, Field(min_length=1, max_length=256)]


@router.post("/v1/load_lora_adapter", summary="Register a file of the server's disk", response_class=PlainTextResponse)
def load_lora_adapter(body: LoadBody, services: ServicesDep, caller: CallerDep) -> PlainTextResponse:
    """As an upload of that file: it is stored, and the file is not needed any more."""
    if services.lora_root is None:
        raise RouteNotFound("this server reads no adapters from its disk; see --lora-root")
    if caller.tenant is not None:
        raise PermissionDenied("the server's files are the operator's; upload with PUT /v1/tasks/{name} instead")
    data = _read_under(services.lora_root, body.lora_path, limit_bytes=services.edge.max_body_bytes)
    precondition = NO_PRECONDITION if body.load_inplace else Precondition(if_none_match=(ANY,))
    try:
        services.registry.register(body.lora_name, data, author=caller, precondition=precondition)
    except PreconditionFailed as error:
        raise TaskAlreadyLoaded(body.lora_name) from error
    return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' added successfully.")


@router.post("/v1/unload_lora_adapter", summary="Delete a task", response_class=PlainTextResponse)
def unload_lora_adapter(body: UnloadBody, services: ServicesDep, caller: CallerDep) -> PlainTextResponse:
    """As DELETE /v1/tasks/{name}."""
    services.registry.delete(body.lora_name, author=caller)
    return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' removed successfully.")


def _read_under(root: Path, found: str, *, limit_bytes: int) -> bytes:
    """The bytes of a coefficient file in `root`, wherever its symlinks lead.

    Raises:
        InvalidParameter: no such file there; whether it exists elsewhere is not told.
        BodyTooLarge: it is over the cap.
    """
    refused = InvalidParameter("lora_path", f"needs a *{_SUFFIX} file under the server's --lora-root")
    try:
        top = root.resolve(strict=True)
        path = (top / found).resolve(strict=True)
        if not path.is_relative_to(top) or not path.name.endswith(_SUFFIX):
            raise refused
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise refused
            data = file.read(limit_bytes + 1)
    except (OSError, ValueError, RuntimeError):  # RuntimeError: symlinks in a circle
        raise refused from None
    if len(data) > limit_bytes:
        raise BodyTooLarge(limit_bytes=limit_bytes)
    return data
