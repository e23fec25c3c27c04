"""Every form of an old file means the same cores in the extended basis, with zeros where they had none."""

from dataclasses import replace

import numpy as np
import pytest

from onebasis.coefficients.basis_file import BasisSpec
from onebasis.coefficients.container import RawTensor
from onebasis.coefficients.format import parse_coefficients
from onebasis.coefficients.lineage import EXTENDS, Ancestor, ancestors
from onebasis.coefficients.validate import bind
from onebasis.core.errors import InvalidBasis, WrongBasis, WrongLength
from onebasis.core.ids import digest_of
from onebasis.fitting.basis.readdress import readdress
from tests.coefficients.builders import basis_spec, coefficients, edited, random_residual, raw_tensor

OLD = basis_spec()  # (k_out, k_in) of its sites: (2, 3), (5, 4), (7, 6)


def extended(grown: int = 3) -> BasisSpec:
    sites = tuple(replace(site, k_in=site.k_in + grown, k_out=site.k_out + grown) for site in OLD.sites)
    sizes = {site.name: (site.k_out, site.k_in) for site in OLD.sites}
    ancestor = Ancestor(OLD.digest, digest_of(b"rows"), OLD.base_fingerprint, sizes)
    return replace(OLD, digest=digest_of(b"new"), sites=sites, report={EXTENDS: [ancestor.as_report()]})


NEW = extended()


def cores_of(data: bytes, basis: BasisSpec) -> list[np.ndarray]:
    flat = bind(parse_coefficients(data), basis).flat_cores()
    ends = np.cumsum([site.k_out * site.k_in for site in basis.sites])[:-1]
    shapes = [(site.k_out, site.k_in) for site in basis.sites]
    return [part.reshape(shape) for part, shape in zip(np.split(flat, ends), shapes, strict=True)]


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("sites", [None, (OLD.sites[0].name, OLD.sites[2].name)])
@pytest.mark.parametrize("k", [None, 1, 2, 5])
@pytest.mark.parametrize("form", ["core", "diag"])
def test_cores_are_the_old_ones_and_zeros(form: str, k: int | None, sites, dtype) -> None:
    data = coefficients(OLD, form=form, k=k, sites=sites, dtype=dtype, task="t", provenance={"a": 1})
    result = readdress(data, NEW, ancestors(NEW))
    for before, after in zip(cores_of(data, OLD), cores_of(result.data, NEW), strict=True):
        rows, columns = before.shape
        assert np.array_equal(after[:rows, :columns], before)
        assert np.count_nonzero(after) == np.count_nonzero(before)
    old, new = parse_coefficients(data), parse_coefficients(result.data)
    assert new.values.dtype == old.values.dtype
    assert (new.form, new.sites, new.task, new.k) == (form, sites, "t", result.k)
    assert new.provenance == {"a": 1, "readdressed_from": {"file": old.digest, "basis": OLD.digest}}
    assert result.n_zeros == len(new.values) - len(old.values)


def test_no_zeros_where_one_prefix_says_it_all() -> None:
    assert readdress(coefficients(OLD, k=2), NEW, ancestors(NEW)).n_zeros == 0
    full = readdress(coefficients(OLD), NEW, ancestors(NEW))
    assert (full.k, full.n_zeros) == (7, (5 * 6 - 6) + (7 * 7 - 20) + (7 * 7 - 42))


def test_bfloat16_stays_bfloat16() -> None:
    wide = parse_coefficients(coefficients(OLD, dtype=np.float32)).numbers()
    narrow = (wide.view(np.uint32) >> 16).astype("<u2")
    data = edited(coefficients(OLD), tensors={"coefficients": RawTensor("BF16", narrow.shape, narrow.tobytes())})
    result = readdress(data, NEW, ancestors(NEW))
    assert parse_coefficients(result.data).values.dtype == np.uint16
    assert np.array_equal(cores_of(result.data, NEW)[2][:7, :6], cores_of(data, OLD)[2])


def test_files_of_no_ancestor_or_no_fit_are_refused() -> None:
    stranger = basis_spec(seed=1)
    with pytest.raises(WrongBasis, match=stranger.digest):
        readdress(coefficients(stranger), NEW, ancestors(NEW))
    with pytest.raises(WrongBasis):
        readdress(coefficients(OLD), OLD, ancestors(OLD))
    short = edited(coefficients(OLD), tensors={"coefficients": raw_tensor(np.zeros(67, np.float16))})
    with pytest.raises(WrongLength):
        readdress(short, NEW, ancestors(NEW))


@pytest.mark.parametrize(
    ("record", "complaint"),
    [
        ([{"basis": "sha256:1"}], "malformed"),
        ("no list", "malformed"),
        ([Ancestor(OLD.digest, OLD.digest, "f", {"layers.0.q_proj": (9, 1)}).as_report()], "it has not all rows of"),
        ([Ancestor(OLD.digest, OLD.digest, "f", {"elsewhere": (1, 1)}).as_report()], "it has not all rows of"),
    ],
)
def test_a_record_that_makes_no_sense_is_refused(record: object, complaint: str) -> None:
    with pytest.raises(InvalidBasis, match=complaint):
        ancestors(replace(NEW, report={EXTENDS: record}))


def test_a_residual_goes_along() -> None:
    site = OLD.sites[1]
    data = coefficients(OLD, residual={site.name: random_residual(site)})
    found = parse_coefficients(readdress(data, NEW, ancestors(NEW)).data).residual
    before = parse_coefficients(data).residual
    assert found.keys() == before.keys() == {site.name}
    assert np.array_equal(found[site.name].a, before[site.name].a)
    assert np.array_equal(found[site.name].b, before[site.name].b)
