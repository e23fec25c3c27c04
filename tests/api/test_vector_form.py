"""Tasks of the form `vector`: the same answers as of the explicit cores, alone, together and in blends."""

import dataclasses
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from onebasis.coefficients.basis_file import read_basis_spec
from onebasis.coefficients.format import parse_coefficients, write_coefficients
from onebasis.coefficients.validate import bind
from tests.api.server import RunningServer, ok, refused
from tests.coefficients.builders import edited, with_mixing_cores

N_MIX = 3


@pytest.fixture(scope="module")
def mixed(tiny, tmp_path_factory):
    """The tiny model with a basis that has mixing cores."""
    path = tmp_path_factory.mktemp("mixed") / "mixed.basis.safetensors"
    path.write_bytes(with_mixing_cores(tiny.basis_path.read_bytes(), tiny.basis.sites, N_MIX))
    return dataclasses.replace(tiny, basis_path=path, basis=read_basis_spec(path))


@pytest.fixture(scope="module")
def own_server(mixed):
    """Two vectors, and the cores that each amounts to."""
    with RunningServer(mixed) as server:
        made_for = {"basis": mixed.basis.digest, "base_fingerprint": mixed.basis.base_fingerprint}
        for seed in (1, 2):
            numbers = np.random.default_rng(seed).standard_normal(N_MIX * len(mixed.basis.sites)).astype(np.float16)
            data = write_coefficients(numbers, form="vector", **made_for)
            cores = bind(parse_coefficients(data), mixed.basis).flat_cores()
            ok(server.put_task(f"vector-{seed}", data))
            ok(server.put_task(f"cores-{seed}", write_coefficients(cores, form="core", **made_for)))
        yield server


def answer(server, model):
    return server.complete(model=model, max_tokens=20, logprobs=2)["choices"]


def test_a_vector_answers_as_its_cores_do_alone_and_among_others(own_server):
    alone = [answer(own_server, f"cores-{seed}") for seed in (1, 2)]
    assert alone[0] != alone[1]
    assert [answer(own_server, f"vector-{seed}") for seed in (1, 2)] == alone
    models = ["vector-1", "cores-2", "vector-2", "cores-1"] * 2
    with ThreadPoolExecutor(len(models)) as pool:
        together = list(pool.map(lambda model: own_server.text(model, max_tokens=20), models))
    assert together == [alone[int(model[-1]) - 1][0]["text"] for model in models]


def test_blends_of_vectors_are_those_of_their_cores(own_server):
    def blended(first, second):
        parts = [{"task": first, "weight": 0.5}, {"task": second, "weight": -0.25}]
        return own_server.complete(blend=parts, max_tokens=20, logprobs=2)["choices"]

    wanted = blended("cores-1", "cores-2")
    assert blended("vector-1", "vector-2") == blended("vector-1", "cores-2") == wanted


def test_the_card_and_the_basis_say_so(own_server):
    assert ok(own_server.client.get("/v1/tasks/vector-1"))["form"] == "vector"
    assert {site["n_mix"] for site in ok(own_server.client.get("/v1/basis"))["sites"]} == {N_MIX}


def test_a_basis_without_mixing_cores_takes_no_vectors(server, tiny):
    data = edited(tiny.core_file(1), metadata={"form": "vector"})
    assert "export core or diag" in refused(server.put_task("never", data), 400, "no_mixing_cores")
