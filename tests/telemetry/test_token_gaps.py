"""Our histogram against the client library's."""

import random

from prometheus_client import CollectorRegistry, Histogram, generate_latest

from onebasis.telemetry.buckets import TOKEN_GAP_S
from onebasis.telemetry.token_gaps import TokenGaps


def lines(collector, name):
    registry = CollectorRegistry()
    registry.register(collector)
    return [line for line in generate_latest(registry).decode().splitlines() if line.startswith(name)]


def test_it_counts_as_the_client_library_does_under_both_names():
    new, old = "vllm:inter_token_latency_seconds", "vllm:time_per_output_token_seconds"
    labels = {"model_name": "tiny", "engine": "0"}
    ours = TokenGaps(labels, TOKEN_GAP_S)
    rng = random.Random(0)
    gaps = [*TOKEN_GAP_S, 0.0, 1e9, *(rng.expovariate(20) for _ in range(500))]
    for name in (new, old):
        theirs = Histogram(name, "", list(labels), buckets=TOKEN_GAP_S, registry=None)
        for gap in gaps:
            theirs.labels(*labels.values()).observe(gap)
            if name == new:
                ours.observe(gap)
        created = [line for line in lines(theirs, name) if "_created" not in line]
        assert lines(ours, name) == created
