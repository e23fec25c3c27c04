"""The runs to measure, in order, and the requests of each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from loadtests.common.errors import LoadTestError
from loadtests.load.arrivals import poisson_arrivals
from loadtests.load.choice import choose_names
from loadtests.load.client import Request, make_request
from loadtests.load.prompts import random_prompts
from loadtests.load.settings import Load, Open, Server, Settings


@dataclass(frozen=True, slots=True)
class Run:
    """One server under one load with one set of tasks, measured once."""

    server: Server
    load: Load
    round_number: int  # from 1
    names: tuple[str, ...]  # what requests may name in `model`
    scenario: str
    arrivals_s: tuple[float, ...]  # empty in a closed loop
    n_requests: int
    has_tasks: bool = True  # False: `names` is the bare model's

    def seed(self, settings: Settings, purpose: str) -> str:
        """The same for all servers, so that they get the same work; different wherever prompts must be new."""
        return f"{settings.seed}/{purpose}/{self.round_number}/{self.load.label}/{self.scenario}"


def plan_runs(settings: Settings, tasks: Sequence[str], base_models: Mapping[str, str]) -> list[Run]:
    """All runs. Servers and scenarios alternate within a load; each round begins with the next of them.

    Args:
        settings: what was asked for.
        tasks: the names to choose from; a scenario of N tasks uses the first N.
        base_models: name of a server -> what it calls its bare model; needed for the bare scenario only.

    Raises:
        LoadTestError: a scenario of more tasks than there are, or a rate and duration without any arrival.
    """
    scenarios = (len(tasks),) if settings.scenarios is None else settings.scenarios
    if max(scenarios) > len(tasks):
        found = f"--tasks {settings.tasks} gives {len(tasks)}"
        raise LoadTestError(f"a scenario needs {max(scenarios)} tasks, {found}; name more or lower it")
    runs: list[Run] = []
    for round_number in range(1, settings.n_rounds + 1):
        for load in settings.loads:
            arrivals_s = _arrivals(load, settings.seed, round_number)
            pairs = [(n_tasks, server) for n_tasks in scenarios for server in settings.servers]
            first = (round_number - 1) % len(pairs)
            runs += [
                Run(
                    server=server,
                    load=load,
                    round_number=round_number,
                    names=tuple(tasks[:n_tasks]) if n_tasks else (base_models[server.name],),
                    scenario=_label(n_tasks),
                    arrivals_s=arrivals_s,
                    n_requests=len(arrivals_s) if isinstance(load, Open) else load.n_requests,
                    has_tasks=n_tasks > 0,
                )
                for n_tasks, server in pairs[first:] + pairs[:first]
            ]
    return runs


def measured_requests(run: Run, settings: Settings) -> list[Request]:
    """The requests that count."""
    names = choose_names(
        run.names,
        run.n_requests,
        how=settings.choice,
        zipf_a=settings.zipf_a,
        seed=run.seed(settings, "choice"),
    )
    return _requests(run, names, settings, run.seed(settings, "prompts"))


def warmup_requests(run: Run, settings: Settings) -> list[Request]:
    """Requests to send first: other prompts, the tasks in turn."""
    names = [run.names[i % len(run.names)] for i in range(settings.n_warmup)]
    return _requests(run, names, settings, run.seed(settings, "warm-up"))


def _requests(run: Run, names: Sequence[str], settings: Settings, seed: str) -> list[Request]:
    prompts = random_prompts(len(names), n_tokens=settings.n_prompt_tokens, vocab=settings.vocab, seed=seed)
    return [
        make_request(name, prompt, settings.n_output_tokens, extra=_extra(run, name))
        for name, prompt in zip(names, prompts, strict=True)
    ]


def _extra(run: Run, name: str) -> dict[str, object]:
    """llama.cpp's server counts its adapters in the order in which it was given them."""
    if run.server.dialect == "openai":
        return {}
    chosen = [{"id": run.names.index(name), "scale": 1.0}] if run.has_tasks else []
    return {"lora": chosen, "cache_prompt": False}


def _arrivals(load: Load, seed: int, round_number: int) -> tuple[float, ...]:
    if not isinstance(load, Open):
        return ()
    seed_text = f"{seed}/arrivals/{round_number}/{load.label}"
    arrivals_s = poisson_arrivals(load.rate, load.duration_s, seed_text)
    if not arrivals_s:
        raise LoadTestError(f"no request arrives in {load.duration_s:g} s at {load.rate:g} a second; lengthen it")
    return arrivals_s


def _label(n_tasks: int) -> str:
    if n_tasks == 0:
        return "bare"
    return f"{n_tasks} tasks" if n_tasks > 1 else "1 task"
