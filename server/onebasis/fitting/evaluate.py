"""Score a model on examples: greedy answers, exact match."""

from collections.abc import Callable, Sequence

import torch

from onebasis.fitting.data import TokenExample
from onebasis.model.loader import LoadedBase

Scorer = Callable[[str, TokenExample], bool]


def exact_match(output: str, example: TokenExample) -> bool:
    """The answer and nothing else, white space at the ends aside."""
    return output.strip() == example.answer.strip()


@torch.no_grad()
def score(
    base: LoadedBase,
    examples: Sequence[TokenExample],
    *,
    is_correct: Scorer = exact_match,
    batch_size: int = 32,
) -> float:
    """Share of examples answered right by greedy decoding, under whatever sites the model has now.

    An answer may be a few tokens longer than the longest right one; transformers' generate makes it.
    """
    n_right = 0
    max_new_tokens = max(len(example.answer_ids) for example in examples) + 4
    for start in range(0, len(examples), batch_size):
        batch = examples[start : start + batch_size]
        for output, example in zip(_generate(base, batch, max_new_tokens), batch, strict=True):
            n_right += is_correct(output, example)
    return n_right / len(examples)


def _generate(base: LoadedBase, batch: Sequence[TokenExample], max_new_tokens: int) -> list[str]:
    longest = max(len(example.prompt_ids) for example in batch)
    pad = min(base.eos_token_ids)
    rows = [[pad] * (longest - len(e.prompt_ids)) + list(e.prompt_ids) for e in batch]
    mask = [[0] * (longest - len(e.prompt_ids)) + [1] * len(e.prompt_ids) for e in batch]
    tokens = base.model.generate(
        input_ids=torch.tensor(rows),
        attention_mask=torch.tensor(mask),
        max_new_tokens=max_new_tokens,
        do_sample=False,
        repetition_penalty=1.0,  # some checkpoints' generation config has another
        pad_token_id=pad,
        eos_token_id=sorted(base.eos_token_ids),
    )
    texts: list[str] = base.tokenizer.batch_decode(tokens[:, longest:], skip_special_tokens=True)
    return texts
