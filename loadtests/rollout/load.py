"""The load on the gateway: streams of all lengths, whole answers, and uploads that are used at once."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from time import perf_counter
from typing import Final

import httpx

from loadtests.common.errors import LoadTestError
from loadtests.load.client import complete, make_request, open_client
from onebasis.core.ids import digest_of

PROMPT: Final = "the cat sat on"
TIMEOUT_S: Final = 300
_WHOLE_TOKENS: Final = 8

_Send = Callable[[str], Awaitable[httpx.Response]]  # a request, given the id that it shall have


@dataclass(frozen=True, slots=True)
class Sent:
    """One request and its ending. `id` is what the gateway's log knows it by; times are of perf_counter.

    `ttft_s`: from sending to the first token, of streams. `error`: None if all was as it should be.
    """

    id: str
    kind: str
    sent_s: float
    end_s: float
    ttft_s: float | None
    error: str | None


class Load:
    """Event loop only. `sent` is everything that has ended.

    Args:
        url: of the gateway.
        files: coefficient files, uploaded again and again under a few names.
        n_tokens: length of streams, from and to; drawn evenly in their logarithm.
        seed: of lengths and choices.
    """

    def __init__(self, url: str, files: Sequence[bytes], n_tokens: tuple[int, int], seed: int) -> None:
        self._files = files
        self._n_tokens = n_tokens
        self._random = random.Random(seed)
        self._ids = count()
        self._client = open_client(url)
        self.sent: list[Sent] = []
        self.n_open_streams = 0

    async def close(self) -> None:
        await self._client.aclose()

    async def register(self, names: Sequence[str]) -> None:
        """Before the load: the tasks that streams name."""
        for number, name in enumerate(names):
            response = await self._put(name, self._files[number % len(self._files)], f"before-{name}")
            if not response.is_success:
                raise LoadTestError(f"before the load: HTTP {response.status_code} {response.text[:200]}")

    async def stream(self, names: Sequence[str], is_over: Callable[[], bool]) -> None:
        """One stream after the other until it is over."""
        prompt_ids = list(range(10, 26))
        while not is_over():
            low, high = self._n_tokens
            n_tokens = round(low * (high / low) ** self._random.random())
            request_id = f"stream-{next(self._ids)}"
            headers = {"x-request-id": request_id}
            request = make_request(self._random.choice(names), prompt_ids, n_tokens, headers=headers)
            self.n_open_streams += 1
            answer = await complete(self._client, request, timeout_s=TIMEOUT_S)
            self.n_open_streams -= 1
            ttft_s = answer.token_times_s[0] - answer.sent_s if answer.token_times_s else None
            self.sent.append(Sent(request_id, "stream", answer.sent_s, answer.end_s, ttft_s, answer.error))

    async def ask(self, names: Sequence[str], is_over: Callable[[], bool]) -> None:
        """One whole answer after the other."""
        while not is_over():
            await self._send("whole", self._completion(self._random.choice(names)))
            await asyncio.sleep(self._random.uniform(0.0, 0.1))

    async def upload(self, name: str, is_over: Callable[[], bool]) -> None:
        """A new version, and at once a request for just this version, through whichever replica."""
        for number in count():
            if is_over():
                return
            data = self._files[number % len(self._files)]
            digest = digest_of(data)
            await self._send("upload", partial(self._put, name, data))
            await self._send("use of an upload", self._completion(f"{name}@{digest}"), digest=digest)
            await asyncio.sleep(self._random.uniform(0.1, 0.3))

    def _put(self, name: str, data: bytes, request_id: str) -> Awaitable[httpx.Response]:
        return self._client.put(f"/v1/tasks/{name}", content=data, headers={"x-request-id": request_id})

    def _completion(self, model: str) -> _Send:
        body = {"model": model, "prompt": PROMPT, "max_tokens": _WHOLE_TOKENS, "temperature": 0, "ignore_eos": True}
        return lambda request_id: self._client.post("/v1/completions", json=body, headers={"x-request-id": request_id})

    async def _send(self, kind: str, send: _Send, *, digest: str | None = None) -> None:
        request_id = f"{kind.replace(' ', '-')}-{next(self._ids)}"
        sent_s = perf_counter()
        try:
            async with asyncio.timeout(TIMEOUT_S):
                error = _fault(await send(request_id), digest)
        except (httpx.HTTPError, TimeoutError) as fault:
            error = f"{type(fault).__name__}: {fault}"
        self.sent.append(Sent(request_id, kind, sent_s, perf_counter(), None, error))


def _fault(response: httpx.Response, digest: str | None) -> str | None:
    if not response.is_success:
        return f"HTTP {response.status_code}: {response.text[:200]}"
    if digest is not None and response.json()["onebasis"]["digest"] != digest:
        return f"answered by {response.json()['onebasis']['digest']}, asked for {digest}"
    return None
