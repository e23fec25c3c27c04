"""Where in the model a module of an adapter is: at a site, at several that it fuses, or in a part of a fused one."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

from torch import nn

from onebasis.core.errors import InvalidAdapter
from onebasis.fitting.peft.keys import bare_path
from onebasis.model.sites import linear_sites

_FUSED: Final = MappingProxyType({"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")})
"""Layers that hold others' output rows one after another, whole (not a head of each in turn)."""


@dataclass(frozen=True, slots=True)
class SiteShape:
    """Sizes of a site's weight [d_out, d_in]."""

    d_in: int
    d_out: int


@dataclass(frozen=True, slots=True)
class Placement:
    """Rows `start` to `stop` of a module's update are rows from `first_row` on of a site's."""

    site: str
    start: int
    stop: int
    first_row: int = 0


def site_shapes(model: nn.Module) -> dict[str, SiteShape]:
    """Every site of the model, in its order. Raises InvalidModel when it has none."""
    return {name: SiteShape(layer.in_features, layer.out_features) for name, layer in linear_sites(model).items()}


class SiteMap:
    """Finds the sites of a module by its path. Immutable."""

    def __init__(self, folder: Path, sites: Mapping[str, SiteShape]) -> None:
        self._folder = folder
        self._sites = sites
        self._parents: dict[str, set[str]] = {}  # path without containers -> paths in the model
        for site in sites:
            parent = _parent(site)
            self._parents.setdefault(bare_path(parent), set()).add(parent)

    def model_path(self, saved_path: str) -> str:
        """A module's path as the model spells it.

        Raises:
            InvalidAdapter: the model has no such place, or more than one.
        """
        parent, name = _parent(saved_path), _name(saved_path)
        parents = self._parents.get(bare_path(parent), set())
        if len(parents) > 1 and parent in parents:
            parents = {parent}
        if len(parents) != 1:
            found = "no layer" if not parents else f"{len(parents)} layers"
            raise InvalidAdapter(
                self._folder,
                f"module {saved_path!r:.200}: the model has {found} of that path; only linear layers inside of the "
                f"decoder's layers can be adapted, so use the base model the adapter was trained on, without heads",
            )
        return f"{next(iter(parents))}.{name}"

    def placements(self, path: str, d_out: Mapping[str, int]) -> list[Placement]:
        """Where the update of the module at `path` (the model's spelling) goes.

        Args:
            d_out: rows of every module of the adapter, by path.

        Raises:
            InvalidAdapter: neither a site, nor a fusion of sites, nor part of one; or sizes that do not fit.
        """
        if path in self._sites:
            return [Placement(path, 0, self._sites[path].d_out)]
        parent, name = _parent(path), _name(path)
        split = [f"{parent}.{part}" for part in _FUSED.get(name, ())]
        if split and all(site in self._sites for site in split):
            return list(self._one_after_another(split))
        for fused, parts in _FUSED.items():
            site = f"{parent}.{fused}"
            if name in parts and site in self._sites:
                first_row = self._first_row(site, parts, parts.index(name), d_out)
                return [Placement(site, 0, d_out[path], first_row)]
        raise InvalidAdapter(
            self._folder, f"module {path!r:.200}: the model has no linear layer there; use the adapter's own base model"
        )

    def _one_after_another(self, split: list[str]) -> Iterator[Placement]:
        start = 0
        for site in split:
            stop = start + self._sites[site].d_out
            yield Placement(site, start, stop)
            start = stop

    def _first_row(self, fused: str, parts: tuple[str, ...], index: int, d_out: Mapping[str, int]) -> int:
        """Where a part begins in a fused site. The last two parts (k and v, gate and up) are of one size."""
        parent, total = _parent(fused), self._sites[fused].d_out
        known = [d_out.get(f"{parent}.{part}") for part in parts]
        tail = known[-1] or known[-2] or (total - (known[0] or 0)) // 2
        sizes = [total - 2 * tail, tail, tail][-len(parts) :]
        if (
            any(size is not None and size != fits for size, fits in zip(known, sizes, strict=True))
            or sum(sizes) != total
        ):
            raise InvalidAdapter(
                self._folder, f"{fused} has {total} rows, the adapter's {', '.join(parts)} have {known}; they don't fit"
            )
        return sum(sizes[:index])


def _parent(path: str) -> str:
    return path.rpartition(".")[0]


def _name(path: str) -> str:
    return path.rpartition(".")[2]
