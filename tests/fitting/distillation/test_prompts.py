"""Prompts come from a file, answers left out, or from the model's own pen; whatever is wrong is said."""

import json
from pathlib import Path

import pytest
import torch

from onebasis.core.errors import InvalidData
from onebasis.fitting.distillation.prompts import read_prompts, sample_prompts, tokenize_prompts
from onebasis.model.loader import LoadedBase
from tests.api.tiny_model import TinyModel

USER = {"role": "user", "content": "the cat"}
ANSWER = {"role": "assistant", "content": "sat"}


def written(path: Path, *lines: object) -> Path:
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return path


@pytest.mark.parametrize(
    ("bare", "full"),
    [
        ({"prompt": "the cat"}, {"prompt": "the cat", "completion": "sat"}),
        ({"messages": [USER]}, {"messages": [USER, ANSWER]}),
        ({"messages": [USER, ANSWER, USER]}, {"messages": [USER, ANSWER, USER, ANSWER]}),
    ],
)
def test_a_training_example_is_a_prompt_without_its_answer(
    bare: dict[str, object], full: dict[str, object], llama: TinyModel, tmp_path: Path
) -> None:
    read = [read_prompts(written(tmp_path / "p.jsonl", line)) for line in (bare, full)]
    tokens = [tokenize_prompts(prompts, llama.tokenizer, max_tokens=64) for prompts in read]
    assert tokens[0] == tokens[1]
    text = llama.tokenizer.decode(list(tokens[0][0]))
    assert text.endswith("<|assistant|>") == ("messages" in bare)


def test_a_prompt_that_comes_twice_counts_once(llama: TinyModel, tmp_path: Path) -> None:
    path = written(tmp_path / "p.jsonl", {"prompt": "the cat"}, {"prompt": "a mat"}, {"prompt": "the cat"})
    tokens = tokenize_prompts(read_prompts(path), llama.tokenizer, max_tokens=64)
    assert tokens == [tuple(llama.encode("the cat")), tuple(llama.encode("a mat"))]


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("{", r"line 2: needs \{prompt\} or \{messages\}, with or without the answer"),
        ({"prompt": ""}, "line 2: needs"),
        ({"prompt": "a", "answer": "b"}, "line 2: needs"),
        ({"messages": []}, "line 2: needs"),
        ({"messages": [ANSWER]}, "line 2: the last message but the answer must be the user's"),
        ({"messages": [USER, ANSWER, ANSWER]}, "line 2: the last message but the answer must be the user's"),
        ({"messages": [{"role": "system", "content": "be brief"}]}, "line 2: the last message but the answer"),
    ],
)
def test_a_line_that_asks_nothing_is_refused_by_number(line: object, complaint: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidData, match=complaint):
        read_prompts(written(tmp_path / "p.jsonl", {"prompt": "fine"}, line))


def test_a_prompt_that_is_too_long_is_refused_not_cut(llama: TinyModel, tmp_path: Path) -> None:
    prompts = read_prompts(written(tmp_path / "p.jsonl", {"prompt": "cat"}, {"prompt": "the cat " * 20}))
    with pytest.raises(InvalidData, match=r"prompt 2 has \d+ tokens, allowed are 1 to 9"):
        tokenize_prompts(prompts, llama.tokenizer, max_tokens=9)


def test_a_chat_that_the_template_refuses_is_named(llama: TinyModel, tmp_path: Path) -> None:
    late = {"messages": [USER, {"role": "system", "content": "be brief"}, USER]}
    prompts = read_prompts(written(tmp_path / "p.jsonl", {"messages": [USER]}, late))
    with pytest.raises(InvalidData, match="prompt 2: the chat template refuses it: system comes first"):
        tokenize_prompts(prompts, llama.tokenizer, max_tokens=64)


def test_the_model_writes_different_user_turns_and_the_same_ones_again(base: LoadedBase) -> None:
    first = sample_prompts(base, 8, max_tokens=5, seed=0)
    assert len({prompt.messages for prompt in first}) == 8
    assert all(message.role == "user" and message.content for prompt in first for message in prompt.messages)
    torch.manual_seed(7)
    assert sample_prompts(base, 8, max_tokens=5, seed=0) == first
    assert sample_prompts(base, 8, max_tokens=5, seed=1) != first


def test_user_turns_are_continuations_of_the_templates_opening(base: LoadedBase, monkeypatch) -> None:
    openings: list[str] = []

    def note(base: LoadedBase, prompt: tuple[int, ...], n: int, **_: object) -> list[str]:
        openings.append(base.tokenizer.decode(list(prompt)))
        return [f"text {i}" for i in range(n)]

    monkeypatch.setattr("onebasis.fitting.distillation.prompts.sampled_texts", note)
    sample_prompts(base, 3, max_tokens=5, seed=0)
    assert openings == ["<|user|>"]


def test_a_model_that_repeats_itself_can_not_give_prompts(base: LoadedBase, monkeypatch) -> None:
    monkeypatch.setattr(
        "onebasis.fitting.distillation.prompts.sampled_texts", lambda *_args, **_options: ["hello", " hello ", ""]
    )
    with pytest.raises(InvalidData, match="the model wrote 1 different prompts in 12 attempts, 3 are needed"):
        sample_prompts(base, 3, max_tokens=1, seed=0)


def test_without_a_chat_template_prompts_have_to_be_given(base: LoadedBase) -> None:
    base.tokenizer.chat_template = None
    with pytest.raises(InvalidData, match="no chat template to draw prompts with"):
        sample_prompts(base, 2, max_tokens=5, seed=0)
