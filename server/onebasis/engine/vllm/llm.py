"""vLLM itself: its AsyncLLM, and the thread with the event loop that it lives on."""

import asyncio
import os
import threading
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from typing import Any, Final, ParamSpec

from vllm import SamplingParams
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.inputs import tokens_input
from vllm.outputs import RequestOutput
from vllm.platforms import current_platform
from vllm.v1.engine.async_llm import AsyncLLM

from onebasis.core.errors import SetupError
from onebasis.engine.vllm.steps import LlmListener, LlmListeners
from onebasis.vllm_plugin.control import RequestArguments, TaskTable

_SHUTDOWN_S: Final = 15.0

P = ParamSpec("P")


class Llm:
    """A vLLM that runs: engine core and workers are processes of their own.

    Everything of vLLM, and the task table, is used on the thread of `_loop` only.

    Args:
        arguments: of vLLM's AsyncEngineArgs.
        n_rows: of the workers' tables of tasks; 0 where they have no basis.

    Raises:
        SetupError: vLLM refuses the arguments, or its processes do not come up; its own log lines say why.
    """

    def __init__(self, arguments: Mapping[str, Any], *, n_rows: int) -> None:
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")  # vLLM asks its environment alone before it phones home
        self._listeners = LlmListeners()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="onebasis-vllm", daemon=True)
        self._thread.start()
        starting = asyncio.run_coroutine_threadsafe(self._start(arguments), self._loop)
        try:
            self._llm = starting.result()
        except Exception as error:
            self._end_thread()
            raise SetupError(f"vLLM does not start: {error}") from error
        self.tasks = TaskTable(self._call_workers, n_rows) if n_rows else None

    @property
    def is_running(self) -> bool:
        """False once its engine core, a worker or the thread has ended. From any thread."""
        return self._thread.is_alive() and not self._llm.errored

    @property
    def has_thread(self) -> bool:
        """The event loop's thread lives. From any thread."""
        return self._thread.is_alive()

    @property
    def max_model_len(self) -> int:
        """Tokens of prompt and output, as the KV cache holds them."""
        return int(self._llm.vllm_config.model_config.max_model_len)

    @property
    def n_blocks(self) -> int:
        """Blocks of the KV cache."""
        return int(self._llm.vllm_config.cache_config.num_gpu_blocks)

    @property
    def block_size(self) -> int:
        """Tokens in a block of the KV cache."""
        return int(self._llm.vllm_config.cache_config.block_size)

    def listen(self, listener: LlmListener) -> None:
        """Have `listener` told what happens from now on."""
        self._listeners.add(listener)

    def forget(self, listener: LlmListener) -> None:
        """The opposite of `listen`."""
        self._listeners.discard(listener)

    def call_soon(self, callback: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> None:
        """Have something called on the loop's thread; never where that has ended. From any thread."""
        try:
            self._loop.call_soon_threadsafe(lambda: callback(*args, **kwargs))
        except RuntimeError:
            if not self._loop.is_closed():
                raise

    def generate(
        self, request_id: str, prompt_ids: tuple[int, ...], sampling: SamplingParams, arguments: RequestArguments
    ) -> AsyncGenerator[RequestOutput, None]:
        """What vLLM makes of a prompt, as it comes. Leaving the iterator before its end aborts the request."""
        prompt = tokens_input(list(prompt_ids), cache_salt=arguments.cache_salt)
        outputs: AsyncGenerator[RequestOutput, None] = self._llm.generate(prompt, sampling, request_id)
        return outputs

    def close(self) -> None:
        """End vLLM's processes and the thread. May be called again."""
        if self._thread.is_alive():
            asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result()
            self._end_thread()

    async def _start(self, arguments: Mapping[str, Any]) -> AsyncLLM:
        return AsyncLLM.from_engine_args(AsyncEngineArgs(**arguments), stat_loggers=[self._listeners.logger])

    async def _call_workers(self, method: str, *, args: tuple[object, ...] = ()) -> Sequence[object]:
        """The task table's way to the workers; all it asks of them is to copy a task."""
        begun_s = time.monotonic()
        answers: Sequence[object] = await self._llm.collective_rpc(method, args=args)
        self._listeners.tell_copy(time.monotonic() - begun_s)
        return answers

    async def _stop(self) -> None:
        self._llm.shutdown(timeout=_SHUTDOWN_S)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()
        pending = asyncio.all_tasks(self._loop)
        for task in pending:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*pending, return_exceptions=True))
        self._loop.close()

    def _end_thread(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()


def device_type() -> str:
    """Where the installed vLLM runs, as torch calls it."""
    name: str = current_platform.device_type
    return name
