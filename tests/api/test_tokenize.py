"""/tokenize, /detokenize, /tokenizer_info."""

import pytest

from tests.api.server import TASKS, ok, refused
from tests.api.tiny_model import BASE_NAME, MAX_POSITIONS, N_VOCAB

USER = [{"role": "user", "content": "the cat"}]


def tokenize(server, **body):
    return ok(server.client.post("/tokenize", json=body))


def detokenize(server, tokens):
    return ok(server.client.post("/detokenize", json={"tokens": tokens}))["prompt"]


@pytest.mark.parametrize("text", ["the cat sat", "é ✓ 猫", "<|user|>a</s>", " ", ""])
def test_tokens_of_a_text_and_back(server, tiny, text):
    found = tokenize(server, prompt=text)
    assert found == {
        "count": len(tiny.encode(text)),
        "max_model_len": MAX_POSITIONS,
        "tokens": tiny.encode(text),
        "token_strs": None,
    }
    assert detokenize(server, found["tokens"]) == text


def test_a_chat_s_tokens_are_the_prompt_of_its_answer(server):
    tokens = tokenize(server, messages=USER)["tokens"]
    (chat,) = server.chat(messages=USER)["choices"]
    assert chat["message"]["content"] == server.text(BASE_NAME, prompt=tokens)


def test_a_chat_s_prompt_can_be_shaped_as_for_its_answer(server, tiny):
    talk = [*USER, {"role": "assistant", "content": "on"}]
    for shape in (
        {"continue_final_message": True},
        {"add_generation_prompt": False, "chat_template_kwargs": {"mood": "a"}},
    ):
        (chat,) = server.chat(messages=talk, **shape)["choices"]
        assert chat["message"]["content"] == server.text(
            BASE_NAME, prompt=tokenize(server, messages=talk, **shape)["tokens"]
        )


def test_tokens_can_be_spelt(server, tiny):
    found = tokenize(server, prompt="the cat", return_token_strs=True)
    assert found["token_strs"] == tiny.tokenizer.convert_ids_to_tokens(found["tokens"])


@pytest.mark.parametrize("model", [BASE_NAME, TASKS[0]])
def test_every_model_has_the_base_s_tokenizer(server, model):
    assert tokenize(server, model=model, prompt="the cat") == tokenize(server, prompt="the cat")


def test_the_tokenizer_tells_its_special_tokens_and_template(server, tiny):
    info = ok(server.client.get("/tokenizer_info"))
    assert (info["eos_token"], info["pad_token"], info["bos_token"]) == ("</s>", "<pad>", None)
    assert info["chat_template"] == tiny.tokenizer.chat_template
    assert info["max_model_len"] == MAX_POSITIONS
    assert "/" not in info["tokenizer_class"], "no path of the server"


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": "a", "messages": USER}, "prompt"),
        ("/tokenize", {"messages": USER, "add_special_tokens": False}, "add_special_tokens"),
        ("/tokenize", {"prompt": "a", "continue_final_message": True}, "continue_final_message"),
        ("/detokenize", {}, "tokens"),
        ("/detokenize", {"tokens": [N_VOCAB]}, "tokens"),
        ("/detokenize", {"tokens": [-1]}, "tokens"),
        ("/detokenize", {"tokens": ["a"]}, "tokens"),
    ],
)
def test_what_can_not_be_done_is_refused(server, path, body, param):
    refused(server.client.post(path, json=body), 400, "invalid_parameter", param)


def test_unknown_models_and_fields_are_refused(server):
    refused(server.client.post("/tokenize", json={"prompt": "a", "model": "nope"}), 404, "model_not_found", "model")
    refused(server.client.post("/detokenize", json={"tokens": [], "model": "nope"}), 404, "model_not_found", "model")
    refused(server.client.post("/tokenize", json={"prompt": "a", "x": 1}), 400, "unsupported_parameter", "x")


def test_text_that_no_prompt_could_hold_is_refused(server):
    response = server.client.post("/tokenize", json={"prompt": "a" * 500_000})
    refused(response, 400, "context_length_exceeded", "prompt")
