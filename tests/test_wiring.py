"""A server that could not serve does not start, and says what to change. One that starts is whole."""

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from transformers import DiffLlamaConfig, Lfm2Config

from onebasis.core.config import ServeConfig
from onebasis.core.errors import InvalidBasis, InvalidModel, InvalidStore, SetupError
from onebasis.fitting.basis.base_only import BasisKind, build_basis
from onebasis.model.loader import LoadedBase, load_base
from onebasis.wiring import Server, build_server, native
from onebasis.wiring.assembly import step_budget
from tests.api.tiny_model import MAX_POSITIONS, TinyModel, save_tiny_model
from tests.fitting.tiny import save_family

ROW_BYTES = 14 * 4 * 4 * 4  # of the arena: 14 sites, cores of 4 x 4, float32


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    return save_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def wide(llama: TinyModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose KV cache takes 16 KiB a token in float32: 2 layers, keys and values, 2 heads of 512."""
    return save_family(llama, tmp_path_factory.mktemp("wide"), head_dim=512)


@pytest.fixture
def start(llama: TinyModel, tmp_path: Path):
    """Builds a server of the tiny model, changed by settings; all are closed after the test."""
    servers: list[Server] = []

    def build(**settings: Any) -> Server:
        defaults = {
            "model": llama.folder,
            "basis": llama.basis_path,
            "store": f"sqlite:///{tmp_path / 'tasks.db'}",
            "dtype": "float32",
            "threads": torch.get_num_threads(),
            "kv_cache_mib": 2,
            "arena_mib": 1,
        }
        servers.append(build_server(ServeConfig(**(defaults | settings))))
        return servers[-1]

    yield build
    for server in servers:
        server.close()


def test_a_basis_for_another_model_is_refused(start, llama: TinyModel, tmp_path: Path) -> None:
    """Of the same shape: only the weights tell."""
    other = load_base(llama.folder, dtype=torch.float32, device=torch.device("cpu"))
    with torch.no_grad():
        other.model.model.layers[0].mlp.up_proj.weight.mul_(1.5)
    path = tmp_path / "other.basis.safetensors"
    build_basis(other, kind=BasisKind.RANDOM, k=4, seed=0, path=path, progress=lambda _site: None)
    with pytest.raises(InvalidBasis, match=r"the basis is for base weights sha256:.* load that model or build a basis"):
        start(basis=path)


@pytest.mark.parametrize(
    ("option", "value"),
    [("tensor_parallel_size", 2), ("pipeline_parallel_size", 2), ("distributed_executor_backend", "mp")],
)
def test_the_native_engine_refuses_to_be_spread(start, option: str, value: object) -> None:
    with pytest.raises(SetupError, match=f"{option} is for engine=vllm"):
        start(**{option: value})


def test_the_basis_fits_in_any_dtype(start) -> None:
    assert start(dtype="bfloat16").engine.limits.max_model_len == MAX_POSITIONS


def test_layers_that_are_no_attention_are_refused(start, llama: TinyModel, tmp_path: Path) -> None:
    folder = save_family(
        llama, tmp_path, Lfm2Config, layer_types=["conv", "full_attention"], block_auto_adjust_ff_dim=False
    )
    with pytest.raises(
        InvalidModel, match="Lfm2ForCausalLM has layers of type conv; this server computes full_attention and sliding_"
    ):
        start(model=folder, basis=None)


def test_a_model_that_would_be_computed_wrongly_is_refused(start, llama: TinyModel, tmp_path: Path) -> None:
    folder = save_family(llama, tmp_path, DiffLlamaConfig)
    with pytest.raises(InvalidModel, match="DiffLlamaForCausalLM: this server computes other logits than transformers"):
        start(model=folder, basis=None)


@pytest.mark.parametrize(("max_model_len", "kind"), [(32, "short_factor"), (33, "long_factor"), (None, "long_factor")])
def test_the_factors_of_a_longrope_follow_from_the_longest_text(
    max_model_len: int | None, kind: str, start, llama: TinyModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 32}
    factors = {"short_factor": [1.0] * 8, "long_factor": [4.0] * 8}
    folder = save_family(llama, tmp_path, rope_parameters=rope | factors)
    loaded: list[LoadedBase] = []
    monkeypatch.setattr(
        native, "load_base", lambda *args, **options: loaded.append(load_base(*args, **options)) or loaded[0]
    )
    start(model=folder, basis=None, max_model_len=max_model_len)
    rotary = loaded[0].model.model.rotary_emb
    rotary(torch.empty(0), torch.arange(2).unsqueeze(0))
    assert rotary.inv_freq[0] == 1 / factors[kind][0]


def test_a_kv_cache_that_holds_no_block_is_refused(start, wide: Path) -> None:
    with pytest.raises(SetupError, match="kv_cache_mib 1 holds no block of 1064960 bytes; raise it"):
        start(model=wide, basis=None, kv_cache_mib=1, block_size=65)


def test_sequences_are_as_long_as_the_model_allows(start) -> None:
    assert start(kv_cache_mib=2).engine.limits.max_model_len == MAX_POSITIONS


def test_sequences_are_as_long_as_the_cache_holds(start, wide: Path) -> None:
    assert start(model=wide, basis=None, kv_cache_mib=1, block_size=12).engine.limits.max_model_len == 60


@pytest.mark.parametrize("wanted", [MAX_POSITIONS, 17])
def test_a_max_model_len_that_fits_is_kept(wanted: int, start) -> None:
    assert start(max_model_len=wanted).engine.limits.max_model_len == wanted


def test_a_max_model_len_past_the_model_is_refused(start) -> None:
    with pytest.raises(SetupError, match=f"max_model_len {MAX_POSITIONS + 1}: the model allows {MAX_POSITIONS}"):
        start(max_model_len=MAX_POSITIONS + 1)


def test_a_max_model_len_past_the_cache_is_refused(start, wide: Path) -> None:
    with pytest.raises(SetupError, match=r"max_model_len 65: .* the KV cache holds 64; lower it or raise kv_cache_mib"):
        start(model=wide, basis=None, kv_cache_mib=1, max_model_len=65)


def test_a_host_that_others_reach_is_refused(start) -> None:
    with pytest.raises(ValidationError, match="pass --allow-unauthenticated"):
        start(host="0.0.0.0")


@pytest.mark.parametrize(
    ("setting", "value", "error"),
    [
        ("model", Path("nowhere"), InvalidModel),
        ("basis", Path("nowhere"), InvalidBasis),
        ("store", "no url", InvalidStore),
    ],
)
def test_what_can_not_be_read_is_refused(setting: str, value: object, error: type[SetupError], start) -> None:
    with pytest.raises(error, match=str(value)):
        start(**{setting: value})


@pytest.mark.parametrize(("max_running", "n_rows"), [(8, 1024 * 1024 // ROW_BYTES), (2000, 2000)])
def test_every_running_sequence_can_have_a_task_of_its_own(max_running: int, n_rows: int, start) -> None:
    server = start(arena_mib=1, max_running=max_running, max_step_tokens=2000)
    assert server.engine.snapshot().max_resident_tasks == n_rows


@pytest.mark.parametrize(
    ("path", "settings", "budget"),
    [
        ("native", {}, (128, 64)),
        ("native", {"max_running": 200}, (264, 64)),
        ("native", {"max_prefill_tokens": 32}, (96, 32)),
        ("native", {"max_step_tokens": 1024}, (1024, 64)),
        ("torch", {}, (512, 256)),
        ("vllm", {"max_running": 600}, (600, 256)),
        ("torch", {"max_step_tokens": 100, "max_prefill_tokens": 50}, (100, 50)),
    ],
)
def test_the_presets_of_a_step_follow_what_computes_it(path: str, settings: dict[str, int], budget: object) -> None:
    found = step_budget(ServeConfig(model=Path("nowhere"), **settings), path)
    assert (found.n_tokens, found.n_prefill) == budget


def test_a_server_without_a_basis_has_no_room_for_tasks(start) -> None:
    assert start(basis=None).engine.snapshot().max_resident_tasks == 0


@pytest.mark.parametrize("device", ["tpu0", "cuda:99"])
def test_a_device_that_is_not_there_is_refused(device: str, start) -> None:
    with pytest.raises(SetupError, match=device):
        start(device=device)
