"""What a tensor's name says: which module it belongs to, and which part of its update it is."""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType
from typing import Final

from onebasis.core.errors import InvalidAdapter, UnsupportedAdapter

_WRAPPERS: Final = frozenset({"_fsdp_wrapped_module", "_orig_mod", "_checkpoint_wrapped_module", "module"})
_CONTAINERS: Final = frozenset({"base_model", "model", "language_model"})
_OTHER_PARTS: Final = MappingProxyType(
    {
        "lora_magnitude_vector": ("use_dora", "the file has DoRA's magnitudes; train without it"),
        "lora_embedding_A": ("target_modules", "embeddings were adapted; adapt linear layers alone"),
        "lora_embedding_B": ("target_modules", "embeddings were adapted; adapt linear layers alone"),
        "lora_diag": ("kasa_config", "the file has KaSA's diagonal; train a plain LoRA"),
        "modules_to_save": ("modules_to_save", "the file has whole modules; train without it"),
        "trainable_tokens_delta": ("trainable_token_indices", "the file has embeddings of tokens; train without it"),
    }
)


class Part(StrEnum):
    """A tensor's place in the update B R diag(E) A; R is LoRA-XS's, E is AdaLoRA's, RANKNUM its divisor."""

    A = "lora_A"
    B = "lora_B"
    E = "lora_E"
    R = "default_lora_latent_mapping"
    RANKNUM = "ranknum"


@dataclass(frozen=True, slots=True)
class TensorKey:
    """`module` is the path as the file has it, without the wrappers of training."""

    module: str
    part: Part


def parse_key(folder: Path, name: str) -> TensorKey:
    """Read a name such as `base_model.model.<module>.lora_A.weight`; prefix, adapter name and `.weight` may be absent.

    Raises:
        UnsupportedAdapter: a tensor of a feature that is not read, by the feature's field.
        InvalidAdapter: a name that PEFT does not write.
    """
    words = [word for word in name.removeprefix("base_model.model.").split(".") if word not in _WRAPPERS]
    at = next((index for index, word in enumerate(words) if word in frozenset(Part)), None)
    if at is None:
        raise _refusal(folder, name, words)
    tail = words[at + 1 :]
    if tail[-1:] == ["bias"]:
        raise UnsupportedAdapter(folder, "lora_bias", f"the file has {name!r:.200}; train without a bias")
    if tail[-1:] == ["weight"]:
        tail.pop()
    if len(tail) > 1 or at == 0:  # one word more is the adapter's name
        raise InvalidAdapter(folder, f"tensor {name!r:.200} is no name that PEFT writes; nothing is ignored")
    return TensorKey(".".join(words[:at]), Part(words[at]))


def bare_path(path: str) -> str:
    """A module's path without the containers that differ between a model, its text part and its headless form."""
    return ".".join(word for word in path.split(".") if word not in _CONTAINERS)


def _refusal(folder: Path, name: str, words: list[str]) -> InvalidAdapter:
    for word in words:
        if word in _OTHER_PARTS:
            field, reason = _OTHER_PARTS[word]
            return UnsupportedAdapter(folder, field, f"{reason} ({name!r:.200})")
    if words[-2:] == ["base_layer", "weight"]:
        reason = f"embeddings were adapted, and are in the file ({name!r:.200}); adapt linear layers alone"
        return UnsupportedAdapter(folder, "target_modules", reason)
    if words[-1] == "bias":
        return UnsupportedAdapter(folder, "bias", f"the file has a trained bias, {name!r:.200}; train with 'none'")
    if words[-1] == "weight":
        reason = f"the file has a whole weight, {name!r:.200} (or a vocabulary was resized); train without"
        return UnsupportedAdapter(folder, "modules_to_save", reason)
    return InvalidAdapter(folder, f"tensor {name!r:.200} is no part of a LoRA; nothing is ignored")
