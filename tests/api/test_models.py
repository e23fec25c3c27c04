"""GET /v1/models, and what `model` may name in a request. Never the base instead of a task."""

import pytest

from tests.api.server import TASKS, ok, refused
from tests.api.tiny_model import BASE_NAME, MAX_POSITIONS


def test_the_base_comes_first_then_the_tasks_by_name(server):
    cards = ok(server.client.get("/v1/models"))["data"]
    assert [card["id"] for card in cards if card["id"] in (BASE_NAME, *TASKS)] == [BASE_NAME, *TASKS]
    assert [card["id"] for card in cards[1:]] == sorted(card["id"] for card in cards[1:])
    for card in cards:
        assert (card["object"], card["root"], card["max_model_len"]) == ("model", BASE_NAME, MAX_POSITIONS)
        assert card["parent"] == (None if card["id"] == BASE_NAME else BASE_NAME)


@pytest.mark.parametrize("name", [BASE_NAME, *TASKS])
def test_a_card_alone_is_the_card_in_the_list(server, name):
    card = ok(server.client.get(f"/v1/models/{name}"))
    assert card["id"] == name
    assert card in ok(server.client.get("/v1/models"))["data"]


@pytest.mark.parametrize("name", ["gpt-4", "ALPHA", "alpha ", "alpha/", "a%2Fb", "org/model", "%00", "é", "x" * 2000])
def test_an_unknown_model_has_no_card(server, name):
    refused(server.client.get(f"/v1/models/{name}"), 404, "model_not_found", "model")


@pytest.mark.parametrize(
    "model",
    [
        "gpt-4",
        "Alpha",
        " alpha",
        "alpha ",
        "alpha/",
        "../alpha",
        BASE_NAME.upper(),
        f"{BASE_NAME}@sha256:" + "0" * 64,
        "alpha@",
        "alpha@latest",
        "alpha@sha256:abc",
        "alpha@sha256:" + "0" * 64,
        "@",
        "\x00",
        "é" * 1000,
    ],
)
@pytest.mark.parametrize(
    ("path", "body"),
    [("completions", {"prompt": "a"}), ("chat/completions", {"messages": [{"role": "user", "content": "a"}]})],
)
def test_an_unknown_model_is_404_and_nothing_runs(server, model, path, body):
    before = server.metric("vllm:prompt_tokens_total")
    for stream in (False, True):
        response = server.post(f"/v1/{path}", model=model, stream=stream, **body)
        message = refused(response, 404, "model_not_found", "model")
        assert f"`{model}` does not exist" in message
    assert server.metric("vllm:prompt_tokens_total") == before


def test_tasks_and_base_answer_differently_and_say_who_they_are(server, tiny):
    fingerprints = set()
    texts = set()
    for name in (BASE_NAME, *TASKS):
        answer = server.complete(model=name, max_tokens=16)
        chat = server.chat(model=name, max_tokens=16)
        (event, *_) = server.stream("/v1/completions", model=name, prompt="a")
        is_base = name == BASE_NAME
        digest = None if is_base else ok(server.client.get(f"/v1/tasks/{name}"))["digest"]
        block = {"task": None if is_base else name, "digest": digest, "basis": tiny.basis.digest}
        assert answer["onebasis"] == chat["onebasis"] == event["onebasis"] == block
        assert answer["model"] == chat["model"] == event["model"] == name
        texts.add(answer["choices"][0]["text"])
        fingerprints |= {answer["system_fingerprint"], chat["system_fingerprint"], event["system_fingerprint"]}
    assert len(texts) == 4
    (fingerprint,) = fingerprints
    assert tiny.basis.digest.removeprefix("sha256:")[:8] in fingerprint


def test_a_version_is_chosen_by_its_digest(server, tiny):
    digests, texts = [], []
    for seed in (10, 11):
        card = ok(server.put_task("versioned", tiny.core_file(seed)))
        digests.append(card["digest"])
        texts.append(server.text("versioned"))
    assert texts[0] != texts[1]
    for digest, text in zip(digests, texts, strict=True):
        answer = server.complete(model=f"versioned@{digest}")
        assert answer["choices"][0]["text"] == text
        assert answer["onebasis"]["digest"] == digest
        assert answer["onebasis"]["task"] == "versioned"
        assert answer["model"] == f"versioned@{digest}"
    refused(server.post("/v1/completions", model=f"alpha@{digests[0]}", prompt="a"), 404, "model_not_found", "model")


def test_a_base_named_with_a_slash_has_a_card(start_server):
    server = start_server(served_model_name="org/tiny")
    for path in ("/v1/models/org/tiny", "/v1/models/org%2Ftiny"):
        assert ok(server.client.get(path))["id"] == "org/tiny"
    assert server.complete(model="org/tiny")["model"] == "org/tiny"
    refused(server.client.get("/v1/models/org/other"), 404, "model_not_found", "model")


def test_the_base_is_named_after_its_folder_by_default(start_server, tiny):
    server = start_server(served_model_name=None)
    assert ok(server.client.get("/v1/models"))["data"][0]["id"] == tiny.folder.name
