"""Bytes and FLOPs of a step, from shapes: `python -m loadtests.roofline [FILE]` writes server/docs/roofline.md.

No time is measured or predicted here: which of the two bounds a step depends on a machine that we don't have.
"""

import argparse
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

PAGE = Path(__file__).resolve().parent.parent / "server" / "docs" / "roofline.md"
WEIGHT_BYTES = 2  # bfloat16: base, factors, LoRA, activations, KV cache
CORE_BYTES = 4  # float32, as the arena has them
KS = (16, 32, 64)
LORA_RANK = 16
N_TASKS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
N_RESIDENT = (100, 1_000, 10_000)
CONTEXT = 1024
PREFILLS = ((512, 1), (512, 8), (2048, 1), (2048, 32))
"""(tokens, tasks) of a prefill step."""


@dataclass(frozen=True)
class Group:
    """Linear layers that read the same input and are computed together."""

    names: tuple[str, ...]
    d_in: int
    d_outs: tuple[int, ...]

    @property
    def d_out(self) -> int:
        return sum(self.d_outs)


@dataclass(frozen=True)
class Shape:
    """A Llama-shaped model."""

    name: str
    n_layers: int
    hidden: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    intermediate: int
    n_vocab: int

    @property
    def groups(self) -> tuple[Group, ...]:
        """Of one decoder layer."""
        heads, kv_heads = self.n_heads * self.head_dim, self.n_kv_heads * self.head_dim
        return (
            Group(("q", "k", "v"), self.hidden, (heads, kv_heads, kv_heads)),
            Group(("o",), heads, (self.hidden,)),
            Group(("gate", "up"), self.hidden, (self.intermediate, self.intermediate)),
            Group(("down",), self.intermediate, (self.hidden,)),
        )

    @property
    def n_weights(self) -> int:
        """Numbers that a token is multiplied with: the layers' and the head's."""
        return self.n_layers * sum(group.d_in * group.d_out for group in self.groups) + self.hidden * self.n_vocab

    @property
    def kv_bytes(self) -> int:
        """Keys and values of one token."""
        return self.n_layers * 2 * self.n_kv_heads * self.head_dim * WEIGHT_BYTES

    def attention_flops(self, n_pairs: int) -> int:
        """Scores and weighted sums of so many pairs of a query and a key."""
        return self.n_layers * 4 * self.n_heads * self.head_dim * n_pairs

    def update_activation_bytes(self, n_tokens: int) -> int:
        """x read once a group, y read and written: either way of adding an update does at least this."""
        numbers = sum(group.d_in + 2 * group.d_out for group in self.groups)
        return self.n_layers * numbers * n_tokens * WEIGHT_BYTES

    def factor_numbers(self, k: int) -> int:
        """V, and U as it is stored: block-diagonal over the sites of a group, zeros included."""
        return self.n_layers * sum(len(group.names) * k * (group.d_in + group.d_out) for group in self.groups)

    def core_numbers(self, k: int) -> int:
        """Of one task at all sites."""
        return self.n_layers * sum(len(group.names) for group in self.groups) * k * k

    def basis_bytes(self, k: int, n_tasks: int) -> int:
        """Read once a step by the update over the shared basis."""
        return self.factor_numbers(k) * WEIGHT_BYTES + n_tasks * self.core_numbers(k) * CORE_BYTES

    def basis_flops(self, k: int, n_tokens: int) -> int:
        """The three products of the update, zeros of the block-diagonal U included."""
        return 2 * n_tokens * (self.factor_numbers(k) + self.core_numbers(k))

    def lora_numbers(self, rank: int) -> int:
        """A and B of one adapter at all sites."""
        sites = ((group.d_in, d_out) for group in self.groups for d_out in group.d_outs)
        return self.n_layers * sum(rank * (d_in + d_out) for d_in, d_out in sites)

    def lora_bytes(self, rank: int, n_tasks: int) -> int:
        """Read once a step by a gathered LoRA update (BGMV)."""
        return n_tasks * self.lora_numbers(rank) * WEIGHT_BYTES

    def lora_flops(self, rank: int, n_tokens: int) -> int:
        return 2 * n_tokens * self.lora_numbers(rank)

    def first_win(self, k: int, rank: int) -> int:
        """Fewest distinct tasks at which the basis reads less than LoRA; 0 if never."""
        saved = self.lora_bytes(rank, 1) - self.core_numbers(k) * CORE_BYTES
        return 0 if saved <= 0 else self.basis_bytes(k, 0) // saved + 1


LLAMA_8B = Shape("Llama-3.1-8B", 32, 4096, 32, 8, 128, 14336, 128256)


def page(shape: Shape = LLAMA_8B) -> str:
    """The whole page in Markdown."""
    wins = ", ".join(f"{shape.first_win(k, LORA_RANK)} at k={k}" for k in KS)
    base = shape.n_weights * WEIGHT_BYTES
    return f"""# Roofline: bytes and FLOPs of a step

Written by `python -m loadtests.roofline` from the shapes of {shape.name}; a test compares. These are counts, not
times: no GPU was at hand. The update over one shared basis ("basis") beside LoRA of rank {LORA_RANK}, gathered as in
Punica's BGMV (arXiv 2310.18547), both at all {shape.n_layers * 7} sites of the model.

Assumptions: base, factors, LoRA, activations and KV cache in bfloat16, cores in float32 as the arena has them. In a
step every weight, factor and each distinct task's numbers are read once (the best case for both: a kernel that gathers
per token may read them again); no cache holds anything from step to step; embeddings, norms and the sampler are left
out; the head is computed for every token. U counts as it is stored, block-diagonal over q, k, v and over gate, up,
zeros included. MB is 10^6 bytes.

## Decode: bytes, by distinct tasks
Base weights {_mb(base)} MB a step; KV cache {_mb(shape.kv_bytes * CONTEXT)} MB a sequence with {CONTEXT} tokens of
context. An update reads beside them, in MB:

{_decode_bytes(shape)}

The basis reads less than LoRA from this many distinct tasks on: {wins}.
**Below that, LoRA reads less**: with one task ({_mb(shape.lora_bytes(LORA_RANK, 1))} MB against
{_mb(shape.basis_bytes(KS[0], 1))} MB at k={KS[0]}) there is nothing to share, and a batch of n tokens has at most n
tasks, so the smallest batches are LoRA's as well. Both are small beside the base there.

## Decode: a step in full, every token a task of its own
{_decode_steps(shape)}

FLOPs a byte are those of the whole step with the basis at k={KS[0]}. Activations of the update (x read once a group, y
read and written) are the same for both ways; a kernel fused into the base's product would save them for both.

## Prefill: a step in full
{_prefill_steps(shape)}

Attention is that of one sequence per task, all equally long. In FLOPs an update costs per token, not per task: the
basis at k=r costs more than LoRA, by its cores and by the zeros of the block-diagonal U, and at k={KS[-1]} much more.

## Resident tasks: MB
{_resident(shape)}
"""


def _decode_bytes(shape: Shape) -> str:
    head = ["distinct tasks", *(f"basis k={k}" for k in KS), f"LoRA r={LORA_RANK}"]
    head += [f"basis k={KS[0]}, share of base weights", f"LoRA r={LORA_RANK}, share"]
    base = shape.n_weights * WEIGHT_BYTES
    rows = []
    for n_tasks in N_TASKS:
        ours = [shape.basis_bytes(k, n_tasks) for k in KS]
        lora = shape.lora_bytes(LORA_RANK, n_tasks)
        rows.append([n_tasks, *map(_mb, [*ours, lora]), f"{ours[0] / base:.1%}", f"{lora / base:.1%}"])
    return table(head, rows)


def _decode_steps(shape: Shape) -> str:
    head = ["tokens = tasks", "base MB", "KV MB", "activations of update MB", "base GFLOP", "attention GFLOP"]
    head += [*(f"basis k={k} GFLOP" for k in KS), f"LoRA r={LORA_RANK} GFLOP", "FLOPs a byte"]
    rows = []
    for n in N_TASKS:
        base, kv = shape.n_weights * WEIGHT_BYTES, shape.kv_bytes * CONTEXT * n
        activations = shape.update_activation_bytes(n)
        flops = [2 * n * shape.n_weights, shape.attention_flops(n * CONTEXT)]
        updates = [*(shape.basis_flops(k, n) for k in KS), shape.lora_flops(LORA_RANK, n)]
        moved = base + kv + activations + shape.basis_bytes(KS[0], n)
        intensity = f"{(sum(flops) + updates[0]) / moved:.1f}"
        rows.append([n, *map(_mb, [base, kv, activations]), *map(_giga, [*flops, *updates]), intensity])
    return table(head, rows)


def _prefill_steps(shape: Shape) -> str:
    head = ["tokens", "tasks", "base GFLOP", "attention GFLOP", *(f"basis k={k} GFLOP" for k in KS)]
    head += [
        f"LoRA r={LORA_RANK} GFLOP",
        f"basis k={KS[0]} MB",
        f"LoRA r={LORA_RANK} MB",
        f"basis k={KS[0]}, share of FLOPs",
    ]
    rows = []
    for n, n_tasks in PREFILLS:
        length = n // n_tasks
        flops = [2 * n * shape.n_weights, shape.attention_flops(n_tasks * length * (length + 1) // 2)]
        updates = [*(shape.basis_flops(k, n) for k in KS), shape.lora_flops(LORA_RANK, n)]
        moved = [shape.basis_bytes(KS[0], n_tasks), shape.lora_bytes(LORA_RANK, n_tasks)]
        share = f"{updates[0] / (sum(flops) + updates[0]):.2%}"
        rows.append([n, n_tasks, *map(_giga, [*flops, *updates]), *map(_mb, moved), share])
    return table(head, rows)


def _resident(shape: Shape) -> str:
    head = ["tasks", *(f"basis k={k}" for k in KS), f"LoRA r={LORA_RANK}"]
    rows = [[n, *(_mb(shape.basis_bytes(k, n)) for k in KS), _mb(shape.lora_bytes(LORA_RANK, n))] for n in N_RESIDENT]
    return table(head, rows)


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """In Markdown, numbers to the right."""
    lines = [head, ["---:"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def _mb(n_bytes: int) -> str:
    return f"{n_bytes / 1e6:,.1f}"


def _giga(n: int) -> str:
    return f"{n / 1e9:,.2f}"


def main(arguments: Sequence[str]) -> int:
    """Write the page."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.roofline", description=__doc__, allow_abbrev=False)
    parser.add_argument("file", type=Path, nargs="?", default=PAGE, help="the page [server/docs/roofline.md]")
    asked = parser.parse_args(arguments)
    asked.file.write_text(page(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
