import random
from concurrent.futures import ThreadPoolExecutor

from onebasis.telemetry.task_requests import BASE_LABEL, OTHER_LABEL, TaskRequests


def counts(requests):
    [family] = requests.collect()
    return {(sample.labels["task"], sample.labels["outcome"]): sample.value for sample in family.samples}


def observe(requests, task, n, outcome="stop"):
    for _ in range(n):
        requests.observe(task, outcome)


def test_few_tasks_all_have_their_name():
    requests = TaskRequests(n_shown=3, half_life=100)
    observe(requests, "a", 2)
    observe(requests, "a", 1, "abort")
    observe(requests, "b", 1)
    observe(requests, None, 5)
    assert counts(requests) == {("a", "stop"): 2, ("a", "abort"): 1, ("b", "stop"): 1, (BASE_LABEL, "stop"): 5}


def test_a_task_that_becomes_busy_takes_the_place_of_the_quietest():
    requests = TaskRequests(n_shown=2, half_life=10_000)
    observe(requests, "busy", 10)
    observe(requests, "quiet", 3)
    observe(requests, "new", 5)
    assert counts(requests) == {("busy", "stop"): 10, ("quiet", "stop"): 3, (OTHER_LABEL, "stop"): 5}
    observe(requests, "new", 4)
    assert counts(requests) == {("busy", "stop"): 10, ("new", "stop"): 4, (OTHER_LABEL, "stop"): 5}


def test_what_was_busy_long_ago_gives_way():
    requests = TaskRequests(n_shown=1, half_life=50)
    observe(requests, "yesterday", 1000)
    observe(requests, "today", 400)
    assert ("today", "stop") in counts(requests)
    assert ("yesterday", "stop") not in counts(requests)


def test_many_tasks_bound_the_series_and_every_request_raises_one_of_them_by_one():
    """What Prometheus adds up: the rise of each series from scrape to scrape. One that ends takes nothing along."""
    requests = TaskRequests(n_shown=10, half_life=500)
    rng = random.Random(0)
    before, n_ended = counts(requests), 0
    for _ in range(10_000):
        requests.observe(f"t{int(rng.paretovariate(0.5))}", rng.choice(["stop", "length"]))
        now = counts(requests)
        assert len({task for task, _ in now} - {OTHER_LABEL}) <= 10
        assert sum(value - before.get(series, 0) for series, value in now.items()) == 1
        n_ended += bool(before.keys() - now.keys())
        before = now
    assert n_ended >= 5, "no task gave way to another"
    assert ("t1", "stop") in before


def test_what_is_remembered_of_hidden_tasks_is_bounded():
    requests = TaskRequests(n_shown=10, half_life=10**9)
    for i in range(25_000):
        requests.observe(f"t{i}", "stop")
    assert len(requests._scores) <= 10_001
    assert sum(counts(requests).values()) == 25_000


def test_counting_and_reading_from_many_threads_loses_nothing():
    requests = TaskRequests(n_shown=5, half_life=100)
    with ThreadPoolExecutor(4) as pool:
        for i in range(4):
            pool.submit(lambda i=i: [requests.observe(f"t{(i + j) % 20}", "stop") for j in range(2000)])
        for _ in range(50):
            counts(requests)
    assert sum(counts(requests).values()) == 8000
