"""The numbers of a tensor in a file, in the file's own width and widened. No torch."""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from onebasis.coefficients.container import RawTensor
from onebasis.core.errors import NotFinite, WrongDtype

NUMBER_DTYPES: Final = ("F16", "BF16", "F32")
_STORED: Final = {"F16": "<f2", "BF16": "<u2", "F32": "<f4"}
_EXPONENT: Final = {"F16": ("<u2", 0x7C00), "BF16": ("<u2", 0x7F80), "F32": ("<u4", 0x7F800000)}
_WRITTEN: Final = {np.dtype(np.float16): "F16", np.dtype(np.float32): "F32"}


def read_numbers(name: str, tensor: RawTensor) -> NDArray[np.generic]:
    """[*shape] float16, float32, or uint16 holding bfloat16; all finite.

    Raises:
        WrongDtype, NotFinite: with the tensor's name.
    """
    if tensor.dtype not in NUMBER_DTYPES:
        raise WrongDtype(name, found=tensor.dtype, allowed=NUMBER_DTYPES)
    width, exponent = _EXPONENT[tensor.dtype]
    bits = np.frombuffer(tensor.data, dtype=width)
    bad = np.flatnonzero((bits & exponent) == exponent)  # IEEE 754: infinities and NaN have every bit of it set
    if bad.size:
        raise NotFinite(name, n_bad=int(bad.size), first=int(bad[0]))
    return bits.view(_STORED[tensor.dtype]).reshape(tensor.shape)


def raw_numbers(name: str, values: NDArray[Any]) -> RawTensor:
    """A tensor of float16 or float32, kept as given. Raises WrongDtype for any other."""
    dtype = _WRITTEN.get(values.dtype)
    if dtype is None:
        raise WrongDtype(name, found=str(values.dtype), allowed=tuple(map(str, _WRITTEN)))
    return RawTensor(dtype, values.shape, np.ascontiguousarray(values, values.dtype.newbyteorder("<")).tobytes())


def widen(values: NDArray[np.generic]) -> NDArray[np.float32]:
    """The same in float32, exact."""
    if values.dtype == np.uint16:  # bfloat16 is the upper half of a float32
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32)
