"""Our end of peft_batch.py: a process of the peers' environment that runs one batch when told to."""

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from loadtests.common.errors import LoadTestError
from loadtests.common.processes import cpu_times, cpu_use
from loadtests.load.settings import Settings

_SCRIPT = Path(__file__).with_name("peft_batch.py")


@dataclass(frozen=True, slots=True)
class PeftBatch:
    """One static batch, prefill included."""

    batch: int
    n_tasks: int
    round_number: int
    wall_s: float
    output_tokens_per_s: float
    busy_cores: float  # of PEFT and everything else but this process


class PeftProcess:
    """Starts it, and ends it with the block.

    Args:
        python: of the peers' environment. model, adapters: folders. n_tasks: distinct adapters in a batch.
    """

    def __init__(self, python: Path, model: Path, adapters: Path, n_tasks: int) -> None:
        options = ["--model", str(model), "--adapters", str(adapters), "--distinct", str(n_tasks)]
        self._command = [str(python), str(_SCRIPT), *options]
        self._n_tasks = n_tasks

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        try:
            if self._read() != "ready":
                raise LoadTestError(f"{self._command[0]}: peft_batch.py did not start as expected")
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._end()

    def run(self, batch: int, round_number: int, settings: Settings) -> PeftBatch:
        """Raises LoadTestError: the process ended, or made another number of tokens than demanded."""
        job = {"batch": batch, "seed": settings.seed + round_number}
        job |= {"prompt_tokens": settings.n_prompt_tokens, "output_tokens": settings.n_output_tokens}
        before = cpu_times(None)
        self._write(json.dumps(job))
        answer = json.loads(self._read())
        cpu = cpu_use(before, cpu_times(None), has_server=False)
        needed = batch * settings.n_output_tokens
        if answer["n_tokens"] != needed:
            raise LoadTestError(f"PEFT made {answer['n_tokens']} tokens, needed {needed}")
        rate = needed / answer["wall_s"]
        return PeftBatch(batch, self._n_tasks, round_number, answer["wall_s"], rate, cpu.other_cores)

    def _write(self, line: str) -> None:
        if self._process.stdin is None:
            raise LoadTestError("PEFT's process has no input")
        try:
            self._process.stdin.write(f"{line}\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise LoadTestError("PEFT's process has ended; its message is above") from None

    def _read(self) -> str:
        line = self._process.stdout.readline() if self._process.stdout is not None else ""
        if not line:
            raise LoadTestError("PEFT's process has ended; its message is above")
        return line.strip()

    def _end(self) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
