"""Counters and histograms under the names of vLLM, which gateways and stock dashboards ask for."""

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from onebasis.core.request import FinishReason
from onebasis.telemetry import buckets
from onebasis.telemetry.reports import CacheConfig, RequestReport, StepReport
from onebasis.telemetry.token_gaps import TokenGaps

_COMMON = ("model_name", "engine")


class VllmFamilies:
    """observe_* on the engine thread; prometheus_client locks each value against the render."""

    def __init__(self, registry: CollectorRegistry, *, model_name: str, cache: CacheConfig, max_model_len: int) -> None:
        self._registry = registry
        self._common = (model_name, "0")
        self._make_counters()
        self._make_latencies()
        self._make_sizes(max_model_len)
        self._state_cache(cache)

    def observe_step(self, report: StepReport) -> None:
        self._iteration_tokens.observe(report.n_tokens)
        if report.n_preempted:
            self._preemptions.inc(report.n_preempted)
        if report.n_prefix_queries:
            for queries, hits in self._prefix_lookups:
                queries.inc(report.n_prefix_queries)
                hits.inc(report.n_prefix_hits)

    def observe_first_token(self, seconds: float) -> None:
        self._first_token_s.observe(seconds)

    def observe_token_gap(self, seconds: float) -> None:
        self._token_gaps.observe(seconds)

    def observe_load(self, seconds: float) -> None:
        self._load_s["load"].observe(seconds)

    def observe_activate(self, seconds: float) -> None:
        self._load_s["activate"].observe(seconds)

    def observe_finished(self, report: RequestReport) -> None:
        self._success[report.finish].inc()
        self._prompt_total.inc(report.n_prompt)
        self._prompt_cached.inc(report.n_cached)
        self._generation_total.inc(report.n_output)
        self._prompt_tokens.observe(report.n_prompt)
        self._generation_tokens.observe(report.n_output)
        self._max_generation_tokens.observe(report.n_output)
        self._params_n.observe(report.n)
        self._params_max_tokens.observe(report.max_tokens)
        self._observe_phases(report)

    def _observe_phases(self, report: RequestReport) -> None:
        """A phase that the request did not reach is not observed, rather than as 0."""
        self._e2e_s.observe(report.finished_s - report.arrived_s)
        if report.scheduled_s is None:
            return
        self._queue_s.observe(report.scheduled_s - report.arrived_s)
        self._inference_s.observe(report.finished_s - report.scheduled_s)
        if report.first_token_s is None:
            return
        self._prefill_s.observe(report.first_token_s - report.scheduled_s)
        decode_s = report.finished_s - report.first_token_s
        self._decode_s.observe(decode_s)
        if report.n_output > 1:
            self._per_output_token_s.observe(decode_s / (report.n_output - 1))

    def _make_counters(self) -> None:
        self._prompt_total = self._counter("prompt_tokens", "Prompt tokens of ended requests.")
        self._generation_total = self._counter("generation_tokens", "Generated tokens of ended requests.")
        self._preemptions = self._counter("num_preemptions", "Requests put back to waiting for want of blocks.")
        success = self._counter_by("request_success", "Ended requests.", "finished_reason")
        self._success = {reason: success.labels(*self._common, reason.value) for reason in FinishReason}
        self._prompt_cached = self._counter(
            "prompt_tokens_cached", "Prompt tokens of ended requests that came from the prefix cache."
        )
        self._prefix_lookups = [
            (
                self._counter(f"{prefix}prefix_cache_queries", f"{note}Prompt tokens looked up in the prefix cache."),
                self._counter(f"{prefix}prefix_cache_hits", f"{note}Prompt tokens that the prefix cache had."),
            )
            for prefix, note in (("", ""), ("gpu_", "Old name. "))
        ]

    def _make_latencies(self) -> None:
        first, gap, request = buckets.FIRST_TOKEN_S, buckets.TOKEN_GAP_S, buckets.REQUEST_S
        self._first_token_s = self._histogram("time_to_first_token_seconds", "Arrival to first token.", first)
        self._token_gaps = TokenGaps(dict(zip(_COMMON, self._common, strict=True)), gap)
        self._registry.register(self._token_gaps)
        self._per_output_token_s = self._histogram(
            "request_time_per_output_token_seconds", "Mean time per token after the first, by request.", gap
        )
        self._e2e_s = self._histogram("e2e_request_latency_seconds", "Arrival to end.", request)
        self._queue_s = self._histogram("request_queue_time_seconds", "Arrival to schedule.", request)
        self._prefill_s = self._histogram("request_prefill_time_seconds", "Schedule to first token.", request)
        self._decode_s = self._histogram("request_decode_time_seconds", "First token to end.", request)
        self._inference_s = self._histogram("request_inference_time_seconds", "Schedule to end.", request)
        load = self._histogram_by(
            "lora_adapter_load_seconds",
            "Task made ready: load is a stored upload, activate a copy into the device arena.",
            buckets.TASK_LOAD_S,
            "transition",
        )
        self._load_s = {name: load.labels(*self._common, name) for name in ("load", "activate")}

    def _make_sizes(self, max_model_len: int) -> None:
        tokens = buckets.one_two_five(max_model_len)
        self._prompt_tokens = self._histogram("request_prompt_tokens", "Prompt tokens.", tokens)
        self._generation_tokens = self._histogram("request_generation_tokens", "Generated tokens.", tokens)
        self._max_generation_tokens = self._histogram(
            "request_max_num_generation_tokens", "Generated tokens; each choice of a request counts alone.", tokens
        )
        self._params_max_tokens = self._histogram("request_params_max_tokens", "max_tokens.", tokens)
        self._params_n = self._histogram("request_params_n", "n, once for each choice.", buckets.CHOICES)
        self._iteration_tokens = self._histogram(
            "iteration_tokens_total", "Tokens computed in one step.", buckets.STEP_TOKENS
        )

    def _state_cache(self, cache: CacheConfig) -> None:
        config = {
            "block_size": str(cache.block_size),
            "num_gpu_blocks": str(cache.n_blocks),
            "cache_dtype": cache.dtype,
            "enable_prefix_caching": str(cache.prefix_caching),
        }
        info = Gauge("vllm:cache_config_info", "The KV cache.", [*_COMMON, *config], registry=self._registry)
        info.labels(*self._common, *config.values()).set(1)

    def _counter(self, name: str, text: str) -> Counter:
        return self._counter_by(name, text).labels(*self._common)

    def _counter_by(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"vllm:{name}", text, [*_COMMON, *labels], registry=self._registry)

    def _histogram(self, name: str, text: str, edges: Sequence[float]) -> Histogram:
        return self._histogram_by(name, text, edges).labels(*self._common)

    def _histogram_by(self, name: str, text: str, edges: Sequence[float], *labels: str) -> Histogram:
        return Histogram(f"vllm:{name}", text, [*_COMMON, *labels], buckets=edges, registry=self._registry)
