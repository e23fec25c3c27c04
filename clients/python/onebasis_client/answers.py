"""What generation answers. Field names are those of the JSON, which is OpenAI's."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from onebasis_client.messages import Call, Message


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
class PromptTokensDetails:
    """`cached_tokens`: of the prompt, those that were known from requests before."""

    cached_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of the whole request, all its choices together."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails = PromptTokensDetails()


@dataclass(frozen=True, slots=True)
class CompletionLogprobs:
    """Four lists, one entry for each token, an echoed prompt's before the answer's. The first of a prompt has none."""

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
class CalledFunction:
    """`arguments`: text of a JSON object, as the model wrote it; cut where its answer was."""

    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of a tool, always whole. `index`: its number in the choice; chunks alone have it."""

    id: str
    function: CalledFunction
    index: int | None = None

    @property
    def arguments(self) -> dict[str, Any]:
        """The parsed arguments. Raises ValueError if they were cut."""
        found: dict[str, Any] = json.loads(self.function.arguments)
        return found


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """The model's turn."""

    role: str
    content: str | None
    tool_calls: tuple[ToolCall, ...] = ()

    def as_turn(self) -> Message:
        """The same as a message of the next request."""
        if not self.tool_calls:
            return {"role": "assistant", "content": self.content}
        calls: list[Call] = [
            {"id": call.id, "function": {"name": call.function.name, "arguments": call.function.arguments}}
            for call in self.tool_calls
        ]
        return {"role": "assistant", "content": self.content, "tool_calls": calls}


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
    tool_calls: tuple[ToolCall, ...] = ()


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


@dataclass(frozen=True, slots=True)
class Tokens:
    """Tokens of a text or a chat. `token_strs`: how the tokenizer spells them, if asked for."""

    count: int
    max_model_len: int
    tokens: tuple[int, ...]
    token_strs: tuple[str, ...] | None


@dataclass(frozen=True, slots=True)
class Text:
    """Text of tokens."""

    prompt: str
