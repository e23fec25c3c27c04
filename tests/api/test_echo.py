"""What completions tell about the prompt, and about answers that are not kept: echo, scoring, best_of."""

import pytest

from tests.api.server import TASKS, refused
from tests.api.tiny_model import BASE_NAME, MAX_POSITIONS

PATH = "/v1/completions"


def choice_of(server, **body):
    (choice,) = server.complete(**body)["choices"]
    return choice


@pytest.mark.parametrize("model", [BASE_NAME, TASKS[0]])
def test_echo_puts_the_prompt_before_the_answer(server, model):
    plain = choice_of(server, model=model, prompt="the cat sat")
    echoed = choice_of(server, model=model, prompt="the cat sat", echo=True)
    assert echoed["text"] == "the cat sat" + plain["text"]
    assert echoed["logprobs"] is None


def test_echoed_token_ids_are_shown_as_text(server, tiny):
    ids = tiny.encode("the cat sat")
    assert choice_of(server, prompt=ids, echo=True) == choice_of(server, prompt="the cat sat", echo=True)


@pytest.mark.parametrize("model", [BASE_NAME, TASKS[0]])
def test_logprobs_of_an_echo_cover_prompt_and_answer(server, tiny, model):
    prompt = "the cat sat on the mat"
    echoed = choice_of(server, model=model, prompt=prompt, echo=True, logprobs=2, max_tokens=5)["logprobs"]
    answer = choice_of(server, model=model, prompt=prompt, logprobs=2, max_tokens=5)["logprobs"]
    n_prompt = len(tiny.encode(prompt))
    assert {len(numbers) for numbers in echoed.values()} == {n_prompt + 5}
    assert echoed["token_logprobs"][0] is echoed["top_logprobs"][0] is None
    assert echoed["tokens"][n_prompt:] == answer["tokens"]
    assert echoed["token_logprobs"][n_prompt:] == pytest.approx(answer["token_logprobs"], abs=1e-5)
    for token, logprob, top in list(
        zip(echoed["tokens"], echoed["token_logprobs"], echoed["top_logprobs"], strict=True)
    )[1:]:
        assert top[token] == logprob, "the same float, to the bit"
        assert 1 <= len(top) <= 3  # tokens that are spelt the same share an entry
    assert "".join(echoed["tokens"][:n_prompt]) == prompt
    assert echoed["text_offset"][n_prompt] == len(prompt)


@pytest.mark.native_only("vLLM has no log-probabilities of an answer that follows a grammar")
def test_a_token_scores_the_same_in_a_prompt_as_in_an_answer(server, tiny):
    """The answer's tokens, sent back as a prompt, have the log-probabilities that they were answered with."""
    letters = {"regex": "[a-z ]{40}"}  # so that each token has a text of its own
    answer = choice_of(server, prompt="the cat", max_tokens=12, logprobs=0, structured_outputs=letters)["logprobs"]
    by_text = {tiny.tokenizer.decode([i]): i for i in range(len(tiny.tokenizer))}
    ids = tiny.encode("the cat") + [by_text[token] for token in answer["tokens"]]
    scored = choice_of(server, prompt=ids, max_tokens=0, echo=True, logprobs=0)["logprobs"]
    assert len(answer["tokens"]) == 12
    assert scored["token_logprobs"][2:] == pytest.approx(answer["token_logprobs"], abs=1e-4)


def test_max_tokens_0_scores_the_prompt_alone(server, tiny):
    answer = server.complete(prompt="the cat sat", max_tokens=0, echo=True, logprobs=1)
    (choice,) = answer["choices"]
    assert (choice["text"], choice["finish_reason"]) == ("the cat sat", "length")
    assert len(choice["logprobs"]["tokens"]) == len(tiny.encode("the cat sat"))
    assert (answer["usage"]["completion_tokens"], answer["usage"]["prompt_tokens"]) == (0, 3)


@pytest.mark.native_only("vLLM wants room for one more token; tests/vllm has the refusal")
def test_a_prompt_that_fills_the_context_is_scored(server):
    assert choice_of(server, prompt=[7] * MAX_POSITIONS, max_tokens=0, echo=True)["finish_reason"] == "length"


def test_max_tokens_0_without_echo_is_refused(server):
    assert "echo" in refused(server.post(PATH, prompt="a", max_tokens=0), 400, "invalid_parameter", "max_tokens")


def test_a_batch_of_prompts_is_echoed_each_with_its_own(server):
    prompts = ["the cat", "a", "on the mat and then"]
    batch = server.complete(prompt=prompts, n=2, echo=True, logprobs=1, max_tokens=1)["choices"]
    assert [choice["index"] for choice in batch] == [0, 1, 2, 3, 4, 5]
    for prompt, first, second in zip(prompts, batch[::2], batch[1::2], strict=True):
        alone = choice_of(server, prompt=prompt, echo=True, logprobs=1, max_tokens=1)
        assert first["text"] == second["text"] == alone["text"]
        for found in (first, second):
            assert found["logprobs"]["tokens"] == alone["logprobs"]["tokens"]
            assert found["logprobs"]["token_logprobs"][1:] == pytest.approx(
                alone["logprobs"]["token_logprobs"][1:], abs=1e-4
            )


def test_a_long_prompt_is_scored_whole(start_server):
    server = start_server(max_step_tokens=64)
    prompt = [5 + (7 * i) % 250 for i in range(500)]
    scored = choice_of(server, prompt=prompt, max_tokens=0, echo=True, logprobs=0)["logprobs"]["token_logprobs"]
    assert len(scored) == 500
    assert all(number < 0 for number in scored[1:])
    head = choice_of(server, prompt=prompt[:100], max_tokens=0, echo=True, logprobs=0)["logprobs"]["token_logprobs"]
    assert scored[1:100] == pytest.approx(head[1:], abs=1e-4)


@pytest.mark.parametrize("logprobs", [None, 2])
def test_a_streamed_echo_joined_is_the_whole_answer(server, logprobs):
    body = {"prompt": ["the cat", "a"], "echo": True, "max_tokens": 5, "logprobs": logprobs}
    whole = server.complete(**body)["choices"]
    text, tokens = ["", ""], [[], []]
    for event in server.stream(PATH, **body):
        (choice,) = event["choices"]
        text[choice["index"]] += choice["text"]
        tokens[choice["index"]] += choice["logprobs"]["tokens"] if choice["logprobs"] else []
    assert text == [choice["text"] for choice in whole]
    assert tokens == [choice["logprobs"]["tokens"] if logprobs else [] for choice in whole]


def test_best_of_keeps_the_likeliest_by_mean_logprob(server):
    body = {"prompt": "the cat", "temperature": 1.5, "seed": 3, "max_tokens": 6}
    sampled = server.complete(**body, n=6, logprobs=0)["choices"]
    means = {c["text"]: sum(c["logprobs"]["token_logprobs"]) / 6 for c in sampled}
    assert len(means) == 6
    best = sorted(means, key=lambda text: -means[text])
    answer = server.complete(**body, n=2, best_of=6)
    assert [(choice["index"], choice["text"]) for choice in answer["choices"]] == list(enumerate(best[:2]))
    assert all(choice["logprobs"] is None for choice in answer["choices"])
    assert answer["usage"]["completion_tokens"] == 36, "what was sampled was computed, and counts"


def test_best_of_keeps_n_of_every_prompt(server):
    body = {"prompt": ["the cat", "a"], "temperature": 1.5, "seed": 3, "max_tokens": 4, "best_of": 3}
    batch = server.complete(**body)["choices"]
    alone = [server.complete(**(body | {"prompt": prompt}))["choices"][0]["text"] for prompt in body["prompt"]]
    assert [choice["text"] for choice in batch] == alone


def test_best_of_equal_to_n_is_n(server):
    body = {"temperature": 1.5, "seed": 3, "n": 3}
    assert server.complete(**body)["choices"] == server.complete(**body, best_of=3)["choices"]
    assert server.stream(PATH, prompt="a", n=2, best_of=2, max_tokens=1)


@pytest.mark.parametrize(
    "body", [{"best_of": 2, "n": 3}, {"best_of": 0}, {"best_of": 17}, {"best_of": 2, "stream": True}]
)
def test_best_of_that_makes_no_sense_is_refused(server, body):
    refused(server.post(PATH, prompt="a", **body), 400, "invalid_parameter", "best_of")


def test_suffix_is_refused_by_name(server):
    refused(server.post(PATH, prompt="a", suffix="b"), 400, "unsupported_parameter", "suffix")
