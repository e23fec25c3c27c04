"""vLLM's outputs in our words."""

from collections.abc import Mapping, Sequence
from typing import Any

from vllm.outputs import RequestOutput

from onebasis.core.request import SamplingParams, TokenLogprobs
from onebasis.engine.sampler import Sampled


def sampled_tokens(output: RequestOutput, params: SamplingParams) -> list[Sampled]:
    """The tokens that are new in this output, with log-probabilities where they were asked for."""
    (completion,) = output.outputs
    token_ids: Sequence[int] = completion.token_ids
    if params.n_logprobs is None:
        return [Sampled(token_id, None) for token_id in token_ids]
    return [
        Sampled(token_id, _logprobs(at, token_id, params.n_logprobs))
        for token_id, at in zip(token_ids, completion.logprobs, strict=True)
    ]


def prompt_logprobs(output: RequestOutput, params: SamplingParams) -> list[TokenLogprobs]:
    """Of every prompt token but the first, where they were asked for; they come with the first output."""
    if params.n_prompt_logprobs is None or not output.prompt_logprobs:
        return []
    return [
        _logprobs(at, token_id, params.n_prompt_logprobs)
        for token_id, at in zip(output.prompt_token_ids[1:], output.prompt_logprobs[1:], strict=True)
    ]


def _logprobs(at: Mapping[int, Any], token_id: int, n_top: int) -> TokenLogprobs:
    """vLLM gives the chosen token and the best ones in one table; the ranks tell which are the best."""
    best = sorted((entry.rank, other, entry.logprob) for other, entry in at.items() if entry.rank <= n_top)
    return TokenLogprobs(at[token_id].logprob, tuple((other, logprob) for _, other, logprob in best))
