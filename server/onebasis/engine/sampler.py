"""From logits to one token for every sequence of a step."""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from onebasis.core.request import SamplingParams, TokenLogprobs
from onebasis.engine.seen_tokens import SeenTokens

_GREEDY_BELOW = 1e-5  # a temperature under this is 0 in effect, and float32 could not divide by it safely
_UNIFORM_BITS = 24  # what float32 holds exactly, so that a draw can't be rounded up to 1
_N_SCORED = 64  # rows of a prompt that are scored at once: bounds the float32 copies of their logits
_N_HEAD = 512  # tokens ranked before a row's whole vocabulary is sorted


@dataclass(frozen=True, slots=True)
class SampleRow:
    """What the sampler needs of one sequence."""

    params: SamplingParams
    output_ids: Sequence[int]  # generated so far
    allowed: NDArray[np.bool_] | None = None  # [n_vocab] tokens that the row's grammar lets come next; None: all
    banned_ids: Collection[int] = ()  # tokens that may not come yet
    seen: SeenTokens | None = None  # the prompt's and the output's; None where no penalty looks at them


@dataclass(frozen=True, slots=True)
class Sampled:
    """The token of one row; log-probabilities where its n_logprobs asked for them."""

    token_id: int
    logprobs: TokenLogprobs | None


@dataclass(frozen=True, slots=True)
class _Ranking:
    """The best of each row, falling, equal ones by id. What ties with the last one may be missing."""

    numbers: Tensor  # [n_rows, n_ranked]
    ids: Tensor  # [n_rows, n_ranked]
    n_sure: Tensor  # [n_rows, 1] how many can't change if the ranking is made longer


def sample(logits: Tensor, rows: Sequence[SampleRow], best: Tensor | None = None) -> list[Sampled]:
    """Choose one token per row, as each row's SamplingParams say.

    Order: logit_bias, repetition penalty, frequency and presence penalty, tokens that are banned or not allowed,
    temperature, min_p, top_k, top_p.
    A draw depends on the row's logits, its seed and len(output_ids), never on the other rows or on earlier
    calls. Of equal logits the lowest id comes first everywhere. All-greedy rows cost one argmax.

    Args:
        logits: [n_rows, n_vocab], any float dtype. Not written to. A row without one finite number, or with
            NaN, gets an arbitrary valid id.
        rows: one for each row of logits; ids are below n_vocab.
        best: [n_rows] int64, `logits.argmax(dim=-1)` where the caller has it: a pass over the logits less.

    Raises:
        ValueError: logits is not [len(rows), n_vocab].
    """
    if logits.ndim != 2 or logits.shape[0] != len(rows):
        raise ValueError(f"logits: needed [{len(rows)}, n_vocab], found {list(logits.shape)}")
    if best is not None and all(_takes_the_best(row) for row in rows):
        return [Sampled(token_id, None) for token_id in best.tolist()]
    shaped = _shape(logits, rows)
    token_ids = best.clone() if best is not None and shaped is logits else shaped.argmax(dim=-1)
    random = [i for i, row in enumerate(rows) if row.params.temperature >= _GREEDY_BELOW]
    greedy = [i for i, row in enumerate(rows) if row.params.temperature < _GREEDY_BELOW and row.allowed is not None]
    plain = [i for i in random if not _is_filtered(rows[i].params)]
    filtered = [i for i in random if _is_filtered(rows[i].params)]
    for draw, members in ((_best, greedy), (_draw, plain), (_draw_filtered, filtered)):
        if members:
            of_members = [rows[i] for i in members]
            token_ids[members] = draw(_only_allowed(shaped[members], of_members), of_members)
    chosen: list[int] = token_ids.tolist()
    logprobs = _logprobs(logits, rows, chosen)
    return [Sampled(token_id, logprobs.get(i)) for i, token_id in enumerate(chosen)]


def score_tokens(logits: Tensor, token_ids: Sequence[int], n_top: int) -> list[TokenLogprobs]:
    """Log-probability of one given token per row under the model's own distribution, and the n_top best of the row.

    Args:
        logits: [n_rows, n_vocab], any float dtype. No float32 copy of all of it is made at once.
        token_ids: one for each row.
    """
    found: list[TokenLogprobs] = []
    for start in range(0, len(token_ids), _N_SCORED):
        table = logits[start : start + _N_SCORED].float().log_softmax(dim=-1)
        ids = torch.tensor(token_ids[start : start + _N_SCORED], device=logits.device).unsqueeze(1)
        of_ids: list[float] = table.gather(1, ids).squeeze(1).tolist()
        found += (TokenLogprobs(number, tuple(top)) for number, top in zip(of_ids, _top(table, n_top), strict=True))
    return found


def uniform(seed: int, position: int) -> float:
    """The draw of one position: in [0, 1), exact in float32, a pure function of its arguments."""
    key = (seed % 2**64).to_bytes(8, "little")
    digest = blake2b(position.to_bytes(8, "little"), key=key, digest_size=_UNIFORM_BITS // 8).digest()
    return int.from_bytes(digest, "little") / (1 << _UNIFORM_BITS)


def _takes_the_best(row: SampleRow) -> bool:
    """Nothing but the highest logit counts. For most steps of most servers it is so for all rows."""
    params = row.params
    return (
        params.temperature < _GREEDY_BELOW and row.allowed is None and not _is_shaped(row) and params.n_logprobs is None
    )


def _is_filtered(params: SamplingParams) -> bool:
    return params.top_k > 0 or params.top_p < 1.0 or params.min_p > 0.0


def _is_shaped(row: SampleRow) -> bool:
    return bool(row.params.logit_bias) or row.seen is not None or bool(row.banned_ids)


def _shape(logits: Tensor, rows: Sequence[SampleRow]) -> Tensor:
    """float32 copy with biases, penalties and bans applied; the argument itself where no row has any."""
    if not any(map(_is_shaped, rows)):
        return logits
    shaped = logits.to(torch.float32, copy=True)
    for of_row, row in zip(shaped, rows, strict=True):
        if row.params.logit_bias:
            ids, biases = zip(*row.params.logit_bias.items(), strict=True)
            of_row[torch.tensor(ids, device=logits.device)] += torch.tensor(biases, device=logits.device)
        if row.seen is not None:
            _penalise(of_row, row.params, row.seen)
        if row.banned_ids:
            of_row[torch.tensor(list(row.banned_ids), device=logits.device)] = -math.inf
    return shaped


def _penalise(logits: Tensor, params: SamplingParams, seen: SeenTokens) -> None:
    """Change one row in place. logits: [n_vocab] float32."""
    ids = torch.from_numpy(seen.ids).to(logits.device)
    of_seen = logits[ids]
    of_seen = torch.where(of_seen > 0, of_seen / params.repetition_penalty, of_seen * params.repetition_penalty)
    n = seen.n_generated
    amount = (n > 0) * params.presence_penalty + n * params.frequency_penalty
    logits[ids] = of_seen - torch.from_numpy(amount).to(logits.device, torch.float32)


def _only_allowed(logits: Tensor, rows: Sequence[SampleRow]) -> Tensor:
    """`logits`, changed in place: -inf where a row's grammar does not let a token come."""
    for of_row, row in zip(logits, rows, strict=True):
        if row.allowed is not None:
            of_row.masked_fill_(torch.from_numpy(~row.allowed).to(logits.device), -math.inf)
    return logits


def _best(logits: Tensor, _rows: Sequence[SampleRow]) -> Tensor:
    """[n_rows] the most likely token ids."""
    return logits.argmax(dim=-1)


def _draw(logits: Tensor, rows: Sequence[SampleRow]) -> Tensor:
    """[n_rows] token ids by inverse CDF in order of id."""
    cdf = _probabilities(logits, rows).cumsum(dim=-1)
    return _invert(cdf, cdf[:, -1:], rows).squeeze(1)


def _draw_filtered(logits: Tensor, rows: Sequence[SampleRow]) -> Tensor:
    """[n_rows] token ids by inverse CDF in order of falling probability.

    Sorting a vocabulary is the dearest thing here, and filters rarely keep more than a head of it. So each
    row tries with its head, and only a row whose filters reach further is sorted whole: same result.
    """
    probs = _probabilities(logits, rows)
    token_ids, is_sure = _draw_ranked(_rank(logits, _N_HEAD), probs, rows)
    unsure = [i for i, sure in enumerate(is_sure.tolist()) if not sure]
    if unsure:
        whole = _rank(logits[unsure], logits.shape[1])
        token_ids[unsure], _ = _draw_ranked(whole, probs[unsure], [rows[i] for i in unsure])
    return token_ids


def _draw_ranked(ranking: _Ranking, probs: Tensor, rows: Sequence[SampleRow]) -> tuple[Tensor, Tensor]:
    """[n_rows] token ids, and [n_rows] bool: the ranking was long enough to be sure of them.

    Each filter keeps a prefix of the ranking, so together they only decide where the CDF ends.
    """
    n_vocab, n_ranked = probs.shape[1], ranking.ids.shape[1]
    ranked = probs.gather(1, ranking.ids)
    cdf = ranked.cumsum(dim=-1)
    min_p = _column([row.params.min_p for row in rows], probs)
    top_p = _column([row.params.top_p for row in rows], probs)
    top_k = torch.tensor([[row.params.top_k or n_vocab] for row in rows], device=probs.device)
    n_kept = (ranked >= min_p * ranked[:, :1]).sum(dim=-1, keepdim=True).clamp(min=1)
    n_kept = n_kept.minimum(top_k.clamp(max=n_ranked))
    is_whole = (min_p == 0) & (top_k >= n_vocab)
    is_sure = is_whole | (n_kept <= ranking.n_sure)
    mass = torch.where(is_whole, probs.sum(dim=-1, keepdim=True), cdf.gather(1, n_kept - 1))
    n_kept = n_kept.minimum(torch.searchsorted(cdf, top_p * mass) + 1)
    is_sure &= n_kept <= ranking.n_sure
    place = _invert(cdf, cdf.gather(1, n_kept - 1), rows)
    return ranking.ids.gather(1, place).squeeze(1), is_sure.squeeze(1)


def _rank(table: Tensor, n_ranked: int) -> _Ranking:
    n_rows, n_columns = table.shape
    if n_ranked >= n_columns:
        numbers, ids = table.sort(dim=-1, descending=True, stable=True)
        return _Ranking(numbers, ids, torch.full((n_rows, 1), n_columns, device=table.device))
    by_id = table.topk(n_ranked, dim=-1).indices.sort(dim=-1).values
    numbers, order = table.gather(1, by_id).sort(dim=-1, descending=True, stable=True)
    n_sure = (numbers > numbers[:, -1:]).sum(dim=-1, keepdim=True)
    return _Ranking(numbers, by_id.gather(1, order), n_sure)


def _probabilities(logits: Tensor, rows: Sequence[SampleRow]) -> Tensor:
    """float32 softmax at each row's temperature; the peak is taken off first, so nothing overflows."""
    logits = logits.float()
    temperature = _column([row.params.temperature for row in rows], logits)
    return ((logits - logits.amax(dim=-1, keepdim=True)) / temperature).softmax(dim=-1)


def _invert(cdf: Tensor, mass: Tensor, rows: Sequence[SampleRow]) -> Tensor:
    """[n_rows, 1] first place where cdf exceeds the row's draw from [0, mass): never one of probability 0."""
    draws = [uniform(row.params.seed, len(row.output_ids)) for row in rows]
    place = torch.searchsorted(cdf, _column(draws, cdf) * mass, right=True)
    return place.clamp(max=cdf.shape[1] - 1)  # of NaN comes a valid id too: one bad row can't stop a batch


def _column(numbers: list[float], like: Tensor) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float32, device=like.device).unsqueeze(1)


def _logprobs(logits: Tensor, rows: Sequence[SampleRow], chosen: Sequence[int]) -> dict[int, TokenLogprobs]:
    """Row -> log-probabilities under the model's own distribution, for the rows that ask."""
    n_top = {i: row.params.n_logprobs for i, row in enumerate(rows) if row.params.n_logprobs is not None}
    if not n_top:
        return {}
    members = list(n_top)
    table = logits[members].float().log_softmax(dim=-1)
    of_chosen = table.gather(1, torch.tensor([[chosen[i]] for i in members], device=logits.device))
    top = _top(table, max(n_top.values()))
    return {
        i: TokenLogprobs(chosen=number, top=tuple(entries[: n_top[i]]))
        for i, number, entries in zip(members, of_chosen.squeeze(1).tolist(), top, strict=True)
    }


def _top(table: Tensor, n_entries: int) -> list[list[tuple[int, float]]]:
    """The first n_entries (id, number) of every row, best first."""
    if n_entries == 0:
        return [[] for _ in range(table.shape[0])]
    ranking = _rank(table, n_entries + 1)
    if bool((ranking.n_sure < n_entries).any()):
        ranking = _rank(table, table.shape[1])
    columns = (ranking.ids[:, :n_entries].tolist(), ranking.numbers[:, :n_entries].tolist())
    return [list(zip(ids, numbers, strict=True)) for ids, numbers in zip(*columns, strict=True)]
