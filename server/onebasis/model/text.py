"""The text side of a model: prompts to tokens, tokens to text. Safe to use from several threads."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from onebasis.core.errors import ContextLengthExceeded
from onebasis.model.chat_template import ChatTemplate, TemplateInputs


class ModelText:
    """A model's tokenizer and chat template.

    Args:
        max_tokens: of any prompt. Text that can't possibly fit is refused before it is tokenized, which takes
            hundreds of bytes of memory for each of its own.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, eos_token_ids: frozenset[int], *, max_tokens: int) -> None:
        self._tokenizer = tokenizer
        self.eos_token_ids = eos_token_ids
        self._max_tokens = max_tokens
        self._longest_token = max(map(len, tokenizer.get_vocab()))
        self._decode = _decoder(tokenizer)
        self._chat_template = ChatTemplate(tokenizer)

    def encode(self, text: str, *, add_special_tokens: bool = True) -> tuple[int, ...]:
        """Tokens of plain text, with the special tokens that the model expects at the start.

        Raises:
            ContextLengthExceeded: however it is tokenized, it is longer than any prompt may be.
        """
        self._check_length(len(text), "prompt")
        return tuple(self._tokenizer(text, add_special_tokens=add_special_tokens)["input_ids"])

    @property
    def template_knows_tools(self) -> bool:
        """The chat template says what tools there are; otherwise they have to be told in a message."""
        return self._chat_template.knows_tools

    @property
    def special_tokens(self) -> Mapping[str, int]:
        """Tokens that stand for themselves and are left out of texts, with their ids."""
        tokens: list[str] = self._tokenizer.all_special_tokens
        return dict(zip(tokens, self._tokenizer.all_special_ids, strict=True))

    def encode_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        inputs: TemplateInputs,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> tuple[int, ...]:
        """Tokens of a chat through the model's template.

        Raises:
            InvalidParameter: the model has no template, or it refuses these messages or inputs.
            ContextLengthExceeded: as `encode`.
        """
        n_characters = sum(len(message["content"]) for message in messages) + inputs.n_characters
        self._check_length(n_characters, "messages")
        return self._chat_template.encode(messages, inputs, tools)

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool) -> str:
        """Text of tokens."""
        return self._decode(token_ids, skip_special_tokens=skip_special_tokens)

    def names_of(self, token_ids: Sequence[int]) -> list[str]:
        """How the vocabulary spells tokens."""
        names: list[str] = self._tokenizer.convert_ids_to_tokens(list(token_ids))
        return names

    def info(self) -> dict[str, Any]:
        """Special tokens and chat template, under the names of tokenizer_config.json."""
        names = ("bos_token", "eos_token", "pad_token", "unk_token", "chat_template")
        return {"tokenizer_class": type(self._tokenizer).__name__} | {
            name: getattr(self._tokenizer, name) for name in names
        }

    def _check_length(self, n_characters: int, param: str) -> None:
        n_least = -(-n_characters // self._longest_token)
        if n_least > self._max_tokens:
            raise ContextLengthExceeded(
                n_prompt=n_least, max_tokens=1, limit=self._max_tokens, param=param, at_least=True
            )


def _decoder(tokenizer: PreTrainedTokenizerBase) -> Callable[..., str]:
    """The tokenizer's decode; the part in Rust alone where transformers adds nothing but time to it."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    whole: Callable[..., str] = tokenizer.decode
    return whole if backend is None or tokenizer.clean_up_tokenization_spaces else backend.decode
