"""Carries out the plan, one run after the other."""

from collections.abc import Callable
from contextlib import AsyncExitStack

from loadtests.common.processes import cpu_times, cpu_use, server_process
from loadtests.load.catalog import base_model_name, task_names
from loadtests.load.client import open_client
from loadtests.load.loops import closed_loop, open_loop
from loadtests.load.plan import Run, measured_requests, plan_runs, warmup_requests
from loadtests.load.settings import Open, Settings
from loadtests.load.stats import RoundResult, summarise


async def ask_and_plan(settings: Settings) -> list[Run]:
    """Ask the servers for the names the settings leave open, then plan.

    Raises:
        LoadTestError: a server does not answer or lacks what was asked for.
    """
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(open_client(server.url)) for server in settings.servers]
        tasks = await task_names(settings.tasks, clients[0])
        base_models: dict[str, str] = {}
        if settings.scenarios is not None and 0 in settings.scenarios:
            for server, client in zip(settings.servers, clients, strict=True):
                base_models[server.name] = settings.base_model or await base_model_name(client)
    return plan_runs(settings, tasks, base_models)


async def measure(run: Run, settings: Settings, on_answer: Callable[[], None]) -> RoundResult:
    """Warm up, then measure one run. on_answer is called for every answer that counts."""
    requests = measured_requests(run, settings)
    timeout_s = settings.timeout_s
    async with open_client(run.server.url) as client:
        warmup = await closed_loop(
            client,
            warmup_requests(run, settings),
            concurrency=1 if isinstance(run.load, Open) else run.load.concurrency,
            timeout_s=timeout_s,
            on_answer=lambda: None,
        )
        server = server_process(run.server.url)
        before = cpu_times(server)
        if isinstance(run.load, Open):
            outcome = await open_loop(
                client, requests, arrivals_s=run.arrivals_s, timeout_s=timeout_s, on_answer=on_answer
            )
        else:
            concurrency = run.load.concurrency
            outcome = await closed_loop(
                client, requests, concurrency=concurrency, timeout_s=timeout_s, on_answer=on_answer
            )
        cpu = cpu_use(before, cpu_times(server), has_server=server is not None)
    return summarise(
        run,
        outcome,
        models=[request.model for request in requests],
        warmup_errors=[answer.error for answer in warmup.answers if answer.error is not None],
        cpu=cpu,
    )
