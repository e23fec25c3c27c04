"""The load: each task has one writer, so the order of its writes is known; everybody reads every task."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import httpx

from loadtests.chaos.history import Answer, History
from loadtests.chaos.replicas import Replicas
from loadtests.common.errors import LoadTestError
from onebasis.core.ids import digest_of

PROMPT = "the cat sat on"
N_TOKENS = 8
_SETTLE_S = 1.0  # a killed server's last statement may still be at work in the database


class Load:
    """Event loop only. `counts` and `complaints` are what came of it."""

    def __init__(self, replicas: Replicas, names: Sequence[str], files: Sequence[bytes], seed: int) -> None:
        self._replicas = replicas
        self._files = {digest_of(data): data for data in files}
        self._random = random.Random(seed)
        self._clients = [_client(url) for url in replicas.urls]
        self.histories = {name: History() for name in names}
        self.answers: list[Answer] = []
        self.counts: Counter[str] = Counter()
        self.complaints: list[str] = []

    async def close(self) -> None:
        for client in self._clients:
            await client.aclose()

    async def texts_alone(self) -> dict[str, str]:
        """What each file answers when nothing else is going on."""
        texts = {}
        for number, (digest, data) in enumerate(self._files.items()):
            for response in (
                await self._clients[0].put(f"/v1/tasks/alone-{number}", content=data),
                answer := await self._clients[0].post("/v1/completions", json=_body(f"alone-{number}")),
            ):
                if not response.is_success:
                    raise LoadTestError(f"before the load: HTTP {response.status_code} {response.text[:200]}")
            texts[str(digest)] = str(answer.json()["choices"][0]["text"])
        return texts

    async def write(self, name: str, is_over: Callable[[], bool]) -> None:
        """Change one task until it is over."""
        history = self.histories[name]
        while not is_over():
            await asyncio.sleep(self._random.uniform(0.02, 0.2))
            kind = self._random.choices(
                ["upload", "swap", "lost race", "again", "roll back", "delete"], [5, 2, 1, 1, 3, 1]
            )[0]
            if history.current is None and kind != "again":
                kind = "upload"
            if kind == "again" and history.current is None:
                continue
            await self._change(name, history, kind)

    async def read(self, is_over: Callable[[], bool]) -> None:
        """Ask all the tasks, by name or for one of their versions, until it is over."""
        while not is_over():
            await asyncio.sleep(self._random.uniform(0.0, 0.05))
            name = self._random.choice(list(self.histories))
            known = self.histories[name].since_delete()
            asked = self._random.choice(known).digest if known and self._random.random() < 0.25 else None
            replica = self._some_replica()
            model = name if asked is None else f"{name}@{asked}"
            sent_s = time.monotonic()
            response = await self._send(replica, "POST", "/v1/completions", json=_body(model))
            if response is not None:
                self.answers.append(_answer(response, name, asked, replica, sent_s))

    async def _change(self, name: str, history: History, kind: str) -> None:
        target = self._random.choice(list(self._files))
        path, method, wanted, headers = f"/v1/tasks/{name}", "PUT", {200, 201}, {}
        content: dict[str, Any] = {"content": self._files[target]}
        if kind == "again":
            target = next(digest for digest in self._files if digest == history.current)
            content, wanted = {"content": self._files[target]}, {200}
        elif kind == "swap":
            headers = {"If-Match": f'"{history.current}"'}
        elif kind == "lost race":
            headers, wanted = {"If-Match": f'"sha256:{"0" * 64}"'}, {412}
        elif kind == "roll back":
            target = self._random.choice([digest for digest in self._files if digest in _digests(history)])
            path, method, content = f"{path}/rollback", "POST", {"json": {"digest": target}}
        elif kind == "delete":
            method, content, wanted = "DELETE", {}, {200}
        replica = self._some_replica()
        sent_s = time.monotonic()
        response = await self._send(replica, method, path, headers=headers, **content)
        digest = None if kind == "delete" else str(target)
        if response is None:
            await self._find_out(name, history, digest, replica, sent_s)
        elif response.status_code not in wanted:
            self.complaints.append(f"{kind} of {name}: HTTP {response.status_code} {response.text[:200]}")
        else:
            self._acknowledge(name, history, kind, digest, replica, sent_s, response)

    def _acknowledge(
        self,
        name: str,
        history: History,
        kind: str,
        digest: str | None,
        replica: int,
        sent_s: float,
        response: httpx.Response,
    ) -> None:
        self.counts[f"acknowledged {kind}"] += 1
        if kind == "delete" or response.status_code == 201:
            history.add(digest, replica, sent_s, time.monotonic())
        if kind not in ("delete", "lost race"):
            card = response.json()
            found, known = (card["digest"], card["generation"]), (history.current, len(history.versions))
            if found != known:
                self.complaints.append(f"{kind} of {name} was answered with {found}, it should be {known}")

    async def _find_out(self, name: str, history: History, digest: str | None, replica: int, sent_s: float) -> None:
        """A write's answer was lost: whether it took effect is in the store, which the other replica reads."""
        await asyncio.sleep(_SETTLE_S)
        response = await self._clients[1 - replica].get(f"/v1/tasks/{name}/versions", params={"limit": 1})
        if response.status_code == 404:
            took_effect = digest is None and history.current is not None
        else:
            took_effect = response.json()["data"][0]["generation"] == history.next_generation
        self.counts["unanswered and in effect" if took_effect else "unanswered and without effect"] += 1
        if took_effect:
            history.add(digest, replica, sent_s, time.monotonic())

    async def _send(self, replica: int, method: str, path: str, **content: Any) -> httpx.Response | None:
        """None: the connection was lost, as it may be with a killed server."""
        sent_s = time.monotonic()
        try:
            return await self._clients[replica].request(method, path, **content)
        except httpx.HTTPError as error:
            if self._replicas.was_down(replica, sent_s, time.monotonic()):
                self.counts["connections lost with the killed server"] += 1
            else:
                self.complaints.append(f"{method} {path} on replica {replica}, which was up: {error!r}")
            return None

    def _some_replica(self) -> int:
        up = [replica for replica in (0, 1) if self._replicas.is_up(replica)]
        return self._random.choice(up)

    async def final_state(self, replica: int) -> dict[str, str]:
        """Digest of each task of the load, as a replica lists them."""
        cards = (await self._clients[replica].get("/v1/tasks", params={"limit": 1000})).json()["data"]
        return {card["id"]: card["digest"] for card in cards if card["id"] in self.histories}


def judged(load: Load, texts: Mapping[str, str]) -> list[str]:
    """Complaints about answers, each with what it is about."""
    found = []
    for answer in load.answers:
        complaint = load.histories[answer.name].complaint(answer, texts)
        if complaint is not None:
            found.append(f"{complaint}: {answer}")
    return found


def _client(url: str) -> httpx.AsyncClient:
    limits = httpx.Limits(keepalive_expiry=2)  # before the server's own end of idle connections
    return httpx.AsyncClient(base_url=url, timeout=60, trust_env=False, limits=limits)


def _body(model: str) -> dict[str, Any]:
    return {"model": model, "prompt": PROMPT, "max_tokens": N_TOKENS, "temperature": 0, "ignore_eos": True}


def _digests(history: History) -> set[str | None]:
    return {version.digest for version in history.since_delete()}


def _answer(response: httpx.Response, name: str, asked: str | None, replica: int, sent_s: float) -> Answer:
    done_s = time.monotonic()
    content = response.json()
    if response.status_code != 200:
        return Answer(name, asked, replica, sent_s, done_s, response.status_code, code=content["error"]["code"])
    digest, text = content["onebasis"]["digest"], content["choices"][0]["text"]
    return Answer(name, asked, replica, sent_s, done_s, 200, digest, text)
