"""The fixed division of all items (words, numbers, dates, templates) into training and validation."""

import hashlib
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, TypeVar

Split = Literal["train", "val"]
T = TypeVar("T")


def split_of(item: str) -> Split:
    """The side an item is on, for ever: a hash sends one quarter of all items to validation."""
    return "val" if _digest(item)[0] < 64 else "train"


def draw(split: Split, propose: Callable[[], T]) -> T:
    """The first proposal whose text is on the wanted side of the split."""
    while split_of(str(item := propose())) != split:
        pass
    return item


@dataclass(frozen=True)
class Pool:
    """A fixed set of items, divided once; a draw from one side never returns an item of the other."""

    train: tuple[str, ...]
    val: tuple[str, ...]

    @classmethod
    def of(cls, items: Iterable[str]) -> "Pool":
        """Divide the distinct items: the quarter with the lowest hashes is for validation.

        Ranking the hashes, not bounding them, gives small pools their quarter as well.
        """
        ranked = sorted(dict.fromkeys(items), key=_digest)
        quarter = max(1, round(len(ranked) / 4))
        return cls(train=tuple(ranked[quarter:]), val=tuple(ranked[:quarter]))

    @classmethod
    def of_words(cls, text: str) -> "Pool":
        """Divide the distinct words of a text."""
        return cls.of(text.split())

    def side(self, split: Split) -> tuple[str, ...]:
        """All items of one side."""
        return self.val if split == "val" else self.train

    def pick(self, rng: random.Random, split: Split) -> str:
        """One item of one side."""
        return rng.choice(self.side(split))

    def sample(self, rng: random.Random, split: Split, count: int) -> list[str]:
        """`count` different items of one side."""
        return rng.sample(self.side(split), count)


def _digest(item: str) -> bytes:
    return hashlib.sha256(item.encode()).digest()
