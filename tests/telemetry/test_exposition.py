import math

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from onebasis.telemetry.exposition import TextExposition

AWKWARD = ["", "plain", 'a "quoted" word', "back\\slash", "two\nlines", "\\n", "ünïcode", "a,b={c}"]


def parsed(text):
    families = text_string_to_metric_families(text.decode())
    return {
        (f.name, f.type, f.documentation): [(s.name, s.labels, s.value) for s in f.samples if "_created" not in s.name]
        for f in families
        if not f.name.endswith("_created")
    }


@pytest.fixture
def registry():
    registry = CollectorRegistry()
    gauge = Gauge("vllm:gauge", 'help with \\ and\nlines and "quotes"', ["b", "a"], registry=registry)
    for i, value in enumerate(AWKWARD):
        gauge.labels(value, str(i)).set(i / 7)
    for i, value in enumerate((math.inf, -math.inf, 1e300, -0.25, 12345678901234567890)):
        gauge.labels("number", str(i)).set(value)
    Counter("own_things_total", "A counter.", registry=registry).inc(3)
    histogram = Histogram("seconds", "A histogram.", ["kind"], buckets=(0.5, 1, 2.5), registry=registry)
    histogram.labels("x").observe(0.7)
    Gauge("nothing_yet", "No series.", ["a"], registry=registry)
    return registry


def test_it_says_the_same_as_the_library_s_writer_the_first_time_and_later(registry):
    exposition = TextExposition()
    expected = parsed(generate_latest(registry))
    assert len(expected) == 4
    for _ in range(2):
        assert parsed(exposition.render(registry.collect())) == expected


def test_not_a_number_is_spelt_as_the_format_wants_it():
    registry = CollectorRegistry()
    Gauge("g", "h", registry=registry).set(math.nan)
    assert b"\ng NaN\n" in TextExposition().render(registry.collect())


def test_the_creation_times_of_counters_are_left_out(registry):
    assert b"_created" in generate_latest(registry)
    assert b"_created" not in TextExposition().render(registry.collect())
