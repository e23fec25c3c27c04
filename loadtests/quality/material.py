"""What the sweep reads: a fleet's adapters, its tasks' data, and the bases that are there by now."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import torch

from loadtests.common.errors import LoadTestError
from onebasis.coefficients.basis_file import BasisSpec, read_basis_spec
from onebasis.fitting.data import TokenExample, read_jsonl, tokenize
from onebasis.fitting.fidelity import Updates
from onebasis.fitting.peft.adapter import PeftAdapter, open_adapter
from onebasis.fitting.peft.sites import site_shapes
from onebasis.model.factors import Basis, load_basis
from onebasis.model.loader import LoadedBase

_SECOND = "__s2"
_MAX_EXAMPLE_TOKENS = 256
_BASIS_FILES = "*.basis.safetensors"


@dataclass(frozen=True)
class Fleet:
    """Adapters in folders named by their task, `<task>__s2` for a second one of it; data in `<task>.{train,val}.jsonl`.

    held_out: tasks that no fleet basis may have seen.
    """

    base: LoadedBase
    adapters: Path
    data: Path
    held_out: tuple[str, ...]

    def has_adapter(self, task: str, seed: int) -> bool:
        return seed in (0, 1) and self._folder(task, seed).is_dir()

    def adapter(self, task: str, seed: int) -> PeftAdapter:
        """Raises LoadTestError when the fleet has none of this seed."""
        if not self.has_adapter(task, seed):
            raise LoadTestError(f"{self._folder(task, seed)}: the fleet has no adapter of seed {seed} for {task}")
        return open_adapter(self._folder(task, seed), site_shapes(self.base.model))

    def updates(self, task: str, seed: int) -> Updates:
        return updates_of(self.adapter(task, seed))

    @cached_property
    def in_basis(self) -> tuple[PeftAdapter, ...]:
        """The adapters of all tasks that are not held out."""
        folders = [path for path in sorted(self.adapters.iterdir()) if path.is_dir()]
        kept = [path for path in folders if task_of(path.name) not in self.held_out]
        return tuple(open_adapter(path, site_shapes(self.base.model)) for path in kept)

    def train(self, task: str) -> Sequence[TokenExample]:
        return self._examples(task, "train")

    def validation(self, task: str) -> Sequence[TokenExample]:
        return self._examples(task, "val")

    def _examples(self, task: str, part: str) -> Sequence[TokenExample]:
        path = self.data / f"{task}.{part}.jsonl"
        return tokenize(read_jsonl(path), self.base.tokenizer, max_tokens=_MAX_EXAMPLE_TOKENS)

    def _folder(self, task: str, seed: int) -> Path:
        return self.adapters / (task + (_SECOND if seed else ""))


class Bases:
    """The basis files of some folders, by kind and k; files that come while the sweep runs are found."""

    def __init__(self, folders: Sequence[Path], dtype: torch.dtype, held_out: Sequence[str]) -> None:
        self._folders = tuple(folders)
        self._held_out = frozenset(held_out)
        self._load = lru_cache(maxsize=2)(lambda path: load_basis(path, dtype=dtype, device=torch.device("cpu")))

    def find(self, kind: str, k: int) -> Path | None:
        """The file of a basis of this kind whose largest k is this one.

        Raises:
            LoadTestError: it was made from an adapter of a task that is to be held out.
        """
        for path in sorted(path for folder in self._folders for path in folder.glob(_BASIS_FILES)):
            spec = read_basis_spec(path)
            if (spec.kind, spec.largest_k) == (kind, k):
                seen = tasks_in(spec) & self._held_out
                if seen:
                    raise LoadTestError(f"{path}: made from held-out {', '.join(sorted(seen))}; build it without them")
                return path
        return None

    def load(self, kind: str, k: int) -> Basis:
        """Raises LoadTestError when there is none."""
        path = self.find(kind, k)
        if path is None:
            raise LoadTestError(f"no {kind} basis of k={k} in {', '.join(map(str, self._folders))}; build it first")
        return self._load(path)


def tasks_in(spec: BasisSpec) -> set[str]:
    """The tasks whose adapters a basis was made from."""
    return {task_of(adapter["name"]) for adapter in spec.report.get("adapters", ())}


def task_of(adapter: str) -> str:
    """The task of an adapter by its name."""
    return adapter.removesuffix(_SECOND)


def updates_of(adapter: PeftAdapter) -> Updates:
    """All its updates, read into memory."""
    return {site: adapter.update(site) for site in adapter.sites}
