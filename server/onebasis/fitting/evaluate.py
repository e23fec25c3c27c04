"""Score a model on examples: greedy answers, exact match."""

from collections.abc import Callable, Sequence
from typing import Final

from onebasis.fitting.data import TokenExample
from onebasis.fitting.generation import greedy_answers
from onebasis.model.loader import LoadedBase

Scorer = Callable[[str, TokenExample], bool]
EXTRA_TOKENS: Final = 4


def exact_match(output: str, example: TokenExample) -> bool:
    """The answer and nothing else, white space at the ends aside."""
    return output.strip() == example.answer.strip()


def score(
    base: LoadedBase,
    examples: Sequence[TokenExample],
    *,
    is_correct: Scorer = exact_match,
    batch_size: int = 32,
) -> float:
    """Share of examples answered right by greedy decoding, under whatever sites the model has now.

    An answer may be `EXTRA_TOKENS` longer than the longest right one.
    """
    answers = greedy_answers(
        base,
        [example.prompt_ids for example in examples],
        max_new_tokens=max(len(example.answer_ids) for example in examples) + EXTRA_TOKENS,
        batch_size=batch_size,
    )
    outputs = base.tokenizer.batch_decode([list(answer) for answer in answers], skip_special_tokens=True)
    right = [is_correct(output, example) for output, example in zip(outputs, examples, strict=True)]
    return sum(right) / len(examples)
