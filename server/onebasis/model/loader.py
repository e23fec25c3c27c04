"""Load base weights and tokenizer through transformers, from a folder on disk. Nothing is downloaded."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar

from onebasis.core.errors import InvalidModel

_LAYER_TYPES: Final = ("full_attention", "sliding_attention")


@dataclass(frozen=True, slots=True)
class LoadedBase:
    """A frozen model in evaluation mode, and the tokenizer that goes with it."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str

    @property
    def text_config(self) -> Any:
        """The decoder's configuration (multimodal checkpoints nest it)."""
        return self.model.config.get_text_config()

    @property
    def eos_token_ids(self) -> frozenset[int]:
        """Tokens that end an answer: the generation config's, the model's and the tokenizer's."""
        configured = [
            self.model.generation_config.eos_token_id if self.model.generation_config is not None else None,
            self.text_config.eos_token_id,
            self.tokenizer.eos_token_id,
        ]
        ids: set[int] = set()
        for value in configured:
            ids.update(value if isinstance(value, list) else [] if value is None else [value])
        return frozenset(ids)


def load_base(path: Path, *, dtype: torch.dtype, device: torch.device, name: str | None = None) -> LoadedBase:
    """Read a model folder (config.json, *.safetensors, tokenizer) in `dtype` onto `device`.

    Raises:
        InvalidModel: not such a folder, or not a decoder-only language model that transformers knows.
    """
    if not (path / "config.json").is_file():
        raise InvalidModel(f"model {path}: needs a folder with config.json, weights and tokenizer")
    disable_progress_bar()
    try:
        model, found = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=dtype,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
        )
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise InvalidModel(f"model {path}: transformers can't load it: {error}") from error
    if found["missing_keys"]:  # transformers would draw them at random
        missing = ", ".join(sorted(found["missing_keys"])[:5])
        raise InvalidModel(f"model {path}: the weights lack {missing}; copy the folder again, whole")
    model.requires_grad_(requires_grad=False)
    return LoadedBase(model=model.eval().to(device), tokenizer=tokenizer, name=name or path.resolve().name)


def check_layer_types(base: LoadedBase) -> None:
    """Raises InvalidModel for layers that keep more of a text than keys and values, or look at them in another way.

    Only for models that say what their layers are; the self-check of a decoder tells the others.
    """
    found = set(getattr(base.text_config, "layer_types", None) or ()) - set(_LAYER_TYPES)
    if found:
        raise InvalidModel(
            f"{type(base.model).__name__} has layers of type {', '.join(sorted(found))}; this server computes "
            f"{' and '.join(_LAYER_TYPES)} alone: use engine=vllm if it knows the model, or a model of another family"
        )
