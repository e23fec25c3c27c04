"""What the generation methods send. Generations are sent again only as long as nothing of an answer has come."""

from collections.abc import Mapping, Sequence
from typing import Any

from onebasis_client.answers import ChatChunk, ChatCompletion, Completion, ModelCard, ModelList, Text, Tokens
from onebasis_client.calls import Call, Request, Stage, StreamCall, json_request
from onebasis_client.messages import Message, Prompt
from onebasis_client.options import ChatOptions, ChatPromptOptions, CompletionOptions


def complete(model: str, prompt: Prompt, options: CompletionOptions) -> Call[Completion]:
    return Call(_completion(model, prompt, options), lambda reply: reply.decoded(Completion))


def stream_completion(
    model: str, prompt: Prompt, options: CompletionOptions, *, continuous_usage_stats: bool
) -> StreamCall[Completion]:
    return StreamCall(_completion(model, prompt, options, _stream(continuous_usage_stats)), Completion)


def chat(model: str, messages: Sequence[Message], options: ChatOptions) -> Call[ChatCompletion]:
    return Call(_chat(model, messages, options), lambda reply: reply.decoded(ChatCompletion))


def stream_chat(
    model: str, messages: Sequence[Message], options: ChatOptions, *, continuous_usage_stats: bool
) -> StreamCall[ChatChunk]:
    return StreamCall(_chat(model, messages, options, _stream(continuous_usage_stats)), ChatChunk)


def models() -> Call[tuple[ModelCard, ...]]:
    return Call(Request("GET", "/v1/models"), lambda reply: reply.decoded(ModelList).data)


def tokenize(
    text: str | Sequence[Message],
    of_chat: ChatPromptOptions,
    *,
    model: str | None,
    add_special_tokens: bool,
    return_token_strs: bool,
) -> Call[Tokens]:
    given = {"prompt": text} if isinstance(text, str) else {"messages": text}
    body = {
        **given,
        **of_chat,
        "model": model,
        "add_special_tokens": add_special_tokens,
        "return_token_strs": return_token_strs,
    }
    return Call(_generation("/tokenize", body), lambda reply: reply.decoded(Tokens))


def detokenize(tokens: Sequence[int], *, model: str | None) -> Call[str]:
    body = {"model": model, "tokens": list(tokens)}
    return Call(_generation("/detokenize", body), lambda reply: reply.decoded(Text).prompt)


def _stream(continuous_usage_stats: bool) -> dict[str, Any]:
    return {
        "stream": True,
        "stream_options": {"include_usage": True, "continuous_usage_stats": continuous_usage_stats},
    }


def _completion(
    model: str, prompt: Prompt, options: CompletionOptions, extra: Mapping[str, Any] | None = None
) -> Request:
    return _generation("/v1/completions", {"model": model, "prompt": prompt, **options, **(extra or {})})


def _chat(
    model: str, messages: Sequence[Message], options: ChatOptions, extra: Mapping[str, Any] | None = None
) -> Request:
    return _generation("/v1/chat/completions", {"model": model, "messages": messages, **options, **(extra or {})})


def _generation(path: str, body: Mapping[str, Any]) -> Request:
    return json_request("POST", path, body, retry_through=Stage.NOT_HEARD)
