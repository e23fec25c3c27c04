"""Who answers the validation items: nobody, the part itself, the mean, the merge."""

import numpy as np

from onebasis.core.ids import digest_of
from onebasis.fitting.applied import applied_updates
from onebasis.fitting.core_updates import core_updates, site_cores
from onebasis.fitting.data import TokenExample
from onebasis.fitting.evaluate import score
from onebasis.fitting.merging.job import merge, score_merge
from onebasis.fitting.merging.method import MergeMethod, MergeSettings
from onebasis.fitting.merging.parts import MergePart
from onebasis.model.factors import Basis
from onebasis.model.loader import LoadedBase

PROMPTS = ((7, 8), (30,), (40, 41, 42), (60,), (61,))


def answers_under(base: LoadedBase, basis: Basis, cores: np.ndarray) -> list[TokenExample]:
    """Items whose right answers are what the model says under these cores."""
    said: list[TokenExample] = []

    def note(output: str, example: TokenExample) -> bool:
        said.append(TokenExample(example.prompt_ids, example.answer_ids, output))
        return True

    with applied_updates(base, core_updates(basis, site_cores(cores, basis.spec))):
        score(base, [TokenExample(prompt, (20, 1), "") for prompt in PROMPTS], is_correct=note)
    return said


def test_scores_are_of_the_bare_model_the_part_the_mean_and_the_merge(base: LoadedBase, basis: Basis) -> None:
    cores = np.random.default_rng(0).standard_normal((2, basis.spec.n_core_numbers)).astype(np.float32)
    parts = [MergePart(name, digest_of(b""), one, w) for name, one, w in zip("ab", cores, (0.3, 0.9), strict=True)]
    merged = merge(parts, MergeSettings(MergeMethod.WEIGHTED_SUM), basis.spec)
    zero = np.zeros_like(cores[0])
    for field, who in (("bare", zero), ("own", cores[1]), ("mean", merged.mean), ("merged", merged.cores)):
        items = answers_under(base, basis, who)
        calls: list[None] = []
        (row,) = score_merge(base, basis, parts, merged, {"b": items}, lambda calls=calls: calls.append(None))
        assert (row.part, row.n, len(calls)) == ("b", len(PROMPTS), 4)
        right = [name for name in ("bare", "own", "mean", "merged") if getattr(row, name) == 1.0]
        assert right == [field], row
