"""What the routes work with, made once by the wiring and handed to them by FastAPI."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from fastapi import Depends, Request

from onebasis.api.drain import Drain
from onebasis.api.tool_formats import ToolFormat
from onebasis.coefficients.basis_file import BasisSpec
from onebasis.coefficients.blend import Blends
from onebasis.coefficients.registry import TaskRegistry
from onebasis.core.errors import UnsupportedParameter
from onebasis.core.ids import Digest
from onebasis.core.request import TokenConstraint
from onebasis.engine.constraint import GrammarCompiler
from onebasis.engine.interface import Engine
from onebasis.identity.audit import AuditLog
from onebasis.identity.authenticator import Authenticator
from onebasis.identity.key_store import KeyStore
from onebasis.identity.quota_store import QuotaStore
from onebasis.identity.rates import RateLimits
from onebasis.model.text import ModelText
from onebasis.telemetry.metrics import Metrics
from onebasis.telemetry.traces import Traces


@dataclass(frozen=True, slots=True)
class Identity:
    """Who calls and how much they may use, and where that is changed."""

    authenticator: Authenticator
    keys: KeyStore
    quotas: QuotaStore
    audit: AuditLog
    rates: RateLimits


@dataclass(frozen=True, slots=True)
class EdgeLimits:
    """What requests may look like before any route sees them; meanings as in ServeConfig."""

    max_body_bytes: int
    max_json_bytes: int
    max_header_bytes: int
    cors_origin: tuple[str, ...]
    protect_metrics: bool


@dataclass(frozen=True, slots=True)
class Services:
    """The server's parts, as far as HTTP needs them.

    `fingerprint` goes out as `system_fingerprint`: equal values mean equal weights and code. `grammars` is None for
    a tokenizer that grammars can't be compiled for, `tool_format` for a model that was taught none.
    """

    engine: Engine
    registry: TaskRegistry
    blends: Blends
    basis: BasisSpec | None
    basis_path: Path | None
    text: ModelText
    metrics: Metrics
    base_name: str
    started_at: int
    fingerprint: str
    identity: Identity
    edge: EdgeLimits
    lora_root: Path | None
    drain: Drain
    traces: Traces | None
    grammars: GrammarCompiler | None
    tool_format: ToolFormat | None

    @property
    def basis_digest(self) -> Digest | None:
        return None if self.basis is None else self.basis.digest

    def constraint(self, param: str, grammar: str) -> TokenConstraint:
        """A grammar, compiled. Raises InvalidGrammar, or UnsupportedParameter where none can be compiled."""
        if self.grammars is None:
            raise UnsupportedParameter(param, "this model's tokenizer does not tell the bytes of its tokens")
        return self.grammars.compile(grammar, param=param)


async def _services(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


ServicesDep = Annotated[Services, Depends(_services)]
