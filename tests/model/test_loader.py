import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from onebasis.coefficients.basis_file import basis_metadata
from onebasis.coefficients.container import Container, read_container, write_container
from onebasis.core.errors import InvalidBasis, InvalidModel
from onebasis.model.factors import load_basis
from onebasis.model.loader import load_base
from tests.coefficients.builders import FINGERPRINT, SITES, basis_bytes, raw_tensor
from tests.model.families import CPU, N_VOCAB, tiny_base, tiny_model


@pytest.fixture
def model_folder(tmp_path):
    folder = tmp_path / "tiny-llama"
    tiny_model("llama").save_pretrained(folder)
    _save_tokenizer(folder)
    return folder


def _save_tokenizer(folder):
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(N_VOCAB)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="w2").save_pretrained(folder)


def load(folder, **options):
    return load_base(folder, **{"dtype": torch.float32, "device": CPU} | options)


def test_a_saved_model_comes_back_frozen_and_in_evaluation_mode(model_folder):
    base = load(model_folder)
    for name, parameter in tiny_model("llama").named_parameters():
        assert torch.equal(base.model.get_parameter(name), parameter), name
    assert not any(parameter.requires_grad for parameter in base.model.parameters())
    assert not base.model.training
    assert base.name == "tiny-llama"
    assert base.tokenizer("w5 w7")["input_ids"] == [5, 7]


def test_dtype_and_name_are_the_callers(model_folder):
    base = load(model_folder, dtype=torch.bfloat16, name="served")
    assert {parameter.dtype for parameter in base.model.parameters()} == {torch.bfloat16}
    assert base.name == "served"


def test_the_name_of_a_relative_folder_is_its_own(model_folder, monkeypatch):
    monkeypatch.chdir(model_folder)
    assert load(model_folder.relative_to(model_folder)).name == "tiny-llama"


def test_end_tokens_come_from_generation_config_model_and_tokenizer():
    base = tiny_base()
    base.model.generation_config.eos_token_id = [11, 12]
    base.text_config.eos_token_id = 13
    base = dataclasses.replace(base, tokenizer=SimpleNamespace(eos_token_id=14))
    assert base.eos_token_ids == {11, 12, 13, 14}
    base.model.generation_config.eos_token_id = None
    base.text_config.eos_token_id = None
    assert base.eos_token_ids == {14}
    base.model.generation_config = None
    assert dataclasses.replace(base, tokenizer=SimpleNamespace(eos_token_id=None)).eos_token_ids == frozenset()


def test_a_folder_without_config_is_refused(tmp_path):
    with pytest.raises(InvalidModel, match=r"config\.json"):
        load(tmp_path)
    with pytest.raises(InvalidModel, match=r"config\.json"):
        load(tmp_path / "missing")


def test_a_folder_without_weights_is_refused(model_folder):
    (model_folder / "model.safetensors").unlink()
    with pytest.raises(InvalidModel, match="can't load"):
        load(model_folder)


@pytest.mark.parametrize("config", ["{", "[]", "{}", '{"model_type": "no-such-family"}'])
def test_a_config_that_is_none_is_refused(model_folder, config):
    (model_folder / "config.json").write_text(config)
    with pytest.raises(InvalidModel, match="can't load"):
        load(model_folder)


def test_truncated_weights_are_refused(model_folder):
    weights = model_folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(InvalidModel, match="can't load"):
        load(model_folder)


def test_weights_of_another_shape_are_refused(model_folder):
    path = model_folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"intermediate_size": 96}))
    with pytest.raises(InvalidModel, match="can't load"):
        load(model_folder)


def test_weights_that_are_missing_are_not_drawn_at_random(model_folder):
    weights = model_folder / "model.safetensors"
    tensors = load_file(weights)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(InvalidModel, match=r"lack model\.layers\.1\.mlp\.up_proj\.weight"):
        load(model_folder)


def test_a_tied_head_is_not_missing(tmp_path):
    model = tiny_model("llama")
    model.config.tie_word_embeddings = True
    model.tie_weights()
    model.save_pretrained(tmp_path)
    _save_tokenizer(tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    base = load(tmp_path)
    assert torch.equal(base.model.lm_head.weight, base.model.model.embed_tokens.weight)


def test_a_pickle_of_weights_is_not_opened(model_folder):
    weights = model_folder / "model.safetensors"
    torch.save(load_file(weights), model_folder / "pytorch_model.bin")
    weights.unlink()
    with pytest.raises(InvalidModel, match="can't load"):
        load(model_folder)


def test_code_in_a_model_folder_is_not_run(model_folder):
    path = model_folder / "config.json"
    own_code = {"model_type": "own", "auto_map": {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}}
    path.write_text(json.dumps(json.loads(path.read_text()) | own_code))
    (model_folder / "own.py").write_text("import pathlib\npathlib.Path(__file__).with_name('ran').touch()\n")
    with pytest.raises(InvalidModel, match="can't load"):
        load(model_folder)
    assert not (model_folder / "ran").exists()


def test_factors_come_back_in_the_wanted_width(tmp_path):
    path = tmp_path / "a.basis.safetensors"
    path.write_bytes(basis_bytes(seed=4))
    basis = load_basis(path, dtype=torch.bfloat16, device=CPU)
    stored = read_container(basis_bytes(seed=4)).tensors
    assert list(basis.factors) == [site.name for site in SITES]
    for site in SITES:
        v, u = basis.factors[site.name].v, basis.factors[site.name].u
        assert v.shape == (site.k_in, site.d_in)
        assert u.shape == (site.k_out, site.d_out)
        numbers = np.frombuffer(stored[f"{site.name}.U"].data, dtype=np.float32).reshape(u.shape)
        assert torch.equal(u, torch.from_numpy(numbers.copy()).to(torch.bfloat16))


@pytest.mark.parametrize("factor", ["V", "U"])
@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_a_basis_with_a_number_that_is_not_finite_is_refused(tmp_path, factor, number):
    path = tmp_path / "a.basis.safetensors"
    path.write_bytes(_basis_with(f"{SITES[1].name}.{factor}", number))
    with pytest.raises(InvalidBasis, match=SITES[1].name):
        load_basis(path, dtype=torch.float32, device=CPU)


def test_a_basis_that_overflows_the_served_width_is_refused(tmp_path):
    path = tmp_path / "a.basis.safetensors"
    path.write_bytes(_basis_with(f"{SITES[0].name}.V", 1e6))
    load_basis(path, dtype=torch.bfloat16, device=CPU)
    with pytest.raises(InvalidBasis, match=SITES[0].name):
        load_basis(path, dtype=torch.float16, device=CPU)


def _basis_with(tensor: str, number: float) -> bytes:
    """A basis file that has `number` as the last entry of one factor."""
    tensors = dict(read_container(basis_bytes()).tensors)
    shape = tensors[tensor].shape
    numbers = np.ones(shape, dtype=np.float32)
    numbers[-1, -1] = number
    fields = basis_metadata(
        kind="random", base_model="tiny", base_fingerprint=FINGERPRINT, sites=SITES, report={"seed": 0}
    )
    return write_container(Container(fields, tensors | {tensor: raw_tensor(numbers)}))
