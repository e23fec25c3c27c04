"""The page has every number, needs nothing from outside, and says what is in-sample."""

import json
import re
import subprocess
import sys
from dataclasses import asdict, replace
from html.parser import HTMLParser

import pytest

from onebasis.fitting.report.page import report_html, report_json
from onebasis.fitting.report.results import (
    AdapterWeights,
    Angles,
    BasisSummary,
    BytesPoint,
    NullRow,
    Report,
    SiteWeights,
    TaskScores,
    WayScore,
    WeightReport,
)

HOSTILE = "<script>alert('x')</script>"
BASIS = BasisSummary("sha256:" + "a" * 64, "fleet", "tiny", 123_456, 2, (4, 4), (4, 8))


def adapter(name: str, *, in_sample: bool) -> AdapterWeights:
    return AdapterWeights(
        name=name,
        digest="sha256:" + "b" * 64,
        in_sample=in_sample,
        n_sites=2,
        largest_rank=8,
        norm=1.5,
        outside=0.0 if in_sample else 0.777,
        held=(0.111, 0.222) if in_sample else (0.011, 0.022),
        left_out=(0.333, 0.444),
        angles_in=Angles(12, 80, 0.555),
        angles_out=Angles(13, 81, 0.666),
    )


def site(name: str, held: float) -> SiteWeights:
    return SiteWeights(name, 64, 96, 4, 8, 2, 0.95, held, 0.05, (0.3, 0.9), (0.4, 0.8), (0.2, 0.7), (0.1, 0.6))


REPORT = Report(
    tool="onebasis 9",
    basis=BASIS,
    weights=WeightReport(
        prefixes=(2, 4),
        spectrum_rows=(1, 2),
        refit="HOSVD",
        adapters=(adapter("old", in_sample=True), adapter(HOSTILE, in_sample=False)),
        sites=(site("layers.0.up_proj", 0.71), site("layers.0.q_proj", 0.72)),
        null=(
            NullRow(2, 0.100, 0.101, 0.102, 0.103, 0.104, 0.105),
            NullRow(4, 0.200, 0.201, 0.202, 0.203, 0.204, 0.205),
        ),
        bytes_and_energy=(
            BytesPoint("import, in-sample, k=2", 1024, 0.301, in_sample=True),
            BytesPoint("own SVD, r=1", 20480, 0.302, in_sample=None),
        ),
        seed_groups=(("old", HOSTILE),),
    ),
    tasks=(
        TaskScores(
            task=HOSTILE,
            n_items=5,
            ways=(
                WayScore("bare model", None, None, 0.401, 1.402, 2.403, 0.404),
                WayScore("import", 2048, exact_match=0.501, loss=1.502, kl=2.503, agreement=0.504, in_sample=True),
                WayScore("coefficients x", 1024, None, 0.601, 1.602, None, None),
            ),
        ),
    ),
)


class Page(HTMLParser):
    """What a page refers to and how it is built."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.labels: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attributes:
            if name == "id" and value:
                self.ids.append(value)
            if name in ("src", "href", "xlink:href", "data") and value:
                self.references.append(value)
            if name in ("aria-label", "aria-labelledby") and value:
                self.labels.append(value)


@pytest.fixture(scope="module")
def html() -> str:
    return report_html(REPORT)


def test_every_number_of_the_tables_is_there(html: str) -> None:
    text = re.sub(r"<svg.*?</svg>", "", html, flags=re.S)
    shown = set(re.findall(r"\d+\.\d+", text))
    wanted = [0.111, 0.222, 0.011, 0.022, 0.333, 0.444, 0.71, 0.72, 0.05]
    wanted += [value for row in REPORT.weights.null for value in list(asdict(row).values())[1:]]
    wanted += [0.777, 0.301, 0.302, 0.401, 1.402, 2.403, 0.404, 0.501, 1.502, 2.503, 0.504, 0.601, 1.602]
    assert {f"{value:.3f}" for value in wanted} <= shown
    assert BASIS.digest in text
    assert "4 to 8" in text


def test_the_page_needs_no_script_and_no_network(html: str) -> None:
    page = Page(html)
    assert not {"script", "link", "iframe", "img", "object"} & set(page.tags)
    assert all(reference.startswith("#") for reference in page.references), page.references
    assert not re.search(r"url\((?!#)", html)
    assert "@import" not in html


def test_names_are_text_not_markup(html: str) -> None:
    assert HOSTILE not in html
    assert html.count("&lt;script&gt;") >= 3, "a table, a picture and a warning name it"


def test_in_sample_numbers_are_labelled_wherever_they_stand(html: str) -> None:
    rows = re.findall(r"<tr.*?</tr>", html, flags=re.S)
    old = next(row for row in rows if ">old<" in row)
    assert old.count('class="in-sample"') == 2
    assert ">in-sample<" in old
    new = next(row for row in rows if "&lt;script&gt;" in row)
    assert "in-sample" not in new
    imported = next(row for row in rows if ">import<" in row)
    assert 'class="in-sample"' in imported
    assert ">in-sample<" in imported
    null = next(row for row in rows if ">0.202<" in row)
    assert null.count('class="in-sample"') == 3
    assert next(row for row in rows if ">0.710<" in row).count('class="in-sample"') == 1
    assert '<tr class="in-sample">' in next(row for row in rows if ">import, in-sample, k=2<" in row)
    assert html.count("in-sample</th>") == 3 + 2, "headers of the null's table and of two tables of sites"
    assert "share of energy, in-sample" in html, "the spectrum is in-sample by nature"


def test_pictures_have_a_name_and_ids_of_their_own(html: str) -> None:
    page = Page(html)
    assert page.tags.count("svg") == page.tags.count("figure") == page.tags.count("figcaption") == 4
    assert len(page.ids) == len(set(page.ids)), "an id comes twice"
    targets = {reference[1:] for reference in page.references} | set(re.findall(r"url\(#([^)]+)\)", html))
    assert targets <= set(page.ids)
    assert 'role="img"' in html
    assert html.startswith('<!DOCTYPE html>\n<html lang="en">')


def test_tables_have_headers_for_every_column_and_row(html: str) -> None:
    for table in re.findall(r"<table>.*?</table>", html, flags=re.S):
        widths = {len(re.findall(r"<t[hd]", row)) for row in re.findall(r"<tr.*?</tr>", table, flags=re.S)}
        assert len(widths) == 1, table[:300]
        assert all("scope=" in cell for cell in re.findall(r"<th[ >][^>]*", table))


def test_the_worst_sites_come_first() -> None:
    sites = tuple(site(f"s.{i}", (7 * i % 30) / 30) for i in range(30))
    text = report_html(replace(REPORT, weights=replace(REPORT.weights, sites=sites)))
    worst = text[text.index("of which the basis holds least") :]
    names = re.findall(r'<th scope="row">(s\.\d+)</th>', worst[: worst.index("</table>")])
    assert names == [s.site for s in sorted(sites, key=lambda s: s.held_out)[:10]]


def test_parts_that_were_not_measured_are_absent() -> None:
    without = replace(
        REPORT.weights,
        adapters=tuple(replace(a, left_out=None, outside=0.0) for a in REPORT.weights.adapters),
        sites=tuple(replace(s, left_out=None) for s in REPORT.weights.sites),
        null=tuple(replace(row, left_out=None) for row in REPORT.weights.null),
        seed_groups=(),
    )
    text = report_html(replace(REPORT, weights=without, tasks=()))
    assert "Function:" not in text
    assert "Shared random start" not in text
    assert "sites that the basis has not" not in text
    assert "None" not in text
    assert "Spectrum" not in report_html(replace(REPORT, weights=None))


def test_json_is_the_whole_report() -> None:
    assert json.loads(report_json(REPORT)) == json.loads(json.dumps(asdict(REPORT)))


def test_the_same_report_makes_the_same_page(html: str) -> None:
    assert report_html(REPORT) == html


def test_a_page_is_made_without_torch() -> None:
    code = "import sys, onebasis.fitting.report.page; assert 'torch' not in sys.modules, 'torch'"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
