"""Training changes coefficients alone, learns, repeats itself; what it stores is what was scored and is served."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import Qwen2Config

from onebasis.coefficients.arena import Arena
from onebasis.coefficients.format import CoefficientFile, parse_coefficients
from onebasis.coefficients.validate import bind
from onebasis.core.errors import InvalidBasis, InvalidData, SetupError
from onebasis.fitting.data import TokenExample
from onebasis.fitting.packing import pack
from onebasis.fitting.training.answers import AnswerLoss, check_window
from onebasis.fitting.training.job import fit_task
from onebasis.fitting.training.learner import Learner
from onebasis.fitting.training.loop import StepLoss, TaskBatch, optimise
from onebasis.fitting.training.recipe import FitRecipe
from onebasis.fitting.training.run import FitReport
from onebasis.fitting.training.sites import BasisSite, TrainableSite, TrainedTasks, trainable_sites
from onebasis.fitting.training.task_numbers import TaskNumbers
from onebasis.model.adapted import StepTasks, adapt_model, merged_weight
from onebasis.model.batch import ForwardBatch, PrefillChunk
from onebasis.model.decoder import Decoder
from onebasis.model.factors import Basis, SiteFactors, load_basis
from onebasis.model.kv_cache import KVCache
from onebasis.model.loader import LoadedBase
from onebasis.model.sites import linear_sites
from tests.api.tiny_model import EOS_ID, MAX_POSITIONS, TinyModel
from tests.fitting.tiny import CPU, N_SITES, save_family, tiny_base, tiny_basis, token_example

PROMPT = torch.tensor([[7, 30, 8, 50, 9]])
EXAMPLES = [token_example([7, 8, 30 + i], [60 + 3 * i, 61 + 5 * i, EOS_ID], chr(97 + i)) for i in range(6)]
QUICK = FitRecipe(n_steps=12, batch_size=3, learning_rate=0.05, warmup_steps=2)
every_form = pytest.mark.parametrize("form", ["core", "diag"])


@torch.no_grad()
def logits(base: LoadedBase) -> Tensor:
    return base.model(input_ids=PROMPT).logits[0]


def ignore(_: object) -> None: ...


def fit(
    base: LoadedBase,
    trained: TrainedTasks,
    examples: Sequence[TokenExample],
    recipe: FitRecipe,
    on_step: Callable[[StepLoss], None],
) -> Learner[TokenExample]:
    """Train the one task of `trained`."""
    learner = Learner("t", trained.tasks[0], examples, recipe)
    optimise([learner], AnswerLoss(base, trained), on_step)
    return learner


def weights(base: LoadedBase) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in base.model.state_dict().items()}


@dataclass(frozen=True)
class Trained:
    """One quick fit through `fit_task`."""

    file: CoefficientFile
    report: FitReport
    scored: list[NDArray[np.float32]]  # the coefficients in the model at each of the scorer's calls; [] for none


@pytest.fixture
def train(base: LoadedBase, basis: Basis, tmp_path: Path) -> Callable[..., Trained]:
    def run(**changes: object) -> Trained:
        path = tmp_path / "new" / "task.coef.safetensors"
        scored: list[NDArray[np.float32]] = []

        def note(_output: str, _example: TokenExample) -> bool:
            site = next((module for module in base.model.modules() if isinstance(module, TrainableSite)), None)
            is_trained = site is not None and site.trained.spans != ()
            scored.append(site.trained.tasks[0].flat.detach().numpy() if is_trained else np.zeros(0, np.float32))
            return is_trained

        recipe = replace(QUICK, **changes)
        report = fit_task(
            base,
            basis,
            EXAMPLES[:4],
            EXAMPLES[4:],
            task="t",
            recipe=recipe,
            output=path,
            on_step=ignore,
            is_correct=note,
        )
        return Trained(parse_coefficients(path.read_bytes()), report, scored)

    return run


# ---------------------------------------------------------------- the site


@every_form
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_coefficients_of_zero_leave_every_bit_as_it_was(form: str, dtype, llama: TinyModel) -> None:
    base = tiny_base(llama.folder, dtype)
    basis = load_basis(llama.basis_path, dtype=dtype, device=CPU)
    bare = logits(base)
    with trainable_sites(base, basis, form) as trained:
        assert len(trained.tasks[0].parts) == N_SITES
        with trained.use(0):
            assert torch.equal(logits(base), bare)
            trained.tasks[0].flat.data.fill_(0.5)
            assert not torch.equal(logits(base), bare)
        assert torch.equal(logits(base), bare), "outside of the block the model is the bare one"


@every_form
@pytest.mark.parametrize(("k_in", "k_out"), [(5, 3), (3, 5), (4, 4)])
def test_a_site_is_its_merged_weight(form: str, k_in: int, k_out: int) -> None:
    torch.manual_seed(0)
    layer = torch.nn.Linear(12, 20)
    factors = SiteFactors(v=torch.randn(k_in, 12), u=torch.randn(k_out, 20))
    trained = TrainedTasks([TaskNumbers([(k_out, k_in) if form == "core" else (min(k_out, k_in),)])])
    site = BasisSite(layer, trained, 0, factors, mixing=None)
    core = torch.randn(k_out, k_in)
    if form == "diag":
        n = min(k_in, k_out)
        core = torch.zeros(k_out, k_in)
        core[range(n), range(n)] = torch.randn(n)
    trained.tasks[0].load((core if form == "core" else core.diagonal()).flatten().numpy())
    x = torch.randn(2, 7, 12)
    merged = torch.nn.functional.linear(x, merged_weight(layer.weight, factors, core), layer.bias)
    with trained.use(0):
        torch.testing.assert_close(site(x), merged, rtol=1e-5, atol=1e-5)


@every_form
def test_only_coefficients_get_gradients(form: str, base: LoadedBase, basis: Basis) -> None:
    with trainable_sites(base, basis, form) as trained:
        assert not any(parameter.requires_grad for parameter in base.model.parameters())
        numbers = trained.tasks[0]
        AnswerLoss(base, trained)([TaskBatch(0, EXAMPLES)])[0].backward()
        assert all(part.grad.abs().sum() > 0 for part in numbers.parts)
        assert torch.equal(torch.cat([part.grad.flatten() for part in numbers.parts]), numbers.flat.grad)
    assert all(parameter.grad is None for parameter in base.model.parameters())
    assert not any(factor.requires_grad for site in basis.factors.values() for factor in (site.u, site.v))


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_as_before_when_the_block_ends(fails: bool, base: LoadedBase, basis: Basis) -> None:
    layers, before, bare = linear_sites(base.model), weights(base), logits(base)

    def stop(_: object) -> None:
        if fails:
            raise RuntimeError("the disk is full")

    try:
        with trainable_sites(base, basis, "core") as trained:
            fit(base, trained, EXAMPLES, QUICK, stop)
    except RuntimeError:
        assert fails
    after = linear_sites(base.model)
    assert list(after) == list(layers)
    assert all(after[name] is layer for name, layer in layers.items())
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(base).items())
    assert torch.equal(logits(base), bare)
    assert not base.model.training


def test_the_models_biases_stay(llama: TinyModel, tmp_path: Path) -> None:
    base = tiny_base(save_family(llama, tmp_path / "qwen2", Qwen2Config))
    basis = tiny_basis(base, tmp_path / "basis")
    bare = logits(base)
    with trainable_sites(base, basis, "core") as trained:
        with trained.use(0):
            assert torch.equal(logits(base), bare)
        fitted = fit(base, trained, EXAMPLES, QUICK, ignore)
    assert fitted.final_loss < fitted.losses[0]


# ---------------------------------------------------------------- learning


@every_form
def test_training_learns(form: str, base: LoadedBase, basis: Basis) -> None:
    recipe = FitRecipe(form=form, n_steps=100, batch_size=4, learning_rate=0.2 if form == "core" else 0.4)
    news: list[int] = []
    losses: list[float] = []
    with trainable_sites(base, basis, form) as trained:
        bare = AnswerLoss(base, trained).of_all(0, EXAMPLES[:4])
        fitted = fit(
            base, trained, EXAMPLES[:4], recipe, lambda step: (news.append(step.step), losses.append(step.loss))
        )
        after = AnswerLoss(base, trained).of_all(0, EXAMPLES[:4])
    assert news == list(range(1, 101))
    assert fitted.losses[0] == losses[0] == pytest.approx(bare, rel=1e-5), "the first step starts at the bare model"
    assert fitted.final_loss == pytest.approx(sum(losses[-10:]) / 10)
    assert after < (0.1 if form == "core" else 0.5) * bare


def test_fewer_examples_than_a_batch(base: LoadedBase, basis: Basis) -> None:
    with trainable_sites(base, basis, "core") as trained:
        fitted = fit(base, trained, EXAMPLES[:1], replace(QUICK, batch_size=64), ignore)
    assert fitted.final_loss < fitted.losses[0]


def test_an_empty_answer_can_be_learnt(base: LoadedBase, basis: Basis) -> None:
    silent = [replace(example, answer_ids=(EOS_ID,)) for example in EXAMPLES]
    with trainable_sites(base, basis, "core") as trained:
        fitted = fit(base, trained, silent, replace(QUICK, n_steps=30, learning_rate=0.1), ignore)
    assert fitted.final_loss < 0.5 * fitted.losses[0]


def test_every_example_comes_once_before_any_comes_again(base: LoadedBase, basis: Basis, monkeypatch) -> None:
    seen: list[TokenExample] = []
    monkeypatch.setattr("onebasis.fitting.training.answers.pack", lambda batch: (seen.extend(batch), pack(batch))[1])
    with trainable_sites(base, basis, "diag") as trained:
        fit(base, trained, EXAMPLES, replace(QUICK, n_steps=6, batch_size=4), ignore)
    epochs = [seen[start : start + 6] for start in (0, 6, 12, 18)]
    assert all(sorted(epoch, key=EXAMPLES.index) == EXAMPLES for epoch in epochs)
    assert epochs[0] != epochs[1], "not shuffled"


@every_form
def test_the_same_seed_gives_the_same_numbers(form: str, train: Callable[..., Trained]) -> None:
    first, other = train(form=form), train(form=form, seed=1)
    torch.manual_seed(99)
    again = train(form=form)
    assert np.array_equal(again.file.values, first.file.values)
    assert not np.array_equal(other.file.values, first.file.values)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"form": "sum"}, "form 'sum': needs one of core, diag, vector"),
        ({"form": ""}, "form ''"),
        ({"learning_rate": 0.0}, "learning rate 0.0: needs a finite number above 0"),
        ({"learning_rate": -1.0}, "learning rate -1.0"),
        ({"learning_rate": float("nan")}, "learning rate nan"),
        ({"learning_rate": float("inf")}, "learning rate inf"),
        ({"n_steps": 0}, "0 steps of 8 examples"),
        ({"batch_size": 0}, "200 steps of 0 examples"),
        ({"evaluate_every": 0}, "an evaluation every 0 steps: needs at least 1"),
        ({"evaluate_every": 5, "patience": 0}, "patience of 0 evaluations: needs at least 1"),
        ({"patience": 2}, "patience of 2 evaluations: needs at least 1, and evaluations to count"),
    ],
)
def test_a_recipe_that_learns_nothing_can_not_be_written_down(changes: dict[str, object], complaint: str) -> None:
    with pytest.raises(SetupError, match=complaint):
        FitRecipe(**changes)


def test_training_that_diverges_ends_at_once(base: LoadedBase, basis: Basis) -> None:
    news: list[object] = []
    with (
        trainable_sites(base, basis, "core") as trained,
        pytest.raises(SetupError, match=r"the loss of step \d+ is (nan|inf); lower the learning rate"),
    ):
        fit(base, trained, EXAMPLES, replace(QUICK, n_steps=500, learning_rate=1e30, warmup_steps=0), news.append)
    assert len(news) < 10


def test_an_example_past_the_models_window_is_refused(base: LoadedBase, basis: Basis, tmp_path: Path) -> None:
    fits = token_example([7] * (MAX_POSITIONS - 2), [8, EOS_ID])
    too_long = token_example([7] * (MAX_POSITIONS - 1), [8, EOS_ID])
    with trainable_sites(base, basis, "diag") as trained:
        check_window(base, "t", [fits])
        fit(base, trained, [fits], replace(QUICK, n_steps=1), ignore)
    complaint = f"t: the longest example has {MAX_POSITIONS + 1} tokens, the attention window is {MAX_POSITIONS}"
    with pytest.raises(InvalidData, match=complaint):
        fit_task(base, basis, [fits, too_long], [], task="t", recipe=QUICK, output=tmp_path / "t", on_step=ignore)


# ---------------------------------------------------------------- the file


@every_form
def test_what_is_stored_is_what_was_scored(form: str, train: Callable[..., Trained]) -> None:
    trained = train(form=form)
    assert trained.file.values.dtype == np.float16
    assert [len(numbers) for numbers in trained.scored] == [0, 0, *[len(trained.file.values)] * 2]
    for numbers in trained.scored[2:]:
        assert np.array_equal(numbers, trained.file.numbers())
    assert np.abs(trained.file.numbers()).max() > 0.01


def test_the_file_says_where_it_is_from(train: Callable[..., Trained], basis: Basis) -> None:
    trained = train()
    file, report = trained.file, trained.report
    assert (file.form, file.task, file.k, file.sites) == ("core", "t", None, None)
    assert (file.basis, file.base_fingerprint) == (basis.spec.digest, basis.spec.base_fingerprint)
    assert (report.size_bytes, report.base_score, report.task_score) == (file.size_bytes, 0.0, 1.0)
    provenance = file.provenance
    assert provenance["scores"] == {"metric": "exact_match", "n": 2, "base": 0.0, "task": 1.0}
    assert provenance["data"].items() >= {"n_train": 4, "n_validation": 2}.items()
    assert provenance["recipe"] == QUICK.as_provenance() | {"compute_dtype": "float32"}
    assert provenance["loss"]["first"] == pytest.approx(report.training.first_loss, abs=1e-4)
    assert provenance["tool"].startswith("onebasis ")


def test_without_validation_there_are_no_scores(base: LoadedBase, basis: Basis, tmp_path: Path) -> None:
    path = tmp_path / "t.coef.safetensors"
    report = fit_task(base, basis, EXAMPLES, [], task="t", recipe=QUICK, output=path, on_step=ignore)
    assert (report.base_score, report.task_score) == (None, None)
    scores = parse_coefficients(path.read_bytes()).provenance["scores"]
    assert scores == {"metric": "exact_match", "n": 0, "base": None, "task": None}


def test_stored_coefficients_come_back(base: LoadedBase, basis: Basis) -> None:
    values = np.random.default_rng(0).normal(size=N_SITES * 25).astype(np.float16)
    with trainable_sites(base, basis, "core") as trained:
        trained.tasks[0].load(values)
        assert np.array_equal(trained.tasks[0].stored(), values)
        assert trained.tasks[0].parts[1][2, 3] == float(values[25 + 2 * 5 + 3]), "row-major, in the basis's order"


def test_a_basis_for_other_weights_is_refused_before_the_work(basis: Basis, llama: TinyModel, tmp_path: Path) -> None:
    """Of the same shape, so that nothing else would tell."""
    other = tiny_base(save_family(llama, tmp_path / "other", max_position_embeddings=MAX_POSITIONS))
    path = tmp_path / "t.coef.safetensors"
    with pytest.raises(InvalidBasis, match="the basis is for base weights sha256:"):
        fit_task(other, basis, EXAMPLES, [], task="t", recipe=QUICK, output=path, on_step=pytest.fail)
    assert not path.exists()


@every_form
def test_the_server_says_what_the_trained_model_said(
    form: str, train: Callable[..., Trained], base: LoadedBase, basis: Basis, llama: TinyModel
) -> None:
    file = train(form=form).file
    bound = bind(file, basis.spec)
    bare = logits(base)
    with trainable_sites(base, basis, form) as tasks:
        tasks.tasks[0].load(file.values)
        with tasks.use(0):
            trained = logits(base)
    assert (trained - bare).abs().max() > 0.1

    served = tiny_base(llama.folder)
    arena = Arena(basis.spec, n_slots=3, device=CPU)
    step = StepTasks(arena.base_row)
    adapt_model(served.model, basis, arena.site_cores, step)
    cache = KVCache(served.text_config, n_blocks=2, block_size=4, dtype=torch.float32, device=CPU)
    decoder = Decoder(served, cache, step)
    got = decoder.forward(whole_prompt(arena.acquire(bound)))
    torch.testing.assert_close(got, trained, rtol=1e-4, atol=1e-4)


def whole_prompt(slot: int) -> ForwardBatch:
    """PROMPT as one chunk in blocks 1 and 0, all of its logits wanted."""
    n_tokens = PROMPT.shape[1]
    rows = torch.arange(n_tokens)
    return ForwardBatch(
        token_ids=PROMPT[0],
        positions=rows,
        kv_rows=torch.tensor([4, 5, 6, 7, 0]),
        token_slots=torch.full((n_tokens,), slot, dtype=torch.int32),
        logit_rows=rows,
        decodes=None,
        chunks=(PrefillChunk(0, n_tokens, torch.tensor([1, 0]), n_tokens, slot),),
    )
