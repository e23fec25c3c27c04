"""Which decoder computes the steps of this model, on this device and machine."""

import logging
from dataclasses import dataclass
from typing import Literal

from onebasis.coefficients.arena import Arena
from onebasis.core.errors import SetupError
from onebasis.engine.runner import StepDecoder
from onebasis.engine.self_check import SelfCheck
from onebasis.kernels.cpu.build import CannotBuild, build_library
from onebasis.kernels.cpu.library import Library
from onebasis.model.adapted import StepTasks, adapt_model
from onebasis.model.decode_graphs import CudaGraphs, DecodeGraphs
from onebasis.model.decoder import Decoder
from onebasis.model.factors import Basis
from onebasis.model.kv_cache import KVCache
from onebasis.model.loader import LoadedBase
from onebasis.model.native_decoder import NativeDecoder, Quantization, TaskTable, why_not

_log = logging.getLogger(__name__)

Kernels = Literal["auto", "native", "torch"]


@dataclass(frozen=True, slots=True)
class StepSizes:
    """Bounds that a decoder makes room for; n_blocks of block_size tokens are the KV cache.

    n_threads: that compute a step of the native decoder; the torch decoder has torch's.
    """

    n_blocks: int
    block_size: int
    max_running: int
    max_step_tokens: int
    max_model_len: int
    n_threads: int


def build_decoder(
    base: LoadedBase,
    basis: Basis | None,
    arena: Arena | None,
    *,
    kernels: Kernels,
    quantization: Quantization | None,
    cuda_graphs: bool,
    sizes: StepSizes,
) -> StepDecoder:
    """The fastest decoder that can run, seen to compute what transformers does; it takes over the layers of `base`.

    Raises:
        SetupError: kernels is "native" or there is a quantization, which that one alone has, and it can't run here.
            InvalidModel if the decoder computes something else than the model.
    """
    check = SelfCheck(
        base,
        n_blocks=sizes.n_blocks,
        block_size=sizes.block_size,
        max_step_tokens=sizes.max_step_tokens,
        max_model_len=sizes.max_model_len,
    )
    library = _native_library(base, kernels, quantization, sizes.block_size)
    decoder: StepDecoder
    if library is not None:
        decoder = _native(base, basis, arena, library, quantization, sizes)
    elif cuda_graphs:
        decoder = _recorded(_torch(base, basis, arena, sizes), sizes, with_tasks=basis is not None)
    else:
        decoder = _torch(base, basis, arena, sizes)
    check.run(decoder)
    return decoder


def _native_library(
    base: LoadedBase, kernels: Kernels, quantization: Quantization | None, block_size: int
) -> Library | None:
    """What computes the native step; None where the torch decoder does. Raises SetupError where that one may not."""
    reason = "kernels=torch" if kernels == "torch" else why_not(base, block_size)
    try:
        if reason is None:
            return Library(build_library())
    except (CannotBuild, OSError, RuntimeError) as error:
        reason = str(error)
    if quantization is not None:
        raise SetupError(
            f"quantization={quantization} needs the native kernels, which can't run here: {reason}; leave it out"
        )
    if kernels == "native":
        raise SetupError(f"kernels=native can't run here: {reason}; use kernels=auto to fall back to torch")
    _log.info("the step runs in torch: %s", reason)
    return None


def _native(
    base: LoadedBase,
    basis: Basis | None,
    arena: Arena | None,
    library: Library,
    quantization: Quantization | None,
    sizes: StepSizes,
) -> NativeDecoder:
    return NativeDecoder(
        base,
        basis,
        None if arena is None else TaskTable(arena.table, arena.site_offsets),
        library,
        n_blocks=sizes.n_blocks,
        max_step_tokens=sizes.max_step_tokens,
        max_model_len=sizes.max_model_len,
        n_threads=sizes.n_threads,
        quantization=quantization,
    )


def _torch(base: LoadedBase, basis: Basis | None, arena: Arena | None, sizes: StepSizes) -> Decoder:
    dtype, device = base.model.dtype, base.model.device
    step = StepTasks(0 if arena is None else arena.base_row)
    adapt_model(base.model, basis, {} if arena is None else arena.site_cores, step)
    cache = KVCache(base.text_config, n_blocks=sizes.n_blocks, block_size=sizes.block_size, dtype=dtype, device=device)
    return Decoder(base, cache, step)


def _recorded(decoder: Decoder, sizes: StepSizes, *, with_tasks: bool) -> StepDecoder:
    """The decoder with its decode steps as CUDA graphs, where that can be."""
    if not decoder.can_be_recorded:
        return decoder
    try:
        return DecodeGraphs(
            decoder,
            max_seqs=sizes.max_running,
            max_model_len=sizes.max_model_len,
            with_tasks=with_tasks,
            record=CudaGraphs(),
        )
    except RuntimeError as error:
        _log.warning("decode steps run without CUDA graphs: %s", error)
        return decoder
