"""Bodies of the generation routes. A field that is not here is refused by name.

Only the first complaint is told, so lists fail fast: collecting one for each of a million elements takes minutes.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from onebasis.api.json_object import JsonObject
from onebasis.api.structured import ResponseFormat, StructuredOutputs
from onebasis.api.tools import MAX_TOOLS, Tool, ToolCall, ToolChoice, check_unicode
from onebasis.core.errors import InvalidParameter
from onebasis.model.chat_template import TemplateInputs

MAX_CHOICES = 16
MAX_LOGPROBS = 20
MAX_BIASES = 1024
MAX_BLEND_PARTS = 16
MAX_BLEND_WEIGHT = 1000
MAX_TIMEOUT_S = 24 * 3600

TokenId = Annotated[int, Field(ge=0)]
StopText = Annotated[str, Field(min_length=1, max_length=256)]
LogitBias = Annotated[float, Field(ge=-100, le=100)]


class StreamOptions(JsonObject):
    """`include_usage`: a last chunk without choices has the usage; `continuous_usage_stats`: every chunk has it."""

    include_usage: bool = False
    continuous_usage_stats: bool = False

    @model_validator(mode="after")
    def _consistent(self) -> "StreamOptions":
        if self.continuous_usage_stats and not self.include_usage:
            raise InvalidParameter("stream_options", "continuous_usage_stats needs include_usage=true")
        return self


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
    min_tokens: Annotated[int, Field(ge=0, description="before these, nothing but `max_tokens` ends the answer")] = 0
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] = 1.0
    logit_bias: dict[str, LogitBias] | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    timeout: (
        Annotated[
            float,
            Field(gt=0, le=MAX_TIMEOUT_S, description="seconds from arrival to the last token, the wait included"),
        ]
        | None
    ) = None
    priority: Annotated[int, Field(ge=-(2**31), lt=2**31, description="lower is served first")] = 0
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


PromptText = Annotated[str, Field(min_length=1)]
PromptIds = Annotated[list[TokenId], Field(min_length=1, fail_fast=True)]
_BATCH = Field(min_length=1, max_length=256, fail_fast=True)


class CompletionBody(GenerationBody):
    """POST /v1/completions."""

    prompt: PromptText | PromptIds | Annotated[list[PromptText], _BATCH] | Annotated[list[PromptIds], _BATCH]
    max_tokens: Annotated[int, Field(ge=0, description="0 with echo: the prompt alone is scored")] = 16
    logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    echo: Annotated[bool, Field(description="the prompt comes before the answer, in text and logprobs")] = False
    best_of: (
        Annotated[int, Field(ge=1, le=MAX_CHOICES, description="so many are sampled, the n likeliest kept")] | None
    ) = None

    @model_validator(mode="after")
    def _consistent(self) -> "CompletionBody":
        if self.max_tokens == 0 and not self.echo:
            raise InvalidParameter("max_tokens", "0 needs echo=true; else nothing would be answered")
        if self.best_of is not None and self.best_of < self.n:
            raise InvalidParameter("best_of", f"is {self.best_of}, needs at least n, which is {self.n}")
        if self.n_sampled > self.n and self.stream:
            raise InvalidParameter("best_of", "can't be streamed: which answers are kept shows at their end")
        return self

    @property
    def n_sampled(self) -> int:
        """Answers to sample for each prompt; the n best of them are kept."""
        return self.best_of or self.n

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
    """One turn. An assistant's may hold calls of tools instead of content; a tool's is the result of such a call."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str | Annotated[list[TextPart], Field(fail_fast=True)] | None = None
    tool_calls: Annotated[list[ToolCall], Field(min_length=1, max_length=MAX_TOOLS, fail_fast=True)] | None = None
    tool_call_id: Annotated[str, Field(min_length=1, max_length=128)] | None = None

    @model_validator(mode="after")
    def _consistent(self) -> "ChatMessage":
        if self.tool_calls is not None and self.role != "assistant":
            raise InvalidParameter("messages", f"tool_calls are an assistant's, found them with role {self.role}")
        if (self.tool_call_id is not None) != (self.role == "tool"):
            raise InvalidParameter("messages", "tool_call_id goes with role tool, and with no other")
        if self.content is None and self.tool_calls is None:
            raise InvalidParameter("messages", "a message needs content")
        return self

    @property
    def text(self) -> str:
        """Content as plain text, as chat templates want it."""
        if self.content is None or isinstance(self.content, str):
            return self.content or ""
        return "".join(part.text for part in self.content)


class ChatPrompt(JsonObject):
    """How messages become a prompt. Names and meaning as in vLLM."""

    add_generation_prompt: Annotated[bool, Field(description="the prompt ends where the assistant speaks")] | None = (
        None
    )
    continue_final_message: Annotated[bool, Field(description="the answer goes on with the last message")] = False
    chat_template_kwargs: Annotated[dict[str, Any], Field(description="variables of the chat template")] | None = None

    @field_validator("chat_template_kwargs", mode="after")
    @classmethod
    def _is_unicode(cls, variables: dict[str, Any]) -> dict[str, Any]:
        check_unicode("chat_template_kwargs", variables)
        return variables

    @model_validator(mode="after")
    def _one_end(self) -> "ChatPrompt":
        if self.continue_final_message and self.add_generation_prompt:
            raise InvalidParameter("add_generation_prompt", "nothing can come behind a message that is continued")
        return self

    def template_inputs(self) -> TemplateInputs:
        """The same for the template."""
        generation_prompt = self.add_generation_prompt
        return TemplateInputs(
            add_generation_prompt=not self.continue_final_message if generation_prompt is None else generation_prompt,
            continue_final_message=self.continue_final_message,
            variables=self.chat_template_kwargs or {},
        )


class ChatBody(GenerationBody, ChatPrompt):
    """POST /v1/chat/completions."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, fail_fast=True)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    tools: Annotated[list[Tool], Field(min_length=1, max_length=MAX_TOOLS, fail_fast=True)] | None = None
    tool_choice: Literal["none", "auto", "required"] | ToolChoice | None = None
    parallel_tool_calls: bool = True

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
