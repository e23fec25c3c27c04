"""Before a decoder serves it shows that it computes its model: short prompts, beside transformers' own eager pass.

A layer of transformers may need more than our attention gives it: keep a state of its own between steps, attend twice,
look at the whole step at once. Such a model would answer wrongly and mix up requests, without any error.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Final

import torch
from torch import Tensor

from onebasis.core.errors import InvalidModel, SetupError
from onebasis.core.request import GenerateRequest, SamplingParams
from onebasis.engine.batch import build_batch, order_runs
from onebasis.engine.runner import StepDecoder
from onebasis.engine.scheduler import ScheduledRun, StepPlan
from onebasis.engine.sequence import EngineSequence
from onebasis.model.loader import LoadedBase

_N_SEQUENCES: Final = 2
_N_TOKENS: Final = 20  # of each: more than a block of 16
_GOLDEN: Final = 0.618034  # multiples of it, modulo 1, are spread as evenly as can be
_REMEDY: Final = "use engine=vllm if it knows the model, or a model of another family"
_MOST_ERROR: Final = 1e-3  # in float32; decision 0001 has what was measured
_MOST_ERROR_ROUNDED: Final = 0.25  # in 16 or 8 bits


class SelfCheck:
    """What a decoder has to compute, found when this is made, from layers that no decoder has taken over yet.

    Args:
        n_blocks, block_size, max_step_tokens, max_model_len: what the decoder has room for; the prompts fit.

    Raises:
        InvalidModel: transformers can't run them.
    """

    def __init__(
        self, base: LoadedBase, *, n_blocks: int, block_size: int, max_step_tokens: int, max_model_len: int
    ) -> None:
        self._name = type(base.model).__name__
        n_sequences = min(_N_SEQUENCES, n_blocks, max_step_tokens)
        n_tokens = min(_N_TOKENS, max_model_len, n_blocks // n_sequences * block_size)
        self._block_size = block_size
        self._n_chunk = max(1, min(n_tokens // 2, max_step_tokens // n_sequences))
        self._prompts = _spread_tokens(n_sequences, n_tokens, n_vocab=int(base.text_config.vocab_size))
        self._most_error = _MOST_ERROR if base.model.dtype == torch.float32 else _MOST_ERROR_ROUNDED
        self._expected = self._by_transformers(base)

    def run(self, decoder: StepDecoder) -> None:
        """Compute the prompts in mixed steps, cut into chunks. They go to the first blocks of the KV cache, which the
        block pool goes on to count as free.

        Raises:
            InvalidModel: the decoder fails, or its logits are further from transformers' than rounding explains.
        """
        try:
            errors = [self._step_error(decoder, runs) for runs in self._steps()]
        except SetupError:
            raise
        except Exception as failure:
            raise InvalidModel(f"{self._name}: the decoder can't run it ({_reason(failure)}); {_REMEDY}") from failure
        wrong = [error for error in errors if not error <= self._most_error]  # NaN is no agreement
        if wrong:
            raise InvalidModel(
                f"{self._name}: this server computes other logits than transformers does, off by {wrong[0]:.3g} of "
                f"their size where rounding explains {self._most_error:g}; its answers would be wrong: {_REMEDY}"
            )

    @torch.inference_mode()
    def _by_transformers(self, base: LoadedBase) -> Tensor:
        """[n_sequences, n_tokens, n_vocab] float32."""
        try:
            base.model.set_attn_implementation("eager")
            token_ids = torch.tensor(self._prompts, device=base.model.device)
            logits: Tensor = base.model(input_ids=token_ids, use_cache=False).logits
        except Exception as failure:
            raise InvalidModel(f"{self._name}: transformers can't run it ({_reason(failure)}); {_REMEDY}") from failure
        return logits.float()

    def _step_error(self, decoder: StepDecoder, runs: list[ScheduledRun]) -> float:
        runs = order_runs(StepPlan(tuple(runs), (), ()))
        batch = build_batch(runs, block_size=self._block_size, device=self._expected.device)
        batch = replace(batch, logit_rows=torch.arange(batch.token_ids.shape[0], device=self._expected.device))
        found = decoder.forward(batch).float()
        expected = torch.cat([self._expected[int(run.sequence.request_id), run.start : run.end] for run in runs])
        return _relative_error(found, expected)

    def _steps(self) -> Iterator[list[ScheduledRun]]:
        """Chunks of all sequences; then of one, with single tokens of the other, in turns; at last decodes alone."""
        sequences = [self._sequence(i) for i in range(len(self._prompts))]
        n_tokens = len(self._prompts[0])
        n_done = [0] * len(sequences)
        n_steps = 0
        while min(n_done) < n_tokens - 1:
            runs = []
            for i, sequence in enumerate(sequences):
                n_next = self._n_chunk if n_steps == 0 or (n_steps + i) % 2 == 0 else 1
                start, end = n_done[i], min(n_done[i] + n_next, n_tokens - 1)
                if start < end:
                    runs.append(ScheduledRun(sequence, start, end))
                n_done[i] = end
            yield runs
            n_steps += 1
        yield [ScheduledRun(sequence, n_tokens - 1, n_tokens) for sequence in sequences]

    def _sequence(self, number: int) -> EngineSequence:
        """Sequences have every other block each."""
        request = GenerateRequest(
            str(number), self._prompts[number], None, 1, SamplingParams(), frozenset(), sink=lambda _event: None
        )
        sequence = EngineSequence(request, arrived_s=0.0)
        n_blocks = -(-len(self._prompts[number]) // self._block_size)
        sequence.blocks = list(range(number, n_blocks * len(self._prompts), len(self._prompts)))
        return sequence


def _spread_tokens(n_sequences: int, n_tokens: int, *, n_vocab: int) -> list[tuple[int, ...]]:
    """Token ids from all over the vocabulary, the same every time."""
    ids = [int(i * _GOLDEN % 1 * n_vocab) for i in range(1, n_sequences * n_tokens + 1)]
    return [tuple(ids[i * n_tokens : (i + 1) * n_tokens]) for i in range(n_sequences)]


def _relative_error(found: Tensor, expected: Tensor) -> float:
    """The size of the difference by that of the logits, of the median token, each without the mean of its row.

    The median, because rounding may send single tokens to another expert; a layer that is wrong is so for most tokens.
    """
    error = _centred(found - expected).norm(dim=-1) / _centred(expected).norm(dim=-1)
    return float(error.median())


def _centred(rows: Tensor) -> Tensor:
    return rows - rows.mean(dim=-1, keepdim=True)


def _reason(failure: Exception) -> str:
    return (str(failure).splitlines() or [""])[0] or type(failure).__name__
