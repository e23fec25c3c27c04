"""The shipped tasks on the real model: the native engine's greedy answers in float32."""

import platformdirs
import pytest
from transformers import AutoTokenizer

from onebasis.coefficients.basis_file import read_basis_spec
from onebasis.coefficients.format import parse_coefficients
from onebasis.coefficients.validate import bind
from onebasis.demo.demo_pack import DemoPack
from onebasis.demo.embedded_model import ensure_model
from onebasis.demo.tasks import DEMO_TASKS
from tests.vllm.plugin.offline import Ask, OfflineVllm, native_answers


@pytest.fixture(scope="module")
def model():
    return ensure_model(platformdirs.user_cache_path("onebasis"))


@pytest.fixture(scope="module")
def asks(model):
    """Every shipped task with an item that it has not seen; the base with the first and the last of these."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    pack = DemoPack.shipped()
    spec = read_basis_spec(pack.basis)
    asks = []
    for name in pack.tasks():
        chat = [{"role": "user", "content": DEMO_TASKS[name].examples("val", 1)[0].prompt}]
        prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=True, return_dict=False)
        asks.append(Ask(bind(parse_coefficients(pack.coefficients(name).read_bytes()), spec), prompt))
    return [Ask(None, asks[0].prompt), *asks, Ask(None, asks[-1].prompt)]


def test_every_shipped_task_answers_as_in_the_native_engine_alone_and_mixed(model, asks):
    basis = DemoPack.shipped().basis
    wanted = native_answers(model, basis, asks, n_tokens=16)
    assert len({tuple(answer) for answer in wanted}) > 10, "the tasks change the answers"
    vllm = OfflineVllm(model, basis, n_slots=len(asks), enforce_eager=True)
    table = vllm.table(len(asks))
    assert vllm.answers(asks, table, n_tokens=16) == wanted
    assert [vllm.answers([ask], table, n_tokens=16)[0] for ask in asks] == wanted
