"""English inflection, correct for every word of `words.json`."""

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

_IRREGULAR_PLURALS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "calf": "calves",
        "child": "children",
        "echo": "echoes",
        "foot": "feet",
        "goose": "geese",
        "half": "halves",
        "hero": "heroes",
        "human": "humans",
        "knife": "knives",
        "leaf": "leaves",
        "life": "lives",
        "loaf": "loaves",
        "mouse": "mice",
        "ox": "oxen",
        "person": "people",
        "potato": "potatoes",
        "self": "selves",
        "shelf": "shelves",
        "stomach": "stomachs",
        "thief": "thieves",
        "tomato": "tomatoes",
        "tooth": "teeth",
        "wife": "wives",
        "wolf": "wolves",
    }
)
_IRREGULAR_THIRD_PERSONS: Final[Mapping[str, str]] = MappingProxyType({"be": "is", "have": "has"})
_STRESSED_LAST_SYLLABLE: Final = frozenset(
    (
        "admit",
        "begin",
        "commit",
        "compel",
        "equip",
        "forbid",
        "forget",
        "occur",
        "permit",
        "prefer",
        "refer",
        "regret",
        "submit",
    )
)
_ONE_SHORT_SYLLABLE: Final = re.compile(r"[^aeiou]*(qu)?[aeiou][^aeiouwxy]")


def plural(noun: str) -> str:
    """The plural of an English noun: city -> cities, box -> boxes, crisis -> crises, man -> men."""
    if noun in _IRREGULAR_PLURALS:
        return _IRREGULAR_PLURALS[noun]
    if noun.endswith("man"):
        return f"{noun[:-3]}men"
    if noun.endswith("sis"):
        return f"{noun[:-2]}es"
    return _with_s(noun)


def third_person(verb: str) -> str:
    """The form of an English verb after "she": carry -> carries, watch -> watches, go -> goes."""
    if verb in _IRREGULAR_THIRD_PERSONS:
        return _IRREGULAR_THIRD_PERSONS[verb]
    return f"{verb}es" if verb.endswith("o") else _with_s(verb)


def ing_form(verb: str) -> str:
    """The present participle of an English verb: run -> running, make -> making, die -> dying."""
    if verb.endswith("ie"):
        return f"{verb[:-2]}ying"
    if verb.endswith("c"):
        return f"{verb}king"
    if re.search(r"[^eoy]e$", verb) and verb != "be":
        return f"{verb[:-1]}ing"
    if verb in _STRESSED_LAST_SYLLABLE or _ONE_SHORT_SYLLABLE.fullmatch(verb):
        return f"{verb}{verb[-1]}ing"
    return f"{verb}ing"


def _with_s(word: str) -> str:
    if re.search(r"(s|x|z|ch|sh)$", word):
        return f"{word}es"
    if re.search(r"[^aeiou]y$", word):
        return f"{word[:-1]}ies"
    return f"{word}s"
