"""Fill a registry over HTTP with tasks of the demo's real size, then start the server again over it.

`python -m loadtests.registry [--tasks 10000] [--clients 4] [--store URL] [--json FILE]`
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from http import HTTPStatus
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import numpy as np
import psutil
from rich.console import Console

from loadtests.common.arguments import BenchmarkParser
from loadtests.common.errors import LoadTestError
from loadtests.common.processes import cpu_times, cpu_use
from loadtests.load.session import guarded
from onebasis.coefficients.basis_file import BasisSpec, read_basis_spec
from onebasis.coefficients.format import write_coefficients
from onebasis.demo.server_process import ServerProcess

MIB = 1024 * 1024
_ROUNDS = 4


@dataclass(frozen=True, slots=True)
class Upload:
    """One PUT that was answered with 201."""

    seconds: float
    n_bytes: int


def main(arguments: Sequence[str]) -> int:
    """Prints one JSON object of what was measured; exit code 0 if every upload was stored, 1 otherwise."""
    return guarded("loadtests.registry", _main, arguments)


def _main(arguments: Sequence[str]) -> int:
    parser = BenchmarkParser("registry", __doc__)
    parser.add_argument("--tasks", type=int, default=10_000, help="to upload [%(default)s]")
    parser.add_argument("--clients", type=int, default=4, help="connections that upload at once [%(default)s]")
    parser.add_argument("--store", metavar="URL", help="by default a new SQLite file")
    measurement = parser.begin(arguments)
    asked, subject = measurement.asked, measurement.subject
    with tempfile.TemporaryDirectory(prefix="onebasis-registry-") as scratch:
        full, empty = Path(scratch) / "full", Path(scratch) / "empty"
        full.mkdir()
        empty.mkdir()
        more = ["--log-level", "info"]
        basis = read_basis_spec(subject.basis)
        empty_start_s, filled = _fill(subject.server(full, store=asked.store, more=more), basis, asked)
        full_start_s, again = _start_again(
            subject.server(full, store=asked.store, more=more), subject.server(empty, more=more)
        )
        logged = [line for line in (full / "server.log").read_text().splitlines() if "registry:" in line]
    times = {"empty_start_s": empty_start_s, "full_start_s": full_start_s}
    results = filled | times | again | {"log": logged}
    Console().print_json(json.dumps(results))
    settings = {"tasks": asked.tasks, "clients": asked.clients, "model": subject.model.name}
    measurement.save(settings=settings, results=results)
    return 0


def _fill(server: ServerProcess, basis: BasisSpec, asked: argparse.Namespace) -> tuple[float, dict[str, float]]:
    """(seconds until an empty server is ready, what the uploads measured)."""
    begun_s = time.monotonic()
    with server:
        ready_s = time.monotonic() - begun_s
        process = psutil.Process(server.process.pid)
        before, before_cpu = _rss(server), cpu_times(process)
        begun_s = time.monotonic()
        with ThreadPoolExecutor(asked.clients) as pool:
            parts = pool.map(
                lambda first: _upload(server.url, basis, range(first, asked.tasks, asked.clients)),
                range(asked.clients),
            )
            uploads = [upload for part in parts for upload in part]
        took_s = time.monotonic() - begun_s
        n_bytes = sum(upload.n_bytes for upload in uploads)
        seconds = [upload.seconds for upload in uploads]
        return ready_s, {
            "tasks": len(uploads),
            "clients": asked.clients,
            "uploads_per_s": len(uploads) / took_s,
            "upload_p50_ms": 1000 * float(np.percentile(seconds, 50)),
            "upload_p99_ms": 1000 * float(np.percentile(seconds, 99)),
            "files_mib": n_bytes / MIB,
            "rss_growth_per_file_byte": (_rss(server) - before) / n_bytes,
            "other_cores": cpu_use(before_cpu, cpu_times(process), has_server=True).other_cores,
        }


def _start_again(full: ServerProcess, empty: ServerProcess) -> tuple[float, dict[str, float]]:
    """(seconds until a server with all tasks is ready, what it measures beside one without any)."""
    begun_s = time.monotonic()
    with full:
        ready_s = time.monotonic() - begun_s
        rss_mib = _rss(full) / MIB
        with empty:
            scrapes = [(_scrapes(full), _scrapes(empty)) for _ in range(_ROUNDS)]
    of_full, of_empty = ([side for rounds in scrapes for side in rounds[i]] for i in range(2))
    return ready_s, {
        "rss_mib_after_start": rss_mib,
        "scrape_ms": 1000 * float(np.median(of_full)),
        "scrape_empty_ms": 1000 * float(np.median(of_empty)),
    }


def _upload(url: str, basis: BasisSpec, numbers: range) -> list[Upload]:
    """Register one task for each number; random cores in float16, as a trained task's file has."""
    uploads = []
    with httpx.Client(base_url=url, timeout=60, trust_env=False) as client:
        for number in numbers:
            data = _file(basis, number)
            begun_s = time.monotonic()
            response = client.put(f"/v1/tasks/task-{number:05}", content=data)
            uploads.append(Upload(time.monotonic() - begun_s, len(data)))
            if response.status_code != 201:
                raise LoadTestError(f"task-{number:05}: {response.status_code} {response.text}")
    return uploads


def _file(basis: BasisSpec, seed: int) -> bytes:
    numbers = np.random.default_rng(seed).normal(0.0, 0.01, basis.n_core_numbers).astype(np.float16)
    return write_coefficients(
        numbers,
        form="core",
        basis=basis.digest,
        base_fingerprint=basis.base_fingerprint,
        provenance={"data": "random", "seed": seed, "recipe": {"n_steps": 0, "learning_rate": 0.01}},
    )


def _rss(server: ServerProcess) -> int:
    return int(psutil.Process(server.process.pid).memory_info().rss)


def _scrapes(server: ServerProcess) -> list[float]:
    """Seconds of each of 50 scrapes over one connection; by a client that does little of its own."""
    address = urlsplit(server.url)
    with closing(HTTPConnection(str(address.hostname), address.port, timeout=60)) as connection:
        seconds = []
        for _ in range(50):
            begun_s = time.monotonic()
            connection.request("GET", "/metrics")
            answer = connection.getresponse()
            answer.read()
            seconds.append(time.monotonic() - begun_s)
            if answer.status != HTTPStatus.OK:
                raise LoadTestError(f"/metrics: {answer.status}")
    return seconds


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
