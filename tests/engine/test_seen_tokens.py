from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onebasis.core.request import SamplingParams
from onebasis.engine.seen_tokens import SeenTokens
from tests.engine.builders import make_sequence

ids = st.lists(st.integers(0, 300), max_size=200)


@given(ids, ids)
def test_each_token_of_prompt_and_output_is_there_once(prompt, output):
    seen = SeenTokens(prompt)
    for token_id in output:
        seen.add(token_id)
    assert sorted(seen.ids.tolist()) == sorted({*prompt, *output})
    generated = Counter(dict(zip(seen.ids.tolist(), seen.n_generated.tolist(), strict=True)))
    assert generated == Counter(output)


@pytest.mark.parametrize("penalty", ["repetition_penalty", "presence_penalty", "frequency_penalty"])
def test_a_sequence_knows_its_own_where_a_penalty_asks_for_them(penalty):
    sequence = make_sequence("a", 3, sampling=SamplingParams(**{penalty: 1.1}))
    before = set(sequence.seen.ids.tolist())
    sequence.append(999)
    assert set(sequence.seen.ids.tolist()) == before | {999}
    assert sequence.seen.n_generated.sum() == 1
    assert make_sequence("b", 3).seen is None
