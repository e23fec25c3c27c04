"""How close the native step is to the same model in float32, token by token of real text."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor
from transformers import PreTrainedModel

from loadtests.common.errors import LoadTestError
from loadtests.common.steps import CPU, Shape, make_batch
from onebasis.coefficients.arena import Arena
from onebasis.coefficients.validate import BoundCoefficients
from onebasis.core.ids import BASE_SLOT
from onebasis.demo.tasks import DEMO_TASKS
from onebasis.engine.runner import StepDecoder
from onebasis.model.adapted import merged_weight
from onebasis.model.factors import Basis
from onebasis.model.loader import LoadedBase
from onebasis.model.sites import site_layer

WORST_RELATIVE_ERROR = 0.1


@dataclass(frozen=True, slots=True)
class Fidelity:
    """Logits of all positions against float32's. relative_error: root mean square of the difference over that of the
    float32 logits, both about their mean over the vocabulary, which a softmax does not see.
    """

    what: str
    n_positions: int
    top1_agreement: float
    relative_error: float
    worst_error: float  # largest difference of a logit, about the mean likewise


@dataclass(frozen=True, slots=True)
class Text:
    """Token ids [1, n] of a chat under a task's coefficients; None is the bare model."""

    token_ids: Tensor
    task: BoundCoefficients | None


def chat_texts(base: LoadedBase, tasks: Sequence[BoundCoefficients], n_per_task: int) -> list[Text]:
    """Questions and right answers of the demo's tasks, under these coefficients and under none."""
    texts = []
    for i, coefficients in enumerate(tasks):
        task = DEMO_TASKS.get(coefficients.file.task or "") or list(DEMO_TASKS.values())[i % len(DEMO_TASKS)]
        for example in task.examples("val", n_per_task):
            chat = [{"role": "user", "content": example.prompt}, {"role": "assistant", "content": example.answer}]
            text = base.tokenizer.apply_chat_template(chat, tokenize=False)
            token_ids = torch.tensor([base.tokenizer(text, add_special_tokens=False)["input_ids"]])
            texts += [Text(token_ids, coefficients), Text(token_ids, None)]
    return texts


def measure_fidelity(
    texts: Sequence[Text],
    exact: PreTrainedModel,
    basis: Basis,
    decoders: Mapping[str, StepDecoder],
    arena: Arena,
    rounded: PreTrainedModel,
) -> list[Fidelity]:
    """Each decoder with tasks and bare, and transformers in bfloat16 bare, which tells what that type costs anyway.

    Args:
        exact: float32. basis: float32. rounded: bfloat16.

    Raises:
        LoadTestError: the native logits are too far off to be the same model's.
    """

    def native(decoder: StepDecoder, text: Text) -> Tensor:
        slot = BASE_SLOT if text.task is None else arena.acquire(text.task)
        n_tokens = text.token_ids.shape[1]
        batch = make_batch(Shape(1, 0, n_tokens, room=n_tokens), text.token_ids, [slot])
        logits = decoder.forward(replace(batch, logit_rows=torch.arange(n_tokens))).clone()
        if text.task is not None:
            arena.release(text.task)
        return logits

    def transformers(text: Text) -> Tensor:
        logits: Tensor = rounded(input_ids=text.token_ids, use_cache=False).logits[0]
        return logits

    bare = [text for text in texts if text.task is None]
    with_task = [text for text in texts if text.task is not None]
    found = []
    for name, decoder in decoders.items():
        found.append(_compare(f"{name}, tasks", with_task, partial(native, decoder), exact, basis))
        found.append(_compare(f"{name}, bare", bare, partial(native, decoder), exact, basis))
    for fidelity in found:
        if not fidelity.relative_error < WORST_RELATIVE_ERROR:
            raise LoadTestError(f"{fidelity.what}: relative error of the logits is {fidelity.relative_error:.3g}")
    return [*found, _compare("transformers in bfloat16, bare", bare, transformers, exact, basis)]


def _compare(
    what: str, texts: Sequence[Text], side: Callable[[Text], Tensor], exact: PreTrainedModel, basis: Basis
) -> Fidelity:
    n_positions = n_same = 0
    error_sum = wanted_sum = worst = 0.0
    for text in texts:
        with _merged(exact, basis, text.task):
            wanted = _centred(exact(input_ids=text.token_ids, use_cache=False).logits[0])
        error = _centred(side(text)) - wanted
        n_positions += wanted.shape[0]
        n_same += int((wanted.argmax(-1) == (wanted + error).argmax(-1)).sum())
        error_sum += float(error.pow(2).sum())
        wanted_sum += float(wanted.pow(2).sum())
        worst = max(worst, float(error.abs().max()))
    return Fidelity(what, n_positions, n_same / n_positions, (error_sum / wanted_sum) ** 0.5, worst)


def _centred(logits: Tensor) -> Tensor:
    wide = logits.float()
    return wide - wide.mean(-1, keepdim=True)


@contextmanager
def _merged(model: PreTrainedModel, basis: Basis, task: BoundCoefficients | None) -> Iterator[None]:
    """The task is in the weights inside the block."""
    before: dict[str, Tensor] = {}
    if task is not None:
        flat = torch.from_numpy(task.flat_cores()).to(CPU)
        start = 0
        for site in basis.spec.sites:
            end = start + site.k_out * site.k_in
            weight = site_layer(model, site.name).weight
            before[site.name] = weight.data
            core = flat[start:end].view(site.k_out, site.k_in)
            weight.data = merged_weight(weight.data, basis.factors[site.name], core)
            start = end
    try:
        yield
    finally:
        for name, data in before.items():
            site_layer(model, name).weight.data = data
