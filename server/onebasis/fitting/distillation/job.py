"""From an adapter and prompts to the bytes of a coefficient file, with its fidelity on unseen prompts."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from torch import Tensor

from onebasis import __version__
from onebasis.coefficients.format import write_coefficients
from onebasis.core.errors import SetupError
from onebasis.fitting.applied import applied_updates
from onebasis.fitting.core_updates import core_updates, file_cores
from onebasis.fitting.data import TokenExample
from onebasis.fitting.distillation.targets import DistillationLoss, TaughtExample, taught_examples
from onebasis.fitting.fidelity import Fidelity, Updates, measure_fidelity
from onebasis.fitting.files import check_folder, write_whole
from onebasis.fitting.generation import TokenIds, greedy_answers
from onebasis.fitting.packed_attention import attention_window
from onebasis.fitting.peft.adapter import PeftAdapter
from onebasis.fitting.projection import Projection, energy_lost, project
from onebasis.fitting.training.learner import Learner
from onebasis.fitting.training.loop import StepLoss, optimise
from onebasis.fitting.training.recipe import FitRecipe
from onebasis.fitting.training.sites import trainable_sites
from onebasis.model.factors import Basis, checked_fingerprint
from onebasis.model.loader import LoadedBase

FORMS: Final = ("core", "diag")


@dataclass(frozen=True, slots=True)
class PromptSet:
    """Prompts as tokens: to learn on, and to measure on alone. `source` says in the provenance where they are from."""

    learning: Sequence[TokenIds]
    held_out: Sequence[TokenIds]
    source: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Progress:
    """News of a stage: so many of its items are done. `loss` is that of a training step."""

    stage: str
    done: int
    total: int
    loss: float | None = None


@dataclass(frozen=True, slots=True)
class DistillReport:
    """What a distillation came to. Both fidelities are of what a file holds, on the same held-out prompts.

    energy_kept: by the projection as it is stored, of the adapter's over all sites.
    """

    size_bytes: int
    energy_kept: float
    projected: Fidelity
    distilled: Fidelity
    train_s: float


def distill_adapter(
    base: LoadedBase,
    basis: Basis,
    adapter: PeftAdapter,
    prompts: PromptSet,
    *,
    task: str,
    recipe: FitRecipe,
    max_answer_tokens: int,
    output: Path,
    on_progress: Callable[[Progress], None],
) -> DistillReport:
    """Train cores, from the adapter's projection on, to answer the prompts as the adapter does; write the file.

    The adapter's greedy answers, and its distributions at their tokens, are made once.

    Raises:
        InvalidBasis: the basis was made for other base weights.
        SetupError: a form that can't be distilled into, no prompts to learn or to measure on, sites of the adapter
            that the basis has not, prompts and answers past the model's attention window, or the training diverged.
        OSError: `output` can't be written.
    """
    checked_fingerprint(base.model, basis)
    _check(basis, adapter, prompts, recipe)
    _check_window(base, prompts, max_answer_tokens)
    check_folder(output.parent)
    original = {site: adapter.update(site) for site in adapter.sites}
    with applied_updates(base, original):
        unseen = _answered(base, prompts.held_out, max_answer_tokens, "held-out answers", on_progress)
        seen = _answered(base, prompts.learning, max_answer_tokens, "answers", on_progress)
        taught = taught_examples(base, seen, on_examples=_Counter("distributions", len(seen), on_progress))
    projection = project(original, basis)
    start = _stored(projection.cores, basis, recipe.form)
    pack = _Packer(basis, recipe.form, task)
    projected = _fidelity(base, basis, original, unseen, pack(start, {}))
    energy_kept = _as_stored(projection, basis, original, pack(start, {})).energy_kept_total
    values, facts = _learn(base, basis, start, taught, recipe, on_progress)
    distilled = _fidelity(base, basis, original, unseen, pack(values, {}))
    provenance = {
        "tool": f"onebasis {__version__}, torch {torch.__version__}, transformers {transformers.__version__}",
        "method": "distill",
        "adapter": {"name": adapter.name, "digest": adapter.digest, "energy_kept": round(energy_kept, 4)},
        "prompts": _prompt_facts(prompts) | {"max_answer_tokens": max_answer_tokens},
        "recipe": recipe.as_provenance() | {"compute_dtype": str(base.model.dtype).removeprefix("torch.")},
        "n_threads": torch.get_num_threads(),
        "fidelity": {"projected": asdict(projected), "distilled": asdict(distilled)},
    }
    data = pack(values, provenance | facts)
    write_whole(output, data)
    return DistillReport(len(data), energy_kept, projected, distilled, train_s=facts["train_s"])


@dataclass(frozen=True, slots=True)
class _Packer:
    """Makes the bytes of a coefficient file."""

    basis: Basis
    form: str
    task: str

    def __call__(self, values: NDArray[np.float16], provenance: Mapping[str, Any]) -> bytes:
        spec = self.basis.spec
        return write_coefficients(
            values,
            form=self.form,
            basis=spec.digest,
            base_fingerprint=spec.base_fingerprint,
            task=self.task,
            provenance=provenance,
        )


class _Counter:
    """Adds up what a stage reports in parts."""

    def __init__(self, stage: str, total: int, on_progress: Callable[[Progress], None]) -> None:
        self._stage, self._total, self._on_progress = stage, total, on_progress
        self._done = 0

    def __call__(self, n: int) -> None:
        self._done += n
        self._on_progress(Progress(self._stage, self._done, self._total))


def _check(basis: Basis, adapter: PeftAdapter, prompts: PromptSet, recipe: FitRecipe) -> None:
    if recipe.form not in FORMS:
        raise SetupError(f"form {recipe.form!r}: an adapter is distilled into one of {', '.join(FORMS)}")
    if not (prompts.learning and prompts.held_out):
        found = f"{len(prompts.learning)} prompts to learn on, {len(prompts.held_out)} to measure on"
        raise SetupError(f"{found}: needs at least one of each; give more prompts")
    outside = [site for site in adapter.sites if site not in basis.factors]
    if outside:
        named = ", ".join(outside[:3])
        raise SetupError(f"adapter {adapter.name} has {len(outside)} sites that the basis has not, first {named}")


def _check_window(base: LoadedBase, prompts: PromptSet, max_answer_tokens: int) -> None:
    longest = max(map(len, (*prompts.learning, *prompts.held_out))) + max_answer_tokens
    window = attention_window(base)
    if longest > window:
        raise SetupError(
            f"the longest prompt and an answer may have {longest} tokens, the attention window is {window}; "
            f"lower --max-answer-tokens or leave out long prompts"
        )


def _answered(
    base: LoadedBase, prompts: Sequence[TokenIds], max_tokens: int, stage: str, on_progress: Callable[[Progress], None]
) -> list[TokenExample]:
    """The prompts with the greedy answers of the model as it is."""
    count = _Counter(stage, len(prompts), on_progress)
    answers = greedy_answers(base, prompts, max_new_tokens=max_tokens, on_answers=count)
    return [TokenExample(prompt, answer, "") for prompt, answer in zip(prompts, answers, strict=True)]


def _learn(
    base: LoadedBase,
    basis: Basis,
    start: NDArray[np.float16],
    taught: Sequence[TaughtExample],
    recipe: FitRecipe,
    on_progress: Callable[[Progress], None],
) -> tuple[NDArray[np.float16], dict[str, Any]]:
    """The trained numbers, and facts of the training for the provenance."""

    def on_step(step: StepLoss) -> None:
        on_progress(Progress("steps", step.step, recipe.n_steps, step.loss))

    with trainable_sites(base, basis, recipe.form) as trained:
        numbers = trained.tasks[0]
        numbers.load(start)
        learner = Learner("distill", numbers, taught, recipe)
        train_s = optimise([learner], DistillationLoss(base, trained), on_step)
        values = numbers.stored()
    loss = {"first": round(learner.first_loss, 4), "mean_of_last_10": round(learner.final_loss, 4)}
    return values, {"loss": loss, "train_s": round(train_s, 1)}


def _fidelity(
    base: LoadedBase, basis: Basis, original: Updates, unseen: Sequence[TokenExample], data: bytes
) -> Fidelity:
    return measure_fidelity(base, original, core_updates(basis, file_cores(data, basis)), unseen)


def _as_stored(projection: Projection, basis: Basis, original: Updates, data: bytes) -> Projection:
    """The projection with the cores that a file holds: rounded, and of form `diag` their diagonals alone."""
    cores = file_cores(data, basis)
    lost = {site: energy_lost(update, cores[site], basis.factors[site]) for site, update in original.items()}
    return replace(projection, cores=cores, lost=lost)


def _stored(cores: Mapping[str, Tensor], basis: Basis, form: str) -> NDArray[np.float16]:
    """[n] the cores' numbers as a file of this form holds them; zero at sites without a core."""
    parts = []
    for site in basis.spec.sites:
        core = cores.get(site.name, torch.zeros(site.core_shape()))
        parts.append((core if form == "core" else core.diagonal()).flatten())
    return torch.cat(parts).to(torch.float16).numpy()


def _prompt_facts(prompts: PromptSet) -> dict[str, Any]:
    state = hashlib.sha256()
    for prompt in (*prompts.learning, *prompts.held_out):
        state.update(repr(prompt).encode())
    counts = {"n_learning": len(prompts.learning), "n_held_out": len(prompts.held_out)}
    return {**prompts.source, "sha256": state.hexdigest(), **counts}
