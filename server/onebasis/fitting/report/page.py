"""A report as one HTML page that needs nothing else, and as JSON."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Final

from jinja2 import Environment, StrictUndefined, select_autoescape
from markupsafe import Markup

from onebasis.fitting.report import charts
from onebasis.fitting.report.results import Report, SiteWeights

_TEMPLATE: Final = Path(__file__).with_name("page.html.j2")
_N_WORST: Final = 10


def report_json(report: Report) -> str:
    """Every number of the report."""
    return json.dumps(asdict(report), indent=1) + "\n"


def report_html(report: Report) -> str:
    """A page that is read without scripts or a network; every picture has its numbers in a table beside it."""
    environment = Environment(
        autoescape=select_autoescape(default_for_string=True, default=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"share": _share, "kib": _kib}
    pictures: dict[str, Markup] = {}
    if report.weights is not None:
        pictures["energy"] = Markup(charts.energy_by_adapter(report.weights))
        pictures["spectrum"] = Markup(charts.spectrum(report.weights))
        pictures["bytes"] = Markup(charts.bytes_and_energy(report.weights.bytes_and_energy))
    if report.tasks:
        pictures["match"] = Markup(charts.bytes_and_match(report.tasks))
    worst = sorted(report.weights.sites, key=_least_held)[:_N_WORST] if report.weights else []
    template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    return template.render(report=report, weights=report.weights, pictures=pictures, worst=worst)


def _least_held(site: SiteWeights) -> float:
    """What is held of new adapters decides, where it was measured."""
    found = [share for share in (site.held_out, site.left_out, site.in_sample) if share is not None]
    return found[0]


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _kib(n_bytes: int | None) -> str:
    return "" if n_bytes is None else f"{n_bytes / 1024:,.0f}"
