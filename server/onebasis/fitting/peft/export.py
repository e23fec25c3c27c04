"""A plain PEFT LoRA adapter, dW = B A with alpha = r: of a task, exact, its residual stacked in; of a trained LoRA."""

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from onebasis.coefficients.numbers import widen
from onebasis.coefficients.validate import BoundCoefficients
from onebasis.core.errors import SetupError
from onebasis.core.residual import Residual
from onebasis.fitting.files import write_whole
from onebasis.fitting.low_rank import LowRankUpdate
from onebasis.fitting.peft.adapter import WEIGHTS_NAME
from onebasis.fitting.peft.config import CONFIG_NAME
from onebasis.model.factors import Basis, SiteFactors


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What was written. `ranks` has each rank once, smallest first."""

    n_sites: int
    ranks: tuple[int, ...]
    size_bytes: int


def export_peft(
    task: BoundCoefficients, basis: Basis, model: nn.Module, folder: Path, *, base_model: str
) -> ExportReport:
    """Write `folder` with adapter_config.json and float32 weights, as PEFT, and who reads its adapters, takes them.

    A site's update is as thin as its core: of rank min(k_in, k_out), and its residual's rank. Sites at which the task
    does nothing are left out.

    Args:
        base_model: what the configuration calls the model.

    Raises:
        SetupError: the folder has files, or the task changes nothing, which PEFT can't say.
        OSError: it can't be written.
    """
    check_new(folder)
    updates = _updates(task, basis)
    if not updates:
        raise SetupError("the task's coefficients are all zero: there is no adapter that changes nothing")
    return write_adapter(updates, model, folder, base_model=base_model)


def check_new(folder: Path) -> None:
    """Raises SetupError for a folder that has files."""
    if folder.exists() and any(folder.iterdir()):
        raise SetupError(f"{folder} is not empty; name a new folder")


def write_adapter(
    updates: Mapping[str, LowRankUpdate],
    model: nn.Module,
    folder: Path,
    *,
    base_model: str,
    dtype: torch.dtype = torch.float32,
) -> ExportReport:
    """Write updates by site as a PEFT LoRA. Their scales are folded in, so alpha = r.

    Args:
        base_model: what the configuration calls the model.
        dtype: of the written numbers.

    Raises:
        OSError: the folder can't be written.
    """
    tensors: dict[str, Tensor] = {}
    for site, update in updates.items():
        tensors[f"base_model.model.{site}.lora_A.weight"] = update.a.to(dtype).contiguous()
        tensors[f"base_model.model.{site}.lora_B.weight"] = update.b.to(dtype).contiguous()
    ranks = {site: update.rank for site, update in updates.items()}
    write_whole(folder / WEIGHTS_NAME, save(tensors, metadata={"format": "pt"}))
    config = json.dumps(_config(ranks, model, base_model), indent=2, sort_keys=True)
    write_whole(folder / CONFIG_NAME, (config + "\n").encode())
    size_bytes = sum(path.stat().st_size for path in folder.iterdir())
    return ExportReport(n_sites=len(ranks), ranks=tuple(sorted(set(ranks.values()))), size_bytes=size_bytes)


def _updates(task: BoundCoefficients, basis: Basis) -> dict[str, LowRankUpdate]:
    """By site, float32; a residual is stacked under the core's part."""
    found: dict[str, LowRankUpdate] = {}
    flat = torch.from_numpy(task.flat_cores())
    start = 0
    for site in basis.spec.sites:
        core = flat[start : start + site.k_out * site.k_in].view(site.k_out, site.k_in)
        start += core.numel()
        parts = [_core_update(core, basis.factors[site.name])] if core.any() else []
        if site.name in task.residual:
            parts.append(_residual_update(task.residual[site.name]))
        if parts:
            found[site.name] = LowRankUpdate(
                b=torch.cat([part.b for part in parts], dim=1), a=torch.cat([part.a for part in parts], dim=0)
            )
    return found


def _core_update(core: Tensor, factors: SiteFactors) -> LowRankUpdate:
    """U^T S V as (U^T S) V or U^T (S V), whichever is thinner, without the rows of U and V that S leaves out."""
    rows, columns = core.any(dim=1), core.any(dim=0)
    u, v = factors.u.float()[rows], factors.v.float()[columns]
    used = core[rows][:, columns]
    return LowRankUpdate(u.T @ used, v) if len(v) <= len(u) else LowRankUpdate(u.T, used @ v)


def _residual_update(residual: Residual) -> LowRankUpdate:
    return LowRankUpdate(b=torch.from_numpy(widen(residual.b)), a=torch.from_numpy(widen(residual.a)))


def _config(ranks: Mapping[str, int], model: nn.Module, base_model: str) -> dict[str, Any]:
    """alpha = r at every site, so that the scale is 1: what differs from the most common rank is in both patterns."""
    usual = Counter(ranks.values()).most_common(1)[0][0]
    unusual = {f"^{re.escape(site)}": rank for site, rank in ranks.items() if rank != usual}
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "inference_mode": True,
        "r": usual,
        "lora_alpha": usual,
        "rank_pattern": unusual,
        "alpha_pattern": unusual,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "use_rslora": False,
        "use_dora": False,
        "modules_to_save": None,
        "target_modules": _targets(set(ranks), model),
    }


def _targets(sites: set[str], model: nn.Module) -> list[str]:
    """Last names alone, as is usual, if these mean the same layers; otherwise whole paths."""
    names = {site.rpartition(".")[2] for site in sites}
    meant = {
        path
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear) and path.rpartition(".")[2] in names
    }
    return sorted(names if meant == sites else sites)
