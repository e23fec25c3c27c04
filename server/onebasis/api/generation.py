"""One HTTP request's sequences: submitted together, their events merged, freed together."""

import asyncio
import contextlib
import secrets
import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Self

from onebasis.api.schemas import GenerationBody
from onebasis.core.errors import ContextLengthExceeded, EngineStopped, InvalidParameter
from onebasis.core.request import (
    FinishReason,
    GenerateRequest,
    ResolvedTask,
    SamplingParams,
    TokenEvent,
    TokenLogprobs,
)
from onebasis.engine.interface import Engine, EngineLimits
from onebasis.engine.text import TextStream
from onebasis.identity.caller import Caller
from onebasis.model.text import ModelText

_LEAST_LOGPROB = -9999.0  # OpenAI's for "hardly possible"; JSON has no word for -inf or NaN


@dataclass(frozen=True, slots=True)
class ChoiceDelta:
    """News of one choice: a token, the text that has become certain, the end. `token_id` None: text alone."""

    index: int
    text: str
    token_id: int | None
    logprobs: TokenLogprobs | None
    finish_reason: str | None


@dataclass(frozen=True, slots=True)
class Plan:
    """A checked request: everything that is the same for its choices, and the prompts.

    Choices are numbered prompt by prompt, `n` for each.
    """

    id: str
    created: int
    task: ResolvedTask | None
    prompts: tuple[tuple[int, ...], ...]
    n: int
    max_tokens: tuple[int, ...]
    sampling: SamplingParams
    stop: tuple[str, ...]
    stop_token_ids: frozenset[int]
    caller: Caller

    @property
    def n_prompt_tokens(self) -> int:
        return sum(map(len, self.prompts))


def plan_generation(
    body: GenerationBody,
    *,
    id_prefix: str,
    prompts: Sequence[tuple[int, ...]],
    prompt_param: str,
    max_tokens: int | None,
    n_logprobs: int | None,
    task: ResolvedTask | None,
    text: ModelText,
    limits: EngineLimits,
    caller: Caller,
) -> Plan:
    """Check what the schema can't: tokens against the vocabulary, lengths against the context.

    Args:
        max_tokens: None for as many as fit behind each prompt.

    Raises:
        InvalidParameter, ContextLengthExceeded.
    """
    if len(prompts) * body.n > limits.max_sequences:
        raise InvalidParameter("n", f"prompts times n is {len(prompts) * body.n}, allowed are {limits.max_sequences}")
    for prompt in prompts:
        if not prompt:
            raise InvalidParameter(prompt_param, "the tokenizer makes no token of this text; needs at least one")
        _check_tokens(prompt_param, prompt, limits.n_vocab)
        room = max_tokens if max_tokens is not None else 1
        if len(prompt) + room > limits.max_model_len:
            raise ContextLengthExceeded(
                n_prompt=len(prompt), max_tokens=room, limit=limits.max_model_len, param=prompt_param
            )
    stop_token_ids = frozenset(body.stop_token_ids or ())
    _check_tokens("stop_token_ids", stop_token_ids, limits.n_vocab)
    return Plan(
        id=f"{id_prefix}-{uuid.uuid4().hex}",
        created=int(time.time()),
        task=task,
        prompts=tuple(prompts),
        n=body.n,
        max_tokens=tuple(
            max_tokens if max_tokens is not None else limits.max_model_len - len(prompt) for prompt in prompts
        ),
        sampling=_sampling(body, n_logprobs, limits.n_vocab),
        stop=body.stop_strings(),
        stop_token_ids=stop_token_ids if body.ignore_eos else stop_token_ids | text.eos_token_ids,
        caller=caller,
    )


class Generation:
    """The running sequences of one plan, between `start` and `close`. Event loop only."""

    def __init__(self, plan: Plan, engine: Engine, text: ModelText, charge: Callable[[int], None]) -> None:
        """
        Args:
            charge: is told of the prompt's tokens once they are submitted, of the answer's when it is closed.
        """
        self._plan = plan
        self._engine = engine
        self._charge = charge
        self._events: asyncio.Queue[TokenEvent] = asyncio.Queue()
        self._open: dict[str, int] = {}  # request id -> index of the choice
        n_choices = len(plan.prompts) * plan.n
        self._streams = [TextStream(text, plan.stop) for _ in range(n_choices)]
        self.n_completion_tokens = 0
        self._n_charged = 0

    def start(self) -> Self:
        """Submit everything. Raises QueueFull or EngineStopped; nothing was submitted then."""
        loop = asyncio.get_running_loop()

        def sink(event: TokenEvent) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens any more
                loop.call_soon_threadsafe(self._events.put_nowait, event)

        requests = []
        for index in range(len(self._streams)):
            n_prompt, n_choice = divmod(index, self._plan.n)
            sampling = replace(self._plan.sampling, seed=self._plan.sampling.seed + n_choice)
            requests.append(
                GenerateRequest(
                    request_id=f"{self._plan.id}-{index}",
                    prompt_ids=self._plan.prompts[n_prompt],
                    task=self._plan.task,
                    max_tokens=self._plan.max_tokens[n_prompt],
                    sampling=sampling,
                    stop_token_ids=self._plan.stop_token_ids,
                    sink=sink,
                    n_choices=self._plan.n,
                    tenant=self._plan.caller.share,
                )
            )
        self._engine.submit(requests)
        self._charge(self._plan.n_prompt_tokens)
        self._open = {request.request_id: index for index, request in enumerate(requests)}
        return self

    def close(self) -> None:
        """Abort whatever has not ended. Call it however the request ends; it may be called again."""
        for request_id in self._open:
            self._engine.abort(request_id)
        self._charge(self.n_completion_tokens - self._n_charged)
        self._n_charged = self.n_completion_tokens

    async def deltas(self) -> AsyncIterator[ChoiceDelta]:
        """One delta per token as it comes, until every choice has its finish reason.

        Raises:
            Exception: what the engine failed on; `close` aborts the other choices.
        """
        while self._open:
            event = await self._events.get()
            index = self._open.get(event.request_id)
            if index is None:
                continue  # tokens that were under way when a stop string ended the choice
            if event.finish in (FinishReason.ERROR, FinishReason.ABORT):
                del self._open[event.request_id]
                raise event.error or EngineStopped()
            yield self._delta(event, index)

    def _delta(self, event: TokenEvent, index: int) -> ChoiceDelta:
        self.n_completion_tokens += 1
        finish = None if event.finish is None else event.finish.value
        text, stopped = self._advance(self._streams[index], event)
        if stopped or finish is not None:
            del self._open[event.request_id]
        if stopped and finish is None:
            self._engine.abort(event.request_id)
        return ChoiceDelta(index, text, event.token_id, _sayable(event.logprobs), "stop" if stopped else finish)

    @staticmethod
    def _advance(stream: TextStream, event: TokenEvent) -> tuple[str, bool]:
        """Text that the event makes certain, and whether a stop string ends it. A stop token has no text."""
        text = ""
        if event.token_id is not None and event.finish is not FinishReason.STOP:
            delta = stream.push(event.token_id)
            if delta.stopped:
                return delta.text, True
            text = delta.text
        if event.finish is None:
            return text, False
        rest = stream.finish()
        return text + rest.text, rest.stopped


def _sayable(logprobs: TokenLogprobs | None) -> TokenLogprobs | None:
    """The same in numbers that JSON can say: coefficients may be finite and still overflow the model."""
    if logprobs is None:
        return None
    top = tuple((token_id, max(_LEAST_LOGPROB, logprob)) for token_id, logprob in logprobs.top)
    return TokenLogprobs(chosen=max(_LEAST_LOGPROB, logprobs.chosen), top=top)  # of NaN, max keeps the first


def _sampling(body: GenerationBody, n_logprobs: int | None, n_vocab: int) -> SamplingParams:
    return SamplingParams(
        temperature=body.temperature,
        top_k=min(max(0, body.top_k), n_vocab),
        top_p=body.top_p,
        min_p=body.min_p,
        seed=secrets.randbits(62) if body.seed is None else body.seed,
        presence_penalty=body.presence_penalty,
        frequency_penalty=body.frequency_penalty,
        repetition_penalty=body.repetition_penalty,
        logit_bias=_logit_bias(body, n_vocab),
        n_logprobs=n_logprobs,
    )


def _logit_bias(body: GenerationBody, n_vocab: int) -> dict[int, float]:
    if body.logit_bias is None:
        return {}
    try:
        bias = {int(token): value for token, value in body.logit_bias.items()}
    except ValueError as error:
        raise InvalidParameter("logit_bias", f"its keys are token ids as text: {error}") from error
    _check_tokens("logit_bias", bias, n_vocab)
    return bias


def _check_tokens(param: str, token_ids: Sequence[int] | frozenset[int] | dict[int, float], n_vocab: int) -> None:
    wrong = next((token for token in token_ids if not 0 <= token < n_vocab), None)
    if wrong is not None:
        raise InvalidParameter(param, f"token id {wrong} is outside of the vocabulary, 0 to {n_vocab - 1}")
