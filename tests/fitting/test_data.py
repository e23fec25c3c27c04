"""What a training file may say, what it may not, and which tokens come of it."""

import json
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from onebasis.core.errors import InvalidData
from onebasis.fitting.data import (
    ChatExample,
    CompletionExample,
    Message,
    chat_example,
    read_examples,
    read_jsonl,
    split,
    tokenize,
    write_jsonl,
)
from tests.api.tiny_model import EOS_ID, INVISIBLE, TinyModel

LIMIT = 200
GOOD = '{"prompt": "the cat", "completion": " sat"}'


def written(folder: Path, *lines: str) -> Path:
    path = folder / "data.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


# ---------------------------------------------------------------- lines


def test_both_kinds_of_lines_are_read(tmp_path: Path) -> None:
    chat = {"messages": [{"role": role, "content": role[:2]} for role in ("system", "user", "assistant")]}
    assert read_jsonl(written(tmp_path, GOOD, "", json.dumps(chat), "   ", GOOD)) == [
        CompletionExample(prompt="the cat", completion=" sat"),
        ChatExample(messages=tuple(Message(**message) for message in chat["messages"])),
        CompletionExample(prompt="the cat", completion=" sat"),
    ]


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[]",
        '"text"',
        "{}",
        '{"prompt": "a"}',
        '{"prompt": "", "completion": "b"}',
        '{"prompt": "a", "completion": ""}',
        '{"prompt": "a", "completion": "b", "weight": 2}',
        '{"prompt": "a", "completion": 7}',
        '{"messages": []}',
        '{"messages": [{"role": "assistant", "content": "a"}]}',
        '{"messages": [{"role": "user", "content": "a"}, {"role": "robot", "content": "b"}]}',
        '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant"}]}',
        '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "name": "c"}]}',
        '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "prompt": "a"}',
    ],
)
def test_a_line_that_is_neither_is_refused_by_number(line: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidData, match=r"data\.jsonl, line 3: needs \{prompt, completion\} or \{messages\}; \w"):
        read_jsonl(written(tmp_path, GOOD, "", line, GOOD))


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ('{"prompt": "a"}', "completion: Field required"),
        ('{"prompt": "a", "completion": ""}', "completion: String should have at least 1 character"),
        ('{"prompt": "a", "completion": "b", "id": 2}', "id: Extra inputs are not permitted"),
        ('{"messages": [{"role": "user", "content": "a"}, {"role": "robot"}]}', "messages.1.role: Input"),
        ('{"messages": [], "prompt": "a"}', "messages: Tuple should have at least 2 items"),
        ("{", "Invalid JSON: "),
    ],
)
def test_the_field_that_is_wrong_is_named(line: str, complaint: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidData, match=f"line 1: needs .*; {complaint}"):
        read_jsonl(written(tmp_path, line))


def test_a_byte_order_mark_is_no_part_of_the_first_line(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(GOOD, encoding="utf-8-sig")
    assert read_jsonl(path) == [CompletionExample(prompt="the cat", completion=" sat")]


def test_a_chat_that_does_not_end_with_the_answer_is_refused_by_number(tmp_path: Path) -> None:
    chat = {"messages": [{"role": role, "content": "a"} for role in ("user", "assistant", "user")]}
    with pytest.raises(InvalidData, match="line 2: the last message must be the assistant's"):
        read_jsonl(written(tmp_path, GOOD, json.dumps(chat)))


@pytest.mark.parametrize("content", [b"", b"\n \n", b'{"prompt": "\xff", "completion": "b"}'])
def test_a_file_without_examples_or_of_another_encoding_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(content)
    with pytest.raises(InvalidData, match=str(path)):
        read_jsonl(path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidData, match="give a UTF-8 file of JSON lines"):
        read_jsonl(tmp_path / "nowhere.jsonl")


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    odd = 'é 漢 \u2028 \u2029 \x85 \x0b \x0c \x1e \r \n \t " \\ 🙂'  # some end a line for str.splitlines
    examples = [chat_example(odd, odd), CompletionExample(prompt=odd, completion=odd)]
    write_jsonl(tmp_path / "data.jsonl", examples)
    assert read_jsonl(tmp_path / "data.jsonl") == examples


# ---------------------------------------------------------------- split


def test_split_is_disjoint_and_complete() -> None:
    examples = [CompletionExample(prompt=str(i), completion="a") for i in range(20)]
    train, held_out = split(examples, n_validation=6, seed=0)
    assert (len(train), len(held_out)) == (14, 6)
    assert sorted((e.prompt for e in train + held_out), key=int) == [e.prompt for e in examples]


def test_split_depends_on_the_seed_alone() -> None:
    examples = [CompletionExample(prompt=str(i), completion="a") for i in range(20)]
    first = split(examples, n_validation=6, seed=0)
    assert first == split(examples, n_validation=6, seed=0) != split(examples, n_validation=6, seed=1)
    assert first[1] != examples[:6], "not shuffled"
    assert [e.prompt for e in examples] == [str(i) for i in range(20)], "the caller's list was shuffled"


def test_split_without_validation_keeps_all() -> None:
    examples = [CompletionExample(prompt=str(i), completion="a") for i in range(3)]
    train, held_out = split(examples, n_validation=0, seed=0)
    assert (len(train), held_out) == (3, [])


@pytest.mark.parametrize("n_validation", [3, 4])
def test_split_that_leaves_nothing_is_refused(n_validation: int) -> None:
    examples = [CompletionExample(prompt="a", completion="a")] * 3
    with pytest.raises(InvalidData, match=f"3 examples, {n_validation} to hold out: nothing is left"):
        split(examples, n_validation=n_validation, seed=0)


# ---------------------------------------------------------------- tokens


def test_chat_prompt_is_the_templates_and_the_answer_ends(llama: TinyModel) -> None:
    turns = [("system", "be brief"), ("user", "the cat"), ("assistant", "sat"), ("user", "and?"), ("assistant", "ate")]
    messages = [{"role": role, "content": content} for role, content in turns]
    (row,) = tokenize([ChatExample.model_validate({"messages": messages})], llama.tokenizer, max_tokens=LIMIT)
    template = llama.tokenizer.apply_chat_template(messages[:-1], add_generation_prompt=True, return_dict=False)
    assert list(row.prompt_ids) == template
    assert list(row.answer_ids) == [*llama.encode("ate"), EOS_ID]
    assert row.answer == "ate"


def test_completion_has_no_template(llama: TinyModel) -> None:
    example = CompletionExample(prompt="the cat", completion=" sat on the mat")
    (row,) = tokenize([example], llama.tokenizer, max_tokens=LIMIT)
    assert list(row.prompt_ids) == llama.encode("the cat")
    assert list(row.answer_ids) == [*llama.encode(" sat on the mat"), EOS_ID]
    assert row.answer == " sat on the mat"


def test_an_empty_answer_is_to_say_nothing(llama: TinyModel) -> None:
    (row,) = tokenize([chat_example("the cat", "")], llama.tokenizer, max_tokens=LIMIT)
    assert row.answer_ids == (EOS_ID,)


def test_nothing_is_cut_and_one_token_too_many_is_refused(llama: TinyModel) -> None:
    examples = [chat_example("the cat", "sat"), chat_example("the other cat " * 9, "ate all of that " * 9)]
    rows = tokenize(examples, llama.tokenizer, max_tokens=LIMIT)
    longest = len(rows[1].prompt_ids) + len(rows[1].answer_ids)
    assert tokenize(examples, llama.tokenizer, max_tokens=longest) == rows
    assert llama.tokenizer.decode(rows[1].answer_ids[:-1]) == examples[1].messages[-1].content
    with pytest.raises(InvalidData, match=f"example 2 has {longest} tokens, --max-example-tokens is {longest - 1}"):
        tokenize(examples, llama.tokenizer, max_tokens=longest - 1)


def test_an_example_that_is_refused_is_named_with_its_file(llama: TinyModel, tmp_path: Path) -> None:
    path = written(tmp_path, GOOD, json.dumps({"prompt": "the cat " * 120, "completion": "a"}))
    with pytest.raises(InvalidData, match=rf"data {path}: example 2 has \d+ tokens, --max-example-tokens is {LIMIT}"):
        read_examples(path, llama.tokenizer, max_tokens=LIMIT)
    (first,) = read_examples(path, llama.tokenizer, max_tokens=LIMIT, at_most=1)
    assert first.answer == " sat"


def test_a_prompt_without_tokens_is_refused(llama: TinyModel) -> None:
    """The token before the answer is what its first token is learnt from."""
    examples = [CompletionExample(prompt=text, completion="sat") for text in ("the", INVISIBLE)]
    with pytest.raises(InvalidData, match="example 2: the prompt has no tokens"):
        tokenize(examples, llama.tokenizer, max_tokens=LIMIT)


def test_a_chat_that_the_template_refuses_is_refused_by_number(llama: TinyModel) -> None:
    late_system = ChatExample.model_validate(
        {"messages": [{"role": role, "content": "a"} for role in ("user", "system", "assistant")]}
    )
    with pytest.raises(InvalidData, match="example 2: the chat template refuses it: system comes first"):
        tokenize([chat_example("a", "b"), late_system], llama.tokenizer, max_tokens=LIMIT)


def test_a_tokenizer_without_a_template_takes_plain_text_alone(llama: TinyModel, monkeypatch) -> None:
    monkeypatch.setattr(llama.tokenizer, "chat_template", None)
    assert tokenize([CompletionExample(prompt="a", completion="b")], llama.tokenizer, max_tokens=LIMIT)
    with pytest.raises(InvalidData, match="the tokenizer has no chat template"):
        tokenize([chat_example("a", "b")], llama.tokenizer, max_tokens=LIMIT)


def test_a_tokenizer_without_an_end_is_refused(llama: TinyModel) -> None:
    bare = PreTrainedTokenizerFast(tokenizer_object=llama.tokenizer.backend_tokenizer)
    with pytest.raises(InvalidData, match="no end-of-sequence token"):
        tokenize([CompletionExample(prompt="a", completion="b")], bare, max_tokens=LIMIT)
