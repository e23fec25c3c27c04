"""How a task is trained."""

import math
from dataclasses import asdict, dataclass
from typing import Any

from onebasis.coefficients.format import FORMS
from onebasis.core.errors import SetupError


@dataclass(frozen=True, slots=True)
class FitRecipe:
    """How to train. Learning rate: linear warm-up over `warmup_steps`, then cosine to a tenth.

    With `evaluate_every` the loss on validation examples is taken every so many steps and at the end, and the
    numbers of the best step are the result. `patience` ends the training after so many evaluations in a row without
    a new best.

    Raises:
        SetupError: a form that no reader knows, or a number with which nothing is learnt.
    """

    form: str = "core"
    n_steps: int = 200
    batch_size: int = 8
    learning_rate: float = 1e-2
    warmup_steps: int = 10
    clip_norm: float = 1.0
    seed: int = 0
    evaluate_every: int | None = None
    patience: int | None = None

    def __post_init__(self) -> None:
        if self.form not in FORMS:
            raise SetupError(f"form {self.form!r}: needs one of {', '.join(FORMS)}")
        if not (0 < self.learning_rate < math.inf):
            raise SetupError(f"learning rate {self.learning_rate}: needs a finite number above 0")
        if self.n_steps < 1 or self.batch_size < 1:
            raise SetupError(f"{self.n_steps} steps of {self.batch_size} examples: needs at least one of each")
        if self.evaluate_every is not None and self.evaluate_every < 1:
            raise SetupError(f"an evaluation every {self.evaluate_every} steps: needs at least 1")
        if self.patience is not None and (self.patience < 1 or self.evaluate_every is None):
            raise SetupError(f"patience of {self.patience} evaluations: needs at least 1, and evaluations to count")

    def rate_factor(self, step: int) -> float:
        """The learning rate of step `step`, counted from 0, as a share of `learning_rate`."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        progress = (step - self.warmup_steps) / max(1, self.n_steps - self.warmup_steps)
        return 0.1 + 0.45 * (1 + math.cos(math.pi * progress))

    def as_provenance(self) -> dict[str, Any]:
        return asdict(self)
