"""Coefficient files made to harm, each with the codes that it may be refused with."""

import io
import json
import pickle
import random
import struct
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from onebasis.coefficients.container import RawTensor
from tests.api.tiny_model import TinyModel
from tests.coefficients.builders import edited, raw_tensor, with_header


@dataclass(frozen=True)
class HostileFile:
    """`codes`: one, or those between which the place of a random edit decides."""

    name: str
    data: bytes
    codes: frozenset[str]

    def __str__(self) -> str:
        return self.name


ZERO = "sha256:" + "0" * 64
SITE = "model.layers.0.self_attn.q_proj"
NUL, CYRILLIC_O, FULL_WIDTH_C, FULL_WIDTH_4 = "\x00", "\u043e", "\uff43", "\uff14"

WRONG_FIELDS = {  # metadata to put in, or to take out where it is None
    "another basis": ("wrong_basis", {"basis": ZERO}),
    "another base": ("wrong_base", {"base_fingerprint": ZERO}),
    "no basis": ("invalid_metadata", {"basis": None}),
    "no base": ("invalid_metadata", {"base_fingerprint": None}),
    "long basis": ("invalid_metadata", {"basis": "x" * 10_000}),
    "format": ("invalid_metadata", {"format": "pt"}),
    "no format": ("invalid_metadata", {"format": None}),
    "version": ("unsupported_format_version", {"format_version": "2"}),
    "form": ("unknown_form", {"form": "pickle"}),
    "form vector without mixing cores": ("no_mixing_cores", {"form": "vector"}),
    "form vector with a prefix": ("invalid_metadata", {"form": "vector", "k": "2"}),
    "no form": ("unknown_form", {"form": None}),
    "a form that looks alike": ("unknown_form", {"form": f"{FULL_WIDTH_C}ore"}),
    "a field that looks alike": ("unknown_form", {"form": None, f"f{CYRILLIC_O}rm": "core"}),
    "a form with NUL": ("unknown_form", {"form": f"core{NUL}"}),
    "diag's form, core's numbers": ("wrong_length", {"form": "diag"}),
    "k is text": ("invalid_metadata", {"k": "4; DROP TABLE"}),
    "k looks like 4": ("invalid_metadata", {"k": FULL_WIDTH_4}),
    "k is 0": ("wrong_prefix", {"k": "0"}),
    "k is large": ("wrong_prefix", {"k": "999999999"}),
    "k without its numbers": ("wrong_length", {"k": "2"}),
    "sites are no JSON": ("invalid_metadata", {"sites": "[" * 100_000}),
    "sites are strange": ("unknown_site", {"sites": '["../../etc/passwd"]'}),
    "sites are many": ("unknown_site", {"sites": json.dumps(["x"] * 100_000)}),
    "a site twice": ("unknown_site", {"sites": json.dumps([SITE, SITE])}),
    "a site alone": ("wrong_length", {"sites": json.dumps([SITE])}),
    "provenance is a list": ("invalid_metadata", {"provenance": "[]"}),
    "provenance is deep": ("invalid_metadata", {"provenance": '{"a":' * 5000 + "1" + "}" * 5000}),
    "provenance is deeper": ("invalid_metadata", {"provenance": '{"a":' * 100_000 + "1" + "}" * 100_000}),
    "provenance is huge": ("invalid_metadata", {"provenance": json.dumps({"a": "x" * 900_000})}),
    "provenance has a name twice": ("invalid_metadata", {"provenance": '{"a": 1, "a": 2}'}),
    "provenance has NaN": ("invalid_metadata", {"provenance": '{"a": NaN}'}),
    "provenance has half a character": ("invalid_metadata", {"provenance": '{"a": "\\ud800"}'}),
}


def residual(
    a: int | tuple[int, ...], b: int | tuple[int, ...], dtype: type = np.float16, *, site: str = SITE
) -> dict[str, RawTensor]:
    """Ones for both factors, of any shape."""
    return {f"residual.{site}.A": ones(a, dtype), f"residual.{site}.B": ones(b, dtype)}


WRONG_TENSORS = {  # tensors to put in, by the count of numbers that would be right
    "an unknown tensor": ("unknown_tensor", lambda _: {"delta": ones(1)}),
    "a residual of no site": ("unknown_tensor", lambda _: {"residual.A": ones(1), "residual.B": ones(1)}),
    "a residual of a third factor": ("unknown_tensor", lambda _: {"residual.x.C": ones(1)}),
    "half a residual": ("incomplete_residual", lambda _: {f"residual.{SITE}.A": ones((1, 64))}),
    "the other half": ("incomplete_residual", lambda _: {f"residual.{SITE}.B": ones((64, 1))}),
    "many halves": ("incomplete_residual", lambda _: {f"residual.{i}.A": ones(1) for i in range(999)}),
    "half a residual with a long name": ("incomplete_residual", lambda _: {f"residual.{'x' * 500_000}.A": ones(1)}),
    "a residual of vectors": ("wrong_residual_shape", lambda _: residual(64, 64)),
    "a residual of two ranks": ("wrong_residual_shape", lambda _: residual((2, 64), (64, 3))),
    "a residual of rank 0": ("wrong_residual_shape", lambda _: residual((0, 64), (64, 0))),
    "a residual of three axes": ("wrong_residual_shape", lambda _: residual((1, 64, 1), (64, 1))),
    "a residual that is too wide": ("wrong_residual_shape", lambda _: residual((1, 65), (64, 1))),
    "a residual that is transposed": ("wrong_residual_shape", lambda _: residual((64, 3), (3, 64))),
    "a residual of a strange site": ("unknown_site", lambda _: residual((1, 64), (64, 1), site="../../etc/passwd")),
    "a residual of a site that looks alike": ("unknown_site", lambda _: residual((1, 64), (64, 1), site=SITE + NUL)),
    "a residual of a high rank": ("residual_rank_too_high", lambda _: residual((17, 64), (64, 17))),
    "a residual of more than the whole rank": ("residual_rank_too_high", lambda _: residual((65, 64), (64, 65))),
    "a residual in float64": ("wrong_dtype", lambda _: residual((1, 64), (64, 1), np.float64)),
    "a residual in int8": ("wrong_dtype", lambda _: residual((1, 64), (64, 1), np.int8)),
    "NaN in a residual": (
        "not_finite",
        lambda _: residual((1, 64), (64, 1)) | {f"residual.{SITE}.B": ones((64, 1), at=9, value=np.nan)},
    ),
    "many unknown tensors": ("unknown_tensor", lambda _: {f"t{i}": ones(1) for i in range(999)}),
    "a tensor that looks alike": ("unknown_tensor", lambda n: {f"c{CYRILLIC_O}efficients": ones(n)}),
    "a tensor of full width": ("unknown_tensor", lambda n: {f"{FULL_WIDTH_C}oefficients": ones(n)}),
    "a tensor with NUL": ("unknown_tensor", lambda n: {f"coefficients{NUL}": ones(n)}),
    "a tensor without a name": ("unknown_tensor", lambda n: {"": ones(n)}),
    "a tensor with a long name": ("unknown_tensor", lambda n: {"x" * 500_000: ones(n)}),
    "float64": ("wrong_dtype", lambda n: {"coefficients": ones(n, np.float64)}),
    "int8": ("wrong_dtype", lambda n: {"coefficients": ones(n, np.int8)}),
    "NaN": ("not_finite", lambda n: {"coefficients": ones(n, at=7, value=np.nan)}),
    "infinity": ("not_finite", lambda n: {"coefficients": ones(n, at=0, value=-np.inf)}),
    "NaN in float32": ("not_finite", lambda n: {"coefficients": ones(n, np.float32, at=n - 1, value=np.nan)}),
    "NaN in bfloat16": ("not_finite", lambda n: {"coefficients": RawTensor("BF16", (n,), b"\xff\xff" * n)}),
    "one short": ("wrong_length", lambda n: {"coefficients": ones(n - 1)}),
    "one too many": ("wrong_length", lambda n: {"coefficients": ones(n + 1)}),
    "no numbers": ("wrong_length", lambda _: {"coefficients": ones(0)}),
    "a matrix": ("wrong_length", lambda n: {"coefficients": ones((1, n))}),
    "a scalar": ("wrong_length", lambda _: {"coefficients": ones(())}),
}

BROKEN = {  # bytes made from a good file's
    "a header of 2^63 bytes": ("not_safetensors", lambda data: (2**63).to_bytes(8, "little") + data[8:]),
    "a header of 2^64-1 bytes": ("not_safetensors", lambda data: b"\xff" * 8 + data[8:]),
    "a header a byte too long": ("truncated_file", lambda data: (len(data) - 7).to_bytes(8, "little") + data[8:]),
    "a header of no bytes": ("not_safetensors", lambda data: bytes(8) + data[8:]),
    "bytes behind the end": ("not_safetensors", lambda data: data + b"\x00"),
    "a zip behind the end": ("not_safetensors", lambda data: data + zipped()),
    "a file twice": ("not_safetensors", lambda data: data + data),
    "numbers that overlap the header": ("not_safetensors", lambda data: header_says(data, data_offsets=[-8, 440])),
    "numbers that end before they begin": ("not_safetensors", lambda data: header_says(data, data_offsets=[448, 0])),
    "numbers past the end": ("truncated_file", lambda data: header_says(data, data_offsets=[0, 450_000])),
    "numbers to the end of memory": ("truncated_file", lambda data: header_says(data, data_offsets=[0, 2**62])),
    "numbers to 10^400": ("truncated_file", lambda data: header_says(data, data_offsets=[0, 10**400])),
    "offsets in words": ("not_safetensors", lambda data: header_says(data, data_offsets=["0", "448"])),
    "offsets with a fraction": ("not_safetensors", lambda data: header_says(data, data_offsets=[0.0, 448.0])),
    "no offsets": ("not_safetensors", lambda data: header_says(data, data_offsets=[])),
    "a shape that overflows": ("not_safetensors", lambda data: header_says(data, shape=[2**62, 2**62])),
    "a shape below 0": ("not_safetensors", lambda data: header_says(data, shape=[-224])),
    "a shape of truth values": ("not_safetensors", lambda data: header_says(data, shape=[True])),
    "a dtype that nobody knows": ("not_safetensors", lambda data: header_says(data, dtype="F17")),
    "a dtype of another kind": ("not_safetensors", lambda data: header_says(data, dtype=["F16"])),
    "two tensors in one place": ("not_safetensors", lambda data: with_entries(data, second="coefficients")),
    "a name twice": ("not_safetensors", lambda data: header_text(data, lambda text: text[:-1] + b"," + text[1:])),
    "a field twice": (
        "not_safetensors",
        lambda data: header_text(data, lambda text: text.replace(b'"form":"core"', b'"form":"diag","form":"core"')),
    ),
    "metadata of numbers": ("not_safetensors", lambda data: with_entries(data, metadata={"k": 4})),
    "metadata that is a list": ("not_safetensors", lambda data: with_entries(data, metadata=["format"])),
    "a header in UTF-16": (
        "not_safetensors",
        lambda data: header_text(data, lambda text: text.decode().encode("utf-16")),
    ),
    "a header with a mark of its order": ("not_safetensors", lambda data: header_text(data, b"\xef\xbb\xbf".__add__)),
    "a header with NUL": ("not_safetensors", lambda data: header_text(data, lambda text: text + b"\x00")),
    "a header of two objects": ("not_safetensors", lambda data: header_text(data, lambda text: text + b"{}")),
    "no tensor": ("missing_tensor", lambda data: edited(data, without=["coefficients"])),
}


def pickled(protocol: int = pickle.DEFAULT_PROTOCOL) -> bytes:
    class Harm:
        def __reduce__(self):
            return (print, ("harm",))

    return pickle.dumps({"coefficients": Harm()}, protocol)


def zipped() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", pickled())
    return file.getvalue()


NO_COEFFICIENTS = {  # whole files
    "a pickle": ("pickle_refused", pickled()),
    "an old pickle": ("not_safetensors", pickled(0)),
    "a zip of a pickle": ("pickle_refused", zipped()),
    "nothing": ("truncated_file", b""),
    "HTML": ("not_safetensors", b"<!DOCTYPE html><html><body>502 Bad Gateway</body></html>"),
    "gzip": ("not_safetensors", b"\x1f\x8b\x08\x00" + b"\x99" * 500),
    "numpy": ("not_safetensors", b"\x93NUMPY\x01\x00" + b"v\x00{'descr': '<f2'}".ljust(500)),
    "GGUF": ("not_safetensors", b"GGUF\x03\x00\x00\x00" + bytes(500)),
    "zeros": ("not_safetensors", b"\x00" * 5000),
    "a header that is no JSON": ("not_safetensors", with_header(b"{" * 64)),
    "a deep header": ("not_safetensors", with_header(b"[" * 100_000)),
    "a deep object as header": ("not_safetensors", with_header(b'{"a":' * 100_000)),
    "a long number as header": ("not_safetensors", with_header(b'{"a": ' + b"9" * 100_000 + b"}")),
    "a list as header": ("not_safetensors", with_header([])),
    "null as header": ("not_safetensors", with_header(None)),
}


def ones(
    shape: int | tuple[int, ...], dtype: type = np.float16, *, at: int | None = None, value: float = 1
) -> RawTensor:
    values = np.ones(shape, dtype=dtype)
    if at is not None:
        values[at] = value
    return raw_tensor(values)


def parts(data: bytes) -> tuple[bytes, bytes]:
    """Header and numbers of a good file."""
    n_header = int.from_bytes(data[:8], "little")
    return data[8 : 8 + n_header].rstrip(), data[8 + n_header :]


def header_says(data: bytes, **fields: object) -> bytes:
    """The same numbers behind a header that says something else of them."""
    header, numbers = parts(data)
    entries = json.loads(header)
    entries["coefficients"] |= fields
    return with_header(entries, numbers)


def with_entries(data: bytes, *, second: str = "", metadata: object = None) -> bytes:
    """The same with a second tensor on top of the first, or other metadata."""
    header, numbers = parts(data)
    entries = json.loads(header)
    if second:
        entries["residual"] = entries[second]
    if metadata is not None:
        entries["__metadata__"] = metadata
    return with_header(entries, numbers)


def header_text(data: bytes, edit: Callable[[bytes], bytes]) -> bytes:
    """The same numbers behind an edited text."""
    header, numbers = parts(data)
    return with_header(edit(header), numbers)


def fixed_files(tiny: TinyModel) -> Iterator[HostileFile]:
    """One of each kind."""
    good = tiny.core_file(1)
    for name, (code, fields) in WRONG_FIELDS.items():
        put_in = {field: text for field, text in fields.items() if text is not None}
        data = edited(good, metadata=put_in, without=fields.keys() - put_in.keys())
        yield HostileFile(f"field: {name}", data, frozenset({code}))
    for name, (code, tensors) in WRONG_TENSORS.items():
        data = edited(good, tensors=tensors(tiny.basis.n_core_numbers))
        yield HostileFile(f"tensor: {name}", data, frozenset({code}))
    for name, (code, broken) in BROKEN.items():
        yield HostileFile(f"broken: {name}", broken(good), frozenset({code}))
    for name, (code, data) in NO_COEFFICIENTS.items():
        yield HostileFile(f"other: {name}", data, frozenset({code}))
    yield HostileFile("other: a basis", tiny.basis_path.read_bytes(), frozenset({"invalid_metadata"}))


def random_files(tiny: TinyModel, seed: int, n: int) -> Iterator[HostileFile]:
    """Variations in turn; equal seeds give equal files."""
    rng = random.Random(seed)
    good = tiny.core_file(1)
    n_numbers = tiny.basis.n_core_numbers
    for i in range(n):
        kind, (codes, make) = list(_RANDOM.items())[i % len(_RANDOM)]
        yield HostileFile(f"{kind} {i}", make(rng, good, n_numbers), frozenset(codes.split()))


def _not_finite(rng: random.Random, good: bytes, n: int) -> bytes:
    dtype, value = rng.choice([np.float16, np.float32]), rng.choice([np.nan, np.inf, -np.inf])
    return edited(good, tensors={"coefficients": ones(n, dtype, at=rng.randrange(n), value=value)})


def _lying_length(rng: random.Random, good: bytes, n: int) -> bytes:
    return struct.pack("<Q", rng.choice([rng.getrandbits(64), rng.randrange(len(good))]) & ~0x80) + good[8:]


def _nested(rng: random.Random, good: bytes, n: int) -> bytes:
    depth, (opening, closing) = rng.randint(33, 20_000), rng.choice([('{"a":', "}"), ("[", "]")])
    return edited(good, metadata={"provenance": opening * depth + "1" + closing * depth})


def _wrong_count(rng: random.Random, good: bytes, n: int) -> bytes:
    return edited(good, tensors={"coefficients": ones(rng.choice([rng.randrange(n), rng.randint(n + 1, 3 * n)]))})


def _extra_tensors(rng: random.Random, good: bytes, n: int) -> bytes:
    names = ["".join(chr(rng.choice([rng.randint(1, 0x2FF), 0x1F600])) for _ in range(9)) for _ in range(3)]
    return edited(good, tensors={name: ones(rng.randrange(50)) for name in names})


def _bad_residual(rng: random.Random, good: bytes, n: int) -> bytes:
    """Never both of one rank and of the site's width, and within the limit; sometimes one half is missing."""
    rank, other = rng.sample(range(20), 2)
    tensors = residual((rank, rng.randint(1, 99)), (rng.randint(1, 99), other))
    return edited(good, tensors=tensors, without=rng.choice([(), (), list(tensors)[:1], list(tensors)[1:]]))


def _wrong_basis(rng: random.Random, good: bytes, n: int) -> bytes:
    return edited(good, metadata={"basis": f"sha256:{rng.randbytes(32).hex()}"})


def _wrong_offsets(rng: random.Random, good: bytes, n: int) -> bytes:
    return header_says(good, data_offsets=[rng.randint(1, 9), rng.getrandbits(40)])


def _pickle_like(rng: random.Random, good: bytes, n: int) -> bytes:
    return b"\x80" + bytes([rng.randint(2, 5)]) + rng.randbytes(7).replace(b"{", b"}") + rng.randbytes(99)


_RANDOM: dict[str, tuple[str, Callable[[random.Random, bytes, int], bytes]]] = {
    "cut": ("truncated_file", lambda rng, good, _: good[: rng.randrange(len(good))]),
    "longer": ("not_safetensors", lambda rng, good, _: good + rng.randbytes(rng.randint(1, 5000))),
    "not finite": ("not_finite", _not_finite),
    "lying length": ("not_safetensors truncated_file", _lying_length),
    "wrong count": ("wrong_length", _wrong_count),
    "extra tensors": ("unknown_tensor", _extra_tensors),
    "bad residual": ("wrong_residual_shape incomplete_residual", _bad_residual),
    "nested": ("invalid_metadata", _nested),
    "wrong basis": ("wrong_basis", _wrong_basis),
    "shape": ("not_safetensors", lambda rng, good, _: header_says(good, shape=[rng.getrandbits(64) | 1 << 20])),
    "offsets": ("not_safetensors truncated_file", _wrong_offsets),
    "noise": ("not_safetensors truncated_file pickle_refused", lambda rng, *_: rng.randbytes(rng.randint(0, 3000))),
    "zip": ("pickle_refused", lambda rng, *_: b"PK\x03\x04" + rng.randbytes(rng.randint(0, 3000))),
    "pickle": ("pickle_refused", _pickle_like),
}
