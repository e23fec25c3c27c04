"""Reads a server-sent event stream of completion chunks: when tokens came, and what the server says it used."""

import json
from typing import Any


class StreamFault(Exception):
    """The stream is not what the API promises."""


class TokenStream:
    """What one stream has said so far. Fed raw bytes as they come; belongs to one request."""

    def __init__(self) -> None:
        self._tail = b""
        self._times_s: list[float] = []  # one for each event with choices
        self._has_token: list[bool] = []  # beside _times_s
        self.usage: object = None  # as the server sent it, unchecked
        self.done = False

    def feed(self, chunk: bytes, now_s: float) -> None:
        """Take the next bytes of the body, which arrived at now_s."""
        *lines, self._tail = (self._tail + chunk).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                self._take(line[5:].strip(), now_s)

    def _take(self, data: bytes, now_s: float) -> None:
        if data == b"[DONE]":
            self.done = True
            return
        try:
            event = json.loads(data)
            error, usage, choices = event.get("error"), event.get("usage"), event.get("choices")
            has_token = _has_token(choices[0]) if choices else None
        except (ValueError, AttributeError, KeyError, TypeError):
            raise StreamFault(f"not a completion chunk: {data[:200]!r}") from None
        if error:
            raise StreamFault(f"error event: {data[:200]!r}")
        if usage:
            self.usage = usage
        if has_token is not None:
            self._times_s.append(now_s)
            self._has_token.append(has_token)

    def token_times(self, n_tokens: int) -> list[float]:
        """Arrival of each event that counts, the first token's first. Empty if no event had a token.

        Where there are more events than tokens, a last event with neither text nor token only closes the
        stream, and does not count. Where there are then as many events as tokens, each is a token, though
        its text may be empty (half a character). Otherwise counting begins at the first with text or token.
        """
        times, has_token = list(self._times_s), list(self._has_token)
        if len(times) > n_tokens and not has_token[-1]:
            times.pop()
            has_token.pop()
        if len(times) == n_tokens:
            return times
        return times[has_token.index(True) :] if True in has_token else []


def _has_token(choice: dict[str, Any]) -> bool:
    """Whether the choice brings text or names a token (`token_ids`, or `tokens` of its logprobs)."""
    logprobs = choice.get("logprobs") or {}
    return bool(choice.get("text") or choice.get("token_ids") or logprobs.get("tokens"))
