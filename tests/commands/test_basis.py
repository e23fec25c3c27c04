"""`onebasis basis`: from folders of adapters to a basis, and coefficient files to its extension."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from onebasis.coefficients.basis_file import BasisSpec, read_basis_spec
from onebasis.coefficients.format import parse_coefficients, write_coefficients
from onebasis.coefficients.validate import bind
from onebasis.core.residual import Residual
from onebasis.fitting.peft.adapter import WEIGHTS_NAME
from tests.api.tiny_model import TinyModel
from tests.commands.result import Result, refused
from tests.fitting.peft.adapters import plain_adapter, rewrite

Run = Callable[..., Result]


@pytest.fixture(scope="module")
def fleet(llama: TinyModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of five adapters, r=4, each with its own start."""
    folder = tmp_path_factory.mktemp("fleet")
    for i in range(5):
        plain_adapter(llama.folder, folder / f"task-{i}", seed=i)
    return folder


@pytest.fixture
def build(onebasis: Run, llama: TinyModel, tmp_path: Path) -> Run:
    def run(*options: object, output: str = "b") -> Result:
        return onebasis(
            "basis", "build", "--model", llama.folder, "--threads", 1, "--output", tmp_path / output, *options
        )

    return run


def test_a_folder_of_adapters_and_single_ones_make_the_same_fleet(build: Run, fleet: Path, tmp_path: Path) -> None:
    result = build("--kind", "fleet", "--k", 6, fleet)
    assert result.exit_code == 0, result.err
    spec = read_basis_spec(tmp_path / "b")
    held = spec.report["energy_held_in_sample"]
    first, second = result.out.splitlines()
    assert first == f"{tmp_path / 'b'}: fleet, 14 sites, k=6, {spec.size_bytes / 2**20:.1f} MiB, {spec.digest}"
    assert second == (
        f"5 adapters; held of their energy, in-sample: {held:.3f}; a task's cores: {14 * 36 * 2} bytes in float16"
    )
    assert build("--kind", "fleet", "--k", 6, *sorted(fleet.iterdir())[::-1], output="again").exit_code == 0
    assert (tmp_path / "b").read_bytes() == (tmp_path / "again").read_bytes()


@pytest.mark.parametrize(
    ("options", "sizes"),
    [
        (["--k-in", 5, "--k-out", 7], "k_in=5, k_out=7"),
        (["--budget", "3KiB", "--k-max", 16], r"k_in=8(-16)?, k_out=8(-16)?"),
        (["--energy", 0.4, "--k-max", 16], r"k_in=8(-16)?, k_out=8(-16)?|k=8"),
        (["--k", 8, "--sweeps", 0], "k=8"),
    ],
)
def test_ways_to_say_a_size(options: list[object], sizes: str, build: Run, fleet: Path) -> None:
    result = build("--kind", "fleet", fleet, *options)
    assert result.exit_code == 0, result.err
    assert re.search(f"14 sites, ({sizes}), ", result.out), result.out


def test_mixed_takes_half_of_its_rows_from_the_base(build: Run, fleet: Path, tmp_path: Path) -> None:
    assert build("--kind", "mixed", "--k", 8, fleet).exit_code == 0
    assert build("--kind", "fleet", "--k", 4, fleet, output="fleet").exit_code == 0
    mixed, alone = (read_basis_spec(tmp_path / name) for name in ("b", "fleet"))
    assert (mixed.kind, mixed.sites[0].k_in) == ("mixed", 8)
    assert mixed.report["sites"].keys() == alone.report["sites"].keys()
    assert build("--kind", "mixed", "--k", 8, "--base-rows", 2, fleet, output="other").exit_code == 0
    assert (tmp_path / "other").read_bytes() != (tmp_path / "b").read_bytes()


def test_adapters_of_one_start_are_warned_of(build: Run, fleet: Path, llama: TinyModel, tmp_path: Path) -> None:
    plain_adapter(llama.folder, tmp_path / "more" / "twin-1", seed=9)
    twin = plain_adapter(llama.folder, tmp_path / "more" / "twin-2", seed=9)
    numbers = load_file(twin / WEIGHTS_NAME)
    rewrite(twin, tensors={name: b.flip(0) for name, b in numbers.items() if "lora_B" in name})  # another task
    result = build("--kind", "fleet", "--k", 4, fleet, tmp_path / "more")
    assert result.exit_code == 0
    assert "2 adapters began from one random A: twin-1, twin-2; " in result.err
    assert [sorted(group) for group in read_basis_spec(tmp_path / "b").report["seed_groups"]] == [["twin-1", "twin-2"]]
    result = build("--kind", "fleet", "--k", 4, fleet, tmp_path / "more", "--one-per-seed-group", output="one")
    assert "only twin-1 is used" in result.err
    names = {adapter["name"] for adapter in read_basis_spec(tmp_path / "one").report["adapters"]}
    assert names == {f"task-{i}" for i in range(5)} | {"twin-1"}


def test_weights_are_noted_and_checked(build: Run, fleet: Path, tmp_path: Path) -> None:
    weights = tmp_path / "weights.json"
    weights.write_text('{"task-2": 2.5}')
    assert build("--kind", "fleet", "--k", 4, fleet, "--weights", weights).exit_code == 0
    noted = {a["name"]: a["weight"] for a in read_basis_spec(tmp_path / "b").report["adapters"]}
    assert noted == {f"task-{i}": 2.5 if i == 2 else 1.0 for i in range(5)}
    for text, complaint in [
        ('{"task-9": 1}', "no adapter is called 'task-9'; they are task-0, task-1"),
        ('{"task-1": 0}', "'task-1' needs a number above 0, found 0"),
        ('{"task-1": true}', "'task-1' needs a number above 0, found True"),
        ('{"task-1": 1, "task-1": 2}', "a name comes twice"),
        ("[1]", "needs a JSON object"),
        ("{", "needs a JSON object"),
    ]:
        weights.write_text(text)
        refused(build("--kind", "fleet", fleet, "--weights", weights, output="x"), complaint)


def test_an_extension_and_its_files(build: Run, onebasis: Run, fleet: Path, llama: TinyModel, tmp_path: Path) -> None:
    assert build("--kind", "fleet", "--k", 7, fleet, "--extend", llama.basis_path).exit_code == 0
    new = read_basis_spec(tmp_path / "b")
    file = tmp_path / "t.coef.safetensors"
    file.write_bytes(llama.core_file(1, task="t"))
    result = onebasis("basis", "readdress", file, "--basis", tmp_path / "b", "--output", tmp_path / "out")
    written = tmp_path / "out" / file.name
    assert (result.exit_code, result.out) == (0, f"{written}: {written.stat().st_size} bytes, k=4\n")
    found = bind(parse_coefficients(written.read_bytes()), new).file
    old = parse_coefficients(file.read_bytes())
    assert (found.k, found.task, found.values.tolist()) == (4, "t", old.values.tolist())
    assert found.provenance["readdressed_from"] == {"file": old.digest, "basis": llama.basis.digest}
    again = onebasis("basis", "readdress", file, "--basis", tmp_path / "b", "--output", tmp_path / "out")
    refused(again, "t.coef.safetensors would be written over")
    backwards = onebasis("basis", "readdress", written, "--basis", llama.basis_path, "--output", tmp_path / "back")
    refused(backwards, f"{written}: file is for basis {new.digest}")
    assert not (tmp_path / "back").exists()
    twice = onebasis("basis", "readdress", written, "--basis", tmp_path / "b", "--output", tmp_path / "back")
    refused(twice, f"{written}: basis {new.digest}: the file is for it already; leave it out")


def test_a_basis_with_mixing_cores_is_extended_and_its_vectors_go_along(
    build: Run, onebasis: Run, fleet: Path, llama: TinyModel, tmp_path: Path
) -> None:
    cores = [tmp_path / f"{i}.coef.safetensors" for i in range(3)]
    for i, path in enumerate(cores):
        path.write_bytes(llama.core_file(i))
    mixed = tmp_path / "mixed"
    assert onebasis("basis", "mix", "--basis", llama.basis_path, *cores, "--n-mix", 2, "--output", mixed).exit_code == 0
    assert build("--kind", "fleet", "--k", 7, fleet, "--extend", mixed).exit_code == 0
    before, after = read_basis_spec(mixed), read_basis_spec(tmp_path / "b")
    numbers = np.random.default_rng(0).standard_normal(2 * len(before.sites)).astype(np.float16)
    made_for = {"basis": before.digest, "base_fingerprint": before.base_fingerprint}
    file = tmp_path / "v.coef.safetensors"
    file.write_bytes(write_coefficients(numbers, form="vector", **made_for))
    result = onebasis("basis", "readdress", file, "--basis", tmp_path / "b", "--output", tmp_path / "out")
    written = tmp_path / "out" / file.name
    assert (result.exit_code, result.out) == (0, f"{written}: {written.stat().st_size} bytes\n")
    old, new = (bind(parse_coefficients(p.read_bytes()), spec) for p, spec in ((file, before), (written, after)))
    assert np.count_nonzero(new.flat_cores()) == np.count_nonzero(old.flat_cores()) > 0
    onebasis("basis", "mix", "--basis", tmp_path / "b", *_whole(after, tmp_path), "--n-mix", 2, "--output", mixed)
    again = onebasis("basis", "readdress", file, "--basis", mixed, "--output", tmp_path / "again")
    refused(again, f"it has other mixing cores than {before.digest}, which this vector weighs; ")


def _whole(spec: BasisSpec, folder: Path) -> list[Path]:
    """Three files of form core for a basis."""
    paths = [folder / f"whole-{i}.coef.safetensors" for i in range(3)]
    made_for = {"basis": spec.digest, "base_fingerprint": spec.base_fingerprint}
    for i, path in enumerate(paths):
        numbers = np.random.default_rng(i).standard_normal(spec.n_core_numbers).astype(np.float16)
        path.write_bytes(write_coefficients(numbers, form="core", **made_for))
    return paths


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--kind", "fleet"], "--kind fleet needs the folders of adapters"),
        (["--kind", "base-svd", "FLEET"], "DIR does not go with --kind base-svd"),
        (["--kind", "random", "--energy", 0.5], "--energy does not go with --kind random"),
        (["--kind", "base-svd", "--one-per-seed-group"], "--one-per-seed-group does not go with"),
        (["--kind", "random", "--energy", 0], "--energy does not go with --kind random"),
        (["--kind", "base-svd", "--seed", 0], "--seed does not go with --kind base-svd"),
        (["--kind", "fleet", "FLEET", "--seed", 1], "--seed does not go with --kind fleet"),
        (["--kind", "random", "--sweeps", 0], "--sweeps does not go with --kind random"),
        (["--kind", "fleet", "FLEET", "--base-rows", 2], "--base-rows does not go with --kind fleet"),
        (
            ["--kind", "mixed", "FLEET", "--k", 1],
            "--kind mixed: 0 of 1 rows from the base; needs at least one from either",
        ),
        (["--kind", "mixed", "FLEET", "--k", 4, "--base-rows", 4], "--kind mixed: 4 of 4 rows from the base"),
        (["--kind", "mixed", "FLEET", "--budget", "9KiB"], "--kind mixed needs its size as --k"),
        (["--kind", "fleet", "FLEET", "--k", 4, "--energy", 0.5], "--k and --energy each say how many"),
        (["--kind", "fleet", "FLEET", "--k-in", 4], "--k-in and --k-out go together"),
        (["--kind", "fleet", "FLEET", "--k", 4, "--k-max", 8], "--k-max does not go with a number of rows"),
        (["--kind", "fleet", "FLEET", "--budget", "9KB"], "--budget 9KB: needs a number of bytes such as 105KiB"),
        (["--kind", "fleet", "FLEET", "--budget", "1KiB"], "the smallest cores take 1792 bytes a task"),
        (["--kind", "fleet", "FLEET", "--k", 21], "k_out asks for 21 rows .* allowed are 1 to 20"),
        (["--kind", "fleet", "FLEET", "FLEET"], "are the same file; give it once"),
        (["--kind", "fleet", "EMPTY"], "no adapter_config.json in it or in its folders"),
    ],
)
def test_what_does_not_go_together_is_refused(options, complaint: str, build: Run, fleet: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    paths = {"FLEET": fleet, "EMPTY": tmp_path / "empty"}
    refused(build(*(paths.get(option, option) for option in options)), complaint)
    assert not (tmp_path / "b").exists()


def test_a_basis_is_not_extended_into_itself(build: Run, fleet: Path, llama: TinyModel, tmp_path: Path) -> None:
    (tmp_path / "b").write_bytes(llama.basis_path.read_bytes())
    refused(build("--kind", "fleet", "--k", 7, fleet, "--extend", tmp_path / "b"), "b: this command reads that file")
    assert (tmp_path / "b").read_bytes() == llama.basis_path.read_bytes()


def test_what_can_not_be_mixed_is_refused(onebasis: Run, llama: TinyModel, tmp_path: Path) -> None:
    site = llama.basis.sites[0]
    residual = {site.name: Residual(np.ones((1, site.d_in), np.float16), np.ones((site.d_out, 1), np.float16))}
    files = [tmp_path / f"{i}.coef.safetensors" for i in range(20)]
    files[0].write_bytes(llama.core_file(0))
    output = tmp_path / "mixed"

    def mix(*options: object, to: Path = output) -> Result:
        return onebasis("basis", "mix", "--basis", llama.basis_path, *files, "--output", to, *options)

    for path in files[1:]:
        path.write_bytes(llama.core_file(0))
    refused(mix("--n-mix", 1), "1 mixing cores from 1 tasks: allowed are 1 to 0")
    for i, path in enumerate(files):
        path.write_bytes(llama.core_file(i))
    refused(mix("--n-mix", 17), "17 mixing cores: the core of model.layers.0.* has 16 numbers itself; lower --n-mix")
    refused(mix(to=llama.basis_path), "this command reads that file; name another one")
    files[3].write_bytes(llama.core_file(3, residual=residual))
    refused(mix(), f"{files[3]}: it has a residual beside its cores, which would be lost")
    files[3].write_bytes(llama.core_file(3, basis="sha256:" + "0" * 64))
    refused(mix(), f"{files[3]}: file is for basis sha256:0+")
    assert not output.exists()


def test_a_damaged_adapter_is_refused_by_its_folder(build: Run, llama: TinyModel, tmp_path: Path) -> None:
    folder = plain_adapter(llama.folder, tmp_path / "fleet" / "bad")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "IA3"}))
    refused(build("--kind", "fleet", tmp_path / "fleet"), "adapter .*bad")
