"""The table of tasks against workers that are a dictionary; real workers are in tests/vllm."""

import asyncio

import numpy as np
import pytest

from onebasis.core.errors import TaskUnusable
from onebasis.core.ids import digest_of
from onebasis.vllm_plugin.control import TaskRow, TaskTable, request_arguments


class Coefficients:
    """A task whose cores are one number, many times."""

    def __init__(self, number: int, residual=None):
        self.number = number
        self.digest = digest_of(str(number).encode())
        self.residual = residual or {}

    def flat_cores(self):
        return np.full(5, self.number, dtype=np.float32)


class Workers:
    """Rows as a worker keeps them. Copies of the task `slow` wait for `gate`; the next one fails if `fails` is set."""

    def __init__(self):
        self.rows: dict[int, float] = {}
        self.n_calls = 0
        self.gate = asyncio.Event()
        self.slow: float | None = None
        self.fails = False

    async def __call__(self, method, *, args=()):
        assert method == "onebasis_put_task"
        self.n_calls += 1
        row, cores = args
        number = float(np.frombuffer(cores, dtype=np.float32)[0])
        if number == self.slow:
            await self.gate.wait()
        if self.fails:
            self.fails = False
            raise ConnectionError("a worker is gone")
        self.rows[row] = number
        return [None]


async def settle():
    for _ in range(5):
        await asyncio.sleep(0)


def test_a_row_holds_its_task_s_cores_before_it_is_given_out():
    async def main():
        workers = Workers()
        table = TaskTable(workers, 3)
        for number in (7, 8, 7, 9):
            row = await table.acquire(Coefficients(number))
            assert workers.rows[row.row] == number
        assert workers.n_calls == 3, "a task that is there is not copied again"
        assert table.n_resident == 3
        table.check_integrity()

    asyncio.run(main())


def test_requests_of_one_new_task_wait_for_the_same_copy():
    async def main():
        workers = Workers()
        workers.slow = 7
        table = TaskTable(workers, 3)
        asked = [asyncio.create_task(table.acquire(Coefficients(7))) for _ in range(3)]
        await settle()
        assert not any(task.done() for task in asked)
        workers.gate.set()
        assert {row.row for row in await asyncio.gather(*asked)} == {0}
        assert workers.n_calls == 1

    asyncio.run(main())


def test_the_task_unused_for_longest_gives_up_its_row():
    async def main():
        workers = Workers()
        table = TaskTable(workers, 2)
        rows = {number: await table.acquire(Coefficients(number)) for number in (7, 8)}
        table.release(rows[8])
        table.release(rows[7])
        new = await table.acquire(Coefficients(9))
        assert new.row == rows[8].row
        assert workers.rows == {rows[7].row: 7, new.row: 9}
        table.check_integrity()

    asyncio.run(main())


def test_a_request_waits_while_every_row_is_in_use():
    async def main():
        table = TaskTable(Workers(), 1)
        held = await table.acquire(Coefficients(7))
        waiting = [asyncio.create_task(table.acquire(Coefficients(number))) for number in (8, 9)]
        await settle()
        assert not any(task.done() for task in waiting)
        table.release(held)
        done, pending = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        table.release(next(iter(done)).result())
        await asyncio.wait_for(next(iter(pending)), 5)
        table.check_integrity()

    asyncio.run(main())


def test_a_cancelled_request_leaves_its_row_to_others():
    async def main():
        workers = Workers()
        workers.slow = 7
        table = TaskTable(workers, 1)
        cancelled = asyncio.create_task(table.acquire(Coefficients(7)))
        await settle()
        cancelled.cancel()
        other = asyncio.create_task(table.acquire(Coefficients(8)))
        await settle()
        workers.gate.set()
        row = await asyncio.wait_for(other, 5)
        assert workers.rows[row.row] == 8, "the copy of the cancelled one came first"
        table.check_integrity()

    asyncio.run(main())


def test_others_that_wait_for_the_same_copy_outlive_a_cancelled_request():
    async def main():
        workers = Workers()
        workers.slow = 7
        table = TaskTable(workers, 1)
        cancelled, other = (asyncio.create_task(table.acquire(Coefficients(7))) for _ in range(2))
        await settle()
        cancelled.cancel()
        await settle()
        workers.gate.set()
        row = await asyncio.wait_for(other, 5)
        assert workers.rows[row.row] == 7
        table.check_integrity()

    asyncio.run(main())


def test_a_copy_that_failed_is_made_again():
    async def main():
        workers = Workers()
        workers.fails = True
        table = TaskTable(workers, 1)
        with pytest.raises(ConnectionError):
            await table.acquire(Coefficients(7))
        row = await table.acquire(Coefficients(7))
        assert workers.rows[row.row] == 7
        table.release(row)
        assert (await table.acquire(Coefficients(8))).row == row.row, "the failed one left no pin"

    asyncio.run(main())


def test_a_task_with_a_residual_is_refused_before_anything_is_pinned():
    async def main():
        table = TaskTable(Workers(), 1)
        with pytest.raises(TaskUnusable, match="only the native engine applies"):
            await table.acquire(Coefficients(7, residual={"a.site": object()}))
        assert table.n_resident == 0

    asyncio.run(main())


def test_requests_share_cached_prefixes_by_digest_and_not_by_row():
    old, new = TaskRow(3, digest_of(b"old")), TaskRow(3, digest_of(b"new"))
    assert request_arguments(old).cache_salt != request_arguments(new).cache_salt
    assert request_arguments(new).extra_args == {"onebasis_row": 3}
    assert request_arguments(None).cache_salt is None
    assert request_arguments(None).extra_args is None
