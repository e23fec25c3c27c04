"""The command line of the benchmarks that measure a subject, and the file for what came out."""

import argparse
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from loadtests.common.files import check_target, save_results
from loadtests.common.machine import Machine, describe_machine
from loadtests.common.subject import Subject, add_subject_options, subject_of


@dataclass(frozen=True, slots=True)
class Measurement:
    """What is known before it begins. `asked`: the options of the command line."""

    benchmark: str
    command: str
    asked: argparse.Namespace
    subject: Subject
    machine: Machine

    def save(self, *, settings: object, results: Mapping[str, object]) -> None:
        """Write the file that --json names, if it names one."""
        if self.asked.json is not None:
            save_results(
                self.asked.json,
                benchmark=self.benchmark,
                command=self.command,
                machine=self.machine,
                settings=settings,
                results=results,
            )


class BenchmarkParser(argparse.ArgumentParser):
    """Of `python -m loadtests.<benchmark>`: has --json and the options of the subject; the benchmark adds its own."""

    def __init__(self, benchmark: str, description: str | None) -> None:
        super().__init__(prog=f"python -m loadtests.{benchmark}", description=description, allow_abbrev=False)
        self._benchmark = benchmark
        self.add_argument("--json", type=Path, metavar="FILE", help="write what came out, and where")
        add_subject_options(self)

    def begin(self, arguments: Sequence[str]) -> Measurement:
        """Raises LoadTestError: the results could not be written where they shall go."""
        asked = self.parse_args(arguments)
        check_target(asked.json)
        command = shlex.join([*self.prog.split(), *arguments])
        return Measurement(self._benchmark, command, asked, subject_of(self, asked), describe_machine())


def numbers(text: str) -> tuple[int, ...]:
    """Whole numbers with commas between them; a ValueError, which argparse words, for anything else."""
    return tuple(int(part) for part in text.split(","))
