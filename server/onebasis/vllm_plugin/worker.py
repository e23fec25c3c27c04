"""What our workers add to vLLM's: the basis, the table of cores, the rows of every step."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from onebasis.core.errors import InvalidBasis, UnsupportedVllm
from onebasis.core.ids import digest_of_file
from onebasis.kernels.memory import zeros_on_demand
from onebasis.model.factors import Basis, load_basis
from onebasis.vllm_plugin.layers import attach_basis
from onebasis.vllm_plugin.options import ROW_KEY, WorkerOptions
from onebasis.vllm_plugin.stack_room import call_with_room
from onebasis.vllm_plugin.step_rows import StepRows

if TYPE_CHECKING:
    from vllm.v1.core.sched.output import SchedulerOutput


class BasisWorker:
    """Mixed into a worker class of vLLM's, before it: one process of an engine, its part of the model and of the basis.

    Every worker holds the whole table of cores: they are small. Its own thread only; calls from outside come
    between steps.
    """

    vllm_config: Any
    model_runner: Any
    device: torch.device

    def load_model(self, **kwargs: Any) -> None:
        """Load the weights as vLLM does, then put the basis beside them, before anything is compiled.

        Raises:
            UnsupportedVllm: an option of the engine is not served with a basis.
            InvalidBasis: the file is not the one that the engine was started for, or does not fit the model.
        """
        super().load_model(**kwargs)  # type: ignore[misc]
        options = WorkerOptions.of(self.vllm_config.additional_config)
        check_config(self.vllm_config)
        dtype = self.vllm_config.model_config.dtype
        basis = _load(options, dtype)
        self._cores = zeros_on_demand(
            (options.n_slots + 1, basis.spec.n_core_numbers), dtype=torch.float32, device=self.device
        )
        self._step = StepRows(_most_tokens(self.vllm_config), base_row=options.n_slots, device=self.device)
        attach_basis(
            self.model_runner.get_model(),
            basis,
            _views(basis, self._cores),
            self._step,
            self.vllm_config.compilation_config.static_forward_context,
        )
        watch_batches(self.model_runner, self._step)

    def execute_model(self, scheduler_output: "SchedulerOutput") -> Any:
        """One step."""
        begun = [(new.req_id, _row_of(new.sampling_params)) for new in scheduler_output.scheduled_new_reqs]
        self._step.follow(begun, scheduler_output.finished_req_ids)
        return call_with_room(super().execute_model, scheduler_output)  # type: ignore[misc]

    def onebasis_put_task(self, row: int, cores: bytes) -> None:
        """Fill a row of the table that no running request has.

        Args:
            cores: [n_core_numbers] float32, as TaskCoefficients.flat_cores gives them.

        Raises:
            ValueError: there is no such row for tasks, or the size is another. Nothing changed.
        """
        n_slots, n_numbers = self._cores.shape[0] - 1, self._cores.shape[1]
        if not 0 <= row < n_slots or len(cores) != n_numbers * self._cores.itemsize:
            raise ValueError(
                f"needed a row below {n_slots} and {n_numbers} numbers of 4 bytes, found row {row}, {len(cores)} bytes"
            )
        self._cores[row].copy_(torch.frombuffer(bytearray(cores), dtype=torch.float32))


def check_config(config: Any) -> None:
    """Refuse what would give a token another token's task, or none. Names as vLLM's options have them.

    Raises:
        UnsupportedVllm
    """
    parallel, scheduling = config.parallel_config, config.scheduler_config
    refused = {
        "enable_lora": config.lora_config is not None,
        "speculative_config": config.speculative_config is not None,
        "enable_dbo": parallel.enable_dbo,
        "prefill_context_parallel_size": parallel.prefill_context_parallel_size > 1,
        "kv_sharing_fast_prefill": config.cache_config.kv_sharing_fast_prefill,
        "runner_type": scheduling.runner_type != "generate",
    }
    found = [name for name, is_set in refused.items() if is_set]
    if found:
        raise UnsupportedVllm(f"vLLM's option {found[0]} can't be used with a basis; leave it at its default")


def _load(options: WorkerOptions, dtype: torch.dtype) -> Basis:
    path = Path(options.basis)
    found = digest_of_file(path)
    if found != options.digest:
        raise InvalidBasis(f"basis {path} is {found} on this machine, the engine was started for {options.digest}")
    return load_basis(path, dtype=dtype, device=torch.device("cpu"))


def _views(basis: Basis, table: Tensor) -> dict[str, Tensor]:
    """By site name, [n_rows, k_out, k_in] views of the table."""
    views: dict[str, Tensor] = {}
    start = 0
    for site in basis.spec.sites:
        end = start + site.k_out * site.k_in
        views[site.name] = table[:, start:end].view(-1, site.k_out, site.k_in)
        start = end
    return views


def _most_tokens(config: Any) -> int:
    """Tokens of the largest step, padded for a CUDA graph or not."""
    scheduled: int = config.scheduler_config.max_num_batched_tokens
    captured: int | None = config.compilation_config.max_cudagraph_capture_size
    return max(scheduled, captured or 0)


def _row_of(sampling_params: Any) -> int | None:
    extra = None if sampling_params is None else sampling_params.extra_args
    return None if extra is None else extra.get(ROW_KEY)


def watch_batches(runner: Any, step: StepRows) -> None:
    """Have the rows of a step written once its requests are in order.

    Behind that neither of vLLM's two model runners moves them, and both launch or replay the forward pass after it.
    """
    is_first = hasattr(runner, "_prepare_inputs")
    name = "_prepare_inputs" if is_first else "prepare_inputs"
    prepare = getattr(runner, name)

    def prepare_and_note(scheduler_output: "SchedulerOutput", n_tokens: Any, *args: Any, **kwargs: Any) -> Any:
        prepared = prepare(scheduler_output, n_tokens, *args, **kwargs)
        if is_first:
            step.begin(runner.input_batch.req_ids, n_tokens)
        else:
            step.begin(prepared.req_ids, prepared.num_scheduled_tokens)
        return prepared

    setattr(runner, name, prepare_and_note)
