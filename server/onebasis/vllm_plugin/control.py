"""What steers the workers from outside: how vLLM is started, which tasks its workers hold, what a request says."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from onebasis.coefficients.slots import NoFreeSlot, SlotGrant, SlotTable
from onebasis.core.errors import TaskUnusable
from onebasis.core.ids import Digest, digest_of_file
from onebasis.core.request import TaskCoefficients
from onebasis.vllm_plugin.options import OPTIONS_KEY, PUT_TASK, ROW_KEY, WorkerOptions
from onebasis.vllm_plugin.versions import check_vllm

_BARE_CPU_WORKER: Final = "onebasis.vllm_plugin.cpu_worker.SeededCpuWorker"
_CPU_WORKER: Final = "onebasis.vllm_plugin.cpu_worker.BasisCpuWorker"
_GPU_WORKER: Final = "onebasis.vllm_plugin.gpu_worker.BasisGpuWorker"


class CollectiveRpc(Protocol):
    """Calls a method of every worker; vLLM's AsyncLLM.collective_rpc is one."""

    async def __call__(self, method: str, *, args: tuple[object, ...] = ()) -> Sequence[object]: ...


@dataclass(frozen=True, slots=True)
class TaskRow:
    """A pinned row of the workers' tables, and whose it is."""

    row: int
    digest: Digest


@dataclass(frozen=True, slots=True)
class RequestArguments:
    """What a request has to say to vLLM.

    extra_args: of its SamplingParams. cache_salt: of its prompt; requests share cached prefixes only where it is the
    same, so it names the task's digest.
    """

    extra_args: dict[str, int] | None
    cache_salt: str | None


def engine_arguments(basis: Path | None, n_slots: int) -> dict[str, object]:
    """Keyword arguments for vLLM's AsyncEngineArgs or LLM.

    Args:
        n_slots: rows of the workers' tables, one a resident task. Each worker's table is on its device.

    Raises:
        UnsupportedVllm: there is no vLLM, or not one that this plugin works with.
        OSError: the basis can't be read.
    """
    check_vllm()
    from vllm.platforms import current_platform

    if basis is None:
        return {"worker_cls": _BARE_CPU_WORKER} if current_platform.is_cpu() else {}
    options = WorkerOptions(basis=str(basis.resolve()), digest=digest_of_file(basis), n_slots=n_slots)
    return {
        "worker_cls": _CPU_WORKER if current_platform.is_cpu() else _GPU_WORKER,
        "additional_config": {OPTIONS_KEY: options.as_dict()},
    }


def request_arguments(row: TaskRow | None) -> RequestArguments:
    """For the task in `row`; None for the base model alone."""
    if row is None:
        return RequestArguments(None, None)
    return RequestArguments({ROW_KEY: row.row}, f"onebasis:{row.digest}")


def check_task(name: str, coefficients: TaskCoefficients) -> None:
    """Raises TaskUnusable for what the workers can't apply."""
    if coefficients.residual:
        raise TaskUnusable(name, "it has a residual beside the basis, which only the native engine applies")


class TaskTable:
    """Which tasks the workers hold in which rows. A task that nobody uses stays until its row is wanted.

    Invariant: a row that was given out holds its task's cores in every worker. One event loop only.
    """

    def __init__(self, call: CollectiveRpc, n_slots: int) -> None:
        self._call = call
        self._slots = SlotTable(n_slots)
        self._copies: dict[int, asyncio.Task[None]] = {}
        """By row, the last copy into it: done once the workers have the cores."""
        self._has_free = asyncio.Event()

    @property
    def n_resident(self) -> int:
        return self._slots.n_resident

    async def acquire(self, coefficients: TaskCoefficients) -> TaskRow:
        """Pin a task's row, once the workers hold its cores; waits while every row is pinned. Release it once.

        Raises:
            TaskUnusable: it has a residual.
            Exception: what the call to the workers ended with. The row is not pinned then.
        """
        digest = coefficients.digest
        check_task(digest, coefficients)
        grant = await self._pin(digest)
        before = self._copies.get(grant.slot)
        if before is None or grant.is_new or _has_failed(before):
            self._copies[grant.slot] = asyncio.create_task(self._copy(grant.slot, coefficients, before))
        try:
            await asyncio.shield(self._copies[grant.slot])  # it goes on if this caller is cancelled: others may wait
        except BaseException:
            self._unpin(digest)
            raise
        return TaskRow(grant.slot, digest)

    def release(self, row: TaskRow) -> None:
        """Undo one `acquire`. A request that vLLM was told to abort is over as far as this is concerned: what
        the workers are told arrives in order."""
        self._unpin(row.digest)

    def check_integrity(self) -> None:
        """Raise if the invariant of the rows is broken. Tests call it."""
        self._slots.check_integrity()

    async def _pin(self, digest: Digest) -> SlotGrant:
        while True:
            try:
                return self._slots.acquire(digest)
            except NoFreeSlot:
                self._has_free.clear()
                await self._has_free.wait()

    def _unpin(self, digest: Digest) -> None:
        self._slots.release(digest)
        self._has_free.set()

    async def _copy(self, slot: int, coefficients: TaskCoefficients, before: asyncio.Task[None] | None) -> None:
        if before is not None:
            await asyncio.wait([before])
        await self._call(PUT_TASK, args=(slot, coefficients.flat_cores().tobytes()))


def _has_failed(copy: asyncio.Task[None]) -> bool:
    return copy.done() and (copy.cancelled() or copy.exception() is not None)
