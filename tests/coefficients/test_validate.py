from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onebasis.coefficients.format import parse_coefficients
from onebasis.coefficients.validate import bind
from onebasis.core.errors import (
    NoMixingCores,
    ResidualRankTooHigh,
    ResidualTooLarge,
    UnknownSite,
    WrongBase,
    WrongBasis,
    WrongLength,
    WrongPrefix,
    WrongResidualShape,
)
from onebasis.core.residual import Residual, ResidualLimits
from tests.coefficients.builders import (
    MIXED_SITES,
    SITES,
    basis_spec,
    coefficients,
    edited,
    mixed_basis_spec,
    random_residual,
    raw_tensor,
)

BASIS = basis_spec()
MIXED = mixed_basis_spec()
NAMES = tuple(site.name for site in SITES)
N_CORE = 3 * 2 + 4 * 5 + 6 * 7


def flat_cores_ref(file) -> list[float]:
    """Definition of the lowering, one number at a time: read in site order, row by row, zero elsewhere."""
    numbers = iter(file.numbers().tolist())
    flat = []
    for site in SITES:
        rows, columns = site.k_out, site.k_in
        if file.k is not None:
            rows, columns = min(rows, file.k), min(columns, file.k)
        if file.sites is not None and site.name not in file.sites:
            rows = columns = 0
        for row in range(site.k_out):
            for column in range(site.k_in):
                held = row < rows and column < columns and (file.form == "core" or row == column)
                flat.append(next(numbers) if held else 0.0)
    assert next(numbers, None) is None, "the definition must use every number"
    return flat


@given(
    form=st.sampled_from(["core", "diag"]),
    k=st.none() | st.integers(1, 7),
    sites=st.none() | st.sets(st.sampled_from(NAMES), min_size=1),
    dtype=st.sampled_from([np.float16, np.float32]),
)
def test_every_form_prefix_and_subset_lowers_as_defined(form, k, sites, dtype):
    ordered = None if sites is None else tuple(name for name in NAMES if name in sites)
    file = parse_coefficients(coefficients(BASIS, form=form, k=k, sites=ordered, dtype=dtype))
    flat = bind(file, BASIS).flat_cores()
    assert flat.dtype == np.float32
    assert flat.tolist() == flat_cores_ref(file)


@given(sites=st.none() | st.sets(st.sampled_from(NAMES), min_size=1), dtype=st.sampled_from([np.float16, np.float32]))
def test_a_vector_lowers_to_the_sum_of_the_mixing_cores_that_it_weighs(sites, dtype):
    ordered = None if sites is None else tuple(name for name in NAMES if name in sites)
    file = parse_coefficients(coefficients(MIXED, form="vector", sites=ordered, dtype=dtype))
    numbers = iter(file.numbers().tolist())
    wanted = []
    for site in MIXED_SITES:
        core = np.zeros((site.k_out, site.k_in))
        if ordered is None or site.name in ordered:
            first, *others = MIXED.mixing[site.name].astype(np.float64)
            core = first + sum(next(numbers) * other for other in others)
        wanted += core.ravel().tolist()
    assert next(numbers, None) is None, "every number has its place"
    flat = bind(file, MIXED).flat_cores()
    assert flat.dtype == np.float32
    np.testing.assert_allclose(flat, wanted, rtol=1e-5, atol=1e-6)


def test_a_vector_of_zeros_is_the_mean_core():
    zeros = np.zeros(2 + 3 + 1, np.float16)
    data = edited(coefficients(MIXED, form="vector"), tensors={"coefficients": raw_tensor(zeros)})
    means = [MIXED.mixing[name][0].ravel() for name in NAMES]
    assert bind(parse_coefficients(data), MIXED).flat_cores().tolist() == np.concatenate(means).tolist()


def test_a_full_core_file_is_the_cores_themselves():
    bound = bind(parse_coefficients(coefficients(BASIS)), BASIS)
    assert BASIS.n_core_numbers == N_CORE
    assert bound.flat_cores().tolist() == bound.file.numbers().tolist()
    assert bound.digest == bound.file.digest


def test_a_diagonal_stays_inside_an_oblong_core():
    file = parse_coefficients(coefficients(BASIS, form="diag", sites=NAMES[:1]))
    core = bind(file, BASIS).flat_cores()[:6].reshape(2, 3)
    first, second = file.numbers()
    assert core.tolist() == [[first, 0, 0], [0, second, 0]]


def test_lowering_leaves_the_file_as_it_was():
    bound = bind(parse_coefficients(coefficients(BASIS)), BASIS)
    bound.flat_cores()[:] = 0
    assert bound.flat_cores().any()


def parsed(**changes):
    return replace(parse_coefficients(coefficients(BASIS)), **changes)


@pytest.mark.parametrize(
    ("file", "error", "code", "message"),
    [
        (parsed(basis="sha256:else"), WrongBasis, "wrong_basis", f"sha256:else, this server runs {BASIS.digest};"),
        (parsed(base_fingerprint="fp"), WrongBase, "wrong_base", f"fp, this server runs {BASIS.base_fingerprint};"),
        (parsed(k=0), WrongPrefix, "wrong_prefix", "k=0: the loaded basis allows 1 to 7"),
        (parsed(k=8), WrongPrefix, "wrong_prefix", "k=8: the loaded basis allows 1 to 7"),
        (parsed(sites=("nowhere", NAMES[0])), UnknownSite, "unknown_site", "sites nowhere are not in the loaded basis"),
        (parsed(sites=("z" * 9999,)), UnknownSite, "unknown_site", "are not in the loaded basis"),
        (parsed(sites=(NAMES[1], NAMES[0])), UnknownSite, "unknown_site", "or not in its order"),
        (parsed(sites=(NAMES[0], NAMES[0])), UnknownSite, "unknown_site", "or not in its order"),
        (parsed(k=2), WrongLength, "wrong_length", r"core needs coefficients of shape \(12,\) here, found \(68,\)"),
        (parsed(form="diag"), WrongLength, "wrong_length", r"diag needs .* \(12,\) here, found \(68,\)"),
        (parsed(form="vector"), NoMixingCores, "no_mixing_cores", "mixing cores, the loaded one has none"),
        (parsed(sites=NAMES[:2]), WrongLength, "wrong_length", r"core needs .* \(26,\) here, found \(68,\)"),
    ],
)  # fmt: skip
def test_each_misfit_has_its_own_code_and_says_found_and_allowed(file, error, code, message):
    with pytest.raises(error, match=message) as caught:
        bind(file, BASIS)
    assert caught.value.code == code
    assert len(str(caught.value)) < 400


Q, UP = SITES[0], SITES[1]


@pytest.mark.parametrize(
    ("residual", "error", "code", "message"),
    [
        ({"nowhere": random_residual(Q)}, UnknownSite, "unknown_site", "sites nowhere are not in the loaded basis"),
        (
            {Q.name: random_residual(UP)},
            WrongResidualShape,
            "wrong_residual_shape",
            r"A \[r, 12\] and B \[10, r\], found A \(2, 13\)",
        ),
        (
            {Q.name: Residual(np.ones((2, 10), np.float16), np.ones((12, 2), np.float16))},
            WrongResidualShape,
            "wrong_residual_shape",
            r"residual of layers.0.q_proj: needs A .*found A \(2, 10\) and B \(12, 2\)",
        ),
        (
            {Q.name: random_residual(Q, 11)},
            ResidualRankTooHigh,
            "residual_rank_too_high",
            "rank 11, at most 10 here; a higher",
        ),
        (
            {Q.name: random_residual(Q, 5)},
            ResidualRankTooHigh,
            "residual_rank_too_high",
            "rank 5, at most 4 here; lower it, or",
        ),
    ],
)
def test_a_residual_that_does_not_fit_is_refused(residual, error, code, message):
    file = parse_coefficients(coefficients(BASIS, residual={UP.name: random_residual(UP, 4)} | residual))
    with pytest.raises(error, match=message) as caught:
        bind(file, BASIS, ResidualLimits(4, 1000))
    assert caught.value.code == code


def test_a_server_may_allow_no_residual_at_all_and_a_tool_any():
    file = parse_coefficients(coefficients(BASIS, sites=(Q.name,), residual={UP.name: random_residual(UP, 13)}))
    assert bind(file, BASIS).residual is file.residual
    assert bind(file, BASIS, ResidualLimits(13, 13 * 33)).residual is file.residual
    with pytest.raises(ResidualRankTooHigh, match="--max-residual-rank 0 allows none"):
        bind(file, BASIS, ResidualLimits(0, 1000))
    with pytest.raises(ResidualTooLarge, match="the residual has 429 numbers, at most 428 fit"):
        bind(file, BASIS, ResidualLimits(13, 13 * 33 - 1))


@pytest.mark.parametrize("shape", [(N_CORE - 1,), (N_CORE + 1,), (0,), (1, N_CORE), (N_CORE, 1), (2, 34)])
def test_a_shape_that_does_not_follow_is_refused_never_padded_cut_or_flattened(shape):
    data = edited(coefficients(BASIS), tensors={"coefficients": raw_tensor(np.ones(shape, np.float16))})
    with pytest.raises(WrongLength, match=r"\(68,\) here, found \("):
        bind(parse_coefficients(data), BASIS)


def test_a_vector_has_one_number_for_each_mixing_core_but_the_first():
    file = parse_coefficients(coefficients(MIXED, form="vector", sites=NAMES[:2]))
    with pytest.raises(WrongLength, match=r"vector needs coefficients of shape \(6,\) here, found \(5,\)"):
        bind(replace(file, sites=None), MIXED)


def test_the_other_basis_is_another_basis():
    with pytest.raises(WrongBasis):
        bind(parse_coefficients(coefficients(basis_spec(seed=1))), BASIS)
