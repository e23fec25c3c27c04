"""The README's table in one run: a server of its own, then bare, 1, 32 and 1000 distinct tasks at 1, 8 and 32 clients.

`python -m loadtests.server [--registered N] [--int8] [--json FILE] [load options of python -m loadtests, to override]`
"""

import argparse
import asyncio
import shlex
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from loadtests.common.limits import compute_limit
from loadtests.common.subject import Subject, add_subject_options, running, subject_of
from loadtests.common.tasks import register, synthetic_tasks, task_name
from loadtests.load import options
from loadtests.load.measure import ask_and_plan
from loadtests.load.session import Session, guarded
from loadtests.load.stats import RoundResult

PRESET = (
    *("--choice", "uniform", "--concurrency", "1,8,32", "--rounds", "5", "--warmup", "4"),
    *("--prompt-tokens", "64", "--output-tokens", "32"),
)
FEW, SEVERAL = 1, 32


def main(arguments: Sequence[str]) -> int:
    """Exit code: 0 when every answer was exactly as long as demanded, 1 otherwise."""
    return guarded("loadtests.server", _main, arguments)


def _main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m loadtests.server", description=__doc__, allow_abbrev=False)
    parser.add_argument("--registered", type=int, default=1000, metavar="N", help="synthetic tasks [%(default)s]")
    parser.add_argument("--int8", action="store_true", help="in turns with another server, on 8-bit weights")
    add_subject_options(parser)
    asked, load_options = parser.parse_known_args(arguments)
    subject = subject_of(parser, asked)
    command = shlex.join(["python", "-m", "loadtests.server", *arguments])
    held_as: dict[str, tuple[str, ...]] = {"onebasis": ()}
    if asked.int8:
        held_as["int8"] = ("--quantization", "int8")
    with ExitStack() as stack:
        servers = {}
        for name, more in held_as.items():
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="onebasis-bench-")))
            servers[name] = subject.server(folder, more=more)
        stack.enter_context(running(servers.values()))
        scenarios = ["bare", *map(str, sorted({FEW, min(SEVERAL, asked.registered), asked.registered}))]
        target = ["--tasks", "all"]
        target += [part for name, server in servers.items() for part in ("--url", f"{name}={server.url}")]
        target += [part for scenario in scenarios for part in ("--scenario", scenario)]
        session = Session.begin(options.parse([*target, *PRESET, *load_options]), command)
        results = asyncio.run(_fill_and_measure(session, subject, asked.registered))
    settings = session.settings
    limit = compute_limit(
        subject.model, n_prompt_tokens=settings.n_prompt_tokens, n_output_tokens=settings.n_output_tokens
    )
    session.out.print(
        f"limit of these cores: {limit.output_tokens_per_s:.0f} output tokens/s "
        f"({limit.gflop_per_request:.1f} GFLOP a request at {limit.gemm_tflops:.2f} TFLOP/s)",
        highlight=False,
    )
    return session.finish(results, {"limit": limit})


async def _fill_and_measure(session: Session, subject: Subject, n_tasks: int) -> list[RoundResult]:
    settings = session.settings
    names = [task_name(number) for number in range(n_tasks)]
    for server in settings.servers:
        await register(server.url, synthetic_tasks(subject.coefficients, names, seed=settings.seed))
    return await session.measure(await ask_and_plan(settings))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
