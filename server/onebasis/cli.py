"""The `onebasis` command: serve, build a basis, fit a task, run the demo."""

import gc
from pathlib import Path
from typing import Annotated

import torch
import typer
from pydantic import ValidationError
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from onebasis import __version__
from onebasis.api.http_server import HttpServer
from onebasis.core.config import ServeConfig
from onebasis.core.errors import ServeError
from onebasis.core.ids import parse_task_name
from onebasis.demo.commands import demo_app
from onebasis.fitting.basis import BasisKind, build_basis
from onebasis.fitting.data import read_jsonl, split, tokenize
from onebasis.fitting.job import fit_task
from onebasis.fitting.train import FitRecipe, StepLoss
from onebasis.identity.commands import keys_app
from onebasis.model.factors import load_basis
from onebasis.model.loader import load_base
from onebasis.model.sites import linear_sites
from onebasis.registry_cli import registry_app
from onebasis.telemetry.logs import configure_logging
from onebasis.wiring import build_server

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
basis_app = typer.Typer(no_args_is_help=True, help="Make a shared basis.")
app.add_typer(basis_app, name="basis")
app.add_typer(keys_app, name="keys")
app.add_typer(demo_app, name="demo")
app.add_typer(registry_app, name="registry")

_DEFAULTS = ServeConfig(model=Path())
"""So that the options and ServeConfig can't disagree."""

ModelOption = Annotated[Path, typer.Option(help="Folder of the base model.", envvar="ONEBASIS_MODEL")]
ThreadsOption = Annotated[int | None, typer.Option(min=1, help="Compute threads.", envvar="ONEBASIS_THREADS")]


def main() -> None:
    """Entry point. Errors of the operator are one line on stderr and exit code 2."""
    try:
        app()
    except (ServeError, OSError) as error:
        _complain(str(error))
        raise SystemExit(2) from None
    except ValidationError as error:
        for detail in error.errors():
            where = ".".join(map(str, detail["loc"])) or "options"
            _complain(f"{where}: {detail['msg']}")
        raise SystemExit(2) from None


@app.command()
def version() -> None:
    """Print the version."""
    Console().print(__version__, highlight=False)


@app.command()
def serve(
    model: ModelOption,
    basis: Annotated[Path | None, typer.Option(help="Basis file.", envvar="ONEBASIS_BASIS")] = None,
    store: Annotated[str, typer.Option(help="URL of the registry.", envvar="ONEBASIS_STORE")] = _DEFAULTS.store,
    lora_root: Annotated[
        Path | None, typer.Option(help="Folder that /v1/load_lora_adapter may read.", envvar="ONEBASIS_LORA_ROOT")
    ] = None,
    served_model_name: Annotated[
        str | None, typer.Option(help="How clients name the base.", envvar="ONEBASIS_SERVED_MODEL_NAME")
    ] = None,
    tool_parser: Annotated[
        str | None, typer.Option(help="hermes, llama3_json or mistral.", envvar="ONEBASIS_TOOL_PARSER")
    ] = None,
    host: Annotated[str, typer.Option(envvar="ONEBASIS_HOST")] = _DEFAULTS.host,
    port: Annotated[int, typer.Option(envvar="ONEBASIS_PORT")] = _DEFAULTS.port,
    allow_unauthenticated: Annotated[
        bool, typer.Option(help="Listen beyond loopback.", envvar="ONEBASIS_ALLOW_UNAUTHENTICATED")
    ] = _DEFAULTS.allow_unauthenticated,
    require_auth: Annotated[
        bool, typer.Option(help="Ask for an API key on every route.", envvar="ONEBASIS_REQUIRE_AUTH")
    ] = _DEFAULTS.require_auth,
    api_keys_file: Annotated[
        Path | None, typer.Option(help="API keys, one a line.", envvar="ONEBASIS_API_KEYS_FILE")
    ] = None,
    protect_metrics: Annotated[bool, typer.Option(envvar="ONEBASIS_PROTECT_METRICS")] = _DEFAULTS.protect_metrics,
    cors_origin: Annotated[list[str], typer.Option(envvar="ONEBASIS_CORS_ORIGIN")] = _DEFAULTS.cors_origin,
    dtype: Annotated[str, typer.Option(envvar="ONEBASIS_DTYPE")] = _DEFAULTS.dtype,
    device: Annotated[str, typer.Option(envvar="ONEBASIS_DEVICE")] = _DEFAULTS.device,
    kernels: Annotated[str, typer.Option(envvar="ONEBASIS_KERNELS")] = _DEFAULTS.kernels,
    threads: ThreadsOption = None,
    max_model_len: Annotated[int | None, typer.Option(envvar="ONEBASIS_MAX_MODEL_LEN")] = None,
    kv_cache_mib: Annotated[int, typer.Option(envvar="ONEBASIS_KV_CACHE_MIB")] = _DEFAULTS.kv_cache_mib,
    block_size: Annotated[int, typer.Option(envvar="ONEBASIS_BLOCK_SIZE")] = _DEFAULTS.block_size,
    max_running: Annotated[int, typer.Option(envvar="ONEBASIS_MAX_RUNNING")] = _DEFAULTS.max_running,
    max_step_tokens: Annotated[int, typer.Option(envvar="ONEBASIS_MAX_STEP_TOKENS")] = _DEFAULTS.max_step_tokens,
    max_prefill_tokens: Annotated[
        int, typer.Option(envvar="ONEBASIS_MAX_PREFILL_TOKENS")
    ] = _DEFAULTS.max_prefill_tokens,
    prefix_cache: Annotated[bool, typer.Option(envvar="ONEBASIS_PREFIX_CACHE")] = _DEFAULTS.prefix_cache,
    max_waiting: Annotated[int, typer.Option(envvar="ONEBASIS_MAX_WAITING")] = _DEFAULTS.max_waiting,
    max_waiting_per_tenant: Annotated[int | None, typer.Option(envvar="ONEBASIS_MAX_WAITING_PER_TENANT")] = None,
    default_timeout_s: Annotated[float | None, typer.Option(envvar="ONEBASIS_DEFAULT_TIMEOUT_S")] = None,
    max_timeout_s: Annotated[float | None, typer.Option(envvar="ONEBASIS_MAX_TIMEOUT_S")] = None,
    stall_s: Annotated[float, typer.Option(envvar="ONEBASIS_STALL_S")] = _DEFAULTS.stall_s,
    arena_mib: Annotated[int, typer.Option(envvar="ONEBASIS_ARENA_MIB")] = _DEFAULTS.arena_mib,
    max_body_bytes: Annotated[int, typer.Option(envvar="ONEBASIS_MAX_BODY_BYTES")] = _DEFAULTS.max_body_bytes,
    max_json_bytes: Annotated[int, typer.Option(envvar="ONEBASIS_MAX_JSON_BYTES")] = _DEFAULTS.max_json_bytes,
    max_header_bytes: Annotated[int, typer.Option(envvar="ONEBASIS_MAX_HEADER_BYTES")] = _DEFAULTS.max_header_bytes,
    tenant_tasks: Annotated[int | None, typer.Option(envvar="ONEBASIS_TENANT_TASKS")] = None,
    tenant_bytes: Annotated[int | None, typer.Option(envvar="ONEBASIS_TENANT_BYTES")] = None,
    tenant_requests_per_minute: Annotated[
        int | None, typer.Option(envvar="ONEBASIS_TENANT_REQUESTS_PER_MINUTE")
    ] = None,
    tenant_tokens_per_minute: Annotated[int | None, typer.Option(envvar="ONEBASIS_TENANT_TOKENS_PER_MINUTE")] = None,
    tenant_concurrent_requests: Annotated[
        int | None, typer.Option(envvar="ONEBASIS_TENANT_CONCURRENT_REQUESTS")
    ] = None,
    receive_timeout_s: Annotated[
        float, typer.Option(envvar="ONEBASIS_RECEIVE_TIMEOUT_S")
    ] = _DEFAULTS.receive_timeout_s,
    drain_s: Annotated[int, typer.Option(envvar="ONEBASIS_DRAIN_S")] = _DEFAULTS.drain_s,
    log_level: Annotated[str, typer.Option(envvar="ONEBASIS_LOG_LEVEL")] = _DEFAULTS.log_level,
    log_json: Annotated[bool, typer.Option(envvar="ONEBASIS_LOG_JSON")] = _DEFAULTS.log_json,
    otlp_endpoint: Annotated[str | None, typer.Option(envvar="ONEBASIS_OTLP_ENDPOINT")] = None,
) -> None:
    """Serve a base model, and tasks over a basis, on HTTP. What each option means: ServeConfig in core/config.py."""
    config = ServeConfig.model_validate(locals())
    configure_logging(config.log_level, json=config.log_json)
    server = build_server(config)
    gc.collect()
    gc.freeze()  # what is loaded stays: the collector need not walk it again while requests run
    http = HttpServer(
        server.app,
        server.drain,
        server.engine,
        host=config.host,
        port=config.port,
        receive_timeout_s=config.receive_timeout_s,
        drain_s=config.drain_s,
        max_header_bytes=config.max_header_bytes,
    )
    try:
        http.run()
    finally:
        server.close()
    if http.force_exit:
        raise typer.Exit(1)


@basis_app.command("build")
def basis_build(
    model: ModelOption,
    output: Annotated[
        Path, typer.Option(dir_okay=False, writable=True, help="Where to write the *.basis.safetensors file.")
    ],
    kind: Annotated[BasisKind, typer.Option(help="Where the directions come from.")] = BasisKind.BASE_SVD,
    k: Annotated[int, typer.Option(help="Rows of each factor.")] = 16,
    seed: Annotated[int, typer.Option(help="For --kind random.")] = 0,
    base_name: Annotated[str | None, typer.Option(help="Name to note for the base model.")] = None,
    threads: ThreadsOption = None,
) -> None:
    """Make a basis from the base model alone."""
    _set_threads(threads)
    base = load_base(model, dtype=torch.bfloat16, device=torch.device("cpu"), name=base_name)
    with _progress() as progress:
        bar = progress.add_task("sites", total=len(linear_sites(base.model)))
        spec = build_basis(base, kind=kind, k=k, seed=seed, path=output, progress=lambda _site: progress.advance(bar))
    _say(f"{output}: {spec.kind}, {len(spec.sites)} sites, k={k}, {spec.size_bytes / 2**20:.1f} MiB, {spec.digest}")


@app.command()
def fit(
    model: ModelOption,
    basis: Annotated[Path, typer.Option(help="Basis file.", envvar="ONEBASIS_BASIS")],
    data: Annotated[Path, typer.Option(help="JSON lines of {prompt, completion} or {messages}.")],
    output: Annotated[
        Path, typer.Option(dir_okay=False, writable=True, help="Where to write the *.coef.safetensors file.")
    ],
    task: Annotated[str, typer.Option(help="Name of the task.")],
    validation: Annotated[
        Path | None, typer.Option(help="JSON lines to score on; by default a tenth of the data, at most 64.")
    ] = None,
    form: Annotated[str, typer.Option(help="core, or diag for the diagonal alone.")] = "core",
    steps: Annotated[int, typer.Option(min=1)] = 200,
    batch_size: Annotated[int, typer.Option(min=1)] = 8,
    learning_rate: Annotated[float, typer.Option(min=0.0)] = 1e-2,
    seed: Annotated[int, typer.Option()] = 0,
    max_example_tokens: Annotated[int, typer.Option(min=2)] = 512,
    threads: ThreadsOption = None,
) -> None:
    """Train one task's coefficients inside a fixed basis."""
    parse_task_name(task)
    recipe = FitRecipe(form=form, n_steps=steps, batch_size=batch_size, learning_rate=learning_rate, seed=seed)
    _set_threads(threads)
    device = torch.device("cpu")
    base = load_base(model, dtype=torch.bfloat16, device=device)
    loaded = load_basis(basis, dtype=torch.bfloat16, device=device)
    examples = tokenize(read_jsonl(data), base.tokenizer, max_tokens=max_example_tokens)
    if validation is None:
        examples, held_out = split(examples, n_validation=min(64, len(examples) // 10), seed=seed)
    else:
        held_out = tokenize(read_jsonl(validation), base.tokenizer, max_tokens=max_example_tokens)
    with _progress() as progress:
        bar = progress.add_task(task, total=steps)

        def on_step(step: StepLoss) -> None:
            progress.update(bar, advance=1, description=f"{task} loss {step.loss:.3f}")

        report = fit_task(base, loaded, examples, held_out, task=task, recipe=recipe, output=output, on_step=on_step)
    _say(
        f"{output}: {report.size_bytes} bytes, loss {report.first_loss:.3f} -> {report.final_loss:.3f} "
        f"in {report.train_s:.0f} s"
    )
    if report.task_score is not None:
        _say(f"exact match on {len(held_out)} unseen items: base {report.base_score:.2f}, task {report.task_score:.2f}")


def _set_threads(threads: int | None) -> None:
    if threads is not None:
        torch.set_num_threads(threads)


class RateColumn(ProgressColumn):
    """Steps per second, once there is one."""

    def render(self, task: Task) -> Text:
        return Text("" if task.speed is None else f"{task.speed:.2f}/s")


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        RateColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,  # what stays on the screen is the result, or the one line that says what is wrong
    )


def _complain(text: str) -> None:
    Console(stderr=True).print(f"onebasis: {text}", style="red", markup=False, highlight=False, soft_wrap=True)


def _say(text: str) -> None:
    Console().print(text, markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()
