"""Other families beside the tiny Llama of tests/api, and short ways to a base, a basis and examples."""

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedConfig

from onebasis.fitting.basis.base_only import BasisKind, build_basis
from onebasis.fitting.data import TokenExample
from onebasis.fitting.low_rank import LowRankUpdate
from onebasis.model.factors import Basis, load_basis
from onebasis.model.loader import LoadedBase, load_base
from onebasis.model.sites import linear_sites
from tests.api.tiny_model import EOS_ID, N_VOCAB, TinyModel

CPU = torch.device("cpu")
N_SITES = 14  # seven a layer
SMALLEST_SIDE = 32  # of k_proj and v_proj


def save_family(
    llama: TinyModel, folder: Path, config_class: type[PreTrainedConfig] = LlamaConfig, **changes: object
) -> Path:
    """A model folder of another family, or of other weights, with the Llama's tokenizer."""
    sizes = {
        "vocab_size": N_VOCAB,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 128,
        "bos_token_id": None,
        "eos_token_id": EOS_ID,
        "pad_token_id": None,
        "initializer_range": 0.2,
    }
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(config_class(**sizes | changes))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:  # norms and biases, which start as ones and zeros
                parameter.add_(0.1 * torch.randn(parameter.shape))
    model.save_pretrained(folder)
    llama.tokenizer.save_pretrained(folder)
    return folder


def tiny_base(folder: Path, dtype: torch.dtype = torch.float32) -> LoadedBase:
    return load_base(folder, dtype=dtype, device=CPU)


def tiny_basis(
    base: LoadedBase, path: Path, *, kind: BasisKind = BasisKind.BASE_SVD, k: int = 5, seed: int = 0
) -> Basis:
    """Built and read back, in the model's dtype."""
    build_basis(base, kind=kind, k=k, seed=seed, path=path, progress=lambda _site: None)
    return load_basis(path, dtype=base.model.dtype, device=CPU)


def token_example(prompt_ids: Sequence[int], answer_ids: Sequence[int], answer: str = "") -> TokenExample:
    return TokenExample(tuple(prompt_ids), tuple(answer_ids), answer)


def random_updates(base: LoadedBase, *, rank: int = 2, scale: float = 0.1, seed: int = 0) -> dict[str, LowRankUpdate]:
    """An adapter of every site, strong enough to change the greedy answer."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: LowRankUpdate(
            b=scale * torch.randn(layer.out_features, rank, generator=generator),
            a=torch.randn(rank, layer.in_features, generator=generator),
        )
        for name, layer in linear_sites(base.model).items()
    }
