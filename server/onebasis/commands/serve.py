"""`onebasis serve`: its options are the fields of ServeConfig, so that the two can't disagree."""

import gc
import inspect
import signal
from collections.abc import Callable
from types import FrameType
from typing import Annotated, Any, Literal, NoReturn, get_args, get_origin

import typer
from pydantic.fields import FieldInfo

from onebasis.api.http_server import HttpServer
from onebasis.core.config import ServeConfig
from onebasis.telemetry.logs import configure_logging
from onebasis.wiring import build_server


def serve(**settings: Any) -> None:
    """Serve a base model, and tasks over a basis, on HTTP."""
    config = ServeConfig.model_validate(settings)
    configure_logging(config.log_level, json=config.log_json)
    signal.signal(signal.SIGTERM, _exit)  # until HTTP takes the signals
    server = build_server(config)
    gc.collect()
    gc.freeze()  # what is loaded stays: the collector need not walk it again while requests run
    http = HttpServer(
        server.app,
        server.drain,
        server.engine,
        host=config.host,
        port=config.port,
        shutdown_delay_s=config.shutdown_delay_s,
        drain_s=config.drain_s,
        max_header_bytes=config.max_header_bytes,
        receive_timeout_s=config.receive_timeout_s,
    )
    try:
        http.run()
    finally:
        server.close()
    if http.force_exit:
        raise typer.Exit(1)


def _exit(number: int, _frame: FrameType | None) -> NoReturn:
    """As the signal would end the process, but orderly: processes that an engine has begun to start end, too."""
    raise SystemExit(128 + number)


def serve_command() -> Callable[..., None]:
    """`serve` with the signature that typer reads: one option a field, with its name, type, preset and docstring."""
    parameters = [_parameter(name, field) for name, field in ServeConfig.model_fields.items()]
    serve.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    serve.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return serve


def _parameter(name: str, field: FieldInfo) -> inspect.Parameter:
    option = typer.Option(help=field.description, envvar=f"ONEBASIS_{name.upper()}")
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=inspect.Parameter.empty if field.is_required() else field.default,
        annotation=Annotated[_typer_type(field.annotation), option],
    )


def _typer_type(annotation: Any) -> Any:
    """The annotation itself; text where it lists the words allowed: ServeConfig checks them, and says so better."""
    words = [part for part in (annotation, *get_args(annotation)) if get_origin(part) is Literal]
    if not words:
        return annotation
    return str if annotation in words else str | None
