"""Each method equals its formula, written out here number by number or on dense updates."""

import warnings

import numpy as np
import pytest

from onebasis.coefficients.blend import Blends, blend_file
from onebasis.coefficients.format import parse_coefficients
from onebasis.coefficients.store import TaskStore
from onebasis.coefficients.weighted_sum import weighted_sum
from onebasis.core.errors import InvalidMerge
from onebasis.core.ids import digest_of
from onebasis.fitting.merging.dare import dare
from onebasis.fitting.merging.mean import mean
from onebasis.fitting.merging.method import MergeMethod, MergeSettings, merge_cores, used_weights
from onebasis.fitting.merging.parts import MergePart
from onebasis.fitting.merging.regmean import regmean
from onebasis.fitting.merging.ties import ties
from onebasis.storage.database import Database
from tests.coefficients.builders import SITES, basis_spec, coefficients, started

SPEC = basis_spec()
N = SPEC.n_core_numbers


def random_cores(n_tasks: int = 3, seed: int = 0) -> list[np.ndarray]:
    return list(np.random.default_rng(seed).standard_normal((n_tasks, N)).astype(np.float32))


def parts_of(cores, weights=None) -> list[MergePart]:
    weights = weights or [None] * len(cores)
    digest = digest_of(b"")
    return [MergePart(f"t{i}", digest, c, w) for i, (c, w) in enumerate(zip(cores, weights, strict=True))]


def by_site(flat):
    """[(site, core in float64)] of flat cores."""
    start = 0
    for site in SITES:
        size = site.k_out * site.k_in
        yield site, flat[start : start + size].reshape(site.k_out, site.k_in).astype(np.float64)
        start += size


def dense(flat, factors):
    """Every site's U^T S V as one vector."""
    return np.concatenate([(u.T @ core @ v).ravel() for (_, core), (u, v) in zip(by_site(flat), factors, strict=True)])


def random_factors(seed: int = 9):
    rng = np.random.default_rng(seed)
    return [(rng.standard_normal((s.k_out, s.d_out)), rng.standard_normal((s.k_in, s.d_in))) for s in SITES]


# ---------------------------------------------------------------- weighted sum and mean


def test_a_weighted_sum_of_cores_is_the_weighted_sum_of_the_dense_updates() -> None:
    cores, weights, factors = random_cores(), [0.7, -0.25, 1.5], random_factors()
    wanted = sum(w * dense(c, factors) for w, c in zip(weights, cores, strict=True))
    np.testing.assert_allclose(dense(weighted_sum(cores, weights), factors), wanted, rtol=1e-5, atol=1e-5)


def test_a_sum_is_taken_in_float64_and_rounded_once() -> None:
    large, one = np.full(3, 1e8, np.float32), np.ones(3, np.float32)
    assert weighted_sum([large, one, large], [1.0, 0.25, -1.0]).tolist() == [0.25] * 3


def test_the_mean_is_the_mean_of_the_dense_updates() -> None:
    cores, factors = random_cores(), random_factors()
    wanted = np.mean([dense(c, factors) for c in cores], axis=0)
    np.testing.assert_allclose(dense(mean(cores), factors), wanted, rtol=1e-5, atol=1e-5)


def test_the_weighted_sum_is_bit_for_bit_the_blend_that_a_server_stores(tmp_path) -> None:
    """The file that `merge` writes and the one of `POST /v1/tasks/{name}/blend` hold the same numbers."""
    weights = [0.1, -0.7, 1 / 3]
    files = [coefficients(SPEC, seed=seed) for seed in range(3)]
    store = TaskStore(Database(f"sqlite:///{tmp_path / 'tasks.db'}"))
    registry = started(store, SPEC)
    for i, data in enumerate(files):
        registry.register(f"t{i}", data)
    blend = Blends(registry, SPEC).resolve([(f"t{i}", weight) for i, weight in enumerate(weights)])
    served = parse_coefficients(blend_file(blend, SPEC, "blend")).values
    parts = parts_of([parse_coefficients(data).numbers() for data in files], weights)
    merged = merge_cores(parts, MergeSettings(MergeMethod.WEIGHTED_SUM), SPEC, None)
    assert merged.dtype == served.dtype == np.float32
    assert merged.tobytes() == served.tobytes()


# ---------------------------------------------------------------- ties


def ties_number_by_number(cores, weights, density, scale):
    n_kept = round(density * N)
    trimmed = []
    for one in cores:
        order = sorted(range(N), key=lambda i: -abs(one[i]))
        kept = set(order[:n_kept])
        trimmed.append([float(one[i]) if i in kept else 0.0 for i in range(N)])
    merged = []
    for i in range(N):
        column = [(w, one[i]) for w, one in zip(weights, trimmed, strict=True)]
        elected = sum(w * value for w, value in column)
        agreeing = [(w, value) for w, value in column if value * elected > 0]
        merged.append(scale * sum(w * v for w, v in agreeing) / sum(w for w, _ in agreeing) if agreeing else 0.0)
    return np.array(merged)


@pytest.mark.parametrize(("density", "scale", "weights"), [(0.2, 1.0, [1, 1, 1]), (0.6, 0.4, [0.5, 2.0, 1.0])])
def test_ties_is_the_papers_procedure(density, scale, weights) -> None:
    cores = random_cores()
    found = ties(cores, weights, density=density, scale=scale)
    np.testing.assert_allclose(found, ties_number_by_number(cores, weights, density, scale), rtol=1e-6, atol=1e-7)
    assert 0 < np.count_nonzero(found) < N


def test_ties_of_a_task_with_itself_at_density_one_is_the_task() -> None:
    one = random_cores()[0]
    np.testing.assert_allclose(ties([one, one], [1, 1], density=1.0, scale=1.0), one, rtol=1e-6)


def test_ties_depends_on_the_basis_and_regmean_does_not() -> None:
    """The same updates on rotated rows: V' = R V, S' = S R^T. What the elementwise methods can't promise."""
    rng = np.random.default_rng(3)
    rotations = [np.linalg.qr(rng.standard_normal((site.k_in, site.k_in)))[0] for site in SITES]

    def rotated(flat):
        cores = [(core @ r.T).ravel() for (_, core), r in zip(by_site(flat), rotations, strict=True)]
        return np.concatenate(cores).astype(np.float32)

    cores = random_cores()
    turned = [rotated(one) for one in cores]
    grams = [random_grams(seed) for seed in range(3)]
    turned_grams = [
        {site.name: r @ gram[site.name] @ r.T for site, r in zip(SITES, rotations, strict=True)} for gram in grams
    ]
    same = regmean(turned, turned_grams, SITES, ridge=1e-3)
    np.testing.assert_allclose(same, rotated(regmean(cores, grams, SITES, ridge=1e-3)), rtol=1e-3, atol=1e-4)
    other = ties(turned, [1, 1, 1], density=0.5, scale=1.0)
    assert np.abs(other - rotated(ties(cores, [1, 1, 1], density=0.5, scale=1.0))).max() > 0.1


# ---------------------------------------------------------------- dare


def test_dare_is_a_choice_of_the_seed_whose_mean_is_the_weighted_mean() -> None:
    cores, weights = random_cores(), [1.0, 3.0, 2.0]
    first, again, other = (dare(cores, weights, density=0.5, scale=1.0, seed=s) for s in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    many = np.mean([dare(cores, weights, density=0.5, scale=2.0, seed=s) for s in range(4000)], axis=0)
    np.testing.assert_allclose(many, 2.0 * np.average(cores, axis=0, weights=weights), atol=0.15)


def test_dare_keeps_the_share_that_it_says_and_rescales_it() -> None:
    one = random_cores()[0]
    found = dare([one, np.zeros_like(one)], [1, 1], density=0.3, scale=1.0, seed=0)
    kept = found != 0
    assert kept.mean() == pytest.approx(0.3, abs=0.12)
    np.testing.assert_allclose(found[kept], one[kept] / 0.3 / 2, rtol=1e-6)


def test_dare_that_drops_nothing_is_the_weighted_mean() -> None:
    cores, weights = random_cores(), [1.0, 3.0, 2.0]
    wanted = np.average(np.stack(cores).astype(np.float64), axis=0, weights=weights)
    np.testing.assert_allclose(dare(cores, weights, density=1.0, scale=1.0, seed=0), wanted, rtol=1e-6, atol=1e-7)


# ---------------------------------------------------------------- regmean


def random_grams(seed: int, n_inputs: int = 40) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    grams = {}
    for site in SITES:
        z = rng.standard_normal((n_inputs, site.k_in)) * rng.uniform(0.1, 3.0, site.k_in)
        grams[site.name] = z.T @ z / n_inputs
    return grams


def test_regmean_is_the_least_squares_solution_on_all_tasks_inputs() -> None:
    """argmin_S sum_t |(S - S_t) Z_t|^2 by a general solver, on the inputs themselves."""
    cores, rng = random_cores(), np.random.default_rng(5)
    inputs = [{s.name: rng.standard_normal((30, s.k_in)) * rng.uniform(0.1, 3.0, s.k_in) for s in SITES} for _ in cores]
    grams = [{name: z.T @ z / len(z) for name, z in task.items()} for task in inputs]
    found = {site.name: core for site, core in by_site(regmean(cores, grams, SITES, ridge=1e-9))}
    per_site = zip(*map(by_site, cores), strict=True)
    for tasks in per_site:
        name = tasks[0][0].name
        stacked = np.concatenate([task[name] for task in inputs])
        outputs = np.concatenate([task[name] @ core.T for task, (_, core) in zip(inputs, tasks, strict=True)])
        wanted = np.linalg.lstsq(stacked, outputs, rcond=None)[0].T
        np.testing.assert_allclose(found[name], wanted, rtol=1e-4, atol=1e-5)


def test_regmean_of_equal_grams_or_a_huge_ridge_or_no_inputs_is_the_mean() -> None:
    cores = random_cores()
    wanted = mean(cores)
    same = [random_grams(0)] * 3
    nothing = [{site.name: np.zeros((site.k_in, site.k_in)) for site in SITES}] * 3
    different = [random_grams(seed) for seed in range(3)]
    for grams, ridge in ((same, 1e-3), (nothing, 1e-3), (different, 1e9)):
        np.testing.assert_allclose(regmean(cores, grams, SITES, ridge=ridge), wanted, rtol=1e-5, atol=1e-6)
    assert np.abs(regmean(cores, different, SITES, ridge=1e-3) - wanted).max() > 0.1


def test_directions_without_inputs_get_the_mean() -> None:
    cores, grams = random_cores(), [random_grams(seed) for seed in range(3)]
    for gram in grams:
        for site in SITES:
            gram[site.name][:, 0] = gram[site.name][0, :] = 0.0
    found, wanted = regmean(cores, grams, SITES, ridge=1e-6), mean(cores)
    for (_, core), (_, average) in zip(by_site(found), by_site(wanted), strict=True):
        np.testing.assert_allclose(core[:, 0], average[:, 0], rtol=1e-5, atol=1e-6)


# ---------------------------------------------------------------- options and weights


@pytest.mark.parametrize(
    ("method", "options", "complaint"),
    [
        ("mean", {"density": 0.5}, "--density: mean has no option; leave it out"),
        ("ties", {"seed": 1}, "--seed: ties has --density, --lambda; leave it out"),
        ("weighted-sum", {"scale": 2.0}, "--lambda: weighted-sum has no option"),
        ("dare", {"ridge": 1.0}, "--ridge: dare has --density, --lambda, --seed"),
        ("regmean", {"density": 1.0}, "--density: regmean has --ridge"),
        ("ties", {"density": 0.0}, "--density 0.0: needs a share above 0 and at most 1"),
        ("ties", {"density": 1.1}, "--density 1.1: needs a share"),
        ("dare", {"density": float("nan")}, "--density nan: needs a share"),
        ("dare", {"scale": float("inf")}, "--lambda inf: needs a finite number"),
        ("dare", {"seed": -1}, "--seed -1: needs a whole number from 0"),
        ("regmean", {"ridge": 0.0}, "--ridge 0.0: needs a finite number above 0"),
    ],
)
def test_an_option_that_the_method_does_not_have_is_refused_by_name(method, options, complaint) -> None:
    with pytest.raises(InvalidMerge, match=complaint):
        MergeSettings(MergeMethod(method), **options)


@pytest.mark.parametrize(
    ("method", "weights", "complaint"),
    [
        ("mean", [None, 1.0], "mean takes no weights, 't1' has one"),
        ("regmean", [1.0, None], "regmean takes no weights, 't0' has one"),
        ("weighted-sum", [1.0, None], "weighted-sum needs FILE=WEIGHT for every part, 't1' has no weight"),
        ("weighted-sum", [1.0, float("inf")], "needs finite numbers"),
        ("ties", [1.0, -1.0], "ties needs numbers above 0"),
        ("dare", [0.0, 1.0], "dare needs numbers above 0"),
    ],
)
def test_a_weight_that_the_method_does_not_allow_is_refused(method, weights, complaint) -> None:
    with pytest.raises(InvalidMerge, match=complaint):
        used_weights(MergeMethod(method), parts_of(random_cores(2), weights))


def test_weights_that_were_not_given() -> None:
    parts = parts_of(random_cores(2), [None, None])
    assert used_weights(MergeMethod.MEAN, parts) == used_weights(MergeMethod.REGMEAN, parts) == (0.5, 0.5)
    assert used_weights(MergeMethod.TIES, parts) == used_weights(MergeMethod.DARE, parts) == (1.0, 1.0)


@pytest.mark.parametrize("method", MergeMethod)
def test_every_method_is_reached_with_its_options(method: MergeMethod) -> None:
    cores, weights = random_cores(2), [2.0, 1.0]
    grams = [random_grams(0), random_grams(1)]
    without = method in (MergeMethod.MEAN, MergeMethod.REGMEAN)
    wanted = {
        MergeMethod.WEIGHTED_SUM: ({}, weighted_sum(cores, weights)),
        MergeMethod.MEAN: ({}, mean(cores)),
        MergeMethod.TIES: ({"density": 0.3, "scale": 0.5}, ties(cores, weights, density=0.3, scale=0.5)),
        MergeMethod.DARE: (
            {"density": 0.3, "scale": 0.5, "seed": 4},
            dare(cores, weights, density=0.3, scale=0.5, seed=4),
        ),
        MergeMethod.REGMEAN: ({"ridge": 0.1}, regmean(cores, grams, SITES, ridge=0.1)),
    }
    options, result = wanted[method]
    parts = parts_of(cores, None if without else weights)
    settings = MergeSettings(method, **options)
    assert np.array_equal(merge_cores(parts, settings, SPEC, grams if method == "regmean" else None), result)


def test_a_merge_that_float32_can_not_hold_is_refused() -> None:
    parts = parts_of(random_cores(2), [1e39, 1.0])
    with pytest.raises(InvalidMerge, match="too large for float32; lower the weights"):
        merge_cores(parts, MergeSettings(MergeMethod.WEIGHTED_SUM), SPEC, None)
    settings = MergeSettings(MergeMethod.TIES, scale=1e300)
    with pytest.raises(InvalidMerge, match="too large for float32"), warnings.catch_warnings():
        warnings.simplefilter("error")
        merge_cores(parts, settings, SPEC, None)
