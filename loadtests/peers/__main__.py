"""Our server and the peers, which are running already, under the same load in turns: bare, and with distinct adapters.

`python -m loadtests.peers --vllm URL --vllm-lora URL --llamacpp URL --llamacpp-lora URL [--peft FOLDER] [--json FILE]`
and any load option of `python -m loadtests`. Each peer may be left out. Our own server is started unless --onebasis
names one that has tasks 000, 001 and so on; one on vLLM (--onebasis-vllm) runs already and is given these tasks.
Prompts, order and adapters' names are the same for all. A peer with adapters is asked for all of them in turns; ours
for one task, for as many as a peer has adapters, and for all that are --registered.
"""

import argparse
import asyncio
import shlex
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from loadtests.common.limits import compute_limit
from loadtests.common.processes import memory_bytes, server_process
from loadtests.common.subject import Subject, add_subject_options, subject_of
from loadtests.common.tasks import register, synthetic_tasks
from loadtests.load import options
from loadtests.load.loopback import loopback_url
from loadtests.load.measure import ask_and_plan
from loadtests.load.plan import Run
from loadtests.load.session import Session, guarded
from loadtests.load.settings import Closed, Dialect, Server
from loadtests.load.stats import RoundResult
from loadtests.peers.peft_process import PeftBatch, PeftProcess

PRESET = (
    *("--concurrency", "1,8,32", "--rounds", "3", "--warmup", "4", "--prompt-tokens", "64", "--output-tokens", "32"),
)


@dataclass(frozen=True, slots=True)
class Peer:
    """A kind of server, and which rows of the table are its: bare, with adapters, or both.

    is_ours: it can take any number of tasks, and they are ours.
    """

    option: str
    name: str
    dialect: Dialect
    takes_bare: bool
    takes_tasks: bool
    is_ours: bool = False


PEERS = (
    Peer("--onebasis", "onebasis", "openai", takes_bare=True, takes_tasks=True, is_ours=True),
    Peer("--onebasis-vllm", "onebasis on vLLM", "openai", takes_bare=True, takes_tasks=True, is_ours=True),
    Peer("--vllm", "vLLM", "openai", takes_bare=True, takes_tasks=False),
    Peer("--vllm-lora", "vLLM LoRA", "openai", takes_bare=False, takes_tasks=True),
    Peer("--vllm-lora-8", "vLLM LoRA, 8 slots", "openai", takes_bare=False, takes_tasks=True),
    Peer("--llamacpp", "llama.cpp", "llamacpp", takes_bare=True, takes_tasks=False),
    Peer("--llamacpp-lora", "llama.cpp LoRA", "llamacpp", takes_bare=False, takes_tasks=True),
)


def main(arguments: Sequence[str]) -> int:
    """Exit code: 0 when every answer was exactly as long as demanded, 1 otherwise."""
    return guarded("loadtests.peers", _main, arguments)


def _main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m loadtests.peers", description=__doc__, allow_abbrev=False)
    for peer in PEERS:
        parser.add_argument(peer.option, type=loopback_url, metavar="URL")
    parser.add_argument("--peft", type=Path, metavar="FOLDER", help="setup.sh's; runs PEFT's mixed batch, too")
    parser.add_argument("--adapters", type=int, default=32, metavar="N", help="that a peer has [%(default)s]")
    parser.add_argument("--registered", type=int, metavar="N", help="tasks that ours have [--adapters]")
    add_subject_options(parser)
    asked, load_options = parser.parse_known_args(arguments)
    names = [f"{number:03}" for number in range(max(asked.adapters, asked.registered or 0))]
    subject = subject_of(parser, asked)
    with ExitStack() as stack:
        servers = [
            Server(peer.name, url, peer.dialect)
            for peer in PEERS
            if (url := getattr(asked, peer.option[2:].replace("-", "_"))) is not None
        ]
        if asked.onebasis is None:
            servers.insert(0, Server("onebasis", _own_server(stack, subject, names)))
        if asked.onebasis_vllm is not None:
            asyncio.run(register(asked.onebasis_vllm, synthetic_tasks(subject.coefficients, names, seed=0)))
        target = [part for server in servers for part in ("--url", f"{server.name}={server.url}")]
        scenarios = ["bare", *map(str, sorted({1, asked.adapters, len(names)}))]
        target += ["--tasks", ",".join(names) + ",", *(part for each in scenarios for part in ("--scenario", each))]
        settings = replace(options.parse([*target, *PRESET, *load_options]), servers=tuple(servers))
        session = Session.begin(settings, shlex.join(["python", "-m", "loadtests.peers", *arguments]))
        peft = None
        if asked.peft is not None:
            folder = asked.peft
            python = folder / "v" / "bin" / "python"
            peft = stack.enter_context(PeftProcess(python, folder / "model", folder / "adapters", asked.adapters))
        results, batches = asyncio.run(_measure(session, peft, asked.adapters))
        memory = {server.name: _memory_mb(server.url) for server in servers}
    limit = compute_limit(
        subject.model, n_prompt_tokens=settings.n_prompt_tokens, n_output_tokens=settings.n_output_tokens
    )
    for batch in batches:
        session.out.print(
            f"PEFT mixed batch of {batch.batch}, round {batch.round_number}: "
            f"{batch.output_tokens_per_s:.1f} output tokens/s",
            highlight=False,
        )
    session.out.print("memory, MB: " + ", ".join(f"{name} {size}" for name, size in memory.items()), highlight=False)
    more = {"peft": [asdict(batch) for batch in batches], "limit": limit, "memory_mb": memory}
    return session.finish(results, more)


def _memory_mb(url: str) -> int | None:
    """Of a server's processes after the run, with all that it holds; None where it can't be seen."""
    process = server_process(url)
    return None if process is None else memory_bytes(process) // 1_000_000


def _own_server(stack: ExitStack, subject: Subject, names: Sequence[str]) -> str:
    """URL of a server with synthetic tasks of these names."""
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="onebasis-bench-")))
    url = stack.enter_context(subject.server(folder)).url
    asyncio.run(register(url, synthetic_tasks(subject.coefficients, names, seed=0)))
    return url


async def _measure(
    session: Session, peft: PeftProcess | None, n_adapters: int
) -> tuple[list[RoundResult], list[PeftBatch]]:
    """Round by round; PEFT's batches, as large as there are clients, come at the end of each."""
    settings = session.settings
    runs = [run for run in await ask_and_plan(settings) if _takes(run, n_adapters)]
    results: list[RoundResult] = []
    batches: list[PeftBatch] = []
    for round_number in range(1, settings.n_rounds + 1):
        results += await session.measure([run for run in runs if run.round_number == round_number])
        if peft is not None:
            sizes = [load.concurrency for load in settings.loads if isinstance(load, Closed)]
            batches += [peft.run(size, round_number, settings) for size in sizes]
    return results, batches


def _takes(run: Run, n_adapters: int) -> bool:
    peer = next(peer for peer in PEERS if peer.name == run.server.name)
    if not run.has_tasks:
        return peer.takes_bare
    return peer.takes_tasks and (peer.is_ours or len(run.names) == n_adapters)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
