"""A model's chat template: messages to the tokens of a prompt."""

import inspect
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from jinja2 import Environment, nodes
from jinja2.exceptions import TemplateError
from jinja2.ext import Extension
from jinja2.meta import find_undeclared_variables
from jinja2.parser import Parser
from transformers import PreTrainedTokenizerBase

from onebasis.core.errors import InvalidParameter


@dataclass(frozen=True, slots=True)
class TemplateInputs:
    """What a template hears beside messages and tools; names as in transformers' apply_chat_template.

    add_generation_prompt: the prompt ends where the assistant begins to speak.
    continue_final_message: it ends inside of the last message, behind its text.
    variables: the template's own, as Qwen3's enable_thinking.
    """

    add_generation_prompt: bool = True
    continue_final_message: bool = False
    variables: Mapping[str, Any] = field(default_factory=dict)

    @property
    def n_characters(self) -> int:
        """Of the variables, as JSON."""
        return len(json.dumps(self.variables)) if self.variables else 0


class ChatTemplate:
    """The template of a tokenizer, which may have none. Safe to use from several threads."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer

    @property
    def knows_tools(self) -> bool:
        return re.search(r"\btools\b", str(self._tokenizer.chat_template)) is not None

    def encode(
        self,
        messages: Sequence[Mapping[str, Any]],
        inputs: TemplateInputs,
        tools: Sequence[Mapping[str, Any]] | None,
    ) -> tuple[int, ...]:
        """Tokens of a chat.

        Raises:
            InvalidParameter: there is no template, or it refuses these messages, has no such variable, fails with its
                value, or does not end with what is to be continued.
        """
        if self._tokenizer.chat_template is None:
            raise InvalidParameter("messages", "this model has no chat template; use /v1/completions")
        try:
            self._check_names(inputs.variables)
            token_ids = self._tokenizer.apply_chat_template(
                list(messages),
                tools=tools,
                add_generation_prompt=inputs.add_generation_prompt,
                continue_final_message=inputs.continue_final_message,
                return_dict=False,
                **inputs.variables,
            )
        except TemplateError as error:
            raise InvalidParameter("messages", f"the model's chat template refuses them: {error}") from error
        except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
            if inputs.variables:
                reason = f"the model's chat template fails with them: {error}"
                raise InvalidParameter("chat_template_kwargs", reason) from error
            if inputs.continue_final_message:
                reason = "the model's chat template does not write the last message as it is, so it can't be continued"
                raise InvalidParameter("continue_final_message", reason) from error
            raise
        return tuple(token_ids)

    def _check_names(self, variables: Mapping[str, Any]) -> None:
        """Raises InvalidParameter for one that the template would ignore, or that is not the client's to set."""
        unknown = next((name for name in variables if name not in self._variables), None)
        if unknown is not None:
            known = ", ".join(sorted(self._variables)) or "none"
            reason = f"the model's chat template has no variable {unknown!r}; it has: {known}"
            raise InvalidParameter("chat_template_kwargs", reason)

    @cached_property
    def _variables(self) -> frozenset[str]:
        """What the template looks up and a client may set. Raises TemplateError where it can't be parsed."""
        environment = Environment(extensions=[_GenerationTag, "jinja2.ext.loopcontrols"])
        found = find_undeclared_variables(environment.parse(self._tokenizer.get_chat_template()))
        of_transformers = {
            "messages",
            "raise_exception",
            "strftime_now",
            *environment.globals,
            *self._tokenizer.special_tokens_map,
            *inspect.signature(self._tokenizer.apply_chat_template).parameters,
        }
        return frozenset(found - (of_transformers - {"documents"}))


class _GenerationTag(Extension):
    """transformers' `generation` tag, which marks an assistant's words for training. It renders what is in it."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it so

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)
