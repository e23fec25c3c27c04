"""What is not read is refused by the name of its field, or with the tensor at fault; before any number is read."""

import json
from collections.abc import Callable
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from onebasis.core.errors import InvalidAdapter, UnsupportedAdapter
from onebasis.fitting.peft.adapter import WEIGHTS_NAME
from onebasis.fitting.peft.config import CONFIG_NAME
from onebasis.model.loader import LoadedBase
from tests.api.tiny_model import N_VOCAB, TinyModel
from tests.fitting.peft.adapters import opened, plain_adapter, rewrite, save_adapter

LAYER = "base_model.model.model.layers.0.self_attn"


@pytest.fixture
def adapter(llama: TinyModel, tmp_path: Path) -> Path:
    return plain_adapter(llama.folder, tmp_path / "adapter", target_modules=["q_proj", "v_proj"])


@pytest.mark.parametrize(
    ("field", "fields"),
    [
        ("use_dora", {"use_dora": True}),
        ("bias", {"bias": "all"}),
        ("bias", {"bias": "lora_only"}),
        ("modules_to_save", {"modules_to_save": ["lm_head"]}),
        ("trainable_token_indices", {"trainable_token_indices": [1, 2]}),
        ("alora_invocation_tokens", {"alora_invocation_tokens": [3, 4]}),
        ("layer_replication", {"layer_replication": [[0, 2], [0, 2]]}),
        ("kasa_config", {"kasa_config": peft.KasaConfig()}),
        ("monteclora_config", {"monteclora_config": peft.MontecloraConfig()}),
        ("arrow_config", {"arrow_config": peft.ArrowConfig()}),
        ("target_parameters", {"target_parameters": ["mlp.up_proj.weight"]}),
        ("init_lora_weights", {"init_lora_weights": "pissa"}),
        ("init_lora_weights", {"init_lora_weights": "olora"}),
    ],
)
def test_a_feature_that_peft_wrote_is_refused_by_its_field(
    adapter: Path, base: LoadedBase, field: str, fields: dict[str, object]
):
    """The configuration is PEFT's own writing of the feature."""
    config = peft.LoraConfig(target_modules=["q_proj"], **fields)
    config.save_pretrained(str(adapter))
    assert_refused(adapter, base, field)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("peft_type", "VERA"),
        ("peft_type", None),
        ("use_qalora", True),
        ("lora_bias", True),
        ("megatron_config", {"a": 1}),
        ("init_lora_weights", "loftq"),
        ("init_lora_weights", "corda"),
        ("init_lora_weights", "lora_ga"),
        ("init_lora_weights", "pissa_niter_16"),
        ("init_lora_weights", 1),
        ("init_lora_weights", None),
        ("use_bdlora", {"target_modules_bd_a": ["q_proj"], "nblocks": 2, "overlap": 1}),
        ("a_feature_of_tomorrow", 0),
        ("a_feature_of_tomorrow", {"on": False}),
    ],
)
def test_a_field_is_refused_by_its_name(adapter: Path, base: LoadedBase, field: str, value: object):
    assert_refused(rewrite(adapter, config={field: value}), base, field)


def assert_refused(adapter: Path, base: LoadedBase, field: str) -> None:
    with pytest.raises(UnsupportedAdapter) as refusal:
        opened(base, adapter)
    assert refusal.value.param == field
    assert f"adapter {adapter}: {field}: " in str(refusal.value)


def test_a_field_that_is_off_does_no_harm(adapter: Path, base: LoadedBase):
    before = opened(base, adapter)
    off = {"use_dora": False, "modules_to_save": [], "target_parameters": None, "a_feature_of_tomorrow": False}
    assert opened(base, rewrite(adapter, config=off)).sites == before.sites


@pytest.mark.parametrize(
    ("field", "kind", "fields"),
    [
        ("peft_type", peft.VeraConfig, {}),
        ("peft_type", peft.LoHaConfig, {}),
        ("peft_type", peft.IA3Config, {"feedforward_modules": []}),
        ("use_dora", peft.LoraConfig, {"use_dora": True}),
        ("lora_bias", peft.LoraConfig, {"lora_bias": True}),
        ("modules_to_save", peft.LoraConfig, {"modules_to_save": ["lm_head"]}),
        ("target_modules", peft.LoraConfig, {"target_modules": ["q_proj", "embed_tokens"]}),
    ],
)
def test_whole_adapters_of_peft_are_refused(
    llama: TinyModel, base: LoadedBase, tmp_path: Path, field: str, kind: type, fields: dict[str, object]
):
    config = kind(**{"target_modules": ["q_proj"]} | fields)
    folder = save_adapter(llama.folder, tmp_path / "adapter", config)
    assert_refused(folder, base, field)


@pytest.mark.parametrize(
    ("field", "name", "shape"),
    [
        ("use_dora", f"{LAYER}.q_proj.lora_magnitude_vector", (64,)),
        ("lora_bias", f"{LAYER}.q_proj.lora_B.bias", (64,)),
        ("bias", f"{LAYER}.q_proj.base_layer.bias", (64,)),
        ("modules_to_save", "base_model.model.lm_head.weight", (N_VOCAB, 64)),
        ("modules_to_save", "base_model.model.model.embed_tokens.weight", (N_VOCAB + 8, 64)),
        ("modules_to_save", "base_model.model.lm_head.modules_to_save.default.weight", (N_VOCAB, 64)),
        ("target_modules", "base_model.model.model.embed_tokens.lora_embedding_A", (4, N_VOCAB)),
        ("kasa_config", f"{LAYER}.q_proj.lora_diag", (4,)),
        ("trainable_token_indices", "base_model.model.model.embed_tokens.trainable_tokens_delta", (2, 64)),
    ],
)
def test_a_tensor_that_the_configuration_does_not_announce_is_refused_too(
    adapter: Path, base: LoadedBase, field: str, name: str, shape: tuple[int, ...]
):
    assert_refused(rewrite(adapter, tensors={name: torch.zeros(shape)}), base, field)


A, B = f"{LAYER}.q_proj.lora_A.weight", f"{LAYER}.q_proj.lora_B.weight"


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        pytest.param({A: None}, "has no lora_A", id="half-a-pair"),
        pytest.param({B: None}, "has no lora_B", id="the-other-half"),
        pytest.param({A: torch.ones(4, 65)}, "for a weight of 64 x 65, the model's is 64 x 64", id="wide"),
        pytest.param({B: torch.ones(63, 4)}, "for a weight of 63 x 64, the model's is 64 x 64", id="short"),
        pytest.param({A: torch.ones(5, 64)}, "lora_A has rank 5, lora_B 4", id="ranks-apart"),
        pytest.param({A: torch.ones(5, 64), B: torch.ones(64, 5)}, "rank 5 in the file, 4 by r", id="other-rank"),
        pytest.param({A: torch.ones(0)}, "need two dimensions", id="a-shard"),
        pytest.param({A: torch.ones(4, 64, dtype=torch.int8)}, "is I8; allowed: F16, BF16, F32", id="whole-numbers"),
        pytest.param({A: torch.ones(4, 64, dtype=torch.float64)}, "is F64; allowed", id="doubles"),
        pytest.param({A.replace("lora_A", "lora_A.other"): torch.ones(4, 64)}, "the same part", id="two-adapters"),
        pytest.param({A.removeprefix("base_model.model."): torch.ones(4, 64)}, "the same part", id="twice"),
        pytest.param({A.replace("lora_A", "lora_E"): torch.ones(4, 1)}, "no place for lora_E", id="adalora-part"),
        pytest.param({A.replace("layers.0", "layers.7"): torch.ones(4, 64)}, "the model has no layer", id="layer-7"),
        pytest.param({A.replace("q_proj", "x_proj"): torch.ones(4, 64)}, "has no lora_B", id="half-of-a-stranger"),
        pytest.param(
            {"base_model.model.lm_head.lora_A.weight": torch.ones(4, 64)}, "the model has no layer", id="head"
        ),
        pytest.param({A + ".absmax": torch.ones(4)}, "no name that PEFT writes", id="quantised"),
        pytest.param({"optimizer_state": torch.ones(4)}, "no part of a LoRA", id="stranger"),
        pytest.param({"": torch.ones(4)}, "no part of a LoRA", id="nameless"),
    ],
)
def test_a_tensor_that_does_not_fit_is_named(
    adapter: Path, base: LoadedBase, tensors: dict[str, Tensor | None], said: str
):
    with pytest.raises(InvalidAdapter) as refusal:
        opened(base, rewrite(adapter, tensors=tensors))
    assert said in str(refusal.value)


def test_a_module_that_is_no_linear_layer_is_named(adapter: Path, base: LoadedBase):
    strange = {
        A.replace("q_proj", "rotary"): torch.ones(4, 64),
        B.replace("q_proj", "rotary"): torch.ones(64, 4),
    }
    with pytest.raises(InvalidAdapter, match="no linear layer there"):
        opened(base, rewrite(adapter, tensors=strange))


def test_a_fused_layer_beside_one_of_its_parts_is_refused(adapter: Path, base: LoadedBase):
    fused = {
        A.replace("q_proj", "qkv_proj"): torch.ones(4, 64),
        B.replace("q_proj", "qkv_proj"): torch.ones(128, 4),
    }
    with pytest.raises(InvalidAdapter, match="both adapt"):
        opened(base, rewrite(adapter, tensors=fused))


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_numbers_that_are_not_finite_are_counted_and_their_tensor_named(adapter: Path, base: LoadedBase, number: float):
    factor = torch.ones(4, 64)
    factor[1, 2] = factor[3, 4] = number
    found = opened(base, rewrite(adapter, tensors={A: factor}))
    with pytest.raises(InvalidAdapter, match=r"q_proj.lora_A.weight' has 2 numbers that are NaN or infinite"):
        found.update("model.layers.0.self_attn.q_proj")


def test_a_scale_that_leaves_float32_is_refused(adapter: Path, base: LoadedBase):
    found = opened(base, rewrite(adapter, config={"lora_alpha": 1e30}, tensors={B: torch.full((64, 4), 1e20)}))
    with pytest.raises(InvalidAdapter, match="exceed float32"):
        found.update("model.layers.0.self_attn.q_proj")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"lora_alpha": 0}, "lora_alpha is 0, so the adapter does nothing"),
        ({"alpha_pattern": {"q_proj": 0.0}}, "alpha_pattern['q_proj'] is 0"),
        ({"lora_alpha": None}, "lora_alpha needs a finite number, found None"),
        ({"lora_alpha": "16"}, "lora_alpha needs a finite number, found '16'"),
        ({"lora_alpha": True}, "lora_alpha needs a finite number, found True"),
        ({"lora_alpha": float("nan")}, "lora_alpha needs a finite number, found nan"),
        ({"lora_alpha": 10**400}, "lora_alpha needs a finite number"),
        ({"r": 0}, "r needs a whole number from 1, found 0"),
        ({"r": 4.0}, "r needs a whole number from 1, found 4.0"),
        ({"r": 8}, "rank 4 in the file, 8 by r and rank_pattern"),
        ({"rank_pattern": {"v_proj": 2}}, "rank 4 in the file, 2 by r and rank_pattern"),
        ({"rank_pattern": ["q_proj"]}, "rank_pattern needs an object of patterns"),
        ({"alpha_pattern": {"(": 3}}, "'(' is no regular expression"),
        ({"use_rslora": "false"}, "use_rslora needs true or false, found 'false'"),
        ({"use_bdlora": {"target_modules_bd_a": "q"}}, "use_bdlora: needs lists of module names"),
    ],
)
def test_a_value_that_can_not_be_is_named(adapter: Path, base: LoadedBase, fields: dict[str, object], said: str):
    with pytest.raises(InvalidAdapter) as refusal:
        opened(base, rewrite(adapter, config=fields))
    assert said in str(refusal.value)


def test_patterns_that_disagree_on_the_two_spellings_of_a_path_are_refused(adapter: Path, base: LoadedBase):
    name = A.replace("base_model.model.model.", "base_model.model.language_model.model.")
    whole = {A: None, B: None, name: torch.ones(4, 64), name.replace("lora_A", "lora_B"): torch.ones(64, 4)}
    patterns = {r"^language_model\..*": 3, r"^model\..*": 5}
    with pytest.raises(InvalidAdapter, match=r"alpha_pattern gives 3.0 for 'language_model.* and 5.0 for 'model"):
        opened(base, rewrite(adapter, config={"alpha_pattern": patterns}, tensors=whole))


def _no_weights(folder: Path) -> None:
    (folder / WEIGHTS_NAME).unlink()


def _pickle(folder: Path) -> None:
    _no_weights(folder)
    torch.save({}, folder / "adapter_model.bin")


def _pickle_in_disguise(folder: Path) -> None:
    torch.save({}, folder / WEIGHTS_NAME)


def _no_tensors(folder: Path) -> None:
    save_file({}, folder / WEIGHTS_NAME)


def _cut(folder: Path) -> None:
    data = (folder / WEIGHTS_NAME).read_bytes()
    (folder / WEIGHTS_NAME).write_bytes(data[:-1])


def _no_config(folder: Path) -> None:
    (folder / CONFIG_NAME).unlink()


def _config_inside(folder: Path) -> None:
    (folder / "other").mkdir()
    (folder / CONFIG_NAME).rename(folder / "other" / CONFIG_NAME)


def _config_is(text: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / CONFIG_NAME).write_text(text)

    return write


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (_no_weights, "no adapter_model.safetensors; give the folder"),
        (_pickle, "adapter_model.bin is a pickle, which can run code, and is never opened; where you trust it"),
        (_pickle_in_disguise, "found a pickle or zip archive"),
        (_no_tensors, "the file has no tensors"),
        (_cut, "file needs"),
        (_no_config, "no adapter_config.json; give a PEFT adapter's folder"),
        (_config_inside, "it has adapters inside, give one: other"),
        (_config_is("{"), "is no JSON"),
        (_config_is("[" * 100_000), "is no JSON"),
        (_config_is("[]"), "is not a JSON object"),
        (_config_is('{"r": 4, "r": 8}'), "a name comes twice"),
        (_config_is(" " * (5 << 20)), "allowed: 4194304"),
    ],
)
def test_a_folder_that_is_no_adapter_is_told_what_to_do(
    adapter: Path, base: LoadedBase, damage: Callable[[Path], None], said: str
):
    damage(adapter)
    with pytest.raises(InvalidAdapter) as refusal:
        opened(base, adapter)
    assert said in str(refusal.value)


def test_the_configuration_of_the_tests_is_readable_as_it_is(adapter: Path, base: LoadedBase):
    """So that what each test above puts in is what is refused."""
    assert len(opened(base, adapter).sites) == 4
    assert json.loads((adapter / CONFIG_NAME).read_text())["peft_type"] == "LORA"
