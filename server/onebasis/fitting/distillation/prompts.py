"""Prompts to distil on: read from a file, or drawn from the model itself."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Final

from jinja2.exceptions import TemplateError
from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, TypeAdapter
from transformers import PreTrainedTokenizerBase

from onebasis.core.errors import InvalidData
from onebasis.fitting.data import Message, chat_prompt_ids, read_lines, spelled_with
from onebasis.fitting.generation import TokenIds, sampled_texts
from onebasis.model.loader import LoadedBase

_PLACEHOLDER: Final = "onebasis-user-turn"
_MAX_DRAWS_PER_PROMPT: Final = 4


class TextPrompt(BaseModel):
    """Plain text, no chat template. The completion of a training example is left out."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    prompt: Annotated[str, Field(min_length=1)]
    completion: str | None = None


class ChatPrompt(BaseModel):
    """A chat that waits for the assistant. The assistant's last turn of a training example is left out."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    messages: Annotated[tuple[Message, ...], Field(min_length=1)]

    def asked(self) -> tuple[Message, ...]:
        """Up to the last turn that is not the assistant's answer."""
        return self.messages[:-1] if self.messages[-1].role == "assistant" else self.messages


Prompt = Annotated[
    Annotated[ChatPrompt, Tag("messages")] | Annotated[TextPrompt, Tag("prompt")], Discriminator(spelled_with)
]


def read_prompts(path: Path) -> list[Prompt]:
    """Read `{"prompt"}` or `{"messages"}` objects, one a line; training examples do, their answers are not used.

    Raises:
        InvalidData: unreadable, empty, or a line that is neither, with its number.
    """
    adapter: TypeAdapter[Prompt] = TypeAdapter(Prompt)
    prompts: list[Prompt] = []
    for number, prompt in read_lines(path, adapter, needs="{prompt} or {messages}, with or without the answer"):
        if isinstance(prompt, ChatPrompt) and not (prompt.asked() and prompt.asked()[-1].role == "user"):
            raise InvalidData(f"data {path}, line {number}: the last message but the answer must be the user's")
        prompts.append(prompt)
    return prompts


def tokenize_prompts(
    prompts: Sequence[Prompt], tokenizer: PreTrainedTokenizerBase, *, max_tokens: int
) -> list[TokenIds]:
    """Distinct prompts as tokens, chats through the model's own template, in their order.

    Raises:
        InvalidData: a prompt of no tokens or of more than `max_tokens`; a chat that the template refuses, or no
            template.
    """
    rows: dict[TokenIds, None] = {}
    for number, prompt in enumerate(prompts, start=1):
        try:
            row = _token_ids(prompt, tokenizer)
        except TemplateError as error:
            raise InvalidData(f"prompt {number}: the chat template refuses it: {error}") from error
        if not 1 <= len(row) <= max_tokens:
            raise InvalidData(f"prompt {number} has {len(row)} tokens, allowed are 1 to {max_tokens}; change its text")
        rows[row] = None
    return list(rows)


def sample_prompts(base: LoadedBase, n: int, *, max_tokens: int, seed: int) -> list[Prompt]:
    """`n` distinct user turns as the model itself writes them, under whatever sites it has now.

    The chat template is cut where the user's text would come, and the model goes on from there at temperature 1
    (nucleus 0.95), as Magpie does (arXiv 2406.08464).

    Args:
        max_tokens: of the user's turn.

    Raises:
        InvalidData: the tokenizer has no chat template, or the model does not write `n` different turns.
    """
    opening = _before_user_text(base.tokenizer)
    found: dict[str, None] = {}
    for attempt in range(_MAX_DRAWS_PER_PROMPT):
        texts = sampled_texts(base, opening, n, max_new_tokens=max_tokens, seed=seed + attempt)
        found |= dict.fromkeys(text.strip() for text in texts if text.strip())
        if len(found) >= n:
            return [ChatPrompt(messages=(Message(role="user", content=text),)) for text in list(found)[:n]]
    raise InvalidData(
        f"the model wrote {len(found)} different prompts in {n * _MAX_DRAWS_PER_PROMPT} attempts, {n} are needed; "
        f"give prompts of the task (--prompts) or ask for fewer (--samples)"
    )


def _token_ids(prompt: Prompt, tokenizer: PreTrainedTokenizerBase) -> TokenIds:
    if isinstance(prompt, TextPrompt):
        return tuple(tokenizer(prompt.prompt)["input_ids"])
    return chat_prompt_ids(prompt.asked(), tokenizer)


def _before_user_text(tokenizer: PreTrainedTokenizerBase) -> TokenIds:
    """Tokens of a chat up to where the user's text comes."""
    if tokenizer.chat_template is None:
        raise InvalidData(
            "the tokenizer has no chat template to draw prompts with; give prompts of the task (--prompts)"
        )
    chat = [{"role": "user", "content": _PLACEHOLDER}]
    text = str(tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True))
    return tuple(tokenizer(text.partition(_PLACEHOLDER)[0], add_special_tokens=False)["input_ids"])
