"""Sampling options of the generation calls, as keywords. Names, meaning and ranges: the server's /docs.

What is left out takes the server's default. An option that the server does not honour is refused by it, by name.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NotRequired, TypedDict

from onebasis_client.messages import Tool, ToolChoice

Blend = Mapping[str, float]
"""Weight of each task in a sum; a key is `task`, or `task@sha256:<digest>`."""


class JsonSchema(TypedDict):
    """OpenAI's wrapping of a schema. The schema is enforced whether `strict` is asked for or not."""

    name: str
    description: NotRequired[str]
    schema: NotRequired[Mapping[str, Any]]
    strict: NotRequired[bool]


class ResponseFormat(TypedDict):
    """OpenAI's way to ask for JSON. `json_schema` goes with that type alone."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: NotRequired[JsonSchema]


class StructuredOutputs(TypedDict, total=False):
    """The shape of the answer, by exactly one of a JSON schema, a regex, a list of texts, a Lark or GBNF grammar."""

    json: Mapping[str, Any]
    regex: str
    choice: Sequence[str]
    grammar: str


class GenerationOptions(TypedDict, total=False):
    """Of every generation.

    `blend`: weight of each task in a sum; `model` is the base's name then.
    `timeout`: seconds that the server may take until the last token, the wait included; DeadlineExceeded after it.
    `priority`: lower is served first.
    """

    blend: Blend
    n: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    seed: int
    stop: str | Sequence[str]
    stop_token_ids: Sequence[int]
    ignore_eos: bool
    min_tokens: int
    presence_penalty: float
    frequency_penalty: float
    repetition_penalty: float
    logit_bias: Mapping[int, float]
    response_format: ResponseFormat
    structured_outputs: StructuredOutputs
    timeout: float
    priority: int
    user: str


class CompletionOptions(GenerationOptions, total=False):
    """Of `complete`.

    `logprobs`: how many alternatives to each token.
    `echo`: the prompt comes before the answer, in text and logprobs; with max_tokens 0 it is scored alone.
    `best_of`: so many are sampled, the `n` likeliest are kept.
    """

    max_tokens: int
    logprobs: int
    echo: bool
    best_of: int


class ChatPromptOptions(TypedDict, total=False):
    """How messages become a prompt.

    `add_generation_prompt`: by default the prompt ends where the assistant begins to speak.
    `continue_final_message`: the answer goes on with the last message, which is the assistant's.
    `chat_template_kwargs`: variables of the model's chat template.
    """

    add_generation_prompt: bool
    continue_final_message: bool
    chat_template_kwargs: Mapping[str, Any]


class ChatOptions(GenerationOptions, ChatPromptOptions, total=False):
    """Of `chat`. Without a limit an answer may fill the context."""

    max_tokens: int
    max_completion_tokens: int
    logprobs: bool
    top_logprobs: int
    tools: Sequence[Tool]
    tool_choice: Literal["none", "auto", "required"] | ToolChoice
    parallel_tool_calls: bool
