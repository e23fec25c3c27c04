"""What the operator decides. Checked once, frozen afterwards."""

import math
from ipaddress import ip_address
from pathlib import Path
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

MIB = 1024 * 1024
DEFAULT_STORE: Final = "sqlite:///onebasis.db"

ToolParser = Literal["hermes", "llama3_json", "mistral"]
"""How a model family writes calls of tools; the names are vLLM's."""


class ServeConfig(BaseModel):
    """Settings of one server. Field names are the command line's options.

    Raises:
        pydantic.ValidationError: a value is out of range, or two contradict each other.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    engine: Literal["native", "vllm"] = "native"
    """What computes the answers: the engine of this project, or vLLM with this project's tasks in it."""
    model: Path
    """Folder of the base model: config.json, *.safetensors, the tokenizer's files."""
    basis: Path | None = None
    """Basis file; without one the server runs the base alone."""
    store: str = DEFAULT_STORE
    """URL of the task registry: sqlite:///..., or postgresql://... for several replicas."""
    lora_root: Path | None = None
    """Folder from which vLLM's /v1/load_lora_adapter may read files; by default that route does not exist."""
    served_model_name: str | None = None
    """How clients name the base; by default the folder's name."""
    tool_parser: ToolParser | None = None
    """How the model writes calls of tools; by default what its chat template shows."""
    host: str = "127.0.0.1"
    """Address to listen on; one that other machines reach needs keys, or allow_unauthenticated."""
    port: int = Field(default=8000, ge=0, le=65535)
    """Port to listen on; 0 for any that is free."""
    allow_unauthenticated: bool = False
    """Listen beyond loopback although anybody who can reach the port may register tasks, until a key is made."""
    require_auth: bool = False
    """Ask for a key even if none was ever made."""
    api_keys_file: Path | None = None
    """Keys beside those in the store, one a line: <scopes> <key> [<tenant>]; with it a key is always asked for."""
    protect_metrics: bool = False
    """Ask for a key on /metrics too, one that belongs to no tenant."""
    cors_origin: list[str] = []
    """Web origins whose pages may call this server from a browser; * for all."""
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    """Of base weights, basis and KV cache; the native kernels compute in bfloat16 alone. Cores are float32."""
    device: str = "cpu"
    """What computes, as torch names it: cpu, cuda, cuda:1."""
    tensor_parallel_size: int = Field(default=1, ge=1)
    """GPUs, or processes on a CPU, that each layer is spread over; vllm only."""
    pipeline_parallel_size: int = Field(default=1, ge=1)
    """Stages of consecutive layers, each over as many GPUs as tensor_parallel_size says; vllm only."""
    distributed_executor_backend: Literal["mp", "ray"] | None = None
    """mp: the model's processes are on this machine; ray: on a Ray cluster's; by default vLLM's choice; vllm only."""
    kernels: Literal["auto", "native", "torch"] = "auto"
    """native: the step compiled for this CPU; torch: any model and device; auto: native where it can run."""
    quantization: Literal["int8"] | None = None
    """int8: hold the base's weights in 8 bits, for the native kernels; the basis and the tasks stay as they are."""
    cuda_graphs: bool = True
    """On a GPU, record the steps that only decode at start-up and replay them; elsewhere without effect."""
    threads: int | None = Field(default=None, ge=1)
    """Compute threads; by default what torch finds."""
    max_model_len: int | None = Field(default=None, ge=2)
    """Tokens of prompt and output; by default what the model was made for, as far as the KV cache holds it."""
    kv_cache_mib: int = Field(default=512, ge=1)
    """Bound of the KV cache; memory is taken as it fills."""
    block_size: int | None = Field(default=None, ge=1, le=256)
    """Tokens in a block of the KV cache; by default 16, with vllm what it finds best."""
    max_running: int = Field(default=64, ge=1)
    """Most sequences in a step."""
    max_step_tokens: int | None = Field(default=None, ge=1)
    """Most tokens in a step, or prompts go in chunks; by default 512, natively max_prefill_tokens and max_running."""
    max_prefill_tokens: int | None = Field(default=None, ge=1)
    """Most prompt tokens in a step that also decodes: how long one may hold others up; by default 256, natively 64."""
    prefix_cache: bool = True
    """Keep the KV cache of prompts and answers, as far as there is room, for later ones that begin alike."""
    max_waiting: int = Field(default=1024, ge=0)
    """Most sequences that wait; beyond them 429."""
    max_waiting_per_tenant: int | None = Field(default=None, ge=0)
    """Most sequences of one tenant that wait; by default half of max_waiting."""
    default_timeout_s: float | None = Field(default=None, gt=0)
    """Time of a request that names no `timeout`; by default as much as max_timeout_s allows."""
    max_timeout_s: float | None = Field(default=None, gt=0)
    """Largest `timeout` that a request may name; by default any."""
    stall_s: float = Field(default=120, ge=1)
    """When no step has ended for this long, the engine is given up: requests end, and /health/live is 503."""
    arena_mib: int = Field(default=1024, ge=1)
    """Bound of the table of resident tasks, never fewer rows than max_running; memory is taken as it fills."""
    max_residual_rank: int = Field(default=16, ge=0)
    """Highest rank of a task's residual at any site; 0 to refuse tasks with residuals."""
    residual_mib: int = Field(default=256, ge=1)
    """Bound of the resident residuals, apart from the arena; a task whose own would not fit is refused."""
    max_body_bytes: int = Field(default=32 * MIB, ge=1)
    """Bound of every request body; uploads may have this much."""
    max_json_bytes: int = Field(default=8 * MIB, ge=1)
    """Bound of a body of JSON, if max_body_bytes is not less."""
    max_header_bytes: int = Field(default=64 * 1024, ge=1024)
    """Bound of a request's header fields; each counts for 32 bytes beside its text."""
    tenant_tasks: int | None = Field(default=None, ge=0)
    """What a tenant may use that has no quota of its own; by default no limit. Here: tasks it registers."""
    tenant_bytes: int | None = Field(default=None, ge=0)
    """The same of stored bytes, in all versions of its tasks."""
    tenant_requests_per_minute: int | None = Field(default=None, ge=0)
    """The same of requests, per replica as the next two."""
    tenant_tokens_per_minute: int | None = Field(default=None, ge=0)
    """The same of tokens in prompts and answers."""
    tenant_concurrent_requests: int | None = Field(default=None, ge=0)
    """The same of requests that run at once."""
    receive_timeout_s: float = Field(default=60, gt=0)
    """Within this a request's head and body must have come, or it is 408 and its connection is closed."""
    shutdown_delay_s: float = Field(default=0, ge=0)
    """How long after SIGTERM requests are still taken, while /health/ready is 503: time for gateways to notice."""
    drain_s: int = Field(default=30, ge=0)
    """How long requests may go on after that; then they end with an error."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Lines of this level and above are logged."""
    log_json: bool = False
    """Write each line of the log as a JSON object."""
    otlp_endpoint: str | None = Field(default=None, pattern=r"^https?://")
    """Base URL of an OpenTelemetry collector, as http://collector:4318; by default nothing is traced."""

    @model_validator(mode="after")
    def _steps_hold_all_decodes(self) -> "ServeConfig":
        if self.max_step_tokens is not None and self.max_step_tokens < self.max_running:
            raise ValueError("max_step_tokens must be at least max_running, so that no decode is put off")
        return self

    @model_validator(mode="after")
    def _default_timeout_is_allowed(self) -> "ServeConfig":
        if (self.default_timeout_s or 0.0) > (self.max_timeout_s or math.inf):
            raise ValueError("default_timeout_s must be at most max_timeout_s")
        return self

    @model_validator(mode="after")
    def _open_only_on_purpose(self) -> "ServeConfig":
        needs_key = self.require_auth or self.api_keys_file is not None
        if self.allow_unauthenticated and needs_key:
            raise ValueError("allow_unauthenticated contradicts require_auth and api_keys_file; drop one")
        if not (self.allow_unauthenticated or needs_key or _is_loopback(self.host)):
            raise ValueError(
                f"host {self.host} is reachable from other machines; pass --require-auth and make keys with "
                f"'onebasis keys create', or bind to 127.0.0.1, or pass --allow-unauthenticated behind a gateway "
                f"that authenticates"
            )
        return self


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False
