"""Training text: JSON lines in, token sequences out."""

import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from jinja2.exceptions import TemplateError
from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, TypeAdapter, ValidationError
from transformers import PreTrainedTokenizerBase

from onebasis.core.errors import InvalidData


def spelled_with(value: Any) -> str:
    """Which of the two ways to say an example a line has tried, so that what is wrong is said of that one."""
    return "messages" if isinstance(value, dict) and "messages" in value else "prompt"


class Message(BaseModel):
    """One turn of a chat."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    role: Literal["system", "user", "assistant"]
    content: str


class ChatExample(BaseModel):
    """A chat whose last turn, the assistant's, is the answer to learn."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    messages: Annotated[tuple[Message, ...], Field(min_length=2)]


class CompletionExample(BaseModel):
    """Plain text and its continuation; no chat template."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    prompt: Annotated[str, Field(min_length=1)]
    completion: Annotated[str, Field(min_length=1)]


Example = Annotated[
    Annotated[ChatExample, Tag("messages")] | Annotated[CompletionExample, Tag("prompt")], Discriminator(spelled_with)
]
Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class TokenExample:
    """Prompt and answer as tokens; the answer ends with the end-of-sequence token. `answer` is its text."""

    prompt_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]
    answer: str


def chat_example(prompt: str, answer: str) -> ChatExample:
    """One user turn and its answer."""
    return ChatExample(messages=(Message(role="user", content=prompt), Message(role="assistant", content=answer)))


def read_jsonl(path: Path) -> list[Example]:
    """Read `{"prompt", "completion"}` or `{"messages"}` objects, one a line.

    Raises:
        InvalidData: unreadable, empty, or a line that is neither, with its number.
    """
    adapter: TypeAdapter[Example] = TypeAdapter(Example)
    examples: list[Example] = []
    for number, example in read_lines(path, adapter, needs="{prompt, completion} or {messages}"):
        if isinstance(example, ChatExample) and example.messages[-1].role != "assistant":
            raise InvalidData(f"data {path}, line {number}: the last message must be the assistant's")
        examples.append(example)
    return examples


def read_lines(path: Path, adapter: TypeAdapter[Item], *, needs: str) -> list[tuple[int, Item]]:
    """Read one object a line, with the lines' numbers from 1; blank lines are left out.

    Args:
        needs: what a line must be, for the message.

    Raises:
        InvalidData: unreadable, empty, or a line that the adapter refuses, with its number.
    """
    items: list[tuple[int, Item]] = []
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidData(f"data {path}: {error}; give a UTF-8 file of JSON lines") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            items.append((number, adapter.validate_json(line)))
        except ValidationError as error:
            raise InvalidData(f"data {path}, line {number}: needs {needs}; {_first_of(error)}") from error
    if not items:
        raise InvalidData(f"data {path}: no examples; give at least one JSON line")
    return items


def _first_of(error: ValidationError) -> str:
    """What is wrong first, and with which field; the union's tag comes before it."""
    first = error.errors()[0]
    return ": ".join([".".join(map(str, first["loc"][1:])), first["msg"]]).removeprefix(": ")


def read_examples(
    path: Path, tokenizer: PreTrainedTokenizerBase, *, max_tokens: int, at_most: int | None = None
) -> list[TokenExample]:
    """The examples of a file as tokens, the first `at_most` of them.

    Raises:
        InvalidData: as `read_jsonl` and `tokenize` do, with the name of the file.
    """
    examples = read_jsonl(path)[:at_most]
    try:
        return tokenize(examples, tokenizer, max_tokens=max_tokens)
    except InvalidData as error:
        raise InvalidData(f"data {path}: {error}") from error


def write_jsonl(path: Path, examples: Iterable[Example]) -> None:
    """Write what `read_jsonl` reads."""
    lines = (json.dumps(example.model_dump(), ensure_ascii=False) + "\n" for example in examples)
    path.write_text("".join(lines), encoding="utf-8")


def tokenize(examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, *, max_tokens: int) -> list[TokenExample]:
    """Turn examples into tokens, chats through the model's own template.

    Raises:
        InvalidData: an example longer than `max_tokens`; nothing is cut. A prompt of no tokens, a chat that the
            template refuses. Or a tokenizer without a chat template or an end-of-sequence token.
    """
    if tokenizer.eos_token_id is None:
        raise InvalidData("the tokenizer has no end-of-sequence token to end answers with; set its eos_token")
    rows: list[TokenExample] = []
    for number, example in enumerate(examples, start=1):
        try:
            row = _tokenize_one(example, tokenizer)
        except TemplateError as error:
            raise InvalidData(f"example {number}: the chat template refuses it: {error}") from error
        if not row.prompt_ids:
            raise InvalidData(f"example {number}: the prompt has no tokens; give it some text")
        length = len(row.prompt_ids) + len(row.answer_ids)
        if length > max_tokens:
            raise InvalidData(
                f"example {number} has {length} tokens, --max-example-tokens is {max_tokens}; "
                f"shorten it or raise the limit"
            )
        rows.append(row)
    return rows


def split(examples: Sequence[Item], *, n_validation: int, seed: int) -> tuple[list[Item], list[Item]]:
    """Shuffle by seed, hold out `n_validation` for validation. Raises InvalidData when nothing is left to train on."""
    if n_validation >= len(examples):
        raise InvalidData(f"{len(examples)} examples, {n_validation} to hold out: nothing is left to train on")
    shuffled = list(examples)
    random.Random(seed).shuffle(shuffled)
    return shuffled[n_validation:], shuffled[:n_validation]


def chat_prompt_ids(messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The chat as the model's template writes it, up to where the assistant answers.

    Raises:
        InvalidData: the tokenizer has no chat template.
        TemplateError: the template refuses the chat.
    """
    if tokenizer.chat_template is None:
        raise InvalidData("the tokenizer has no chat template; give plain text in {prompt} instead")
    chat = [message.model_dump() for message in messages]
    return tuple(tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False))


def _tokenize_one(example: Example, tokenizer: PreTrainedTokenizerBase) -> TokenExample:
    if isinstance(example, CompletionExample):
        prompt_ids = tuple(tokenizer(example.prompt)["input_ids"])
        answer = example.completion
    else:
        prompt_ids = chat_prompt_ids(example.messages[:-1], tokenizer)
        answer = example.messages[-1].content
    answer_ids = tokenizer(answer, add_special_tokens=False)["input_ids"]
    return TokenExample(prompt_ids, (*answer_ids, tokenizer.eos_token_id), answer)
