"""A LoRA adapter as a coefficient file: its projection, a private remainder if wanted, and the truth about both."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from onebasis import __version__
from onebasis.coefficients.format import write_coefficients
from onebasis.core.errors import LowFidelity, SetupError
from onebasis.core.residual import Residual
from onebasis.fitting.calibration import OutputFidelity
from onebasis.fitting.low_rank import LowRankUpdate, best_of_rank
from onebasis.fitting.peft.adapter import PeftAdapter
from onebasis.fitting.projection import Projection, prefix, remainder, share_kept
from onebasis.model.factors import Basis

_N_WORST: Final = 5
_MAX_ROUNDING: Final = 1e-3  # of a core's norm; float16 has 3e-4 where it does not underflow
_NOTHING: Final = 1e-12  # of an update's energy: the rounding of float32


@dataclass(frozen=True, slots=True)
class ImportSettings:
    """What to make of an adapter.

    Attributes:
        k: use the first k rows of the basis alone; all when None.
        residual_rank: of what is kept beside the basis at each site; 0 for none.
        min_energy: share of the adapter's energy below which nothing is written. It is the share of outputs if
            the cores were chosen by outputs.
    """

    task: str
    k: int | None = None
    residual_rank: int = 0
    min_energy: float = 0.0

    def __post_init__(self) -> None:
        if self.residual_rank < 0:
            raise SetupError(f"residual rank {self.residual_rank}: needs a whole number from 0")
        if not 0 <= self.min_energy <= 1:
            raise SetupError(f"minimum of energy {self.min_energy}: needs a share from 0 to 1")


@dataclass(frozen=True, slots=True)
class ImportReport:
    """What was kept; energies as fitting/projection.py defines them, of the numbers as they are stored.

    Attributes:
        energy_kept: by the cores alone.
        energy_kept_with_residual: by both; None without a residual.
        energy_kept_by_random: what a random basis of the same sizes would keep.
        worst: the sites that keep the least, with what they keep in all.
        n_sites_without_basis: sites of the adapter that the basis does not have; they are lost.
        core_bytes, residual_bytes: of the numbers; the file's header comes on top.
    """

    energy_kept: float
    energy_kept_with_residual: float | None
    energy_kept_by_random: float
    outputs: OutputFidelity | None
    worst: tuple[tuple[str, float], ...]
    n_sites: int
    n_sites_without_basis: int
    core_bytes: int
    residual_bytes: int

    @property
    def energy_kept_in_all(self) -> float:
        return self.energy_kept if self.energy_kept_with_residual is None else self.energy_kept_with_residual


def import_adapter(
    adapter: PeftAdapter,
    basis: Basis,
    projection: Projection,
    settings: ImportSettings,
    outputs: OutputFidelity | None = None,
) -> tuple[bytes, ImportReport]:
    """The bytes of a coefficient file for an adapter that was projected, and what they keep of it.

    Raises:
        SetupError: the adapter changes nothing, or no site of the basis.
        LowFidelity: less is kept than the settings ask for.
        InvalidAdapter: its file has a number that is not finite.
    """
    sites = tuple(site.name for site in basis.spec.sites if site.name in projection.cores)
    if not sites or not sum(projection.energy.values()):
        what = "has no site that the basis has" if not sites else "is zero everywhere: it was not trained"
        raise SetupError(f"adapter {adapter.name} {what}")
    dtype = _storage_dtype(projection.cores)
    lost, lost_in_all = dict(projection.lost), dict(projection.lost)
    numbers: list[NDArray[Any]] = []
    residual: dict[str, Residual] = {}
    for site in sites:
        core = projection.cores[site].to(dtype)
        numbers.append(core.numpy().ravel())
        rest = remainder(adapter[site], core, prefix(basis.factors[site], settings.k))
        lost[site] = lost_in_all[site] = max(0.0, rest.energy())
        if settings.residual_rank and lost[site] > _NOTHING * projection.energy[site]:
            best = best_of_rank(rest, min(settings.residual_rank, *_shape(rest)))
            residual[site] = _stored(best)
            lost_in_all[site] = max(0.0, _difference(rest, residual[site]).energy())
    energy = sum(projection.energy.values())
    report = ImportReport(
        energy_kept=share_kept(energy, sum(lost.values())),
        energy_kept_with_residual=share_kept(energy, sum(lost_in_all.values())) if residual else None,
        energy_kept_by_random=projection.energy_kept_by_random,
        outputs=outputs,
        worst=_worst(projection.energy, lost_in_all),
        n_sites=len(sites),
        n_sites_without_basis=len(projection.energy) - len(sites),
        core_bytes=sum(array.nbytes for array in numbers),
        residual_bytes=sum(factors.size_bytes for factors in residual.values()),
    )
    _check_fidelity(adapter, settings, report)
    data = write_coefficients(
        np.concatenate(numbers),
        form="core",
        basis=basis.spec.digest,
        base_fingerprint=basis.spec.base_fingerprint,
        k=settings.k,
        sites=sites if len(sites) < len(basis.spec.sites) else None,
        task=settings.task,
        provenance=_provenance(adapter, settings, report),
        residual=residual,
    )
    return data, report


def _check_fidelity(adapter: PeftAdapter, settings: ImportSettings, report: ImportReport) -> None:
    kept, what = report.energy_kept_in_all, "energy"
    if report.outputs is not None and not report.residual_bytes:
        kept, what = report.outputs.kept, "outputs on the calibration text"
    if kept < settings.min_energy:
        raise LowFidelity(adapter.name, what=what, kept=kept, needed=settings.min_energy)


def _storage_dtype(cores: Mapping[str, Tensor]) -> torch.dtype:
    """float16, unless it overflows or loses too much of some core."""
    for core in cores.values():
        norm = core.norm()
        if not (core.half().float() - core).norm() <= _MAX_ROUNDING * norm:
            return torch.float32
    return torch.float16


def _shape(update: LowRankUpdate) -> tuple[int, int]:
    return update.b.shape[0], update.a.shape[1]


def _stored(update: LowRankUpdate) -> Residual:
    """Factors in float16, or in float32 where that would lose too much."""
    dtype = _storage_dtype({"a": update.a, "b": update.b})
    return Residual(a=update.a.to(dtype).contiguous().numpy(), b=update.b.to(dtype).contiguous().numpy())


def _difference(update: LowRankUpdate, stored: Residual) -> LowRankUpdate:
    a, b = (torch.from_numpy(factor.astype(np.float64)) for factor in (stored.a, stored.b))
    return LowRankUpdate(b=torch.cat([update.b.double(), -b], dim=1), a=torch.cat([update.a.double(), a], dim=0))


def _worst(energy: Mapping[str, float], lost: Mapping[str, float]) -> tuple[tuple[str, float], ...]:
    kept = {site: share_kept(energy[site], lost[site]) for site in energy}
    return tuple(sorted(kept.items(), key=lambda item: item[1])[:_N_WORST])


def _provenance(adapter: PeftAdapter, settings: ImportSettings, report: ImportReport) -> dict[str, Any]:
    kept: dict[str, Any] = {
        "cores": round(report.energy_kept, 6),
        "random_basis_of_this_size": round(report.energy_kept_by_random, 6),
        "worst_sites": [[site, round(share, 4)] for site, share in report.worst],
    }
    if report.energy_kept_with_residual is not None:
        kept["with_residual"] = round(report.energy_kept_with_residual, 6)
    provenance: dict[str, Any] = {
        "tool": f"onebasis {__version__}, torch {torch.__version__}",
        "source": {
            "kind": "peft",
            "name": adapter.name,
            "digest": adapter.digest,
            "base_model": adapter.base_model,
            "ranks": list(adapter.ranks),
            "scales_folded_in": [round(scale, 6) for scale in adapter.scales],
        },
        "method": "nearest in weights" if report.outputs is None else "nearest in outputs on a calibration text",
        "energy_kept": kept,
        "n_sites_without_basis": report.n_sites_without_basis,
    }
    if report.residual_bytes:
        provenance["residual"] = {"rank": settings.residual_rank, "size_bytes": report.residual_bytes}
    if report.outputs is not None:
        provenance["outputs_kept"] = {
            "n_tokens": report.outputs.n_tokens,
            "cores": round(report.outputs.kept, 6),
            "cores_nearest_in_weights": round(report.outputs.kept_unweighted, 6),
        }
    return provenance
