"""The modules of an adapter, from the header of its file alone: parts paired, shapes checked, scale known."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from onebasis.coefficients.container import Header
from onebasis.core.errors import InvalidAdapter
from onebasis.fitting.peft.config import AdapterConfig, BlockDiagonal
from onebasis.fitting.peft.keys import Part, parse_key
from onebasis.fitting.peft.patterns import value_for
from onebasis.fitting.peft.sites import SiteMap

_DTYPES: Final = ("F16", "BF16", "F32")
_ADALORA_EPSILON: Final = 1e-5  # PEFT's, beside the rank it divides by


@dataclass(frozen=True, slots=True)
class LoraModule:
    """One adapted layer: dW = scale * B R diag(E) A, of tensors that are still in the file.

    `tensors` are names by part, `path` is the model's spelling. `scale` leaves out RANKNUM, where the file has it.
    `a_blocks` and `b_blocks` are 1 unless that factor is block-diagonal and only its blocks are stored.
    """

    path: str
    tensors: Mapping[Part, str]
    rank: int
    d_in: int
    d_out: int
    scale: float
    a_blocks: int = 1
    b_blocks: int = 1


def collect_modules(folder: Path, header: Header, config: AdapterConfig, sites: SiteMap) -> list[LoraModule]:
    """Every tensor of the file in its place, in the order of their names.

    Modules that AdaLoRA has pruned to rank 0 are left out.

    Raises:
        InvalidAdapter: a tensor that is unknown, comes twice, has no counterpart, a wrong shape, rank or type.
        UnsupportedAdapter: a tensor of a feature that is not read.
    """
    tensors: dict[str, dict[Part, str]] = {}
    saved_paths: dict[str, str] = {}
    for name in sorted(header.shapes):
        key = parse_key(folder, name)
        path = sites.model_path(key.module)
        parts = tensors.setdefault(path, {})
        if key.part in parts:
            raise InvalidAdapter(folder, f"{parts[key.part]!r:.200} and {name!r:.200} are the same part of one module")
        if header.dtypes[name] not in _DTYPES:
            found, allowed = header.dtypes[name], ", ".join(_DTYPES)
            raise InvalidAdapter(folder, f"tensor {name!r:.200} is {found[:20]}; allowed: {allowed}")
        parts[key.part] = name
        saved_paths.setdefault(path, key.module)
    if not tensors:
        raise InvalidAdapter(folder, "the file has no tensors; save the adapter again")
    modules = [_module(folder, header, config, path, saved_paths[path], parts) for path, parts in tensors.items()]
    return [module for module in modules if module.rank]


def _module(
    folder: Path, header: Header, config: AdapterConfig, path: str, saved_path: str, tensors: Mapping[Part, str]
) -> LoraModule:
    needed = {Part.A, Part.B, Part.E} if config.is_adalora else {Part.A, Part.B}
    missing = needed - tensors.keys()
    extra = tensors.keys() - needed - ({Part.RANKNUM} if config.is_adalora else {Part.R})
    if missing or extra:
        what = ", ".join(sorted(missing)) if missing else f"place for {', '.join(sorted(extra))}"
        raise InvalidAdapter(folder, f"module {saved_path!r:.200} has no {what}; save the adapter again, whole")
    shapes = {part: header.shapes[name] for part, name in tensors.items()}
    if len(shapes[Part.A]) != 2 or len(shapes[Part.B]) != 2:
        raise InvalidAdapter(
            folder,
            f"module {saved_path!r:.200}: lora_A {shapes[Part.A]} and lora_B {shapes[Part.B]} need two dimensions; "
            f"an adapter saved from shards has to be gathered first",
        )
    a_blocks, b_blocks = _blocks(config.block_diagonal, path)
    rank = shapes[Part.A][0]
    b_rank = shapes[Part.B][1] * b_blocks
    if rank != b_rank:
        raise InvalidAdapter(folder, f"module {saved_path!r:.200}: lora_A has rank {rank}, lora_B {b_rank}")
    expected = {Part.E: (rank, 1), Part.R: (rank, rank), Part.RANKNUM: (1,)}
    for part in expected.keys() & shapes.keys():
        if shapes[part] != expected[part]:
            raise InvalidAdapter(folder, f"{tensors[part]!r:.200} is {shapes[part]}, needs {expected[part]}")
    return LoraModule(
        path=path,
        tensors=tensors,
        rank=rank,
        d_in=shapes[Part.A][1] * a_blocks,
        d_out=shapes[Part.B][0],
        scale=_scale(folder, config, path, saved_path, rank, has_ranknum=Part.RANKNUM in tensors),
        a_blocks=a_blocks,
        b_blocks=b_blocks,
    )


def _scale(folder: Path, config: AdapterConfig, path: str, saved_path: str, rank: int, *, has_ranknum: bool) -> float:
    alpha = value_for(
        folder, "alpha_pattern", config.alpha_pattern, saved_path=saved_path, model_path=path, default=config.alpha
    )
    if config.is_adalora:
        return alpha if has_ranknum else alpha / (config.rank + _ADALORA_EPSILON)
    declared = value_for(
        folder, "rank_pattern", config.rank_pattern, saved_path=saved_path, model_path=path, default=config.rank
    )
    if declared != rank:
        raise InvalidAdapter(
            folder,
            f"module {saved_path!r:.200} has rank {rank} in the file, {declared} by r and rank_pattern; the first "
            f"pattern that matches holds, and PEFT sorts them when it saves",
        )
    return alpha / math.sqrt(rank) if config.use_rslora else alpha / rank


def _blocks(bd_lora: BlockDiagonal | None, path: str) -> tuple[int, int]:
    """Blocks of A and of B. PEFT looks for the patterns in the last word of a path."""
    if bd_lora is None:
        return 1, 1
    name = path.rpartition(".")[2]
    if any(pattern in name for pattern in bd_lora.of_a):
        return bd_lora.n_blocks, 1
    if any(pattern in name for pattern in bd_lora.of_b):
        return 1, bd_lora.n_blocks
    return 1, 1
