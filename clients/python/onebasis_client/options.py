"""Sampling options of the generation calls, as keywords. Names, meaning and ranges: the server's /docs.

What is left out takes the server's default. An option that the server does not honour is refused by it, by name.
"""

from collections.abc import Mapping, Sequence
from typing import Literal, TypedDict

Blend = Mapping[str, float]
"""Weight of each task in a sum; a key is `task`, or `task@sha256:<digest>`."""


class GenerationOptions(TypedDict, total=False):
    """Of every generation. `blend`: weight of each task in a sum; `model` is the base's name then."""

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
    presence_penalty: float
    frequency_penalty: float
    repetition_penalty: float
    logit_bias: Mapping[int, float]
    user: str


class CompletionOptions(GenerationOptions, total=False):
    """Of `complete`. `logprobs`: how many alternatives to each token."""

    max_tokens: int
    logprobs: int


class ChatOptions(GenerationOptions, total=False):
    """Of `chat`. Without a limit an answer may fill the context."""

    max_tokens: int
    max_completion_tokens: int
    logprobs: bool
    top_logprobs: int


class Message(TypedDict):
    """One turn of a chat."""

    role: Literal["system", "user", "assistant"]
    content: str


Prompt = str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]]
"""Text, token ids, or several of either."""
