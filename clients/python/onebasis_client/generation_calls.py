"""What the generation methods send. Sent again only as long as nothing of an answer has come."""

from collections.abc import Mapping, Sequence
from typing import Any

from onebasis_client.answers import ChatChunk, ChatCompletion, Completion, ModelCard, ModelList
from onebasis_client.calls import Call, Request, Stage, StreamCall, post_json
from onebasis_client.options import ChatOptions, CompletionOptions, Message, Prompt

_STREAM = {"stream": True, "stream_options": {"include_usage": True}}


def complete(model: str, prompt: Prompt, options: CompletionOptions) -> Call[Completion]:
    return Call(_completion(model, prompt, options), lambda reply: reply.decoded(Completion))


def stream_completion(model: str, prompt: Prompt, options: CompletionOptions) -> StreamCall[Completion]:
    return StreamCall(_completion(model, prompt, options, _STREAM), Completion)


def chat(model: str, messages: Sequence[Message], options: ChatOptions) -> Call[ChatCompletion]:
    return Call(_chat(model, messages, options), lambda reply: reply.decoded(ChatCompletion))


def stream_chat(model: str, messages: Sequence[Message], options: ChatOptions) -> StreamCall[ChatChunk]:
    return StreamCall(_chat(model, messages, options, _STREAM), ChatChunk)


def models() -> Call[tuple[ModelCard, ...]]:
    return Call(Request("GET", "/v1/models"), lambda reply: reply.decoded(ModelList).data)


def _completion(
    model: str, prompt: Prompt, options: CompletionOptions, extra: Mapping[str, Any] | None = None
) -> Request:
    return _generation("/v1/completions", {"model": model, "prompt": prompt, **options, **(extra or {})})


def _chat(
    model: str, messages: Sequence[Message], options: ChatOptions, extra: Mapping[str, Any] | None = None
) -> Request:
    return _generation("/v1/chat/completions", {"model": model, "messages": messages, **options, **(extra or {})})


def _generation(path: str, body: Mapping[str, Any]) -> Request:
    return post_json(path, body, retry_through=Stage.NOT_HEARD)
