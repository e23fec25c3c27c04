"""Distillation starts at the projection, brings the cores closer to the adapter, and writes down what it came to."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from onebasis.coefficients.format import CoefficientFile, parse_coefficients
from onebasis.core.errors import InvalidBasis, SetupError
from onebasis.fitting.applied import applied_updates
from onebasis.fitting.core_updates import core_updates, file_cores
from onebasis.fitting.data import TokenExample
from onebasis.fitting.distillation.job import DistillReport, Progress, PromptSet, distill_adapter
from onebasis.fitting.fidelity import measure_fidelity
from onebasis.fitting.generation import greedy_answers
from onebasis.fitting.low_rank import LowRankUpdate
from onebasis.fitting.training.recipe import FitRecipe
from onebasis.model.factors import Basis
from onebasis.model.loader import LoadedBase
from onebasis.model.sites import base_fingerprint
from tests.api.tiny_model import MAX_POSITIONS
from tests.fitting.peft.adapters import opened
from tests.fitting.tiny import random_updates

PROMPTS = [(7, 8, 30 + i, 20 + 2 * i) for i in range(6)]
SET = PromptSet(learning=PROMPTS, held_out=PROMPTS, source={"source": "given"})
QUICK = FitRecipe(n_steps=25, batch_size=6, learning_rate=0.2, warmup_steps=3)
every_form = pytest.mark.parametrize("form", ["core", "diag"])


@dataclass(frozen=True)
class Done:
    data: bytes
    file: CoefficientFile
    report: DistillReport
    news: list[Progress]


@dataclass(frozen=True)
class MadeUp:
    """An adapter of given updates."""

    updates: dict[str, LowRankUpdate]
    name: str = "made-up"
    digest: str = "sha256:" + "0" * 64

    @property
    def sites(self) -> tuple[str, ...]:
        return tuple(self.updates)

    def update(self, site: str) -> LowRankUpdate:
        return self.updates[site]


@pytest.fixture
def distil(base: LoadedBase, basis: Basis, adapter_folder: Path, tmp_path: Path) -> Callable[..., Done]:
    def run(*, prompts: PromptSet = SET, adapter: MadeUp | None = None, basis: Basis = basis, **recipe: object) -> Done:
        path = tmp_path / "new" / "plural.coef.safetensors"
        news: list[Progress] = []
        report = distill_adapter(
            base,
            basis,
            adapter or opened(base, adapter_folder),
            prompts,
            task="plural",
            recipe=replace(QUICK, **recipe),
            max_answer_tokens=4,
            output=path,
            on_progress=news.append,
        )
        return Done(path.read_bytes(), parse_coefficients(path.read_bytes()), report, news)

    return run


def test_an_adapter_inside_the_basis_is_kept_whole(basis: Basis, distil: Callable[..., Done]) -> None:
    generator = torch.Generator().manual_seed(0)
    cores = {site.name: 0.3 * torch.randn(site.core_shape(), generator=generator) for site in basis.spec.sites}
    done = distil(adapter=MadeUp(core_updates(basis, cores)), n_steps=1, learning_rate=1e-6)
    assert done.report.energy_kept == pytest.approx(1.0, abs=1e-2)
    assert done.report.projected.agreement == done.report.distilled.agreement == 1.0
    assert done.report.distilled.kl < 1e-3
    assert next(news.loss for news in done.news if news.stage == "steps") < 1e-3, "it does not start at the projection"
    for site, core in file_cores(done.data, basis).items():
        torch.testing.assert_close(core, cores[site], rtol=0.02, atol=0.02)


def test_of_form_diag_the_energy_is_that_of_the_diagonals(basis: Basis, distil: Callable[..., Done]) -> None:
    cores = {site.name: torch.ones(site.core_shape()) for site in basis.spec.sites}
    done = distil(adapter=MadeUp(core_updates(basis, cores)), form="diag", n_steps=1, learning_rate=1e-6)
    assert done.report.energy_kept == pytest.approx(1 / 5, abs=1e-2), "5 of the 25 numbers of a core are on it"


def test_prompts_and_answers_past_the_models_window_are_refused(base: LoadedBase, distil: Callable[..., Done]) -> None:
    long = (7,) * (MAX_POSITIONS - 3)
    complaint = f"may have {MAX_POSITIONS + 1} tokens, the attention window is {MAX_POSITIONS}; lower --max-answer"
    with pytest.raises(SetupError, match=complaint):
        distil(prompts=replace(SET, held_out=[long]))
    base.text_config.sliding_window = 8
    distil(n_steps=1)
    base.text_config.sliding_window = 7
    with pytest.raises(SetupError, match="may have 8 tokens, the attention window is 7"):
        distil()


@every_form
def test_training_brings_the_answers_closer_to_the_originals(form: str, distil: Callable[..., Done]) -> None:
    done = distil(form=form)
    assert done.file.form == form
    assert done.report.projected.kl > 0.5, "the projection is too good to tell anything"
    assert done.report.distilled.kl < (0.6 if form == "core" else 0.9) * done.report.projected.kl
    losses = [news.loss for news in done.news if news.stage == "steps"]
    assert len(losses) == QUICK.n_steps and losses[-1] < losses[0]


@every_form
def test_what_is_reported_is_what_the_file_does(
    form: str, base: LoadedBase, basis: Basis, adapter_folder: Path, distil: Callable[..., Done]
) -> None:
    done = distil(form=form, n_steps=2)
    adapter = opened(base, adapter_folder)
    original = {site: adapter.update(site) for site in adapter.sites}
    with applied_updates(base, original):
        answers = greedy_answers(base, PROMPTS, max_new_tokens=4)
    answered = [TokenExample(prompt, answer, "") for prompt, answer in zip(PROMPTS, answers, strict=True)]
    stored = core_updates(basis, file_cores(done.data, basis))
    assert measure_fidelity(base, original, stored, answered) == done.report.distilled


def test_the_file_tells_where_it_comes_from(
    base: LoadedBase, adapter_folder: Path, distil: Callable[..., Done]
) -> None:
    prompts = PromptSet(PROMPTS[:4], PROMPTS[4:], {"source": "given"})
    done = distil(prompts=prompts, n_steps=3, seed=5)
    facts = done.file.provenance
    assert done.file.task == "plural" and facts["method"] == "distill"
    assert facts["adapter"]["digest"] == opened(base, adapter_folder).digest
    assert facts["adapter"]["name"] == "plural"
    assert facts["prompts"]["source"] == "given"
    assert (facts["prompts"]["n_learning"], facts["prompts"]["n_held_out"]) == (4, 2)
    assert facts["recipe"]["seed"] == 5 and facts["recipe"]["n_steps"] == 3
    assert facts["fidelity"]["distilled"]["kl"] == done.report.distilled.kl
    assert facts["fidelity"]["projected"]["n_prompts"] == 2
    last = {news.stage: (news.done, news.total) for news in done.news}
    assert last == {"held-out answers": (2, 2), "answers": (4, 4), "distributions": (4, 4), "steps": (3, 3)}


def test_the_same_seed_gives_the_same_numbers(distil: Callable[..., Done]) -> None:
    first, again = distil(n_steps=3, batch_size=2), distil(n_steps=3, batch_size=2)
    assert np.array_equal(first.file.values, again.file.values)
    assert not np.array_equal(first.file.values, distil(n_steps=3, batch_size=2, seed=1).file.values)


def test_sites_that_the_adapter_leaves_alone_start_at_zero(
    base: LoadedBase, basis: Basis, distil: Callable[..., Done]
) -> None:
    updates = random_updates(base)
    sites = list(updates)
    done = distil(adapter=MadeUp({site: updates[site] for site in sites[:7]}), n_steps=1, learning_rate=1e-9)
    cores = file_cores(done.data, basis)
    assert all(cores[site].abs().max() > 0 for site in sites[:7])
    assert all(cores[site].abs().max() < 1e-6 for site in sites[7:])


@pytest.mark.parametrize(
    ("prompts", "complaint"),
    [
        (PromptSet(PROMPTS, [], {}), "6 prompts to learn on, 0 to measure on: needs at least one of each"),
        (PromptSet([], PROMPTS, {}), "0 prompts to learn on, 6 to measure on"),
    ],
)
def test_too_few_prompts_are_refused(prompts: PromptSet, complaint: str, distil: Callable[..., Done]) -> None:
    with pytest.raises(SetupError, match=complaint):
        distil(prompts=prompts)


def test_a_basis_that_lacks_a_site_of_the_adapter_is_refused(
    base: LoadedBase, basis: Basis, distil: Callable[..., Done]
) -> None:
    sites = basis.spec.sites[:5]
    names = [site.name for site in sites]
    spec = replace(basis.spec, sites=sites, base_fingerprint=base_fingerprint(base.model, names))
    with pytest.raises(
        SetupError, match=r"adapter plural has 9 sites that the basis has not, first model\.layers\.0\.mlp"
    ):
        distil(basis=Basis(spec, {name: basis.factors[name] for name in names}))


def test_a_basis_for_other_weights_is_refused(base: LoadedBase, distil: Callable[..., Done]) -> None:
    base.model.get_submodule("model.layers.0.mlp.up_proj").weight.data.add_(1.0)
    with pytest.raises(InvalidBasis, match="the basis is for base weights"):
        distil()
