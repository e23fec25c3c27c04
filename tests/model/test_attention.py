import math
from types import SimpleNamespace

import pytest
import torch

from onebasis.core.ids import BASE_SLOT
from onebasis.model.attention import PagedStep, paged_attention
from onebasis.model.batch import DecodeGroup, ForwardBatch, PrefillChunk
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
    """Random sequences in shuffled blocks of a cache, everything before the step's own tokens already in it."""

    def __init__(self, *, n_heads=6, n_kv_heads=2, block_size=4, decodes=DECODE_LENGTHS, chunks=CHUNKS):
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
        self.batch = self._batch(len(decodes))

    def attend(self, *, window=None, softcap=None):
        """[n_heads, dim] answers of all tokens of the step, as a list per sequence."""
        for (start, _), rows, keys, values in zip(self.spans, self._rows, self.keys, self.values, strict=True):
            self.cache.write(LAYER, rows[:start], keys[:start], values[:start])
        own = [slice(start, end) for start, end in self.spans]
        new_keys = torch.cat([keys[span] for keys, span in zip(self.keys, own, strict=True)])
        new_values = torch.cat([values[span] for values, span in zip(self.values, own, strict=True)])
        out, weights = paged_attention(
            SimpleNamespace(layer_idx=LAYER),
            *[flat.transpose(0, 1)[None] for flat in (torch.cat(self.queries), new_keys, new_values)],
            None,
            scaling=SCALING,
            paged_step=PagedStep(self.batch, self.cache),
            sliding_window=window,
            softcap=softcap,
            dropout=0.0,
        )
        assert weights is None
        assert out.shape == (1, self.batch.token_ids.shape[0], self._shape[0], HEAD_DIM)
        return out[0].split([end - start for start, end in self.spans])

    def check(self, **options):
        """Every token's answer is the definition's."""
        window, softcap = options.get("window"), options.get("softcap")
        for i, got in enumerate(self.attend(**options)):
            for offset, position in enumerate(range(*self.spans[i])):
                q, keys, values = self.queries[i][offset], self.keys[i], self.values[i]
                want = attention_by_definition(q, keys, values, position=position, window=window, softcap=softcap)
                torch.testing.assert_close(got[offset], want, rtol=1e-5, atol=2e-6)

    def foul_what_is_not_theirs(self, number):
        """Write `number` where none of the sequences has a token, in both layers."""
        theirs = torch.cat(self._rows)
        n_rows = N_BLOCKS * self.cache.block_size
        rest = torch.tensor(sorted(set(range(n_rows)) - set(theirs.tolist())))
        numbers = torch.full((len(rest), self._shape[1], HEAD_DIM), number)
        for layer in range(2):
            self.cache.write(layer, rest, numbers, numbers)

    def _random(self, n_tokens, n_heads):
        return torch.randn(n_tokens, n_heads, HEAD_DIM, generator=self._generator)

    def _batch(self, n_decodes):
        sizes = [end - start for start, end in self.spans]
        ends = torch.tensor(sizes).cumsum(0).tolist()
        group = None
        if n_decodes:
            n_blocks = max(len(table) for table in self._tables[:n_decodes])
            padded = [table + [0] * (n_blocks - len(table)) for table in self._tables[:n_decodes]]
            group = DecodeGroup(torch.tensor(padded), torch.tensor([end for _, end in self.spans[:n_decodes]]))
        chunks = tuple(
            PrefillChunk(ends[i] - sizes[i], ends[i], torch.tensor(self._tables[i]), self.spans[i][1], BASE_SLOT)
            for i in range(n_decodes, len(self.spans))
        )
        written = [rows[start:end] for (start, end), rows in zip(self.spans, self._rows, strict=True)]
        unused = torch.zeros(ends[-1], dtype=torch.int64)
        return ForwardBatch(unused, unused, torch.cat(written), None, unused[:0], group, chunks)


@pytest.mark.parametrize("softcap", [None, 0.8])
@pytest.mark.parametrize("window", [None, 1, 3, 4, 5, 100])
def test_windows_and_softcaps_match_the_definition(window, softcap):
    Scene().check(window=window, softcap=softcap)


@pytest.mark.parametrize("softcap", [None, 0.8])
@pytest.mark.parametrize(("n_heads", "n_kv_heads"), [(3, 3), (4, 1), (6, 3), (8, 2)])
def test_query_heads_share_the_right_key_heads(n_heads, n_kv_heads, softcap):
    Scene(n_heads=n_heads, n_kv_heads=n_kv_heads).check(softcap=softcap)


@pytest.mark.parametrize("block_size", [1, 2, 3, 5, 16])
def test_the_size_of_a_block_does_not_matter(block_size):
    Scene(block_size=block_size, decodes=(1, 2, 3, 5, 6), chunks=((0, 3), (2, 5), (5, 7))).check(window=4)


@pytest.mark.parametrize(("decodes", "chunks"), [(DECODE_LENGTHS, ()), ((), CHUNKS), ((9,), ()), ((), ((0, 9),))])
def test_steps_of_one_kind_only(decodes, chunks):
    Scene(decodes=decodes, chunks=chunks).check(window=6)


@pytest.mark.parametrize("softcap", [None, 0.8])
@pytest.mark.parametrize("number", [math.nan, math.inf, 3e38])
def test_numbers_that_others_left_in_the_cache_reach_nobody(number, softcap):
    """A task may overflow; blocks are not cleared when they change hands, and padding names a block of anybody."""
    scene = Scene()
    scene.foul_what_is_not_theirs(number)
    scene.check(softcap=softcap)


def test_one_layer_does_not_write_another():
    scene = Scene()
    every_block = torch.arange(N_BLOCKS)
    before = [numbers.clone() for numbers in scene.cache.read(0, every_block)]
    scene.attend()
    for now, then in zip(scene.cache.read(0, every_block), before, strict=True):
        assert torch.equal(now, then)
