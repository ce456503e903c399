import numpy as np
import pytest
from sklearn.linear_model import Ridge

from jaxprobe.errors import InputError
from jaxprobe.probes.path import hold_out_groups, leave_group_out, ridge_path
from jaxprobe.probes.ridge import fit_ridge

EXACT = 1e-7  # float64, beside dimensions 1e4 times larger
FLOAT32 = 1e-5  # float32 products round at 6e-8 and some hundred of them add up
ALPHAS = [1.0, 100.0]
SHAPES = {"tall": (300, 20), "wide": (40, 70)}


def planted(n, d, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d)) + rng.normal(size=d)
    x[:, 0] = 1e4 * x[:, 0] + 9000
    return x, x[:, 1:3] @ rng.normal(size=(2, 2)) + rng.normal(size=(n, 2)) + [1900, -3]


def refit(x, y, alpha, inside):
    return Ridge(alpha, solver="cholesky").fit(x[~inside], y[~inside]).predict(x[inside])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_weights_predictions_and_leave_one_out_residuals_equal_refits(shape, dtype):
    x, y = planted(*SHAPES[shape])
    path = ridge_path(x, y, ALPHAS, dtype=dtype)
    tolerance = EXACT if dtype == "float64" else FLOAT32
    for a, alpha in enumerate(ALPHAS):
        reference = Ridge(alpha, solver="cholesky").fit(x, y)
        np.testing.assert_allclose(
            path.weights[a] * x.std(0)[:, None], reference.coef_.T * x.std(0)[:, None], atol=tolerance
        )
        np.testing.assert_allclose(path.intercept[a], reference.intercept_, rtol=tolerance)
        np.testing.assert_allclose(path.predictions[a], reference.predict(x), rtol=tolerance)
        for i in (0, 7, len(y) - 1):
            residual = y[i] - refit(x, y, alpha, np.arange(len(y)) == i)[0]
            np.testing.assert_allclose(path.loo_residuals[a, i], residual, atol=tolerance * y.std())
    chosen = fit_ridge(x[None], y, ALPHAS, dtype=dtype)
    np.testing.assert_allclose((path.loo_residuals**2).mean(1), chosen.loo_mse[0], rtol=tolerance)


@pytest.mark.parametrize("shape", SHAPES)
def test_every_group_held_out_equals_refits(shape):
    """Groups of 1 row to many, so that both forms and several block sizes are used."""
    n, d = SHAPES[shape]
    x, y = planted(n, d)
    sizes = [1, 1, 2, 9, 10, 11, n - 34]
    labels = np.random.default_rng(2).permutation(np.repeat([f"g{i}" for i in range(7)], sizes))
    found = leave_group_out(x, y, labels, ALPHAS, dtype="float64")
    for a, alpha in enumerate(ALPHAS):
        for label in np.unique(labels):
            inside = labels == label
            np.testing.assert_allclose(found[a, inside], refit(x, y, alpha, inside), rtol=EXACT, atol=EXACT)


def test_groups_larger_than_a_block_of_rows():
    x, y = planted(7000, 6)
    labels = np.repeat([0, 1, 2], [2500, 4096, 404])
    found = leave_group_out(x, y, labels, [10.0], dtype="float64")
    for label in range(3):
        np.testing.assert_allclose(
            found[0, labels == label], refit(x, y, 10.0, labels == label), rtol=EXACT, atol=EXACT
        )
    in_float32 = leave_group_out(x.astype(np.float32), y, labels, [10.0])
    np.testing.assert_allclose(in_float32, found, atol=FLOAT32 * y.std())


def test_held_out_groups_have_seen_neither_row_nor_penalty():
    x, y = planted(200, 20)
    labels = np.random.default_rng(3).integers(8, size=200)
    alphas = np.logspace(-1, 5, 7)
    found = hold_out_groups(x, y, labels, [2, 5], alphas, dtype="float64")
    for label in (2, 5):
        inside = labels == label
        xr, yr, lr = x[~inside], y[~inside], labels[~inside]
        errors = []
        for alpha in alphas:
            predictions = np.empty_like(yr)
            for other in np.unique(lr):
                predictions[lr == other] = refit(xr, yr, alpha, lr == other)
            errors.append((((predictions - yr) ** 2).mean(0) / yr.var(0)).mean())
        assert found[label].alpha == alphas[np.argmin(errors)]
        np.testing.assert_allclose(found[label].predictions, refit(x, y, found[label].alpha, inside), rtol=EXACT)
    changed = y.copy()
    changed[labels == 2] = 1e6
    again = hold_out_groups(x, changed, labels, [2], alphas, dtype="float64")
    np.testing.assert_array_equal(again[2].predictions, found[2].predictions)


def test_bad_input_is_refused():
    x, y = planted(60, 8)
    with pytest.raises(InputError, match="No row is of group 9"):
        hold_out_groups(x, y, np.arange(60) % 3, [9])
    x[3, 2] = np.inf
    with pytest.raises(InputError, match="not finite") as caught:
        leave_group_out(x, y, np.arange(59), [0.0])
    assert len(caught.value.problems) == 3
    with pytest.raises(InputError, match="wanted \\[row, dimension\\]"):
        ridge_path(x[None], y, ALPHAS)
