"""What is measured: a base model, a basis for it, and real coefficient files. By default the demo's."""

import argparse
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from loadtests.common.processes import free_port
from onebasis.demo.demo_pack import DemoPack
from onebasis.demo.embedded_model import ensure_model
from onebasis.demo.server_process import ServerProcess


@dataclass(frozen=True, slots=True)
class Subject:
    """Paths on this machine."""

    model: Path
    basis: Path
    coefficients: tuple[Path, ...]

    def server(self, folder: Path, *, store: str | None = None, more: Sequence[str] = ()) -> ServerProcess:
        """A server of it on a free port; its log lies in `folder`, as does its registry unless `store` is a URL.

        Args:
            more: options of `onebasis serve`.
        """
        options = [
            *("--model", str(self.model), "--basis", str(self.basis), "--served-model-name", "base"),
            *("--store", store or f"sqlite:///{folder / 'tasks.db'}", "--log-level", "warning"),
            *more,
        ]
        return ServerProcess(options, port=free_port(), log=folder / "server.log")


@contextmanager
def running(servers: Collection[ServerProcess]) -> Iterator[None]:
    """All of them, started at once: most of a start is imports, which take one core."""
    with ExitStack() as stack:
        with ThreadPoolExecutor(len(servers)) as pool:
            starts = [pool.submit(stack.enter_context, server) for server in servers]
        for start in starts:
            start.result()  # raises what kept it from starting
        yield


def add_subject_options(parser: argparse.ArgumentParser) -> None:
    """--model, --basis, --coefficients; all three or none."""
    add = parser.add_argument_group("what is served", "the demo's model and pack by default").add_argument
    add("--model", type=Path, metavar="DIR", help="base model")
    add("--basis", type=Path, metavar="FILE", help="basis of this model")
    add("--coefficients", type=Path, nargs="+", metavar="FILE", help="real tasks; synthetic ones are made from them")


def subject_of(parser: argparse.ArgumentParser, asked: argparse.Namespace) -> Subject:
    """The subject that was asked for; the demo's model is fetched once."""
    given = [asked.model, asked.basis, asked.coefficients]
    if all(value is None for value in given):
        pack = DemoPack.shipped()
        model = ensure_model(platformdirs.user_cache_path("onebasis"))
        return Subject(model, pack.basis, tuple(pack.coefficients(task) for task in pack.tasks()))
    if any(value is None for value in given):
        parser.error("--model, --basis and --coefficients belong together: give all three or none")
    return Subject(asked.model, asked.basis, tuple(asked.coefficients))
