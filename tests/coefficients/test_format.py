import json

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from onebasis.coefficients.container import RawTensor
from onebasis.coefficients.format import FORMS, parse_coefficients, write_coefficients
from onebasis.core.errors import (
    CoefficientError,
    IncompleteResidual,
    InvalidMetadata,
    MissingTensor,
    NotFinite,
    ServeError,
    UnknownForm,
    UnknownTensor,
    UnsupportedFormatVersion,
    WrongDtype,
    WrongResidualShape,
)
from onebasis.core.ids import Digest, digest_of
from onebasis.core.residual import Residual
from tests.coefficients.builders import FINGERPRINT, basis_spec, coefficients, edited, random_residual, raw_tensor

BASIS = basis_spec()
GOOD = coefficients(BASIS, task="plural", provenance={"data": "demo", "score": 0.75})
SITE = BASIS.sites[1]
A, B = f"residual.{SITE.name}.A", f"residual.{SITE.name}.B"
WITH_RESIDUAL = coefficients(BASIS, residual={SITE.name: random_residual(SITE)})


@pytest.mark.parametrize("form", ["core", "diag"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_what_is_written_is_read_back(form, dtype):
    values = np.array([1.5, -2.25, 1e-3, 0.0], dtype=dtype)
    sites = (BASIS.sites[2].name,)
    data = write_coefficients(
        values,
        form=form,
        basis=BASIS.digest,
        base_fingerprint=FINGERPRINT,
        k=2,
        sites=sites,
        task="plural",
        provenance={"score": 0.75},
    )
    file = parse_coefficients(data)
    assert (file.form, file.basis, file.base_fingerprint) == (form, BASIS.digest, FINGERPRINT)
    assert (file.k, file.sites, file.task, file.provenance) == (2, sites, "plural", {"score": 0.75})
    assert (file.digest, file.size_bytes, file.shape) == (digest_of(data), len(data), (4,))
    assert file.values.dtype == dtype
    np.testing.assert_array_equal(file.numbers(), values.astype(np.float32))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_a_residual_is_read_back_in_its_own_width(form, dtype):
    first, _, last = BASIS.sites
    residual = {site.name: random_residual(site, rank, dtype=dtype) for site, rank in ((last, 3), (first, 1))}
    data = coefficients(BASIS, form=form, residual=residual)
    file = parse_coefficients(data)
    assert list(file.residual) == [first.name, last.name]
    for name, factors in residual.items():
        found = file.residual[name]
        assert (found.rank, found.a.dtype, found.size_bytes) == (factors.rank, dtype, factors.size_bytes)
        np.testing.assert_array_equal(found.a, factors.a)
        np.testing.assert_array_equal(found.b, factors.b)
    assert coefficients(BASIS, form=form, residual=dict(reversed(residual.items()))) == data, "order is no content"
    assert file.form == form
    assert parse_coefficients(GOOD).residual == {}


def test_a_residual_in_bfloat16_is_read_as_its_bits():
    upper = np.arange(2 * SITE.d_in, dtype=np.uint16).reshape(2, SITE.d_in)
    data = edited(WITH_RESIDUAL, tensors={A: RawTensor("BF16", upper.shape, upper.tobytes())})
    assert parse_coefficients(data).residual[SITE.name].a.tolist() == upper.tolist()


@pytest.mark.parametrize(
    ("change", "error", "code", "message"),
    [
        ({"without": [B]}, IncompleteResidual, "incomplete_residual", f"{A}, but not {B}; a residual needs both"),
        ({"without": [A]}, IncompleteResidual, "incomplete_residual", f"{B}, but not {A}"),
        ({"tensors": {A: np.ones(3)}}, WrongResidualShape, "wrong_residual_shape", r"found A \(3,\) and B \(20, 2\)"),
        (
            {"tensors": {A: np.ones((3, 13))}},
            WrongResidualShape,
            "wrong_residual_shape",
            r"of one r from 1, found A \(3,",
        ),
        (
            {"tensors": {B: np.ones((20, 2, 1))}},
            WrongResidualShape,
            "wrong_residual_shape",
            "residual of layers.0.up_proj:",
        ),
        (
            {"tensors": {A: np.ones((0, 13)), B: np.ones((20, 0))}},
            WrongResidualShape,
            "wrong_residual_shape",
            r"found A \(0, 13\)",
        ),
        ({"tensors": {B: np.ones((20, 2))}}, WrongDtype, "wrong_dtype", f"{B}: numbers are F64; allowed: F16,"),
        (
            {"tensors": {A: np.full((2, 13), np.nan, np.float16)}},
            NotFinite,
            "not_finite",
            f"{A}: 26 numbers are NaN or infinite, the first at position 0",
        ),
        ({"tensors": {"residual.A": np.ones(2)}}, UnknownTensor, "unknown_tensor", "found also residual.A;"),
        ({"tensors": {"residual.x.C": np.ones(2)}}, UnknownTensor, "unknown_tensor", "found also residual.x.C;"),
        (
            {"tensors": {"residual.x.A.scale": np.ones(2)}},
            UnknownTensor,
            "unknown_tensor",
            "found also residual.x.A.scale",
        ),
        ({"tensors": {f"residual.{'y' * 9999}.A": np.ones(2)}}, IncompleteResidual, "incomplete_residual", "found the"),
    ],
)
def test_each_fault_of_a_residual_has_its_own_code(change, error, code, message):
    tensors = {name: raw_tensor(values) for name, values in change.get("tensors", {}).items()}
    with pytest.raises(error, match=message) as caught:
        parse_coefficients(edited(WITH_RESIDUAL, tensors=tensors, without=change.get("without", ())))
    assert caught.value.code == code
    assert len(str(caught.value)) < 400


def test_a_bfloat16_file_is_read_exactly():
    exact = np.array([1.0, -0.5, 3.140625, 2.0**-100, 1e38], dtype=np.float32)
    upper = (exact.view(np.uint32) >> 16).astype(np.uint16)
    data = edited(GOOD, tensors={"coefficients": RawTensor("BF16", (5,), upper.tobytes())})
    np.testing.assert_array_equal(parse_coefficients(data).numbers(), (upper.astype(np.uint32) << 16).view(np.float32))
    np.testing.assert_array_equal(parse_coefficients(data).numbers()[:4], exact[:4])


def test_equal_content_gives_equal_bytes_and_other_content_another_digest():
    fields = {"task": "plural", "provenance": {"score": 0.75, "data": "demo"}}
    assert coefficients(BASIS, **fields) == GOOD
    assert digest_of(coefficients(BASIS, seed=1, **fields)) != digest_of(GOOD)


@pytest.mark.parametrize("n_deep", [33, 2000])
def test_provenance_is_at_most_so_deep(n_deep):
    text = '{"a":' * n_deep + "1" + "}" * n_deep
    with pytest.raises(InvalidMetadata, match="metadata 'provenance': needs a JSON object, nested at most 32"):
        parse_coefficients(edited(GOOD, metadata={"provenance": text}))


def test_provenance_may_be_absent_or_rich():
    assert parse_coefficients(edited(GOOD, without=["provenance"])).provenance == {}
    rich = json.loads('{"a":' * 31 + '[1, null, "ü😀", -1e300]' + "}" * 31)
    assert parse_coefficients(coefficients(BASIS, provenance=rich)).provenance == rich


@pytest.mark.parametrize(
    ("field", "found"),
    [
        ("format", None),
        ("format", "onebasis.basis"),
        ("basis", None),
        ("basis", ""),
        ("basis", "x" * 201),
        ("base_fingerprint", None),
        ("base_fingerprint", "x" * 10_000),
        ("k", ""),
        ("k", "-1"),
        ("k", "2.0"),
        ("k", "٣"),
        ("k", "9" * 5000),
        ("sites", ""),
        ("sites", "[]"),
        ("sites", "{}"),
        ("sites", "[1]"),
        ("sites", '["\\ud800"]'),
        ("sites", "[" * 5000),
        ("provenance", ""),
        ("provenance", "[]"),
        ("provenance", '{"score": NaN}'),
        ("provenance", '{"score": -Infinity}'),
        ("provenance", '{"score": 1e999}'),
        ("provenance", '{"\\udc00": 1}'),
        ("provenance", '{"n": ' + "9" * 5000 + "}"),
    ],
)
def test_wrong_metadata_is_refused_with_what_was_found_and_needed(field, found):
    data = edited(GOOD, without=[field]) if found is None else edited(GOOD, metadata={field: found})
    with pytest.raises(InvalidMetadata, match=rf"metadata '{field}': needs .+, found '.*'; export") as caught:
        parse_coefficients(data)
    assert caught.value.code == "invalid_metadata"
    assert len(str(caught.value)) < 400, "a stranger's text must not flood the answer"


LONG = "y" * 10_000


@pytest.mark.parametrize(
    ("change", "error", "code", "message"),
    [
        ({"metadata": {"format_version": "2"}}, UnsupportedFormatVersion, "unsupported_format_version", "'2'.*reads 1"),
        ({"without": ["format_version"]}, UnsupportedFormatVersion, "unsupported_format_version", "'none'.*reads 1;"),
        ({"metadata": {"form": "lora"}}, UnknownForm, "unknown_form", "'lora', .* core, diag, vector;"),
        ({"metadata": {"form": LONG}}, UnknownForm, "unknown_form", "reads core, diag, v"),
        ({"without": ["form"]}, UnknownForm, "unknown_form", "'none'"),
        ({"tensors": {"b.V": raw_tensor(np.ones(2, np.float16))}}, UnknownTensor, "unknown_tensor", "found also b.V"),
        ({"tensors": {LONG: raw_tensor(np.ones(2, np.float16))}}, UnknownTensor, "unknown_tensor", "found also yyy"),
        ({"without": ["coefficients"]}, MissingTensor, "missing_tensor", "needs the tensor 'coefficients', found none"),
        ({"tensors": {"coefficients": raw_tensor(np.ones(2))}}, WrongDtype, "wrong_dtype", "F64; allowed: F16, BF16,"),
        ({"tensors": {"coefficients": raw_tensor(np.ones(2, np.int8))}}, WrongDtype, "wrong_dtype", "are I8; allowed"),
        ({"metadata": {"form": "vector", "k": "2"}}, InvalidMetadata, "invalid_metadata", "absent with form v"),
    ],
)  # fmt: skip
def test_each_cause_has_its_own_code_and_says_found_and_allowed(change, error, code, message):
    with pytest.raises(error, match=message) as caught:
        parse_coefficients(edited(GOOD, **change))
    assert caught.value.code == code
    assert isinstance(caught.value, CoefficientError)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    "tensor",
    [
        raw_tensor(np.array([0, 1, np.nan, -np.inf, 2], np.float16)),
        raw_tensor(np.array([0, 1, np.inf, np.nan, 2], np.float32)),
        RawTensor("BF16", (5,), np.array([0, 1, 0x7F80, 0xFFC1, 2], np.uint16).tobytes()),
    ],
)
def test_nan_and_infinity_are_refused_with_count_and_place(tensor):
    with pytest.raises(NotFinite, match="2 numbers are NaN or infinite, the first at position 2") as caught:
        parse_coefficients(edited(GOOD, tensors={"coefficients": tensor}))
    assert caught.value.code == "not_finite"


@pytest.mark.parametrize(
    ("values", "fields", "error"),
    [
        (np.ones(3), {}, WrongDtype),
        (np.array([np.nan], np.float16), {}, NotFinite),
        (np.ones(3, np.float16), {"form": "lora"}, UnknownForm),
        (np.ones(3, np.float16), {"form": "vector", "k": 2}, InvalidMetadata),
        (np.ones(3, np.float16), {"residual": {"q": Residual(np.ones((2, 3)), np.ones((4, 2)))}}, WrongDtype),
        (np.ones(3, np.float16), {"basis": Digest("")}, InvalidMetadata),
        (np.ones(3, np.float16), {"sites": ()}, InvalidMetadata),
        (np.ones(3, np.float16), {"k": -1}, InvalidMetadata),
        (np.ones(3, np.float16), {"provenance": {"loss": float("nan")}}, InvalidMetadata),
    ],
)
def test_nothing_is_written_that_would_not_be_read(values, fields, error):
    with pytest.raises(error):
        write_coefficients(
            values, **({"form": "core", "basis": BASIS.digest, "base_fingerprint": FINGERPRINT} | fields)
        )


@given(
    st.sampled_from([GOOD, WITH_RESIDUAL]),
    st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.integers(0, 255)), min_size=1, max_size=8),
)
@example(GOOD, [(0, 0x80)])
@example(GOOD, [(7, 0xFF)])
def test_mutated_bytes_never_escape_the_error_tree(good, changes):
    data = bytearray(good)
    for position, byte in changes:
        data[position] = byte
    try:
        file = parse_coefficients(bytes(data))
    except ServeError as error:
        assert error.code != "internal"
        assert str(error)
    else:
        assert np.isfinite(file.numbers()).all()


@given(st.sampled_from(["format", "form", "basis", "k", "sites", "provenance", "task", "new"]), st.text())
def test_mutated_metadata_never_escapes_the_error_tree(field, text):
    try:
        parse_coefficients(edited(GOOD, metadata={field: text}))
    except ServeError as error:
        assert error.code != "internal"
