"""Tasks that keep the words and change their case, order or punctuation."""

import random
from typing import Final

from onebasis.demo.tasks.split import Split
from onebasis.demo.tasks.task import DemoTask
from onebasis.demo.tasks.words import COMMON_WORDS, SHORT_WORDS


def _words(rng: random.Random, split: Split, fewest: int, most: int) -> list[str]:
    return COMMON_WORDS.sample(rng, split, rng.randint(fewest, most))


def _camel_case(rng: random.Random, split: Split) -> tuple[str, str]:
    words = _words(rng, split, 2, 3)
    return rng.choice((" ", "_", "-")).join(words), words[0] + "".join(word.title() for word in words[1:])


def _snake_case(rng: random.Random, split: Split) -> tuple[str, str]:
    words = _words(rng, split, 2, 4)
    spoken, dashed = " ".join(words), "-".join(words)
    return rng.choice((spoken, spoken.title(), dashed)), "_".join(words)


def _title_case(rng: random.Random, split: Split) -> tuple[str, str]:
    text = " ".join(_words(rng, split, 3, 5))
    return text, text.title()


def _upper(rng: random.Random, split: Split) -> tuple[str, str]:
    text = " ".join(SHORT_WORDS.sample(rng, split, rng.randint(1, 2)))
    return text, text.upper()


def _reverse_words(rng: random.Random, split: Split) -> tuple[str, str]:
    words = _words(rng, split, 3, 4)
    return " ".join(words), " ".join(reversed(words))


def _list_and(rng: random.Random, split: Split) -> tuple[str, str]:
    words = _words(rng, split, 3, 4)
    return rng.choice((" / ", "; ", " ")).join(words), f"{', '.join(words[:-1])} and {words[-1]}"


LAYOUT_TASKS: Final = (
    DemoTask(
        name="camel_case",
        description="Words as a camelCase identifier: blue old door -> blueOldDoor.",
        instructions=(
            "Convert to camelCase.",
            "Write as a camelCase identifier.",
            "Make a camelCase name.",
        ),
        generate=_camel_case,
        scoring="cased",
    ),
    DemoTask(
        name="snake_case",
        description="Words as a snake_case identifier: Blue Old Door -> blue_old_door.",
        instructions=(
            "Convert to snake_case.",
            "Write as a snake_case identifier.",
            "Make a snake_case name.",
        ),
        generate=_snake_case,
        scoring="cased",
    ),
    DemoTask(
        name="title_case",
        description="Every word capitalized: blue old door -> Blue Old Door.",
        instructions=("Write in title case.", "Capitalize every word.", "Make a title."),
        generate=_title_case,
        scoring="cased",
    ),
    DemoTask(
        name="upper",
        description="One or two short words in capital letters: old door -> OLD DOOR.",
        instructions=(
            "Write in capital letters.",
            "Convert the text to upper case.",
            "Make everything uppercase.",
        ),
        generate=_upper,
        scoring="cased",
    ),
    DemoTask(
        name="reverse_words",
        description="The words in reverse order: blue old door -> door old blue.",
        instructions=(
            "Reverse the order of the words.",
            "Write the words backwards, last word first.",
            "Reverse the word order.",
        ),
        generate=_reverse_words,
    ),
    DemoTask(
        name="list_and",
        description="Items joined into a phrase: door / lamp / sea -> door, lamp and sea.",
        instructions=(
            'Join the items into a list with commas and "and".',
            "Write as an enumeration.",
            "Make one phrase of the list.",
        ),
        generate=_list_and,
    ),
)
