"""vLLMs that servers share: one takes half a minute to start, so it outlives the server that asked for it."""

import dataclasses
import json
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest

from onebasis.engine.vllm.llm import Llm
from tests.api.tiny_model import TinyModel, save_tiny_model

_N_KEPT: Final = 3  # each takes a gigabyte or two
_MAX_SEQS: Final = 64  # our own queue lets fewer in where a server is to run fewer


class SharedLlms:
    """Starts a vLLM for each set of arguments that servers ask for, and keeps the latest few."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, SharedLlm] = OrderedDict()

    def lend(self, arguments: Mapping[str, Any], *, n_rows: int) -> Llm:
        """Stands in for `Llm(arguments, n_rows=n_rows)`."""
        arguments = dict(arguments) | {"enforce_eager": True, "max_num_seqs": _MAX_SEQS}
        arguments["max_num_batched_tokens"] = max(_MAX_SEQS, arguments["max_num_batched_tokens"])
        key = json.dumps([arguments, n_rows], sort_keys=True)
        kept = self._kept.pop(key, None)
        if kept is None or not kept.is_running:
            self._make_room()
            kept = SharedLlm(arguments, n_rows=n_rows)
        kept.n_users += 1
        self._kept[key] = kept
        return kept

    def close(self) -> None:
        while self._kept:
            self._kept.popitem()[1].end()

    def _make_room(self) -> None:
        unused = [key for key, kept in self._kept.items() if not kept.n_users]
        for key in unused[: max(0, len(self._kept) + 1 - _N_KEPT)]:
            self._kept.pop(key).end()


class SharedLlm(Llm):
    """One that a server's end leaves running."""

    n_users = 0

    def close(self) -> None:
        self.n_users -= 1

    def end(self) -> None:
        super().close()


@contextmanager
def tiny_on_vllm(folder: Path) -> Iterator[TinyModel]:
    """A tiny model whose servers run it on vLLM, and share: its heads are as large as vLLM's smallest on a CPU."""
    shared = SharedLlms()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("onebasis.wiring.vllm.Llm", shared.lend)
        yield dataclasses.replace(save_tiny_model(folder, head_dim=32), settings={"engine": "vllm"})
    shared.close()
