"""Every name inside vLLM that this plugin and the engine over it touch. A test fails when the code uses one that is not
here, another when an installed vLLM has not what is here; a server does not start then."""

import inspect
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module
from typing import Final


@dataclass(frozen=True, slots=True)
class Name:
    """Something of vLLM's.

    path: module and attributes, "package.module:Class.method".
    parameters: of a function that we call or override, those we rely on, in order from the first.
    fields: annotations of a class that we read.
    """

    path: str
    why: str
    parameters: tuple[str, ...] = ()
    fields: tuple[str, ...] = ()


USED: Final = (
    Name("vllm.platforms:current_platform", "which of our two workers fits: is_cpu(); device_type"),
    Name("vllm.v1.worker.cpu_worker:CPUWorker", "ours extends it on a CPU"),
    Name("vllm.v1.worker.gpu_worker:Worker", "ours extends it on a GPU"),
    Name("vllm.v1.worker.gpu_worker:Worker.load_model", "the basis goes in after the weights", ("self",)),
    Name("vllm.v1.worker.gpu_worker:Worker.execute_model", "begins a step", ("self", "scheduler_output")),
    Name(
        "vllm.v1.worker.gpu_worker:Worker.sample_tokens",
        "ends it; on a CPU ours goes around it, with the runner's input_batch.generators and discard_request_mask",
        ("self", "grammar_output"),
    ),
    Name(
        "vllm.v1.worker.gpu_model_runner:GPUModelRunner._prepare_inputs",
        "from here on the order of a step's requests stands",
        ("self", "scheduler_output", "num_scheduled_tokens"),
    ),
    Name(
        "vllm.v1.worker.gpu.model_runner:GPUModelRunner.prepare_inputs",
        "the same in the second model runner",
        ("self", "scheduler_output"),
    ),
    Name("vllm.v1.worker.gpu.input_batch:InputBatch", "what it returns", fields=("req_ids", "num_scheduled_tokens")),
    Name(
        "vllm.v1.core.sched.output:SchedulerOutput",
        "which requests begin and end",
        fields=("scheduled_new_reqs", "finished_req_ids"),
    ),
    Name("vllm.v1.core.sched.output:NewRequestData", "a request's task", fields=("req_id", "sampling_params")),
    Name("vllm.v1.worker.gpu_input_batch:InputBatch.req_ids", "the order of a step's requests, in the first runner"),
    Name("vllm.v1.worker.gpu_model_runner:GPUModelRunner.get_model", "the model that is loaded", ("self",)),
    Name("vllm.v1.worker.gpu.model_runner:GPUModelRunner.get_model", "the same in the second", ("self",)),
    Name(
        "vllm.config:VllmConfig",
        "what the worker is told",
        fields=(
            "additional_config",
            "cache_config",
            "compilation_config",
            "lora_config",
            "model_config",
            "parallel_config",
            "scheduler_config",
            "speculative_config",
        ),
    ),
    Name("vllm.config:ModelConfig", "of the factors", fields=("dtype",)),
    Name("vllm.config:ParallelConfig", "what is refused", fields=("enable_dbo", "prefill_context_parallel_size")),
    Name("vllm.config:CacheConfig", "what is refused", fields=("kv_sharing_fast_prefill",)),
    Name(
        "vllm.config:SchedulerConfig",
        "tokens of the largest step, and what is refused",
        fields=("max_num_batched_tokens", "runner_type"),
    ),
    Name(
        "vllm.model_executor.models.interfaces:SupportsQuant",
        "which sites a fused layer holds",
        fields=("packed_modules_mapping",),
    ),
    Name(
        "vllm.model_executor.layers.linear:LinearBase",
        "the layers that sites may be in; also quant_method, output_partition_sizes and input_size_per_partition, "
        "which only an instance has",
    ),
    Name(
        "vllm.model_executor.layers.linear:LinearMethodBase.apply",
        "what multiplies with a layer's weight; ours goes around it",
        ("self", "layer", "x", "bias"),
    ),
    Name(
        "vllm.model_executor.layers.linear:ReplicatedLinear.weight_loader",
        "a layer that every rank has whole",
        ("self", "param", "loaded_weight"),
    ),
    Name(
        "vllm.model_executor.layers.linear:ColumnParallelLinear.weight_loader",
        "cuts U as it cuts the weight",
        ("self", "param", "loaded_weight"),
    ),
    Name(
        "vllm.model_executor.layers.linear:MergedColumnParallelLinear.weight_loader",
        "the same for gate_up_proj",
        ("self", "param", "loaded_weight", "loaded_shard_id"),
    ),
    Name(
        "vllm.model_executor.layers.linear:QKVParallelLinear.weight_loader",
        "the same for qkv_proj, whose shards are q, k and v",
        ("self", "param", "loaded_weight", "loaded_shard_id"),
    ),
    Name(
        "vllm.model_executor.layers.linear:RowParallelLinear.weight_loader",
        "cuts V as it cuts the weight",
        ("self", "param", "loaded_weight"),
    ),
    Name("vllm.forward_context:ForwardContext", "finds our layers by name", fields=("no_compile_layers",)),
    Name("vllm.forward_context:get_forward_context", "of the running step"),
    Name(
        "vllm.config.compilation:CompilationConfig",
        "where they are put, and the largest captured step",
        fields=("static_forward_context", "max_cudagraph_capture_size"),
    ),
    Name("vllm.model_executor.models.utils:PPMissingLayer", "stands where another pipeline rank has the layer"),
    Name("vllm.sampling_params:SamplingParams", "a request's task is in its extra_args", fields=("extra_args",)),
    Name("vllm.inputs.llm:TokensPrompt", "cache_salt keeps the tasks' cached prefixes apart"),
    Name(
        "vllm.v1.engine.async_llm:AsyncLLM.collective_rpc",
        "copies a task's cores into the workers",
        ("self", "method", "timeout", "args"),
    ),
    Name(
        "vllm.engine.arg_utils:EngineArgs",
        "how the worker and its options get there",
        fields=("worker_cls", "additional_config"),
    ),
    Name("vllm.engine.arg_utils:AsyncEngineArgs", "the same, for the engine that `serve` starts"),
    Name("vllm.v1.engine.async_llm:AsyncLLM", "that engine"),
    Name(
        "vllm.v1.engine.async_llm:AsyncLLM.from_engine_args",
        "starts it, with our logger of its steps",
        ("engine_args", "start_engine_loop", "usage_context", "stat_loggers"),
    ),
    Name(
        "vllm.v1.engine.async_llm:AsyncLLM.generate",
        "answers a request",
        ("self", "prompt", "sampling_params", "request_id"),
    ),
    Name("vllm.v1.engine.async_llm:AsyncLLM.shutdown", "ends it", ("self", "timeout")),
    Name("vllm.v1.engine.async_llm:AsyncLLM.errored", "whether one of its processes has ended"),
    Name("vllm.v1.engine.exceptions:EngineDeadError", "what requests end with then"),
    Name("vllm.config:CacheConfig", "what the KV cache has come to", fields=("num_gpu_blocks", "block_size")),
    Name("vllm.config:ModelConfig", "how long requests may be", fields=("max_model_len",)),
    Name("vllm.inputs:tokens_input", "a prompt of tokens", ("prompt_token_ids",)),
    Name("vllm:SamplingParams", "how tokens are chosen"),
    Name("vllm.sampling_params:RequestOutputKind", "new tokens only"),
    Name("vllm.sampling_params:StructuredOutputsParams", "a grammar", fields=("grammar",)),
    Name("vllm.exceptions:VLLMValidationError", "a parameter that vLLM refuses", ("message", "parameter")),
    Name(
        "vllm.outputs:RequestOutput",
        "tokens and log-probabilities",
        ("request_id", "prompt", "prompt_token_ids", "prompt_logprobs", "outputs", "finished", "metrics"),
    ),
    Name("vllm.v1.metrics.loggers:StatLoggerBase", "ours extends it"),
    Name(
        "vllm.v1.metrics.loggers:StatLoggerBase.record",
        "hears of every step",
        ("self", "scheduler_stats", "iteration_stats", "mm_cache_stats", "engine_idx"),
    ),
    Name(
        "vllm.v1.metrics.stats:SchedulerStats",
        "a step",
        fields=("iteration_details", "prefix_cache_stats", "kv_cache_usage"),
    ),
    Name(
        "vllm.v1.metrics.stats:SchedulerIterationDetails",
        "its tokens and time",
        fields=("num_ctx_tokens", "num_generation_tokens", "elapsed_ms"),
    ),
    Name("vllm.v1.metrics.stats:RequestStateStats", "when a request began to run", fields=("scheduled_ts",)),
)


def missing_names(names: Iterable[Name] = USED) -> list[str]:
    """What the installed vLLM has not, or has otherwise; empty when all is as it was. Imports vLLM."""
    return [problem for name in names if (problem := _problem(name)) is not None]


def _problem(name: Name) -> str | None:
    module, _, attributes = name.path.partition(":")
    try:
        found: object = import_module(module)
        for attribute in attributes.split("."):
            found = getattr(found, attribute)
    except (ImportError, AttributeError):
        return name.path
    if name.parameters:
        parameters = tuple(inspect.signature(found).parameters)[: len(name.parameters)]  # type: ignore[arg-type]
        if parameters != name.parameters:
            return f"{name.path}({', '.join(name.parameters)}), which has {', '.join(parameters)}"
    fields = getattr(found, "__annotations__", {})
    lacking = [field for field in name.fields if field not in fields]
    return f"{name.path}.{lacking[0]}" if lacking else None
