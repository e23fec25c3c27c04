"""adapter_config.json: what decides the numbers, what may be passed over, and what is refused by its field's name."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from onebasis.coefficients.container import unique_names
from onebasis.core.errors import InvalidAdapter, UnsupportedAdapter
from onebasis.fitting.peft.patterns import Patterns, compile_patterns

CONFIG_NAME: Final = "adapter_config.json"
_MAX_CONFIG_BYTES: Final = 4 << 20  # a pattern for each of ten thousand modules takes one

_DECIDING: Final = frozenset(
    {"peft_type", "r", "init_r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "use_bdlora", "bias"}
    | {"init_lora_weights"}
)
_PASSED_OVER: Final = frozenset(
    # Which modules were trained; the tensors say so themselves.
    {"target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "fan_in_fan_out"}
    # How they were trained, or how they began.
    | {"lora_dropout", "velora_config", "eva_config", "corda_config", "lora_ga_config", "loftq_config"}
    | {"target_r", "tinit", "tfinal", "deltaT", "beta1", "beta2", "orth_reg_weight", "total_step"}
    # Labels, and details of features that are refused where they are on.
    | {"auto_mapping", "base_model_name_or_path", "revision", "task_type", "inference_mode", "peft_version"}
    | {"runtime_config", "megatron_core", "qalora_group_size", "ensure_weight_tying"}
)
_REFUSED: Final[Mapping[str, str]] = MappingProxyType(
    {
        "use_dora": "DoRA scales every output by a learnt magnitude, which a low-rank update is not; train without it",
        "lora_bias": "a learnt bias is no update of a weight; train without it",
        "modules_to_save": "whole modules were trained beside the adapter; train without it",
        "trainable_token_indices": "embeddings of tokens were trained; train without it",
        "alora_invocation_tokens": "the adapter begins in the middle of a prompt; train a plain LoRA",
        "use_qalora": "its inputs are pooled in groups; train a plain LoRA",
        "arrow_config": "it routes between adapters; give one of these adapters",
        "monteclora_config": "it draws its factors at random; train a plain LoRA",
        "kasa_config": "KaSA cuts the base weights; train a plain LoRA",
        "layer_replication": "the adapter is for a model with repeated layers; train on the model that is served",
        "target_parameters": "bare parameters (experts) were trained; train linear layers alone",
        "megatron_config": "a Megatron adapter; convert it to a plain LoRA of the model that is served",
    }
)
_PLAIN_STARTS: Final = (True, False, "gaussian", "eva", "orthogonal", "mica")


@dataclass(frozen=True, slots=True)
class BlockDiagonal:
    """BD-LoRA: which modules keep only the blocks on the diagonal of A or of B. A name need only contain a pattern."""

    n_blocks: int
    of_a: tuple[str, ...]
    of_b: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class AdapterConfig:
    """What of the file decides the numbers. For AdaLoRA `rank` is the one it began with, which its scale keeps."""

    is_adalora: bool
    rank: int
    alpha: float
    rank_pattern: Patterns[int]
    alpha_pattern: Patterns[float]
    use_rslora: bool
    block_diagonal: BlockDiagonal | None
    base_model: str | None


def read_config(folder: Path) -> AdapterConfig:
    """Read `folder`/adapter_config.json.

    Raises:
        InvalidAdapter: no such file, no JSON object, or a value that can't be.
        UnsupportedAdapter: a feature that is not read, or a field that this reader does not know and that is set.
    """
    fields = _read_fields(folder)
    is_adalora = _check_kind(folder, fields)
    _check_features(folder, fields)
    return AdapterConfig(
        is_adalora=is_adalora,
        rank=_rank(folder, "init_r" if is_adalora else "r", fields),
        alpha=_alpha(folder, "lora_alpha", fields.get("lora_alpha")),
        rank_pattern=()  # AdaLoRA keeps masks there, which the tensors have been through
        if is_adalora
        else compile_patterns(folder, "rank_pattern", fields.get("rank_pattern"), _rank_value),
        alpha_pattern=compile_patterns(folder, "alpha_pattern", fields.get("alpha_pattern"), _alpha),
        use_rslora=_flag(folder, "use_rslora", fields) and not is_adalora,
        block_diagonal=_block_diagonal(folder, fields.get("use_bdlora")),
        base_model=str(fields["base_model_name_or_path"]) if fields.get("base_model_name_or_path") else None,
    )


def _read_fields(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG_NAME
    if not path.is_file():
        inside = sorted(found.parent.name for found in folder.glob(f"*/{CONFIG_NAME}"))[:5] if folder.is_dir() else []
        advice = f"it has adapters inside, give one: {', '.join(inside)}" if inside else "give a PEFT adapter's folder"
        raise InvalidAdapter(folder, f"no {CONFIG_NAME}; {advice}")
    if path.stat().st_size > _MAX_CONFIG_BYTES:
        raise InvalidAdapter(folder, f"{CONFIG_NAME} has {path.stat().st_size} bytes; allowed: {_MAX_CONFIG_BYTES}")
    try:
        fields = json.loads(path.read_bytes(), object_pairs_hook=unique_names)
    except (OSError, ValueError, RecursionError) as error:
        raise InvalidAdapter(folder, f"{CONFIG_NAME} is no JSON ({error}); save the adapter again") from error
    if not isinstance(fields, dict):
        raise InvalidAdapter(folder, f"{CONFIG_NAME} is not a JSON object; save the adapter again")
    return fields


def _check_kind(folder: Path, fields: Mapping[str, Any]) -> bool:
    """True for AdaLoRA."""
    kind = fields.get("peft_type")
    if kind not in ("LORA", "ADALORA"):
        raise UnsupportedAdapter(
            folder, "peft_type", f"{kind!r} is not LORA or ADALORA; PEFT's save_as_lora converts some of the others"
        )
    return bool(kind == "ADALORA")


def _check_features(folder: Path, fields: Mapping[str, Any]) -> None:
    for field, reason in _REFUSED.items():
        if _is_set(fields.get(field)):
            raise UnsupportedAdapter(folder, field, reason)
    bias = fields.get("bias", "none")
    if bias not in ("none", None):
        raise UnsupportedAdapter(folder, "bias", f"{bias!r}: biases were trained beside the adapter; train with 'none'")
    start = fields.get("init_lora_weights", True)
    if not any(start is plain or (isinstance(plain, str) and start == plain) for plain in _PLAIN_STARTS):
        raise UnsupportedAdapter(
            folder,
            "init_lora_weights",
            f"{start!r} changes the base weights before it trains (pissa, olora, corda, loftq, lora_ga) or is not "
            f"known; save with PEFT's path_initial_model_for_weight_conversion, which makes it a plain LoRA",
        )
    for field in sorted(fields.keys() - _DECIDING - _PASSED_OVER - _REFUSED.keys()):
        if _is_set(fields[field]):
            raise UnsupportedAdapter(folder, field[:100], "this reader does not know the field, and nothing is ignored")


def _is_set(value: object) -> bool:
    """Off is null, false, empty; and zero is a number that somebody chose."""
    return value is not None and value is not False and value not in ("", [], {})


def _rank(folder: Path, field: str, fields: Mapping[str, Any]) -> int:
    return _rank_value(folder, field, fields.get(field))


def _rank_value(folder: Path, field: str, value: object) -> int:
    if type(value) is not int or value < 1:
        raise InvalidAdapter(folder, f"{field} needs a whole number from 1, found {value!r:.100}")
    return value


def _alpha(folder: Path, field: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= 1e30:
        raise InvalidAdapter(folder, f"{field} needs a finite number, found {value!r:.100}")
    if math.fabs(value) == 0:
        raise InvalidAdapter(
            folder, f"{field} is 0, so the adapter does nothing; give it the alpha it was trained with"
        )
    return float(value)


def _flag(folder: Path, field: str, fields: Mapping[str, Any]) -> bool:
    value = fields.get(field, False)
    if value is not None and not isinstance(value, bool):
        raise InvalidAdapter(folder, f"{field} needs true or false, found {value!r:.100}")
    return bool(value)


def _block_diagonal(folder: Path, value: object) -> BlockDiagonal | None:
    if not _is_set(value):
        return None
    known = {"target_modules_bd_a", "target_modules_bd_b", "nblocks", "match_strict"}
    if not isinstance(value, dict) or not value.keys() <= known:
        raise UnsupportedAdapter(folder, "use_bdlora", f"needs an object of {', '.join(sorted(known))}")
    n_blocks = _rank_value(folder, "use_bdlora.nblocks", value.get("nblocks", 1))
    names = [value.get(field) or [] for field in ("target_modules_bd_a", "target_modules_bd_b")]
    if not all(isinstance(some, list) and all(isinstance(name, str) for name in some) for some in names):
        raise InvalidAdapter(folder, "use_bdlora: needs lists of module names")
    return BlockDiagonal(n_blocks, tuple(names[0]), tuple(names[1]))
