"""A scheduler alone, without an engine: steps as the loop takes them, and short names of what a plan holds."""

from onebasis.engine.block_pool import BlockPool
from onebasis.engine.scheduler import Scheduler

TOKEN = 7  # whatever is sampled


def make_scheduler(*, n_blocks=100, block_size=4, max_running=4, max_step_tokens=10, max_prefill_tokens=None):
    return Scheduler(
        BlockPool(n_blocks, block_size),
        max_running=max_running,
        max_step_tokens=max_step_tokens,
        max_prefill_tokens=max_prefill_tokens,
    )


def spans(plan):
    return [(run.sequence.request_id, run.start, run.end) for run in plan.runs]


def ids(sequences):
    return [sequence.request_id for sequence in sequences]


def finish_step(scheduler, plan):
    """Commit and sample; sequences that end leave. Their ids."""
    sampling = [run.sequence for run in plan.runs if run.samples]
    scheduler.commit(plan)
    ended = [sequence for sequence in sampling if sequence.append(TOKEN) is not None]
    for sequence in ended:
        scheduler.remove(sequence)
    scheduler.check_integrity()
    return ids(ended)


def step(scheduler):
    plan = scheduler.plan()
    scheduler.check_integrity()
    finish_step(scheduler, plan)
    return plan


def started(scheduler, *sequences):
    """Add sequences and run until each has its first token."""
    for sequence in sequences:
        scheduler.add(sequence)
    while not all(sequence.output_ids for sequence in sequences):
        assert not step(scheduler).preempted
    return scheduler
