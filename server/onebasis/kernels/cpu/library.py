"""The compiled library and its structures; they mirror source/decoder.cpp and source/linear.h, which explain them."""

import ctypes
from ctypes import POINTER, Structure, c_float, c_int32, c_int64, c_void_p
from pathlib import Path
from typing import Any, ClassVar, Final

import torch
from torch import Tensor

PANEL: Final = 32
"""Columns of a panel."""
HALF: Final = 16
BLOCK_SIZE: Final = 16
"""Tokens of a block of the KV cache."""
HEAD_DIMS: Final = (16, 32, 64, 80, 96, 128)
MOST_SITES: Final = 3
"""Sites of a group."""
NEEDED_CPU_FLAGS: Final = ("avx512f", "avx512bw", "avx512vbmi", "avx512_bf16")


class Site(Structure):
    _fields_: ClassVar[Any] = [
        ("k_in", c_int32),
        ("k_out", c_int32),
        ("z_offset", c_int32),
        ("mixed_offset", c_int32),
        ("core_offset", c_int64),
        ("number", c_int32),
    ]


class Group(Structure):
    _fields_: ClassVar[Any] = [
        ("n_in", c_int32),
        ("n_panels", c_int32),
        ("n_v_panels", c_int32),
        ("n_sites", c_int32),
        ("mixed_width", c_int32),
        ("weight", c_void_p),
        ("scales", c_void_p),
        ("bias", c_void_p),
        ("v", c_void_p),
        ("u", c_void_p),
        ("u_offsets", c_void_p),
        ("half_sites", c_void_p),
        ("half_columns", c_void_p),
        ("sites", c_void_p),
    ]


class Residual(Structure):
    _fields_: ClassVar[Any] = [
        ("a", c_void_p),
        ("b", c_void_p),
        ("rank", c_int32),
        ("d_in", c_int32),
        ("d_out", c_int32),
    ]


class Residuals(Structure):
    _fields_: ClassVar[Any] = [("tables", c_void_p), ("low", c_void_p), ("max_rank", c_int32)]


class Tasks(Structure):
    _fields_: ClassVar[Any] = [
        ("rows", c_void_p),
        ("cores", c_void_p),
        ("row_stride", c_int64),
        ("residuals", Residuals),
    ]


class Layer(Structure):
    _fields_: ClassVar[Any] = [
        ("qkv", Group),
        ("output", Group),
        ("gate_up", Group),
        ("down", Group),
        ("input_norm", c_void_p),
        ("middle_norm", c_void_p),
        ("query_norm", c_void_p),
        ("key_norm", c_void_p),
        ("keys", c_void_p),
        ("values", c_void_p),
        ("window", c_int32),
    ]


class Model(Structure):
    _fields_: ClassVar[Any] = [
        ("n_layers", c_int32),
        ("hidden", c_int32),
        ("n_heads", c_int32),
        ("n_kv_heads", c_int32),
        ("head_dim", c_int32),
        ("intermediate", c_int32),
        ("n_vocab", c_int32),
        ("norm_eps", c_float),
        ("scaling", c_float),
        ("embeddings", c_void_p),
        ("final_norm", c_void_p),
        ("cos", c_void_p),
        ("sin", c_void_p),
        ("layers", POINTER(Layer)),
        ("head", Group),
    ]


class Step(Structure):
    _fields_: ClassVar[Any] = [
        ("n_tokens", c_int32),
        ("n_samples", c_int32),
        ("max_visible", c_int32),
        ("token_ids", c_void_p),
        ("positions", c_void_p),
        ("kv_rows", c_void_p),
        ("block_offsets", c_void_p),
        ("blocks", c_void_p),
        ("tasks", Tasks),
        ("sample_rows", c_void_p),
        ("logits", c_void_p),
        ("best", c_void_p),
        ("workspace", c_void_p),
    ]


class LayerUpdate(Structure):
    _fields_: ClassVar[Any] = [
        ("n_tokens", c_int32),
        ("d_in", c_int32),
        ("n_sites", c_int32),
        ("k_in", c_int32),
        ("k_out", c_int32),
        ("x_stride", c_int64),
        ("y_stride", c_int64),
        ("u_stride", c_int64),
        ("x", c_void_p),
        ("y", c_void_p),
        ("v", c_void_p),
        ("u", c_void_p),
        ("columns", c_void_p),
        ("cores", c_void_p),
        ("row_stride", c_int64),
        ("site_stride", c_int64),
        ("out_stride", c_int64),
        ("rows", c_void_p),
        ("base_row", c_int64),
    ]


class Library:
    """The library's functions.

    Raises:
        OSError: the file can't be loaded.
        RuntimeError: its structures are not the ones here.
    """

    def __init__(self, path: Path) -> None:
        self._functions = ctypes.CDLL(str(path))
        self._functions.onebasis_make_team.restype = c_void_p
        self._functions.onebasis_workspace_bytes.restype = c_int64
        self._functions.onebasis_struct_bytes.restype = c_int64
        for which, structure in enumerate((Site, Group, Residual, Tasks, Layer, Model, Step, LayerUpdate)):
            found = self._functions.onebasis_struct_bytes(c_int32(which))
            if found != ctypes.sizeof(structure):
                raise RuntimeError(f"{path}: {structure.__name__} has {found} bytes, not {ctypes.sizeof(structure)}")

    def pack(self, weight: Tensor) -> Tensor:
        """[n_out, n_in] bfloat16 as panels: [panels of n_out, n_in / 2, 32, 2]."""
        n_out, n_in = weight.shape
        weight = weight.detach().to(torch.bfloat16).contiguous()
        packed = torch.empty(-(-n_out // PANEL), n_in // 2, PANEL, 2, dtype=torch.bfloat16)
        self._functions.onebasis_pack_panels(
            c_void_p(weight.data_ptr()), c_int32(n_out), c_int32(n_in), c_void_p(packed.data_ptr())
        )
        return packed

    def exp_negative(self, numbers: Tensor) -> Tensor:
        """e^x of numbers that are not positive, as softmax and silu of a step compute it. [n] float32, n by 16."""
        result = numbers.clone()
        self._functions.onebasis_exp_negative(c_void_p(result.data_ptr()), c_int32(result.shape[0]))
        return result

    def make_team(self, n_threads: int) -> int:
        """Start the threads that compute steps together, but for one, who is whoever calls `run_step`."""
        team: int = self._functions.onebasis_make_team(c_int32(n_threads))
        return team

    def end_team(self, team: int) -> None:
        """End its threads; the number means nothing any more."""
        self._functions.onebasis_end_team(c_void_p(team))

    def workspace_bytes(self, model: Model, max_tokens: int, max_visible: int, n_threads: int) -> int:
        """Scratch that a step of so many tokens needs."""
        size: int = self._functions.onebasis_workspace_bytes(
            ctypes.byref(model), c_int32(max_tokens), c_int32(max_visible), c_int32(n_threads)
        )
        return size

    def run_step(self, team: int, model: Model, step: Step) -> None:
        """Compute, one step of a team at a time; other Python threads run meanwhile."""
        self._functions.onebasis_run_step(c_void_p(team), ctypes.byref(model), ctypes.byref(step))

    def argmax(self, numbers: Tensor) -> int:
        """Where the highest of [n] float32 is, as the logits of a step are searched; as torch's argmax says it."""
        place: int = self._functions.onebasis_argmax(c_void_p(numbers.data_ptr()), c_int32(numbers.shape[0]))
        return place

    def add_update(self, update: LayerUpdate) -> None:
        """y += U^T S_t (V x); other Python threads run meanwhile. update.py fills the structure in and checks sizes."""
        self._functions.onebasis_add_update(ctypes.byref(update))
