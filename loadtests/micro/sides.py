"""The sides that are compared: the linear layers of a few decoder layers, bare and under tasks, each in its own way."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from loadtests.common.errors import LoadTestError
from loadtests.common.steps import CPU, Shape, make_batch, native_decoder, random_tokens
from loadtests.micro.lora import LoraSite, lora_gather, lora_loop
from onebasis.coefficients.arena import Arena
from onebasis.coefficients.basis_file import BasisSpec, SiteSpec
from onebasis.coefficients.residual_cache import LowRank, ResidentResidual
from onebasis.core.ids import BASE_SLOT, Digest
from onebasis.kernels.reference import apply_cores_ref
from onebasis.model.adapted import StepTasks, adapt_model
from onebasis.model.batch import ResidualRun
from onebasis.model.factors import Basis, SiteFactors
from onebasis.model.loader import LoadedBase
from onebasis.model.sites import linear_sites

TORCH_BARE, TORCH_TASKS = "torch bare", "torch shared basis"
LOOP, GATHER = "LoRA loop over tasks", "LoRA gather (BGMV)"
NATIVE_BARE, NATIVE_TASKS = "native bare", "native shared basis"
TORCH_RESIDUAL, NATIVE_RESIDUAL = "torch shared basis, 1 residual", "native shared basis, 1 residual"
BARE_OF = {
    TORCH_TASKS: TORCH_BARE,
    TORCH_RESIDUAL: TORCH_BARE,
    LOOP: TORCH_BARE,
    GATHER: TORCH_BARE,
    NATIVE_TASKS: NATIVE_BARE,
    NATIVE_RESIDUAL: NATIVE_BARE,
}
"""What the cost of a side's tasks is measured from."""

_N_CACHED = 64
_STRANGE = Digest("sha256:" + "0" * 64)
_TOLERANCE = 0.03  # of bfloat16 products, relative to the largest number


@dataclass(frozen=True, slots=True)
class Cell:
    """n_tokens single tokens, of n_tasks tasks in turn."""

    n_tokens: int
    n_tasks: int


class Sides:
    """Random layers of a model's sizes, in bfloat16, with a basis of width k and LoRA adapters of rank r. In the sides
    with a residual the first token's task has one at every site.

    Args:
        config: of a Llama-shaped model; its number of layers is what one call of a side computes.
        rank: of LoRA. residual_rank: of the residual. n_tasks: most in a cell. n_tokens: most in a cell.
    """

    def __init__(
        self,
        config: PreTrainedConfig,
        *,
        k: int,
        rank: int,
        residual_rank: int,
        n_tasks: int,
        n_tokens: int,
        seed: int,
    ) -> None:
        torch.manual_seed(seed)
        self._n_vocab = int(config.vocab_size)
        plain = _random_model(config)
        self._adapters = {
            name: LoraSite(
                layer.weight.detach().clone(),
                _random(n_tasks, rank, layer.in_features),
                _random(n_tasks, layer.out_features, rank),
            )
            for name, layer in linear_sites(plain).items()
        }
        self._basis = _random_basis(plain, k)
        self._residual = _random_residual(plain, residual_rank)
        self._arena = Arena(self._basis.spec, n_slots=n_tasks, device=CPU)
        self._arena.table[:n_tasks].normal_(std=0.1)
        self._step = StepTasks(self._arena.base_row)
        self._adapted = _random_model(config)
        self._adapted.load_state_dict(plain.state_dict())
        adapt_model(self._adapted, self._basis, self._arena.site_cores, self._step)
        n_blocks = n_tokens * Shape(1, _N_CACHED, 1, room=_N_CACHED + 1).n_blocks
        base = LoadedBase(plain, cast(PreTrainedTokenizerBase, None), "random")
        self._native = native_decoder(base, self._basis, self._arena, n_blocks=n_blocks, max_step_tokens=n_tokens)

    def of(self, cell: Cell, seed: int) -> Mapping[str, Callable[[], object]]:
        """One call each for every side; all layers once.

        Raises:
            LoadTestError: two ways to the same numbers disagree, so timing them would mean nothing.
        """
        slots = [i % cell.n_tasks for i in range(cell.n_tokens)]
        shape = Shape(cell.n_tokens, _N_CACHED, 1, room=_N_CACHED + 1)
        tokens = random_tokens(cell.n_tokens, 1, n_vocab=self._n_vocab, seed=seed)
        bare, mixed = make_batch(shape, tokens, [BASE_SLOT] * cell.n_tokens), make_batch(shape, tokens, slots)
        private = replace(mixed, residuals=(ResidualRun(0, 1, self._residual),))
        tasks = torch.tensor(slots)
        inputs = {name: _random(cell.n_tokens, site.weight.shape[1]) for name, site in self._adapters.items()}
        inputs = _shared_inputs(inputs)

        def torch_side(batch: Any) -> dict[str, Tensor]:
            self._step.begin(batch)
            return {name: self._adapted.get_submodule(name)(x) for name, x in inputs.items()}

        def lora_side(way: Callable[[LoraSite, Tensor, Tensor], Tensor]) -> dict[str, Tensor]:
            return {name: way(self._adapters[name], x, tasks) for name, x in inputs.items()}

        self._check(torch_side(bare), torch_side(mixed), inputs, tasks)
        _agree("LoRA loop and gather", lora_side(lora_loop), lora_side(lora_gather))
        shared = self._native.forward(mixed).clone()
        if not _differ(self._native.forward(bare), shared):
            raise LoadTestError("the native step gives the same logits with and without tasks")
        with_residual = self._native.forward(private)
        if not _differ(with_residual[:1], shared[:1]) or not torch.equal(with_residual[1:], shared[1:]):
            raise LoadTestError("a residual has to change the logits of its own token, and of no other")
        return {
            TORCH_BARE: lambda: torch_side(bare),
            TORCH_TASKS: lambda: torch_side(mixed),
            TORCH_RESIDUAL: lambda: torch_side(private),
            LOOP: lambda: lora_side(lora_loop),
            GATHER: lambda: lora_side(lora_gather),
            NATIVE_BARE: lambda: self._native.forward(bare),
            NATIVE_TASKS: lambda: self._native.forward(mixed),
            NATIVE_RESIDUAL: lambda: self._native.forward(private),
        }

    def _check(
        self, bare: Mapping[str, Tensor], mixed: Mapping[str, Tensor], inputs: Mapping[str, Tensor], tasks: Tensor
    ) -> None:
        """The update of the last site against its definition."""
        name = list(inputs)[-1]
        factors, cores = self._basis.factors[name], self._arena.site_cores[name]
        update = apply_cores_ref(inputs[name], factors.v, factors.u, cores, tasks.int())
        _agree("shared basis and its definition", {name: mixed[name]}, {name: bare[name] + update})


def _random_model(config: PreTrainedConfig) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    return model.requires_grad_(requires_grad=False).eval()


def _random_residual(model: PreTrainedModel, rank: int) -> ResidentResidual:
    sites = {
        name: LowRank(_random(rank, layer.in_features), _random(rank, layer.out_features))
        for name, layer in linear_sites(model).items()
    }
    return ResidentResidual(sites, sum(factors.a.nbytes + factors.b.nbytes for factors in sites.values()))


def _random_basis(model: PreTrainedModel, k: int) -> Basis:
    factors = {
        name: SiteFactors(_random(k, layer.in_features), _random(k, layer.out_features))
        for name, layer in linear_sites(model).items()
    }
    sites = tuple(SiteSpec(name, f.v.shape[1], f.u.shape[1], k, k) for name, f in factors.items())
    return Basis(BasisSpec(_STRANGE, 0, "random", "random", _STRANGE, sites, {}), factors)


def _random(*shape: int) -> Tensor:
    numbers: Tensor = torch.randn(shape) / shape[-1] ** 0.5
    return numbers.bfloat16()


def _shared_inputs(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Layers of one width get the same tensor, as q, k and v of a layer do: grouped layers are computed once then."""
    by_width: dict[int, Tensor] = {}
    return {name: by_width.setdefault(x.shape[1], x) for name, x in inputs.items()}


def _agree(what: str, found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    for name, tensor in wanted.items():
        error = (found[name].float() - tensor.float()).abs().max() / tensor.float().abs().max()
        if not float(error) < _TOLERANCE:
            raise LoadTestError(f"{what} disagree at {name}: relative error {float(error):.3g}")


def _differ(one: Tensor, other: Tensor) -> bool:
    return bool(other.isfinite().all()) and not torch.equal(one, other)
