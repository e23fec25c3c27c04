"""The safetensors container, read and written as bytes. No torch.

Reading is the safetensors library's (it checks every offset). Ours are the reason of a refusal, and writing
with sorted keys: the library orders metadata at random, and an identity by bytes needs one order.
"""

import json
import operator
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors

from onebasis.core.errors import NotSafetensors, PickleRefused, TruncatedFile

_HEADER_LENGTH = struct.Struct("<Q")
_MAX_HEADER_BYTES = 100_000_000  # the library's own bound
_PICKLE = b"\x80"  # also how the length of a header of 128, 384, ... bytes begins
_ZIP = b"PK\x03\x04"


@dataclass(frozen=True, slots=True)
class RawTensor:
    """A tensor as it lies in the file. dtype is safetensors' name: F16, BF16, F32, ..."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes


@dataclass(frozen=True, slots=True)
class Header:
    """What a file says of itself before its numbers. Shapes by tensor name, dtypes by tensor name."""

    metadata: Mapping[str, str]
    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Container:
    """A whole file."""

    metadata: Mapping[str, str]
    tensors: Mapping[str, RawTensor]


def read_container(data: bytes) -> Container:
    """Parse a whole file held in memory.

    Raises:
        PickleRefused, TruncatedFile, NotSafetensors: with the reason.
    """
    _refuse_pickle(data[:9])
    header = _parse_header(data[8 : 8 + _header_length(data[:8], size_bytes=len(data))], size_bytes=len(data))
    try:
        tensors = safetensors.deserialize(data)
    except safetensors.SafetensorError as error:
        raise NotSafetensors(str(error)) from error
    return Container(
        metadata=header.metadata,
        tensors={
            name: RawTensor(tensor["dtype"], tuple(tensor["shape"]), bytes(tensor["data"])) for name, tensor in tensors
        },
    )


def read_header(path: Path) -> Header:
    """Parse a file's header alone; the numbers are not touched.

    Raises:
        OSError: the file can't be read.
        PickleRefused, TruncatedFile, NotSafetensors: with the reason.
    """
    size_bytes = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(9)
        _refuse_pickle(start)
        length = _header_length(start[:8], size_bytes=size_bytes)
        file.seek(_HEADER_LENGTH.size)
        return _parse_header(file.read(length), size_bytes=size_bytes)


def write_container(container: Container) -> bytes:
    """Serialise with sorted metadata and tensors: equal content gives equal bytes, on every machine."""
    header: dict[str, object] = {"__metadata__": dict(sorted(container.metadata.items()))}
    position = 0
    chunks: list[bytes] = []
    for name, tensor in sorted(container.tensors.items()):
        end = position + len(tensor.data)
        header[name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [position, end]}
        chunks.append(tensor.data)
        position = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return b"".join([_HEADER_LENGTH.pack(len(text)), text, *chunks])


def unique_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; parsers differ on which one counts of two fields of one name. Raises ValueError for such."""
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise ValueError("a name comes twice")
    return fields


def _refuse_pickle(start: bytes) -> None:
    if start.startswith(_ZIP) or (start.startswith(_PICKLE) and start[8:9] != b"{"):
        raise PickleRefused


def _header_length(start: bytes, *, size_bytes: int) -> int:
    if len(start) < _HEADER_LENGTH.size:
        raise TruncatedFile(needed_bytes=_HEADER_LENGTH.size, found_bytes=size_bytes)
    (length,) = _HEADER_LENGTH.unpack(start)
    if length > _MAX_HEADER_BYTES:
        raise NotSafetensors(f"it announces a header of {length} bytes")
    if _HEADER_LENGTH.size + length > size_bytes:
        raise TruncatedFile(needed_bytes=_HEADER_LENGTH.size + length, found_bytes=size_bytes)
    return int(length)


def _parse_header(text: bytes, *, size_bytes: int) -> Header:
    try:
        fields = json.loads(text, object_pairs_hook=unique_names)
        metadata = fields.pop("__metadata__", {})
        shapes = {name: tuple(map(operator.index, tensor["shape"])) for name, tensor in fields.items()}
        dtypes = {name: str(tensor["dtype"]) for name, tensor in fields.items()}
        end = max((operator.index(tensor["data_offsets"][1]) for tensor in fields.values()), default=0)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
        raise NotSafetensors("its header is not the JSON of a safetensors file, or has a name twice") from error
    needed = _HEADER_LENGTH.size + len(text) + end
    if needed > size_bytes:
        raise TruncatedFile(needed_bytes=needed, found_bytes=size_bytes)
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise NotSafetensors("its metadata is not a table of strings")
    return Header(metadata=metadata, shapes=shapes, dtypes=dtypes)
