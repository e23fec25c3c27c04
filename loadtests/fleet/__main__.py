"""The numbers behind deploy/SCALING.md.

`python -m loadtests.fleet measure [--json FILE]` fills a real PostgreSQL with 2 x 2000 tasks and simulates 100
replicas with what that cost; `python -m loadtests.fleet page [FILE]` writes the page from the saved numbers.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from loadtests.common.files import check_target, load_results, save_results
from loadtests.common.machine import describe_machine
from loadtests.common.subject import add_subject_options, subject_of
from loadtests.fleet import store_costs
from loadtests.fleet.page import PAGE, RESULTS, page
from loadtests.fleet.scenario import SCENARIO, arenas_of, convergences_of
from loadtests.load.session import guarded


def main(arguments: Sequence[str]) -> int:
    """Exit code: 0 all well, 1 what stopped it."""
    return guarded("loadtests.fleet", _main, arguments)


def _main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m loadtests.fleet", description=__doc__, allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True)
    measuring = commands.add_parser("measure", allow_abbrev=False)
    measuring.add_argument("--tasks", type=int, default=2000, help="stored of each size [%(default)s]")
    measuring.add_argument("--json", type=Path, default=RESULTS, metavar="FILE", help="[%(default)s]")
    add_subject_options(measuring)
    commands.add_parser("page").add_argument("file", type=Path, nargs="?", default=PAGE)
    asked = parser.parse_args(arguments)
    if asked.command == "page":
        asked.file.write_text(page(load_results(RESULTS, "fleet")), encoding="utf-8")
        return 0
    subject = subject_of(measuring, asked)
    check_target(asked.json)
    machine = describe_machine()
    costs = store_costs.measure(
        subject, n_tasks=asked.tasks, small_bytes=SCENARIO.small_bytes, n_polls=1000, seed=SCENARIO.seed
    )
    save_results(
        asked.json,
        benchmark="fleet",
        command=shlex.join(["python", "-m", "loadtests.fleet", *arguments]),
        machine=machine,
        settings=SCENARIO,
        results={
            "store": costs,
            "convergence": convergences_of(SCENARIO, costs.idle_poll_cpu_ms, costs.change_cpu_ms),
            "arenas": arenas_of(SCENARIO),
        },
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
