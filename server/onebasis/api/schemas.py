"""Bodies of the generation routes. A field that is not here is refused by name.

Only the first complaint is told, so lists fail fast: collecting one for each of a million elements takes minutes.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from onebasis.core.errors import InvalidParameter

MAX_CHOICES = 16
MAX_LOGPROBS = 20
MAX_BIASES = 1024
MAX_BLEND_PARTS = 16
MAX_BLEND_WEIGHT = 1000

TokenId = Annotated[int, Field(ge=0)]
StopText = Annotated[str, Field(min_length=1, max_length=256)]
LogitBias = Annotated[float, Field(ge=-100, le=100)]


class JsonObject(BaseModel):
    """Part of a body: no conversions, no unknown fields, null means that the field is absent."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, body: Any) -> Any:
        """Clients send null for "default". Of the unknown fields, the first is left to be refused."""
        if not isinstance(body, Mapping):
            return body
        given = {name: value for name, value in body.items() if value is not None}
        known = {name: value for name, value in given.items() if name in cls.model_fields}
        unknown = next((name for name in given if name not in known), None)
        return known if unknown is None else known | {unknown: given[unknown]}


class StreamOptions(JsonObject):
    """`include_usage`: a last chunk without choices carries the usage."""

    include_usage: bool = False


class BlendItem(JsonObject):
    """One task of a weighted sum, and how much of it."""

    task: Annotated[str, Field(min_length=1, description="`task`, or `task@sha256:<digest>`")]
    weight: Annotated[float, Field(ge=-MAX_BLEND_WEIGHT, le=MAX_BLEND_WEIGHT, allow_inf_nan=False)]


Blend = Annotated[list[BlendItem], Field(min_length=1, max_length=MAX_BLEND_PARTS, fail_fast=True)]


class StoreBlendBody(JsonObject):
    """POST /v1/tasks/{name}/blend."""

    blend: Blend
    metadata: Annotated[dict[str, str], Field(description="to note beside the version")] | None = None


class RollbackBody(JsonObject):
    """POST /v1/tasks/{name}/rollback."""

    digest: Annotated[str, Field(description="`sha256:<hex>` of the version to go back to")]


class GenerationBody(JsonObject):
    """What both generation routes accept. Names, meaning and ranges as in OpenAI's API and vLLM's extensions."""

    model: Annotated[str, Field(min_length=1, description="the base's name, `task`, or `task@sha256:<digest>`")]
    blend: Annotated[Blend, Field(description="a weighted sum of tasks; `model` is the base's name then")] | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] = 1
    temperature: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    top_k: Annotated[int, Field(ge=-1, description="0 or -1: off")] = 0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    min_p: Annotated[float, Field(ge=0, le=1)] = 0.0
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: StopText | Annotated[list[StopText], Field(max_length=16, fail_fast=True)] | None = None
    stop_token_ids: Annotated[list[TokenId], Field(max_length=64, fail_fast=True)] | None = None
    ignore_eos: bool = False
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] = 1.0
    logit_bias: dict[str, LogitBias] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    user: Annotated[str, Field(max_length=256, description="logged with the request, otherwise unused")] | None = None

    @field_validator("logit_bias", mode="before")
    @classmethod
    def _few_biases(cls, bias: Any) -> Any:
        if isinstance(bias, Mapping) and len(bias) > MAX_BIASES:
            raise InvalidParameter("logit_bias", f"has {len(bias)} entries, allowed are {MAX_BIASES}")
        return bias

    @model_validator(mode="after")
    def _stream_options_need_stream(self) -> "GenerationBody":
        if self.stream_options is not None and not self.stream:
            raise InvalidParameter("stream_options", "needs stream=true")
        return self

    def stop_strings(self) -> tuple[str, ...]:
        """`stop` as a tuple."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage


PromptText = Annotated[str, Field(min_length=1)]
PromptIds = Annotated[list[TokenId], Field(min_length=1, fail_fast=True)]
_BATCH = Field(min_length=1, max_length=256, fail_fast=True)


class CompletionBody(GenerationBody):
    """POST /v1/completions."""

    prompt: PromptText | PromptIds | Annotated[list[PromptText], _BATCH] | Annotated[list[PromptIds], _BATCH]
    max_tokens: Annotated[int, Field(ge=1)] = 16
    logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None

    def prompts(self) -> list[str | list[int]]:
        """The prompts one by one."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        token_ids = [part for part in self.prompt if isinstance(part, int)]
        return [token_ids] if token_ids else [part for part in self.prompt if not isinstance(part, int)]


class TextPart(JsonObject):
    """A piece of a message's content. Text is the only kind."""

    type: Literal["text"]
    text: str


class ChatMessage(JsonObject):
    """One turn."""

    role: Literal["system", "user", "assistant"]
    content: str | Annotated[list[TextPart], Field(fail_fast=True)]

    def as_template_input(self) -> dict[str, str]:
        """Role and plain text, as chat templates want them."""
        content = self.content
        text = content if isinstance(content, str) else "".join(part.text for part in content)
        return {"role": self.role, "content": text}


class ChatBody(GenerationBody):
    """POST /v1/chat/completions."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, fail_fast=True)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None

    @model_validator(mode="after")
    def _consistent(self) -> "ChatBody":
        if self.top_logprobs is not None and not self.logprobs:
            raise InvalidParameter("top_logprobs", "needs logprobs=true")
        if None not in (self.max_tokens, self.max_completion_tokens) and (
            self.max_tokens != self.max_completion_tokens
        ):
            raise InvalidParameter("max_tokens", "max_completion_tokens has another value; give one of them")
        return self

    @property
    def output_limit(self) -> int | None:
        """The limit that the client set; None: as much as fits the context."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def n_logprobs(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None
