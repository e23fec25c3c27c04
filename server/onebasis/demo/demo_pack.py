"""The demo pack: one basis and the coefficients of really trained tasks, as they ship with the package."""

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

BASIS_FILE: Final = "smollm2-135m.k16.basis.safetensors"
_COEFFICIENTS_SUFFIX: Final = ".coef.safetensors"

PACK_STEPS: Final[Mapping[str, int]] = MappingProxyType(
    {
        "date_iso": 90,
        "date_us": 90,
        "intent_a": 150,
        "intent_b": 150,
        "review_a": 60,
        "review_b": 60,
        "plural": 120,
        "ing_form": 120,
        "time24": 400,
        "json_kv": 90,
        "extract_email": 120,
        "polite": 60,
        "snake_case": 120,
        "camel_case": 120,
        "num2words": 200,
        "reverse_words": 240,
    }
)
"""The pack's tasks, and for how many steps each was trained."""

UPLOADED_BY_DEMO: Final = "reverse_words"
"""The one task that the demo leaves out at the start and uploads over HTTP."""


@dataclass(frozen=True, slots=True)
class DemoPack:
    """A folder with the pack's files."""

    folder: Path

    @classmethod
    def shipped(cls) -> "DemoPack":
        """The pack inside the installed package."""
        return cls(Path(__file__).parent / "pack")

    @property
    def basis(self) -> Path:
        return self.folder / BASIS_FILE

    def coefficients(self, task: str) -> Path:
        return self.folder / f"{task}{_COEFFICIENTS_SUFFIX}"

    def tasks(self) -> Iterator[str]:
        """The tasks whose files are there, in the pack's order."""
        return (task for task in PACK_STEPS if self.coefficients(task).is_file())

    def unpack(self, folder: Path) -> None:
        """Copy the basis and the tasks to where a deployed server and `onebasis-client reconcile` read them."""
        tasks = folder / "tasks"
        tasks.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(self.basis, folder / "basis.safetensors")
        for task in self.tasks():
            shutil.copy(self.coefficients(task), tasks)
