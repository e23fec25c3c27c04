"""From tokens to text, as they come. No torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

_UNFINISHED = "\ufffd"


class Detokenizer(Protocol):
    """The part of a transformers tokenizer that is needed here."""

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool) -> str: ...


@dataclass(frozen=True, slots=True)
class TextDelta:
    """New text; `stopped` when a stop string ended the answer (it is not in the text)."""

    text: str
    stopped: bool = False


class TextStream:
    """Decodes one answer incrementally and looks for stop strings.

    Text is held back while it could be the beginning of a stop string or of a character whose bytes have not all
    come. Joined, the pieces are what the tokenizer makes of all tokens at once, cut before the first stop string.
    """

    def __init__(self, tokenizer: Detokenizer, stop: Sequence[str] = (), *, skip_special_tokens: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skip_special_tokens = skip_special_tokens
        self._stop = tuple(stop)
        self._n_held = max((len(text) for text in stop), default=1) - 1
        self._ids: list[int] = []
        self._context = 0  # ids before this are decoded and no longer looked at
        self._decoded = 0  # ids before this are in the text
        self._held = ""

    def push(self, token_id: int) -> TextDelta:
        """Take the next token."""
        self._ids.append(token_id)
        return self._emit(self._new_text(final=False), final=False)

    def finish(self) -> TextDelta:
        """No more tokens will come: whatever was held back."""
        return self._emit(self._new_text(final=True), final=True)

    def _new_text(self, *, final: bool) -> str:
        known = self._decode(self._ids[self._context : self._decoded])
        text = self._decode(self._ids[self._context :])
        if not final and (len(text) <= len(known) or text.endswith(_UNFINISHED)):
            return ""
        self._context, self._decoded = self._decoded, len(self._ids)
        return text[len(known) :]

    def _emit(self, new: str, *, final: bool) -> TextDelta:
        text = self._held + new
        found = [position for position in map(text.find, self._stop) if position >= 0]
        if found:
            self._held = ""
            return TextDelta(text[: min(found)], stopped=True)
        n_ready = len(text) if final else max(0, len(text) - self._n_held)
        self._held = text[n_ready:]
        return TextDelta(text[:n_ready])

    def _decode(self, token_ids: list[int]) -> str:
        return self._tokenizer.decode(token_ids, skip_special_tokens=self._skip_special_tokens)
