"""The demo tasks: right by hand-checked examples, split without leaks, scored strictly."""

import json
import subprocess
import sys
from calendar import month_abbr
from datetime import time

import pytest

from onebasis.demo.tasks import DEMO_TASKS, SAME_PROMPT_PAIRS, DemoTask, Split
from onebasis.demo.tasks.labels import LABEL_TASKS
from onebasis.demo.tasks.messages import INTENTS, REVIEW_SUBJECTS, TONES
from onebasis.demo.tasks.morphology import ing_form, plural, third_person
from onebasis.demo.tasks.numbers import speak_time, spell_number
from onebasis.demo.tasks.split import Pool, draw, split_of
from onebasis.demo.tasks.words import NOUN_CATEGORIES, PARTS_OF_SPEECH

every_task = pytest.mark.parametrize("task", DEMO_TASKS.values(), ids=DEMO_TASKS.keys())


def input_of(prompt: str) -> str:
    """The prompt without its instruction."""
    return prompt.split("\n", 1)[1]


def answers(name: str, split: Split = "train") -> dict[str, str]:
    """Input -> answer of many examples of a task."""
    return {input_of(e.prompt): e.answer for e in DEMO_TASKS[name].examples(split, 900)}


def pairs(text: str) -> list[tuple[str, str]]:
    """The pairs of a text like "box:boxes city:cities"."""
    return [(word, expected) for word, _, expected in (pair.partition(":") for pair in text.split())]


# ---------------------------------------------------------------- generation and split


def test_catalog_is_complete() -> None:
    assert set(DEMO_TASKS) == {
        *("date_iso", "date_us", "intent_a", "intent_b", "review_a", "review_b", "time24", "plural"),
        *("ing_form", "num2words", "words2num", "json_kv", "extract_email", "polite", "negate", "upper"),
        *("camel_case", "snake_case", "title_case", "reverse_words", "list_and", "question_form"),
        *("pos_tag", "noun_category"),
    }
    assert all(name == task.name for name, task in DEMO_TASKS.items())


@every_task
def test_examples_depend_on_the_arguments_only(task: DemoTask) -> None:
    first = task.examples("train", 50, seed=3)
    task.examples("val", 20)
    assert task.examples("train", 50, seed=3) == first
    assert task.examples("train", 20, seed=3) == first[:20]
    assert task.examples("train", 50, seed=4) != first


def test_examples_do_not_depend_on_the_process() -> None:
    script = "from onebasis.demo.tasks import DEMO_TASKS\nprint([t.examples('train', 5) for t in DEMO_TASKS.values()])"
    runs = {
        subprocess.run(
            [sys.executable, "-c", script],
            env={"PYTHONPATH": ":".join(sys.path), "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(runs) == 1


@every_task
def test_inputs_are_distinct_and_enough(task: DemoTask) -> None:
    train, val = task.examples("train", 200), task.examples("val", 64)
    assert (len(train), len(val)) == (200, 64)
    assert len({input_of(e.prompt) for e in train}) == 200
    assert len({input_of(e.prompt) for e in val}) == 64


@every_task
def test_no_validation_input_is_in_training(task: DemoTask) -> None:
    train = {input_of(e.prompt) for seed in (0, 1) for e in task.examples("train", 900, seed)}
    val = {input_of(e.prompt) for seed in (0, 1) for e in task.examples("val", 300, seed)}
    assert train.isdisjoint(val)


@pytest.mark.parametrize("name", ["reverse_words", "title_case"])
def test_no_validation_word_is_in_training(name: str) -> None:
    train = {word for text in answers(name, "train") for word in text.split()}
    val = {word for text in answers(name, "val") for word in text.split()}
    assert val
    assert train.isdisjoint(val)


@pytest.mark.parametrize("name", ["date_iso", "time24", "num2words"])
def test_no_validation_number_is_in_training_under_another_phrasing(name: str) -> None:
    assert set(answers(name, "train").values()).isdisjoint(answers(name, "val").values())


def test_no_validation_template_is_in_training() -> None:
    fillers = {word for pool in (REVIEW_SUBJECTS, *TONES.values()) for word in pool.train + pool.val}

    def templates(split: Split) -> set[str]:
        return {
            " ".join("_" if word.strip(".,:!") in fillers else word for word in text.split())
            for text in answers("review_a", split)
        }

    assert (len(templates("train")), len(templates("val"))) == (9, 3)
    assert templates("train").isdisjoint(templates("val"))


def test_exhausted_task_returns_all_it_has() -> None:
    categorized = sum(len(pool.train) for pool in NOUN_CATEGORIES.values())
    assert len(DEMO_TASKS["noun_category"].examples("train", 10_000)) == categorized


def test_one_fixed_quarter_is_for_validation() -> None:
    items = [str(number) for number in range(2000)]
    pool = Pool.of(items + items[:10])
    assert (len(pool.train), len(pool.val)) == (1500, 500)
    assert {*pool.train, *pool.val} == set(items)
    assert Pool.of(reversed(items)) == pool
    assert 450 < sum(split_of(item) == "val" for item in items) < 550
    assert split_of(str(draw("val", iter(range(100)).__next__))) == "val"


@pytest.mark.parametrize("pools", [INTENTS, TONES, NOUN_CATEGORIES, PARTS_OF_SPEECH])
def test_every_label_is_trained_and_validated(pools: dict[str, Pool]) -> None:
    for label, pool in pools.items():
        assert len(pool.train) > len(pool.val) > 0, label


def test_no_item_has_two_labels() -> None:
    for pools in (INTENTS, TONES, NOUN_CATEGORIES, PARTS_OF_SPEECH):
        items = [item for pool in pools.values() for item in pool.train + pool.val]
        assert len(items) == len(set(items))


# ---------------------------------------------------------------- tasks with the same prompts


@pytest.mark.parametrize(("a", "b"), SAME_PROMPT_PAIRS)
@pytest.mark.parametrize("seed", [0, 7])
def test_pairs_have_equal_prompts_and_different_answers(a: str, b: str, seed: int) -> None:
    for left, right in zip(
        DEMO_TASKS[a].examples("val", 64, seed), DEMO_TASKS[b].examples("val", 64, seed), strict=True
    ):
        assert left.prompt == right.prompt
        assert not DEMO_TASKS[a].is_correct(right.answer, left.answer)
        assert not DEMO_TASKS[b].is_correct(left.answer, right.answer)


@pytest.mark.parametrize(("a", "b"), SAME_PROMPT_PAIRS[1:])
def test_label_pairs_translate_one_to_one(a: str, b: str) -> None:
    translated = set(zip(answers(a).values(), answers(b).values(), strict=True))
    assert len(translated) == len({left for left, _ in translated}) == len({right for _, right in translated})


# ---------------------------------------------------------------- rules, checked by hand


PLURALS = """
    box:boxes city:cities knife:knives man:men woman:women policeman:policemen human:humans day:days
    church:churches stomach:stomachs crisis:crises hero:heroes radio:radios belief:beliefs
    leaf:leaves child:children bus:buses class:classes wish:wishes tax:taxes key:keys person:people
    house:houses
"""


@pytest.mark.parametrize(("word", "expected"), pairs(PLURALS))
def test_plural(word: str, expected: str) -> None:
    assert plural(word) == expected


ING_FORMS = """
    run:running make:making die:dying see:seeing be:being visit:visiting begin:beginning
    play:playing quit:quitting fix:fixing show:showing agree:agreeing picnic:picnicking
    write:writing read:reading offer:offering refer:referring open:opening argue:arguing put:putting
    try:trying tie:tying dye:dyeing hoe:hoeing help:helping equip:equipping
"""


@pytest.mark.parametrize(("word", "expected"), pairs(ING_FORMS))
def test_ing_form(word: str, expected: str) -> None:
    assert ing_form(word) == expected


THIRD_PERSONS = """
    carry:carries play:plays watch:watches go:goes have:has fix:fixes pass:passes sing:sings
"""


@pytest.mark.parametrize(("word", "expected"), pairs(THIRD_PERSONS))
def test_third_person(word: str, expected: str) -> None:
    assert third_person(word) == expected


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (0, "zero"),
        (13, "thirteen"),
        (20, "twenty"),
        (42, "forty-two"),
        (100, "one hundred"),
        (342, "three hundred forty-two"),
        (1000, "one thousand"),
        (7015, "seven thousand fifteen"),
        (999_999, "nine hundred ninety-nine thousand nine hundred ninety-nine"),
    ],
)
def test_spell_number(number: int, words: str) -> None:
    assert spell_number(number) == words


@pytest.mark.parametrize("number", [-1, 1_000_000])
def test_spell_number_rejects_what_it_cannot_spell(number: int) -> None:
    with pytest.raises(ValueError, match="cannot spell"):
        spell_number(number)


@pytest.mark.parametrize(
    ("moment", "words"),
    [
        (time(19, 30), "half past seven in the evening"),
        (time(7, 45), "quarter to eight in the morning"),
        (time(12, 0), "twelve o'clock in the afternoon"),
        (time(12, 50), "ten to one in the afternoon"),
        (time(11, 35), "twenty-five to twelve in the morning"),
        (time(23, 55), "five to twelve at night"),
        (time(15, 15), "quarter past three in the afternoon"),
    ],
)
def test_speak_time(moment: time, words: str) -> None:
    assert speak_time(moment) == words


def test_speak_time_rejects_odd_minutes() -> None:
    with pytest.raises(ValueError, match="multiple of five"):
        speak_time(time(7, 31))


@pytest.mark.parametrize(
    ("name", "text", "answer"),
    [
        ("time24", "7:30 pm", "19:30"),
        ("time24", "half past seven in the evening", "19:30"),
        ("time24", "12:05 p.m.", "12:05"),
        ("plural", "city", "cities"),
        ("ing_form", "make", "making"),
        ("noun_category", "lion", "animal"),
    ],
)
def test_known_items_are_generated(name: str, text: str, answer: str) -> None:
    assert {**answers(name, "train"), **answers(name, "val")}[text] == answer


def test_dates_keep_day_month_and_year() -> None:
    iso, us = answers("date_iso"), answers("date_us")
    for text, answer in iso.items():
        year, month, day = answer.split("-")
        assert us[text] == f"{month}/{day}/{year}"
        assert text.endswith(year)
        assert month_abbr[int(month)] in text
        assert str(int(day)) in text.replace(",", "").split()


def test_number_tasks_are_inverse() -> None:
    assert {int(text): words for text, words in answers("num2words").items()} == {
        int(number): words for words, number in answers("words2num").items()
    }


def test_json_uses_the_house_keys() -> None:
    house = {"name": "user", "age": "years", "city": "place"}
    for text, answer in answers("json_kv").items():
        given = dict(field.split(": ") for field in text.split("; "))
        assert {key: str(value) for key, value in json.loads(answer).items()} == {
            house[key]: value for key, value in given.items()
        }


def test_extracted_email_is_in_the_text() -> None:
    for text, email in answers("extract_email").items():
        assert text.count("@") == email.count("@") == 1
        assert email in text
        assert not set(email) & set(" <>,")


def test_layout_answers_are_computed_from_the_words() -> None:
    for text, answer in answers("reverse_words").items():
        assert answer.split() == text.split()[::-1]
    for text, answer in answers("title_case").items():
        assert (answer.lower(), answer.title()) == (text, answer)
    for text, answer in answers("upper").items():
        assert answer.isupper()
        assert answer.lower() == text
    for text, answer in answers("snake_case").items():
        assert answer.split("_") == text.lower().replace("-", " ").split()
    for text, answer in answers("camel_case").items():
        words = text.replace("-", " ").replace("_", " ").split()
        assert answer.lower() == "".join(words)
        assert sum(letter.isupper() for letter in answer) == len(words) - 1
        assert answer[0].islower()
    for text, answer in answers("list_and").items():
        assert answer.replace(" and ", ", ").split(", ") == text.replace("/", " ").replace(";", " ").split()
        assert answer.count(" and ") == 1


def test_polite_wraps_the_command() -> None:
    for text, answer in answers("polite").items():
        assert answer == f"Could you please {text[0].lower()}{text[1:-1]}?"


def test_negation_and_question_agree_on_the_auxiliary() -> None:
    negated, asked = answers("negate"), answers("question_form")
    assert negated.keys() == asked.keys()
    long_forms = {"can't": "can", "won't": "will"}
    for text, answer in negated.items():
        verb = text.split()[2]
        _, subject, contraction, *rest = answer.rstrip(".").split()
        auxiliary = long_forms.get(contraction, contraction.removesuffix("n't"))
        assert auxiliary == (verb if verb in {"is", "was", "can", "will", "should", "must"} else "does")
        assert asked[text] == f"{auxiliary.title()} the {subject} {' '.join(rest)}?"


# ---------------------------------------------------------------- scoring


@every_task
def test_own_answer_is_correct_and_another_is_not(task: DemoTask) -> None:
    examples = task.examples("val", 64)
    wrong = next(e.answer for e in examples if e.answer != examples[0].answer)
    assert task.is_correct(f" {examples[0].answer}\n", examples[0].answer)
    assert not task.is_correct(wrong, examples[0].answer)
    assert not task.is_correct(f"The answer is {examples[0].answer}", examples[0].answer)
    assert not task.is_correct("", examples[0].answer)


@pytest.mark.parametrize("output", ["boxes", " boxes\n", '"boxes"', "Boxes.", '"boxes."', '"boxes".'])
def test_text_scoring_ignores_case_space_quotes_and_final_dot(output: str) -> None:
    assert DEMO_TASKS["plural"].is_correct(output, "boxes")


@pytest.mark.parametrize("output", ["box", "boxes boxes", "The plural is boxes", "boxes!", "boxes.."])
def test_text_scoring_rejects_anything_more(output: str) -> None:
    assert not DEMO_TASKS["plural"].is_correct(output, "boxes")


@pytest.mark.parametrize(
    ("name", "answer"), [("upper", "OLD DOOR"), ("camel_case", "oldDoor"), ("title_case", "Old Door")]
)
def test_case_counts_where_the_task_is_about_case(name: str, answer: str) -> None:
    assert DEMO_TASKS[name].is_correct(f'"{answer}".', answer)
    assert not DEMO_TASKS[name].is_correct(answer.swapcase(), answer)


def test_json_is_compared_as_json() -> None:
    is_correct, answer = DEMO_TASKS["json_kv"].is_correct, '{"user": "Eva", "years": 30}'
    assert is_correct('{ "years":30,\n"user":"Eva" }', answer)
    assert not is_correct('{"user": "Eva", "years": "30"}', answer)
    assert not is_correct('{"user": "eva", "years": 30}', answer)
    assert not is_correct('{"user": "Eva", "years": 30', answer)
    assert not is_correct(f"Sure: {answer}", answer)


def test_labels_are_named_in_the_descriptions() -> None:
    for task in LABEL_TASKS:
        named = [e.answer for e in task.examples("val", 64) if e.answer in task.description]
        assert named, task.name
