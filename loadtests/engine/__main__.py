"""Steps of the whole model without HTTP: the native decoder, bare and with tasks, on weights of 16 and of 8 bits,
beside transformers' own step.

`python -m loadtests.engine [--json FILE]`. transformers runs eagerly, in bfloat16, with a static cache and its default
attention, on the same threads of the same process, in turns with ours. A step is the forward pass and the greedy
choice. Then the logits of ours are compared with float32's on real text.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Final

import torch
from rich.console import Console
from rich.table import Table

from loadtests.common.arguments import BenchmarkParser, Measurement, numbers
from loadtests.common.processes import cpu_times, cpu_use
from loadtests.common.steps import CPU, native_decoder
from loadtests.common.subject import Subject
from loadtests.common.tasks import synthetic_tasks, task_name
from loadtests.common.timing import Quartiles, interleave, quartiles
from loadtests.engine.fidelity import Fidelity, chat_texts, measure_fidelity
from loadtests.engine.sides import INT8, NATIVE, TRANSFORMERS, Case, make_sides
from loadtests.load.session import guarded
from onebasis.coefficients.arena import Arena
from onebasis.coefficients.format import parse_coefficients
from onebasis.coefficients.validate import bind
from onebasis.model.factors import Basis, load_basis
from onebasis.model.loader import load_base
from onebasis.model.native_decoder import Quantization

_HELD_AS: Final[Mapping[str, Quantization | None]] = {NATIVE: None, INT8: "int8"}
_DECODE_CACHED, _DECODE_ROOM = 80, 96  # in the middle of 32 tokens behind a prompt of 64


@dataclass(frozen=True, slots=True)
class Settings:
    """A checked command line."""

    subject: Subject
    batches: tuple[int, ...]  # of decode steps
    prefills: tuple[tuple[int, int], ...]  # (sequences, tokens of each)
    n_tasks: tuple[int, ...]
    n_rounds: int
    n_texts: int  # of each task, for the comparison with float32
    n_threads: int
    seed: int


@dataclass(frozen=True, slots=True)
class Result:
    """One side in one case. ratio: its median over transformers'."""

    kind: str
    n_seqs: int
    n_new: int
    side: str
    step_ms: Quartiles
    ratio: float


def main(arguments: Sequence[str]) -> int:
    """Exit code: 0 all well, 1 the sides' numbers are not of one model."""
    return guarded("loadtests.engine", _main, arguments)


def _main(arguments: Sequence[str]) -> int:
    measurement = _parser().begin(arguments)
    settings = _settings(measurement)
    before = cpu_times(None)
    steps, fidelity = measure(settings)
    cpu = cpu_use(before, cpu_times(None), has_server=False)
    _print(steps, fidelity, cpu.other_cores)
    measurement.save(
        settings=asdict(settings),
        results={
            "other_cores": cpu.other_cores,
            "steps": [asdict(step) for step in steps],
            "fidelity": [asdict(part) for part in fidelity],
        },
    )
    return 0


@torch.inference_mode()
def measure(settings: Settings) -> tuple[list[Result], list[Fidelity]]:
    """All cases, the sides of each in turns; then the comparison with float32.

    Raises:
        LoadTestError: the sides' logits are not of one model.
    """
    torch.set_num_threads(settings.n_threads)
    subject = settings.subject
    model = load_base(subject.model, dtype=torch.bfloat16, device=CPU).model
    bases = {name: load_base(subject.model, dtype=torch.bfloat16, device=CPU) for name in _HELD_AS}
    basis = load_basis(subject.basis, dtype=torch.bfloat16, device=CPU)
    cases = _cases(settings)
    arena = _filled_arena(settings, basis)
    n_blocks = max(case.n_seqs * case.shape.n_blocks for case in cases)
    n_tokens = max(case.n_seqs * (case.n_cached + case.n_new) for case in cases)
    decoders = {
        name: native_decoder(
            base, basis, arena, n_blocks=n_blocks, max_step_tokens=n_tokens, quantization=_HELD_AS[name]
        )
        for name, base in bases.items()
    }
    n_vocab = int(bases[NATIVE].text_config.vocab_size)
    results: list[Result] = []
    for case in cases:
        sides = make_sides(case, decoders, model, n_tasks=settings.n_tasks, n_vocab=n_vocab, seed=settings.seed)
        results += case_results(case, interleave(sides, n_rounds=settings.n_rounds))
    real = [bind(parse_coefficients(path.read_bytes()), basis.spec) for path in subject.coefficients]
    exact = load_base(subject.model, dtype=torch.float32, device=CPU)
    exact_basis = load_basis(subject.basis, dtype=torch.float32, device=CPU)
    texts = chat_texts(exact, real, settings.n_texts)
    return results, measure_fidelity(texts, exact.model, exact_basis, decoders, arena, model)


def case_results(case: Case, times_s: dict[str, list[float]]) -> list[Result]:
    """From seconds to milliseconds, and beside transformers."""
    spread = {side: quartiles([1000 * time_s for time_s in times]) for side, times in times_s.items()}
    reference = spread[TRANSFORMERS].median
    return [
        Result(case.kind, case.n_seqs, case.n_new, side, step_ms, step_ms.median / reference)
        for side, step_ms in spread.items()
    ]


def _cases(settings: Settings) -> list[Case]:
    decodes = [Case("decode", n, _DECODE_CACHED, 1, _DECODE_ROOM) for n in settings.batches]
    return decodes + [Case("prefill", n, 0, length, length) for n, length in settings.prefills]


def _filled_arena(settings: Settings, basis: Basis) -> Arena:
    """Slot i holds the synthetic task of number i; one more slot is free."""
    n_tasks = max(settings.n_tasks)
    arena = Arena(basis.spec, n_slots=n_tasks + 1, device=CPU)
    names = [task_name(number) for number in range(n_tasks)]
    for _, data in synthetic_tasks(settings.subject.coefficients, names, seed=settings.seed):
        arena.acquire(bind(parse_coefficients(data), basis.spec))
    return arena


def _print(steps: Sequence[Result], fidelity: Sequence[Fidelity], other_cores: float) -> None:
    out = Console(width=110)
    table = Table(title="one step, ms", caption=f"other processes took {other_cores:.2f} cores meanwhile")
    for column in ("step", "side", "median", "quartiles", "times transformers"):
        table.add_column(column, justify="left" if column in ("step", "side") else "right")
    for s in steps:
        name = f"{s.kind} {s.n_seqs}" if s.kind == "decode" else f"{s.kind} {s.n_seqs} x {s.n_new}"
        spread = f"{s.step_ms.q1:.2f} to {s.step_ms.q3:.2f}"
        table.add_row(name, s.side, f"{s.step_ms.median:.2f}", spread, f"{s.ratio:.2f}")
    out.print(table)
    for part in fidelity:
        out.print(
            f"{part.what}: top-1 as in float32 at {part.top1_agreement:.2%} of {part.n_positions} positions, "
            f"relative error of the logits {part.relative_error:.4f}, worst {part.worst_error:.3f}",
            highlight=False,
            soft_wrap=True,
        )


def _parser() -> BenchmarkParser:
    parser = BenchmarkParser("engine", __doc__)
    add = parser.add_argument
    add("--batches", type=numbers, default=(1, 8, 32), metavar="N,..", help="of decode steps [1,8,32]")
    prefills = ((1, 64), (1, 512), (8, 64))
    add("--prefills", type=_pairs, default=prefills, metavar="NxTOKENS,..", help="[1x64,1x512,8x64]")
    add("--tasks", type=numbers, default=(1, 32), metavar="N,..", help="distinct ones [1,32]")
    add("--rounds", type=int, default=21, metavar="N", help="[%(default)s]")
    add("--texts", type=int, default=2, metavar="N", help="of each task, compared with float32 [%(default)s]")
    add("--threads", type=int, default=torch.get_num_threads(), metavar="N", help="[%(default)s]")
    add("--seed", type=int, default=0, help="[%(default)s]")
    return parser


def _settings(measurement: Measurement) -> Settings:
    asked = measurement.asked
    return Settings(
        subject=measurement.subject,
        batches=asked.batches,
        prefills=asked.prefills,
        n_tasks=asked.tasks,
        n_rounds=asked.rounds,
        n_texts=asked.texts,
        n_threads=asked.threads,
        seed=asked.seed,
    )


def _pairs(text: str) -> tuple[tuple[int, int], ...]:
    pairs = [part.partition("x") for part in text.split(",")]
    return tuple((int(n), int(length)) for n, _, length in pairs)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
