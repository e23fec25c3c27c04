"""Pictures show the saved numbers at their places, and say what is missing."""

import json
from xml.etree import ElementTree

import pytest

from loadtests.common.files import file_format
from loadtests.plots.__main__ import main
from loadtests.plots.chart import Line, line_chart

SVG = "{http://www.w3.org/2000/svg}"


def rows(*cells):
    keys = ("server", "scenario", "load", "output_tokens_per_s")
    return [dict(zip(keys, cell, strict=True)) for cell in cells]


def results(folder):
    load, micro = file_format("loadtests"), file_format("micro")
    ours = [("onebasis", "bare", "1 client", 40.0), ("onebasis", "32 tasks", "1 client", 20.0)]
    cell = {"n_tokens": 8, "n_tasks": 8, "side": "native shared basis"}
    files = {
        "server": {"format": load, "table": rows(*ours), "limit": {"output_tokens_per_s": 80.0}},
        "peers": {"format": load, "table": rows(*ours, ("b", "bare", "8 clients", 10.0))},
        "registered": {"format": load, "ttft": [{"n_registered": 10000, "ttft_p50_ms": 9.0, "ttft_p99_ms": 12.0}]},
        "micro": {"format": micro, "cells": [cell | {"k": 8, "tax": 1.1}, cell | {"k": 16, "tax": 1.2}]},
    }
    for name, payload in files.items():
        (folder / f"{name}.json").write_text(json.dumps(payload))
    return files


def heights(svg):
    """Of the points of each line, as shares of the highest tick's."""
    lines = ElementTree.fromstring(svg).findall(f"{SVG}polyline")
    ys = [[float(point.split(",")[1]) for point in line.get("points").split()] for line in lines]
    return [[round((312 - y) / (312 - 40), 3) for y in line] for line in ys]


def test_values_lie_where_the_axis_says():
    svg = line_chart("t <&>", "x", "y", ["a", "b"], [Line("one", [50.0, 25.0]), Line("two", [None, 100.0])])
    assert heights(svg) == [[0.5, 0.25], [1.0]]
    texts = [text.text for text in ElementTree.fromstring(svg).findall(f"{SVG}text")]
    assert texts[0] == "t <&>" and {"0", "20", "100", "one", "two", "a", "b"} <= set(texts)


@pytest.mark.parametrize(("largest", "top"), [(0.07, 0.07), (1.24, 1.4), (9.9, 10), (455, 500), (1000, 1000)])
def test_the_axis_ends_at_a_round_number_above_the_largest(largest, top):
    svg = line_chart("", "", "", ["a"], [Line("l", [largest])])
    assert heights(svg)[0][0] == pytest.approx(largest / top, abs=0.002)


@pytest.mark.parametrize("lines", [[], [Line("l", [1.0, 2.0])], [Line("l", [None])]])
def test_a_chart_of_nothing_is_refused(lines):
    with pytest.raises(ValueError, match="for each category"):
        line_chart("", "", "", ["a"], lines)


def test_one_command_draws_all_pictures(tmp_path):
    results(tmp_path)
    assert main([str(tmp_path)]) == 0
    assert heights((tmp_path / "throughput.svg").read_text()) == [[0.5, 0.25], [1.0, 1.0]]
    assert heights((tmp_path / "peers.svg").read_text()) == [[1.0], [0.25]], "nobody else has 32 tasks"
    assert heights((tmp_path / "ttft.svg").read_text()) == [[0.75], [1.0]]
    assert heights((tmp_path / "tax.svg").read_text()) == [[pytest.approx(1.1 / 1.2, abs=0.01), 1.0]]
    assert "10,000" in (tmp_path / "ttft.svg").read_text()


def test_a_missing_or_strange_file_is_named(tmp_path, capsys):
    results(tmp_path)
    (tmp_path / "micro.json").unlink()
    assert main([str(tmp_path)]) == 1
    assert "tax.svg needs" in capsys.readouterr().err and (tmp_path / "throughput.svg").is_file()
    (tmp_path / "server.json").write_text(json.dumps({"format": file_format("loadtests")}))
    assert main([str(tmp_path)]) == 1
    assert "lacks what throughput.svg shows" in capsys.readouterr().err
