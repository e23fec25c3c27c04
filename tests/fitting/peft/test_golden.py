"""What is read from an adapter is what PEFT adds to the weights, for every variation that is supported."""

from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file
from transformers import GPT2Config, GPT2LMHeadModel, Phi3Config

from onebasis.fitting.peft.adapter import PeftAdapter, open_adapter
from onebasis.fitting.peft.sites import SiteShape, site_shapes
from onebasis.model.loader import LoadedBase
from tests.api.tiny_model import TinyModel
from tests.fitting.peft.adapters import (
    ALL_LINEAR,
    dense,
    merged_updates,
    opened,
    plain_adapter,
    renamed,
    rewrite,
    save_adapter,
)
from tests.fitting.tiny import save_family, tiny_base

LAYER = "model.layers.0.self_attn"


def assert_is_what_peft_adds(adapter: PeftAdapter, updates: dict[str, torch.Tensor]) -> None:
    """At every weight of the model; a site that the adapter leaves alone has to be left alone by PEFT."""
    for name, expected in updates.items():
        site = name.removesuffix(".weight")
        if site in adapter.sites:
            torch.testing.assert_close(dense(adapter, site), expected, rtol=1e-4, atol=2e-5)
            assert expected.abs().max() > 1e-2, "an update of nothing would prove nothing"
        else:
            assert not expected.any(), name


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({}, id="plain"),
        pytest.param({"use_rslora": True}, id="rank-stabilised"),
        pytest.param({"lora_alpha": 3, "lora_dropout": 0.1}, id="alpha-below-rank"),
        pytest.param({"target_modules": ["q_proj", "down_proj"]}, id="few-modules"),
        pytest.param({"target_modules": r".*\.1\..*(k|up)_proj"}, id="modules-by-regex"),
        pytest.param({"target_modules": "all-linear"}, id="all-linear"),
        pytest.param({"layers_to_transform": [1], "exclude_modules": ["v_proj"]}, id="one-layer"),
        pytest.param({"rank_pattern": {r"layers\.1\..*": 2, "q_proj": 7}}, id="mixed-ranks"),
        pytest.param({"alpha_pattern": {"q_proj": 40, r".*mlp.*": 5, "o_proj": 0.5}}, id="mixed-alphas"),
        pytest.param({"alpha_pattern": {r"^model\.layers\.0\.mlp\.up_proj": 33, "proj": 99}}, id="anchored"),
        pytest.param(
            {"rank_pattern": {"q_proj": 9}, "alpha_pattern": {"q_proj": 2}, "use_rslora": True}, id="all-patterns"
        ),
        pytest.param({"fan_in_fan_out": True}, id="fan-in-fan-out-of-a-linear-layer"),
        pytest.param({"init_lora_weights": "gaussian"}, id="gaussian"),
        pytest.param({"init_lora_weights": "orthogonal"}, id="orthogonal"),
        pytest.param({"init_lora_weights": "mica"}, id="mica"),
        pytest.param(
            {"use_bdlora": peft.BdLoraConfig(["o_proj", "down_proj"], ["q_proj", "up"], 2, match_strict=False)},
            id="block-diagonal",
        ),
    ],
)
def test_a_lora_is_what_peft_merges(llama: TinyModel, base: LoadedBase, tmp_path: Path, fields: dict[str, object]):
    folder = plain_adapter(llama.folder, tmp_path / "adapter", **fields)
    adapter = opened(base, folder)
    assert_is_what_peft_adds(adapter, merged_updates(base.model, folder))


@pytest.mark.parametrize(
    ("first", "second", "scale"), [("q_proj", ".*self_attn.*", 10), (".*self_attn.*", "q_proj", 1)]
)
def test_of_two_patterns_the_first_in_the_file_holds(
    llama: TinyModel, base: LoadedBase, tmp_path: Path, first: str, second: str, scale: int
):
    """PEFT sorts the patterns when it saves, so a file in another order is made by hand; PEFT reads it so too."""
    alphas = {"q_proj": 40, ".*self_attn.*": 4}
    folder = plain_adapter(llama.folder, tmp_path / "adapter", lora_alpha=4)
    plain = dense(opened(base, folder), f"{LAYER}.q_proj")
    adapter = opened(base, rewrite(folder, config={"alpha_pattern": {name: alphas[name] for name in (first, second)}}))
    torch.testing.assert_close(dense(adapter, f"{LAYER}.q_proj"), scale * plain)
    assert_is_what_peft_adds(adapter, merged_updates(base.model, folder))


def test_adalora_has_its_own_scale(llama: TinyModel, base: LoadedBase, tmp_path: Path):
    config = peft.AdaLoraConfig(init_r=6, target_r=3, lora_alpha=5, target_modules=ALL_LINEAR, total_step=10)
    folder = save_adapter(llama.folder, tmp_path / "adapter", config)
    adapter = opened(base, folder)
    assert_is_what_peft_adds(adapter, merged_updates(base.model, folder))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_numbers_are_widened_before_anything_is_done(
    llama: TinyModel, base: LoadedBase, tmp_path: Path, dtype: torch.dtype
):
    folder = plain_adapter(llama.folder, tmp_path / "adapter")
    wide = opened(base, folder).update(f"{LAYER}.q_proj")
    numbers = {name: value.to(dtype) for name, value in load_file(folder / "adapter_model.safetensors").items()}
    rewrite(folder, tensors=numbers)
    narrow = opened(base, folder).update(f"{LAYER}.q_proj")
    torch.testing.assert_close(narrow.b, 2 * (wide.b / 2).to(dtype).float(), rtol=0, atol=0)
    torch.testing.assert_close(narrow.a, wide.a.to(dtype).float(), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param(".lora_", ".lora_", id="as-peft-writes-it"),
        pytest.param("lora_A.weight", "lora_A.default.weight", id="adapter-name-in-one-of-them"),
        pytest.param("base_model.model.", "", id="no-prefix"),
        pytest.param("base_model.model.model.", "base_model.model.", id="of-the-headless-model"),
        pytest.param("base_model.model.model.", "", id="bare"),
        pytest.param("model.layers", "_fsdp_wrapped_module.model.layers", id="fsdp"),
        pytest.param(".self_attn.", "._orig_mod.self_attn.", id="compiled-layers"),
        pytest.param("base_model.model.model.", "base_model.model.model.language_model.", id="text-part"),
        pytest.param("base_model.model.model.", "base_model.model.language_model.model.", id="older-text-part"),
    ],
)
def test_spellings_seen_in_the_wild_are_the_same_adapter(
    llama: TinyModel, base: LoadedBase, tmp_path: Path, before: str, after: str
):
    patterns = {"alpha_pattern": {r"model\.layers\.0\.self_attn\.q_proj": 40}}
    folder = plain_adapter(llama.folder, tmp_path / "adapter", **patterns)
    original = {site: dense(opened(base, folder), site) for site in opened(base, folder).sites}
    adapter = opened(base, renamed(folder, before, after))
    assert list(adapter.sites) == list(original)
    for site, expected in original.items():
        torch.testing.assert_close(dense(adapter, site), expected, rtol=0, atol=0)


def test_a_lora_xs_mapping_stands_between_the_factors(llama: TinyModel, base: LoadedBase, tmp_path: Path):
    folder = plain_adapter(llama.folder, tmp_path / "adapter", target_modules=["q_proj"])
    before = opened(base, folder).update(f"{LAYER}.q_proj")
    mapping = torch.randn(4, 4)
    key = f"base_model.model.{LAYER}.q_proj.default_lora_latent_mapping.weight"
    adapter = opened(base, rewrite(folder, tensors={key: mapping}))
    torch.testing.assert_close(dense(adapter, f"{LAYER}.q_proj"), before.b @ mapping @ before.a)


def test_a_conv1d_update_is_the_transpose_of_what_peft_adds(tmp_path: Path):
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=20, n_positions=8, n_embd=12, n_layer=1, n_head=2))
    config = peft.LoraConfig(r=3, target_modules=["c_fc"], fan_in_fan_out=True, init_lora_weights=False)
    peft.get_peft_model(model, config).save_pretrained(str(tmp_path))
    plain = GPT2LMHeadModel(model.config)
    expected = merged_updates(plain, tmp_path)["transformer.h.0.mlp.c_fc.weight"]
    adapter = open_adapter(tmp_path, {"transformer.h.0.mlp.c_fc": SiteShape(d_in=12, d_out=48)})
    torch.testing.assert_close(dense(adapter, "transformer.h.0.mlp.c_fc"), expected.T)


@pytest.fixture(scope="module")
def phi(llama: TinyModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A family whose q, k, v are one layer and whose gate and up are another."""
    return save_family(llama, tmp_path_factory.mktemp("phi"), Phi3Config)


SPLIT_OF = {
    "qkv_proj": {"q_proj": (0, 64), "k_proj": (64, 96), "v_proj": (96, 128)},
    "gate_up_proj": {"gate_proj": (0, 96), "up_proj": (96, 192)},
}


def test_an_adapter_of_fused_layers_fits_split_sites(phi: Path, base: LoadedBase, tmp_path: Path):
    targets = [*SPLIT_OF, "o_proj"]
    folder = plain_adapter(phi, tmp_path / "adapter", target_modules=targets, alpha_pattern={"qkv_proj": 3})
    updates = merged_updates(tiny_base(phi).model, folder)
    adapter = opened(base, folder)
    assert len(adapter.sites) == 2 * 6
    for site in adapter.sites:
        parent, _, name = site.rpartition(".")
        fused = next((fused for fused, parts in SPLIT_OF.items() if name in parts), name)
        start, stop = SPLIT_OF.get(fused, {}).get(name, (0, None))
        torch.testing.assert_close(dense(adapter, site), updates[f"{parent}.{fused}.weight"][start:stop])


@pytest.mark.parametrize(
    "targets",
    [
        ["q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "down_proj"],
        ["q_proj", "v_proj", "up_proj"],
        ["q_proj", "gate_proj"],
        ["v_proj"],
        ["k_proj"],
    ],
)
def test_an_adapter_of_split_layers_fits_fused_sites(
    phi: Path, llama: TinyModel, base: LoadedBase, tmp_path: Path, targets: list[str]
):
    ranks = {"k_proj": 2, "gate_proj": 5}
    folder = plain_adapter(llama.folder, tmp_path / "adapter", target_modules=targets, rank_pattern=ranks)
    updates = merged_updates(base.model, folder)
    fused_sites = site_shapes(tiny_base(phi).model)
    adapter = open_adapter(folder, fused_sites)
    for site in adapter.sites:
        parent, _, fused = site.rpartition(".")
        expected = torch.zeros(fused_sites[site].d_out, fused_sites[site].d_in)
        for name, (start, stop) in SPLIT_OF.get(fused, {fused: (0, None)}).items():
            expected[start:stop] = updates[f"{parent}.{name}.weight"]
        torch.testing.assert_close(dense(adapter, site), expected)
    assert_nothing_is_left_out(adapter, targets)


def assert_nothing_is_left_out(adapter: PeftAdapter, targets: list[str]) -> None:
    fused = {name: fused for fused, parts in SPLIT_OF.items() for name in parts}
    assert {site.rpartition(".")[2] for site in adapter.sites} == {fused.get(name, name) for name in targets}
