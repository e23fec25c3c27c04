"""What the control side and the workers say to each other, in plain values that travel between processes."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

OPTIONS_KEY: Final = "onebasis"
"""Our entry in vLLM's additional_config, which is also part of the key of its compilation cache."""

ROW_KEY: Final = "onebasis_row"
"""A request's row of the workers' tables, in the extra_args of its sampling parameters."""

PUT_TASK: Final = "onebasis_put_task"
"""The workers' method that takes a row and the bytes of [n_core_numbers] float32."""


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """What every worker is started with.

    basis, digest: path and identity of the basis file; on every machine the same. n_slots: rows for tasks.
    """

    basis: str
    digest: str
    n_slots: int

    def as_dict(self) -> dict[str, object]:
        return asdict(self)

    @classmethod
    def of(cls, additional_config: Mapping[str, Any]) -> "WorkerOptions":
        """As `engine_arguments` put it there."""
        return cls(**additional_config[OPTIONS_KEY])
