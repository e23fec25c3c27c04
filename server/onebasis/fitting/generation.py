"""Answers of a model to tokenized prompts, by transformers' generate, under whatever sites the model has now."""

from collections.abc import Callable, Sequence

import torch

from onebasis.model.loader import LoadedBase

TokenIds = tuple[int, ...]


@torch.no_grad()
def greedy_answers(
    base: LoadedBase,
    prompts: Sequence[TokenIds],
    *,
    max_new_tokens: int,
    batch_size: int = 32,
    on_answers: Callable[[int], None] = lambda _n: None,
) -> list[TokenIds]:
    """Each prompt's greedy answer: up to and with the first end-of-sequence token, or `max_new_tokens` tokens.

    Args:
        on_answers: called after every batch with the number of its prompts.
    """
    answers: list[TokenIds] = []
    for start in range(0, len(prompts), batch_size):
        batch = prompts[start : start + batch_size]
        answers += _continued(base, batch, max_new_tokens=max_new_tokens, do_sample=False)
        on_answers(len(batch))
    return answers


@torch.no_grad()
def sampled_texts(
    base: LoadedBase, prompt: TokenIds, n: int, *, max_new_tokens: int, seed: int, batch_size: int = 32
) -> list[str]:
    """`n` continuations of one prompt, drawn at temperature 1 from the nucleus of 0.95 of the probability.

    The same ones for a seed; torch's global random state is left as it was.
    """
    texts: list[str] = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for start in range(0, n, batch_size):
            batch = [prompt] * min(batch_size, n - start)
            settings = {"do_sample": True, "temperature": 1.0, "top_p": 0.95, "top_k": 0}
            rows = _continued(base, batch, max_new_tokens=max_new_tokens, **settings)
            texts += base.tokenizer.batch_decode([list(row) for row in rows], skip_special_tokens=True)
    return texts


def _continued(
    base: LoadedBase, batch: Sequence[TokenIds], *, max_new_tokens: int, **settings: object
) -> list[TokenIds]:
    longest = max(len(prompt) for prompt in batch)
    pad = min(base.eos_token_ids)
    rows = [[pad] * (longest - len(prompt)) + list(prompt) for prompt in batch]
    mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in batch]
    tokens = base.model.generate(
        input_ids=torch.tensor(rows),
        attention_mask=torch.tensor(mask),
        max_new_tokens=max_new_tokens,
        repetition_penalty=1.0,  # some checkpoints' generation config has another
        pad_token_id=pad,
        eos_token_id=sorted(base.eos_token_ids),
        **settings,
    )
    return [_to_first_end(row, base.eos_token_ids) for row in tokens[:, longest:].tolist()]


def _to_first_end(row: Sequence[int], ends: frozenset[int]) -> TokenIds:
    n = next((place + 1 for place, token in enumerate(row) if token in ends), len(row))
    return tuple(row[:n])
