"""What generation answers. Field names are those of the JSON, which is OpenAI's."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class BlendPart:
    """A task of a weighted sum, as it stood when the request came."""

    task: str
    digest: str
    weight: float


@dataclass(frozen=True, slots=True)
class Attribution:
    """Which bytes made an answer.

    Attributes:
        task: None for the base alone and for a blend.
        digest: of the task's coefficients, or of the sum's.
        basis: digest of the basis.
        blend: the parts of the sum.
    """

    task: str | None
    digest: str | None
    basis: str | None
    blend: tuple[BlendPart, ...] = ()


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of the whole request, all its choices together."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


@dataclass(frozen=True, slots=True)
class CompletionLogprobs:
    """Four lists, one entry for each token."""

    tokens: tuple[str, ...]
    token_logprobs: tuple[float | None, ...]
    top_logprobs: tuple[Mapping[str, float] | None, ...]
    text_offset: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class CompletionChoice:
    """One continuation, or the next piece of one. `finish_reason` is None until the last piece."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: str | None


@dataclass(frozen=True, slots=True)
class Completion:
    """A whole answer of `complete`, or one chunk of `stream_completion`, whose last one has the usage alone."""

    id: str
    created: int
    model: str
    system_fingerprint: str | None
    choices: tuple[CompletionChoice, ...]
    onebasis: Attribution
    usage: Usage | None = None

    @property
    def text(self) -> str:
        """Text of the first choice; of a chunk, what it brings to the first choice."""
        return "".join(choice.text for choice in self.choices if choice.index == 0)


@dataclass(frozen=True, slots=True)
class TopLogprob:
    """A token that could have been chosen."""

    token: str
    logprob: float
    bytes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """The token that was chosen, and the most likely ones."""

    token: str
    logprob: float
    bytes: tuple[int, ...]
    top_logprobs: tuple[TopLogprob, ...]


@dataclass(frozen=True, slots=True)
class ChatLogprobs:
    """One entry for each token."""

    content: tuple[TokenLogprob, ...]


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """The model's turn."""

    role: str
    content: str | None


@dataclass(frozen=True, slots=True)
class ChatChoice:
    """One answer."""

    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: str | None


@dataclass(frozen=True, slots=True)
class ChatCompletion:
    """A whole answer of `chat`."""

    id: str
    created: int
    model: str
    system_fingerprint: str | None
    choices: tuple[ChatChoice, ...]
    usage: Usage
    onebasis: Attribution

    @property
    def text(self) -> str:
        """Text of the first choice."""
        return "".join(choice.message.content or "" for choice in self.choices if choice.index == 0)


@dataclass(frozen=True, slots=True)
class ChatDelta:
    """The next piece of a turn. The first of a choice has the role."""

    role: str | None = None
    content: str | None = None


@dataclass(frozen=True, slots=True)
class ChatChunkChoice:
    """News of one choice. `finish_reason` is None until its last piece."""

    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None
    finish_reason: str | None


@dataclass(frozen=True, slots=True)
class ChatChunk:
    """One chunk of `stream_chat`. The last one has no choices but the usage."""

    id: str
    created: int
    model: str
    system_fingerprint: str | None
    choices: tuple[ChatChunkChoice, ...]
    onebasis: Attribution
    usage: Usage | None = None

    @property
    def text(self) -> str:
        """What this chunk brings to the first choice."""
        return "".join(choice.delta.content or "" for choice in self.choices if choice.index == 0)


@dataclass(frozen=True, slots=True)
class ModelCard:
    """Something that `model` may name: the base (its `parent` is None) or a task."""

    id: str
    created: int
    root: str
    parent: str | None
    max_model_len: int
    digest: str | None = None


@dataclass(frozen=True, slots=True)
class ModelList:
    """All of them, the base first."""

    data: tuple[ModelCard, ...]
