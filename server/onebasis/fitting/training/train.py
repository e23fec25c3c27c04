"""Train one task's cores inside a fixed basis: base weights and factors frozen, dW zero at the start."""

import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from onebasis.core.errors import InvalidData, SetupError
from onebasis.fitting.data import TokenExample
from onebasis.fitting.packing import PackedBatch, pack
from onebasis.model.factors import Basis, SiteFactors
from onebasis.model.loader import LoadedBase
from onebasis.model.sites import site_layer

_FORMS: Final = ("core", "diag")
"""What can be trained."""


@dataclass(frozen=True, slots=True)
class FitRecipe:
    """How to train. Learning rate: linear warm-up over `warmup_steps`, then cosine to a tenth.

    Raises:
        SetupError: a form that no reader knows, or a number with which nothing is learnt.
    """

    form: str = "core"
    n_steps: int = 200
    batch_size: int = 8
    learning_rate: float = 1e-2
    warmup_steps: int = 10
    clip_norm: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.form not in _FORMS:
            raise SetupError(f"form {self.form!r}: needs one of {', '.join(_FORMS)}")
        if not (0 < self.learning_rate < math.inf):
            raise SetupError(f"learning rate {self.learning_rate}: needs a finite number above 0")
        if self.n_steps < 1 or self.batch_size < 1:
            raise SetupError(f"{self.n_steps} steps of {self.batch_size} examples: needs at least one of each")

    def as_provenance(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class StepLoss:
    """News of one training step: its number from 1, mean loss per answer token in nats."""

    step: int
    loss: float


@dataclass(frozen=True, slots=True)
class FittedCores:
    """The result: flat coefficients [n] float16 in the basis's site order, and how it went."""

    values: NDArray[np.float16]
    first_loss: float
    final_loss: float
    train_s: float


class TrainableSite(nn.Module):
    """A frozen linear layer plus U^T S V with S trainable: [k_out, k_in], or its diagonal [min(k_out, k_in)]."""

    def __init__(self, base: nn.Linear, factors: SiteFactors, form: str) -> None:
        super().__init__()
        self.base = base
        self.v = factors.v
        self.u = factors.u
        shape = (factors.u.shape[0], factors.v.shape[0])
        self.coefficients = nn.Parameter(torch.zeros(shape if form == "core" else (min(shape),)))

    def forward(self, x: Tensor) -> Tensor:
        z = F.linear(x, self.v).float()
        if self.coefficients.dim() == 2:
            mixed = F.linear(z, self.coefficients)
        else:
            n = len(self.coefficients)
            mixed = F.pad(z[..., :n] * self.coefficients, (0, self.u.shape[0] - n))
        y: Tensor = self.base(x)
        return y + mixed.to(x.dtype) @ self.u


@contextmanager
def trainable_sites(base: LoadedBase, basis: Basis, form: str) -> Iterator[list[TrainableSite]]:
    """Put a trainable site in place of each site's layer; the model is as before when the block ends."""
    layers = {site.name: site_layer(base.model, site.name) for site in basis.spec.sites}
    sites = [TrainableSite(layer, basis.factors[name], form) for name, layer in layers.items()]
    for name, site in zip(layers, sites, strict=True):
        base.model.set_submodule(name, site)
    try:
        yield sites
    finally:
        for name, layer in layers.items():
            base.model.set_submodule(name, layer)


def fit(
    base: LoadedBase,
    sites: Sequence[TrainableSite],
    examples: Sequence[TokenExample],
    recipe: FitRecipe,
    on_step: Callable[[StepLoss], None],
) -> FittedCores:
    """Train the sites of `trainable_sites` with AdamW on the answers alone.

    Deterministic for a seed on one machine and thread count. Batches are drawn without replacement, epoch by
    epoch. Cores are float32 while they train and float16 in the result.

    Raises:
        InvalidData: an example is longer than the model's attention window.
        SetupError: the training diverged.
    """
    _check_window(base, examples)
    parameters = [site.coefficients for site in sites]
    optimizer = torch.optim.AdamW(parameters, lr=recipe.learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate_factor(step, recipe))
    started_s = time.monotonic()
    losses: list[float] = []
    batches = _batches(examples, recipe)
    for step in range(1, recipe.n_steps + 1):
        loss = answer_loss(base, pack(next(batches)))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(parameters, recipe.clip_norm)
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
        if not math.isfinite(losses[-1]):
            raise SetupError(f"the loss of step {step} is {losses[-1]}; lower the learning rate")
        on_step(StepLoss(step, losses[-1]))
    last = losses[-10:]
    return FittedCores(
        values=flat_coefficients(sites),
        first_loss=losses[0],
        final_loss=sum(last) / len(last),
        train_s=time.monotonic() - started_s,
    )


def answer_loss(base: LoadedBase, batch: PackedBatch) -> Tensor:
    """Mean cross-entropy per answer token, in nats; the head runs on answer tokens alone."""
    dtype = base.model.dtype  # eager attention adds its mask, so True and False would not do
    mask = torch.zeros(batch.mask.shape, dtype=dtype).masked_fill(~batch.mask, torch.finfo(dtype).min)
    logits = base.model(
        input_ids=batch.token_ids,
        position_ids=batch.positions,
        attention_mask=mask,
        use_cache=False,
        logits_to_keep=batch.answer_rows,
    ).logits[0]
    return F.cross_entropy(logits.float(), batch.answer_ids)


def flat_coefficients(sites: Sequence[TrainableSite]) -> NDArray[np.float16]:
    """[n] float16, the sites' coefficients one after another, row-major."""
    flat = torch.cat([site.coefficients.detach().flatten() for site in sites])
    return flat.to(torch.float16).numpy()


def load_coefficients(sites: Sequence[TrainableSite], values: NDArray[np.floating[Any]]) -> None:
    """Set the sites' coefficients from what `flat_coefficients` gave, so that what is scored is what is stored."""
    taken = 0
    with torch.no_grad():
        for site in sites:
            count = site.coefficients.numel()
            numbers = torch.from_numpy(values[taken : taken + count].astype(np.float32))
            site.coefficients.copy_(numbers.view_as(site.coefficients))
            taken += count


def _rate_factor(step: int, recipe: FitRecipe) -> float:
    if step < recipe.warmup_steps:
        return (step + 1) / recipe.warmup_steps
    progress = (step - recipe.warmup_steps) / max(1, recipe.n_steps - recipe.warmup_steps)
    return 0.1 + 0.45 * (1 + math.cos(math.pi * progress))


def _batches(examples: Sequence[TokenExample], recipe: FitRecipe) -> Iterator[list[TokenExample]]:
    """Endless batches; every example once before any comes again."""
    order = random.Random(recipe.seed)
    waiting: list[TokenExample] = []
    size = min(recipe.batch_size, len(examples))
    while True:
        if len(waiting) < size:
            again = list(examples)
            order.shuffle(again)
            waiting += again
        yield waiting[:size]
        del waiting[:size]


def _check_window(base: LoadedBase, examples: Sequence[TokenExample]) -> None:
    longest = max(len(example.prompt_ids) + len(example.answer_ids) for example in examples)
    window = getattr(base.text_config, "sliding_window", None) or base.text_config.max_position_embeddings
    if longest > window:
        raise InvalidData(f"the longest example has {longest} tokens, the attention window is {window}; shorten it")
