"""POST /v1/completions."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from fastapi import APIRouter, Request, Response
from starlette.concurrency import run_in_threadpool

from onebasis.api.auth import GENERATE, TOKENS_LEFT, CallerDep
from onebasis.api.blends import select_task
from onebasis.api.deps import Services, ServicesDep
from onebasis.api.generation import ChoiceDelta, Plan, plan_generation
from onebasis.api.schemas import CompletionBody
from onebasis.api.serving import answer
from onebasis.api.structured import answer_grammar
from onebasis.core.request import TokenLogprobs
from onebasis.identity.caller import Caller
from onebasis.model.text import ModelText

router = APIRouter(tags=["generation"], dependencies=[GENERATE, TOKENS_LEFT])

_Entry = tuple[int, TokenLogprobs | None]
"""A token and its log-probabilities; a prompt's first token has none."""


@router.post("/v1/completions", summary="Continue a prompt")
async def complete(request: Request, body: CompletionBody, services: ServicesDep, caller: CallerDep) -> Response:
    """OpenAI's completions; `model` chooses the task. Prompts: text, token ids, or a list of either."""
    plan = await run_in_threadpool(_plan, body, services, caller)
    return await answer(
        request,
        services,
        body,
        plan,
        kinds=("text_completion", "text_completion"),
        answer_format=CompletionFormat(services.text, body, plan.prompts),
    )


def _plan(body: CompletionBody, services: Services, caller: Caller) -> Plan:
    task = select_task(body, services, caller)
    prompts = [services.text.encode(p) if isinstance(p, str) else tuple(p) for p in body.prompts()]
    wanted = answer_grammar(body.response_format, body.structured_outputs)
    ranks = body.n_sampled > body.n
    return plan_generation(
        body,
        id_prefix="cmpl",
        prompts=prompts,
        prompt_param="prompt",
        max_tokens=body.max_tokens,
        task=task,
        text=services.text,
        limits=services.engine.limits,
        n_sampled=body.n_sampled,
        n_logprobs=0 if ranks and body.logprobs is None else body.logprobs,
        n_prompt_logprobs=body.logprobs if body.echo else None,
        constraint=None if wanted is None else services.constraint(*wanted),
        continues_text=True,
        caller=caller,
    )


@dataclass(slots=True)
class _Choice:
    """What is known of one answer."""

    text: str = ""
    entries: list[_Entry] = field(default_factory=list)
    finish_reason: str | None = None
    n_told: int = 0  # characters of the tokens whose offsets have been told
    has_begun: bool = False
    logprobs: list[float] = field(default_factory=list)  # of the answer's tokens, without the prompt's

    @property
    def mean_logprob(self) -> float:
        return sum(self.logprobs) / max(1, len(self.logprobs))


class CompletionFormat:
    """Choices with `text` and, if asked for, `logprobs` of parallel lists. An echoed prompt comes before both."""

    def __init__(self, text: ModelText, body: CompletionBody, prompts: Sequence[tuple[int, ...]]) -> None:
        self._text = text
        self._body = body
        self._prompts = prompts
        self._choices = [_Choice() for _ in range(len(prompts) * body.n_sampled)]

    def chunk_choice(self, delta: ChoiceDelta) -> dict[str, Any]:
        text, entries = self._news(delta)
        return self._spelt(delta.index, self._choices[delta.index], text, entries, delta.finish_reason)

    def add(self, delta: ChoiceDelta) -> None:
        choice = self._choices[delta.index]
        text, entries = self._news(delta)
        choice.text += text
        choice.entries += entries
        choice.finish_reason = delta.finish_reason
        if delta.logprobs is not None:
            choice.logprobs.append(delta.logprobs.chosen)

    def choices(self) -> list[dict[str, Any]]:
        """Of each prompt's, the n likeliest by mean log-probability of a token, best first where some are left out."""
        n, n_sampled = self._body.n, self._body.n_sampled
        kept: list[_Choice] = []
        for start in range(0, len(self._choices), n_sampled):
            of_prompt = self._choices[start : start + n_sampled]
            if n < n_sampled:
                of_prompt = sorted(of_prompt, key=lambda choice: -choice.mean_logprob)[:n]
            kept += of_prompt
        return [self._spelt(i, found, found.text, found.entries, found.finish_reason) for i, found in enumerate(kept)]

    def _news(self, delta: ChoiceDelta) -> tuple[str, list[_Entry]]:
        """Text and token entries that a delta adds, the echo included."""
        text, entries = delta.text, list[_Entry]()
        choice = self._choices[delta.index]
        if self._body.echo and not choice.has_begun:
            number = delta.index // self._body.n_sampled
            prompt = self._prompts[number]
            text = self._prompt_text(number) + text
            entries += zip(prompt, (None, *(delta.prompt_logprobs or ())), strict=False)
        choice.has_begun = True
        if delta.token_id is not None and delta.logprobs is not None:
            entries.append((delta.token_id, delta.logprobs))
        return text, entries

    def _prompt_text(self, number: int) -> str:
        """The prompt as it was sent; of token ids, their text."""
        prompt = self._body.prompts()[number]
        return prompt if isinstance(prompt, str) else self._text.decode(prompt, skip_special_tokens=False)

    def _spelt(
        self, index: int, choice: _Choice, text: str, entries: list[_Entry], finish_reason: str | None
    ) -> dict[str, Any]:
        return {
            "index": index,
            "text": text,
            "logprobs": None if self._body.logprobs is None else self._logprob_lists(choice, entries),
            "finish_reason": finish_reason,
        }

    def _logprob_lists(self, choice: _Choice, entries: list[_Entry]) -> dict[str, Any]:
        tokens = [self._token(token_id) for token_id, _ in entries]
        offsets = []
        for token in tokens:
            offsets.append(choice.n_told)
            choice.n_told += len(token)
        return {
            "tokens": tokens,
            "token_logprobs": [None if found is None else found.chosen for _, found in entries],
            "top_logprobs": [None if found is None else self._top(token_id, found) for token_id, found in entries],
            "text_offset": offsets,
        }

    def _top(self, token_id: int, found: TokenLogprobs) -> dict[str, float]:
        """By token; of those that are spelt the same, the token that stands there counts, then the likeliest."""
        return {self._token(other): logprob for other, logprob in reversed(((token_id, found.chosen), *found.top))}

    def _token(self, token_id: int) -> str:
        return self._text.decode([token_id], skip_special_tokens=False)
