"""Generation through both clients, against a real server."""

import json

import pytest

from onebasis.engine.runner import Runner
from onebasis_client import ApiError, api_errors
from tests.api.server import StepGate
from tests.api.tiny_model import BASE_NAME

QUIET = {"temperature": 0, "ignore_eos": True, "max_tokens": 8}
CHAT = [{"role": "user", "content": "the cat"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Rome", "Oslo"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
CALLS = {"tools": [WEATHER], "tool_choice": "required", "parallel_tool_calls": False, "max_tokens": 200, "seed": 1}


def test_a_completion_is_the_servers_answer_and_says_which_bytes_made_it(client, server):
    answer = client.complete("alpha", "the cat", **QUIET)
    assert answer.text == server.text("alpha")
    assert answer.text != server.text(BASE_NAME)
    assert answer.onebasis.task == "alpha"
    assert answer.onebasis.digest == client.show("alpha").digest
    assert answer.onebasis.basis == client.basis().digest
    assert (answer.usage.completion_tokens, answer.choices[0].finish_reason) == (8, "length")


def test_the_base_model_has_no_task(client):
    answer = client.complete(BASE_NAME, "the cat", **QUIET)
    assert (answer.onebasis.task, answer.onebasis.digest) == (None, None)


def test_a_task_can_be_chosen_by_digest(client):
    digest = client.show("beta").digest
    assert (
        client.complete(f"beta@{digest}", "the cat", **QUIET).text == client.complete("beta", "the cat", **QUIET).text
    )


def test_prompts_may_be_token_ids_and_many(client, server):
    ids = server.model.encode("the cat")
    answer = client.complete("alpha", [ids, server.model.encode("the house")], n=2, seed=1, max_tokens=4)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert client.complete("alpha", ids, **QUIET).text == server.text("alpha")


def test_options_reach_the_server(client, server):
    bias = {server.model.encode("cat")[0]: 100}
    answer = client.complete(BASE_NAME, "the", max_tokens=3, logit_bias=bias, temperature=0, stop=["zzz"], logprobs=2)
    token = server.model.tokenizer.decode(list(bias))
    assert answer.choices[0].logprobs.tokens == (token,) * 3
    assert all(len(top) >= 2 for top in answer.choices[0].logprobs.top_logprobs)


def test_text_that_no_encoding_has_is_judged_by_the_server(client):
    with pytest.raises(api_errors.RequestError):
        client.complete("alpha", "\ud800", **QUIET)


def test_a_chat_is_the_servers_answer(client, server):
    answer = client.chat("beta", CHAT, logprobs=True, top_logprobs=1, **QUIET)
    assert answer.text == server.chat(model="beta")["choices"][0]["message"]["content"]
    assert answer.choices[0].message.role == "assistant"
    assert len(answer.choices[0].logprobs.content) == 8
    assert len(answer.choices[0].logprobs.content[0].top_logprobs) == 1


def test_streamed_completion_chunks_make_up_the_whole_answer(client):
    with client.stream_completion("alpha", "the cat", logprobs=0, **QUIET) as chunks:
        received = list(chunks)
    whole = client.complete("alpha", "the cat", **QUIET)
    assert "".join(chunk.text for chunk in received) == whole.text
    assert len(received) == 8 + 1
    assert received[-1].usage == whole.usage
    assert [chunk.usage for chunk in received[:-1]] == [None] * 8
    assert received[0].choices[0].logprobs.tokens
    assert received[-2].choices[0].finish_reason == "length"


def test_streamed_chat_chunks_make_up_the_whole_answer(client):
    with client.stream_chat("alpha", CHAT, **QUIET) as chunks:
        received = list(chunks)
    whole = client.chat("alpha", CHAT, **QUIET)
    assert "".join(chunk.text for chunk in received) == whole.text
    assert received[0].choices[0].delta.role == "assistant"
    assert received[-1].usage == whole.usage


def test_chunks_come_while_the_answer_is_made(client, gate: StepGate):
    with gate.shut():
        gate.let_a_step_pass()
        with client.stream_completion(BASE_NAME, "the cat", **QUIET) as chunks:
            assert next(chunks).choices, "came although no second step ran"


@pytest.mark.parametrize("n_read", [0, 2])
@pytest.mark.parametrize("kind", ["stream_completion", "stream_chat"])
def test_leaving_a_stream_early_frees_the_servers_blocks(client, server, kind, n_read):
    prompt = "the cat" if kind == "stream_completion" else CHAT
    aborts = server.metric("vllm:request_success_total", finished_reason="abort")
    with getattr(client, kind)(BASE_NAME, prompt, max_tokens=2000, ignore_eos=True, n=2) as chunks:
        for _ in range(n_read):
            next(chunks)
        assert not server.is_idle()
    server.wait_until_idle()
    assert server.metric("vllm:request_success_total", finished_reason="abort") == aborts + 2


def test_a_stream_left_by_an_exception_frees_the_servers_blocks(client, server):
    with (
        pytest.raises(KeyError, match="ours"),
        client.stream_completion(BASE_NAME, "the cat", max_tokens=2000, ignore_eos=True) as chunks,
    ):
        next(chunks)
        raise KeyError("ours")
    server.wait_until_idle()


def test_an_unknown_model_has_its_own_error(client):
    with pytest.raises(api_errors.ModelNotFound) as caught:
        client.complete("nobody", "the cat")
    assert (caught.value.status, caught.value.code, caught.value.param) == (404, "model_not_found", "model")
    assert caught.value.request_id


def test_a_stream_that_is_refused_raises_on_entry(client):
    with pytest.raises(api_errors.ContextLengthExceeded), client.stream_completion("alpha", "the", max_tokens=10**6):
        pytest.fail("the block was entered")


def test_an_option_that_the_server_does_not_know_is_refused_by_name(client):
    with pytest.raises(api_errors.UnsupportedParameter, match="magic") as caught:
        client.complete("alpha", "the cat", magic=1)
    assert caught.value.param == "magic"


def test_a_failure_in_mid_stream_raises(client, server, monkeypatch: pytest.MonkeyPatch):
    execute, n_steps = Runner.execute, []

    def failing(runner, plan):
        n_steps.append(1)
        if len(n_steps) > 3:
            raise RuntimeError("a bug")
        return execute(runner, plan)

    monkeypatch.setattr(Runner, "execute", failing)
    received = []
    with pytest.raises(ApiError) as caught, client.stream_completion(BASE_NAME, "the cat", **QUIET) as chunks:
        for chunk in chunks:
            received.append(chunk)  # noqa: PERF402
    assert (caught.value.code, caught.value.status) == ("internal", None)
    assert caught.value.request_id, "what the log has it under"
    assert len(received) == 3


def test_models_are_the_base_and_the_tasks(client):
    base, *tasks = client.models()
    assert (base.id, base.parent, base.digest) == (BASE_NAME, None, None)
    card = next(card for card in tasks if card.id == "alpha")
    assert (card.parent, card.digest) == (BASE_NAME, client.show("alpha").digest)


def test_a_call_of_a_tool_is_typed_and_goes_back_with_its_result(client):
    answer = client.chat("alpha", CHAT, **CALLS)
    choice = answer.choices[0]
    assert (choice.finish_reason, choice.message.content, answer.text) == ("tool_calls", None, "")
    (call,) = choice.message.tool_calls
    assert (call.function.name, call.index) == ("weather", None)
    assert call.arguments == json.loads(call.function.arguments)
    assert call.arguments["city"] in ("Rome", "Oslo")
    result = {"role": "tool", "tool_call_id": call.id, "content": "sunny"}
    turns = [*CHAT, choice.message.as_turn(), result]
    longer = client.chat("alpha", turns, tools=[WEATHER], tool_choice="none", **QUIET)
    assert longer.choices[0].message.tool_calls == ()
    assert longer.usage.prompt_tokens > client.chat("alpha", CHAT, **QUIET).usage.prompt_tokens
    assert client.chat("alpha", [*turns, longer.choices[0].message.as_turn(), *CHAT], **QUIET).text


def test_a_streamed_call_is_the_whole_answers(client):
    with client.stream_chat("alpha", CHAT, **CALLS) as chunks:
        choices = [choice for chunk in chunks for choice in chunk.choices]
    (streamed,) = [call for choice in choices for call in choice.delta.tool_calls]
    (whole,) = client.chat("alpha", CHAT, **CALLS).choices[0].message.tool_calls
    assert (streamed.index, streamed.function) == (0, whole.function)
    assert choices[-1].finish_reason == "tool_calls"


def test_the_shape_of_an_answer_can_be_asked_for(client):
    schema = {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"], "additionalProperties": False}
    named = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
    options = {"max_tokens": 100, "seed": 1}
    assert json.loads(client.chat("alpha", CHAT, response_format=named, **options).text)["n"] in (1, 2)
    assert client.complete("beta", "the", structured_outputs={"choice": ["yes", "no"]}, **options).text in ("yes", "no")
    with pytest.raises(api_errors.InvalidGrammar):
        client.complete("beta", "the", structured_outputs={"regex": "("})


def test_an_echoed_prompt_is_scored(client, server):
    ids = server.model.encode("the cat sat")
    answer = client.complete("alpha", ids, echo=True, max_tokens=0, logprobs=1)
    logprobs = answer.choices[0].logprobs
    assert len(logprobs.tokens) == len(ids)
    assert (logprobs.token_logprobs[0], logprobs.top_logprobs[0]) == (None, None)
    assert all(logprob < 0 for logprob in logprobs.token_logprobs[1:])
    assert answer.text == "the cat sat"


def test_the_best_of_several_answers_is_kept(client):
    answer = client.complete("alpha", "the cat", best_of=4, n=2, max_tokens=4, seed=3)
    assert len(answer.choices) == 2
    with pytest.raises(api_errors.InvalidParameter):
        client.complete("alpha", "the cat", best_of=1, n=2)


def test_tokens_of_a_prompt_that_were_known_are_counted(client, server):
    ids = server.model.encode("the cat sat on the mat " * 12)
    first = client.complete("gamma", ids, **QUIET).usage
    again = client.complete("gamma", ids, **QUIET).usage
    assert first.prompt_tokens == again.prompt_tokens == len(ids)
    assert 0 < again.prompt_tokens_details.cached_tokens < len(ids)


@pytest.mark.parametrize("kind", ["stream_completion", "stream_chat"])
def test_every_chunk_can_have_the_usage_so_far(client, kind):
    prompt = "the cat" if kind == "stream_completion" else CHAT
    with getattr(client, kind)("alpha", prompt, continuous_usage_stats=True, **QUIET) as chunks:
        counts = [chunk.usage.completion_tokens for chunk in chunks]
    assert counts == sorted(counts)
    assert counts[-1] == 8
    assert len(set(counts)) == 8


def test_a_request_that_has_no_more_time_has_its_own_error(client):
    with pytest.raises(api_errors.DeadlineExceeded) as caught:
        client.complete(BASE_NAME, "the cat", timeout=0.05, priority=-1, max_tokens=2000, ignore_eos=True)
    assert (caught.value.status, isinstance(caught.value, api_errors.CapacityError)) == (504, False)


def test_tokens_of_a_text_and_of_a_chat_and_back(client, server):
    found = client.tokenize("the cat", return_token_strs=True)
    assert list(found.tokens) == server.model.encode("the cat")
    assert (found.count, len(found.token_strs)) == (len(found.tokens), len(found.tokens))
    assert client.detokenize(found.tokens) == "the cat"
    assert client.tokenize("the cat").token_strs is None
    shape = {"add_generation_prompt": False, "chat_template_kwargs": {"mood": "a"}}
    assert client.tokenize(CHAT, **shape).count == client.chat("alpha", CHAT, **QUIET, **shape).usage.prompt_tokens
    assert client.tokenize(CHAT, **shape).tokens != client.tokenize(CHAT).tokens
    assert client.tokenize(CHAT, model="alpha").count == client.chat("alpha", CHAT, **QUIET).usage.prompt_tokens
    with pytest.raises(api_errors.ModelNotFound):
        client.tokenize("the cat", model="nobody")
    with pytest.raises(api_errors.InvalidParameter):
        client.detokenize([10**6])
