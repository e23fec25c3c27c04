"""A server of its own process, for the demo and for tests."""

import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx

from onebasis.core.errors import SetupError

_POLL_S = 0.2


class ServerProcess:
    """`onebasis serve` on loopback. As a context manager it is ready inside, and stopped outside.

    Args:
        options: of `onebasis serve`, without --host and --port.
        log: file for the server's output.
    """

    def __init__(self, options: Sequence[str], *, port: int, log: Path, ready_timeout_s: float = 180) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self._command = [sys.executable, "-m", "onebasis.cli", "serve", "--port", str(port), *options]
        self._log = log
        self._ready_timeout_s = ready_timeout_s
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log)
        try:
            self._wait_until_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """The running process. Raises RuntimeError before it is started."""
        if self._process is None:
            raise RuntimeError("the server is not started")
        return self._process

    def stop(self) -> None:
        """End it gently, and surely."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def _wait_until_ready(self) -> None:
        deadline_s = time.monotonic() + self._ready_timeout_s
        while time.monotonic() < deadline_s:
            if self.process.poll() is not None:
                raise SetupError(f"the server ended with exit code {self.process.returncode}:\n{self._log_tail()}")
            try:
                if httpx.get(f"{self.url}/health/ready", timeout=5).status_code == 200:
                    return
            except httpx.HTTPError:
                pass
            time.sleep(_POLL_S)
        raise SetupError(f"the server is not ready after {self._ready_timeout_s:.0f} s:\n{self._log_tail()}")

    def _log_tail(self) -> str:
        return self._log.read_text(encoding="utf-8", errors="replace")[-2000:]
