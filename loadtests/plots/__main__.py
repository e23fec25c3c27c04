"""All pictures of the README from the saved results: `python -m loadtests.plots [RESULTS_FOLDER [OUTPUT_FOLDER]]`.

Reads server.json, peers.json, registered.json and micro.json; a file that is missing is named, and its pictures are
left as they were. Writes throughput.svg, peers.svg, ttft.svg and tax.svg.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from loadtests.common.errors import LoadTestError
from loadtests.common.files import load_results
from loadtests.load.record import BENCHMARK as LOAD
from loadtests.load.session import guarded
from loadtests.micro.__main__ import BENCHMARK as MICRO
from loadtests.micro.sides import NATIVE_TASKS
from loadtests.plots.chart import Line, line_chart

OURS = "onebasis"
RESULTS = Path(__file__).resolve().parents[1] / "results"


def main(arguments: Sequence[str]) -> int:
    """Exit code: 0 when every picture was drawn, 1 otherwise."""
    return guarded("loadtests.plots", _main, arguments)


def _main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m loadtests.plots", description=__doc__)
    parser.add_argument("results", type=Path, nargs="?", default=RESULTS)
    parser.add_argument("output", type=Path, nargs="?", help="[the folder of the results]")
    asked = parser.parse_args(arguments)
    output = asked.output or asked.results
    missing = []
    for picture, (source, benchmark, draw) in PICTURES.items():
        path = asked.results / source
        if not path.is_file():
            missing.append(f"{picture} needs {path}")
            continue
        try:
            svg = draw(load_results(path, benchmark))
        except (KeyError, TypeError, ValueError) as error:
            raise LoadTestError(f"{path}: lacks what {picture} shows ({error!r}); measure again") from None
        (output / picture).write_text(svg, encoding="utf-8")
        Console().print(f"{output / picture}", highlight=False, soft_wrap=True)
    if missing:
        raise LoadTestError("; ".join(missing))
    return 0


def throughput(saved: dict[str, Any]) -> str:
    """Output tokens/s against distinct tasks, a line for each load, and the cores' limit."""
    rows = saved["table"]
    scenarios, loads = _ordered(rows, "scenario"), _ordered(rows, "load")
    lines = [Line(load, [_rate(rows, load=load, scenario=scenario) for scenario in scenarios]) for load in loads]
    lines.append(Line("limit of the cores", [saved["limit"]["output_tokens_per_s"]] * len(scenarios)))
    return line_chart("Throughput by distinct tasks", "distinct tasks", "output tokens/s", scenarios, lines)


def peers(saved: dict[str, Any]) -> str:
    """Output tokens/s of each server against the load; a line for each server and scenario that others take, too."""
    shared = {row["scenario"] for row in saved["table"] if not row["server"].startswith(OURS)}
    rows = [row for row in saved["table"] if row["scenario"] in shared]
    loads = _ordered(rows, "load")
    pairs = list(dict.fromkeys((row["server"], row["scenario"]) for row in rows))
    lines = [
        Line(f"{server}, {scenario}", [_rate(rows, load=load, server=server, scenario=scenario) for load in loads])
        for server, scenario in pairs
    ]
    return line_chart("Servers beside each other", "load", "output tokens/s", loads, lines)


def ttft(saved: dict[str, Any]) -> str:
    """Time to first token against registered tasks."""
    points = saved["ttft"]
    categories = [f"{point['n_registered']:,}" for point in points]
    lines = [Line(name, [point[f"ttft_{name}_ms"] for point in points]) for name in ("p50", "p99")]
    return line_chart("Time to first token by registered tasks", "registered tasks", "ms", categories, lines)


def tax(saved: dict[str, Any]) -> str:
    """What the native step with a shared basis takes beside the bare one, by k; a line for each batch."""
    cells = [cell for cell in saved["cells"] if cell["side"] == NATIVE_TASKS]
    ks = list(dict.fromkeys(cell["k"] for cell in cells))
    batches = list(dict.fromkeys((cell["n_tokens"], cell["n_tasks"]) for cell in cells))
    found = {(cell["k"], cell["n_tokens"], cell["n_tasks"]): cell["tax"] for cell in cells}
    lines = [Line(f"{n} tokens, {t} tasks", [found[k, n, t] for k in ks]) for n, t in batches]
    return line_chart("A layer with tasks, times bare", "k", "times bare", [str(k) for k in ks], lines)


def _rate(rows: Sequence[dict[str, Any]], **where: str) -> float | None:
    """Of the one row that matches; None if there is none."""
    rates = [row["output_tokens_per_s"] for row in rows if all(row[key] == value for key, value in where.items())]
    return rates[0] if rates else None


def _ordered(rows: Sequence[dict[str, Any]], key: str) -> list[str]:
    return list(dict.fromkeys(row[key] for row in rows))


PICTURES: dict[str, tuple[str, str, Callable[[dict[str, Any]], str]]] = {
    "throughput.svg": ("server.json", LOAD, throughput),
    "peers.svg": ("peers.json", LOAD, peers),
    "ttft.svg": ("registered.json", LOAD, ttft),
    "tax.svg": ("micro.json", MICRO, tax),
}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
