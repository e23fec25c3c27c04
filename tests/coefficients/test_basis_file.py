import json
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from onebasis.coefficients.basis_file import basis_metadata, read_basis_spec
from onebasis.core.errors import InvalidBasis
from onebasis.core.ids import digest_of
from tests.coefficients.builders import (
    MIXED_SITES,
    SITES,
    basis_bytes,
    basis_spec,
    edited,
    mixed_basis_spec,
    mixing_cores,
    raw_tensor,
    tiny_basis,
)

GOOD = basis_bytes()
MIXED = basis_bytes(of=MIXED_SITES)


def sites_json(**changes) -> str:
    """The site list with fields of its first site changed."""
    first, *others = [asdict(site) for site in SITES]
    return json.dumps([first | changes, *others])


def test_a_basis_file_is_read_back(tmp_path):
    spec = tiny_basis(tmp_path)
    assert spec == basis_spec()
    assert (spec.digest, spec.size_bytes) == (digest_of(GOOD), len(GOOD))
    assert (spec.n_core_numbers, spec.largest_k) == (68, 7)


def test_a_basis_with_mixing_cores_is_read_back_with_them(tmp_path):
    path = tmp_path / "x.basis.safetensors"
    path.write_bytes(MIXED)
    spec = read_basis_spec(path)
    assert spec == mixed_basis_spec()
    assert spec.has_mixing_cores and not basis_spec().has_mixing_cores
    assert [site.n_mix for site in spec.sites] == [2, 3, 1]
    for site in spec.sites:
        np.testing.assert_array_equal(spec.mixing[site.name], mixing_cores(site))


def test_a_basis_without_mixing_cores_says_nothing_of_them():
    """So that files from before there were any keep their bytes, and with them their digest."""
    fields = {"kind": "random", "base_model": "b", "base_fingerprint": "f", "report": {}}
    listed = '[{"name":"layers.0.q_proj","d_in":12,"d_out":10,"k_in":3,"k_out":2}]'
    assert basis_metadata(sites=SITES[:1], **fields)["sites"] == listed
    assert basis_metadata(sites=MIXED_SITES[:1], **fields)["sites"] == listed[:-2] + ',"n_mix":2}]'


def test_equal_content_gives_equal_bytes_and_other_numbers_another_digest():
    assert basis_bytes() == GOOD
    assert digest_of(basis_bytes(seed=1)) != digest_of(GOOD)


def test_a_prefix_never_reaches_past_a_smaller_site():
    assert [site.core_shape() for site in SITES] == [(2, 3), (5, 4), (7, 6)]
    assert [site.core_shape(3) for site in SITES] == [(2, 3), (3, 3), (3, 3)]


@pytest.mark.parametrize("missing", ["", "nowhere"])
def test_a_file_that_is_not_there_is_told_as_such(tmp_path, missing):
    with pytest.raises(InvalidBasis, match=r"give a \*\.basis\.safetensors file") as caught:
        read_basis_spec(tmp_path / missing)
    assert caught.value.code == "invalid_basis"


FLOAT16 = np.float16
FIRST = SITES[0].name


def cores(shape, dtype=np.float16, *, value=1):
    return {f"{FIRST}.G": raw_tensor(np.full(shape, value, dtype))}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "needs 8 bytes, found 0"),
        (b"\x80\x04N.", "pickle"),
        (GOOD[:-1], "send it again, whole"),
        (edited(GOOD, without=["format"]), "format needs 'onebasis.basis', found None"),
        (basis_bytes(format="onebasis.coefficients"), "format needs 'onebasis.basis', found 'onebasis.coefficients'"),
        (basis_bytes(format_version="2"), "format_version needs '1', found '2'"),
        (edited(GOOD, without=["kind"]), "malformed .'kind'"),
        (edited(GOOD, without=["sites"]), "malformed"),
        (basis_bytes(sites="7"), "malformed"),
        (basis_bytes(sites="{"), "malformed"),
        (basis_bytes(sites="[" * 5000), "malformed"),
        (basis_bytes(sites="[[]]"), "malformed"),
        (basis_bytes(sites='["a"]'), "malformed"),
        (basis_bytes(sites=sites_json(extra=1)), "malformed"),
        (basis_bytes(sites=sites_json(name=3)), "malformed .site 3 needs a name"),
        (basis_bytes(sites=sites_json(d_in=12.0)), "four whole numbers from 1, found"),
        (basis_bytes(sites=sites_json(k_in="3")), "four whole numbers from 1, found"),
        (basis_bytes(sites=sites_json(k_out=True)), "four whole numbers from 1, found"),
        (basis_bytes(sites=sites_json(k_in=0)), "four whole numbers from 1, found"),
        (basis_bytes(report="[]"), "the report is not a JSON object"),
        (basis_bytes(sites="[]"), "empty or names a site twice"),
        (basis_bytes(sites=json.dumps([asdict(SITES[0])] * 2)), "empty or names a site twice"),
        (basis_bytes(sites=sites_json(d_in=13)), "disagree, first at 'layers.0.q_proj.V'"),
        (basis_bytes(sites=sites_json(k_out=3)), "disagree, first at 'layers.0.q_proj.U'"),
        (edited(GOOD, without=["layers.1.q_proj.U"]), "disagree, first at 'layers.1.q_proj.U'"),
        (edited(GOOD, tensors={"more": raw_tensor(np.ones(2, FLOAT16))}), "disagree, first at 'more'"),
        (edited(GOOD, tensors={"layers.0.q_proj.V": raw_tensor(np.ones((3, 12)))}), "factors are F64; allowed: BF16,"),
        (basis_bytes(sites=sites_json(n_mix=-1)), "n_mix needs a whole number, found -1"),
        (basis_bytes(sites=sites_json(n_mix="1")), "n_mix needs a whole number, found '1'"),
        (basis_bytes(sites=sites_json(n_mix=2)), "some sites have mixing cores, others none"),
        (edited(GOOD, tensors=cores((3, 2, 3))), f"disagree, first at '{FIRST}.G'"),
        (edited(MIXED, without=[f"{FIRST}.G"]), f"disagree, first at '{FIRST}.G'"),
        (edited(MIXED, tensors=cores((2, 2, 3))), f"disagree, first at '{FIRST}.G'"),
        (edited(MIXED, tensors=cores((3, 2, 3), np.float64)), "mixing cores are F64; allowed: F16, F32"),
        (edited(MIXED, tensors=cores((3, 2, 3), value=np.inf)), f"mixing cores of {FIRST} have"),
    ],
)  # fmt: skip
def test_a_wrong_basis_file_is_refused_with_path_and_reason(tmp_path, data, message):
    path = tmp_path / "x.basis.safetensors"
    path.write_bytes(data)
    with pytest.raises(InvalidBasis, match=message) as caught:
        read_basis_spec(path)
    assert str(path) in str(caught.value)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from([GOOD, MIXED]),
    st.lists(st.tuples(st.integers(0, 1500), st.integers(0, 255)), min_size=1, max_size=6),
)
def test_mutated_bytes_never_raise_anything_else(tmp_path, good, changes):
    data = bytearray(good)
    for position, byte in changes:
        data[position] = byte
    path = tmp_path / "mutated"
    path.write_bytes(data)
    try:
        read_basis_spec(path)
    except InvalidBasis as error:
        assert str(path) in str(error)
