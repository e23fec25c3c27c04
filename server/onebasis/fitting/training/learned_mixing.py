"""Mixing cores that several tasks learn together, each beside its own vector: S_t = G_0 + sum_j c_tj G_j."""

from collections.abc import Sequence
from pathlib import Path

import torch

from onebasis.coefficients.basis_file import BasisSpec
from onebasis.core.errors import SetupError
from onebasis.fitting.mixing import check_n_mix, write_mixing
from onebasis.fitting.training.job import check_tasks, store_tasks
from onebasis.fitting.training.recipe import FitRecipe
from onebasis.fitting.training.run import FitReport, Progress, TaskData, data_digest, train_tasks
from onebasis.fitting.training.sites import own_mixing, trainable_sites
from onebasis.fitting.training.task_numbers import TaskNumbers
from onebasis.model.factors import Basis
from onebasis.model.loader import LoadedBase


def fit_with_mixing(
    base: LoadedBase,
    basis: Basis,
    basis_path: Path,
    tasks: Sequence[TaskData],
    recipe: FitRecipe,
    n_mix: int,
    output: Path,
    progress: Progress,
) -> tuple[BasisSpec, list[FitReport]]:
    """Train mixing cores and every task's vector at once; write the basis with them, and the tasks' files for it.

    The cores take one step with the tasks, on the sum of their gradients and the same schedule.

    Args:
        recipe: of form `vector`.
        n_mix: R; that of the basis where it has mixing cores, which are what the training starts from then.
        output: the new basis file. V and U are bit for bit those of `basis_path`, from which `basis` was read.

    Raises:
        InvalidBasis: the basis was made for other base weights; n_mix is not from 1 to the number of tasks less one.
        InvalidData: an example is longer than the model's attention window.
        SetupError: another form, evaluations, another R than the basis's; the training diverged; a checkpoint of
            another run.
        OSError: a file can't be written.
    """
    if recipe.form != "vector":
        raise SetupError(f"form {recipe.form!r} has no mixing cores to learn; --learn-mixing goes with --form vector")
    if recipe.evaluate_every is not None:
        raise SetupError(
            "--evaluate-every keeps each task's best step, and the mixing cores of that step would be gone by the end; "
            "leave it out with --learn-mixing"
        )
    check_n_mix(n_mix, len(tasks))
    check_tasks(base, basis, tasks)
    mixing = initial_mixing(basis.spec, n_mix, recipe.seed)
    start = f"{basis.spec.digest}, {n_mix} mixing cores to learn"
    with trainable_sites(base, basis, recipe.form, len(tasks), learned=mixing) as trained:
        results = train_tasks(base, trained, tasks, recipe, progress, start, shared=mixing)
        cores = {name: part.detach().numpy() for name, part in zip(basis.factors, mixing, strict=True)}
        origin = {
            "learned_on": [{"task": data.task, "train_sha256": data_digest(data.train)} for data in tasks],
            "recipe": recipe.as_provenance(),
        }
        spec = write_mixing(basis_path, cores, origin, output)
        return spec, store_tasks(base, trained, spec, tasks, recipe, results)


def initial_mixing(spec: BasisSpec, n_mix: int, seed: int) -> TaskNumbers:
    """Where learning starts: the basis's own mixing cores; without any G_0 = 0 and G_1 ... G_R at random.

    The random ones have rows of about unit length. With vectors of zeros every task starts at G_0, the bare model.

    Raises:
        SetupError: the basis has mixing cores, of another number.
    """
    own = own_mixing(spec)
    found = sorted({site.n_mix for site in spec.sites})
    if own and found != [n_mix]:
        has = " or ".join(map(str, found))
        raise SetupError(f"{n_mix} mixing cores: the basis has {has} already, and learning goes on from those")
    mixing = TaskNumbers([(n_mix + 1, site.k_out, site.k_in) for site in spec.sites])
    generator = torch.Generator().manual_seed(seed)
    for site, part in zip(spec.sites, mixing, strict=True):
        if own:
            part.data.copy_(own[site.name])
        else:
            part.data[1:].normal_(std=site.k_in**-0.5, generator=generator)
    return mixing
