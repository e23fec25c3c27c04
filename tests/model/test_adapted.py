import copy

import pytest
import torch
from torch import nn

from onebasis.coefficients.arena import Arena
from onebasis.core.errors import InvalidBasis
from onebasis.core.ids import BASE_SLOT
from onebasis.kernels.select import CoreProduct
from onebasis.kernels.torch_batched import TaskRun, TokenTasks
from onebasis.model.adapted import GroupMember, LinearGroup, StepTasks, adapt_model, merged_weight
from onebasis.model.batch import DecodeGroup, ForwardBatch, PrefillChunk
from onebasis.model.factors import Basis, SiteFactors
from onebasis.model.sites import linear_sites
from tests.model.families import CPU, tiny_base
from tests.model.tasks import random_basis, random_task

SITES = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"]
TASKS = TokenTasks(torch.tensor([1, 2, 0]), (TaskRun(3, 5, 1),))
ROWS = [1, 2, 0, 1, 1]
BASE_ROW = 2


def adapted_model(tmp_path, **config):
    """(untouched layers by name, the same model adapted, basis, arena with two random tasks, step)."""
    base = tiny_base(**config)
    plain = {name: copy.deepcopy(layer) for name, layer in linear_sites(base.model).items()}
    basis = random_basis(base, tmp_path)
    arena = Arena(basis.spec, n_slots=2, device=CPU)
    for seed in (1, 2):
        arena.acquire(random_task(basis.spec, seed).resolved.coefficients)
    step = StepTasks(arena.base_row)
    adapt_model(base.model, basis, arena.site_cores, step)
    return plain, base.model, basis, arena, step


def test_every_token_goes_through_its_own_merged_weight(tmp_path):
    plain, model, basis, arena, step = adapted_model(tmp_path)
    step.product = CoreProduct(TASKS, base_row=BASE_ROW)
    for own in SITES:
        name = f"model.layers.1.{own}"
        x = torch.randn(1, len(ROWS), plain[name].in_features)
        got = model.get_submodule(name)(x)
        for t, row in enumerate(ROWS):
            weight = plain[name].weight
            if row != BASE_ROW:
                weight = merged_weight(weight, basis.factors[name], arena.site_cores[name][row])
            torch.testing.assert_close(got[0, t], nn.functional.linear(x[0, t], weight), rtol=1e-4, atol=1e-4)


def test_layers_of_one_input_are_computed_once_and_in_any_order(tmp_path, monkeypatch):
    plain, model, _, _, step = adapted_model(tmp_path)
    step.product = None
    computed = []
    compute = LinearGroup._compute
    monkeypatch.setattr(LinearGroup, "_compute", lambda self, x: computed.append(x) or compute(self, x))
    names = [f"model.layers.0.{own}" for own in SITES[:3]]
    x = torch.randn(1, 4, plain[names[0]].in_features)
    for order, n_times in (((0, 1, 2), 1), ((2, 0), 2)):
        computed.clear()
        for i in order:
            got = model.get_submodule(names[i])(x)
            torch.testing.assert_close(got, plain[names[i]](x), rtol=1e-5, atol=1e-5)
        assert len(computed) == n_times


def test_another_input_is_never_answered_from_the_last_one(tmp_path):
    plain, model, _, _, step = adapted_model(tmp_path)
    step.product = None
    name = "model.layers.0.self_attn.q_proj"
    for _ in range(3):
        x = torch.randn(1, 4, plain[name].in_features)
        torch.testing.assert_close(model.get_submodule(name)(x), plain[name](x), rtol=1e-5, atol=1e-5)


def test_a_group_with_sites_outside_of_the_basis_adapts_the_others(tmp_path):
    base = tiny_base()
    plain = {name: copy.deepcopy(layer) for name, layer in linear_sites(base.model).items()}
    full = random_basis(base, tmp_path)
    absent = "model.layers.0.self_attn.k_proj"
    basis = Basis(full.spec, {name: factors for name, factors in full.factors.items() if name != absent})
    arena = Arena(full.spec, n_slots=1, device=CPU)
    arena.acquire(random_task(full.spec, 1).resolved.coefficients)
    step = StepTasks(arena.base_row)
    adapt_model(base.model, basis, arena.site_cores, step)
    step.product = CoreProduct(TokenTasks(torch.tensor([0, 0]), ()), base_row=1)
    x = torch.randn(1, 2, plain[absent].in_features)
    for name in (absent, "model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.v_proj"):
        weight = plain[name].weight
        if name != absent:
            weight = merged_weight(weight, basis.factors[name], arena.site_cores[name][0])
        got = base.model.get_submodule(name)(x)
        torch.testing.assert_close(got, nn.functional.linear(x, weight), rtol=1e-4, atol=1e-4)


def test_merged_weight_by_definition():
    base, factors, cores = nn.Linear(12, 20), SiteFactors(torch.randn(5, 12), torch.randn(3, 20)), torch.randn(2, 3, 5)
    merged = merged_weight(base.weight, factors, cores[1])
    i, j = 17, 4
    update = sum(factors.u[a, i] * cores[1][a, b] * factors.v[b, j] for a in range(3) for b in range(5))
    torch.testing.assert_close(merged[i, j], base.weight[i, j] + update, rtol=1e-5, atol=1e-5)


def test_a_missing_site_leaves_the_model_as_it_was(tmp_path):
    base = tiny_base()
    basis = random_basis(base, tmp_path)
    arena = Arena(basis.spec, n_slots=2, device=CPU)
    last = next(reversed(basis.factors))
    strange = Basis(basis.spec, {**basis.factors, "model.layers.7.mlp.up_proj": basis.factors[last]})
    cores = {**arena.site_cores, "model.layers.7.mlp.up_proj": arena.site_cores[last]}
    with pytest.raises(InvalidBasis, match=r"layers\.7"):
        adapt_model(base.model, strange, cores, StepTasks())
    assert not any(isinstance(module, GroupMember) for module in base.model.modules())


def test_the_arena_gives_each_site_its_own_part_of_a_task(tmp_path):
    basis = random_basis(tiny_base(), tmp_path, k=3)
    arena = Arena(basis.spec, n_slots=2, device=CPU)
    tasks = [random_task(basis.spec, seed) for seed in (1, 2)]
    slots = [arena.acquire(task.resolved.coefficients) for task in tasks]
    for slot, task in zip(slots, tasks, strict=True):
        for name, core in task.cores.items():
            assert torch.equal(arena.site_cores[name][slot], core)


def test_a_resident_task_is_not_copied_again_and_an_evicted_one_is(tmp_path):
    basis = random_basis(tiny_base(), tmp_path, k=2)
    arena = Arena(basis.spec, n_slots=1, device=CPU)
    first, second = (random_task(basis.spec, seed) for seed in (1, 2))
    site = basis.spec.sites[4].name
    for task, n_copied in ((first, 1), (first, 1), (second, 2), (first, 3)):
        slot = arena.acquire(task.resolved.coefficients)
        assert arena.n_copied == n_copied
        assert torch.equal(arena.site_cores[site][slot], task.cores[site])
        arena.release(task.resolved.coefficients)
        arena.slots.check_integrity()


def test_base_tokens_are_given_the_row_of_zeros_by_number():
    """A GPU kernel knows no negative rows."""
    ones = torch.ones(5, dtype=torch.int64)
    slots = torch.tensor([1, BASE_SLOT, 1, BASE_SLOT, BASE_SLOT], dtype=torch.int32)
    chunks = (PrefillChunk(2, 3, ones[:1], 1, 1), PrefillChunk(3, 5, ones[:1], 2, BASE_SLOT))
    step = StepTasks(base_row=7)
    step.begin(ForwardBatch(ones, ones, ones, slots, ones[:1], DecodeGroup(ones[:2, None], ones[:2]), chunks))
    assert step.product is not None
    assert step.product._tasks.single_rows.tolist() == [1, 7]
    assert [run.row for run in step.product._tasks.runs] == [1, 7]
