"""From tokens to text, as they come. No torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

_UNFINISHED = "\ufffd"
_MOST_UNFINISHED = 3  # of these at the end of a text that the next byte can change: a character has at most 4 bytes
_MOST_PENDING = 16  # tokens that are waited for to make a character; so many without one are noise


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
    Time is linear in the tokens, also of those that never become a character.

    Args:
        min_tokens: a stop string that is whole before this many tokens have come ends nothing, as in vLLM.
        behind: tokens that the answer follows, so that the space before its first word is not taken for the one at
            the start of a text, which some tokenizers leave out. Their own text is not given out.
    """

    def __init__(
        self,
        tokenizer: Detokenizer,
        stop: Sequence[str] = (),
        *,
        min_tokens: int = 0,
        behind: Sequence[int] = (),
        skip_special_tokens: bool = True,
    ) -> None:
        self._tokenizer = tokenizer
        self._skip_special_tokens = skip_special_tokens
        self._stop = tuple(stop)
        self._min_tokens = min_tokens
        self._n_tokens = 0
        self._n_held = max((len(text) for text in stop), default=1) - 1
        self._ids = list(behind)
        self._context = 0  # ids before this are no longer looked at
        self._decoded = len(self._ids)  # ids before this are in the text, but perhaps for some last bytes
        self._n_known = len(self._decode(self._ids))  # characters of the ids from _context on that are in the text
        self._held = ""
        self._n_safe = 0  # characters of `_held` in which no stop string may end

    def push(self, token_id: int) -> TextDelta:
        """Take the next token."""
        self._ids.append(token_id)
        self._n_tokens += 1
        return self._emit(self._new_text(final=False), final=False)

    def finish(self) -> TextDelta:
        """No more tokens will come: whatever was held back."""
        return self._emit(self._new_text(final=True), final=True)

    def _new_text(self, *, final: bool) -> str:
        text = self._decode(self._ids[self._context :])
        is_late = len(self._ids) - self._decoded >= _MOST_PENDING
        n_sure = len(text)
        if text.endswith(_UNFINISHED) and not final:
            n_sure = max(len(text.rstrip(_UNFINISHED)), len(text) - _MOST_UNFINISHED) if is_late else 0
        new = text[self._n_known : n_sure]
        if new:
            self._move_on(n_sure, len(text) - n_sure)
        elif is_late and n_sure == len(text):
            del self._ids[self._decoded :]  # they have no text, as special tokens
        return new

    def _move_on(self, n_sure: int, n_unsure: int) -> None:
        """All ids are decoded, but for the last n_unsure characters: keep as many in sight as the next ones need."""
        context = len(self._ids) - _MOST_PENDING // 2 if n_unsure else self._decoded
        n_in_sight = len(self._decode(self._ids[context:]))
        self._decoded = len(self._ids)
        if n_unsure and n_in_sight < n_unsure + _MOST_UNFINISHED:  # it may begin within the last character
            self._n_known = n_sure
        else:
            self._context, self._n_known = context, n_in_sight - n_unsure

    def _emit(self, new: str, *, final: bool) -> TextDelta:
        text = self._held + new
        if self._n_tokens <= self._min_tokens:
            self._n_safe = len(text)
        found = [text.find(stop, max(0, self._n_safe - len(stop) + 1)) for stop in self._stop]
        if any(position >= 0 for position in found):
            self._held = ""
            return TextDelta(text[: min(position for position in found if position >= 0)], stopped=True)
        n_ready = len(text) if final else max(0, len(text) - self._n_held)
        self._held = text[n_ready:]
        self._n_safe = max(0, self._n_safe - n_ready)
        return TextDelta(text[:n_ready])

    def _decode(self, token_ids: list[int]) -> str:
        return self._tokenizer.decode(token_ids, skip_special_tokens=self._skip_special_tokens)
