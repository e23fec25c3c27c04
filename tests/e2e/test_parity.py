"""In float32 and greedy, a mixed batch gives each request what it gets alone and what merged weights give."""

import queue
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from onebasis.coefficients.validate import BoundCoefficients
from onebasis.core.config import ServeConfig
from onebasis.core.request import GenerateRequest, ResolvedTask, SamplingParams, TokenEvent
from onebasis.demo.demo_pack import DemoPack
from onebasis.demo.embedded_model import MODEL_NAME
from onebasis.demo.tasks import DEMO_TASKS
from onebasis.model.adapted import StepTasks, adapt_model
from onebasis.model.chat_template import TemplateInputs
from onebasis.model.factors import load_basis
from onebasis.model.loader import load_base
from onebasis.wiring import Server, build_server
from tests.e2e.reference import Reference

MAX_TOKENS = 16
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Case:
    name: str
    prompt_ids: tuple[int, ...]
    task: ResolvedTask | None


@pytest.fixture(scope="module")
def server(model_folder: Path, pack: DemoPack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    config = ServeConfig(
        model=model_folder,
        basis=pack.basis,
        served_model_name=MODEL_NAME,
        store=f"sqlite:///{tmp_path_factory.mktemp('parity') / 'tasks.db'}",
        dtype="float32",
        max_step_tokens=96,  # prompts are computed in chunks beside the decodes of others
        max_running=24,
    )
    server = build_server(config)
    for task in pack.tasks():
        server.app.state.services.registry.register(task, pack.coefficients(task).read_bytes())
    yield server
    server.close()


@pytest.fixture(scope="module")
def cases(server: Server, pack: DemoPack) -> list[Case]:
    """One unseen item of every task under its task; every third prompt under the bare model, too."""
    services = server.app.state.services
    cases = []
    for i, task in enumerate(pack.tasks()):
        (example,) = DEMO_TASKS[task].examples("val", 1)
        prompt_ids = services.text.encode_chat([{"role": "user", "content": example.prompt}], TemplateInputs())
        cases.append(Case(task, prompt_ids, services.registry.resolve(task)))
        if i % 3 == 0:
            cases.append(Case(f"bare {task}", prompt_ids, None))
    return cases


@pytest.fixture(scope="module")
def alone(server: Server, cases: list[Case]) -> list[list[int]]:
    return [run_all(server, [case], pause_s=0)[0] for case in cases]


def test_a_crowd_gets_what_each_gets_alone_and_what_merged_weights_give(
    server: Server,
    cases: list[Case],
    alone: list[list[int]],
    model_folder: Path,
    pack: DemoPack,
    capsys: pytest.CaptureFixture[str],
) -> None:
    crowd = run_all(server, cases, pause_s=0.4)
    reference = Reference(
        load_base(model_folder, dtype=torch.float32, device=CPU),
        load_basis(pack.basis, dtype=torch.float32, device=CPU),
    )
    assert len({case.name for case in cases if case.task}) >= 12
    n_flips = 0
    for case, in_crowd, by_itself in zip(cases, crowd, alone, strict=True):
        coefficients = case.task.coefficients if case.task else None
        assert coefficients is None or isinstance(coefficients, BoundCoefficients)
        with reference.merged(coefficients):
            merged = reference.generate(case.prompt_ids, MAX_TOKENS)
            for found in (in_crowd, by_itself):
                if found != merged:
                    assert reference.is_legitimate_flip(case.prompt_ids, found, merged), case.name
                    n_flips += 1
    with capsys.disabled():
        print(f"\n{len(cases)} requests, {n_flips} flips at near-equal logits")


def test_the_crowd_really_shared_steps(server: Server, cases: list[Case]) -> None:
    run_all(server, cases, pause_s=0)
    exposition = server.app.state.services.metrics.render()[0].decode()
    shared = [line for line in exposition.splitlines() if line.startswith("onebasis_distinct_tasks_per_step_bucket")]
    at_most_4 = float(next(line for line in shared if 'le="4.0"' in line).split()[-1])
    assert float(shared[-1].split()[-1]) > at_most_4, "no step had more than four distinct tasks"


def test_bare_logits_are_the_same_bits_with_and_without_a_basis(model_folder: Path, pack: DemoPack) -> None:
    basis = load_basis(pack.basis, dtype=torch.bfloat16, device=CPU)
    cores = {site.name: torch.randn(2, site.k_out, site.k_in) for site in basis.spec.sites}
    token_ids = torch.arange(1000, 1060).unsqueeze(0)
    logits = []
    for loaded in (None, basis):
        base = load_base(model_folder, dtype=torch.bfloat16, device=CPU)
        adapt_model(base.model, loaded, cores, StepTasks())
        with torch.inference_mode():
            logits.append(base.model(input_ids=token_ids).logits)
    assert torch.equal(*logits)


def run_all(server: Server, cases: list[Case], *, pause_s: float) -> list[list[int]]:
    """Submit cases one after another with random pauses up to `pause_s`; each one's tokens, in order."""
    events: queue.SimpleQueue[TokenEvent] = queue.SimpleQueue()
    pauses = random.Random(0)
    services = server.app.state.services
    for i, case in enumerate(cases):
        services.engine.submit(
            [
                GenerateRequest(
                    request_id=str(i),
                    prompt_ids=case.prompt_ids,
                    task=case.task,
                    max_tokens=MAX_TOKENS,
                    sampling=SamplingParams(temperature=0),
                    stop_token_ids=services.text.eos_token_ids,
                    sink=events.put,
                )
            ]
        )
        time.sleep(pauses.uniform(0, pause_s))
    outputs: list[list[int]] = [[] for _ in cases]
    n_open = len(cases)
    while n_open:
        event = events.get(timeout=120)
        assert event.error is None
        if event.token_id is not None:
            outputs[int(event.request_id)].append(event.token_id)
        n_open -= event.finish is not None
    return outputs
