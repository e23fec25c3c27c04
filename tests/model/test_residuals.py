"""Tasks with a private low-rank update beside the basis, through batch layout and both decoders."""

import copy

import pytest
import torch
from torch import nn

from onebasis.coefficients.residual_cache import LowRank, ResidentResidual, ResidualCache
from onebasis.kernels.select import CoreProduct
from onebasis.kernels.torch_batched import TokenTasks
from onebasis.model.adapted import LinearGroup, StepTasks
from onebasis.model.batch import ResidualRun
from onebasis.model.decode_graphs import DecodeGraphs
from tests.engine.builders import make_request
from tests.model.families import CPU, NATIVE_FAMILIES, logits_by_transformers, prompt, rounded_base, tiny_base
from tests.model.stepping import Stepper
from tests.model.tasks import merged_copy, random_basis, random_task
from tests.model.test_decode_graphs import Replays
from tests.model.test_families import LENGTHS
from tests.model.test_native_decoder import (
    assert_each_follows_its_own,
    assert_the_same_bits_alone,
    mixed_arrivals,
    rms,
    rounded_basis,
)
from tests.native import native_library

RANKS = {"q_proj": 1, "v_proj": 5, "o_proj": 2, "layers.1.mlp.up_proj": 4, "down_proj": 3}
"""Two of three sites of one group, one of two in one layer, and groups of a single site."""

SIZES = (("gate", 16), ("up", 24))


@pytest.fixture(scope="module")
def library():
    return native_library()


def world(spec):
    """Two tasks with residuals, one of the basis alone."""
    return [random_task(spec, 1, ranks=RANKS), random_task(spec, 2), random_task(spec, 3, ranks={"gate_proj": 2})]


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_in_torch_every_sequence_of_a_mixed_batch_follows_its_own_merged_model(family, tmp_path):
    base = tiny_base(family)
    basis = random_basis(base, tmp_path)
    tasks = world(basis.spec)
    plain = copy.deepcopy(base.model)
    merged = [*(merged_copy(plain, basis, task) for task in tasks), plain]
    stepper = Stepper(base, basis)
    traces = stepper.run(mixed_arrivals([*(task.resolved for task in tasks), None]))
    assert stepper.n_mixed_steps > 3
    for i, trace in enumerate(traces.values()):
        wanted = logits_by_transformers(merged[i % 4], trace.token_ids)
        torch.testing.assert_close(trace.logits, wanted, rtol=1e-4, atol=1e-4)
        assert trace.answer == wanted[len(trace.prompt_ids) - 1 :].argmax(-1).tolist()
    without = merged_copy(plain, basis, random_task(basis.spec, 1))
    assert rms(traces["request-0"].logits - logits_by_transformers(without, traces["request-0"].token_ids)) > 0.1


@pytest.mark.parametrize("family", NATIVE_FAMILIES)
def test_in_cpp_every_sequence_of_a_mixed_batch_follows_its_own_merged_model(family, library, tmp_path):
    base = rounded_base(family)
    rounded = copy.deepcopy(base.model)
    basis = rounded_basis(base, tmp_path, k=5)
    tasks = world(basis.spec)
    exact = [merged_copy(copy.deepcopy(rounded).float(), basis, task) for task in tasks]
    exact.append(copy.deepcopy(rounded).float())
    traces = Stepper(base, basis, library=library).run(mixed_arrivals([*(task.resolved for task in tasks), None]))
    assert_each_follows_its_own(traces, exact)


def test_in_cpp_a_sequence_has_the_same_bits_alone_and_among_others(library, tmp_path):
    base = rounded_base("llama")
    basis = rounded_basis(base, tmp_path)
    arrivals = mixed_arrivals([*(task.resolved for task in world(basis.spec)), None])
    assert_the_same_bits_alone(base, basis, arrivals, library=library)


@pytest.mark.parametrize("is_native", [True, False])
def test_a_neighbours_residual_changes_no_bit_of_others(is_native, library, tmp_path):
    base = rounded_base("llama") if is_native else tiny_base("llama")
    basis = rounded_basis(base, tmp_path) if is_native else random_basis(base, tmp_path)
    others = [random_task(basis.spec, 2).resolved, None]
    traces = []
    for ranks in ({}, RANKS):
        stepper = Stepper(copy.deepcopy(base), basis, library=library if is_native else None)
        arrivals = [
            (0, make_request(str(i), prompt(7, seed=i), max_tokens=6, task=task))
            for i, task in enumerate([random_task(basis.spec, 1, ranks=ranks).resolved, *others])
        ]
        traces.append(stepper.run(arrivals))
    without, with_residual = traces
    for name in ("1", "2"):
        assert torch.equal(without[name].logits, with_residual[name].logits)
    assert not torch.equal(without["0"].logits, with_residual["0"].logits), "the residual must matter"


def test_in_torch_and_bfloat16_a_residual_goes_to_the_columns_of_its_site_in_its_rows():
    torch.manual_seed(0)
    layers = {name: nn.Linear(32, n, bias=False, dtype=torch.bfloat16) for name, n in SIZES}
    residual = ResidentResidual({"up": LowRank(torch.randn(3, 32).bfloat16(), torch.randn(3, 24).bfloat16())}, 0)
    step = StepTasks()
    group = LinearGroup(layers, [], step)
    x = torch.randn(1, 5, 32).bfloat16()
    bare = [group.output(i, x) for i in range(2)]
    step.product = CoreProduct(TokenTasks(torch.zeros(5, dtype=torch.int64), ()), base_row=0)
    step.residuals = (ResidualRun(1, 3, residual),)
    gate, up = (group.output(i, x) for i in range(2))
    factors = residual.sites["up"]
    wanted = bare[1].float()
    wanted[0, 1:3] += x[0, 1:3].float() @ factors.a.float().T @ factors.b.float()
    torch.testing.assert_close(up.float(), wanted, rtol=3e-2, atol=0.2)
    assert torch.equal(gate, bare[0])
    assert torch.equal(up[0, [0, 3, 4]], bare[1][0, [0, 3, 4]])


def test_steps_with_residuals_are_not_replayed(tmp_path):
    basis = random_basis(tiny_base(), tmp_path)
    tasks = [random_task(basis.spec, 1, ranks=RANKS).resolved, None, random_task(basis.spec, 2).resolved]
    arrivals = [
        (at_step, make_request(str(i), prompt(n_prompt, seed=i), max_tokens=n_output, task=tasks[i % 3]))
        for i, (at_step, n_prompt, n_output) in enumerate(LENGTHS)
    ]
    wanted = Stepper(tiny_base(), basis).run(arrivals)
    stepper, replays = Stepper(tiny_base(), basis), Replays()
    stepper._decoder = DecodeGraphs(stepper._decoder, max_seqs=4, max_model_len=64, with_tasks=True, record=replays)
    for name, trace in stepper.run(arrivals).items():
        assert trace.answer == wanted[name].answer
        torch.testing.assert_close(trace.logits, wanted[name].logits, rtol=1e-5, atol=5e-5)
    assert replays.replayed, "steps without any still are"


def test_residuals_are_held_in_the_models_type_and_shared_by_digest(tmp_path):
    basis = random_basis(tiny_base(), tmp_path)
    task = random_task(basis.spec, 1, ranks={"q_proj": 3})
    cache = ResidualCache(limit_bytes=10**6, dtype=torch.bfloat16, device=CPU)
    held = cache.acquire(task.resolved.coefficients)
    assert cache.acquire(task.resolved.coefficients) is held
    assert held.sites.keys() == task.residuals.keys()
    assert held.size_bytes == cache.size_bytes == sum(f.a.nbytes + f.b.nbytes for f in held.sites.values())
    for name, factors in task.residuals.items():
        assert torch.equal(held.sites[name].a, torch.from_numpy(factors.a).bfloat16())
        assert torch.equal(held.sites[name].b, torch.from_numpy(factors.b).bfloat16().T)
