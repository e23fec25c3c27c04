"""A training run on disk, to go on after an interruption as if there had been none. Safetensors, no pickle."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from onebasis.core.errors import SetupError
from onebasis.fitting.files import write_whole
from onebasis.fitting.training.learner import Evaluation, Learner, LearnerState

_FORMAT: Final = "onebasis.checkpoint.1"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A file that holds the state of every learner of a run.

    run: identity of the run: its data, recipe, basis and base weights. A file of another run is refused.
    """

    path: Path
    run: str

    def save(self, learners: Sequence[Learner[Any]]) -> None:
        """Replace the file in one move; what was there stays whole until then. Raises OSError."""
        states = [learner.state() for learner in learners]
        tensors = {f"{i}.{name}": tensor for i, state in enumerate(states) for name, tensor in state.tensors.items()}
        progress = [{"losses": state.losses, "evaluations": state.evaluations} for state in states]
        metadata = {"format": _FORMAT, "run": self.run, "learners": json.dumps(progress)}
        write_whole(self.path, save(tensors, metadata))

    def restore(self, learners: Sequence[Learner[Any]]) -> None:
        """Bring the learners to where the file left them.

        Raises:
            SetupError: no such file, not a checkpoint, or one of another run.
        """
        try:
            with safe_open(self.path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  no mapping
        except (OSError, SafetensorError) as error:
            raise SetupError(f"checkpoint {self.path}: {error}; run without --resume, to a new --checkpoint") from error
        if metadata.get("format") != _FORMAT:
            raise SetupError(f"checkpoint {self.path}: of another version; run without --resume, to a new --checkpoint")
        if metadata.get("run") != self.run:
            raise SetupError(
                f"checkpoint {self.path}: of a run with other data, options, basis or base; "
                f"give the same again, or run without --resume, to a new --checkpoint"
            )
        progress = json.loads(metadata["learners"])
        for i, (learner, so_far) in enumerate(zip(learners, progress, strict=True)):
            own = {name.partition(".")[2]: tensor for name, tensor in tensors.items() if name.startswith(f"{i}.")}
            evaluations = tuple(Evaluation(*evaluation) for evaluation in so_far["evaluations"])
            learner.restore(LearnerState(tuple(so_far["losses"]), evaluations, own))
