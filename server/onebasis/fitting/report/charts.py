"""The pictures of a report as SVG inside of its page, by matplotlib; text stays text, nothing is fetched."""

import re
from collections.abc import Callable, Iterable, Sequence
from io import StringIO
from typing import Any, Final

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, StrMethodFormatter

from onebasis.fitting.report.results import BytesPoint, SiteWeights, TaskScores, WeightReport

_COLOURS: Final = ("#0b5cad", "#b3392f", "#2e7d4f", "#8a5a00", "#6a3d9a", "#4d4d4d", "#00707a")
_MARKERS: Final = "osD^vP*X"
_STYLE: Final[dict[Any, Any]] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.grid": True,
}
_REFERENCES: Final = re.compile(r'((?:\bid=")|(?:href="#)|(?:url\(#))')


def energy_by_adapter(weights: WeightReport) -> str:
    """Held by the basis and by one of the others, an adapter a line."""
    height = 1.2 + 0.24 * len(weights.adapters)
    return _svg("energy", height, lambda figure: _draw_energy(figure.subplots(), weights))


def spectrum(weights: WeightReport) -> str:
    """Energy in the best directions by kind of layer, both sides, the null of the same strengths dashed."""
    return _svg("spectrum", 3.6, lambda figure: _draw_spectrum(figure.subplots(1, 2, sharey=True), weights))


def bytes_and_energy(points: Sequence[BytesPoint]) -> str:
    """Energy kept against the task's bytes, a line for each family of ways."""
    return _svg("bytes", 3.6, lambda figure: _draw_bytes(figure.subplots(), points))


def bytes_and_match(tasks: Sequence[TaskScores]) -> str:
    """Exact match against bytes of every way that has bytes, mean over the tasks that have it."""
    return _svg("match", 4.2, lambda figure: _draw_match(figure.subplots(), tasks))


def _draw_energy(axes: Axes, weights: WeightReport) -> None:
    rows = range(len(weights.adapters))
    own = [i for i in rows if weights.adapters[i].in_sample]
    new = [i for i in rows if not weights.adapters[i].in_sample]
    for label, places, marker in (("this basis, in-sample", own, "o"), ("this basis, held out", new, "s")):
        if places:
            axes.plot([weights.adapters[i].held[-1] for i in places], places, marker, color=_COLOURS[0], label=label)
    measured = [(adapter.left_out[-1], i) for i, adapter in enumerate(weights.adapters) if adapter.left_out]
    if measured:
        axes.plot(*zip(*measured, strict=True), "D", color=_COLOURS[1], label="basis made without it")
    axes.set_yticks(list(rows), [adapter.name for adapter in weights.adapters])
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.set_xlabel("share of the adapter's energy held")
    _legend_beside(axes)


def _draw_spectrum(both: Iterable[Axes], weights: WeightReport) -> None:
    kinds = list(dict.fromkeys(_layer_kind(site) for site in weights.sites))
    for axes, side in zip(both, ("out", "in"), strict=True):
        for i, kind in enumerate(kinds):
            sites = [site for site in weights.sites if _layer_kind(site) == kind]
            colour = _COLOURS[i % len(_COLOURS)]
            axes.plot(weights.spectrum_rows, _mean(sites, f"spectrum_{side}"), color=colour, label=kind)
            axes.plot(weights.spectrum_rows, _mean(sites, f"null_{side}"), "--", color=colour, linewidth=1)
        axes.set_xscale("log", base=2)
        axes.set_xlabel(f"best directions, {side}put side")
        if side == "out":
            axes.set_ylabel("share of energy, in-sample")
    _legend_beside(axes)


def _draw_bytes(axes: Axes, points: Sequence[BytesPoint]) -> None:
    for i, (family, some) in enumerate(_families(points).items()):
        xs, ys = [point.size_bytes / 1024 for point in some], [point.kept for point in some]
        axes.plot(xs, ys, _MARKERS[i % len(_MARKERS)] + "-", color=_COLOURS[i % len(_COLOURS)], label=family)
    _in_kib(axes)
    axes.set_ylim(0, 1)
    axes.set_ylabel("mean share of energy kept")
    _legend_beside(axes)


def _draw_match(axes: Axes, tasks: Sequence[TaskScores]) -> None:
    ways: dict[str, list[tuple[float, float]]] = {}
    for task in tasks:
        for score in task.ways:
            if score.size_bytes:
                ways.setdefault(score.way, []).append((score.size_bytes / 1024, score.exact_match))
    for i, (way, found) in enumerate(ways.items()):
        x, y = (sum(values) / len(found) for values in zip(*found, strict=True))
        axes.plot([x], [y], _MARKERS[i % len(_MARKERS)], color=_COLOURS[i % len(_COLOURS)], label=way)
    _in_kib(axes)
    axes.set_ylim(-0.03, 1.03)
    axes.set_ylabel("exact match, mean over tasks")
    _legend_beside(axes)


def _in_kib(axes: Axes) -> None:
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("KiB of a task in float16")


def _legend_beside(axes: Axes) -> None:
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))


def _svg(name: str, height: float, draw: Callable[[Figure], None]) -> str:
    """The <svg> element alone; its ids carry `name`, since several pictures share one page."""
    text = StringIO()
    with matplotlib.rc_context(_STYLE | {"svg.hashsalt": name}):
        figure = Figure(figsize=(9, height), layout="constrained")
        draw(figure)
        figure.savefig(text, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    svg = text.getvalue()
    return _REFERENCES.sub(rf"\g<1>{name}-", svg[svg.index("<svg") :])


def _families(points: Sequence[BytesPoint]) -> dict[str, list[BytesPoint]]:
    """Ways that differ in their last number alone make one line."""
    families: dict[str, list[BytesPoint]] = {}
    for point in points:
        families.setdefault(point.way.rpartition(", ")[0], []).append(point)
    return families


def _layer_kind(site: SiteWeights) -> str:
    return site.site.rpartition(".")[2]


def _mean(sites: Sequence[SiteWeights], attribute: str) -> list[float]:
    columns = zip(*(getattr(site, attribute) for site in sites), strict=True)
    return [sum(column) / len(sites) for column in columns]
