"""A score is the share of exact greedy answers, whatever else is in the batch."""

import pytest

from onebasis.fitting.data import TokenExample
from onebasis.fitting.evaluate import exact_match, score
from onebasis.model.loader import LoadedBase
from tests.api.tiny_model import EOS_ID, TinyModel
from tests.fitting.tiny import token_example

PROMPTS = [[7, 8, 9, 10, 11, 12, 13], [20], [31, 32], [40, 41, 42, 43, 44, 45, 46, 47, 48, 49, 50], [60, 61, 62]]


def asked(base: LoadedBase, examples: list[TokenExample], batch_size: int) -> dict[tuple[int, ...], str]:
    """What the model says to each prompt."""
    outputs: dict[tuple[int, ...], str] = {}

    def note(output: str, example: TokenExample) -> bool:
        outputs[example.prompt_ids] = output
        return True

    assert score(base, examples, is_correct=note, batch_size=batch_size) == 1.0
    return outputs


@pytest.mark.parametrize(
    ("output", "answer", "is_right"),
    [
        ("boxes", "boxes", True),
        (" boxes\n", "boxes", True),
        ("boxes", " boxes ", True),
        ("", "", True),
        (" ", "", True),
        ("Boxes", "boxes", False),
        ("boxes.", "boxes", False),
        ("boxes boxes", "boxes", False),
        ("box es", "boxes", False),
        ("", "boxes", False),
        ("boxes", "", False),
    ],
)
def test_exact_match(output: str, answer: str, is_right: bool) -> None:
    assert exact_match(output, token_example([1], [EOS_ID], answer)) is is_right


@pytest.mark.parametrize("batch_size", [2, 3, 32])
def test_padding_does_not_change_answers(batch_size: int, base: LoadedBase) -> None:
    examples = [token_example(prompt, [20, 21, EOS_ID]) for prompt in PROMPTS]
    one_by_one = asked(base, examples, batch_size=1)
    assert len(set(one_by_one.values())) > 2, "the prompts do not tell padding apart"
    assert asked(base, examples, batch_size=batch_size) == one_by_one


def test_answers_are_those_of_plain_greedy_decoding(base: LoadedBase) -> None:
    """As the server gives them: what a checkpoint's generation config prefers has no part in it."""
    examples = [token_example(prompt, [20, 21, 22, 23, EOS_ID]) for prompt in PROMPTS]
    plain = asked(base, examples, batch_size=32)
    base.model.generation_config.update(do_sample=True, temperature=5.0, repetition_penalty=3.0)
    assert asked(base, examples, batch_size=32) == plain


def test_score_is_the_share_of_right_answers(base: LoadedBase, llama: TinyModel) -> None:
    examples = [token_example(prompt, [20, EOS_ID]) for prompt in PROMPTS]
    outputs = asked(base, examples, batch_size=32)
    told = [
        token_example(prompt, [20, EOS_ID], outputs[tuple(prompt)] if i < 2 else "something else")
        for i, prompt in enumerate(PROMPTS)
    ]
    assert score(base, told) == 2 / 5


def test_an_answer_has_room_for_the_longest_right_one(base: LoadedBase, llama: TinyModel) -> None:
    base.model.generation_config.eos_token_id = None
    long_answer = [token_example([7, 8], [20] * 30), token_example([9], [21])]
    for output in asked(base, long_answer, batch_size=32).values():
        assert len(output) >= 30, "cut short"
