"""/tokenize, /detokenize, /tokenizer_info: the model's tokenizer for clients that have none. Fields as in vLLM."""

from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import Field, model_validator

from onebasis.api.auth import GENERATE, CallerDep
from onebasis.api.deps import Services, ServicesDep
from onebasis.api.json_object import JsonObject
from onebasis.api.schemas import ChatMessage, ChatPrompt, TokenId
from onebasis.api.tool_use import encode_chat
from onebasis.core.errors import InvalidParameter
from onebasis.identity.caller import Caller

router = APIRouter(tags=["tokenizer"], dependencies=[GENERATE])

ModelName = Annotated[str, Field(min_length=1, description="checked if it is given; all share one tokenizer")]


class TokenizeBody(ChatPrompt):
    """A text or a chat."""

    model: ModelName | None = None
    prompt: str | None = None
    messages: Annotated[list[ChatMessage], Field(min_length=1, fail_fast=True)] | None = None
    add_special_tokens: Annotated[bool, Field(description="of a text; a chat's template has its own")] = True
    return_token_strs: bool = False

    @model_validator(mode="after")
    def _exactly_one(self) -> "TokenizeBody":
        if (self.prompt is None) == (self.messages is None):
            raise InvalidParameter("prompt", "needs either prompt or messages")
        if self.messages is not None and not self.add_special_tokens:
            raise InvalidParameter("add_special_tokens", "a chat's special tokens are its template's; leave it out")
        of_chats = sorted(self.model_fields_set & ChatPrompt.model_fields.keys())
        if self.messages is None and of_chats:
            raise InvalidParameter(of_chats[0], "needs messages")
        return self


class DetokenizeBody(JsonObject):
    model: ModelName | None = None
    tokens: Annotated[list[TokenId], Field(fail_fast=True)]


@router.post("/tokenize", summary="Tokens of a text or a chat")
def tokenize(body: TokenizeBody, services: ServicesDep, caller: CallerDep) -> dict[str, Any]:
    """The tokens that a generation with this prompt or these messages would begin with."""
    _check_model(body.model, services, caller)
    if body.messages is not None:
        tokens = encode_chat(body.messages, None, services.text, body.template_inputs())
    else:
        tokens = services.text.encode(body.prompt or "", add_special_tokens=body.add_special_tokens)
    return {
        "count": len(tokens),
        "max_model_len": services.engine.limits.max_model_len,
        "tokens": list(tokens),
        "token_strs": services.text.names_of(tokens) if body.return_token_strs else None,
    }


@router.post("/detokenize", summary="Text of tokens")
def detokenize(body: DetokenizeBody, services: ServicesDep, caller: CallerDep) -> dict[str, Any]:
    """All tokens are shown, special ones too."""
    _check_model(body.model, services, caller)
    n_vocab = services.engine.limits.n_vocab
    wrong = next((token for token in body.tokens if token >= n_vocab), None)
    if wrong is not None:
        raise InvalidParameter("tokens", f"token id {wrong} is outside of the vocabulary, 0 to {n_vocab - 1}")
    return {"prompt": services.text.decode(body.tokens, skip_special_tokens=False)}


@router.get("/tokenizer_info", summary="About the tokenizer")
def tokenizer_info(services: ServicesDep) -> dict[str, Any]:
    """Its special tokens and chat template, under the names of tokenizer_config.json."""
    return services.text.info() | {"max_model_len": services.engine.limits.max_model_len}


def _check_model(model: str | None, services: Services, caller: Caller) -> None:
    if model is not None:
        services.registry.resolve(model, caller.tenant)
