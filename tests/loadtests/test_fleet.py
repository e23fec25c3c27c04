"""The fleet's simulations against what is known of them, and the page against the saved numbers."""

import dataclasses

import pytest

from loadtests.common.files import load_results
from loadtests.fleet import store_costs
from loadtests.fleet.__main__ import main
from loadtests.fleet.arenas import HASH_BOUND, lru_hit_rate, simulate
from loadtests.fleet.convergence import Fleet, converge
from loadtests.fleet.page import PAGE, RESULTS, page
from loadtests.fleet.scenario import SCENARIO, convergences_of

FLEET = Fleet(n_replicas=20, interval_s=0.5, poll_s=0.001, change_s=0.002, n_workers=2)
SIZES = {"n_tasks": 2000, "n_slots": 100, "n_replicas": 10, "per_replica": 8, "n_requests": 30_000, "a": 1.0, "seed": 1}


def test_the_committed_page_is_what_the_saved_numbers_give(tmp_path):
    assert main(["page", str(tmp_path / "page.md")]) == 0
    assert (tmp_path / "page.md").read_text() == PAGE.read_text() == page(load_results(RESULTS, "fleet"))


def test_the_saved_simulation_is_what_the_code_gives_for_the_saved_measurements():
    saved = load_results(RESULTS, "fleet")
    assert saved["settings"] == {**dataclasses.asdict(SCENARIO), **_lists(dataclasses.asdict(SCENARIO))}
    found = convergences_of(SCENARIO, saved["store"]["idle_poll_cpu_ms"], saved["store"]["change_cpu_ms"])
    assert [dataclasses.asdict(one) for one in found] == saved["convergence"]


def _lists(settings: dict[str, object]) -> dict[str, object]:
    return {name: list(value) for name, value in settings.items() if isinstance(value, tuple)}


def test_an_upload_is_everywhere_within_one_pause_while_the_store_keeps_up():
    found = converge(FLEET, uploads_per_s=1, duration_s=60, seed=0)
    assert 0.4 < found.p50_s <= found.p99_s < FLEET.interval_s + 0.05
    assert found.polls_per_s == pytest.approx(20 / 0.5, rel=0.02)
    assert found.busy == pytest.approx((40 * 0.001 + 20 * 0.002) / 2, rel=0.1)


def test_followers_that_ask_for_more_than_there_is_fall_behind():
    found = converge(FLEET, uploads_per_s=100, duration_s=20, seed=0)
    assert found.busy > 1
    assert found.p99_s > 5


def test_by_chance_every_arena_hits_as_the_formula_says():
    found = simulate("chance", **SIZES)
    assert found.hit_rate == pytest.approx(lru_hit_rate(2000, 100, 1.0), abs=0.02)


def test_the_picker_s_rule_keeps_the_load_even_and_hashing_hits_more():
    chance, picker, hashed = (simulate(policy, **SIZES) for policy in ("chance", "picker", "hash"))
    assert picker.peak < 1.15 < chance.peak
    assert picker.hit_rate == pytest.approx(chance.hit_rate, abs=0.03)
    assert hashed.hit_rate > chance.hit_rate + 0.15
    assert 1 < hashed.peak <= HASH_BOUND + 1 / 8


def test_what_fits_always_hits():
    assert lru_hit_rate(100, 100, 1.0) == 1.0
    assert simulate("chance", **{**SIZES, "n_tasks": 100}).hit_rate == 1.0


def test_a_task_s_bytes_are_measured_in_a_real_postgresql(tiny_subject):
    costs = store_costs.measure(tiny_subject[0], n_tasks=40, small_bytes=100, n_polls=20, seed=0)
    small, large = costs.rows
    assert small.file_bytes == 100 < large.file_bytes
    assert large.stored_bytes > large.file_bytes
    assert (costs.n_idle_poll_statements, costs.n_change_statements) == (2, 3)
    assert costs.idle_poll_ms.median < costs.change_ms.median
