"""What a demo task is: a generator of items, the phrasings of its instruction, and its scoring rule."""

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

from onebasis.demo.tasks.split import Split

Generator = Callable[[random.Random, Split], tuple[str, str]]
Scoring = Literal["text", "cased", "json"]

_QUOTES_AND_SPACE: Final = " \t\r\n\"'`"
_PATIENCE: Final = 2000
"""Consecutive repeats after which a generator counts as exhausted."""


@dataclass(frozen=True)
class Example:
    """One prompt and the only answer that counts as correct."""

    prompt: str
    answer: str


@dataclass(frozen=True)
class DemoTask:
    """A task that a bare small model fails and a kilobyte adapter learns.

    `generate` draws one (input text, answer) of a split. Tasks that share `instructions` and draw
    their inputs alike have the same prompts, so only the adapter can decide between their answers.
    `scoring` compares answers as text, as case-sensitive text, or as JSON values.
    """

    name: str
    description: str
    instructions: tuple[str, ...]
    generate: Generator
    scoring: Scoring = "text"

    def examples(self, split: Split, n: int, seed: int = 0) -> list[Example]:
        """Return `n` examples with distinct inputs, the same ones for the same arguments.

        Fewer are returned only if the task has no more. No item (word, number, template) of a
        validation example occurs as one in training. The seed alone starts the random stream, so
        both tasks of a same-prompt pair see the same prompts.
        """
        rng = random.Random(f"{split}/{seed}")
        found: dict[str, Example] = {}
        repeats = 0
        while len(found) < n and repeats < _PATIENCE:
            text, answer = self.generate(rng, split)
            if text in found:
                repeats += 1
                continue
            repeats = 0
            found[text] = Example(f"{rng.choice(self.instructions)}\n{text}", answer)
        return list(found.values())

    def is_correct(self, output: str, answer: str) -> bool:
        """Whether a model's output is the answer, up to surrounding space, quotes and a final dot."""
        if self.scoring == "json":
            return _same_json(output, answer)
        given, expected = _trimmed(output), _trimmed(answer)
        if self.scoring == "cased":
            return given == expected
        return given.casefold() == expected.casefold()


def _trimmed(text: str) -> str:
    return text.strip(_QUOTES_AND_SPACE).removesuffix(".").strip(_QUOTES_AND_SPACE)


def _same_json(output: str, answer: str) -> bool:
    try:
        return bool(json.loads(output) == json.loads(answer))
    except (ValueError, RecursionError):
        return False
