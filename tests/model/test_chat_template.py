import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from onebasis.core.errors import InvalidParameter
from onebasis.model.chat_template import ChatTemplate, TemplateInputs

TALK = [{"role": "user", "content": "hi"}]
LIKE_QWEN3 = """
{%- set ns = namespace(last=messages|length - 1) %}
{%- if documents %}{{- documents[0].text }}{%- endif %}
{%- for message in messages %}
    {%- if message.role == "stop" %}{%- break %}{%- endif %}
    {%- generation %}{{- message.content + eos_token }}{%- endgeneration %}
{%- endfor %}
{%- if add_generation_prompt and enable_thinking is defined and enable_thinking is false %}{{- "no" }}{%- endif %}
"""


def template(text: str) -> ChatTemplate:
    words = {"<e>": 0, "hi": 1, "no": 2, "doc": 3}
    tokenizer = Tokenizer(models.WordLevel(words))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("e>", "merged_with_previous")
    return ChatTemplate(PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<e>", chat_template=text))


def encode(text: str, **variables: object) -> tuple[int, ...]:
    return template(text).encode(TALK, TemplateInputs(variables=variables), None)


def test_a_template_s_own_variables_can_be_set() -> None:
    assert encode(LIKE_QWEN3, enable_thinking=True) == encode(LIKE_QWEN3) == (1, 0)
    assert encode(LIKE_QWEN3, enable_thinking=False) == (1, 0, 2)
    assert encode("{{ documents[0].text }}", documents=[{"text": "doc", "title": ""}]) == (3,)


@pytest.mark.parametrize("name", ["ns", "message", "eos_token", "namespace", "add_generation_prompt", "thinking"])
def test_no_other_name_can(name: str) -> None:
    with pytest.raises(InvalidParameter, match=r"has no variable '.*'; it has: documents, enable_thinking$"):
        encode(LIKE_QWEN3, **{name: "hi"})


def test_a_template_without_any_says_so() -> None:
    with pytest.raises(InvalidParameter, match="it has: none"):
        encode("{{ messages[0].content }}", enable_thinking=False)
