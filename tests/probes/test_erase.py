import warnings

import jax
import numpy as np
import pytest
import torch
from scipy.stats import kstest
from sklearn.gaussian_process.kernels import RBF
from sklearn.kernel_ridge import KernelRidge

from jaxprobe.errors import InputError
from jaxprobe.probes.erase import (
    apply_edit,
    covariance,
    decompose_kernels,
    erase,
    fit_surface,
    leace,
    orthogonal,
    random_shifts,
    random_subspace,
    removed_variance,
    shrunk_weights,
    steer,
    surface_at,
    with_targets,
)
from jaxprobe.probes.moments import moments_of
from jaxprobe.probes.ridge import fit_ridge

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # it decorates functions with torch.jit.script
    from concept_erasure import LeaceFitter

D, N = 40, 900


def states(n=N, d=D, seed=0):
    """States with two dimensions 1e4 times larger than the rest and means that are not 0; targets in degrees."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, d)) @ (rng.standard_normal((d, d)) / d**0.5 + np.eye(d)) + rng.standard_normal(d)
    z = np.stack([30 * x[:, 3] + 10 * rng.standard_normal(n), 80 * x[:, 4] - 60 * x[:, 3]], axis=1) + np.array(
        [10, -40]
    )
    x[:, :2] = 1e4 * x[:, :2] + 9000
    return x, z + np.array([10, -40])


def classes(z, count=6):
    return np.eye(count)[np.digitize(z[:, 0], np.quantile(z[:, 0], np.linspace(0, 1, count + 1)[1:-1]))]


def r2_again(x, z):
    """R2 of least squares fitted and scored on the same rows, per target: what a linear probe finds."""
    x, z = x - x.mean(0), z - z.mean(0)
    scaled = x / np.maximum(x.std(0), 1e-300)
    residual = z - scaled @ np.linalg.lstsq(scaled, z, rcond=1e-9)[0]
    return 1 - (residual**2).sum(0) / (z**2).sum(0)


@pytest.mark.parametrize("target", ["degrees", "classes", "few rows"])
def test_leace_equals_the_authors(target):
    x, z = states(30, 40) if target == "few rows" else states()
    z = classes(z) if target == "classes" else z
    standard = (z - z.mean(0)) / z.std(0)
    torch_x, torch_z = torch.tensor(x), torch.tensor(standard)
    fitter = LeaceFitter(x.shape[1], z.shape[1], dtype=torch.float64, shrinkage=False, svd_tol=1e-9)
    eraser = fitter.update(torch_x, torch_z).eraser
    new = np.random.default_rng(1).standard_normal((50, x.shape[1])) @ np.diag(x.std(0)) + x.mean(0)
    edit = leace(covariance(x, z))
    for rows in (x, new):
        difference = apply_edit(edit, rows) - eraser(torch.tensor(rows)).numpy()
        assert np.abs(difference / x.std(0)).max() < 1e-10
    assert edit.rank == (5 if target == "classes" else 2)


def erasers(x, z):
    cov = covariance(x, z)
    alpha = 1e-2 * cov.values.mean() * len(x)
    fit = fit_ridge(x[None].astype(np.float32), z, [alpha])
    return {
        "leace": leace(cov),
        "shrunk": erase(cov, shrunk_weights(cov, alpha)),
        "ridge": erase(cov, fit.weights[0]),
        "any read": erase(cov, np.random.default_rng(3).standard_normal((D, z.shape[1]))),
    }


@pytest.mark.slow
@pytest.mark.parametrize("target", ["degrees", "classes"])
def test_a_probe_fitted_anew_finds_nothing(target):
    x, z = states()
    z = classes(z) if target == "classes" else z
    assert r2_again(x, z).max() > 0.4
    sizes = {}
    for name, edit in erasers(x, z).items():
        changed = apply_edit(edit, x)
        assert r2_again(changed, z).max() < 1e-6, name
        np.testing.assert_allclose(edit.read.T @ edit.write, np.eye(edit.rank), atol=1e-8)
        sizes[name] = ((changed - x) ** 2).sum(1).mean()
        assert sizes[name] == pytest.approx(removed_variance(edit, covariance(x, z)), rel=1e-6)
    assert min(sizes, key=sizes.get) == "leace"
    # The ridge probe in float32, of targets in degrees, is the same edit as from the moments in float64.
    assert sizes["ridge"] == pytest.approx(sizes["shrunk"], rel=1e-3)


def test_a_projection_of_ridge_weights_leaves_what_leace_does_not():
    x, z = states()
    cov = covariance(x, z)
    weights = shrunk_weights(cov, 1e-2 * cov.values.mean() * N)
    changed = apply_edit(orthogonal(weights, cov.mean), x)
    np.testing.assert_allclose((changed - cov.mean) @ weights / np.linalg.norm(weights, axis=0), 0, atol=1e-6)
    assert r2_again(changed, z).min() > 0.01


@pytest.mark.slow
def test_moments_and_rows_and_new_targets_agree():
    x, z = states()
    z = z / z.std(0)  # moments hold targets about 0
    with jax.enable_x64(True):
        moments = moments_of(jax.numpy.asarray(x), jax.numpy.asarray(z - z.mean(0)), "float64")
    permuted = np.random.default_rng(0).permutation(z)
    pairs = [
        (covariance(moments), covariance(x, z)),
        (with_targets(covariance(x, z), x, permuted), covariance(x, permuted)),
    ]
    for found, expected in pairs:
        change = apply_edit(leace(found), x) - apply_edit(leace(expected), x)
        assert np.abs(change / x.std(0)).max() < 1e-9


@pytest.mark.parametrize("by_covariance", [False, True])
def test_a_shift_changes_the_reading_by_what_was_asked(by_covariance):
    x, z = states()
    fit = fit_ridge(x[None].astype(np.float32), z)
    cov = covariance(x, z)
    goal = z[::-1] + np.array([1, 2])
    edit = steer(fit.weights[0], fit.intercept[0], fit.x_mean[0], goal, cov if by_covariance else None)
    weights, intercept = fit.weights[0].astype(np.float64), fit.intercept[0]
    changed = apply_edit(edit, x)
    np.testing.assert_allclose(changed @ weights + intercept, goal, atol=1e-6)
    # The change of least norm is the shorter one, and so only it lies in the span of the weights.
    outside = (changed - x) - (changed - x) @ np.linalg.pinv(weights).T @ weights.T
    assert (np.abs(outside).max() < 1e-6 * np.abs(changed - x).max()) == (not by_covariance)
    once = steer(fit.weights[0], fit.intercept[0], fit.x_mean[0], np.array([48.9, 2.4]), cov if by_covariance else None)
    np.testing.assert_allclose(apply_edit(once, x)[:3] @ weights + intercept, [[48.9, 2.4]] * 3, atol=1e-6)


def test_along_the_covariance_other_targets_follow():
    """Where two features go together, moving one by the covariance moves the other as the data do."""
    rng = np.random.default_rng(0)
    a = rng.standard_normal(5000)
    x = np.stack([a + 0.3 * rng.standard_normal(5000), a + 0.3 * rng.standard_normal(5000)], axis=1)
    cov = covariance(x, a)
    weights = shrunk_weights(cov, 0.0)
    shift = lambda edit: apply_edit(edit, x) - x
    least, along = (shift(steer(weights, [0.0], cov.mean, [3.0], c)) for c in (None, cov))
    pattern = np.array([x[:, 0] @ a, x[:, 1] @ a]) / 5000
    np.testing.assert_allclose(along[0] / np.linalg.norm(along[0]), pattern / np.linalg.norm(pattern), atol=0.02)
    assert np.linalg.norm(least[0]) <= np.linalg.norm(along[0]) + 1e-12


def test_random_subspaces_hold_the_variance_asked_for():
    x, z = states()
    cov = covariance(x, z)
    erased = leace(cov)
    wanted = removed_variance(erased, cov)
    rng = np.random.default_rng(0)
    left = []
    for _ in range(20):
        edit = random_subspace(rng, cov, 2, wanted)
        assert edit.rank == 2 and removed_variance(edit, cov) == pytest.approx(wanted, rel=1e-3)
        left.append(r2_again(apply_edit(edit, x), z).mean())
    assert min(left) > 0.5 * r2_again(x, z).mean()
    assert len(set(left)) == 20
    largest = random_subspace(rng, cov, 1, 1e30)  # as much as one direction can hold
    assert removed_variance(largest, cov) == pytest.approx(cov.values[-1], rel=1e-2)


def test_random_shifts_have_their_sizes_and_no_direction():
    x, _ = states()
    sizes = np.linspace(0.1, 5, 400)
    shifts = random_shifts(np.random.default_rng(0), x / x.std(0), sizes)
    np.testing.assert_allclose(np.linalg.norm(shifts, axis=1), sizes, rtol=1e-12)
    assert kstest(np.sign(shifts[:, 5]), [-1.0, 1.0]).pvalue > 0.001
    with pytest.raises(InputError, match="equal"):
        random_shifts(np.random.default_rng(0), np.ones((5, 3)), sizes)


def test_the_surface_is_kernel_ridge_and_its_leave_one_out_exact():
    rng = np.random.default_rng(0)
    places = rng.uniform(-1, 1, (60, 2))
    x = np.stack([np.sin(3 * places[:, 0]), places.prod(1), rng.standard_normal(60), np.full(60, 2.0)], axis=1)
    surface = fit_surface(decompose_kernels(places, (0.5,)), x, penalties=(0.1,))
    kernel = RBF(surface.length)(places)
    centring = np.eye(60) - 1 / 60

    def plain(rows, at):
        """Kernel ridge with a free intercept, by the augmented system."""
        n = len(rows)
        system = np.block([[kernel[np.ix_(rows, rows)] + surface.alpha * np.eye(n), np.ones((n, 1))], [np.ones(n), 0]])
        solution = np.linalg.solve(system, np.vstack([x[rows], np.zeros(4)]))
        return kernel[np.ix_(at, rows)] @ solution[:-1] + solution[-1]

    everyone = np.arange(60)
    np.testing.assert_allclose(surface_at(surface, places), plain(everyone, everyone), atol=1e-9)
    errors = np.concatenate([x[[i]] - plain(np.delete(everyone, i), [i]) for i in everyone])
    expected = 1 - ((errors[:, :3] ** 2).mean(0) / x[:, :3].var(0)).mean()
    assert surface.r2 == pytest.approx(expected, rel=1e-8)
    again = KernelRidge(alpha=surface.alpha, kernel="precomputed").fit(centring @ kernel @ centring, x - x.mean(0))
    np.testing.assert_allclose(surface.dual, again.dual_coef_, atol=1e-8)
    assert fit_surface(places, x).r2 >= surface.r2
    chosen = fit_surface(places, x[:, :2])
    assert chosen.r2 > 0.99
    moved = surface_at(chosen, [[0.5, 0.5]]) - surface_at(chosen, [[-0.5, 0.5]])
    assert moved[0, 0] == pytest.approx(np.sin(1.5) - np.sin(-1.5), abs=0.1)
    assert moved[0, 1] == pytest.approx(0.5, abs=0.1)


def test_an_edit_keeps_the_dtype_and_says_what_does_not_fit():
    x, z = states()
    edit = leace(covariance(x, z))
    assert apply_edit(edit, x.astype(np.float32)).dtype == np.float32
    with pytest.raises(InputError, match="40"):
        apply_edit(edit, x[:, 1:])
    with pytest.raises(InputError, match="rows"):
        covariance(x, z[1:])
    with pytest.raises(InputError, match="finite"):
        covariance(np.where(x > 2, np.nan, x), z)
    with pytest.raises(InputError, match="smaller penalty"):
        erase(covariance(x, z), np.stack([x[0], x[0]], axis=1))
    with pytest.raises(InputError, match="collinear"):
        steer(np.ones((D, 2)), np.zeros(2), x.mean(0), np.zeros(2))
    constant = covariance(x, np.c_[z, np.full(N, 0.1)])
    assert leace(constant).rank == 2
