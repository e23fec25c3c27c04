"""Tasks with a private low-rank update beside the basis, over HTTP."""

import numpy as np
import pytest
import torch

from onebasis.coefficients.format import parse_coefficients
from onebasis.coefficients.validate import bind
from onebasis.core.residual import Residual
from onebasis.model.factors import load_basis
from onebasis.model.loader import load_base
from tests.api.server import RunningServer, ok, refused
from tests.api.tiny_model import BASE_NAME
from tests.e2e.reference import Reference

pytestmark = pytest.mark.native_only("vLLM's workers apply no residuals; tests/vllm has their refusal")

Q, DOWN = "model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"
CPU = torch.device("cpu")


def residual(seed, **ranks):
    rng = np.random.default_rng(seed)
    sizes = {Q: (64, 64), DOWN: (96, 64)}
    return {
        site: Residual(
            rng.standard_normal((rank, d_in)).astype(np.float16),
            (0.1 * rng.standard_normal((d_out, rank))).astype(np.float16),
        )
        for site, rank, (d_in, d_out) in ((s, ranks.get(k, 0), sizes[s]) for k, s in (("q", Q), ("down", DOWN)))
        if rank
    }


@pytest.fixture(scope="module")
def files(tiny):
    """One set of cores, by itself and with two residuals."""
    return {
        "bare": tiny.core_file(1),
        "one": tiny.core_file(1, residual=residual(1, q=2, down=3)),
        "two": tiny.core_file(2, residual=residual(2, down=1)),
    }


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return f"sqlite:///{tmp_path_factory.mktemp('store') / 'tasks.db'}"


@pytest.fixture(scope="module")
def own_server(tiny, files, store):
    with RunningServer(tiny, store=store, max_residual_rank=4) as server:
        for name, data in files.items():
            ok(server.put_task(name, data))
        yield server


def test_the_answer_is_the_merged_models_token_for_token(own_server, tiny, files):
    reference = Reference(
        load_base(tiny.folder, dtype=torch.float32, device=CPU),
        load_basis(tiny.basis_path, dtype=torch.float32, device=CPU),
    )
    prompt_ids = tuple(tiny.encode("the cat"))
    texts = {}
    for name, data in files.items():
        with reference.merged(bind(parse_coefficients(data), tiny.basis)):
            wanted = tiny.tokenizer.decode(reference.generate(prompt_ids, 20))
        texts[name] = own_server.text(name, max_tokens=20)
        assert texts[name] == wanted
    assert len({*texts.values()}) == 3


def test_a_card_says_what_a_residual_costs(own_server):
    cards = {card["id"]: card for card in ok(own_server.client.get("/v1/tasks"))["data"]}
    assert cards["bare"]["residual"] is None
    assert cards["one"]["residual"] == {"rank": 3, "size_bytes": 2 * (2 * 128 + 3 * 160), "sites": 2}
    assert cards["two"]["residual"] == {"rank": 1, "size_bytes": 2 * 160, "sites": 1}
    assert cards["one"]["form"] == "core"


def test_the_memory_of_residuals_has_its_own_metric(own_server):
    own_server.text("two")
    own_server.text("one")
    assert own_server.metric("onebasis_residual_resident_bytes") == 4 * (2 * 128 + 3 * 160 + 160)


def test_a_replaced_residual_is_a_new_version(own_server, tiny):
    ok(own_server.put_task("replaced", tiny.core_file(1, residual=residual(1, q=2))))
    before = own_server.complete(model="replaced", max_tokens=20)
    card = ok(own_server.put_task("replaced", tiny.core_file(1, residual=residual(7, q=2))))
    after = own_server.complete(model="replaced", max_tokens=20)
    assert after["choices"] != before["choices"]
    assert after["onebasis"]["digest"] == card["digest"] != before["onebasis"]["digest"]
    old = own_server.complete(model=f"replaced@{before['onebasis']['digest']}", max_tokens=20)
    assert old["choices"] == before["choices"]


def test_a_blend_sums_residuals_exactly(own_server, tiny):
    """By hand: both residuals in one file, their B scaled by the weights."""
    parts = [{"task": "one", "weight": 0.5}, {"task": "two", "weight": -0.25}]
    one, two = residual(1, q=2, down=3), residual(2, down=1)
    by_hand = {
        Q: Residual(one[Q].a.astype(np.float32), np.float32(0.5) * one[Q].b.astype(np.float32)),
        DOWN: Residual(
            np.concatenate([one[DOWN].a, two[DOWN].a]).astype(np.float32),
            np.concatenate([0.5 * one[DOWN].b.astype(np.float32), -0.25 * two[DOWN].b.astype(np.float32)], axis=1),
        ),
    }
    cores = (
        0.5 * parse_coefficients(tiny.core_file(1)).numbers() - 0.25 * parse_coefficients(tiny.core_file(2)).numbers()
    )
    card = ok(own_server.client.post("/v1/tasks/stored/blend", json={"blend": parts}))
    file = parse_coefficients(own_server.client.get("/v1/tasks/stored/content").content)
    np.testing.assert_array_equal(file.numbers(), cores)
    for site, factors in by_hand.items():
        np.testing.assert_array_equal(file.residual[site].a, factors.a)
        np.testing.assert_array_equal(file.residual[site].b, factors.b)
    assert card["residual"]["rank"] == 4
    answer = own_server.complete(blend=parts, max_tokens=20, logprobs=2)
    assert answer["choices"] == own_server.complete(model="stored", max_tokens=20, logprobs=2)["choices"]
    assert answer["choices"][0]["text"] != own_server.text("one", max_tokens=20)


def test_a_blend_whose_ranks_add_up_to_too_much_is_refused(own_server):
    parts = [{"task": "one", "weight": 0.5}, {"task": "one", "weight": 0.25}]
    message = refused(own_server.post("/v1/completions", prompt="a", blend=parts), 400, "invalid_parameter", "blend")
    assert f"add up to 6 at {DOWN}, this server allows 4; name fewer tasks" in message


@pytest.mark.parametrize(
    ("settings", "code"),
    [({"max_residual_rank": 2}, "residual_rank_too_high"), ({"max_residual_rank": 0}, "residual_rank_too_high")],
)
def test_files_beyond_the_servers_limits_are_refused_and_stored_ones_are_listed(
    own_server, start_server, store, files, settings, code
):
    server = start_server(store=store, **settings)
    refused(server.put_task("new", files["one"]), 400, code)
    card = ok(server.client.get("/v1/tasks/one"))
    assert (card["state"], card["residual"]["rank"]) == ("unusable", 3)
    assert "--max-residual-rank" in card["reason"]
    refused(server.post("/v1/completions", model="one", prompt="a"), 400, "task_unusable", "model")
    assert server.text("bare") == own_server.text("bare")


def test_tasks_with_residuals_survive_a_restart_byte_for_byte(own_server, start_server, store, files):
    again = start_server(store=store)
    for name, data in files.items():
        assert again.client.get(f"/v1/tasks/{name}/content").content == data
        assert again.text(name, max_tokens=20) == own_server.text(name, max_tokens=20)
    assert again.text(BASE_NAME) == own_server.text(BASE_NAME)
