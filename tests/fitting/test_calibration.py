"""Weighting by activations: better outputs on the text, by the exact optimum."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from onebasis.fitting.calibration import project_for_inputs, second_moments
from onebasis.fitting.data import TokenExample
from onebasis.fitting.low_rank import LowRankUpdate
from onebasis.fitting.projection import project
from onebasis.model.factors import Basis
from onebasis.model.loader import LoadedBase
from onebasis.model.sites import site_layer
from tests.fitting.tiny import token_example

Q, DOWN = "model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"
TEXT = [token_example(range(2 + n, 30 + n), [1]) for n in range(6)]


def nothing() -> None:
    pass


def inputs_of(base: LoadedBase, site: str, examples: Sequence[TokenExample]) -> Tensor:
    """[n_tokens, d_in] what the layer sees."""
    seen: list[Tensor] = []
    hook = site_layer(base.model, site).register_forward_pre_hook(lambda _, args: seen.append(args[0][0]))
    for example in examples:
        base.model(torch.tensor([[*example.prompt_ids, *example.answer_ids]]))
    hook.remove()
    return torch.cat(seen).double()


@pytest.fixture
def updates(base: LoadedBase) -> dict[str, LowRankUpdate]:
    generator = torch.Generator().manual_seed(4)
    layers = {site: site_layer(base.model, site) for site in (Q, DOWN)}
    return {
        site: LowRankUpdate(
            torch.randn(layer.out_features, 3, generator=generator),
            torch.randn(3, layer.in_features, generator=generator),
        )
        for site, layer in layers.items()
    }


def test_moments_are_those_of_the_inputs_that_the_layers_see(base: LoadedBase, basis: Basis):
    rows = {site: basis.factors[site].v for site in (Q, DOWN)}
    counted: list[None] = []
    moments = second_moments(base, rows, TEXT, lambda: counted.append(None))
    for site, v in rows.items():
        z = inputs_of(base, site, TEXT) @ v.double().T
        torch.testing.assert_close(moments[site], z.T @ z / len(z), rtol=1e-4, atol=1e-6)
    assert len(counted) == len(TEXT)


def test_the_model_keeps_no_trace_of_the_measurement(base: LoadedBase, basis: Basis):
    second_moments(base, {Q: basis.factors[Q].v}, TEXT, nothing)
    assert not any(module._forward_pre_hooks for module in base.model.modules())


def test_weighted_cores_are_the_least_squares_of_the_outputs(
    base: LoadedBase, basis: Basis, updates: dict[str, LowRankUpdate]
):
    plain = project(updates, basis)
    weighted, outputs = project_for_inputs(updates, basis, base, TEXT, nothing)
    energy = lost = lost_plain = 0.0
    for site, update in updates.items():
        x = inputs_of(base, site, TEXT)
        factors = basis.factors[site]
        wanted = x @ update.a.double().T @ update.b.double().T
        z = x @ factors.v.double().T
        best = torch.linalg.lstsq(z, wanted @ torch.linalg.pinv(factors.u.double())).solution.T
        torch.testing.assert_close(weighted.cores[site].double(), best, rtol=1e-2, atol=1e-2)
        energy += float(wanted.square().sum())
        lost += float((wanted - z @ weighted.cores[site].double().T @ factors.u.double()).square().sum())
        lost_plain += float((wanted - z @ plain.cores[site].double().T @ factors.u.double()).square().sum())
    assert outputs.kept == pytest.approx(1 - lost / energy, rel=1e-4)
    assert outputs.kept_unweighted == pytest.approx(1 - lost_plain / energy, rel=1e-4)
    assert outputs.kept > 1.5 * outputs.kept_unweighted
    assert outputs.n_tokens == sum(len(example.prompt_ids) + 1 for example in TEXT)


def test_what_is_better_on_outputs_is_worse_on_weights_and_says_so(
    base: LoadedBase, basis: Basis, updates: dict[str, LowRankUpdate]
):
    weighted, _ = project_for_inputs(updates, basis, base, TEXT, nothing)
    assert weighted.energy_kept_total < project(updates, basis).energy_kept_total


def test_directions_that_the_text_never_shows_keep_the_plain_core(
    base: LoadedBase, basis: Basis, updates: dict[str, LowRankUpdate]
):
    """One token spans one direction; in the others the text has no say."""
    one = [token_example([5], [])]
    weighted, _ = project_for_inputs({Q: updates[Q]}, basis, base, one, nothing)
    plain = project({Q: updates[Q]}, basis)
    z = (inputs_of(base, Q, one) @ basis.factors[Q].v.double().T)[0]
    unseen = torch.linalg.svd(z[None])[2][1:].T
    difference = (weighted.cores[Q] - plain.cores[Q]).double()
    assert float((difference @ z).norm()) > 1e-3
    torch.testing.assert_close(difference @ unseen, torch.zeros_like(difference @ unseen), rtol=0, atol=1e-5)
