"""From a plan to tensors."""

from collections.abc import Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from onebasis.coefficients.residual_cache import ResidentResidual
from onebasis.core.ids import BASE_SLOT
from onebasis.engine.scheduler import ScheduledRun, StepPlan
from onebasis.model.batch import DecodeGroup, ForwardBatch, PrefillChunk, ResidualRun


def order_runs(plan: StepPlan) -> list[ScheduledRun]:
    """The plan's runs as the batch has them: single tokens first. Logits come in this order, too.

    First one row for each run that samples, then the rows of prompt positions that runs score.
    """
    return sorted(plan.runs, key=lambda run: run.end - run.start > 1)


def build_batch(
    runs: list[ScheduledRun],
    *,
    block_size: int,
    device: torch.device,
    residuals: Mapping[str, ResidentResidual] = MappingProxyType({}),
) -> ForwardBatch:
    """Lay out runs, ordered by `order_runs`, as one flat batch on `device`.

    Args:
        residuals: by request id, of the sequences whose task has one.
    """
    token_ids: list[int] = []
    positions: list[int] = []
    kv_rows: list[int] = []
    slots: list[int] = []
    sampled_rows: list[int] = []
    scored_rows: list[int] = []
    decodes: list[ScheduledRun] = []
    chunks: list[PrefillChunk] = []
    residual_runs: list[ResidualRun] = []
    for run in runs:
        sequence = run.sequence
        start_row = len(token_ids)
        token_ids += sequence.tokens(run.start, run.end)
        positions += range(run.start, run.end)
        kv_rows += (
            sequence.blocks[position // block_size] * block_size + position % block_size
            for position in range(run.start, run.end)
        )
        slots += [sequence.slot] * (run.end - run.start)
        if run.samples:
            sampled_rows.append(len(token_ids) - 1)
        if sequence.request_id in residuals:
            residual_runs.append(ResidualRun(start_row, len(token_ids), residuals[sequence.request_id]))
        scored_rows += (start_row + position - run.start for position in run.scored)
        if run.end - run.start == 1:
            decodes.append(run)
        else:
            n_blocks = -(-run.end // block_size)
            table = torch.tensor(sequence.blocks[:n_blocks], device=device)
            chunks.append(PrefillChunk(start_row, len(token_ids), table, run.end, sequence.slot))
    has_task = any(slot != BASE_SLOT for slot in slots)
    return ForwardBatch(
        token_ids=torch.tensor(token_ids, device=device),
        positions=torch.tensor(positions, device=device),
        kv_rows=torch.tensor(kv_rows, device=device),
        token_slots=torch.tensor(slots, dtype=torch.int32, device=device) if has_task else None,
        logit_rows=torch.tensor(sampled_rows + scored_rows, dtype=torch.int64, device=device),
        decodes=_decode_group(decodes, block_size, device) if decodes else None,
        chunks=tuple(chunks),
        residuals=tuple(residual_runs),
    )


def _decode_group(runs: list[ScheduledRun], block_size: int, device: torch.device) -> DecodeGroup:
    n_blocks = max(-(-run.end // block_size) for run in runs)
    tables = [run.sequence.blocks[:n_blocks] for run in runs]
    padded: Tensor = torch.tensor([table + [0] * (n_blocks - len(table)) for table in tables], device=device)
    return DecodeGroup(padded, torch.tensor([run.end for run in runs], device=device))
