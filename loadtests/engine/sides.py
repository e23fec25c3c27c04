"""The sides that are compared: one step of each native decoder, bare and with tasks, and one of transformers."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor
from transformers import PreTrainedModel, StaticCache

from loadtests.common.errors import LoadTestError
from loadtests.common.steps import Shape, make_batch, random_tokens
from onebasis.core.ids import BASE_SLOT
from onebasis.engine.runner import StepDecoder
from onebasis.model.batch import ForwardBatch

TRANSFORMERS, NATIVE, INT8 = "transformers", "native", "native int8"
_TOLERANCE = 0.1  # relative error of bfloat16 logits


@dataclass(frozen=True, slots=True)
class Case:
    """A step: n_seqs sequences of n_new tokens each, after n_cached ones."""

    kind: str
    n_seqs: int
    n_cached: int
    n_new: int
    room: int

    @property
    def shape(self) -> Shape:
        return Shape(self.n_seqs, self.n_cached, self.n_new, self.room)


def side_name(decoder: str, n_tasks: int) -> str:
    """Name of a decoder's side with so many distinct tasks."""
    return f"{decoder}, bare" if n_tasks == 0 else f"{decoder}, {n_tasks} task{'s' if n_tasks > 1 else ''}"


def make_sides(
    case: Case,
    decoders: Mapping[str, StepDecoder],
    model: PreTrainedModel,
    *,
    n_tasks: Sequence[int],
    n_vocab: int,
    seed: int,
) -> Mapping[str, Callable[[], object]]:
    """One call each: forward pass and greedy choice over the same tokens and cache.

    Args:
        n_tasks: distinct tasks, in slots from 0 on; each number that the sequences can have is a side.

    Raises:
        LoadTestError: a decoder's and transformers' logits are not those of one model.
    """
    tokens = random_tokens(case.n_seqs, case.n_cached + case.n_new, n_vocab=n_vocab, seed=seed)
    cached, new = tokens[:, : case.n_cached], tokens[:, case.n_cached :]
    theirs = _TransformersStep(model, cached, new, room=case.room)
    sides: dict[str, Callable[[], object]] = {TRANSFORMERS: lambda: theirs.logits().argmax(-1).tolist()}
    for name, decoder in decoders.items():
        bare_slots = [BASE_SLOT] * case.n_seqs
        if case.n_cached:
            decoder.forward(make_batch(Shape(case.n_seqs, 0, case.n_cached, case.room), cached, bare_slots))
        sides[side_name(name, 0)] = _step(decoder, make_batch(case.shape, new, bare_slots))
        for n in sorted({min(n, case.n_seqs) for n in n_tasks}):
            slots = [i % n for i in range(case.n_seqs)]
            sides[side_name(name, n)] = _step(decoder, make_batch(case.shape, new, slots))
        _check(decoder.forward(make_batch(case.shape, new, bare_slots)).clone(), theirs.logits())
    return sides


def _step(decoder: StepDecoder, batch: ForwardBatch) -> Callable[[], object]:
    return lambda: decoder.argmax(decoder.forward(batch)).tolist()


class _TransformersStep:
    """The model's own forward pass over a static cache, which is put back to its `cached` tokens before each call."""

    def __init__(self, model: PreTrainedModel, cached: Tensor, new: Tensor, *, room: int) -> None:
        self._model = model
        self._cache = StaticCache(config=model.config, max_cache_len=room)
        self._new = new
        self._n_cached = cached.shape[1]
        model(input_ids=cached if self._n_cached else new, past_key_values=self._cache, logits_to_keep=1)

    def logits(self) -> Tensor:
        for layer in self._cache.layers:
            layer.cumulative_length.fill_(self._n_cached)
        logits: Tensor = self._model(input_ids=self._new, past_key_values=self._cache, logits_to_keep=1).logits
        return logits[:, -1]


def _check(found: Tensor, wanted: Tensor) -> None:
    wanted = wanted.float()
    error = float((found.float() - wanted).pow(2).mean().sqrt() / wanted.pow(2).mean().sqrt())
    if not error < _TOLERANCE:
        raise LoadTestError(f"the native step and transformers disagree: relative error of the logits is {error:.3g}")
