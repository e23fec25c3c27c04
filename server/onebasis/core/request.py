"""What a generation is, from the moment it is accepted to its one ending. Frozen values only."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from onebasis.core.ids import Digest
from onebasis.core.residual import Residuals


@dataclass(frozen=True, slots=True)
class StoredNumbers:
    """A task's numbers as its file holds them, and where in the cores they go.

    values: [n] float16, float32, or uint16 holding bfloat16. form: how a core follows from them: "core", "diag" or
        "vector".
    used_shapes: (rows, columns) of each site's core that they fill, in the basis's order; (0, 0) for none of it.
    """

    values: NDArray[np.generic]
    form: str
    used_shapes: tuple[tuple[int, int], ...]


class TaskCoefficients(Protocol):
    """One task's numbers, immutable, known by digest. The engine turns them into cores when it needs them."""

    @property
    def digest(self) -> Digest: ...

    @property
    def rank(self) -> int:
        """The largest number of basis rows that its cores use at a site."""
        ...

    def flat_cores(self) -> NDArray[np.float32]:
        """[n_core_numbers] the cores of all sites, row-major, in the basis's site order."""
        ...

    @property
    def stored(self) -> StoredNumbers:
        """The same before they are expanded, for a device that does it itself."""
        ...

    @property
    def residual(self) -> Residuals:
        """What the task has beside the basis; empty for most."""
        ...


@dataclass(frozen=True, slots=True)
class BlendPart:
    """One summand of a blend: a task's version and its weight."""

    task: str
    digest: Digest
    weight: float


@dataclass(frozen=True, slots=True)
class ResolvedTask:
    """A task name as it stood when the request was accepted. A later replace does not touch it.

    `parts` is empty unless it is a blend; the name of a blend is those of its tasks, joined with "+".
    """

    name: str
    coefficients: TaskCoefficients
    parts: tuple[BlendPart, ...] = ()


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How to choose each token. Ranges are checked where the request enters (api/schemas.py).

    temperature 0 means greedy; top_k 0, top_p 1 and min_p 0 switch these filters off. Penalties: presence and
    frequency look at generated tokens, repetition at prompt and generated tokens (the convention of vLLM).
    `n_logprobs` None asks for none; 0 for the chosen token's alone; `n_prompt_logprobs` the same of the prompt's
    own tokens. They are of the model's own distribution, before penalties, bias, temperature and constraint.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    n_logprobs: int | None = None
    n_prompt_logprobs: int | None = None

    @property
    def has_penalty(self) -> bool:
        return bool(self.presence_penalty or self.frequency_penalty or self.repetition_penalty != 1.0)


class ConstraintState(Protocol):
    """How far one answer has come in its grammar. Engine thread only."""

    @property
    def allowed(self) -> NDArray[np.bool_]:
        """[n_vocab] which tokens may come next."""
        ...

    @property
    def is_complete(self) -> bool:
        """True once nothing may follow."""
        ...

    def advance(self, token_id: int) -> None:
        """Take the token that was chosen. Raises InvalidGrammar when the grammar can't be followed any further."""
        ...


class TokenConstraint(Protocol):
    """A grammar that answers have to follow. Immutable; one may serve many requests."""

    @property
    def lark(self) -> str:
        """The grammar itself in llguidance's dialect of Lark, for an engine that compiles it on its own."""
        ...

    def start(self) -> ConstraintState:
        """The state of an answer without tokens."""
        ...


class FinishReason(StrEnum):
    """Why a request ended. The values are the words of vLLM's `finished_reason` label."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Log-probabilities at one position: the chosen token's, and the most likely ones', best first."""

    chosen: float
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class TokenEvent:
    """One step's news of one request. The event with a `finish` is the last; it may come without a token.

    `error` is set with FinishReason.ERROR only. `n_cached_tokens`: prompt tokens that came from the prefix cache, the
    same in every event of the request. `prompt_logprobs`, if asked for, come with the first event: one entry for each
    prompt token but the first, which nothing predicts.
    """

    request_id: str
    token_id: int | None
    logprobs: TokenLogprobs | None = None
    finish: FinishReason | None = None
    error: Exception | None = None
    prompt_logprobs: tuple[TokenLogprobs, ...] | None = None
    n_cached_tokens: int = 0


EventSink = Callable[[TokenEvent], None]
"""Takes the events of one request, in order; the last may come on another thread. Must not block, nor call submit.

What it raises ends its own request."""


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """One sequence to generate. `n` choices of a client are `n` of these.

    Args:
        request_id: unique among the requests in flight.
        prompt_ids: at least one token.
        task: None for the base model alone.
        max_tokens: at least 1.
        stop_token_ids: these end the answer; the stopping token is reported as the last event's token.
            Empty when the client asked to ignore the end-of-sequence token and gave none of its own.
        sink: where the events go.
        constraint: the grammar that the answer has to follow, None for any text. Where the grammar ends, the answer
            ends with FinishReason.STOP.
        n_choices: how many sequences the client asked for with this one, for the metrics.
        tenant: whose request it is, for fair shares; None where nobody is told apart.
        priority: lower is served first (vLLM's convention).
        traceparent: W3C's name of the span that this is part of; None where nobody traces.
        min_tokens: so many come before one of `stop_token_ids` may; 0 with a constraint, which has an end of its own.
        deadline_s: time.monotonic() after which the answer is worth nothing; None for no limit.
        needs_prompt_logits: the logits of the prompt's tokens are wanted, so they are computed, never taken from the
            prefix cache.
    """

    request_id: str
    prompt_ids: tuple[int, ...]
    task: ResolvedTask | None
    max_tokens: int
    sampling: SamplingParams
    stop_token_ids: frozenset[int]
    sink: EventSink
    constraint: TokenConstraint | None = None
    n_choices: int = 1
    tenant: str | None = None
    priority: int = 0
    deadline_s: float | None = None
    traceparent: str | None = None
    min_tokens: int = 0

    @property
    def needs_prompt_logits(self) -> bool:
        """The prompt has to be computed whole: a cached prefix has keys and values, no logits."""
        return self.sampling.n_prompt_logprobs is not None
