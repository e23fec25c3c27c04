"""Adapters made to harm: each is refused with a reason, quickly, and nothing of them is run, written or believed."""

import json
import os
import pickle
import random
import time
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import save_file

from onebasis.core.errors import InvalidAdapter
from onebasis.fitting.peft.adapter import WEIGHTS_NAME, open_adapter
from onebasis.fitting.peft.config import CONFIG_NAME
from onebasis.fitting.peft.sites import SiteShape
from tests.coefficients.builders import with_header

SITES = {f"model.layers.{n}.self_attn.{name}": SiteShape(6, 5) for n in range(2) for name in ("q_proj", "k_proj")}
CONFIG = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "k_proj"]}
MIB = 1 << 20
N_RANDOM = 400


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """A sound one."""
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / CONFIG_NAME).write_text(json.dumps(CONFIG))
    tensors = {}
    for site, shape in SITES.items():
        tensors[f"base_model.model.{site}.lora_A.weight"] = torch.ones(2, shape.d_in)
        tensors[f"base_model.model.{site}.lora_B.weight"] = torch.ones(shape.d_out, 2)
    save_file(tensors, folder / WEIGHTS_NAME)
    assert open_adapter(folder, SITES).update(next(iter(SITES))).energy() > 0
    return folder


def refusal(folder: Path) -> str:
    """Why the adapter is refused; in little time and memory, whatever it says of itself."""
    process = psutil.Process()
    before, started_s = process.memory_info().rss, time.monotonic()
    with pytest.raises(InvalidAdapter) as refused:
        open_adapter(folder, SITES)
    assert time.monotonic() - started_s < 5
    assert process.memory_info().rss - before < 64 * MIB
    assert len(str(refused.value)) < 2000, "a stranger's text is cut"
    return str(refused.value)


def test_a_header_that_announces_a_billion_tensors(adapter: Path):
    """A hundred bytes for each: the file is as long as it says, all of it holes."""
    path = adapter / WEIGHTS_NAME
    path.write_bytes((100 * 10**9).to_bytes(8, "little") + b'{"a":')
    os.truncate(path, 8 + 100 * 10**9)
    assert "the header has 100000000000 bytes; an adapter of this model's 4 sites needs under" in refusal(adapter)


def test_a_header_that_announces_more_than_the_file(adapter: Path):
    (adapter / WEIGHTS_NAME).write_bytes((2**63).to_bytes(8, "little") + b"{}")
    assert "header of 9223372036854775808 bytes" in refusal(adapter)


def test_a_header_of_very_many_tensors_is_not_even_parsed(adapter: Path):
    tensor = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    (adapter / WEIGHTS_NAME).write_bytes(with_header({f"t{n}.lora_A": tensor for n in range(40_000)}))
    assert "the header has" in refusal(adapter)


@pytest.mark.parametrize("shape", [[2**62, 6], [2**31, 2**31], [-2, 6], [2, 6, 1], [], [2.0, 6], ["2", 6]])
def test_a_shape_that_its_bytes_do_not_have(adapter: Path, shape: list[object]):
    path = adapter / WEIGHTS_NAME
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    header[name]["shape"] = shape
    path.write_bytes(with_header(header, data[8 + length :]))
    assert refusal(adapter)


@pytest.mark.parametrize(
    "name",
    [
        "../../../../etc/passwd",
        "../../etc/cron.d/x.lora_A.weight",
        "/etc/passwd.lora_B.weight",
        "base_model.model.../../x.lora_A.weight",
        "model.layers.0.self_attn.q_proj/../k_proj.lora_A.weight",
        "C:\\x.lora_A.weight",
        "lora_A.weight",
        "lora_A",
        ".",
        "",
        "\x00.lora_A.weight",
        "\x1b[2J.lora_A.weight",
        "__class__.__init__.lora_A.weight",
        "x" * 500_000 + ".lora_A.weight",
        ".".join(["model"] * 100_000) + ".lora_A.weight",
    ],
)
def test_a_path_in_a_tensor_name_is_a_name_like_any_other(adapter: Path, name: str):
    header = {name: {"dtype": "F32", "shape": [2, 6], "data_offsets": [0, 48]}}
    (adapter / WEIGHTS_NAME).write_bytes(with_header(header, bytes(48)))
    said = refusal(adapter)
    assert "\x1b" not in said
    assert "\x00" not in said
    assert sorted(path.name for path in adapter.parent.rglob("*")) == ["adapter", CONFIG_NAME, WEIGHTS_NAME]


class Bomb:
    def __reduce__(self):
        return os.mkdir, (os.environ["BOMB"],)


@pytest.mark.parametrize("name", ["adapter_model.bin", WEIGHTS_NAME])
def test_a_pickle_is_never_opened(adapter: Path, monkeypatch: pytest.MonkeyPatch, name: str):
    target = adapter.parent / "it-ran"
    monkeypatch.setenv("BOMB", str(target))
    (adapter / WEIGHTS_NAME).unlink()
    (adapter / name).write_bytes(pickle.dumps(Bomb()))
    assert "pickle" in refusal(adapter)
    assert not target.exists()
    pickle.loads((adapter / name).read_bytes())
    assert target.exists(), "the bomb is a real one"


@pytest.mark.parametrize("what", [CONFIG_NAME, WEIGHTS_NAME])
@pytest.mark.parametrize("seed", range(2))
def test_a_file_with_random_edits_is_refused_or_read_whole(adapter: Path, what: str, seed: int):
    """Never half: what opens gives finite updates of the right shapes."""
    sound = (adapter / what).read_bytes()
    edit = random.Random(seed)
    n_refused = 0
    for _ in range(N_RANDOM):
        data = bytearray(sound)
        for _ in range(edit.choice((1, 1, 1, 5))):
            at = edit.randrange(min(len(data), 700))
            match edit.choice(("flip", "cut", "insert", "digit")):
                case "flip":
                    data[at] ^= 1 << edit.randrange(8)
                case "cut":
                    del data[at : at + edit.randrange(1, 9)]
                case "insert":
                    data[at:at] = edit.randbytes(edit.randrange(1, 9))
                case _:
                    data[at] = edit.choice(b'0123456789"{}[],-.')
        (adapter / what).write_bytes(data)
        try:
            found = open_adapter(adapter, SITES)
            updates = {site: found.update(site) for site in found.sites}
        except InvalidAdapter:
            n_refused += 1
            continue
        for site, update in updates.items():
            assert (update.b @ update.a).shape == (SITES[site].d_out, SITES[site].d_in)
            assert update.b.isfinite().all()
            assert update.a.isfinite().all()
    assert n_refused > N_RANDOM / 4
