"""Other criteria, solvers and device counts, against refits and against the default."""

import jax
import numpy as np
import pytest
from sklearn.linear_model import Ridge

from jaxprobe.errors import InputError
from jaxprobe.probes import devices as spread
from jaxprobe.probes.moments import Moments, add, moments_of
from jaxprobe.probes.ridge import fit_moments, fit_ridge

EXACT = 1e-8  # float64 on well-posed problems
FLOAT32 = 1e-5  # float32 products round at 6e-8 and some hundred of them add up
ALPHAS = np.logspace(0, 4, 5)
SHAPES = {"tall": (400, 30), "wide": (40, 90)}


def planted(n, d, layers=1, seed=0):
    """States with two dimensions 1e4 times larger than the rest, and targets they explain."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(layers, n, d)) + rng.normal(size=d)
    x[..., :2] = 1e4 * x[..., :2] + 9000
    return x, x[0, :, 2:4] @ rng.normal(size=(2, 2)) + rng.normal(size=(n, 2)) + [1900, -3]


def refit_without(x, y, groups, alpha):
    """[N, C] predictions of each group by scikit-learn's Ridge fitted on the rest."""
    predictions = np.empty_like(y)
    for group in np.unique(groups):
        inside = groups == group
        predictions[inside] = Ridge(alpha, solver="cholesky").fit(x[~inside], y[~inside]).predict(x[inside])
    return predictions


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("criterion", ["k_fold", "leave_one_group_out"])
def test_folds_and_groups_equal_refits(shape, criterion):
    n, d = SHAPES[shape]
    x, y = planted(n, d)
    folds = np.random.default_rng(1).integers(4, size=n)
    fit = fit_ridge(x, y, ALPHAS, criterion=criterion, groups=folds, dtype="float64")
    expected = [((y - refit_without(x[0], y, folds, alpha)) ** 2).mean(0) for alpha in ALPHAS]
    # x x' of the wide shape holds 1e8 beside alpha = 1.
    np.testing.assert_allclose(fit.loo_mse[0], expected, rtol=EXACT if shape == "tall" else 1e-6)
    assert fit.alpha[0] == ALPHAS[np.argmin((expected / y.var(0)).mean(1))]
    reference = Ridge(fit.alpha[0]).fit(x[0], y)
    np.testing.assert_allclose(fit.weights[0], reference.coef_.T, atol=1e-6 * abs(reference.coef_).max())


@pytest.mark.slow
@pytest.mark.parametrize("shape, solver", [("tall", "eigh"), ("wide", "eigh"), ("tall", "cholesky")])
def test_generalised_equals_its_definition(shape, solver):
    x, y = planted(*SHAPES[shape])
    fit = fit_ridge(x, y, ALPHAS, criterion="generalised", dtype="float64", solver=solver)
    centred, n = x[0] - x[0].mean(0), len(y)
    for a, alpha in enumerate(ALPHAS):
        hat = centred @ np.linalg.solve(centred.T @ centred + alpha * np.eye(x.shape[2]), centred.T) + 1 / n
        expected = n * ((y - hat @ y) ** 2).sum(0) / (n - np.trace(hat)) ** 2
        np.testing.assert_allclose(fit.loo_mse[0, a], expected, rtol=1e-6)  # np.linalg.solve of the singular wide x'x


@pytest.mark.slow
@pytest.mark.parametrize("solver, layers", [("eigh", 8), ("eigh", 11), ("cholesky", 11)])
def test_eight_devices_equal_one(layers, solver):
    x, y = planted(1500, 30, layers=layers)
    x = x.astype(np.float32)
    one = fit_ridge(x, y, solver=solver)
    eight = fit_ridge(x, y, solver=solver, devices=jax.devices())  # 11 layers are padded to 16
    np.testing.assert_array_equal(eight.alphas.shape, one.alphas.shape)
    # Not bit by bit: XLA cuts a product by the threads that a device has.
    np.testing.assert_allclose(eight.alpha, one.alpha, rtol=EXACT)
    np.testing.assert_allclose(eight.loo_mse, one.loo_mse, rtol=FLOAT32)
    for ours, theirs in zip(eight.weights, one.weights, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=FLOAT32 * abs(theirs).max())


@pytest.mark.slow
def test_layers_at_once_equal_layers_one_by_one(monkeypatch):
    """What accelerators run (vmap) equals what a CPU runs."""
    x, y = planted(400, 30, layers=3)
    one_by_one = fit_ridge(x, y)
    monkeypatch.setattr(spread, "at_once", lambda mesh: True)
    spread.over_layers.cache_clear()
    at_once = fit_ridge(x, y)
    spread.over_layers.cache_clear()
    for field, ours, theirs in zip(at_once._fields, at_once, one_by_one, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=EXACT, err_msg=field)


@pytest.mark.slow
@pytest.mark.parametrize("criterion", ["generalised", "k_fold"])
def test_streamed_moments_equal_arrays(criterion):
    x, y = planted(600, 30, layers=2)
    y = y - y.mean(0)
    folds = np.arange(600) % 3
    with jax.enable_x64(True):

        def streamed(layer, fold):
            chunks = np.array_split(np.flatnonzero(folds == fold), 4)
            parts = [moments_of(x[layer, rows], y[rows], "float64", x[layer, :100].mean(0)) for rows in chunks]
            return parts[0] if len(parts) == 1 else add(add(parts[0], parts[1]), add(parts[2], parts[3]))

        by_layer = [[streamed(layer, fold) for fold in range(3)] for layer in range(2)]
        stack = lambda trees: Moments(*(np.stack(leaves) for leaves in zip(*trees, strict=True)))
        moments = {str(layer): stack(of_folds) for layer, of_folds in enumerate(by_layer)}
    groups = folds if criterion == "k_fold" else None
    expected = fit_ridge(x, y, criterion=criterion, groups=groups, dtype="float64")
    fit = fit_moments(moments, criterion=criterion)
    for field, ours, theirs in zip(fit._fields, fit, expected, strict=True):
        if field == "condition":  # that of moments is along their principal axes
            continue
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-9, err_msg=field)


def test_bad_options_are_refused():
    x, y = planted(60, 8)
    for criterion, groups in [("k_fold", None), ("leave_one_out", np.arange(60))]:
        with pytest.raises(InputError, match="groups go with"):
            fit_ridge(x, y, criterion=criterion, groups=groups)
    with pytest.raises(InputError, match="59 labels for 60 rows"):
        fit_ridge(x, y, criterion="k_fold", groups=np.arange(59))
    with pytest.raises(InputError, match="All rows are of one group, 'a'"):
        fit_ridge(x, y, criterion="k_fold", groups=["a"] * 60)
