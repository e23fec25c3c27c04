from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onebasis.coefficients.format import parse_coefficients
from onebasis.coefficients.validate import bind
from onebasis.core.errors import UnknownSite, WrongBase, WrongBasis, WrongLength, WrongPrefix
from tests.coefficients.builders import SITES, basis_spec, coefficients, edited, raw_tensor

BASIS = basis_spec()
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
        (parsed(sites=NAMES[:2]), WrongLength, "wrong_length", r"core needs .* \(26,\) here, found \(68,\)"),
    ],
)  # fmt: skip
def test_each_misfit_has_its_own_code_and_says_found_and_allowed(file, error, code, message):
    with pytest.raises(error, match=message) as caught:
        bind(file, BASIS)
    assert caught.value.code == code
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("shape", [(N_CORE - 1,), (N_CORE + 1,), (0,), (1, N_CORE), (N_CORE, 1), (2, 34)])
def test_a_shape_that_does_not_follow_is_refused_never_padded_cut_or_flattened(shape):
    data = edited(coefficients(BASIS), tensors={"coefficients": raw_tensor(np.ones(shape, np.float16))})
    with pytest.raises(WrongLength, match=r"\(68,\) here, found \("):
        bind(parse_coefficients(data), BASIS)


def test_the_other_basis_is_another_basis():
    with pytest.raises(WrongBasis):
        bind(parse_coefficients(coefficients(basis_spec(seed=1))), BASIS)
