"""Does it matter how many tasks are registered? Time to first token and memory with 10, 1000 and 10,000 of them.

`python -m loadtests.registered [--registered 10,1000,10000] [--json FILE] [any load option of python -m loadtests]`

Each number has a server of its own; they stay idle but for the one whose turn it is. Requests draw from all the tasks
that their server has, so most of them meet a task that is not resident yet. Memory is read before the tasks are
uploaded and after.
"""

import argparse
import asyncio
import shlex
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from loadtests.common.errors import LoadTestError
from loadtests.common.processes import memory_bytes, server_process
from loadtests.common.subject import Subject, add_subject_options, running, subject_of
from loadtests.common.tasks import register, synthetic_tasks, task_name
from loadtests.load import options
from loadtests.load.client import complete, make_request, open_client
from loadtests.load.plan import Run, plan_runs
from loadtests.load.session import Session, guarded
from loadtests.load.settings import Settings
from loadtests.load.stats import RoundResult, table_rows

PRESET = (
    *("--tasks", "base", "--choice", "uniform", "--concurrency", "1", "--requests", "32", "--rounds", "8"),
    *("--warmup", "4", "--prompt-tokens", "64", "--output-tokens", "8"),
)


@dataclass(frozen=True, slots=True)
class Growth:
    """What the registered tasks cost in memory, as proportional set size."""

    n_registered: int
    file_bytes: int
    before_bytes: int
    after_bytes: int

    @property
    def per_file_byte(self) -> float:
        """Bytes of memory that grew by each byte of the coefficient files."""
        return (self.after_bytes - self.before_bytes) / self.file_bytes


def main(arguments: Sequence[str]) -> int:
    """Exit code: 0 when every answer was exactly as long as demanded, 1 otherwise."""
    return guarded("loadtests.registered", _main, arguments)


def _main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m loadtests.registered", description=__doc__, allow_abbrev=False)
    parser.add_argument("--registered", type=_numbers, default=(10, 1000, 10000), metavar="N,..")
    add_subject_options(parser)
    asked, load_options = parser.parse_known_args(arguments)
    subject = subject_of(parser, asked)
    command = shlex.join(["python", "-m", "loadtests.registered", *arguments])
    with ExitStack() as stack:
        servers = {}
        for n_tasks in asked.registered:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="onebasis-bench-")))
            servers[_label(n_tasks)] = subject.server(folder)
        stack.enter_context(running(servers.values()))
        target = [part for name, server in servers.items() for part in ("--url", f"{name}={server.url}")]
        session = Session.begin(options.parse([*target, *PRESET, *load_options]), command)
        numbers = dict(zip((server.name for server in session.settings.servers), asked.registered, strict=True))
        growths, results = asyncio.run(_fill_and_measure(session, subject, numbers))
    for growth in growths:
        session.out.print(
            f"{growth.n_registered} tasks: {growth.file_bytes / 1e6:.1f} MB of files, memory grew from "
            f"{growth.before_bytes / 1e6:.0f} to {growth.after_bytes / 1e6:.0f} MB, {growth.per_file_byte:.2f} a byte",
            highlight=False,
        )
    points = [
        {"n_registered": numbers[row.server], "ttft_p50_ms": row.ttft_p50_ms, "ttft_p99_ms": row.ttft_p99_ms}
        for row in table_rows(results)
    ]
    memory = [{**asdict(growth), "per_file_byte": growth.per_file_byte} for growth in growths]
    return session.finish(results, {"ttft": points, "memory": memory})


async def _fill_and_measure(
    session: Session, subject: Subject, numbers: Mapping[str, int]
) -> tuple[list[Growth], list[RoundResult]]:
    settings = session.settings
    growths = [await _fill(server.url, subject, numbers[server.name], settings) for server in settings.servers]
    bare = plan_runs(settings, [], dict.fromkeys(numbers, "base"))
    return growths, await session.measure([_on_tasks(run, numbers[run.server.name]) for run in bare])


async def _fill(url: str, subject: Subject, n_tasks: int, settings: Settings) -> Growth:
    """Upload the tasks of one server, which has answered a request before, so that its memory is that of a used one."""
    process = server_process(url)
    if process is None:
        raise LoadTestError(f"{url}: the server's process can't be seen, so neither can its memory")
    async with open_client(url) as client:
        request = make_request("base", [settings.vocab[0]] * settings.n_prompt_tokens, settings.n_output_tokens)
        answer = await complete(client, request, timeout_s=settings.timeout_s)
        if answer.error is not None:
            raise LoadTestError(f"{url}: {answer.error}")
    before = memory_bytes(process)
    names = [task_name(number) for number in range(n_tasks)]
    n_bytes = await register(url, synthetic_tasks(subject.coefficients, names, seed=settings.seed))
    return Growth(n_tasks, n_bytes, before, memory_bytes(process))


def _on_tasks(run: Run, n_tasks: int) -> Run:
    """The same run over all the tasks of its server."""
    names = tuple(task_name(number) for number in range(n_tasks))
    return replace(run, names=names, scenario="all tasks", has_tasks=True)


def _label(n_tasks: int) -> str:
    return f"{n_tasks} registered"


def _numbers(text: str) -> tuple[int, ...]:
    numbers = tuple(int(part) for part in text.split(","))
    if min(numbers) < 1 or len(set(numbers)) < len(numbers):
        raise argparse.ArgumentTypeError(f"{text}: needs different numbers from 1")
    return numbers


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
