"""Old coefficient files in an extended basis: the same bits as in their own, by the engine's steps, alone and mixed."""

import copy
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from onebasis.coefficients.basis_file import BasisSpec, read_basis_spec
from onebasis.coefficients.format import parse_coefficients, write_coefficients
from onebasis.coefficients.validate import bind, n_coefficients
from onebasis.core.request import ResolvedTask
from onebasis.fitting.basis.extend import check_rows, open_old_basis
from onebasis.fitting.basis.fleet import FleetRecipe, build_fleet_basis
from onebasis.fitting.basis.readdress import readdress
from onebasis.fitting.basis.sizes import ByteBudget, FixedSize
from onebasis.fitting.mixing import write_mixing
from onebasis.kernels.cpu.library import Library
from onebasis.model.factors import Basis, load_basis
from onebasis.model.loader import LoadedBase
from tests.engine.builders import make_request
from tests.fitting.basis.fleets import random_fleet
from tests.model.families import CPU, logits_by_transformers, prompt, rounded_base, tiny_base
from tests.model.stepping import Stepper, Trace
from tests.model.tasks import merged_copy, random_task
from tests.model.test_families import LENGTHS
from tests.native import native_library


@dataclass(frozen=True)
class Extension:
    """A basis, the one that extends it, and files of the first beside what became of them."""

    base: LoadedBase
    old: Basis
    new: Basis
    files: list[tuple[bytes, bytes]]

    def tasks(self, *, extended: bool) -> list[ResolvedTask | None]:
        """The files' tasks, and the base."""
        basis = (self.new if extended else self.old).spec
        tasks = [
            ResolvedTask(f"task-{i}", bind(parse_coefficients(pair[extended]), basis))
            for i, pair in enumerate(self.files)
        ]
        return [*tasks, None]

    def run(self, arrivals, *, extended: bool, library: Library | None) -> dict[str, Trace]:
        basis = self.new if extended else self.old
        return Stepper(copy.deepcopy(self.base), basis, library=library).run(arrivals)


def file_of(
    spec: BasisSpec, seed: int, form: str = "core", k: int | None = None, sites=None, dtype=np.float16
) -> bytes:
    chosen = [site for site in spec.sites if sites is None or site.name in sites]
    n = sum(n_coefficients(form, site, k) for site in chosen)
    values = (0.7 * np.random.default_rng(seed).standard_normal(n)).astype(dtype)
    made_for = {"basis": spec.digest, "base_fingerprint": spec.base_fingerprint}
    return write_coefficients(values, form=form, k=k, sites=sites, **made_for)


def extend(
    base: LoadedBase, folder: Path, old_size: FixedSize, new_size: FixedSize, dtype: torch.dtype, *, n_mix: int = 0
) -> Extension:
    """With `n_mix` the old basis has mixing cores, and a vector is the last of the files."""
    fleets = [random_fleet(base, 4, seed=seed) for seed in (1, 2)]
    paths = [folder / "old", folder / "new"]
    build_fleet_basis(base, fleets[0], FleetRecipe(old_size), path=paths[0], old=None, progress=lambda *_: None)
    if n_mix:
        add_mixing(paths[0], n_mix)
    old = open_old_basis(paths[0], base)
    build_fleet_basis(base, fleets[1], FleetRecipe(new_size), path=paths[1], old=old, progress=lambda *_: None)
    before, after = (load_basis(path, dtype=dtype, device=CPU) for path in paths)
    some = tuple(site.name for site in before.spec.sites[1::2])
    files = [
        file_of(before.spec, 1),
        file_of(before.spec, 2, k=3, dtype=np.float32),
        file_of(before.spec, 3, "diag", sites=some),
    ]
    if n_mix:
        files[1] = file_of(before.spec, 4, "vector")
    lineage = check_rows(paths[1], after.spec)
    return Extension(base, before, after, [(data, readdress(data, after.spec, lineage).data) for data in files])


def add_mixing(path: Path, n_mix: int) -> None:
    rng = np.random.default_rng(0)
    shapes = {site.name: (n_mix + 1, site.k_out, site.k_in) for site in read_basis_spec(path).sites}
    cores = {name: (0.5 * rng.standard_normal(shape)).astype(np.float32) for name, shape in shapes.items()}
    write_mixing(path, cores, {"origin": "a test"}, path)


def arrivals_of(tasks: list[ResolvedTask | None]):
    """Requests of every task and of the base, in turns."""
    return [
        (at, make_request(f"r{i}", prompt(n_prompt, seed=i), max_tokens=n, task=tasks[i % len(tasks)]))
        for i, (at, n_prompt, n) in enumerate(LENGTHS)
    ]


def assert_follows_its_merged_model(base: LoadedBase, path: Path, library: Library | None) -> None:
    """A task of random cores over all rows of the basis in a file."""
    basis = load_basis(path, dtype=base.model.dtype, device=CPU)
    task = random_task(basis.spec, 1, scale=0.3)
    bare = copy.deepcopy(base.model).float()
    merged = merged_copy(bare, basis, task)
    request = make_request("r", prompt(9, seed=1), max_tokens=5, task=task.resolved)
    trace = Stepper(copy.deepcopy(base), basis, library=library).run([(0, request)])["r"]
    exact = logits_by_transformers(merged, trace.token_ids)
    tolerance = 1e-3 if base.model.dtype == torch.float32 else 0.1
    assert rms(trace.logits.float() - exact) < tolerance * rms(exact)
    assert rms(logits_by_transformers(bare, trace.token_ids) - exact) > 0.5 * rms(exact), "the task must matter"


def rms(values: torch.Tensor) -> float:
    return float(values.pow(2).mean().sqrt())


SIZES = [
    (FixedSize(5, 5), FixedSize(8, 8)),
    (FixedSize(4, 7), FixedSize(9, 8)),
    (FixedSize(8, 8), FixedSize(11, 11)),
]


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("path", ["native", "torch float32", "torch bfloat16"])
def test_old_files_keep_every_bit(path: str, sizes: tuple[FixedSize, FixedSize], tmp_path: Path) -> None:
    dtype = torch.float32 if path == "torch float32" else torch.bfloat16
    base = tiny_base("llama") if path == "torch float32" else rounded_base("llama")
    library = native_library() if path == "native" else None
    extension = extend(base, tmp_path, *sizes, dtype)
    before = extension.run(arrivals_of(extension.tasks(extended=False)), extended=False, library=library)
    after = extension.run(arrivals_of(extension.tasks(extended=True)), extended=True, library=library)
    for name, trace in before.items():
        assert after[name].answer == trace.answer
        assert torch.equal(after[name].logits, trace.logits)
    alone = [
        make_request("alone", prompt(9, seed=5), max_tokens=6, task=extension.tasks(extended=e)[0])
        for e in (False, True)
    ]
    found = [
        extension.run([(0, request)], extended=bool(e), library=library)["alone"].logits
        for e, request in enumerate(alone)
    ]
    assert torch.equal(*found)
    bare = extension.run([(0, make_request("bare", prompt(9, seed=5), max_tokens=6))], extended=True, library=library)
    assert not torch.equal(found[0], bare["bare"].logits[: len(found[0])]), "the task must matter"


@pytest.mark.parametrize("path", ["native", "torch float32", "torch bfloat16"])
def test_old_vectors_keep_every_bit_in_an_extension_that_grows_their_mixing_cores(path: str, tmp_path: Path) -> None:
    dtype = torch.float32 if path == "torch float32" else torch.bfloat16
    base = tiny_base("llama") if path == "torch float32" else rounded_base("llama")
    library = native_library() if path == "native" else None
    extension = extend(base, tmp_path, FixedSize(5, 7), FixedSize(8, 9), dtype, n_mix=5)
    spec = extension.new.spec
    assert {site.n_mix for site in spec.sites} == {5}
    assert spec.report["mixing"]["origin"] == "a test"
    before = extension.run(arrivals_of(extension.tasks(extended=False)), extended=False, library=library)
    after = extension.run(arrivals_of(extension.tasks(extended=True)), extended=True, library=library)
    for name, trace in before.items():
        assert torch.equal(after[name].logits, trace.logits)
    vectors = [
        make_request("r", prompt(9, seed=5), max_tokens=6, task=extension.tasks(extended=e)[1]) for e in (False, True)
    ]
    found = [extension.run([(0, vectors[e])], extended=e, library=library)["r"].logits for e in (False, True)]
    assert torch.equal(*found)
    bare = extension.run([(0, make_request("bare", prompt(9, seed=5), max_tokens=6))], extended=True, library=library)
    assert not torch.equal(found[0], bare["bare"].logits[: len(found[0])]), "the task must matter"


def test_a_site_that_the_old_basis_had_not_gets_mixing_cores_of_zeros(tmp_path: Path) -> None:
    base = tiny_base("llama")
    fleet, path = random_fleet(base, 4, seed=1), tmp_path / "old"
    some = [replace(one, updates=dict([*one.updates.items()][1:])) for one in fleet]
    build_fleet_basis(base, some, FleetRecipe(FixedSize(4, 4)), path=path, old=None, progress=lambda *_: None)
    add_mixing(path, 3)
    recipe, old = FleetRecipe(FixedSize(6, 6)), open_old_basis(path, base)
    new = build_fleet_basis(base, fleet, recipe, path=tmp_path / "new", old=old, progress=lambda *_: None)
    assert len(new.sites) == len(old.spec.sites) + 1
    for name, cores in new.mixing.items():
        assert cores.shape == (4, 6, 6)
        assert not cores[:, 4:].any()
        assert not cores[:, :, 4:].any()
        assert cores.any() == (name in old.spec.mixing)


def test_beside_tasks_of_the_new_rows_old_ones_keep_every_bit_natively(tmp_path: Path) -> None:
    library = native_library()
    extension = extend(rounded_base("llama"), tmp_path, FixedSize(5, 5), FixedSize(8, 8), torch.bfloat16)
    before = extension.run(arrivals_of(extension.tasks(extended=False)), extended=False, library=library)
    newer = ResolvedTask("new", bind(parse_coefficients(file_of(extension.new.spec, 9)), extension.new.spec))
    after = extension.run(arrivals_of([*extension.tasks(extended=True)[:-1], newer]), extended=True, library=library)
    for i, name in enumerate(before):
        assert torch.equal(after[name].logits, before[name].logits) == (i % 4 != 3)


@pytest.mark.parametrize("path", ["native", "torch"])
def test_an_extended_basis_of_many_sizes_is_applied_whole(path: str, tmp_path: Path) -> None:
    """Three generations, the first with sizes that differ by site; a task of all rows follows its merged model."""
    base = tiny_base("llama") if path == "torch" else rounded_base("llama")
    library = native_library() if path == "native" else None
    old, files = None, [tmp_path / str(i) for i in range(3)]
    for i, size in enumerate([ByteBudget(2 * 21 * 100, 16), FixedSize(17, 18), FixedSize(20, 20)]):
        fleet = random_fleet(base, 6, rank=4, seed=i)
        spec = build_fleet_basis(base, fleet, FleetRecipe(size), path=files[i], old=old, progress=lambda *_: None)
        assert (len({(site.k_out, site.k_in) for site in spec.sites}) > 1) == (i == 0)
        old = open_old_basis(files[i], base)
    assert_follows_its_merged_model(base, files[-1], library)


@pytest.mark.parametrize("path", ["native", "torch"])
def test_sizes_that_differ_by_site_and_side_are_served(path: str, tmp_path: Path) -> None:
    base = tiny_base("llama") if path == "torch" else rounded_base("llama")
    library = native_library() if path == "native" else None
    fleet = random_fleet(base, 6, rank=5)
    recipe = FleetRecipe(ByteBudget(2 * 21 * 150, 24))
    spec = build_fleet_basis(base, fleet, recipe, path=tmp_path / "b", old=None, progress=lambda *_: None)
    in_one_group = {
        (s.k_out, s.k_in) for s in spec.sites if s.name.endswith(("0.self_attn.q_proj", "0.self_attn.k_proj"))
    }
    assert len(in_one_group) > 1, "sites of one input must differ"
    assert_follows_its_merged_model(base, tmp_path / "b", library)
