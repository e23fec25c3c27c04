"""A request that carries something bad ends alone; its neighbours get the tokens they would have got."""

import time
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

from onebasis.core.errors import EngineStopped, NonFiniteOutput
from onebasis.core.ids import digest_of
from onebasis.core.request import FinishReason, ResolvedTask, SamplingParams
from onebasis.core.residual import Residual, Residuals
from onebasis.engine.isolation import sample_isolated
from onebasis.engine.runner import Runner
from onebasis.engine.sampler import SampleRow
from tests.engine.engines import SAMPLED, Answer, answers_of, ask, running


@dataclass(frozen=True)
class Coefficients:
    """Coefficients of which nobody checked anything."""

    cores: np.ndarray | Exception
    residual: Residuals = field(default_factory=dict)
    digest = digest_of(b"poison")
    rank = 4

    def flat_cores(self) -> np.ndarray:
        if isinstance(self.cores, Exception):
            raise self.cores
        return self.cores


class PoisonousBias(dict):
    """Can't be read when the sampler asks for it."""

    def items(self):
        raise LookupError("poisonous bias")


def _neighbours(world):
    return [
        ask("base", 5, max_tokens=9),
        ask("task", 6, max_tokens=9, task=world.tasks[0].resolved),
        ask("sampled", 7, max_tokens=9, task=world.tasks[1].resolved, sampling=SAMPLED),
    ]


def _huge(world):
    return np.full(world.basis.spec.n_core_numbers, 3e38, dtype=np.float32)


def _huge_residual(world):
    site = world.basis.spec.sites[0]
    factors = Residual(np.full((1, site.d_in), 3e38, np.float32), np.full((site.d_out, 1), 3e38, np.float32))
    return Coefficients(0 * _huge(world), {site.name: factors})


def _raise_at_a_token(event):
    if event.finish is None:
        raise KeyError("poisonous sink")


POISONS = {
    "cores that can't be read": (OSError, lambda _: {"task": ResolvedTask("p", Coefficients(OSError("no disk")))}),
    "cores of a wrong length": (ValueError, lambda _: {"task": ResolvedTask("p", Coefficients(np.ones(1, "f4")))}),
    "a residual that overflows": (NonFiniteOutput, lambda w: {"task": ResolvedTask("p", _huge_residual(w))}),
    "cores that overflow": (NonFiniteOutput, lambda w: {"task": ResolvedTask("p", Coefficients(_huge(w)))}),
    "overflow, sampled": (
        NonFiniteOutput,
        lambda w: {"task": ResolvedTask("p", Coefficients(_huge(w))), "sampling": SAMPLED},
    ),
    "a sampler that raises": (
        LookupError,
        lambda _: {"sampling": SamplingParams(temperature=0.0, logit_bias=PoisonousBias({1: 1.0}))},
    ),
    "a sink that raises": (KeyError, lambda _: {"answer": Answer(on_event=_raise_at_a_token)}),
}


@pytest.mark.parametrize("kind", POISONS)
@pytest.mark.parametrize("n_prompt", [1, 30])
def test_poison_harms_its_own_request_only(world, kind, n_prompt):
    kind_of_error, poison = POISONS[kind]
    alone = answers_of(world.engine(), _neighbours(world))
    parts = world.engine()
    before, after = _neighbours(world)[:2], _neighbours(world)[2:]
    bad, bad_answer = ask("bad", n_prompt, max_tokens=9, **poison(world))
    parts.engine.submit([*(request for request, _ in before), bad, *(request for request, _ in after)])
    with running(parts) as engine:
        ending = bad_answer.wait()
        for _, answer in before + after:
            assert answer.wait().finish is FinishReason.LENGTH
        assert engine.is_alive
        assert isinstance(ending.error, kind_of_error)
        again = _neighbours(world)  # in the blocks and slots that the poison has left
        engine.submit([request for request, _ in again])
        for _, answer in again:
            answer.wait()
    assert [answer.token_ids for _, answer in before + after] == alone
    assert [answer.token_ids for _, answer in again] == alone
    if kind != "a sink that raises":  # that one keeps the token whose news it refused
        assert bad_answer.token_ids == []
    assert [event.finish for event in bad_answer.events if event.finish] == [FinishReason.ERROR]
    parts.check_all_is_free()


def test_a_sink_that_raises_at_every_event_ends_no_thread(world):
    def raise_always(event):
        raise RuntimeError("deaf")

    parts = world.engine()
    deaf, _ = ask("deaf", answer=raise_always)
    good, answer = ask("good", max_tokens=4)
    parts.engine.submit([deaf, good])
    with running(parts) as engine:
        assert answer.wait().finish is FinishReason.LENGTH
        assert engine.is_alive
    assert parts.count("vllm:request_success_total") == 2
    parts.check_all_is_free()


def test_a_row_of_minus_infinity_beside_numbers_is_no_poison():
    logits = torch.zeros(5, 7)
    logits[0, :6] = -torch.inf
    logits[1] = -torch.inf
    logits[2, 3] = torch.nan
    logits[3, 3] = torch.inf
    rows = [SampleRow(SamplingParams(temperature=0.0), ())] * 5
    found = sample_isolated(logits, rows, logits.argmax(dim=-1))
    assert found[0].token_id == 6
    assert [isinstance(result, NonFiniteOutput) for result in found] == [False, True, True, True, False]


class FlakyRunner(Runner):
    """Each step that holds a "bad" sequence fails as a whole."""

    def execute(self, plan):
        if any(run.sequence.request_id.startswith("bad") for run in plan.runs):
            raise RuntimeError("out of luck")
        return super().execute(plan)


def test_steps_that_fail_now_and_then_do_not_end_the_engine(world):
    parts = world.engine(runner_type=FlakyRunner)
    with running(parts) as engine:
        for i in range(12):
            bad, bad_answer = ask(f"bad-{i}")
            good, answer = ask(f"good-{i}", max_tokens=1)
            for request, its_answer in ((bad, bad_answer), (good, answer)):
                engine.submit([request])
                its_answer.wait()
        assert engine.is_alive
    parts.check_all_is_free()


def test_five_failed_steps_in_a_row_end_the_engine_and_answer_everybody(world):
    parts = world.engine(runner_type=FlakyRunner, max_running=1)
    asked = [ask(f"bad-{i}") for i in range(7)]
    parts.engine.submit([request for request, _ in asked])
    with running(parts) as engine:
        errors = [type(answer.wait().error) for _, answer in asked]
        deadline_s = time.monotonic() + 10
        while engine.is_alive and time.monotonic() < deadline_s:
            time.sleep(0.01)
        assert not engine.is_alive
    assert errors == [RuntimeError] * 5 + [EngineStopped] * 2
    for _, answer in asked:
        answer.check()
    parts.check_all_is_free()
