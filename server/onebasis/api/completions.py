"""POST /v1/completions."""

from typing import Any

from fastapi import APIRouter, Request, Response
from starlette.concurrency import run_in_threadpool

from onebasis.api.auth import GENERATE, TOKENS_LEFT, CallerDep
from onebasis.api.blends import select_task
from onebasis.api.deps import Services, ServicesDep
from onebasis.api.generation import ChoiceDelta, Plan, plan_generation
from onebasis.api.schemas import CompletionBody
from onebasis.api.serving import answer
from onebasis.core.request import TokenLogprobs
from onebasis.identity.caller import Caller
from onebasis.model.text import ModelText

router = APIRouter(tags=["generation"], dependencies=[GENERATE, TOKENS_LEFT])


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
        answer_format=CompletionFormat(services.text, len(plan.prompts) * plan.n, body.logprobs),
    )


def _plan(body: CompletionBody, services: Services, caller: Caller) -> Plan:
    task = select_task(body, services, caller)
    prompts = [services.text.encode(p) if isinstance(p, str) else tuple(p) for p in body.prompts()]
    return plan_generation(
        body,
        id_prefix="cmpl",
        prompts=prompts,
        prompt_param="prompt",
        max_tokens=body.max_tokens,
        n_logprobs=body.logprobs,
        task=task,
        text=services.text,
        limits=services.engine.limits,
        caller=caller,
    )


class CompletionFormat:
    """Choices with `text` and, if asked for, `logprobs` of parallel lists."""

    def __init__(self, text: ModelText, n_choices: int, n_logprobs: int | None) -> None:
        self._text = text
        self._n_logprobs = n_logprobs
        self._parts: list[list[str]] = [[] for _ in range(n_choices)]
        self._logprobs: list[list[tuple[int, TokenLogprobs]]] = [[] for _ in range(n_choices)]
        self._n_characters = [0] * n_choices  # of the tokens whose offsets have been told
        self._finish_reasons: list[str | None] = [None] * n_choices

    def chunk_choice(self, delta: ChoiceDelta) -> dict[str, Any]:
        new = [(delta.token_id, delta.logprobs)] if delta.token_id is not None and delta.logprobs else []
        return self._choice(delta.index, delta.text, new, delta.finish_reason)

    def add(self, delta: ChoiceDelta) -> None:
        self._parts[delta.index].append(delta.text)
        if delta.token_id is not None and delta.logprobs is not None:
            self._logprobs[delta.index].append((delta.token_id, delta.logprobs))
        self._finish_reasons[delta.index] = delta.finish_reason

    def choices(self) -> list[dict[str, Any]]:
        return [
            self._choice(index, "".join(parts), self._logprobs[index], self._finish_reasons[index])
            for index, parts in enumerate(self._parts)
        ]

    def _choice(
        self, index: int, text: str, logprobs: list[tuple[int, TokenLogprobs]], finish_reason: str | None
    ) -> dict[str, Any]:
        return {
            "index": index,
            "text": text,
            "logprobs": None if self._n_logprobs is None else self._logprob_lists(index, logprobs),
            "finish_reason": finish_reason,
        }

    def _logprob_lists(self, index: int, logprobs: list[tuple[int, TokenLogprobs]]) -> dict[str, Any]:
        tokens = [self._token(token_id) for token_id, _ in logprobs]
        offsets = []
        for token in tokens:
            offsets.append(self._n_characters[index])
            self._n_characters[index] += len(token)
        return {
            "tokens": tokens,
            "token_logprobs": [entry.chosen for _, entry in logprobs],
            "top_logprobs": [
                {self._token(other): logprob for other, logprob in reversed(((token_id, entry.chosen), *entry.top))}
                for token_id, entry in logprobs
            ],
            "text_offset": offsets,
        }

    def _token(self, token_id: int) -> str:
        return self._text.decode([token_id], skip_special_tokens=False)
