"""Random LoRA adapters in PEFT's layout, for the peers: make_adapters.py --model DIR --out DIR -n N

Rank 16 at all seven linear layers of a Llama-shaped model, in bfloat16. B is not zero, so every adapter changes the
answer. Runs in the peers' environment: needs torch and safetensors only.
"""

import argparse
import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

RANK, ALPHA = 16, 32
B_SCALE = 0.2


def layer_shapes(config: dict[str, Any]) -> dict[str, tuple[int, int]]:
    """(d_out, d_in) of a decoder layer's linear layers."""
    hidden, n_heads = config["hidden_size"], config["num_attention_heads"]
    head_dim = config.get("head_dim") or hidden // n_heads
    n_query, n_key = n_heads * head_dim, config.get("num_key_value_heads", n_heads) * head_dim
    wide = config["intermediate_size"]
    return {
        "self_attn.q_proj": (n_query, hidden),
        "self_attn.k_proj": (n_key, hidden),
        "self_attn.v_proj": (n_key, hidden),
        "self_attn.o_proj": (hidden, n_query),
        "mlp.gate_proj": (wide, hidden),
        "mlp.up_proj": (wide, hidden),
        "mlp.down_proj": (hidden, wide),
    }


def make_adapter(config: dict[str, Any], seed: int) -> dict[str, Tensor]:
    """A as PEFT starts it, B random."""
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {}
    for layer in range(config["num_hidden_layers"]):
        for name, (d_out, d_in) in layer_shapes(config).items():
            path = f"base_model.model.model.layers.{layer}.{name}"
            a = (2 * torch.rand(RANK, d_in, generator=generator) - 1) / math.sqrt(d_in)
            b = torch.randn(d_out, RANK, generator=generator) * (B_SCALE / math.sqrt(RANK))
            tensors[f"{path}.lora_A.weight"] = a.to(torch.bfloat16)
            tensors[f"{path}.lora_B.weight"] = b.to(torch.bfloat16)
    return tensors


def main() -> None:
    """Folders 000, 001 and so on; the number is the seed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("-n", type=int, default=32)
    asked = parser.parse_args()
    config = json.loads((asked.model / "config.json").read_text())
    modules = sorted(name.partition(".")[2] for name in layer_shapes(config))
    adapter_config: dict[str, object] = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "base",
    }
    adapter_config |= {"r": RANK, "lora_alpha": ALPHA, "lora_dropout": 0.0, "bias": "none", "inference_mode": True}
    for number in range(asked.n):
        folder = asked.out / f"{number:03}"
        folder.mkdir(parents=True, exist_ok=True)
        save_file(make_adapter(config, number), folder / "adapter_model.safetensors", metadata={"format": "pt"})
        (folder / "adapter_config.json").write_text(json.dumps(adapter_config | {"target_modules": modules}, indent=1))


if __name__ == "__main__":
    main()
