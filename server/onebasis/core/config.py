"""What the operator decides. Checked once, frozen afterwards."""

from ipaddress import ip_address
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

MIB = 1024 * 1024


class ServeConfig(BaseModel):
    """Settings of one server. Field names are the command line's options.

    Raises:
        pydantic.ValidationError: a value is out of range, or two contradict each other.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: Path
    """Folder of the base model."""
    basis: Path | None = None
    """Basis file; without one the server runs the base alone."""
    store: str = "sqlite:///onebasis.db"
    """SQLAlchemy URL of the task registry."""
    served_model_name: str | None = None
    """How clients name the base; by default the folder's name."""
    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535)
    allow_unauthenticated: bool = False
    """Listen beyond loopback although anybody who can reach the port may then register tasks."""
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    device: str = "cpu"
    kernels: Literal["auto", "native", "torch"] = "auto"
    """native: the step compiled for this CPU; torch: any model and device; auto: native where it can run."""
    cuda_graphs: bool = True
    """On a GPU, record the steps that only decode at start-up and replay them; elsewhere without effect."""
    threads: int | None = Field(default=None, ge=1)
    """Compute threads; by default what torch finds."""
    max_model_len: int | None = Field(default=None, ge=2)
    """Tokens of prompt and output; by default what the model was made for, as far as the KV cache holds it."""
    kv_cache_mib: int = Field(default=512, ge=1)
    """Bound of the KV cache; memory is taken as it fills."""
    block_size: int = Field(default=16, ge=1, le=256)
    """Tokens in a block of the KV cache."""
    max_running: int = Field(default=64, ge=1)
    """Most sequences in a step."""
    max_step_tokens: int = Field(default=512, ge=1)
    """Most tokens in a step; longer prompts are computed in chunks."""
    max_waiting: int = Field(default=1024, ge=0)
    """Most sequences that wait; beyond them 429."""
    arena_mib: int = Field(default=1024, ge=1)
    """Bound of the table of resident tasks, never fewer rows than max_running; memory is taken as it fills."""
    max_body_bytes: int = Field(default=32 * MIB, ge=1)
    """Bound of every request body, uploads included."""
    drain_s: int = Field(default=30, ge=0)
    """How long requests may go on after SIGTERM."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_json: bool = False

    @model_validator(mode="after")
    def _steps_hold_all_decodes(self) -> "ServeConfig":
        if self.max_step_tokens < self.max_running:
            raise ValueError("max_step_tokens must be at least max_running, so that no decode is put off")
        return self

    @model_validator(mode="after")
    def _open_only_on_purpose(self) -> "ServeConfig":
        if not self.allow_unauthenticated and not _is_loopback(self.host):
            raise ValueError(
                f"host {self.host} is reachable from other machines and this server has no authentication yet; "
                f"bind to 127.0.0.1, or pass --allow-unauthenticated behind a gateway that authenticates"
            )
        return self


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False
