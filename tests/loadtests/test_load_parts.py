"""Arrivals, choices, prompts and numbers: nothing here opens a connection."""

from collections import Counter

import numpy as np
import pytest

from loadtests.common.processes import CpuUse
from loadtests.load.arrivals import poisson_arrivals
from loadtests.load.choice import choose_names, top1_share
from loadtests.load.client import Answer
from loadtests.load.loops import Outcome
from loadtests.load.plan import Run
from loadtests.load.prompts import random_prompts
from loadtests.load.settings import Closed, Server
from loadtests.load.stats import summarise, table_rows


def test_arrivals_have_the_mean_and_the_spread_of_a_poisson_process():
    times = poisson_arrivals(50.0, 400.0, "seed")
    gaps = np.diff([0.0, *times])
    assert times[-1] < 400.0 and (gaps > 0).all()
    assert gaps.mean() == pytest.approx(1 / 50, rel=0.03)
    assert gaps.std() == pytest.approx(1 / 50, rel=0.05), "an exponential gap has its mean as deviation"


def test_arrivals_follow_the_seed():
    assert poisson_arrivals(5.0, 9.0, "a") == poisson_arrivals(5.0, 9.0, "a")
    assert poisson_arrivals(5.0, 9.0, "a") != poisson_arrivals(5.0, 9.0, "b")


def test_round_robin_takes_the_names_in_turn():
    assert choose_names("abc", 5, how="round-robin", zipf_a=1.0, seed="s") == ["a", "b", "c", "a", "b"]


def test_zipf_choices_have_the_shares_of_the_formula():
    names = [str(rank) for rank in range(1, 8)]
    chosen = choose_names(names, 40_000, how="zipf", zipf_a=1.3, seed="s")
    weights = np.arange(1, 8) ** -1.3
    shares = np.array([Counter(chosen)[name] for name in names]) / len(chosen)
    np.testing.assert_allclose(shares, weights / weights.sum(), atol=0.01)
    assert top1_share(chosen) == shares[0]
    assert chosen == choose_names(names, 40_000, how="zipf", zipf_a=1.3, seed="s")


def test_uniform_choices_are_even():
    chosen = choose_names("abcd", 20_000, how="uniform", zipf_a=9.0, seed="s")
    assert top1_share(chosen) == pytest.approx(0.25, abs=0.02)


def test_prompts_have_the_exact_length_range_and_seed():
    prompts = list(random_prompts(300, n_tokens=7, vocab=(11, 13), seed="s"))
    assert [len(prompt) for prompt in prompts] == [7] * 300
    assert {token for prompt in prompts for token in prompt} == {11, 12, 13}
    assert prompts == list(random_prompts(300, n_tokens=7, vocab=(11, 13), seed="s"))
    assert prompts != list(random_prompts(300, n_tokens=7, vocab=(11, 13), seed="t"))


def _answer(due_s: float, sent_s: float, times_s: tuple[float, ...], error: str | None = None) -> Answer:
    return Answer(due_s, sent_s, due_s + 9.0, times_s, len(times_s), error)


def _round(number: int, *answers: Answer):
    run = Run(Server("a", "http://[::1]"), Closed(1, 9), number, ("x", "y", "z"), "3 tasks", (), 9)
    return summarise(
        run, Outcome(answers, wall_s=2.0), models=["x", "y", "x", "x"], warmup_errors=[], cpu=CpuUse(1.5, 0.25 * number)
    )


def test_latency_begins_when_the_request_was_due():
    result = _round(1, _answer(10.0, 10.5, (11.0, 11.2, 11.5)), _answer(0, 0, (), error="HTTP 503"))
    assert (result.ttft_ms.p50, result.send_lag_ms.max) == (pytest.approx(1000), pytest.approx(500))
    assert (result.itl_ms.n, result.itl_ms.mean) == (2, pytest.approx(250))
    assert (result.output_tokens_per_s, result.requests_per_s) == (1.5, 0.5), "the failed answer counts nowhere"
    assert (result.top1_share, result.n_models, result.n_models_named) == (0.75, 3, 2)
    assert (result.n_errors, result.errors) == (1, {"HTTP 503": 1})


def test_a_row_is_the_median_over_rounds_and_the_sum_of_errors():
    rounds = [
        _round(1, _answer(0, 0, (1.0, 2.0))),
        _round(2, _answer(0, 0, (4.0, 5.0))),
        _round(3, _answer(0, 0, (2.0, 3.0)), _answer(0, 0, (), error="x")),
        _round(4, _answer(0, 0, (), error="x")),
    ]
    [row] = table_rows(rounds)
    assert (row.ttft_p50_ms, row.n_rounds, row.n_requests, row.n_errors) == (2000, 4, 5, 2)
    assert (row.server_cores, row.other_cores) == (1.5, 0.625)
