"""POST /v1/chat/completions."""

from typing import Any

from fastapi import APIRouter, Request, Response
from starlette.concurrency import run_in_threadpool

from onebasis.api.auth import GENERATE, TOKENS_LEFT, CallerDep
from onebasis.api.blends import select_task
from onebasis.api.deps import Services, ServicesDep
from onebasis.api.generation import ChoiceDelta, Plan, plan_generation
from onebasis.api.schemas import ChatBody
from onebasis.api.serving import answer
from onebasis.identity.caller import Caller
from onebasis.model.text import ModelText

router = APIRouter(tags=["generation"], dependencies=[GENERATE, TOKENS_LEFT])


@router.post("/v1/chat/completions", summary="Answer a chat")
async def chat(request: Request, body: ChatBody, services: ServicesDep, caller: CallerDep) -> Response:
    """OpenAI's chat completions; `model` chooses the task. The model's own chat template makes the prompt."""
    plan = await run_in_threadpool(_plan, body, services, caller)
    return await answer(
        request,
        services,
        body,
        plan,
        kinds=("chat.completion", "chat.completion.chunk"),
        answer_format=ChatFormat(services.text, plan.n, with_logprobs=body.logprobs),
        opening=_opening,
    )


def _plan(body: ChatBody, services: Services, caller: Caller) -> Plan:
    task = select_task(body, services, caller)
    prompt = services.text.encode_chat([message.as_template_input() for message in body.messages])
    return plan_generation(
        body,
        id_prefix="chatcmpl",
        prompts=[prompt],
        prompt_param="messages",
        max_tokens=body.output_limit,
        n_logprobs=body.n_logprobs,
        task=task,
        text=services.text,
        limits=services.engine.limits,
        caller=caller,
    )


def _opening(index: int) -> dict[str, Any]:
    return {"index": index, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}


class ChatFormat:
    """Choices with a `message`, or a `delta` of one."""

    def __init__(self, text: ModelText, n_choices: int, *, with_logprobs: bool) -> None:
        self._text = text
        self._with_logprobs = with_logprobs
        self._parts: list[list[str]] = [[] for _ in range(n_choices)]
        self._logprobs: list[list[dict[str, Any]]] = [[] for _ in range(n_choices)]
        self._finish_reasons: list[str | None] = [None] * n_choices

    def chunk_choice(self, delta: ChoiceDelta) -> dict[str, Any]:
        return {
            "index": delta.index,
            "delta": {"content": delta.text},
            "logprobs": {"content": self._entries(delta)} if self._with_logprobs else None,
            "finish_reason": delta.finish_reason,
        }

    def add(self, delta: ChoiceDelta) -> None:
        self._parts[delta.index].append(delta.text)
        self._logprobs[delta.index] += self._entries(delta)
        self._finish_reasons[delta.index] = delta.finish_reason

    def choices(self) -> list[dict[str, Any]]:
        return [
            {
                "index": index,
                "message": {"role": "assistant", "content": "".join(parts)},
                "logprobs": {"content": self._logprobs[index]} if self._with_logprobs else None,
                "finish_reason": self._finish_reasons[index],
            }
            for index, parts in enumerate(self._parts)
        ]

    def _entries(self, delta: ChoiceDelta) -> list[dict[str, Any]]:
        if delta.token_id is None or delta.logprobs is None:
            return []
        top = [self._entry(token_id, logprob) for token_id, logprob in delta.logprobs.top]
        return [self._entry(delta.token_id, delta.logprobs.chosen) | {"top_logprobs": top}]

    def _entry(self, token_id: int, logprob: float) -> dict[str, Any]:
        token = self._text.decode([token_id], skip_special_tokens=False)
        return {"token": token, "logprob": logprob, "bytes": list(token.encode())}
