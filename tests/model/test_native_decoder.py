"""The compiled step against transformers in float32 on the same, bfloat16-rounded weights."""

import copy

import pytest
import torch

from onebasis.model.factors import Basis, SiteFactors
from onebasis.model.native_decoder import why_not
from tests.engine.builders import make_request
from tests.model.families import NATIVE_FAMILIES, logits_by_transformers, prompt, rounded_base, tiny_base
from tests.model.stepping import Stepper
from tests.model.tasks import merged_copy, random_basis, random_task
from tests.model.test_families import LENGTHS, bare_arrivals
from tests.native import native_library


@pytest.fixture(scope="module")
def library():
    return native_library()


def rounded_basis(base, folder, **options):
    """A random basis whose factors are bfloat16, as a server in that type holds it."""
    basis = random_basis(base, folder, **options)
    factors = {name: SiteFactors(f.v.bfloat16(), f.u.bfloat16()) for name, f in basis.factors.items()}
    return Basis(basis.spec, factors)


def mixed_arrivals(tasks):
    """Requests of every task and of the base, in turns."""
    return [
        (
            at_step,
            make_request(f"request-{i}", prompt(n_prompt, seed=i), max_tokens=n_output, task=tasks[i % len(tasks)]),
        )
        for i, (at_step, n_prompt, n_output) in enumerate(LENGTHS)
    ]


def rms(difference):
    return float(difference.pow(2).mean().sqrt())


def assert_as_exact_as_bfloat16(trace, rounded, exact):
    """No further from float32 than transformers' own pass in bfloat16 is."""
    wanted = logits_by_transformers(exact, trace.token_ids)
    theirs = rms(logits_by_transformers(rounded, trace.token_ids).float() - wanted)
    ours = rms(trace.logits - wanted)
    assert ours < theirs, f"rms error {ours}, transformers in bfloat16 has {theirs}"
    assert theirs < 0.1 * rms(wanted), "the reference itself must mean something"


def assert_each_follows_its_own(traces, models):
    """The models are those of `mixed_arrivals`' tasks, in float32 and in their turns."""
    for i, trace in enumerate(traces.values()):
        model = models[i % len(models)]
        assert_as_exact_as_bfloat16(trace, copy.deepcopy(model).bfloat16(), model)


def assert_the_same_bits_alone(base, basis, arrivals, **options):
    """What each request gets among the others is what it gets alone; options: of the steppers."""
    together = Stepper(copy.deepcopy(base), basis, **options).run(arrivals)
    alone = Stepper(base, basis, **options)
    for _, request in arrivals:
        (trace,) = alone.run([(0, request)]).values()
        assert trace.answer == together[request.request_id].answer
        assert torch.equal(trace.logits, together[request.request_id].logits)


@pytest.mark.parametrize("family", NATIVE_FAMILIES)
def test_bare_sequences_are_as_exact_as_transformers_in_bfloat16(family, library):
    base = rounded_base(family)
    rounded = copy.deepcopy(base.model)
    stepper = Stepper(base, library=library)
    traces = stepper.run(bare_arrivals())
    assert stepper.n_mixed_steps > 5
    for trace in traces.values():
        assert_as_exact_as_bfloat16(trace, rounded, copy.deepcopy(rounded).float())


@pytest.mark.parametrize("k", [4, 5])
@pytest.mark.parametrize("family", NATIVE_FAMILIES)
def test_every_sequence_of_a_mixed_batch_follows_its_own_merged_model(family, k, library, tmp_path):
    base = rounded_base(family)
    rounded = copy.deepcopy(base.model)
    basis = rounded_basis(base, tmp_path, k=k)
    tasks = [random_task(basis.spec, seed) for seed in range(3)]
    exact = [merged_copy(copy.deepcopy(rounded).float(), basis, task) for task in tasks]
    exact.append(copy.deepcopy(rounded).float())
    traces = Stepper(base, basis, library=library).run(mixed_arrivals([*(task.resolved for task in tasks), None]))
    assert_each_follows_its_own(traces, exact)
    first = traces["request-0"]
    assert rms(first.logits - logits_by_transformers(exact[-1], first.token_ids)) > 0.3, "the task must matter"


@pytest.mark.parametrize("family", NATIVE_FAMILIES)
def test_a_sequence_has_the_same_bits_alone_and_among_others(family, library, tmp_path):
    base = rounded_base(family)
    basis = rounded_basis(base, tmp_path)
    arrivals = mixed_arrivals([random_task(basis.spec, 1).resolved, None, random_task(basis.spec, 2).resolved])
    assert_the_same_bits_alone(base, basis, arrivals, library=library)


def test_without_a_task_a_basis_changes_no_bit(library, tmp_path):
    without_basis = Stepper(rounded_base("llama"), library=library).run(bare_arrivals())
    base = rounded_base("llama")
    with_basis = Stepper(base, rounded_basis(base, tmp_path), library=library).run(bare_arrivals())
    for request_id, trace in without_basis.items():
        assert torch.equal(with_basis[request_id].logits, trace.logits)


def test_what_others_left_in_a_block_does_no_harm(library, tmp_path):
    base = rounded_base("llama")
    basis = rounded_basis(base, tmp_path)
    poison = random_task(basis.spec, 1, scale=1e30).resolved
    stepper = Stepper(base, basis, n_blocks=4, library=library)
    clean = stepper.run([(0, make_request("clean", prompt(9, seed=1), max_tokens=5))])["clean"]
    spoilt = stepper.run([(0, make_request("poison", prompt(21, seed=2), max_tokens=40, task=poison))])["poison"]
    assert not spoilt.logits.isfinite().all(), "there must be something to be harmed by"
    again = stepper.run([(0, make_request("again", prompt(9, seed=1), max_tokens=5))])["again"]
    assert torch.equal(again.logits, clean.logits)


def test_a_basis_may_leave_sites_out(library, tmp_path):
    base = rounded_base("llama")
    exact = copy.deepcopy(base.model).float()
    whole = rounded_basis(base, tmp_path)
    kept = {name: factors for name, factors in whole.factors.items() if name.endswith(("k_proj", "up_proj"))}
    task = random_task(whole.spec, 1)
    merged = merged_copy(exact, Basis(whole.spec, kept), task)
    arrivals = [(0, make_request("r", prompt(9, seed=1), max_tokens=5, task=task.resolved))]
    trace = Stepper(base, Basis(whole.spec, kept), library=library).run(arrivals)["r"]
    assert_as_exact_as_bfloat16(trace, copy.deepcopy(merged).bfloat16(), merged)


@pytest.mark.parametrize(
    ("base", "block_size", "reason"),
    [
        (tiny_base("llama"), 16, "dtype is torch.float32"),
        (rounded_base("gemma2"), 16, "Gemma2ForCausalLM is not one of"),
        (rounded_base("llama"), 8, "block_size is 8"),
    ],
)
def test_says_why_a_model_can_not_run(base, block_size, reason):
    assert reason in (why_not(base, block_size) or "")


@pytest.mark.parametrize("n_threads", [1, 3, 7])
def test_the_number_of_threads_changes_no_bit(n_threads, library, tmp_path):
    base = rounded_base("llama")
    basis = rounded_basis(base, tmp_path)
    arrivals = mixed_arrivals([random_task(basis.spec, 1).resolved, None])
    wanted = Stepper(copy.deepcopy(base), basis, library=library, n_threads=2).run(arrivals)
    found = Stepper(base, basis, library=library, n_threads=n_threads).run(arrivals)
    for request_id, trace in wanted.items():
        assert torch.equal(found[request_id].logits, trace.logits)


def test_angles_that_depend_on_the_length_of_a_text_are_left_to_torch():
    base = rounded_base("llama")
    base.model.model.rotary_emb.rope_type = "dynamic"
    assert "rotary embedding is dynamic" in (why_not(base, 16) or "")
