"""Coefficient files made to harm. Each is refused with its own code, and what served before serves on, unharmed."""

import random
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from tests.api.server import RunningServer, ok, refused, wait_until
from tests.api.test_errors import CODES
from tests.api.tiny_model import BASE_NAME
from tests.attacks.hostile_files import HostileFile, fixed_files, random_files
from tests.coefficients.builders import edited, random_residual, raw_tensor

NAME = "target"


@pytest.fixture(autouse=True)
def earlier_version(server, tiny):
    """A good version stands before the attack; after it the version still does and answers as before."""
    assert server.put_task(NAME, tiny.core_file(0)).is_success
    before = ok(server.client.get(f"/v1/tasks/{NAME}")), server.text(NAME), server.text(BASE_NAME)
    n_versions = _n_versions(server)
    yield
    after = ok(server.client.get(f"/v1/tasks/{NAME}")), server.text(NAME), server.text(BASE_NAME)
    assert after == before
    assert server.client.get(f"/v1/tasks/{NAME}/content").content == tiny.core_file(0)
    assert _n_versions(server) == n_versions, "an attack was stored"


@pytest.fixture(scope="module")
def own_server(tiny):
    """For attacks that are stored: what they leave is thrown away."""
    with RunningServer(tiny) as server:
        for seed, name in enumerate(("one", "two")):
            ok(server.put_task(name, tiny.core_file(seed)))
        yield server


def _n_versions(server: RunningServer) -> float:
    states = ("registered", "retired")
    return sum(server.metric("onebasis_task_registry_entries", state=state) for state in states)


def test_every_kind_of_hostile_file_is_refused_with_its_own_code(server, tiny):
    for file in fixed_files(tiny):
        attack(server, file)


@pytest.mark.parametrize("seed", range(3))
def test_random_variations_are_refused_with_their_codes(server, tiny, seed):
    for file in random_files(tiny, seed, n=100):
        attack(server, file)


def attack(server: RunningServer, file: HostileFile) -> None:
    response = server.put_task(NAME, file.data)
    error = response.json()["error"]
    assert error["code"] in file.codes, (file.name, error)
    message = refused(response, 400, error["code"])
    assert len(message) < 1000, f"{file}: a stranger's text is sent back whole"


def test_every_prefix_of_a_file_is_refused(server, tiny):
    data = tiny.core_file(1)
    for n in [*range(24), *range(24, len(data), 37), len(data) - 2, len(data) - 1]:
        refused(server.put_task(NAME, data[:n]), 400, "truncated_file")


def test_extra_metadata_is_stored_and_never_interpreted(own_server, tiny):
    """Nothing outside of the named fields has a meaning; the bytes come back as they were."""
    data = edited(tiny.core_file(2), metadata={"__proto__": "x", "model": BASE_NAME, "": "'; DROP TABLE tasks; --"})
    ok(own_server.put_task("odd", data))
    ok(own_server.put_task("plain", tiny.core_file(2)))
    assert own_server.client.get("/v1/tasks/odd/content").content == data
    assert own_server.text("odd") == own_server.text("plain")


def test_extreme_but_finite_numbers_are_stored_as_they_are(own_server, tiny):
    """Subnormals, signed zeros and the largest of each width are numbers like others."""
    limits = np.array([6e-8, -6e-8, 6.1e-5, 0.0, -0.0, 1.0, -1.0], np.float16)
    values = np.resize(limits, tiny.basis.n_core_numbers)
    data = edited(tiny.core_file(0), tensors={"coefficients": raw_tensor(values)})
    ok(own_server.put_task("extreme", data))
    assert own_server.client.get("/v1/tasks/extreme/content").content == data
    assert own_server.complete(model="extreme")["usage"]["completion_tokens"] == 8


def test_600_random_mutations_never_break_the_server(own_server, tiny):
    """Each is stored or refused with the envelope; the two good tasks answer as before."""
    before = {name: own_server.text(name) for name in ("one", "two", BASE_NAME)}
    rng = random.Random(0)
    residual = {tiny.basis.sites[0].name: random_residual(tiny.basis.sites[0])}
    files = [*(tiny.core_file(seed) for seed in range(3)), tiny.core_file(3, residual=residual)]
    outcomes: dict[str, int] = {}
    for i in range(600):
        response = own_server.put_task(f"mutant-{i % 7}", mutated(rng, files))
        if response.is_success:
            outcome = "stored"
        else:
            outcome = response.json()["error"]["code"]
            refused(response, CODES[outcome], outcome)
            assert response.status_code in (400, 413)
        outcomes[outcome] = outcomes.get(outcome, 0) + 1
    assert len(outcomes) >= 6, outcomes
    assert outcomes["stored"] > 10
    for name in {card["id"] for card in ok(own_server.client.get("/v1/tasks"))["data"]}:
        assert own_server.complete(model=name, logprobs=2)["usage"]["completion_tokens"] == 8
    assert {name: own_server.text(name) for name in before} == before


def mutated(rng: random.Random, files: list[bytes]) -> bytes:
    """One to three random edits: bytes, bits, cuts, inserts, copies, splices; or one inside the header's JSON."""
    data = bytearray(rng.choice(files))
    n_header = int.from_bytes(data[:8], "little")
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(max(1, min(len(data), rng.choice([8, 8 + n_header, len(data)]))))
        match rng.randrange(7):
            case 0:
                data[at : at + 1] = bytes([rng.randrange(256)])
            case 1:
                data[at : at + 1] = bytes([data[at] ^ (1 << rng.randrange(8))]) if at < len(data) else b""
            case 2:
                del data[at : at + rng.randint(1, 40)]
            case 3:
                data[at:at] = rng.randbytes(rng.randint(1, 40))
            case 4:
                data[at:at] = data[at : at + rng.randint(1, 200)]
            case 5:
                data[at:] = rng.choice(files)[at:]
            case 6:
                words = (b"coefficients", b"residual", b"core", b"F16", b"1", b"0", b"{", b'"', b":", b"[")
                data = bytearray(bytes(data).replace(rng.choice(words), rng.choice(words), 1))
    return bytes(data)


def test_finite_numbers_that_overflow_the_model_harm_only_their_own_answers(own_server, tiny):
    """Such a task's logits are NaN: its requests end with a named error, and no neighbour sees anything of them."""
    good = {name: own_server.complete(model=name, max_tokens=40)["choices"] for name in ("one", "two", BASE_NAME)}
    values = np.random.default_rng(0).choice([-3e38, 3e38], tiny.basis.n_core_numbers).astype(np.float32)
    ok(own_server.put_task("overflows", edited(tiny.core_file(0), tensors={"coefficients": raw_tensor(values)})))
    for sampling in ({"temperature": 0}, {"temperature": 1.0, "top_p": 0.5}, {"temperature": 1.0}):
        body = {"model": "overflows", "prompt": "the cat", "max_tokens": 40, "logprobs": 3} | sampling
        refused(own_server.post("/v1/completions", **body), 400, "non_finite_output", "model")
        [event] = own_server.stream("/v1/completions", **body)
        assert event["error"]["code"] == "non_finite_output"
    for name, choices in good.items():
        assert own_server.complete(model=name, max_tokens=40)["choices"] == choices, "NaN stayed in the cache"
    models = ["overflows", "one", "overflows", "two", BASE_NAME] * 3
    body = {"prompt": "the cat", "max_tokens": 40, "temperature": 0, "ignore_eos": True}
    with ThreadPoolExecutor(len(models)) as pool:
        answers = list(pool.map(lambda model: own_server.post("/v1/completions", model=model, **body), models))
    for model, answer in zip(models, answers, strict=True):
        if model == "overflows":
            refused(answer, 400, "non_finite_output", "model")
        else:
            assert ok(answer)["choices"] == good[model], "a neighbour's NaN came through"
    own_server.wait_until_idle()


def test_the_uploader_s_headers_are_no_authority(server, tiny):
    """The bytes decide: whatever type or encoding is claimed, a file that is none is refused."""
    for claim in ({"Content-Type": "application/json"}, {"Content-Encoding": "gzip"}, {"Content-Type": "text/html"}):
        response = server.client.put(f"/v1/tasks/{NAME}", content=b"\x1f\x8b" + b"\x77" * 100, headers=claim)
        refused(response, 400, "not_safetensors")
        response = server.client.put(f"/v1/tasks/{NAME}", content=tiny.core_file(0), headers=claim)
        assert response.status_code == 200


def test_attacks_leave_no_request_behind(server):
    wait_until(server.is_idle, "something still runs")
