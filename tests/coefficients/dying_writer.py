"""Writes to a store and kills itself (-9) before the n-th thing that it asks of the database, for n = 0, 1, 2, ...

`python -m tests.coefficients.dying_writer URL put|rollback|delete FOLDER`. Number n works on the task `victim-<n>` in a
process of its own. A write that was acknowledged leaves the file FOLDER/acknowledged-<n>; the last one dies of nothing.
"""

import os
import signal
import sys
from pathlib import Path

from sqlalchemy import Engine, event

from onebasis.coefficients.store import TaskStore
from onebasis.core.ids import digest_of
from onebasis.storage.database import Database
from tests.coefficients.builders import basis_spec, coefficients, started

BASIS = basis_spec()
N_MOST = 60


def first_file(n: int) -> bytes:
    return coefficients(BASIS, seed=1000 + n)


def second_file(n: int) -> bytes:
    return coefficients(BASIS, seed=2000 + n)


def main(url: str, operation: str, folder: str) -> None:
    for n in range(N_MOST):
        pid = os.fork()
        if pid == 0:
            _write_and_die(url, operation, Path(folder), n)
        if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0:
            return
    raise AssertionError(f"it still dies at statement {N_MOST}")


def _write_and_die(url: str, operation: str, folder: Path, n: int) -> None:
    database = Database(url)
    registry = started(TaskStore(database), BASIS)
    n_left = n

    def count(*_: object) -> None:
        nonlocal n_left
        if n_left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        n_left -= 1

    for moment in ("before_cursor_execute", "after_cursor_execute", "commit"):
        event.listen(Engine, moment, count)
    name = f"victim-{n}"
    match operation:
        case "put":
            registry.register(name, second_file(n))
        case "rollback":
            registry.roll_back(name, digest_of(first_file(n)))
        case "delete":
            registry.delete(name)
    (folder / f"acknowledged-{n}").touch()
    os._exit(0 if n_left > 0 else 1)


if __name__ == "__main__":
    main(*sys.argv[1:])
