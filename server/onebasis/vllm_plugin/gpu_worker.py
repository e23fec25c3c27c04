"""Our worker on a GPU. Only vLLM imports this, by name, in a worker's process."""

from vllm.v1.worker.gpu_worker import Worker

from onebasis.vllm_plugin.worker import BasisWorker


class BasisGpuWorker(BasisWorker, Worker):  # type: ignore[misc]
    """vLLM's GPU worker with a basis."""
