"""Which series an expression reads."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import promql_parser

_GRAFANA = {
    "$__rate_interval": "5m",
    "$__range": "1h",
    "$__interval": "1m",
    "$job": "onebasis",
    "$namespace": "serving",
}
"""What Grafana puts in before it asks Prometheus."""


@dataclass(frozen=True, slots=True)
class Selector:
    """A metric and the labels that are asked of it."""

    metric: str
    labels: frozenset[str]


def selectors(expression: str) -> list[Selector]:
    """All vector selectors. Raises ValueError where the expression is no PromQL."""
    for name, value in _GRAFANA.items():
        expression = expression.replace(name, value)
    return list(_selectors(promql_parser.parse(expression)))


def _selectors(node: Any) -> Iterator[Selector]:
    if isinstance(node, promql_parser.VectorSelector):
        labels = {matcher.name for matcher in node.matchers.matchers if matcher.name != "__name__"}
        yield Selector(node.name, frozenset(labels))
        return
    for field in ("expr", "lhs", "rhs", "vector_selector", "args"):
        part = getattr(node, field, None)
        for child in part if isinstance(part, list) else [part]:
            if child is not None and not isinstance(child, str | float):
                yield from _selectors(child)
