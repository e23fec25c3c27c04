"""What the machine could do at most: requests need so many operations, the cores do so many a second."""

from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from transformers import AutoConfig

from onebasis.model.kv_cache import head_shape

_SIZE = 2048
_N_CALLS = 30


@dataclass(frozen=True, slots=True)
class ComputeLimit:
    """Multiplying the weights alone, without attention, sampling, HTTP or the client: no server can be faster."""

    gemm_tflops: float  # median bfloat16 matrix product, measured in this process with all its threads
    gflop_per_request: float
    output_tokens_per_s: float


def compute_limit(model: Path, *, n_prompt_tokens: int, n_output_tokens: int) -> ComputeLimit:
    """Measure the machine now; takes about a second."""
    flop = request_flop(AutoConfig.from_pretrained(model, local_files_only=True), n_prompt_tokens, n_output_tokens)
    rate = gemm_flop_per_s()
    return ComputeLimit(rate / 1e12, flop / 1e9, n_output_tokens * rate / flop)


def request_flop(config: Any, n_prompt_tokens: int, n_output_tokens: int) -> int:
    """Operations of a Llama-shaped model's matrix products for one request: the last output token is never computed on,
    and only tokens that are followed by an output one pass the head.
    """
    hidden, n_heads = int(config.hidden_size), int(config.num_attention_heads)
    n_kv_heads, head_dim = head_shape(config)
    attention = hidden * head_dim * (2 * n_heads + 2 * n_kv_heads)
    mlp = 3 * hidden * int(config.intermediate_size)
    per_token = 2 * int(config.num_hidden_layers) * (attention + mlp)
    head = 2 * hidden * int(config.vocab_size)
    return (n_prompt_tokens + n_output_tokens - 1) * per_token + n_output_tokens * head


def gemm_flop_per_s() -> float:
    """Rate of a large bfloat16 product, median of a few."""
    a = torch.randn(_SIZE, _SIZE).bfloat16()
    b = torch.randn(_SIZE, _SIZE).bfloat16()
    times_s: list[float] = []
    for _ in range(_N_CALLS):
        started_s = perf_counter()
        torch.mm(a, b)
        times_s.append(perf_counter() - started_s)
    return 2 * _SIZE**3 / sorted(times_s)[_N_CALLS // 2]
