"""Our worker on a CPU. Only vLLM imports this, by name, in a worker's process."""

from vllm.v1.worker.cpu_worker import CPUWorker

from onebasis.vllm_plugin.worker import BasisWorker


class BasisCpuWorker(BasisWorker, CPUWorker):  # type: ignore[misc]
    """vLLM's CPU worker with a basis."""
