"""Tiny models of every tested family, with random weights large enough that each part of them shows in the logits."""

from collections.abc import Callable
from typing import cast

import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen2Config,
    Qwen3Config,
)

from onebasis.model.loader import LoadedBase

CPU = torch.device("cpu")
N_VOCAB = 128
_HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}
COMMON = {
    "vocab_size": N_VOCAB,
    "hidden_size": 48,
    "intermediate_size": 88,
    "num_hidden_layers": 3,
    "max_position_embeddings": 256,
    "initializer_range": 0.15,
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
} | _HEADS
_WIDE_HEADS = COMMON | {"head_dim": 16}  # hidden_size / n_heads would be 12
_GEMMA = _WIDE_HEADS | {"query_pre_attn_scalar": 20, "sliding_window": 6}

FAMILIES: dict[str, Callable[[], PreTrainedConfig]] = {
    "llama": lambda: LlamaConfig(**_WIDE_HEADS),
    "mistral": lambda: MistralConfig(**_WIDE_HEADS, sliding_window=9),
    "qwen2": lambda: Qwen2Config(
        **COMMON | {"hidden_size": 64}, use_sliding_window=True, sliding_window=7, max_window_layers=1
    ),
    "qwen3": lambda: Qwen3Config(**_WIDE_HEADS),
    "gemma2": lambda: Gemma2Config(**_GEMMA, attn_logit_softcapping=1.5, final_logit_softcapping=6.0),
    "gemma3": lambda: Gemma3TextConfig(
        **_GEMMA, layer_types=["sliding_attention", "sliding_attention", "full_attention"]
    ),
}


NATIVE_FAMILIES = ("llama", "mistral", "qwen2", "qwen3")


def tiny_model(family: str, seed: int = 0) -> PreTrainedModel:
    """A float32 model in evaluation mode; the same for the same arguments. Biases and norms are random, too."""
    torch.manual_seed(seed)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(FAMILIES[family](), dtype=torch.float32)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.data += 0.2 * torch.randn_like(parameter)
    model.requires_grad_(requires_grad=False)
    return model.eval()


def tiny_base(family: str = "llama", seed: int = 0) -> LoadedBase:
    """Such a model as the server holds it, without a tokenizer."""
    return LoadedBase(tiny_model(family, seed), cast(PreTrainedTokenizerBase, None), f"tiny-{family}")


def rounded_base(family: str) -> LoadedBase:
    """The same in bfloat16."""
    return LoadedBase(tiny_model(family).to(torch.bfloat16), cast(PreTrainedTokenizerBase, None), f"tiny-{family}")


def prompt(n_tokens: int, seed: int) -> tuple[int, ...]:
    """Random tokens."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randint(N_VOCAB, (n_tokens,), generator=generator).tolist())


@torch.inference_mode()
def logits_by_transformers(model: PreTrainedModel, token_ids: list[int]) -> torch.Tensor:
    """[n_tokens, n_vocab] of the family's own forward pass with eager attention, no cache."""
    model.set_attn_implementation("eager")
    logits: torch.Tensor = model(input_ids=torch.tensor([token_ids]), use_cache=False).logits[0]
    return logits


def greedy_by_transformers(model: PreTrainedModel, prompt_ids: tuple[int, ...], n_tokens: int) -> list[int]:
    """What transformers' generate adds to a prompt."""
    ids = torch.tensor([prompt_ids])
    model.set_attn_implementation("eager")
    output = model.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=n_tokens, pad_token_id=0
    )
    answer: list[int] = output[0, len(prompt_ids) :].tolist()
    return answer
