"""The text side of a model: prompts to tokens, tokens to text. Safe to use from several threads."""

from collections.abc import Callable, Sequence

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase

from onebasis.core.errors import ContextLengthExceeded, InvalidParameter


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

    def encode(self, text: str) -> tuple[int, ...]:
        """Tokens of plain text, with the special tokens that the model expects at the start.

        Raises:
            ContextLengthExceeded: however it is tokenized, it is longer than any prompt may be.
        """
        self._check_length(len(text), "prompt")
        return tuple(self._tokenizer(text)["input_ids"])

    def encode_chat(self, messages: Sequence[dict[str, str]]) -> tuple[int, ...]:
        """Tokens of a chat through the model's template, up to where the assistant speaks.

        Raises:
            InvalidParameter: the model has no template, or its template refuses these messages.
            ContextLengthExceeded: as `encode`.
        """
        self._check_length(sum(len(message["content"]) for message in messages), "messages")
        if self._tokenizer.chat_template is None:
            raise InvalidParameter("messages", "this model has no chat template; use /v1/completions")
        try:
            token_ids = self._tokenizer.apply_chat_template(
                list(messages), add_generation_prompt=True, return_dict=False
            )
        except TemplateError as error:
            raise InvalidParameter("messages", f"the model's chat template refuses them: {error}") from error
        return tuple(token_ids)

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool) -> str:
        """Text of tokens."""
        return self._decode(token_ids, skip_special_tokens=skip_special_tokens)

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
