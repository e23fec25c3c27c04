"""A basis of an 8B model's layer from 500 adapters: time by site, and whether memory stays below its bound.

`python -m loadtests.basis_build [--adapters 500] [--rank 16] [--k 32] [--sweeps 8] [--max-gib 4] [--json FILE]`

The adapters are random and made as they are read, since 500 of them would take 40 GB of disk: 24 directions shared by
all, directions of their own, singular values that fall by a tenth from one to the next. Weights are zeros: only their
shapes matter here. Exits with 1 if memory went over the bound or the shared directions were not found.
"""

import argparse
import resource
import sys
import tempfile
import time
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor, nn

from loadtests.common.files import check_target, save_results
from loadtests.common.machine import describe_machine
from onebasis.core.ids import Digest, digest_of
from onebasis.fitting.basis.fleet import FleetRecipe, build_fleet_basis
from onebasis.fitting.basis.sizes import FixedSize
from onebasis.fitting.low_rank import LowRankUpdate
from onebasis.model.factors import SiteFactors, load_basis
from onebasis.model.loader import LoadedBase

HIDDEN, KV, INTERMEDIATE = 4096, 1024, 14336
LAYER = {
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (KV, HIDDEN),
    "self_attn.v_proj": (KV, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (INTERMEDIATE, HIDDEN),
    "mlp.up_proj": (INTERMEDIATE, HIDDEN),
    "mlp.down_proj": (HIDDEN, INTERMEDIATE),
}
"""(d_out, d_in) of Llama-3.1-8B and Mistral-7B."""
N_SHARED = 24
FALL = 0.9
SHARED_SHARE = 0.5  # of each update's energy


@dataclass(frozen=True, slots=True)
class SiteTime:
    """One site: all of its time, the part that making the adapters' numbers took, and the processor's time for both."""

    site: str
    seconds: float
    making_s: float
    cpu_s: float


class SyntheticAdapter:
    """An adapter that exists while it is read. Counts the time that this takes."""

    making_s = 0.0

    def __init__(self, seed: int, rank: int, shared: dict[str, tuple[Tensor, Tensor]]) -> None:
        self.name = f"adapter-{seed}"
        self.digest: Digest = digest_of(self.name.encode())
        self.sites = tuple(shared)
        self._seed = seed
        self._rank = rank
        self._shared = shared

    def update(self, site: str) -> LowRankUpdate:
        """Half of its energy in the shared directions of both sides, half outside."""
        started = time.perf_counter()
        generator = torch.Generator().manual_seed(zlib.crc32(site.encode()) * 100_003 + self._seed)
        u, v = self._shared[site]
        half = self._rank // 2
        fall = FALL ** torch.arange(half)
        inside = (
            torch.randn(N_SHARED, half, generator=generator) * fall,
            torch.randn(half, N_SHARED, generator=generator),
        )
        outside = (
            torch.randn(u.shape[1], half, generator=generator) * fall,
            torch.randn(half, v.shape[1], generator=generator),
        )
        b_in, a_in = u.T @ inside[0], inside[1] @ v
        scale = float(_norm(*outside) / _norm(b_in, a_in)) * (SHARED_SHARE / (1 - SHARED_SHARE)) ** 0.5
        update = LowRankUpdate(torch.cat([b_in * scale, outside[0]], 1), torch.cat([a_in, outside[1]]))
        SyntheticAdapter.making_s += time.perf_counter() - started
        return update


def main(arguments: Sequence[str]) -> int:
    """Exit code 0 if memory stayed below the bound and the shared directions were found."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.basis_build")
    parser.add_argument("--adapters", type=int, default=500)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--sweeps", type=int, default=8)
    parser.add_argument("--sites", default=",".join(LAYER), help="of the layer, by comma")
    parser.add_argument("--max-gib", type=float, default=4.0, help="bound of resident memory")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    check_target(options.json)
    console = Console()
    machine = describe_machine()
    base = _base_of_zeros(options.sites.split(","))
    shared = {
        f"model.layers.0.{name}": _directions(LAYER[name], seed) for seed, name in enumerate(options.sites.split(","))
    }
    fleet = [SyntheticAdapter(i, options.rank, shared) for i in range(options.adapters)]
    before_gib = _peak_gib()
    times: list[SiteTime] = []
    marks = [(time.perf_counter(), 0.0, time.process_time())]

    def visited(n_done: int, _n_all: int) -> None:
        now = (time.perf_counter(), SyntheticAdapter.making_s, time.process_time())
        times.append(SiteTime([*shared][n_done - 1], *(round(a - b, 2) for a, b in zip(now, marks[-1], strict=True))))
        marks.append(now)
        console.print(f"{times[-1].site}: {times[-1].seconds:.1f} s, peak {_peak_gib():.2f} GiB")

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "layer.basis.safetensors"
        recipe = FleetRecipe(FixedSize(options.k, options.k), n_sweeps=options.sweeps)
        spec = build_fleet_basis(base, fleet, recipe, path=path, old=None, progress=visited)
        found = {site: _share_inside(factors.v, shared[site][1]) for site, factors in _factors(path).items()}
    n_built = len(times) * options.adapters
    results = {
        "sites": times,
        "cpu_ms_per_site_and_adapter": round(1000 * sum(site.cpu_s for site in times) / n_built, 1),
        "seconds": round(sum(site.seconds for site in times), 1),
        "peak_rss_gib": round(_peak_gib(), 2),
        "rss_before_gib": round(before_gib, 2),
        "energy_held_in_sample": spec.report["energy_held_in_sample"],
        "won_by_alternation": {site: s["won_by_alternation"] for site, s in spec.report["sites"].items()},
        "sweeps": {site: s["sweeps"] for site, s in spec.report["sites"].items()},
        "shared_directions_found": {site: round(share, 4) for site, share in found.items()},
        "n_threads": torch.get_num_threads(),
    }
    console.print_json(data={name: value for name, value in results.items() if name != "sites"})
    if options.json is not None:
        settings = {name: str(value) for name, value in vars(options).items()}
        command = f"python -m loadtests.basis_build {' '.join(arguments)}"
        save_results(
            options.json, benchmark="basis_build", command=command, machine=machine, settings=settings, results=results
        )
    return 0 if _peak_gib() <= options.max_gib and min(found.values()) > 0.99 else 1


def _base_of_zeros(names: Sequence[str]) -> LoadedBase:
    """A model of one layer, which is all that the build asks of it."""
    model = nn.Module()
    for name in names:
        d_out, d_in = LAYER[name]
        layer = nn.Linear(d_in, d_out, bias=False, device="meta")
        layer.weight = nn.Parameter(torch.zeros(d_out, d_in, dtype=torch.bfloat16))
        parent = model
        for part in f"model.layers.0.{name}".split(".")[:-1]:
            if part not in dict(parent.named_children()):
                parent.add_module(part, nn.Module())
            parent = parent.get_submodule(part)
        parent.add_module(name.rpartition(".")[2], layer)
    return LoadedBase(model=model, tokenizer=None, name="zeros of an 8B layer")


def _directions(shape: tuple[int, int], seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    u, v = (torch.linalg.qr(torch.randn(d, N_SHARED, generator=generator)).Q.T.contiguous() for d in shape)
    return u, v


def _norm(b: Tensor, a: Tensor) -> Tensor:
    return ((b.T @ b) * (a @ a.T)).sum().sqrt()


def _factors(path: Path) -> Mapping[str, SiteFactors]:
    return load_basis(path, dtype=torch.float32, device=torch.device("cpu")).factors


def _share_inside(rows: Tensor, directions: Tensor) -> float:
    """How much of the directions lies in the space of the rows, 1 for all."""
    return float((directions @ rows.T).square().sum() / len(directions))


def _peak_gib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
