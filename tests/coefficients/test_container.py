import io
import pickle
import zipfile

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from onebasis.coefficients.container import Container, read_container, read_header, write_container
from onebasis.core.errors import NotSafetensors, PickleRefused, ServeError, TruncatedFile
from tests.coefficients.builders import raw_tensor, with_header

SMALL = Container(
    {"format": "x", "a": "ü"},
    {"b": raw_tensor(np.arange(6, dtype=np.float32).reshape(2, 3)), "a": raw_tensor(np.ones(5, np.float16))},
)


def test_what_is_written_is_read_back():
    assert read_container(write_container(SMALL)) == SMALL


def test_the_reference_library_reads_what_we_write():
    found = safetensors.numpy.load(write_container(SMALL))
    np.testing.assert_array_equal(found["b"], [[0, 1, 2], [3, 4, 5]])
    np.testing.assert_array_equal(found["a"], np.ones(5, np.float16))


def test_equal_content_gives_equal_bytes_in_any_order_of_insertion():
    turned = Container(dict(reversed(SMALL.metadata.items())), dict(reversed(SMALL.tensors.items())))
    assert write_container(turned) == write_container(SMALL)


def test_the_header_alone_agrees_with_the_whole(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(write_container(SMALL))
    header = read_header(path)
    assert header.metadata == SMALL.metadata
    assert header.shapes == {"a": (5,), "b": (2, 3)}
    assert header.dtypes == {"a": "F16", "b": "F32"}


@pytest.mark.parametrize("n", range(0, 1400, 8))
def test_no_length_of_the_header_looks_like_a_pickle(n, tmp_path):
    data = write_container(Container({"note": "x" * n}, SMALL.tensors))
    assert read_container(data).metadata == {"note": "x" * n}
    (tmp_path / "file").write_bytes(data)
    assert read_header(tmp_path / "file").metadata == {"note": "x" * n}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("value", [None, {"a": 1}, {"weights": list(range(1000))}])
def test_a_pickle_is_refused_by_name(protocol, value, tmp_path):
    data = pickle.dumps(value, protocol=protocol)
    (tmp_path / "file").write_bytes(data)
    for read in (lambda: read_container(data), lambda: read_header(tmp_path / "file")):
        with pytest.raises(PickleRefused, match="found a pickle or zip archive; only safetensors") as caught:
            read()
        assert caught.value.code == "pickle_refused"


def test_a_zip_as_torch_saves_it_is_refused_by_name():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"a": 1}))
    with pytest.raises(PickleRefused):
        read_container(buffer.getvalue())


def test_every_cut_is_told_as_truncated_with_both_sizes():
    data = write_container(SMALL)
    for n in range(len(data)):
        with pytest.raises(TruncatedFile, match=rf"needs \d+ bytes, found {n};") as caught:
            read_container(data[:n])
        assert caught.value.code == "truncated_file"


TENSOR = {"dtype": "F16", "shape": [2], "data_offsets": [0, 4]}


@pytest.mark.parametrize(
    "data",
    [
        with_header(b"hello"),
        with_header(b"\xff\xfe{}"),
        with_header(b"[" * 5000 + b"]" * 5000),
        with_header([]),
        with_header({"a": 1}),
        with_header({"a": {}}),
        with_header({"a": TENSOR | {"shape": ["2"]}}, bytes(4)),
        with_header({"a": TENSOR | {"shape": [2.0]}}, bytes(4)),
        with_header({"a": TENSOR | {"shape": [-2]}}, bytes(4)),
        with_header({"a": TENSOR | {"shape": [3]}}, bytes(4)),
        with_header({"a": TENSOR | {"data_offsets": [0, float("inf")]}}, bytes(4)),
        with_header({"a": TENSOR | {"data_offsets": [0]}}, bytes(4)),
        with_header({"a": TENSOR | {"data_offsets": [2, 4]}}, bytes(4)),
        with_header({"a": TENSOR | {"dtype": "F17"}}, bytes(4)),
        with_header({"a": TENSOR}, bytes(5)),
        with_header({"a": TENSOR, "b": TENSOR}, bytes(4)),
        with_header({"a": TENSOR, "__metadata__": {"a": 1}}, bytes(4)),
        with_header({"a": TENSOR, "__metadata__": []}, bytes(4)),
        with_header({"a": TENSOR, "__metadata__": {"a": "\ud800"}}, bytes(4)),
        (2**40).to_bytes(8, "little") + b"{}",
    ],
)
def test_a_malformed_container_is_refused_with_the_reason(data):
    with pytest.raises(NotSafetensors, match=r"not a safetensors file \(.+\); export the file again") as caught:
        read_container(data)
    assert caught.value.code == "not_safetensors"


@pytest.mark.parametrize(
    "wrong",
    [{"shape": ["2"]}, {"shape": [2.0]}, {"shape": [float("inf")]}, {"data_offsets": [0, 4.0]}, {"shape": None}],
)
def test_a_header_read_alone_takes_whole_numbers_only(tmp_path, wrong):
    (tmp_path / "file").write_bytes(with_header({"a": TENSOR | wrong}, bytes(4)))
    with pytest.raises(NotSafetensors):
        read_header(tmp_path / "file")


def test_an_empty_file_is_truncated(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(TruncatedFile, match="needs 8 bytes, found 0"):
        read_header(tmp_path / "file")


@given(st.binary(max_size=300))
def test_random_bytes_never_escape_the_error_tree(data):
    try:
        read_container(data)
    except ServeError as error:
        assert error.code != "internal"


@given(
    st.recursive(
        st.none() | st.integers() | st.floats() | st.text(),
        lambda x: (
            st.lists(x) | st.dictionaries(st.sampled_from(["dtype", "shape", "data_offsets", "__metadata__", "a"]), x)
        ),
        max_leaves=12,
    )
)
def test_random_headers_never_escape_the_error_tree(header):
    try:
        read_container(with_header(header, bytes(8)))
    except ServeError as error:
        assert error.code != "internal"
