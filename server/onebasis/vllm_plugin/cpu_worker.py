"""Our workers on a CPU. Only vLLM imports this, by name, in a worker's process."""

from typing import Any

from vllm.v1.worker.cpu_worker import CPUWorker

from onebasis.vllm_plugin.worker import BasisWorker


class SeededCpuWorker(CPUWorker):  # type: ignore[misc]
    """vLLM's CPU worker, which a seeded request can't bring down.

    Where a step does not reach the end of a prompt, vLLM takes back what it drew from the request's generator, which
    on a CPU fails and ends the worker. Here nothing is drawn from it in such a step.
    """

    model_runner: Any

    def sample_tokens(self, grammar_output: Any) -> Any:
        """The tokens of one step."""
        runner = self.model_runner
        if not hasattr(runner, "discard_request_mask"):  # the second model runner has no such generators
            return super().sample_tokens(grammar_output)
        generators = runner.input_batch.generators
        unfinished = runner.discard_request_mask.np[: runner.input_batch.num_reqs].nonzero()[0].tolist()
        spared = {i: generators.pop(i) for i in unfinished if i in generators}
        try:
            return super().sample_tokens(grammar_output)
        finally:
            generators.update(spared)


class BasisCpuWorker(BasisWorker, SeededCpuWorker):
    """The same with a basis."""
