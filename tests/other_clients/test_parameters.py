"""Every parameter that OpenAI's SDK knows is either honoured or refused by its name: none is ignored."""

import typing

import pytest
from openai.types.chat.completion_create_params import CompletionCreateParamsBase as ChatParams
from openai.types.completion_create_params import CompletionCreateParamsBase as CompletionParams

from onebasis.api.schemas import ChatBody, CompletionBody
from tests.api.server import refused

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
PROMPT = {COMPLETIONS: {"prompt": "a"}, CHAT: {"messages": [{"role": "user", "content": "a"}]}}
UNSUPPORTED = {
    COMPLETIONS: {"suffix"},
    CHAT: {
        *("audio", "function_call", "functions", "metadata", "modalities", "moderation", "prediction"),
        *("prompt_cache_key", "prompt_cache_options", "prompt_cache_retention", "reasoning_effort"),
        *("safety_identifier", "service_tier", "store", "verbosity", "web_search_options"),
    },
}
CASES = [(COMPLETIONS, CompletionParams, CompletionBody), (CHAT, ChatParams, ChatBody)]


@pytest.mark.parametrize(("path", "params", "body"), CASES)
def test_the_sdk_s_parameters_are_honoured_but_for_these(path, params, body):
    known = set(typing.get_type_hints(params)) | {"stream"}
    assert known - body.model_fields.keys() == UNSUPPORTED[path]


@pytest.mark.parametrize(("path", "param"), [(path, name) for path, names in UNSUPPORTED.items() for name in names])
def test_what_is_not_honoured_is_refused_by_its_name(server, path, param):
    assert param in refused(server.post(path, **PROMPT[path], **{param: "x"}), 400, "unsupported_parameter", param)
