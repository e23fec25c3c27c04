"""Every form of an old file means the same cores in the extended basis, with zeros where they had none."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest

from onebasis.coefficients.basis_file import BasisSpec, SiteSpec
from onebasis.coefficients.container import RawTensor
from onebasis.coefficients.format import parse_coefficients
from onebasis.coefficients.lineage import EXTENDS, Ancestor, ancestors, mixing_digest
from onebasis.coefficients.validate import bind
from onebasis.core.errors import InvalidBasis, NoMixingCores, WrongBasis, WrongLength
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


def with_mixing(spec: BasisSpec, sizes: Mapping[str, tuple[int, int]], n_mix: int = 5) -> BasisSpec:
    """Mixing cores of random numbers in the first rows and columns, zeros beside them."""
    rng = np.random.default_rng(0)
    mixing: dict[str, np.ndarray] = {}
    for site in spec.sites:
        k_out, k_in = sizes.get(site.name, (0, 0))
        mixing[site.name] = np.zeros((n_mix + 1, site.k_out, site.k_in), np.float32)
        mixing[site.name][:, :k_out, :k_in] = rng.standard_normal((n_mix + 1, k_out, k_in))
    return replace(spec, sites=tuple(replace(site, n_mix=n_mix) for site in spec.sites), mixing=mixing)


def mixed_and_extended(new: BasisSpec) -> tuple[BasisSpec, BasisSpec]:
    """The old basis with mixing cores, and one that extends it."""
    sizes = {site.name: (site.k_out, site.k_in) for site in OLD.sites}
    old = with_mixing(OLD, sizes)
    ancestor = Ancestor(old.digest, digest_of(b"rows"), old.base_fingerprint, sizes, mixing_digest(old.mixing))
    return old, with_mixing(replace(new, report={EXTENDS: [ancestor.as_report()]}), sizes)


@pytest.mark.parametrize("grown", [0, 3, 5])
@pytest.mark.parametrize("sites", [None, (OLD.sites[0].name, OLD.sites[2].name)])
def test_a_vector_keeps_its_numbers_and_every_bit_of_its_cores(sites, grown: int) -> None:
    added = SiteSpec("layers.9.new", d_in=9, d_out=8, k_in=4, k_out=4)
    new = extended(grown)
    old, new = mixed_and_extended(replace(new, sites=(*new.sites, added)))
    data = coefficients(old, form="vector", sites=sites, task="t", seed=3)
    result = readdress(data, new, ancestors(new))
    assert (result.k, result.n_zeros) == (None, 0)
    after = cores_of(result.data, new)
    for before, now in zip(cores_of(data, old), after, strict=False):
        rows, columns = before.shape
        assert np.array_equal(now[:rows, :columns], before)
        assert np.count_nonzero(now) == np.count_nonzero(before)
    assert not after[-1].any()
    file = parse_coefficients(result.data)
    assert (file.form, file.k, file.task) == ("vector", None, "t")
    assert np.array_equal(file.values, parse_coefficients(data).values)


def test_a_vector_needs_the_mixing_cores_that_it_weighs() -> None:
    old, new = mixed_and_extended(NEW)
    vector, core = coefficients(old, form="vector"), coefficients(old)
    assert readdress(core, new, ancestors(new)).k == 7
    first = new.sites[0].name
    changed = replace(new, mixing={**new.mixing, first: new.mixing[first] * np.float32(1.001)})
    with pytest.raises(InvalidBasis, match=f"it has other mixing cores than {old.digest}, which this vector weighs"):
        readdress(vector, changed, ancestors(changed))
    assert readdress(core, changed, ancestors(changed)).k == 7, "cores need no mixing cores"
    with pytest.raises(NoMixingCores):
        readdress(vector, NEW, ancestors(NEW))


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
    with pytest.raises(InvalidBasis, match="the file is for it already; leave it out"):
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
