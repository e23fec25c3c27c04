"""What was written when, and which answers could be right in the light of it. Times are time.monotonic() seconds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

LAG_S: Final = 2.0
"""How long a replica may go on answering from what another replica has replaced: the server's promise."""


@dataclass(frozen=True, slots=True)
class Version:
    """A write that took effect in the store, at some moment from `sent_s` to `done_s`. digest None: a delete."""

    generation: int
    digest: str | None
    replica: int
    sent_s: float
    done_s: float


@dataclass(frozen=True, slots=True)
class Answer:
    """One generation. `asked`: the digest in `model`, if there was one. `code`: of an error's envelope."""

    name: str
    asked: str | None
    replica: int
    sent_s: float
    done_s: float
    status: int
    digest: str | None = None
    text: str | None = None
    code: str | None = None


class History:
    """Of one task. Invariant: `versions` are in the order of their generations, which are 1, 2, 3, ..."""

    def __init__(self) -> None:
        self.versions: list[Version] = []

    @property
    def current(self) -> str | None:
        """Digest after the last write; None if there is no such task."""
        return self.versions[-1].digest if self.versions else None

    @property
    def next_generation(self) -> int:
        return len(self.versions) + 1

    def since_delete(self) -> list[Version]:
        """The versions that clients can still name."""
        return [version for version in self.stored() if version.digest is not None]

    def stored(self) -> list[Version]:
        """The versions that are left in the store: from the last delete on."""
        deletes = [i for i, version in enumerate(self.versions) if version.digest is None]
        return self.versions[deletes[-1] if deletes else 0 :]

    def add(self, digest: str | None, replica: int, sent_s: float, done_s: float) -> None:
        self.versions.append(Version(self.next_generation, digest, replica, sent_s, done_s))

    def complaint(self, answer: Answer, texts: Mapping[str, str]) -> str | None:
        """Why this answer can't be right; None if it can. `texts`: what each digest answers when it is alone."""
        if answer.status == 404 and answer.code == "model_not_found":
            return None if self._may_be_absent(answer) else "404 for a task that was there all the time"
        if answer.status != 200 or answer.digest is None:
            return f"HTTP {answer.status} {answer.code}"
        if answer.text != texts[answer.digest]:
            return "another text than its digest gives alone"
        if answer.asked is not None:
            return None if answer.asked == answer.digest else "another digest than was asked for"
        return None if self._may_be_current(answer) else "its digest was not current"

    def _may_be_current(self, answer: Answer) -> bool:
        """Some moment up to LAG_S before the request until its end; what its own replica has written is no secret."""
        seen = [v.generation for v in self.versions if v.replica == answer.replica and v.done_s <= answer.sent_s]
        least = max(seen, default=0)
        return any(
            version.digest == answer.digest
            and version.generation >= least
            and version.sent_s <= answer.done_s
            and self._ended_s(version) >= answer.sent_s - LAG_S
            for version in self.versions
        )

    def _may_be_absent(self, answer: Answer) -> bool:
        """Without any lag: before it denies a task or version, a replica looks into the store."""
        if answer.asked is None:
            if not self.versions or self.versions[0].done_s >= answer.sent_s:
                return True
            deletes = [version for version in self.versions if version.digest is None]
            return any(v.sent_s <= answer.done_s and self._ended_s(v) >= answer.sent_s for v in deletes)
        known = [v.generation for v in self.versions if v.digest == answer.asked and v.done_s <= answer.sent_s]
        return not any(self._is_kept(generation, answer.done_s) for generation in known)

    def _is_kept(self, generation: int, until_s: float) -> bool:
        later = self.versions[generation:]
        return not any(version.digest is None and version.sent_s <= until_s for version in later)

    def _ended_s(self, version: Version) -> float:
        """The last moment at which it can have been current."""
        is_last = version.generation == len(self.versions)
        return float("inf") if is_last else self.versions[version.generation].done_s


def differences(history: History, stored: Sequence[tuple[int, str | None]]) -> list[str]:
    """Between what was acknowledged and what the store holds: (generation, digest) of each version."""
    wanted = [(version.generation, version.digest) for version in history.stored()]
    if list(stored) == wanted:
        return []
    lost = [
        f"lost: generation {generation} at {digest}"
        for generation, digest in wanted
        if (generation, digest) not in stored
    ]
    more = [f"never acknowledged, or erased: generation {g} at {d}" for g, d in stored if (g, d) not in wanted]
    return [*lost, *more]
