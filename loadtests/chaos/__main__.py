"""Two replicas on one PostgreSQL, one killed -9 again and again, under uploads, roll-backs, deletes and generations.

`python -m loadtests.chaos [--minutes 3] [--kills 9] [--seed 0] [--json FILE]`

Checked: the store holds exactly what was acknowledged (of writes whose answer was lost: what the other replica then
found); every answer names a digest that was current, gives that digest's own text, and no answer is a 5xx; only the
killed server loses connections; in the end both replicas list the same. Exit code 1 if anything was otherwise.
"""

import argparse
import asyncio
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console

from loadtests.chaos.history import LAG_S, differences
from loadtests.chaos.load import Load, judged
from loadtests.chaos.replicas import Replicas, stored_versions
from loadtests.common.arguments import BenchmarkParser
from loadtests.common.postgres import own_postgres
from loadtests.load.session import guarded

_KILLED = 1
_N_COMPLAINTS_SHOWN = 20


def main(arguments: Sequence[str]) -> int:
    """Exit code: 0 if nothing was lost or mixed up, 1 otherwise."""
    return guarded("loadtests.chaos", _main, arguments)


def _main(arguments: Sequence[str]) -> int:
    parser = BenchmarkParser("chaos", __doc__)
    parser.add_argument("--minutes", type=float, default=3.0, help="of load [%(default)s]")
    parser.add_argument("--kills", type=int, default=9, help="spread over that time [%(default)s]")
    parser.add_argument("--names", type=int, default=8, help="tasks, each with a writer [%(default)s]")
    parser.add_argument("--readers", type=int, default=6, help="clients that generate [%(default)s]")
    parser.add_argument("--seed", type=int, default=0, help="of choices; the timing is the machine's")
    measurement = parser.begin(arguments)
    asked, subject = measurement.asked, measurement.subject
    files = [path.read_bytes() for path in subject.coefficients]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="onebasis-chaos-")))
        store = stack.enter_context(own_postgres())
        replicas = stack.enter_context(Replicas.open(subject, folder, store))
        counts, complaints = asyncio.run(_run(replicas, store, files, asked))
    counts_by_name = dict(sorted(counts.items()))
    out = Console()
    for name, count in counts_by_name.items():
        out.print(f"{count:8} {name}", highlight=False)
    for complaint in complaints[:_N_COMPLAINTS_SHOWN]:
        out.print(f"WRONG: {complaint}", markup=False, highlight=False)
    shown = complaints[:_N_COMPLAINTS_SHOWN]
    measurement.save(
        settings={**vars(asked), "model": subject.model.name, "n_files": len(files)},
        results={"counts": counts_by_name, "n_complaints": len(complaints), "complaints": shown},
    )
    return 1 if complaints else 0


async def _run(
    replicas: Replicas, store: str, files: Sequence[bytes], asked: argparse.Namespace
) -> tuple[Counter[str], list[str]]:
    load = Load(replicas, [f"task-{number}" for number in range(asked.names)], files, asked.seed)
    texts = await load.texts_alone()
    end_s: float = time.monotonic() + 60 * asked.minutes

    def is_over() -> bool:
        return time.monotonic() > end_s

    async with asyncio.TaskGroup() as group:
        for name in load.histories:
            group.create_task(load.write(name, is_over))
        for _ in range(asked.readers):
            group.create_task(load.read(is_over))
        await _kill(replicas, asked, end_s)
    complaints = load.complaints + judged(load, texts) + await _compare(load, store)
    await load.close()
    counts = load.counts
    counts["kills"] = sum(map(len, replicas.downs))
    counts["distinct texts of the files"] = len(set(texts.values()))
    for answer in load.answers:
        counts[f"answers {answer.status}" + (" by digest" if answer.asked else "")] += 1
    counts["versions in the store"] = sum(len(history.stored()) for history in load.histories.values())
    return counts, complaints


async def _kill(replicas: Replicas, asked: argparse.Namespace, end_s: float) -> None:
    """At random moments of equal parts of the time."""
    rng = random.Random(asked.seed)
    part_s = 60 * asked.minutes / (asked.kills + 1)
    for number in range(asked.kills):
        at_s = end_s - part_s * (asked.kills + 1 - number - rng.uniform(0.2, 0.8))
        await asyncio.sleep(max(0.0, at_s - time.monotonic()))
        if time.monotonic() < end_s:
            await replicas.kill_and_restart(_KILLED, down_s=rng.uniform(0.0, 1.0))


async def _compare(load: Load, store: str) -> list[str]:
    """Complaints about what is in the store, and in the replicas once they have had the time that they may take."""
    found = []
    stored = stored_versions(store)
    for name, history in load.histories.items():
        found += [f"{name}: {difference}" for difference in differences(history, stored.get(name, []))]
    await asyncio.sleep(LAG_S)
    wanted = {name: history.current for name, history in load.histories.items() if history.current is not None}
    for replica in (0, 1):
        state = await load.final_state(replica)
        if state != wanted:
            found.append(f"replica {replica} lists {state} in the end, it should be {wanted}")
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
