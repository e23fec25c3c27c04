import math
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch.nn.attention import flex_attention as flex

from onebasis.core.errors import InvalidModel
from onebasis.core.ids import BASE_SLOT
from onebasis.kernels import triton_batched
from onebasis.model.attention import GatherStep, paged_attention
from onebasis.model.batch import DecodeGroup, ForwardBatch, PrefillChunk
from onebasis.model.flex_attention import FlexStep, attention_for
from onebasis.model.kv_cache import KVCache
from tests.model.families import CPU

HEAD_DIM = 6
N_BLOCKS = 40
LAYER = 1
SCALING = 0.6
DECODE_LENGTHS = (1, 3, 4, 5, 8, 13)
CHUNKS = ((0, 2), (0, 4), (3, 9), (4, 8), (7, 12), (8, 13))
"""(first token, end) of each prefill chunk"""


def attention_by_definition(q, keys, values, *, position, window, softcap):
    """One token's answer [n_heads, dim] over its sequence's keys [n, n_kv_heads, dim], one number at a time."""
    first = 0 if window is None else max(0, position - window + 1)
    group = q.shape[0] // keys.shape[1]
    answer = []
    for head in range(q.shape[0]):
        scores = [SCALING * float(q[head] @ keys[at, head // group]) for at in range(first, position + 1)]
        if softcap is not None:
            scores = [softcap * math.tanh(score / softcap) for score in scores]
        weights = torch.tensor(scores, dtype=torch.float64).softmax(dim=0)
        answer.append(weights @ values[first : position + 1, head // group].double())
    return torch.stack(answer).float()


class Scene:
    """Random sequences in shuffled blocks of a cache, everything before the step's own tokens already in it.

    `step` makes an AttentionStep of a batch and a cache. Block tables have at least `table_width` columns,
    padded with a block that is nobody's, or else with one of the first sequence.
    """

    def __init__(
        self,
        step,
        *,
        n_heads=6,
        n_kv_heads=2,
        block_size=4,
        decodes=DECODE_LENGTHS,
        chunks=CHUNKS,
        table_width=0,
        pads_with_0=True,
    ):
        self._step = step
        self._table_width = table_width
        self._generator = torch.Generator().manual_seed(len(decodes) * 7 + n_heads + block_size)
        self._shape = (n_heads, n_kv_heads)
        config = SimpleNamespace(
            num_attention_heads=n_heads, num_key_value_heads=n_kv_heads, head_dim=HEAD_DIM, num_hidden_layers=2
        )
        self.cache = KVCache(config, n_blocks=N_BLOCKS, block_size=block_size, dtype=torch.float32, device=CPU)
        self.spans = [(length - 1, length) for length in decodes] + list(chunks)
        lengths = [end for _, end in self.spans]
        order = (torch.randperm(N_BLOCKS - 1, generator=self._generator) + 1).tolist()  # 0 pads tables; it is nobody's
        self._tables = [[order.pop() for _ in range(-(-length // block_size))] for length in lengths]
        self.keys, self.values = ([self._random(length, n_kv_heads) for length in lengths] for _ in range(2))
        self.queries = [self._random(end - start, n_heads) for start, end in self.spans]
        self._rows = [
            torch.tensor([table[i // block_size] * block_size + i % block_size for i in range(length)])
            for table, length in zip(self._tables, lengths, strict=True)
        ]
        self._padding = 0 if pads_with_0 else self._tables[0][0]
        self.batch = self._batch(len(decodes))

    def attend(self, *, window=None, softcap=None):
        """[n_heads, dim] answers of all tokens of the step, as a list per sequence."""
        out, weights = self.call(sliding_window=window, softcap=softcap, dropout=0.0)
        assert weights is None
        assert out.shape == (1, self.batch.token_ids.shape[0], self._shape[0], HEAD_DIM)
        return out[0].split([end - start for start, end in self.spans])

    def call(self, *, attention_mask=None, **asked):
        """As a layer calls it."""
        for (start, _), rows, keys, values in zip(self.spans, self._rows, self.keys, self.values, strict=True):
            self.cache.write(LAYER, rows[:start], keys[:start], values[:start])
        own = [slice(start, end) for start, end in self.spans]
        new_keys = torch.cat([keys[span] for keys, span in zip(self.keys, own, strict=True)])
        new_values = torch.cat([values[span] for values, span in zip(self.values, own, strict=True)])
        return paged_attention(
            SimpleNamespace(layer_idx=LAYER),
            *[flat.transpose(0, 1)[None] for flat in (torch.cat(self.queries), new_keys, new_values)],
            attention_mask,
            scaling=SCALING,
            paged_step=self._step(self.batch, self.cache),
            **asked,
        )

    def check(self, **options):
        """Every token's answer is the definition's."""
        window, softcap = options.get("window"), options.get("softcap")
        for i, got in enumerate(self.attend(**options)):
            for offset, position in enumerate(range(*self.spans[i])):
                q, keys, values = self.queries[i][offset], self.keys[i], self.values[i]
                want = attention_by_definition(q, keys, values, position=position, window=window, softcap=softcap)
                torch.testing.assert_close(got[offset], want, rtol=1e-5, atol=2e-6)

    def share_beginning(self, first, second, *, n_tokens):
        """Whole blocks of the first sequence become the second's, too, with the numbers in them."""
        n_blocks = n_tokens // self.cache.block_size
        self._tables[second][:n_blocks] = self._tables[first][:n_blocks]
        for rows in (self._rows, self.keys, self.values):
            rows[second][:n_tokens] = rows[first][:n_tokens]
        self.batch = self._batch(len(self.spans))

    def foul_what_is_not_theirs(self, number):
        """Have a step write `number` where none of the sequences has a token, in both layers."""
        theirs = torch.cat(self._rows)
        rest = torch.tensor(sorted(set(range(self.cache.n_rows)) - set(theirs.tolist())))
        n_heads, n_kv_heads = self._shape
        numbers = torch.full((len(rest), n_kv_heads, HEAD_DIM), number)
        unused = torch.zeros(0, dtype=torch.int64)
        step = self._step(ForwardBatch(unused, unused, rest, None, unused, None, ()), self.cache)
        for layer in range(2):
            queries = torch.zeros(len(rest), n_heads, HEAD_DIM)
            step.attend(layer, queries, numbers, numbers, scaling=SCALING, window=None, softcap=None)

    def _random(self, n_tokens, n_heads):
        return torch.randn(n_tokens, n_heads, HEAD_DIM, generator=self._generator)

    def _batch(self, n_decodes):
        sizes = [end - start for start, end in self.spans]
        ends = torch.tensor(sizes).cumsum(0).tolist()
        width = max(self._table_width, *map(len, self._tables))
        tables = torch.tensor([table + [self._padding] * (width - len(table)) for table in self._tables])
        lengths = [end for _, end in self.spans]
        group = DecodeGroup(tables[:n_decodes], torch.tensor(lengths[:n_decodes])) if n_decodes else None
        used = [max(len(table), self._table_width) for table in self._tables]
        chunks = tuple(
            PrefillChunk(ends[i] - sizes[i], ends[i], tables[i, : used[i]], lengths[i], BASE_SLOT)
            for i in range(n_decodes, len(self.spans))
        )
        written = [rows[start:end] for (start, end), rows in zip(self.spans, self._rows, strict=True)]
        unused = torch.zeros(ends[-1], dtype=torch.int64)
        return ForwardBatch(unused, unused, torch.cat(written), None, unused[:0], group, chunks)


def flex_by_blocks(query, key, value, *, block_mask, kernel_options, **options):
    """flex_attention as its compiled kernels do it: they visit the listed blocks alone, by the mask's size of a block.
    Uncompiled it would visit them all.
    """
    block_size = block_mask.BLOCK_SIZE[1]
    assert block_size % kernel_options["BLOCK_N"] == 0
    n_seqs, _, n_tiles, _ = block_mask.kv_indices.shape
    visited = torch.zeros(n_seqs, n_tiles, key.shape[2] // block_size, dtype=torch.bool)
    for seq in range(n_seqs):
        for tile in range(n_tiles):
            listed = block_mask.kv_indices[seq, 0, tile, : block_mask.kv_num_blocks[seq, 0, tile]].tolist()
            assert len(set(listed)) == len(listed), "no block is visited twice"
            visited[seq, tile, listed] = True
    may_see = block_mask.mask_mod
    seen = flex.create_mask(may_see, n_seqs, 1, query.shape[2], key.shape[2], device="cpu")
    useful = seen.view(n_seqs, -1, visited.shape[2], block_size).any(dim=3).any(dim=1)
    assert torch.equal(useful, visited.any(dim=1)), "exactly the blocks of which something is seen"
    block_mask.mask_mod = lambda b, h, q, kv: may_see(b, h, q, kv) & visited[b, q // 128, kv // block_size]
    answer = flex.flex_attention(query, key, value, block_mask=block_mask, **options)
    block_mask.mask_mod = may_see
    return answer


@pytest.fixture(params=["gather", "flex"])
def step(request, monkeypatch):
    """Both ways to attend."""
    if request.param == "gather":
        return GatherStep
    monkeypatch.setattr(flex, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)  # no detour over the compiler
    return partial(FlexStep, flex=flex_by_blocks)


def test_tables_may_be_wider_than_any_sequence_needs(step):
    Scene(step, table_width=17, pads_with_0=False).check(window=5)


def test_a_chunk_of_several_tiles_of_queries(step):
    Scene(step, block_size=16, decodes=(90,), chunks=((5, 300),)).check(window=150)


def test_sequences_may_share_the_blocks_of_a_common_beginning(step):
    """As sequences with one prefix do: the second continues what the first has in the cache."""
    scene = Scene(step, decodes=(9, 13), chunks=())
    scene.share_beginning(0, 1, n_tokens=8)
    scene.check()


@pytest.mark.parametrize(
    ("device", "has_triton", "block_size", "kind"),
    [
        ("cuda", True, 16, FlexStep),
        ("cuda", True, 48, FlexStep),
        ("cuda", True, 24, GatherStep),
        ("cuda", False, 16, GatherStep),
        ("cpu", True, 16, GatherStep),
    ],
)
def test_a_gpu_that_can_attends_where_the_blocks_lie(monkeypatch, device, has_triton, block_size, kind):
    """The choice alone: there is no GPU to do it."""
    monkeypatch.setattr(triton_batched, "is_available", lambda: has_triton)
    scene = Scene(GatherStep)
    assert isinstance(attention_for(torch.device(device), block_size)(scene.batch, scene.cache), kind)


@pytest.mark.parametrize("softcap", [None, 0.8])
@pytest.mark.parametrize("window", [None, 1, 3, 4, 5, 100])
def test_windows_and_softcaps_match_the_definition(step, window, softcap):
    Scene(step).check(window=window, softcap=softcap)


@pytest.mark.parametrize("softcap", [None, 0.8])
@pytest.mark.parametrize(("n_heads", "n_kv_heads"), [(3, 3), (4, 1), (6, 3), (8, 2)])
def test_query_heads_share_the_right_key_heads(step, n_heads, n_kv_heads, softcap):
    Scene(step, n_heads=n_heads, n_kv_heads=n_kv_heads).check(softcap=softcap)


@pytest.mark.parametrize("block_size", [1, 2, 3, 5, 16])
def test_the_size_of_a_block_does_not_matter(step, block_size):
    Scene(step, block_size=block_size, decodes=(1, 2, 3, 5, 6), chunks=((0, 3), (2, 5), (5, 7))).check(window=4)


@pytest.mark.parametrize(("decodes", "chunks"), [(DECODE_LENGTHS, ()), ((), CHUNKS), ((9,), ()), ((), ((0, 9),))])
def test_steps_of_one_kind_only(step, decodes, chunks):
    Scene(step, decodes=decodes, chunks=chunks).check(window=6)


@pytest.mark.parametrize("softcap", [None, 0.8])
@pytest.mark.parametrize("number", [math.nan, math.inf, 3e38])
def test_numbers_that_others_left_in_the_cache_reach_nobody(step, number, softcap):
    """A task may overflow; blocks are not cleared when they change hands, and padding names a block of anybody."""
    scene = Scene(step)
    scene.foul_what_is_not_theirs(number)
    scene.check(softcap=softcap)


def test_one_layer_does_not_write_another(step):
    scene = Scene(step)
    every_block = torch.arange(N_BLOCKS)
    before = [numbers.clone() for numbers in scene.cache.read(0, every_block)]
    scene.attend()
    for now, then in zip(scene.cache.read(0, every_block), before, strict=True):
        assert torch.equal(now, then)


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        ({"s_aux": torch.zeros(4)}, "s_aux"),
        ({"is_causal": False}, "is_causal"),
        ({"dropout": 0.1}, "dropout"),
        ({"sinks": 1, "s_aux": torch.zeros(4), "position_ids": torch.zeros(1)}, "sinks, s_aux"),
        ({"attention_mask": torch.zeros(1, 1, 2, 2)}, "attention_mask"),
    ],
    ids=str,
)
def test_what_a_layer_asks_for_beside_this_is_refused(asked, named):
    scene = Scene(GatherStep)
    with pytest.raises(InvalidModel, match=f"attention asks for {named};.* use engine=vllm"):
        scene.call(**asked)


@pytest.mark.parametrize(
    "asked",
    [{"s_aux": None}, {"is_causal": True}, {"is_causal": None, "use_cache": False, "output_router_logits": True}],
)
def test_what_changes_nothing_may_be_asked_for(asked):
    scene = Scene(GatherStep)
    assert torch.equal(scene.call(**asked)[0], scene.call()[0])
