"""Our sampling parameters in vLLM's words. What vLLM would do otherwise than asked is refused by name."""

from typing import Final

from vllm import SamplingParams
from vllm.exceptions import VLLMValidationError
from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

from onebasis.core.errors import InvalidParameter, UnsupportedParameter
from onebasis.core.request import GenerateRequest
from onebasis.vllm_plugin.control import RequestArguments

_GREEDY_BELOW: Final = 1e-5  # as in the native sampler
_LEAST_TEMPERATURE: Final = 0.01  # vLLM would take this one for anything smaller
_MOST_TEMPERATURE: Final = 2.0


def vllm_sampling(request: GenerateRequest, arguments: RequestArguments) -> SamplingParams:
    """How vLLM has to choose the tokens of a request, and whose they are.

    Where the answer ends is decided by token ids alone, so vLLM needs to know no text.

    Raises:
        InvalidParameter, UnsupportedParameter: vLLM can't honour a parameter; its name is told.
    """
    ours = request.sampling
    if ours.temperature >= _GREEDY_BELOW and not _LEAST_TEMPERATURE <= ours.temperature <= _MOST_TEMPERATURE:
        allowed = f"0, or {_LEAST_TEMPERATURE:g} to {_MOST_TEMPERATURE:g}"
        raise InvalidParameter("temperature", f"is {ours.temperature:g}, the vLLM engine takes {allowed}")
    if request.constraint is not None and ours.n_logprobs is not None:
        raise UnsupportedParameter(
            "logprobs", "vLLM has none of an answer that must follow a grammar; ask for one of the two"
        )
    try:
        return SamplingParams(
            temperature=0.0 if ours.temperature < _GREEDY_BELOW else ours.temperature,
            top_k=ours.top_k,
            top_p=ours.top_p,
            min_p=ours.min_p,
            seed=ours.seed % 2**64,  # -1 would mean none to vLLM
            presence_penalty=ours.presence_penalty,
            frequency_penalty=ours.frequency_penalty,
            repetition_penalty=ours.repetition_penalty,
            logit_bias=dict(ours.logit_bias) or None,
            logprobs=ours.n_logprobs,
            prompt_logprobs=ours.n_prompt_logprobs,
            max_tokens=request.max_tokens,
            min_tokens=request.min_tokens,
            stop_token_ids=sorted(request.stop_token_ids),
            ignore_eos=True,  # where it ends the answer, it is among those
            structured_outputs=None
            if request.constraint is None
            else StructuredOutputsParams(grammar=request.constraint.lark),
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
            extra_args=arguments.extra_args,
        )
    except VLLMValidationError as error:
        raise refusal(error) from error


def refusal(error: VLLMValidationError) -> InvalidParameter:
    """vLLM's refusal of a request as ours."""
    return InvalidParameter(error.parameter or "request", f"vLLM refuses it: {error}")
