"""The README's table in one run: a demo server of its own, then bare, 1 and 12 distinct tasks at 1, 8 and 32 clients.

`python -m loadtests.bench [--json FILE] [any option of python -m loadtests, to override]`
"""

import asyncio
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import platformdirs

from loadtests.__main__ import main as measure
from onebasis.demo.client import register_all
from onebasis.demo.demo_pack import DemoPack
from onebasis.demo.embedded_model import ensure_model
from onebasis.demo.run import pack_options
from onebasis.demo.server_process import ServerProcess

PORT = 8311
PRESET = (
    *("--tasks", "all", "--scenario", "bare", "--scenario", "1", "--scenario", "12"),
    *("--concurrency", "1,8,32", "--rounds", "2", "--warmup", "2"),
    *("--prompt-tokens", "64", "--output-tokens", "32"),
)


def main(arguments: Sequence[str]) -> int:
    """Exit code of the measurement: 0 when every answer was exactly as long as demanded."""
    pack = DemoPack.shipped()
    model = ensure_model(platformdirs.user_cache_path("onebasis"))
    with tempfile.TemporaryDirectory(prefix="onebasis-bench-") as scratch:
        options = [*pack_options(model, pack, Path(scratch) / "tasks.db"), "--log-level", "warning"]
        with ServerProcess(options, port=PORT, log=Path(scratch) / "server.log") as server:
            asyncio.run(register_all(server.url, {task: pack.coefficients(task) for task in pack.tasks()}))
            return measure(["--url", f"onebasis={server.url}", *PRESET, *arguments])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
