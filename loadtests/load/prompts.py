"""Prompts of an exact length in tokens, sent as token ids so that no tokenizer can change the length."""

import random
from collections.abc import Iterator


def random_prompts(n_prompts: int, *, n_tokens: int, vocab: tuple[int, int], seed: str) -> Iterator[list[int]]:
    """Yield n_prompts lists of n_tokens ids, each drawn evenly from vocab[0]..vocab[1], both ends included."""
    rng = random.Random(seed)
    ids = range(vocab[0], vocab[1] + 1)
    for _ in range(n_prompts):
        yield rng.choices(ids, k=n_tokens)
