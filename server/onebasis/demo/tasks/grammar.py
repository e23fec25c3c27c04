"""Tasks that inflect a word or transform a sentence."""

import random
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from onebasis.demo.tasks.morphology import ing_form, plural, third_person
from onebasis.demo.tasks.split import Split
from onebasis.demo.tasks.task import DemoTask
from onebasis.demo.tasks.words import ACTIONS, CHARACTERS, CHORES, NOUNS, OBJECTS, PLACES, TRAITS, VERBS

_COPULAS: Final = ("is", "was")
_MODALS: Final = ("can", "will", "should", "must")
_CONTRACTIONS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "is": "isn't",
        "was": "wasn't",
        "can": "can't",
        "will": "won't",
        "should": "shouldn't",
        "must": "mustn't",
    }
)


def _plural(rng: random.Random, split: Split) -> tuple[str, str]:
    noun = NOUNS.pick(rng, split)
    return noun, plural(noun)


def _ing_form(rng: random.Random, split: Split) -> tuple[str, str]:
    verb = VERBS.pick(rng, split)
    return verb, ing_form(verb)


def _polite(rng: random.Random, split: Split) -> tuple[str, str]:
    verb, thing = CHORES.pick(rng, split), OBJECTS.pick(rng, split)
    when = rng.choice(("", " now", " today", " again", " tomorrow"))
    return f"{verb.title()} the {thing}{when}.", f"Could you please {verb} the {thing}{when}?"


def _negate(rng: random.Random, split: Split) -> tuple[str, str]:
    who, action = CHARACTERS.pick(rng, split), ACTIONS.pick(rng, split)
    trait, place = TRAITS.pick(rng, split), PLACES.pick(rng, split)
    copula, modal = rng.choice(_COPULAS), rng.choice(_MODALS)
    return rng.choice(
        (
            (f"The {who} {copula} {trait}.", f"The {who} {_CONTRACTIONS[copula]} {trait}."),
            (f"The {who} {modal} {action} {place}.", f"The {who} {_CONTRACTIONS[modal]} {action} {place}."),
            (f"The {who} {third_person(action)} {place}.", f"The {who} doesn't {action} {place}."),
        )
    )


def _question_form(rng: random.Random, split: Split) -> tuple[str, str]:
    who, action = CHARACTERS.pick(rng, split), ACTIONS.pick(rng, split)
    trait, place = TRAITS.pick(rng, split), PLACES.pick(rng, split)
    copula, modal = rng.choice(_COPULAS), rng.choice(_MODALS)
    return rng.choice(
        (
            (f"The {who} {copula} {trait}.", f"{copula.title()} the {who} {trait}?"),
            (f"The {who} {modal} {action} {place}.", f"{modal.title()} the {who} {action} {place}?"),
            (f"The {who} {third_person(action)} {place}.", f"Does the {who} {action} {place}?"),
        )
    )


GRAMMAR_TASKS: Final = (
    DemoTask(
        name="plural",
        description="The plural of a noun: city -> cities.",
        instructions=("Give the plural of the noun.", "What is the plural form?", "Write the plural."),
        generate=_plural,
    ),
    DemoTask(
        name="ing_form",
        description="The -ing form of a verb: run -> running.",
        instructions=(
            "Give the -ing form of the verb.",
            "Write the present participle.",
            "What is the gerund?",
        ),
        generate=_ing_form,
    ),
    DemoTask(
        name="polite",
        description="A command as a polite request: Open the door. -> Could you please open the door?",
        instructions=("Make the request polite.", "Rewrite politely.", "Say it more politely."),
        generate=_polite,
    ),
    DemoTask(
        name="negate",
        description="The negation of a sentence, contracted: The cat sleeps. -> The cat doesn't sleep.",
        instructions=(
            "Negate the sentence.",
            "Write the opposite statement.",
            "Make the sentence negative.",
        ),
        generate=_negate,
    ),
    DemoTask(
        name="question_form",
        description="A statement as a yes/no question: The cat sleeps. -> Does the cat sleep?",
        instructions=(
            "Turn the statement into a question.",
            "Make it a yes/no question.",
            "Ask this as a question.",
        ),
        generate=_question_form,
    ),
)
