"""A client with 100 times the load of the others, in time that follows from the tokens of each step."""

import random
from collections import defaultdict
from dataclasses import dataclass

import pytest

from onebasis.engine.block_pool import BlockPool
from onebasis.engine.scheduler import Scheduler
from tests.engine.builders import make_sequence, make_task

N_LIGHT = 9
LIGHT_RATE = 0.1  # requests per second of each light client
HEAVY_RATE = 100 * LIGHT_RATE
MAX_WAITING = 2000  # beyond these the heavy one is refused at the door
DURATION_S = 600.0
STEP_S, TOKEN_S = 0.020, 0.0005  # a step costs this and for each token that
BOUND = 5.0  # how much worse the p99 of the others may get


@dataclass(frozen=True)
class Outcome:
    """Seconds to the first token, sorted, of the light clients and of the heavy one."""

    light: list[float]
    heavy: list[float]


def p99(values):
    return values[len(values) * 99 // 100]


def arrivals(*, heavy_rate):
    rng = random.Random(3)
    rates = {f"light-{i}": LIGHT_RATE for i in range(N_LIGHT)} | {"heavy": heavy_rate}
    found = []
    for tenant, rate in rates.items():
        now_s = 0.0
        while rate and (now_s := now_s + rng.expovariate(rate)) < DURATION_S:
            found.append((now_s, tenant, rng.randint(20, 200), rng.randint(10, 100)))
    return sorted(found)


def serve(coming, *, tenant_of, task_of=lambda _: None):
    """Outcome of a run in which the scheduler knows each client by `tenant_of` it."""
    scheduler = Scheduler(BlockPool(800, 16), max_running=32, max_step_tokens=512, max_prefill_tokens=256)
    coming, now_s, n, ttft = list(reversed(coming)), 0.0, 0, defaultdict(list)
    who, arrived_s = {}, {}
    while coming or scheduler.n_running or scheduler.n_waiting:
        while coming and coming[-1][0] <= now_s:
            at_s, tenant, n_prompt, n_output = coming.pop()
            if tenant == "heavy" and scheduler.n_waiting >= MAX_WAITING:
                continue
            n += 1
            sequence = make_sequence(
                f"r{n}", (1,) * n_prompt, max_tokens=n_output, tenant=tenant_of(tenant), task=task_of(tenant)
            )
            who[sequence.request_id], arrived_s[sequence.request_id] = tenant, at_s
            scheduler.add(sequence)
        plan = scheduler.plan()
        if not plan.runs:
            now_s = coming[-1][0]
            continue
        now_s += STEP_S + TOKEN_S * plan.n_tokens
        scheduler.commit(plan)
        for run in plan.runs:
            if run.samples:
                if not run.sequence.output_ids:
                    ttft[who[run.sequence.request_id]].append(now_s - arrived_s[run.sequence.request_id])
                if run.sequence.append(7) is not None:
                    scheduler.remove(run.sequence)
        if now_s > DURATION_S:
            break
    light = sorted(value for tenant, values in ttft.items() if tenant != "heavy" for value in values)
    return Outcome(light, sorted(ttft["heavy"]))


@pytest.fixture(scope="module")
def alone():
    return serve(arrivals(heavy_rate=0.0), tenant_of=lambda client: client)


@pytest.mark.parametrize(
    "told_apart_by",
    [
        pytest.param({"tenant_of": lambda client: client}, id="tenant"),
        pytest.param({"tenant_of": lambda _: "one", "task_of": make_task}, id="task of one tenant"),
    ],
)
def test_a_client_with_a_hundred_times_the_load_hardly_slows_the_others(alone, told_apart_by):
    both = serve(arrivals(heavy_rate=HEAVY_RATE), **told_apart_by)
    assert len(alone.light) > 400
    assert len(both.heavy) > 3 * len(both.light), "what the others leave is the heavy one's"
    assert p99(both.heavy) > 50 * p99(alone.light), "its load is more than the server can do"
    assert p99(both.light) < BOUND * p99(alone.light)


def test_without_fairness_the_others_wait_behind_it(alone):
    """The same run when the scheduler can't tell the clients apart: first come, first served."""
    both = serve(arrivals(heavy_rate=HEAVY_RATE), tenant_of=lambda _: None)
    assert p99(both.light) > 50 * p99(alone.light)
