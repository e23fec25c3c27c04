import itertools
import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from onebasis.core.request import SamplingParams
from onebasis.engine import sampler
from onebasis.engine.sampler import Sampled, SampleRow, sample, uniform
from onebasis.engine.seen_tokens import SeenTokens

N_VOCAB = 1300  # more than the sampler ranks before it sorts everything
INF = math.inf


def row(prompt_ids=(), output_ids=(), banned_ids=(), **params):
    sampling = SamplingParams(**params)
    seen = SeenTokens(prompt_ids)
    for token_id in output_ids:
        seen.add(token_id)
    return SampleRow(sampling, output_ids, banned_ids=banned_ids, seen=seen if sampling.has_penalty else None)


def tokens(logits, rows):
    return [s.token_id for s in sample(logits, rows)]


def make_logits(n_rows, *, scale, seed, n_vocab=N_VOCAB, dtype=torch.float32):
    return (torch.randn(n_rows, n_vocab, generator=torch.Generator().manual_seed(seed)) * scale).to(dtype)


def kept_by_definition(logits, params):
    """[(id, probability)] best first, of what the filters leave: float64, no tensors, one filter after another."""
    peak = max(logits)
    weights = [(t, math.exp((x - peak) / params.temperature)) for t, x in enumerate(logits)]
    ranked = sorted(weights, key=lambda entry: (-logits[entry[0]], entry[0]))
    ranked = [(t, w) for t, w in ranked if w >= params.min_p * ranked[0][1]]
    if params.top_k:
        ranked = ranked[: params.top_k]
    total = sum(w for _, w in ranked)
    nucleus, mass = [], 0.0
    for t, w in ranked:
        if nucleus and mass >= params.top_p * total:
            break
        nucleus.append((t, w))
        mass += w
    return [(t, w / mass) for t, w in nucleus]


def draw_by_definition(entries, draw):
    for (t, _), reached in zip(entries, itertools.accumulate(p for _, p in entries), strict=True):
        if draw < reached:
            return t
    return entries[-1][0]


def chi_square(found, entries):
    """Sum of (found - expected)^2 / expected; an id outside the entries is a plain failure."""
    assert set(found) <= {t for t, _ in entries}
    return sum((found.count(t) - len(found) * p) ** 2 / (len(found) * p) for t, p in entries)


FILTERS = [
    {"top_k": 1},
    {"top_k": 7},
    {"top_k": 600},
    {"top_k": 5000},
    {"top_p": 0.3},
    {"top_p": 0.97},
    {"min_p": 0.05},
    {"min_p": 1.0},
    {"top_k": 20, "top_p": 0.6},
    {"top_k": 20, "min_p": 0.2},
    {"top_p": 0.5, "min_p": 0.02},
    {"top_k": 40, "top_p": 0.9, "min_p": 0.01, "temperature": 1.7},
]


@pytest.mark.parametrize("scale", [0.2, 1.0, 4.0])
@pytest.mark.parametrize("filters", FILTERS, ids=str)
def test_filtered_draws_are_those_of_the_definition(filters, scale):
    logits = make_logits(1, scale=scale, seed=3).repeat(60, 1)
    rows = [row(seed=s, **filters) for s in range(60)]
    entries = kept_by_definition(logits[0].tolist(), rows[0].params)
    expected = [draw_by_definition(entries, uniform(s, 0)) for s in range(60)]
    assert tokens(logits, rows) == expected


@pytest.mark.parametrize("temperature", [0.4, 1.0, 2.5])
def test_plain_draws_are_an_inverse_cdf_in_order_of_id(temperature):
    logits = make_logits(1, scale=2.0, seed=5).repeat(60, 1)
    params = SamplingParams(temperature=temperature)
    entries = sorted(kept_by_definition(logits[0].tolist(), params))
    rows = [row(seed=s, temperature=temperature) for s in range(60)]
    assert tokens(logits, rows) == [draw_by_definition(entries, uniform(s, 0)) for s in range(60)]


LIMIT_DOF_5 = 25.7  # chi-square of 5 degrees of freedom is above this once in 10 000


@pytest.mark.parametrize("vary", ["seed", "position"])
@pytest.mark.parametrize("params", [{}, {"temperature": 0.6}, {"top_p": 0.999}, {"top_k": 6, "min_p": 0.001}], ids=str)
def test_frequencies_match_the_probabilities(params, vary):
    logits = torch.tensor([0.3, 2.0, 1.0, 1.5, -0.5, 0.9])
    n_draws = 6000
    at = [(s, 0) if vary == "seed" else (11, s) for s in range(n_draws)]
    rows = [row(output_ids=range(position), seed=seed, **params) for seed, position in at]
    found = tokens(logits.expand(n_draws, 6), rows)
    entries = kept_by_definition(logits.tolist(), rows[0].params)
    assert len(entries) == 6
    assert chi_square(found, entries) < LIMIT_DOF_5
    assert chi_square(found, [(t, 1 / 6) for t in range(6)]) > 10 * LIMIT_DOF_5, "the test could not fail"


def test_uniform_depends_on_seed_and_position_and_stays_below_one():
    draws = {(s, p): uniform(s, p) for s in (0, 1, -1, 2**64 - 2, 2**63) for p in range(200)}
    assert len(set(draws.values())) > 0.99 * len(draws)
    assert all(0 <= d < 1 and torch.tensor(d, dtype=torch.float32).item() == d for d in draws.values())


MIXED = [
    row(temperature=0.0),
    row(temperature=0.0, n_logprobs=2),
    row(seed=1),
    row(seed=2, top_p=0.8, output_ids=(4, 4, 9)),
    row(seed=3, top_k=900, temperature=3.0),
    row(seed=4, min_p=0.1, n_logprobs=0),
    row(seed=5, repetition_penalty=1.3, prompt_ids=(1, 2, 3), output_ids=(7,)),
    row(seed=6, presence_penalty=0.5, frequency_penalty=-0.2, output_ids=(8, 8), n_logprobs=5),
    row(temperature=0.0, logit_bias={17: 100.0, 3: -100.0}),
    row(temperature=0.0, banned_ids=(1, 2)),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_row_gets_the_same_alone_in_any_batch_and_again(dtype):
    logits = make_logits(len(MIXED), scale=2.0, seed=8, dtype=dtype)
    together = sample(logits, MIXED)
    torch.manual_seed(99)
    assert sample(logits, MIXED) == together
    assert sample(logits.flip(0), MIXED[::-1]) == together[::-1]
    for i, alone in enumerate(MIXED):
        assert sample(logits[i : i + 1], [alone]) == [together[i]]
    assert together[8].token_id == 17


def test_the_logits_are_not_written_to():
    logits = make_logits(len(MIXED), scale=2.0, seed=8)
    before = logits.clone()
    sample(logits, MIXED)
    assert torch.equal(logits, before)


class OpLog(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.name())
        return func(*args, **(kwargs or {}))


def test_all_greedy_rows_cost_one_argmax():
    logits = make_logits(5, scale=1.0, seed=1, dtype=torch.bfloat16)
    with OpLog() as log:
        found = sample(logits, [row((1,), (2,), temperature=0.0, top_k=4, top_p=0.5)] * 5)
    assert log.names == ["aten::argmax"]
    assert found == [Sampled(int(x.argmax()), None) for x in logits]


def test_equal_logits_go_to_the_lowest_id():
    logits = torch.zeros(1, N_VOCAB)
    logits[0, [900, 40, 41]] = 1.0
    assert tokens(logits, [row(temperature=0.0)]) == [40]
    for seed in range(20):
        assert tokens(logits, [row(seed=seed, top_k=1)]) == [40]
        assert tokens(logits, [row(seed=seed, top_k=2)])[0] in (40, 41)
        assert tokens(logits, [row(seed=seed, top_k=5, temperature=50.0)])[0] in (0, 1, 40, 41, 900)


@pytest.mark.parametrize("temperature", [0.01, 1.0, 100.0])
def test_top_k_of_one_is_greedy(temperature):
    logits = make_logits(50, scale=0.001, seed=2)
    rows = [row(seed=s, top_k=1, temperature=temperature) for s in range(50)]
    assert tokens(logits, rows) == logits.argmax(-1).tolist()


@pytest.mark.parametrize(
    ("start", "expected", "params"),
    [
        (4.0, 2.0, {"repetition_penalty": 2.0, "prompt_ids": (0,)}),
        (4.0, 2.0, {"repetition_penalty": 2.0, "output_ids": (0, 0, 0)}),
        (-4.0, -8.0, {"repetition_penalty": 2.0, "prompt_ids": (0,), "output_ids": (0,)}),
        (4.0, 4.0, {"repetition_penalty": 2.0, "prompt_ids": (2,), "output_ids": (2,)}),
        (4.0, 2.5, {"frequency_penalty": 0.5, "output_ids": (0, 2, 0, 0)}),
        (4.0, 4.0, {"frequency_penalty": 0.5, "presence_penalty": 0.5, "prompt_ids": (0,)}),
        (4.0, 3.25, {"presence_penalty": 0.75, "output_ids": (0, 0)}),
        (4.0, 5.0, {"presence_penalty": -1.0, "output_ids": (0,)}),
        (
            4.0,
            0.5,
            {"repetition_penalty": 2.0, "frequency_penalty": 0.5, "presence_penalty": 0.5, "output_ids": (0, 0)},
        ),
        (4.0, 5.5, {"logit_bias": {0: 1.5}}),
        (-3.0, 1.0, {"logit_bias": {0: 5.0}, "repetition_penalty": 2.0, "output_ids": (0,)}),
    ],
)
def test_bias_and_penalties_move_a_logit_to_the_number_worked_out_by_hand(start, expected, params):
    """Seen from outside: token 0 loses against a rival just above that number and wins against one just below."""
    logits = torch.tensor([[start, expected - 0.01, -50.0], [start, expected + 0.01, -50.0]])
    assert tokens(logits, [row(temperature=0.0, **params)] * 2) == [0, 1]


@pytest.mark.parametrize("params", [{"temperature": 0.0}, {}, {"top_p": 0.9}, {"logit_bias": {0: 100.0}}], ids=str)
def test_a_banned_token_does_not_come_and_the_others_come_as_if_it_were_not_there(params):
    logits = torch.tensor([[5.0, 1.0, 4.0, 0.5]])
    without = torch.tensor([[-INF, 1.0, -INF, 0.5]])
    for seed in range(40):
        banned = row(seed=seed, banned_ids=frozenset({0, 2}), **params)
        assert tokens(logits, [banned]) == tokens(without, [row(seed=seed, **params)])
    best = logits.argmax(dim=-1)
    assert sample(logits, [row(banned_ids=(0,), temperature=0.0)], best)[0].token_id == 2


def test_one_row_s_penalty_does_not_touch_another():
    logits = torch.tensor([[1.0, 0.9], [1.0, 0.9]])
    rows = [row(temperature=0.0, output_ids=(0,), presence_penalty=1.0), row(temperature=0.0, output_ids=(0,))]
    assert tokens(logits, rows) == [1, 0]


def test_extreme_bias_forces_and_forbids_under_sampling():
    logits = make_logits(40, scale=3.0, seed=4)
    best = logits[0].argmax().item()
    forced = tokens(logits, [row(seed=s, logit_bias={77: 100.0}) for s in range(40)])
    assert forced == [77] * 40
    banned = [row(seed=s, temperature=0.3, logit_bias={best: -100.0}) for s in range(40)]
    assert best in tokens(logits[:1].expand(40, -1), [row(seed=s, temperature=0.3) for s in range(40)])
    assert best not in tokens(logits[:1].expand(40, -1), banned)


@pytest.mark.parametrize("params", [{}, {"top_k": 50}, {"top_p": 0.9}, {"min_p": 1e-9}, {"temperature": 1e4}], ids=str)
def test_minus_infinity_is_never_drawn(params):
    logits = torch.full((300, N_VOCAB), -INF)
    logits[:, [5, 800, 1299]] = torch.tensor([1.0, 1.2, 0.8])
    found = tokens(logits, [row(seed=s, **params) for s in range(300)])
    assert set(found) <= {5, 800, 1299}
    assert len(set(found)) == 3


@pytest.mark.parametrize("params", [{}, {"min_p": 1e-30}], ids=str)
def test_the_ends_of_the_draw_find_no_token_of_probability_zero(params, monkeypatch):
    logits = torch.tensor([[-INF, 0.3, 0.1, -INF]])
    found = []
    for draw in (0.0, 1 - 2**-24):
        monkeypatch.setattr(sampler, "uniform", lambda *_, draw=draw: draw)
        found += tokens(logits, [row(**params)])
    assert found == [1, 2]


@pytest.mark.parametrize("params", [{"top_p": 0.0}, {"top_p": 1e-30}, {"temperature": 1e-300}, {"temperature": 2e-5}])
def test_extreme_parameters_leave_the_best_token(params):
    logits = make_logits(20, scale=30.0, seed=6)
    assert tokens(logits, [row(seed=s, **params) for s in range(20)]) == logits.argmax(-1).tolist()


@pytest.mark.parametrize("bad", [-INF, INF, math.nan])
def test_a_row_of_rubbish_gets_a_valid_id_and_spoils_no_other(bad):
    logits = make_logits(4, scale=1.0, seed=7)
    rows = [row(seed=1, top_p=0.9), row(seed=2), row(seed=3, top_k=3, n_logprobs=1), row(temperature=0.0)]
    good = sample(logits, rows)
    for i in range(4):
        spoiled = logits.clone()
        spoiled[i] = bad
        found = sample(spoiled, rows)
        assert 0 <= found[i].token_id < N_VOCAB
        assert found[:i] + found[i + 1 :] == good[:i] + good[i + 1 :]


def test_logprobs_are_the_model_s_own_best_first():
    logits = make_logits(3, scale=2.0, seed=9, dtype=torch.bfloat16)
    shaping = {"temperature": 0.2, "logit_bias": {3: 50.0}, "top_k": 2, "n_logprobs": 4}
    found = sample(logits, [row(**shaping), row(n_logprobs=0), row()])
    expected = logits[0].double().log_softmax(-1)
    ranked = sorted(range(N_VOCAB), key=lambda t: (-expected[t].item(), t))[:4]
    assert found[0].token_id == 3
    assert found[0].logprobs.chosen == pytest.approx(expected[3].item(), abs=1e-5)
    assert [t for t, _ in found[0].logprobs.top] == ranked
    assert [x for _, x in found[0].logprobs.top] == pytest.approx(expected[ranked].tolist(), abs=1e-5)
    assert found[1].logprobs.top == ()
    assert found[1].logprobs.chosen < 0
    assert found[2].logprobs is None


def test_the_chosen_logprob_is_the_same_float_as_in_top():
    logits = make_logits(64, scale=4.0, seed=10)
    found = sample(logits, [row(seed=s, n_logprobs=5, top_k=5) for s in range(64)])
    assert all(dict(s.logprobs.top)[s.token_id] == s.logprobs.chosen for s in found)


def test_top_logprobs_break_ties_by_id_and_stop_at_the_vocabulary():
    logits = torch.zeros(1, 9)
    logits[0, 6] = 1.0
    found = {n: sample(logits, [row(temperature=0.0, n_logprobs=n)])[0].logprobs.top for n in (1, 3, 9, 20)}
    ids = {n: [t for t, _ in top] for n, top in found.items()}
    assert ids == {1: [6], 3: [6, 0, 1], 9: [6, 0, 1, 2, 3, 4, 5, 7, 8], 20: [6, 0, 1, 2, 3, 4, 5, 7, 8]}


@pytest.mark.parametrize("shape", [(2, 5), (5,), (1, 3, 5)])
def test_logits_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match="n_vocab"):
        sample(torch.zeros(shape), [row()])
    assert sample(torch.zeros(0, 5), []) == []
