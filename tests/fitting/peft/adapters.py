"""Adapters made by PEFT itself, with random numbers, and what PEFT says they do to the weights."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import peft
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from onebasis.fitting.peft.adapter import WEIGHTS_NAME, PeftAdapter, open_adapter
from onebasis.fitting.peft.config import CONFIG_NAME
from onebasis.fitting.peft.sites import site_shapes
from onebasis.model.loader import LoadedBase
from tests.fitting.tiny import tiny_base

ALL_LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def save_adapter(base_folder: Path, folder: Path, config: peft.PeftConfig, seed: int = 0) -> Path:
    """Write an adapter of random factors, as PEFT saves it."""
    adapted = peft.get_peft_model(tiny_base(base_folder).model, config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    adapted.save_pretrained(str(folder))
    return folder


def plain_adapter(base_folder: Path, folder: Path, seed: int = 0, **fields: Any) -> Path:
    """A LoRA of rank 4 and alpha 8 at all linear layers, unless `fields` say otherwise."""
    config = {"r": 4, "lora_alpha": 8, "target_modules": ALL_LINEAR, "task_type": "CAUSAL_LM"} | fields
    return save_adapter(base_folder, folder, peft.LoraConfig(**config), seed)


def merged_updates(model: PreTrainedModel, folder: Path) -> dict[str, Tensor]:
    """What PEFT adds to each weight when it loads the adapter and merges it, [d_out, d_in] float32 by weight name."""
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    merged = peft.PeftModel.from_pretrained(model, str(folder)).merge_and_unload()
    return {name: weight - before[name] for name, weight in merged.state_dict().items() if name in before}


def opened(base: LoadedBase, folder: Path) -> PeftAdapter:
    return open_adapter(folder, site_shapes(base.model))


def dense(adapter: PeftAdapter, site: str) -> Tensor:
    update = adapter.update(site)
    return update.b @ update.a


def rewrite(
    folder: Path, *, config: Mapping[str, Any] | None = None, tensors: Mapping[str, Tensor | None] | None = None
) -> Path:
    """Put fields into the configuration, and tensors in or (None) out of the weights."""
    if config is not None:
        fields = json.loads((folder / CONFIG_NAME).read_text())
        (folder / CONFIG_NAME).write_text(json.dumps(fields | dict(config)))
    if tensors is not None:
        numbers = load_file(folder / WEIGHTS_NAME) | dict(tensors)
        save_file({name: value for name, value in numbers.items() if value is not None}, folder / WEIGHTS_NAME)
    return folder


def renamed(folder: Path, before: str, after: str) -> Path:
    """Spell every tensor's name otherwise."""
    numbers = load_file(folder / WEIGHTS_NAME)
    save_file({name.replace(before, after): value for name, value in numbers.items()}, folder / WEIGHTS_NAME)
    return folder
