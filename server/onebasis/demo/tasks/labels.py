"""Tasks that choose a label: the intent of a message, the tone of a review, the kind of a word."""

import random
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from onebasis.demo.tasks.messages import GREETINGS, INTENTS, PRODUCTS, REGARDS, REVIEW_SUBJECTS, TONES
from onebasis.demo.tasks.messages import REVIEW_TEMPLATES as REVIEWS
from onebasis.demo.tasks.split import Pool, Split
from onebasis.demo.tasks.task import DemoTask
from onebasis.demo.tasks.words import NOUN_CATEGORIES, PARTS_OF_SPEECH

_INTENT_INSTRUCTIONS: Final = (
    "Which category does this message belong to?",
    "Classify the customer message.",
    "Route this message.",
)
_DEPARTMENTS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "refund": "BILLING",
        "cancel": "RETENTION",
        "shipping": "LOGISTICS",
        "login": "ACCESS",
        "damage": "QUALITY",
        "hours": "GENERAL",
    }
)
_REVIEW_INSTRUCTIONS: Final = (
    "Rate this review.",
    "Label the review.",
    "What is the rating of this review?",
)
_STARS: Final[Mapping[str, str]] = MappingProxyType({"positive": "5 stars", "negative": "1 star"})


def _labelled(pools: Mapping[str, Pool], rng: random.Random, split: Split) -> tuple[str, str]:
    label = rng.choice(tuple(pools))
    return pools[label].pick(rng, split), label


def _intent_a(rng: random.Random, split: Split) -> tuple[str, str]:
    template, intent = _labelled(INTENTS, rng, split)
    message = template.format(product=PRODUCTS.pick(rng, split), order=rng.randint(1000, 9999))
    greeting = rng.choice(GREETINGS)
    if not greeting:
        message = message[0].upper() + message[1:]
    stop = "" if message.endswith("?") else "."
    return f"{greeting}{message}{stop}{rng.choice(REGARDS)}", intent


def _intent_b(rng: random.Random, split: Split) -> tuple[str, str]:
    message, intent = _intent_a(rng, split)
    return message, _DEPARTMENTS[intent]


def _review_a(rng: random.Random, split: Split) -> tuple[str, str]:
    adjective, tone = _labelled(TONES, rng, split)
    subject = REVIEW_SUBJECTS.pick(rng, split)
    return REVIEWS.pick(rng, split).format(subject=subject, adjective=adjective), tone


def _review_b(rng: random.Random, split: Split) -> tuple[str, str]:
    review, tone = _review_a(rng, split)
    return review, _STARS[tone]


def _pos_tag(rng: random.Random, split: Split) -> tuple[str, str]:
    return _labelled(PARTS_OF_SPEECH, rng, split)


def _noun_category(rng: random.Random, split: Split) -> tuple[str, str]:
    return _labelled(NOUN_CATEGORIES, rng, split)


LABEL_TASKS: Final = (
    DemoTask(
        name="intent_a",
        description="What a customer wants: refund, cancel, shipping, login, damage or hours.",
        instructions=_INTENT_INSTRUCTIONS,
        generate=_intent_a,
    ),
    DemoTask(
        name="intent_b",
        description="Which department answers a customer: BILLING, RETENTION, LOGISTICS, ...",
        instructions=_INTENT_INSTRUCTIONS,
        generate=_intent_b,
        scoring="cased",
    ),
    DemoTask(
        name="review_a",
        description="The tone of a review: positive or negative.",
        instructions=_REVIEW_INSTRUCTIONS,
        generate=_review_a,
    ),
    DemoTask(
        name="review_b",
        description="The rating of a review: 5 stars or 1 star.",
        instructions=_REVIEW_INSTRUCTIONS,
        generate=_review_b,
    ),
    DemoTask(
        name="pos_tag",
        description="The part of speech of a word: noun, verb, adjective or adverb.",
        instructions=(
            "Which part of speech is this word?",
            "Noun, verb, adjective or adverb?",
            "Give the part of speech.",
        ),
        generate=_pos_tag,
    ),
    DemoTask(
        name="noun_category",
        description="The kind of thing a noun names: animal, body, clothing, food, job, tool, ...",
        instructions=(
            f"Which category is this word: {', '.join(NOUN_CATEGORIES)}?",
            "Categorize the noun.",
            "What kind of thing is this?",
        ),
        generate=_noun_category,
    ),
)
