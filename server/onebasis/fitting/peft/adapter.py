"""Open a PEFT LoRA adapter: everything is checked from the header first, the numbers are read site by site."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Final

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from onebasis.coefficients.container import Header, read_header
from onebasis.core.errors import CoefficientError, InvalidAdapter
from onebasis.core.ids import Digest, digest_of_file
from onebasis.fitting.low_rank import LowRankUpdate
from onebasis.fitting.peft.config import read_config
from onebasis.fitting.peft.keys import Part
from onebasis.fitting.peft.modules import LoraModule, collect_modules
from onebasis.fitting.peft.sites import Placement, SiteMap, SiteShape

WEIGHTS_NAME: Final = "adapter_model.safetensors"
_PICKLE_NAME: Final = "adapter_model.bin"
_HEADER_BYTES_PER_SITE: Final = 4096  # four tensors of long names take a quarter


@dataclass(frozen=True, eq=False)
class PeftAdapter(Mapping[str, LowRankUpdate]):
    """An adapter whose every tensor has its place in the model: updates by site, in the model's order.

    Its numbers are still in the file; each look-up reads those of one site.

    Attributes:
        name: of its folder.
        base_model: what its configuration calls the model it was trained on; not checked.
    """

    name: str
    base_model: str | None
    _folder: Path
    _shapes: Mapping[str, SiteShape]
    _sources: Mapping[str, tuple[tuple[LoraModule, Placement], ...]]  # by site

    @property
    def sites(self) -> tuple[str, ...]:
        """Sites that it adapts, in the model's order."""
        return tuple(self._sources)

    @property
    def scales(self) -> tuple[float, ...]:
        """What its updates are multiplied with (alpha / rank), smallest first, each once."""
        return tuple(sorted({module.scale for sources in self._sources.values() for module, _ in sources}))

    @property
    def ranks(self) -> tuple[int, ...]:
        """Ranks of its modules, smallest first, each once."""
        return tuple(sorted({module.rank for sources in self._sources.values() for module, _ in sources}))

    def __getitem__(self, site: str) -> LowRankUpdate:
        return self.update(site)

    def __iter__(self) -> Iterator[str]:
        return iter(self._sources)

    def __len__(self) -> int:
        return len(self._sources)

    @cached_property
    def digest(self) -> Digest:
        """Identity of its weights file."""
        return digest_of_file(self._folder / WEIGHTS_NAME)

    def update(self, site: str) -> LowRankUpdate:
        """Read one site's update, its scale folded in.

        Raises:
            KeyError: the adapter leaves this site alone.
            InvalidAdapter: a number that is not finite, as it is or with its scale.
        """
        sources = self._sources[site]
        with safe_open(self._folder / WEIGHTS_NAME, framework="pt") as file:
            parts = [(placement, *_factors(file, self._folder, module)) for module, placement in sources]
        shape = self._shapes[site]
        columns = [_rows_in_place(b, placement, shape.d_out) for placement, b, _ in parts]
        return LowRankUpdate(torch.cat(columns, dim=1), torch.cat([a for _, _, a in parts], dim=0))


def open_adapter(folder: Path, model_sites: Mapping[str, SiteShape]) -> PeftAdapter:
    """Check an adapter's configuration and all of its tensors against the sites of a model.

    Raises:
        InvalidAdapter: files are missing or damaged, or a tensor has no place in the model, with the reason.
        UnsupportedAdapter: a feature that is not read, by its field.
    """
    config = read_config(folder)
    header = _read_header(folder, n_sites=len(model_sites))
    site_map = SiteMap(folder, model_sites)
    modules = collect_modules(folder, header, config, site_map)
    d_out = {module.path: module.d_out for module in modules}
    sources: dict[str, list[tuple[LoraModule, Placement]]] = {site: [] for site in model_sites}
    for module in modules:
        placements = site_map.placements(module.path, d_out)
        _check_size(folder, module, placements, model_sites)
        for placement in placements:
            sources[placement.site].append((module, placement))
    _check_overlaps(folder, sources)
    return PeftAdapter(
        name=folder.resolve().name,
        base_model=config.base_model,
        _folder=folder,
        _shapes=model_sites,
        _sources={site: tuple(found) for site, found in sources.items() if found},
    )


def _read_header(folder: Path, *, n_sites: int) -> Header:
    path = folder / WEIGHTS_NAME
    if not path.is_file():
        if (folder / _PICKLE_NAME).exists():
            raise InvalidAdapter(
                folder,
                f"{_PICKLE_NAME} is a pickle, which can run code, and is never opened; where you trust it, load it "
                f"with PEFT and save it again (save_pretrained writes {WEIGHTS_NAME})",
            )
        raise InvalidAdapter(folder, f"no {WEIGHTS_NAME}; give the folder that PEFT's save_pretrained wrote")
    limit = (1 << 20) + n_sites * _HEADER_BYTES_PER_SITE
    with path.open("rb") as file:
        announced = int.from_bytes(file.read(8), "little")
    if limit < announced <= path.stat().st_size:
        raise InvalidAdapter(
            folder, f"the header has {announced} bytes; an adapter of this model's {n_sites} sites needs under {limit}"
        )
    try:
        header = read_header(path)
        with safe_open(path, framework="pt"):  # the library compares every offset with its shape and type
            return header
    except (CoefficientError, SafetensorError) as error:
        raise InvalidAdapter(folder, f"{WEIGHTS_NAME}: {error}") from error


def _check_size(folder: Path, module: LoraModule, placements: list[Placement], sites: Mapping[str, SiteShape]) -> None:
    for placement in placements:
        d_in = sites[placement.site].d_in
        d_out = placements[-1].stop
        if (module.d_in, module.d_out) != (d_in, d_out):
            raise InvalidAdapter(
                folder,
                f"module {module.path!r}: the adapter is for a weight of {module.d_out} x {module.d_in}, the model's "
                f"is {d_out} x {d_in}; use the base model it was trained on",
            )


def _check_overlaps(folder: Path, sources: Mapping[str, list[tuple[LoraModule, Placement]]]) -> None:
    """A row is adapted once: not by a fused module and by one of its parts."""
    for site, found in sources.items():
        spans = sorted((place.first_row, place.first_row + place.stop - place.start) for _, place in found)
        if any(before[1] > after[0] for before, after in pairwise(spans)):
            names = " and ".join(module.path for module, _ in found)
            raise InvalidAdapter(folder, f"{names} both adapt {site}; save the adapter for one of the two spellings")


def _factors(file: safe_open, folder: Path, module: LoraModule) -> tuple[Tensor, Tensor]:
    """(B [d_out, r], A [r, d_in]) of a whole module, everything between them and the scale folded into B."""
    read = {part: file.get_tensor(name).float() for part, name in module.tensors.items()}
    for part, tensor in read.items():
        if not tensor.isfinite().all():
            n_bad = int((~tensor.isfinite()).sum())
            raise InvalidAdapter(folder, f"{module.tensors[part]!r} has {n_bad} numbers that are NaN or infinite")
    a = _block_diagonal(read[Part.A], module.a_blocks)
    b = _block_diagonal(read[Part.B], module.b_blocks) * module.scale
    if Part.E in read:
        b = b * read[Part.E].T
    if Part.RANKNUM in read:
        b = b / (read[Part.RANKNUM] + 1e-5)
    if Part.R in read:
        b = b @ read[Part.R]
    if not b.isfinite().all():
        raise InvalidAdapter(folder, f"module {module.path!r}: its factors times {module.scale:g} exceed float32")
    return b, a


def _block_diagonal(stored: Tensor, n_blocks: int) -> Tensor:
    if n_blocks == 1:
        return stored
    whole: Tensor = torch.block_diag(*stored.chunk(n_blocks, dim=0))  # type: ignore[no-untyped-call]
    return whole


def _rows_in_place(b: Tensor, placement: Placement, d_out: int) -> Tensor:
    """[d_out, r] with the placement's rows of B where they belong, zero elsewhere."""
    rows = b[placement.start : placement.stop]
    if len(rows) == d_out:
        return rows
    column = b.new_zeros(d_out, b.shape[1])
    column[placement.first_row : placement.first_row + len(rows)] = rows
    return column
