"""Coefficient files made to harm. Each is refused with its own code, and what served before serves on, unharmed."""

import io
import json
import pickle
import random
import zipfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from onebasis.coefficients.container import RawTensor
from tests.api.server import RunningServer, ok, refused, wait_until
from tests.api.test_errors import CODES
from tests.api.tiny_model import BASE_NAME
from tests.coefficients.builders import edited, raw_tensor, with_header

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


def pickled() -> bytes:
    class Harm:
        def __reduce__(self):
            return (print, ("harm",))

    return pickle.dumps({"coefficients": Harm()})


def zipped() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", pickled())
    return file.getvalue()


ZERO = "sha256:" + "0" * 64
SITE = "model.layers.0.self_attn.q_proj"

WRONG_FIELDS = {  # metadata to put in, or to take out where it is None
    "another basis": ("wrong_basis", {"basis": ZERO}),
    "another base": ("wrong_base", {"base_fingerprint": ZERO}),
    "no basis": ("invalid_metadata", {"basis": None}),
    "no base": ("invalid_metadata", {"base_fingerprint": None}),
    "long basis": ("invalid_metadata", {"basis": "x" * 10_000}),
    "format": ("invalid_metadata", {"format": "pt"}),
    "no format": ("invalid_metadata", {"format": None}),
    "version": ("unsupported_format_version", {"format_version": "2"}),
    "form": ("unknown_form", {"form": "pickle"}),
    "no form": ("unknown_form", {"form": None}),
    "diag's form, core's numbers": ("wrong_length", {"form": "diag"}),
    "k is text": ("invalid_metadata", {"k": "4; DROP TABLE"}),
    "k is 0": ("wrong_prefix", {"k": "0"}),
    "k is large": ("wrong_prefix", {"k": "999999999"}),
    "k without its numbers": ("wrong_length", {"k": "2"}),
    "sites are no JSON": ("invalid_metadata", {"sites": "[" * 100_000}),
    "sites are strange": ("unknown_site", {"sites": '["../../etc/passwd"]'}),
    "a site twice": ("unknown_site", {"sites": json.dumps([SITE, SITE])}),
    "a site alone": ("wrong_length", {"sites": json.dumps([SITE])}),
    "provenance is a list": ("invalid_metadata", {"provenance": "[]"}),
    "provenance is deep": ("invalid_metadata", {"provenance": '{"a":' * 5000 + "1" + "}" * 5000}),
    "provenance is deeper": ("invalid_metadata", {"provenance": '{"a":' * 100_000 + "1" + "}" * 100_000}),
    "provenance has NaN": ("invalid_metadata", {"provenance": '{"a": NaN}'}),
    "provenance has half a character": ("invalid_metadata", {"provenance": '{"a": "\\ud800"}'}),
}

WRONG_TENSORS = {  # tensors to put in, by the count of numbers that would be right
    "an unknown tensor": ("unknown_tensor", lambda _: {"residual.x.A": ones(1)}),
    "many unknown tensors": ("unknown_tensor", lambda _: {f"t{i}": ones(1) for i in range(999)}),
    "float64": ("wrong_dtype", lambda n: {"coefficients": ones(n, np.float64)}),
    "int8": ("wrong_dtype", lambda n: {"coefficients": ones(n, np.int8)}),
    "NaN": ("not_finite", lambda n: {"coefficients": ones(n, at=7, value=np.nan)}),
    "infinity": ("not_finite", lambda n: {"coefficients": ones(n, at=0, value=-np.inf)}),
    "NaN in float32": ("not_finite", lambda n: {"coefficients": ones(n, np.float32, at=n - 1, value=np.nan)}),
    "one short": ("wrong_length", lambda n: {"coefficients": ones(n - 1)}),
    "one too many": ("wrong_length", lambda n: {"coefficients": ones(n + 1)}),
    "no numbers": ("wrong_length", lambda _: {"coefficients": ones(0)}),
    "a matrix": ("wrong_length", lambda n: {"coefficients": ones((1, n))}),
    "a scalar": ("wrong_length", lambda _: {"coefficients": ones(())}),
}

BROKEN = {  # bytes made from a good file's
    "a header of 2^63 bytes": ("not_safetensors", lambda data: (2**63).to_bytes(8, "little") + data[8:]),
    "a header a byte too long": ("truncated_file", lambda data: (len(data) - 7).to_bytes(8, "little") + data[8:]),
    "bytes behind the end": ("not_safetensors", lambda data: data + b"\x00"),
    "a file twice": ("not_safetensors", lambda data: data + data),
    "numbers that overlap the header": ("not_safetensors", lambda data: header_says(data, data_offsets=[-8, 440])),
    "numbers past the end": ("truncated_file", lambda data: header_says(data, data_offsets=[0, 450])),
    "numbers to the end of memory": ("truncated_file", lambda data: header_says(data, data_offsets=[0, 2**62])),
    "a shape that overflows": ("not_safetensors", lambda data: header_says(data, shape=[2**62, 2**62])),
    "a shape below 0": ("not_safetensors", lambda data: header_says(data, shape=[-224])),
    "no tensor": ("missing_tensor", lambda data: edited(data, without=["coefficients"])),
}

NO_COEFFICIENTS = {  # whole files
    "a pickle": ("pickle_refused", pickled()),
    "a zip of a pickle": ("pickle_refused", zipped()),
    "nothing": ("truncated_file", b""),
    "HTML": ("not_safetensors", b"<!DOCTYPE html><html><body>502 Bad Gateway</body></html>"),
    "gzip": ("not_safetensors", b"\x1f\x8b\x08\x00" + b"\x99" * 500),
    "zeros": ("not_safetensors", b"\x00" * 5000),
    "a header that is no JSON": ("not_safetensors", with_header(b"{" * 64)),
    "a deep header": ("not_safetensors", with_header(b"[" * 100_000)),
}


def ones(
    shape: int | tuple[int, ...], dtype: type = np.float16, *, at: int | None = None, value: float = 1
) -> RawTensor:
    values = np.ones(shape, dtype=dtype)
    if at is not None:
        values[at] = value
    return raw_tensor(values)


def header_says(data: bytes, **fields: object) -> bytes:
    """The same numbers behind a header that says something else of them."""
    n_header = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + n_header])
    header["coefficients"] |= fields
    return with_header(header, data[8 + n_header :])


@pytest.mark.parametrize("kind", WRONG_FIELDS)
def test_a_file_with_a_wrong_field_is_refused_for_it(server, tiny, kind):
    code, fields = WRONG_FIELDS[kind]
    put_in = {field: text for field, text in fields.items() if text is not None}
    attack(server, code, edited(tiny.core_file(1), metadata=put_in, without=fields.keys() - put_in.keys()))


@pytest.mark.parametrize("kind", WRONG_TENSORS)
def test_a_file_with_wrong_tensors_is_refused_for_them(server, tiny, kind):
    code, tensors = WRONG_TENSORS[kind]
    attack(server, code, edited(tiny.core_file(1), tensors=tensors(tiny.basis.n_core_numbers)))


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_file_is_refused_for_what_is_broken(server, tiny, kind):
    code, broken = BROKEN[kind]
    attack(server, code, broken(tiny.core_file(1)))


@pytest.mark.parametrize("kind", NO_COEFFICIENTS)
def test_a_file_of_another_kind_is_refused(server, kind):
    attack(server, *NO_COEFFICIENTS[kind])


def test_a_basis_is_not_taken_for_coefficients(server, tiny):
    attack(server, "invalid_metadata", tiny.basis_path.read_bytes())


def attack(server: RunningServer, code: str, data: bytes) -> None:
    message = refused(server.put_task(NAME, data), 400, code)
    assert len(message) < 1000, "a stranger's text is not sent back whole"


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


def test_600_random_mutations_never_break_the_server(own_server, tiny):
    """Each is stored or refused with the envelope; the two good tasks answer as before."""
    before = {name: own_server.text(name) for name in ("one", "two", BASE_NAME)}
    rng = random.Random(0)
    files = [tiny.core_file(seed) for seed in range(3)]
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
                words = (b"coefficients", b"core", b"F16", b"1", b"0", b"{", b'"', b":", b"[")
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
