"""The part of a report that needs data: every way to answer a task, scored on its items."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import torch
import torch.nn.functional as F

from onebasis.coefficients.validate import BoundCoefficients
from onebasis.core.errors import InvalidReport
from onebasis.fitting.applied import applied_updates
from onebasis.fitting.core_updates import core_updates, site_cores
from onebasis.fitting.data import TokenExample
from onebasis.fitting.evaluate import EXTRA_TOKENS, score
from onebasis.fitting.fidelity import measure_fidelity
from onebasis.fitting.generation import greedy_answers
from onebasis.fitting.low_rank import ReadAdapter
from onebasis.fitting.packed_attention import attention_window, packed_logits
from onebasis.fitting.packing import pack
from onebasis.fitting.report.results import TaskScores, WayScore
from onebasis.fitting.report.ways import (
    Updates,
    Way,
    core_bytes,
    factor_bytes,
    joined,
    largest_triplets,
    mean_update,
    null_of,
    projected,
    random_rows,
    remainders,
    rows_of,
    rows_without,
    scaled,
)
from onebasis.fitting.report.weights import made_from, mapping_of
from onebasis.model.factors import Basis
from onebasis.model.loader import LoadedBase

RESIDUAL_RANKS: Final = (2, 4)
_BATCH: Final = 16


@dataclass(frozen=True, slots=True)
class Subject:
    """One task with its items, and who may answer it: an adapter, coefficient files by the name to show."""

    name: str
    examples: Sequence[TokenExample]
    adapter: ReadAdapter | None
    coefficients: Mapping[str, BoundCoefficients]


def n_ways(subject: Subject, adapters: Sequence[ReadAdapter], *, leave_one_out: bool) -> int:
    """How many ways `score_subject` will take, for a progress bar."""
    n = 1 + len(subject.coefficients)
    if subject.adapter is not None:
        n += 5 + len(RESIDUAL_RANKS)
        n += (2 + leave_one_out) if len(adapters) > 1 else 0
    return n


def score_subject(
    base: LoadedBase,
    basis: Basis,
    adapters: Sequence[ReadAdapter],
    subject: Subject,
    *,
    leave_one_out: bool,
    n_sweeps: int,
    seed: int,
    on_way: Callable[[], None],
) -> TaskScores:
    """Every way on the subject's items: exact match of greedy answers, loss, and fidelity to its adapter."""
    original = None if subject.adapter is None else mapping_of(subject.adapter)
    scorer = _Scorer(base, subject.examples, original)
    scores: list[WayScore] = []
    ways = _ways(basis, adapters, subject, leave_one_out=leave_one_out, n_sweeps=n_sweeps, seed=seed)
    for way in ways:
        scores.append(scorer.score(way))
        on_way()
    return TaskScores(subject.name, len(subject.examples), tuple(scores))


def check_length(base: LoadedBase, subject: Subject) -> None:
    """Raises InvalidReport: its items, or answers to them, may be longer than the model's attention window."""
    prompt = max(len(example.prompt_ids) for example in subject.examples)
    answer = max(len(example.answer_ids) for example in subject.examples) + EXTRA_TOKENS
    longest, window = prompt + answer, attention_window(base)
    if longest > window:
        raise InvalidReport(
            f"{subject.name}: items and answers of up to {longest} tokens, the attention window is {window}; "
            f"leave out the longest"
        )


class _Scorer:
    """Scores ways on the items of one task, beside the original adapter's own answers if there is one."""

    def __init__(self, base: LoadedBase, examples: Sequence[TokenExample], original: Updates | None) -> None:
        self._base = base
        self._examples = examples
        self._original = original
        self._answered: list[TokenExample] = []
        if original is not None:
            prompts = [example.prompt_ids for example in examples]
            longest = max(len(example.answer_ids) for example in examples) + EXTRA_TOKENS
            with applied_updates(base, original):
                answers = greedy_answers(base, prompts, max_new_tokens=longest)
            self._answered = [TokenExample(p, a, "") for p, a in zip(prompts, answers, strict=True)]

    def score(self, way: Way) -> WayScore:
        with applied_updates(self._base, way.updates):
            exact, loss = score(self._base, self._examples), self._loss()
        kl = agreement = None
        if self._original is not None:
            fidelity = measure_fidelity(self._base, self._original, way.updates, self._answered)
            kl, agreement = fidelity.kl, fidelity.agreement
        return WayScore(way.name, way.size_bytes, way.in_sample, exact, loss, kl, agreement)

    @torch.no_grad()
    def _loss(self) -> float:
        """Mean cross-entropy over all answer tokens, in nats."""
        total, n_tokens = 0.0, 0
        for start in range(0, len(self._examples), _BATCH):
            batch = pack(self._examples[start : start + _BATCH])
            [logits] = packed_logits(self._base, [batch])
            total += float(F.cross_entropy(logits.float(), batch.answer_ids, reduction="sum"))
            n_tokens += len(batch.answer_ids)
        return total / n_tokens


def _ways(
    basis: Basis,
    adapters: Sequence[ReadAdapter],
    subject: Subject,
    *,
    leave_one_out: bool,
    n_sweeps: int,
    seed: int,
) -> Iterator[Way]:
    """Made one at a time: each holds factors of the whole model."""
    yield Way("bare model", {}, None)
    if subject.adapter is not None:
        yield from _ways_of_adapter(basis, subject.adapter, seed)
        others = [adapter for adapter in adapters if adapter.name != subject.adapter.name]
        if others:
            yield from _ways_of_others(basis, subject.adapter, others, adapters, leave_one_out, n_sweeps)
    for name, bound in subject.coefficients.items():
        yield Way(
            f"coefficients {name}",
            core_updates(basis, site_cores(bound.flat_cores(), basis.spec)),
            bound.file.values.nbytes,
        )


def _ways_of_adapter(basis: Basis, adapter: ReadAdapter, seed: int) -> Iterator[Way]:
    original = mapping_of(adapter)
    rows = rows_of(basis)
    size = core_bytes(original, rows)
    in_sample = adapter.digest in made_from(basis)
    yield Way("original adapter", original, factor_bytes(original))
    inside = projected(original, rows)
    yield Way("import", inside, size, in_sample)
    for rank in RESIDUAL_RANKS:
        rest = remainders(original, inside, rank)
        yield Way(f"import + residual r={rank}", joined(inside, rest), size + factor_bytes(rest), in_sample)
    yield Way("own SVD at the bytes of import", largest_triplets(original, size), size)
    yield Way(
        "import, random basis of the same size", projected(original, random_rows(basis, seed)), size, in_sample=False
    )
    yield Way("null of the same strengths", null_of(original, seed), factor_bytes(original))


def _ways_of_others(
    basis: Basis,
    adapter: ReadAdapter,
    others: Sequence[ReadAdapter],
    adapters: Sequence[ReadAdapter],
    leave_one_out: bool,
    n_sweeps: int,
) -> Iterator[Way]:
    original = mapping_of(adapter)
    rows = rows_of(basis)
    mean = mean_update(others, list(original))
    in_sample = adapter.digest in made_from(basis)
    yield Way("mean of the other adapters", mean, None)
    difference = joined(original, {site: scaled(update, -1) for site, update in mean.items()})
    added = joined(mean, projected(difference, rows))
    yield Way("mean + import of the difference", added, core_bytes(original, rows), in_sample)
    if leave_one_out:
        left_out = rows_without(adapters, adapter.name, basis, n_sweeps=n_sweeps)
        size = core_bytes(original, left_out)
        yield Way("import, basis made without it", projected(original, left_out), size, in_sample=False)
