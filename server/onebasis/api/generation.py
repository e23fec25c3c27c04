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
    TokenConstraint,
    TokenEvent,
    TokenLogprobs,
)
from onebasis.engine.interface import Engine, EngineLimits
from onebasis.engine.text import TextStream
from onebasis.identity.caller import Caller
from onebasis.identity.errors import PermissionDenied
from onebasis.model.text import ModelText
from onebasis.telemetry.request_context import request_fields

_LEAST_LOGPROB = -9999.0  # OpenAI's for "hardly possible"; JSON has no word for -inf or NaN
_N_BEHIND = 8  # tokens of a prompt that its answer is decoded behind: more than any character has


@dataclass(frozen=True, slots=True)
class ChoiceDelta:
    """News of one choice: a token, the text that has become certain, the end. `token_id` None: text alone.

    `prompt_logprobs`: with the first news, if they were asked for.
    """

    index: int
    text: str
    token_id: int | None
    logprobs: TokenLogprobs | None
    finish_reason: str | None
    prompt_logprobs: tuple[TokenLogprobs, ...] | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """A checked request: everything that is the same for its choices, and the prompts.

    Choices are numbered prompt by prompt, `n` for each; `n` counts all that are sampled, `seeds` has one for each. A
    limit of 0 in `max_tokens` means that the prompt alone is wanted. `continues_text`: an answer goes on where the
    text of its prompt ends, so that a space between them is the answer's.
    """

    id: str
    created: int
    task: ResolvedTask | None
    prompts: tuple[tuple[int, ...], ...]
    n: int
    max_tokens: tuple[int, ...]
    min_tokens: int
    sampling: SamplingParams
    seeds: tuple[int, ...]
    stop: tuple[str, ...]
    stop_token_ids: frozenset[int]
    constraint: TokenConstraint | None
    skip_special_tokens: bool
    continues_text: bool
    priority: int
    deadline_s: float | None  # time.monotonic()
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
    task: ResolvedTask | None,
    text: ModelText,
    limits: EngineLimits,
    caller: Caller,
    n_sampled: int | None = None,
    n_logprobs: int | None = None,
    n_prompt_logprobs: int | None = None,
    constraint: TokenConstraint | None = None,
    skip_special_tokens: bool = True,
    continues_text: bool = False,
) -> Plan:
    """Check what the schema can't: tokens against the vocabulary, lengths against the context.

    Args:
        max_tokens: None for as many as fit behind each prompt.
        n_sampled: answers to sample for each prompt; by default as many as the client gets.
        skip_special_tokens: leave them out of the text.

    Raises:
        InvalidParameter, ContextLengthExceeded.
        PermissionDenied: a tenant asks to be served before others.
    """
    n = n_sampled or body.n
    most = limits.max_sequences_of(caller.share)
    if len(prompts) * n > most:
        raise InvalidParameter("n", f"prompts times n is {len(prompts) * n}, allowed are {most}")
    if body.priority < 0 and caller.tenant is not None:
        raise PermissionDenied(
            f"priority {body.priority} goes before other tenants; a tenant's key may ask for 0 and up"
        )
    for prompt in prompts:
        if not prompt:
            raise InvalidParameter(prompt_param, "the tokenizer makes no token of this text; needs at least one")
        _check_tokens(prompt_param, prompt, limits.n_vocab)
        room = max_tokens if max_tokens is not None else 1
        if len(prompt) + room > limits.max_model_len:
            raise ContextLengthExceeded(
                n_prompt=len(prompt), max_tokens=room, limit=limits.max_model_len, param=prompt_param
            )
    lengths = [limits.max_model_len - len(prompt) if max_tokens is None else max_tokens for prompt in prompts]
    if body.min_tokens > min(lengths):
        raise InvalidParameter("min_tokens", f"is {body.min_tokens}, at most {min(lengths)} tokens may be generated")
    if body.min_tokens and constraint is not None:
        raise InvalidParameter("min_tokens", "can't go with a grammar, which says itself where the answer ends")
    timeout_s = limits.timeout_s(body.timeout)
    stop_token_ids = frozenset(body.stop_token_ids or ())
    _check_tokens("stop_token_ids", stop_token_ids, limits.n_vocab)
    return Plan(
        id=f"{id_prefix}-{uuid.uuid4().hex}",
        created=int(time.time()),
        task=task,
        prompts=tuple(prompts),
        n=n,
        max_tokens=tuple(lengths),
        min_tokens=body.min_tokens,
        sampling=replace(_sampling(body, limits.n_vocab), n_logprobs=n_logprobs, n_prompt_logprobs=n_prompt_logprobs),
        seeds=tuple(_seed(body.seed, n_choice) for _ in prompts for n_choice in range(n)),
        stop=body.stop_strings(),
        stop_token_ids=stop_token_ids if body.ignore_eos else stop_token_ids | text.eos_token_ids,
        constraint=constraint,
        skip_special_tokens=skip_special_tokens,
        continues_text=continues_text,
        priority=body.priority,
        deadline_s=None if timeout_s is None else time.monotonic() + timeout_s,
        caller=caller,
    )


class Generation:
    """The running sequences of one plan, between `start` and `close`. Event loop only."""

    def __init__(self, plan: Plan, engine: Engine, text: ModelText, charge: Callable[[int], None]) -> None:
        """
        Args:
            charge: is told of the prompt's tokens once they are submitted, of the answer's as they come.
        """
        self._plan = plan
        self._engine = engine
        self._charge = charge
        self._events: asyncio.Queue[TokenEvent] = asyncio.Queue()
        self._open: dict[str, int] = {}  # request id -> index of the choice
        self._streams = [
            TextStream(
                text,
                plan.stop,
                min_tokens=plan.min_tokens,
                behind=prompt[-_N_BEHIND:] if plan.continues_text else (),
                skip_special_tokens=plan.skip_special_tokens,
            )
            for prompt in plan.prompts
            for _ in range(plan.n)
        ]
        self._n_cached: dict[int, int] = {}  # number of the prompt -> tokens of it that were not computed again
        self.n_completion_tokens = 0

    @property
    def n_cached_tokens(self) -> int:
        """Prompt tokens that came from a cache, of all prompts together."""
        return sum(self._n_cached.values())

    def start(self) -> Self:
        """Submit everything. Raises QueueFull or EngineStopped; nothing was submitted then."""
        loop = asyncio.get_running_loop()

        def sink(event: TokenEvent) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens any more
                loop.call_soon_threadsafe(self._events.put_nowait, event)

        requests = []
        for index in range(len(self._streams)):
            n_prompt = index // self._plan.n
            requests.append(
                GenerateRequest(
                    request_id=f"{self._plan.id}-{index}",
                    prompt_ids=self._plan.prompts[n_prompt],
                    task=self._plan.task,
                    max_tokens=max(1, self._plan.max_tokens[n_prompt]),
                    min_tokens=self._plan.min_tokens,
                    sampling=replace(self._plan.sampling, seed=self._plan.seeds[index]),
                    stop_token_ids=self._plan.stop_token_ids,
                    sink=sink,
                    constraint=self._plan.constraint,
                    n_choices=self._plan.n,
                    priority=self._plan.priority,
                    deadline_s=self._plan.deadline_s,
                    traceparent=request_fields().get("traceparent"),
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
        n_prompt = index // self._plan.n
        self._n_cached.setdefault(n_prompt, event.n_cached_tokens)
        prompt_logprobs = None
        if event.prompt_logprobs is not None:
            prompt_logprobs = tuple(_sayable(entry) for entry in event.prompt_logprobs)
        if self._plan.max_tokens[n_prompt] == 0:  # the engine can't score without choosing a token; it is not told
            del self._open[event.request_id]
            return ChoiceDelta(index, "", None, None, FinishReason.LENGTH.value, prompt_logprobs)
        self.n_completion_tokens += 1
        self._charge(1)
        finish = None if event.finish is None else event.finish.value
        text, stopped = self._advance(self._streams[index], event)
        if stopped or finish is not None:
            del self._open[event.request_id]
        if stopped and finish is None:
            self._engine.abort(event.request_id)
        logprobs = None if event.logprobs is None else _sayable(event.logprobs)
        return ChoiceDelta(index, text, event.token_id, logprobs, "stop" if stopped else finish, prompt_logprobs)

    def _advance(self, stream: TextStream, event: TokenEvent) -> tuple[str, bool]:
        """Text that the event makes certain, and whether a stop string ends it. A stop token has no text."""
        text = ""
        if event.token_id is not None and event.token_id not in self._plan.stop_token_ids:
            delta = stream.push(event.token_id)
            if delta.stopped:
                return delta.text, True
            text = delta.text
        if event.finish is None:
            return text, False
        rest = stream.finish()
        return text + rest.text, rest.stopped


def _sayable(logprobs: TokenLogprobs) -> TokenLogprobs:
    """The same in numbers that JSON can say: coefficients may be finite and still overflow the model."""
    top = tuple((token_id, max(_LEAST_LOGPROB, logprob)) for token_id, logprob in logprobs.top)
    return TokenLogprobs(chosen=max(_LEAST_LOGPROB, logprobs.chosen), top=top)  # of NaN, max keeps the first


def _sampling(body: GenerationBody, n_vocab: int) -> SamplingParams:
    return SamplingParams(
        temperature=body.temperature,
        top_k=min(max(0, body.top_k), n_vocab),
        top_p=body.top_p,
        min_p=body.min_p,
        presence_penalty=body.presence_penalty,
        frequency_penalty=body.frequency_penalty,
        repetition_penalty=body.repetition_penalty,
        logit_bias=_logit_bias(body, n_vocab),
    )


def _seed(asked: int | None, n_choice: int) -> int:
    """Of one answer. With a seed, a prompt is answered the same alone and in a batch; without, no two are alike."""
    return secrets.randbits(62) if asked is None else asked + n_choice


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
