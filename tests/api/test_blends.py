"""Weighted sums of tasks, per request and stored."""

import numpy as np
import pytest

from onebasis.coefficients.format import parse_coefficients, write_coefficients
from tests.api.server import ok, refused
from tests.api.tiny_model import BASE_NAME

HALVES = [{"task": "alpha", "weight": 0.5}, {"task": "beta", "weight": -0.25}]


def digest_of_task(server, name):
    return ok(server.client.get(f"/v1/tasks/{name}"))["digest"]


def store_blend(server, name, parts, headers=None, **fields):
    return server.client.post(f"/v1/tasks/{name}/blend", json={"blend": parts} | fields, headers=headers)


def summed(tiny, weights):
    return sum(weight * parse_coefficients(tiny.core_file(seed)).numbers() for seed, weight in weights.items())


def test_a_blend_answers_as_the_task_of_the_summed_coefficients_would(server, tiny):
    basis = {"basis": tiny.basis.digest, "base_fingerprint": tiny.basis.base_fingerprint}
    by_hand = write_coefficients(summed(tiny, {0: 0.5, 1: -0.25}).astype(np.float32), form="core", **basis)
    ok(server.put_task("by-hand", by_hand))
    wanted = server.complete(model="by-hand", max_tokens=20, logprobs=2)["choices"]
    answer = server.complete(blend=HALVES, max_tokens=20, logprobs=2)
    assert answer["choices"] == wanted
    assert answer["choices"][0]["text"] not in {server.text(m, max_tokens=20) for m in (BASE_NAME, "alpha", "beta")}
    assert server.chat(blend=HALVES)["choices"] == server.chat(model="by-hand")["choices"]


def test_the_answer_names_the_parts_and_a_digest_of_the_sum(server):
    found = server.complete(blend=HALVES)["onebasis"]
    assert found.pop("digest").startswith("sha256:")
    assert found == {
        "task": None,
        "basis": ok(server.client.get("/v1/basis"))["digest"],
        "blend": [part | {"digest": digest_of_task(server, part["task"])} for part in HALVES],
    }
    digest = server.complete(blend=HALVES)["onebasis"]["digest"]
    assert server.complete(blend=HALVES[::-1])["onebasis"]["digest"] == digest, "a sum has no order"
    assert server.complete(blend=[HALVES[0]])["onebasis"]["digest"] != digest_of_task(server, "alpha")
    other = [HALVES[0], HALVES[1] | {"weight": -0.25000000000000006}]
    assert server.complete(blend=other)["onebasis"]["digest"] != digest
    chunks = server.stream("/v1/completions", prompt="the cat", blend=HALVES)
    assert {chunk["onebasis"]["digest"] for chunk in chunks} == {digest}


def test_one_task_of_weight_one_is_that_task(server):
    assert server.text(BASE_NAME, blend=[{"task": "alpha", "weight": 1}]) == server.text("alpha")
    assert server.text(BASE_NAME, blend=[{"task": "alpha", "weight": 0}]) == server.text(BASE_NAME)


def test_a_part_may_be_an_older_version_and_follows_a_replace_otherwise(server, tiny):
    ok(server.put_task("part", tiny.core_file(80)))
    before = server.text(BASE_NAME, blend=[{"task": "part", "weight": 0.5}])
    old = digest_of_task(server, "part")
    ok(server.put_task("part", tiny.core_file(81)))
    assert server.text(BASE_NAME, blend=[{"task": "part", "weight": 0.5}]) != before
    assert server.text(BASE_NAME, blend=[{"task": f"part@{old}", "weight": 0.5}]) == before


@pytest.mark.parametrize(
    ("blend", "code", "param"),
    [
        ([], "invalid_parameter", "blend"),
        ([{"task": "alpha", "weight": 0.1}] * 17, "invalid_parameter", "blend"),
        ([{"task": "alpha"}], "invalid_parameter", "blend"),
        ([{"task": "alpha", "weight": "1"}], "invalid_parameter", "blend"),
        ([{"task": "alpha", "weight": 1001}], "invalid_parameter", "blend"),
        ([{"task": "alpha", "weight": 1, "more": 1}], "unsupported_parameter", "blend.0.more"),
        ([{"task": BASE_NAME, "weight": 1}], "invalid_parameter", "blend"),
        ({"alpha": 1}, "invalid_parameter", "blend"),
    ],
)
def test_what_is_no_blend_is_refused_by_name(server, blend, code, param):
    refused(server.post("/v1/completions", prompt="a", blend=blend), 400, code, param)
    refused(store_blend(server, "never", blend), 400, code, param)


@pytest.mark.parametrize("task", ["nobody", "alpha@sha256:" + "0" * 64, "alpha@", "a b"])
def test_an_unknown_part_is_404(server, task):
    parts = [{"task": "alpha", "weight": 1}, {"task": task, "weight": 1}]
    refused(server.post("/v1/completions", prompt="a", blend=parts), 404, "model_not_found", "blend")
    refused(store_blend(server, "never", parts), 404, "model_not_found", "blend")
    refused(server.client.get("/v1/tasks/never"), 404, "task_not_found")


def test_a_blend_belongs_to_the_base(server):
    refused(server.post("/v1/completions", model="alpha", prompt="a", blend=HALVES), 400, "invalid_parameter", "model")
    refused(server.post("/v1/completions", model="nobody", prompt="a", blend=HALVES), 400, "invalid_parameter", "model")


@pytest.mark.parametrize("weight", ["NaN", "Infinity", "1e999"])
def test_a_weight_that_is_no_number_is_refused(server, weight):
    content = f'{{"model": "{BASE_NAME}", "prompt": "a", "blend": [{{"task": "alpha", "weight": {weight}}}]}}'
    response = server.client.post("/v1/completions", content=content, headers={"Content-Type": "application/json"})
    assert refused(response, 400, "invalid_parameter", "blend")


def test_a_sum_that_float32_does_not_hold_is_refused(server, tiny):
    numbers = np.full(tiny.basis.n_core_numbers, 3e38, dtype=np.float32)
    made_for = {"basis": tiny.basis.digest, "base_fingerprint": tiny.basis.base_fingerprint}
    ok(server.put_task("huge", write_coefficients(numbers, form="core", **made_for)))
    parts = [{"task": "huge", "weight": 2}]
    response = server.post("/v1/completions", prompt="a", blend=parts)
    assert "too large" in refused(response, 400, "invalid_parameter", "blend")
    refused(store_blend(server, "never", parts), 400, "invalid_parameter", "blend")


def test_a_stored_blend_is_a_task_like_any_other(server, tiny):
    response = store_blend(server, "stored-blend", HALVES, metadata={"note": "half"})
    assert (response.status_code, response.headers["location"]) == (201, "/v1/tasks/stored-blend")
    card = response.json()
    assert (card["form"], card["state"], card["metadata"]) == ("core", "ready", {"note": "half"})
    parts = [part | {"digest": digest_of_task(server, part["task"])} for part in HALVES]
    assert card["provenance"] == {"blend": parts}
    assert response.headers["etag"] == f'"{card["digest"]}"'
    data = server.client.get("/v1/tasks/stored-blend/content").content
    np.testing.assert_array_equal(
        parse_coefficients(data).numbers(), summed(tiny, {0: 0.5, 1: -0.25}).astype(np.float32)
    )
    assert server.text("stored-blend") == server.text(BASE_NAME, blend=HALVES)
    again = store_blend(server, "stored-blend", HALVES)
    assert (again.status_code, again.json()) == (200, card)
    fresh = store_blend(server, "stored-blend", [HALVES[0]], headers={"If-None-Match": "*"})
    refused(fresh, 412, "precondition_failed")
    replaced = store_blend(server, "stored-blend", [HALVES[0]], headers={"If-Match": f'"{card["digest"]}"'})
    assert replaced.status_code == 201


def test_a_stored_blend_obeys_the_rules_of_uploads(server):
    refused(store_blend(server, "a%20b", HALVES), 400, "invalid_task_name")
    refused(store_blend(server, BASE_NAME, HALVES), 400, "reserved_task_name")
    refused(store_blend(server, "never", HALVES, metadata={"a": 1}), 400, "invalid_parameter", "metadata")
    refused(store_blend(server, "never", HALVES, metadata={"": "a"}), 400, "invalid_parameter", "metadata")


def test_a_server_without_a_basis_blends_nothing(start_server):
    server = start_server(basis=None)
    refused(store_blend(server, "never", HALVES), 400, "no_basis")
    refused(server.post("/v1/completions", prompt="a", blend=HALVES), 404, "model_not_found", "blend")
