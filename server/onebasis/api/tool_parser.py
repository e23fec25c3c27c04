"""Finds the calls of tools in an answer's text, while it comes."""

import json
import secrets
import string
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Final

from onebasis.api.tool_formats import ToolFormat

_ID_LETTERS: Final = string.ascii_letters + string.digits
_ID_LENGTH: Final = 9  # Mistral's templates take no other


@dataclass(frozen=True, slots=True)
class FoundCall:
    """`arguments` is the text of a JSON object."""

    id: str
    name: str
    arguments: str

    def as_answer(self) -> dict[str, Any]:
        """In OpenAI's form."""
        return {"id": self.id, "type": "function", "function": {"name": self.name, "arguments": self.arguments}}


@dataclass(frozen=True, slots=True)
class ToolDelta:
    """Text that is no call, and calls that have become whole."""

    content: str
    calls: list[FoundCall]


class ToolCallStream:
    """Splits one answer into content and calls. What looks like a call and turns out to be none is content.

    Invariant: what was pushed is content that was given out, calls that were given out, and `_held`.

    Args:
        names: of the functions that may be called; an object that names another is content.
        parallel: several calls may come; else those after the first are dropped.
    """

    def __init__(self, tool_format: ToolFormat, names: Collection[str], *, parallel: bool) -> None:
        self._format = tool_format
        self._names = frozenset(names)
        self._parallel = parallel
        self._held = ""
        self._in_calls = False
        self._may_begin = True  # calls may still begin with the next text
        self.n_calls = 0

    def push(self, text: str) -> ToolDelta:
        """Take more text."""
        self._held += text
        return self._take(final=False)

    def finish(self) -> ToolDelta:
        """No more text will come."""
        return self._take(final=True)

    def _take(self, *, final: bool) -> ToolDelta:
        content = ""
        calls: list[FoundCall] = []
        while True:
            if not self._in_calls:
                content += self._content_before_calls(final=final)
            if not self._in_calls:
                return ToolDelta(content, calls)
            words, rest = self._split_words()
            end = _end_of_object(rest)
            if end is not None:
                call = self._call(rest[:end])
                if call is None:
                    content += words + rest[:end]
                elif self._parallel or self.n_calls == 0:
                    calls.append(call)
                self.n_calls += call is not None
                self._held = rest[end:]
            elif final or not self._may_go_on(rest):
                content += words if self.n_calls == 0 else ""
                self._held = rest
                self._in_calls, self._may_begin = False, self._format.marker is not None and not final
            else:
                return ToolDelta(content, calls)

    def _content_before_calls(self, *, final: bool) -> str:
        """Take what is surely content off `_held`; enter the calls if they begin."""
        marker = self._format.marker
        if marker is None:
            start = self._held.lstrip()
            self._in_calls = self._may_begin and start[:1] in ("{", "[") and start != ""
            self._may_begin = self._may_begin and not start
            n_sure = 0 if self._in_calls or (self._may_begin and not final) else len(self._held)
        elif self._may_begin and marker in self._held:
            n_sure = self._held.index(marker)
            self._in_calls = True
        else:
            n_sure = len(self._held) - (0 if final else _n_begun(self._held, marker))
        sure, self._held = self._held[:n_sure], self._held[n_sure:]
        return sure

    def _split_words(self) -> tuple[str, str]:
        """`_held` as the words and white space that may stand before a call, and the rest."""
        rest = self._held.lstrip()
        while word := next((word for word in self._format.words if rest.startswith(word)), None):
            rest = rest[len(word) :].lstrip()
        return self._held[: len(self._held) - len(rest)], rest

    def _may_go_on(self, rest: str) -> bool:
        """More text may make a call, or a word before one, of the rest."""
        return rest.startswith("{") or any(word.startswith(rest) for word in self._format.words)

    def _call(self, text: str) -> FoundCall | None:
        """The call that a JSON object is, if it is one."""
        found = json.loads(text)
        name, arguments = found.get("name"), found.get(self._format.arguments_key, {})
        if not isinstance(name, str) or name not in self._names or not isinstance(arguments, dict):
            return None
        call_id = "".join(secrets.choice(_ID_LETTERS) for _ in range(_ID_LENGTH))
        return FoundCall(call_id, name, _spelt(arguments))


def _spelt(arguments: dict[str, Any]) -> str:
    """As JSON text. Half of a surrogate pair, which a model may write, has no bytes: then all is spelt in ASCII."""
    text = json.dumps(arguments, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(arguments)
    return text


def _end_of_object(text: str) -> int | None:
    """Where the JSON object at the start of `text` ends; None if it is not whole, or none."""
    if not text.startswith("{") or "}" not in text:
        return None
    try:
        return json.JSONDecoder().raw_decode(text)[1]
    except (ValueError, RecursionError):
        return None


def _n_begun(text: str, marker: str) -> int:
    """How many characters at the end of `text` may be the beginning of `marker`."""
    return next((n for n in range(min(len(text), len(marker) - 1), 0, -1) if text.endswith(marker[:n])), 0)
