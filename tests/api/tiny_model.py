"""A Llama small enough for tests: random weights, a real byte-level tokenizer, a chat template, a random basis."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from onebasis.coefficients.basis_file import BasisSpec
from onebasis.coefficients.format import write_coefficients
from onebasis.fitting.basis.base_only import BasisKind, build_basis
from onebasis.model.loader import load_base

BASE_NAME = "tiny-llama"
MAX_POSITIONS = 2048
N_VOCAB = 320  # of the model; the tokenizer knows fewer, as is common
EOS_ID = 1
INVISIBLE = "\u200b"  # the normalizer removes it, so a text of nothing else has no tokens
_K = 4
_WORDS = "the cat sat on the mat and then the other cat ate all of that other food in the house " * 4
_CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'system' and not loop.first %}{{ raise_exception('system comes first') }}{% endif %}"
    "<|{{ message['role'] }}|>{{ message['content'] }}</s>"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    "{% if mood is defined %}{{ mood * 2 }} {% endif %}"
)


@dataclass(frozen=True)
class TinyModel:
    """A model folder on disk, and a basis file for it. `settings` are what its servers need."""

    folder: Path
    basis_path: Path
    basis: BasisSpec
    tokenizer: PreTrainedTokenizerFast
    settings: Mapping[str, Any] = field(default_factory=lambda: {"threads": 1})

    def core_file(self, seed: int = 0, *, scale: float = 1.0, dtype: type = np.float16, **fields: object) -> bytes:
        """A coefficient file of random cores, strong enough to change the greedy answer."""
        numbers = np.random.default_rng(seed).normal(0.0, scale, self.basis.n_core_numbers).astype(dtype)
        made_for = {"basis": self.basis.digest, "base_fingerprint": self.basis.base_fingerprint}
        return write_coefficients(numbers, form="core", **(made_for | fields))

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text)["input_ids"]
        return ids


def save_tiny_model(folder: Path, *, head_dim: int = 16) -> TinyModel:
    """Write model and tokenizer into `folder`, the basis into a folder in it."""
    tokenizer = _tokenizer()
    tokenizer.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=N_VOCAB,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=head_dim,
        max_position_embeddings=MAX_POSITIONS,
        initializer_range=0.2,
        bos_token_id=None,
        eos_token_id=EOS_ID,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    base = load_base(folder, dtype=torch.float32, device=torch.device("cpu"), name=BASE_NAME)
    path = folder / "basis" / "tiny.basis.safetensors"
    path.parent.mkdir()
    spec = build_basis(base, kind=BasisKind.RANDOM, k=_K, seed=0, path=path, progress=lambda _site: None)
    return TinyModel(folder, path, spec, tokenizer)


def _tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Replace(INVISIBLE, "")
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<pad>", "</s>", "<|system|>", "<|user|>", "<|assistant|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([_WORDS], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        additional_special_tokens=special[2:],
        chat_template=_CHAT_TEMPLATE,
    )
