"""POST /v1/chat/completions."""

from dataclasses import dataclass, field
from typing import Any

from fastapi import APIRouter, Request, Response
from starlette.concurrency import run_in_threadpool

from onebasis.api.auth import GENERATE, TOKENS_LEFT, CallerDep
from onebasis.api.blends import select_task
from onebasis.api.deps import Services, ServicesDep
from onebasis.api.generation import ChoiceDelta, Plan, plan_generation
from onebasis.api.schemas import ChatBody
from onebasis.api.serving import answer
from onebasis.api.tool_parser import FoundCall, ToolCallStream, ToolDelta
from onebasis.api.tool_use import ToolUse, chat_grammar, encode_chat, tool_use
from onebasis.identity.caller import Caller
from onebasis.model.text import ModelText

router = APIRouter(tags=["generation"], dependencies=[GENERATE, TOKENS_LEFT])


@router.post("/v1/chat/completions", summary="Answer a chat")
async def chat(request: Request, body: ChatBody, services: ServicesDep, caller: CallerDep) -> Response:
    """OpenAI's chat completions; `model` chooses the task. The model's own chat template makes the prompt."""
    tools = tool_use(body, services.tool_format)
    plan = await run_in_threadpool(_plan, body, tools, services, caller)
    return await answer(
        request,
        services,
        body,
        plan,
        kinds=("chat.completion", "chat.completion.chunk"),
        answer_format=ChatFormat(services.text, plan.n, tools, with_logprobs=body.logprobs),
        opening=_opening,
    )


def _plan(body: ChatBody, tools: ToolUse | None, services: Services, caller: Caller) -> Plan:
    task = select_task(body, services, caller)
    prompt = encode_chat(body.messages, tools, services.text, body.template_inputs())
    wanted = chat_grammar(body, tools, services.text)
    return plan_generation(
        body,
        id_prefix="chatcmpl",
        prompts=[prompt],
        prompt_param="messages",
        max_tokens=body.output_limit,
        task=task,
        text=services.text,
        limits=services.engine.limits,
        n_logprobs=body.n_logprobs,
        constraint=None if wanted is None else services.constraint(*wanted),
        continues_text=body.continue_final_message,
        skip_special_tokens=tools is None or tools.format.marker not in services.text.special_tokens,
        caller=caller,
    )


def _opening(index: int) -> dict[str, Any]:
    return {"index": index, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}


@dataclass(slots=True)
class _Choice:
    """What is known of one answer. `calls` is the parser of its calls, None where none may come."""

    calls: ToolCallStream | None
    content: str = ""
    found: list[FoundCall] = field(default_factory=list)
    logprobs: list[dict[str, Any]] = field(default_factory=list)
    finish_reason: str | None = None

    def take(self, delta: ChoiceDelta) -> tuple[ToolDelta, str | None]:
        """Content, calls and finish reason that a delta adds."""
        if self.calls is None:
            return ToolDelta(delta.text, []), delta.finish_reason
        new = self.calls.push(delta.text)
        if delta.finish_reason is None:
            return new, None
        rest = self.calls.finish()
        ends_with_calls = delta.finish_reason == "stop" and self.calls.n_calls > 0
        finish_reason = "tool_calls" if ends_with_calls else delta.finish_reason
        return ToolDelta(new.content + rest.content, new.calls + rest.calls), finish_reason


class ChatFormat:
    """Choices with a `message`, or a `delta` of one."""

    def __init__(self, text: ModelText, n_choices: int, tools: ToolUse | None, *, with_logprobs: bool) -> None:
        self._text = text
        self._with_logprobs = with_logprobs
        self._choices = [_Choice(None if tools is None else _parser(tools)) for _ in range(n_choices)]

    def chunk_choice(self, delta: ChoiceDelta) -> dict[str, Any]:
        choice = self._choices[delta.index]
        new, finish_reason = choice.take(delta)
        n_before = len(choice.found)
        choice.found += new.calls
        calls = [{"index": n_before + i} | call.as_answer() for i, call in enumerate(new.calls)]
        return {
            "index": delta.index,
            "delta": {"content": new.content} | ({"tool_calls": calls} if calls else {}),
            "logprobs": {"content": self._entries(delta)} if self._with_logprobs else None,
            "finish_reason": finish_reason,
        }

    def add(self, delta: ChoiceDelta) -> None:
        choice = self._choices[delta.index]
        new, choice.finish_reason = choice.take(delta)
        choice.content += new.content
        choice.found += new.calls
        choice.logprobs += self._entries(delta)

    def choices(self) -> list[dict[str, Any]]:
        return [
            {
                "index": index,
                "message": _message(choice),
                "logprobs": {"content": choice.logprobs} if self._with_logprobs else None,
                "finish_reason": choice.finish_reason,
            }
            for index, choice in enumerate(self._choices)
        ]

    def _entries(self, delta: ChoiceDelta) -> list[dict[str, Any]]:
        if delta.token_id is None or delta.logprobs is None:
            return []
        top = [self._entry(token_id, logprob) for token_id, logprob in delta.logprobs.top]
        return [self._entry(delta.token_id, delta.logprobs.chosen) | {"top_logprobs": top}]

    def _entry(self, token_id: int, logprob: float) -> dict[str, Any]:
        token = self._text.decode([token_id], skip_special_tokens=False)
        return {"token": token, "logprob": logprob, "bytes": list(token.encode())}


def _parser(tools: ToolUse) -> ToolCallStream:
    return ToolCallStream(tools.format, [f.name for f in tools.callable], parallel=tools.parallel)


def _message(choice: _Choice) -> dict[str, Any]:
    if not choice.found:
        return {"role": "assistant", "content": choice.content}
    calls = [call.as_answer() for call in choice.found]
    return {"role": "assistant", "content": choice.content.strip() or None, "tool_calls": calls}
