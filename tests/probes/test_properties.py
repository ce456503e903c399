"""What must hold for any states: whatever their columns are, hypothesis looks for the ones that break it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxprobe.probes.ridge import fit_ridge, predict
from jaxprobe.probes.search import CONDITION_LIMIT

# A new shape compiles anew, so shapes are drawn from a few: fewer rows than dimensions, as many, more.
SHAPES = st.sampled_from([(2, 1), (3, 2), (8, 7), (10, 25), (40, 6)])
EDITS = st.lists(st.sampled_from(["constant", "duplicate", "huge", "far", "repeat_rows", "sum"]), max_size=4)
SEEDS = st.integers(0, 2**32 - 1)
# Float64; the truth below and the fit each lose the digits by which 1e4^2 exceeds the penalty.
EXACT = 1e-6
FLOAT32 = 1e-4  # what the project promises for float32
quick = settings(max_examples=25, deadline=None, derandomize=True)


def states(shape, edits, seed):
    """[1, N, D] and targets [N, 2], with columns that are hard in the ways that real states are."""
    rng = np.random.default_rng(seed)
    n, d = shape
    x, y = rng.normal(size=shape), rng.normal(size=(n, 2))
    y += x[:, :1]
    for edit in edits:
        column, other = rng.integers(d, size=2)
        match edit:
            case "constant":
                x[:, column] = 3.0
            case "duplicate":
                x[:, column] = x[:, other]
            case "huge":
                x[:, column] *= 1e4 / max(1, abs(x[:, column]).max())
            case "far":
                x[:, column] += 1e4
            case "repeat_rows":
                x[n // 2 :] = x[: n - n // 2]
            case "sum":
                x[:, column] = x.sum(1)
    return x[None], y


def refit_without(x, y, inside, alpha):
    """Predictions for the rows inside by least squares (QR) on the others, the penalty being D more rows."""
    x_mean, y_mean = x[~inside].mean(0), y[~inside].mean(0)
    rows = np.concatenate([x[~inside] - x_mean, np.sqrt(alpha) * np.eye(x.shape[1])])
    targets = np.concatenate([y[~inside] - y_mean, np.zeros((x.shape[1], y.shape[1]))])
    q, r = np.linalg.qr(rows)
    return (x[inside] - x_mean) @ np.linalg.solve(r, q.T @ targets) + y_mean


@pytest.mark.slow
@quick
@given(SHAPES, EDITS, SEEDS, st.sampled_from([0.1, 1.0, 100.0]))
def test_leave_one_out_equals_refits(shape, edits, seed, alpha):
    x, y = states(shape, edits, seed)
    rows = np.arange(len(y))
    expected = np.stack([refit_without(x[0], y, rows == i, alpha)[0] for i in rows])
    found = fit_ridge(x, y, [alpha], dtype="float64").loo_mse[0, 0]
    np.testing.assert_allclose(found, ((y - expected) ** 2).mean(0), rtol=EXACT)


@pytest.mark.slow
@quick
@given(SHAPES, EDITS, SEEDS, st.sampled_from([1.0, 100.0]))
def test_leave_one_group_out_equals_refits(shape, edits, seed, alpha):
    x, y = states(shape, edits, seed)
    labels = np.random.default_rng(seed).integers(3, size=len(y))
    labels[:2] = 0, 1  # at least two groups
    found = fit_ridge(x, y, [alpha], criterion="leave_one_group_out", groups=labels, dtype="float64").loo_mse[0, 0]
    expected = np.empty_like(y)
    for label in np.unique(labels):
        inside = labels == label
        expected[inside] = refit_without(x[0], y, inside, alpha)
    np.testing.assert_allclose(found, ((y - expected) ** 2).mean(0), rtol=EXACT)


@pytest.mark.slow
@quick
@given(SHAPES, EDITS, SEEDS, st.floats(-3, 3), st.floats(-3, 3), st.floats(-100, 100))
def test_units_and_order_do_not_matter(shape, edits, seed, x_power, y_power, shift):
    """A grid of our own is relative: other units, another origin and another order of rows give the same probe."""
    x, y = states(shape, edits, seed)
    x_unit, y_unit = 10**x_power, 10**y_power
    order = np.random.default_rng(seed).permutation(len(y))
    fit = fit_ridge(x, y, dtype="float64")
    other = fit_ridge(
        x_unit * x[:, order] + shift * x_unit,
        y_unit * y[order] - shift * y_unit,
        fit.alphas[0] * x_unit**2,
        dtype="float64",
    )
    losses, other_losses = fit.loo_mse[0], other.loo_mse[0] / y_unit**2
    seen = np.isfinite(losses[:, 0]) & (fit.alphas[0] > 1e-3 * fit.alphas[0, -1])  # below, the digits of 1e4^2 are gone
    np.testing.assert_allclose(other_losses[seen], losses[seen], rtol=EXACT)
    own = fit_ridge(x_unit * x[:, order] + shift * x_unit, y_unit * y[order] - shift * y_unit, dtype="float64")
    np.testing.assert_allclose(own.alphas[0, -1] / own.alphas[0, 0], fit.alphas[0, -1] / fit.alphas[0, 0], rtol=EXACT)


@pytest.mark.slow
@quick
@given(EDITS, SEEDS, st.sampled_from([1.0, 1e3, 1e5]))
def test_float32_keeps_its_promise_whatever_the_columns(edits, seed, alpha):
    x, y = states((2500, 15), edits, seed)
    x = x.astype(np.float32)
    exact, narrow = fit_ridge(x, y, [alpha], dtype="float64"), fit_ridge(x, y, [alpha])
    # Again in float64 only with cause.
    assert not narrow.notes or exact.condition[0] > CONDITION_LIMIT["float32"] / 2
    np.testing.assert_allclose(narrow.loo_mse, exact.loo_mse, rtol=FLOAT32)
    np.testing.assert_allclose(predict(narrow, x), predict(exact, x), atol=FLOAT32 * y.std())


@pytest.mark.slow
@quick
@given(SHAPES, SEEDS)
def test_duplicated_dimensions_share_their_weight_and_constant_ones_have_none(shape, seed):
    x, y = states(shape, [], seed)
    once = fit_ridge(x, y, [1.0], dtype="float64")
    doubled = np.concatenate([x, x, np.full_like(x[..., :1], 5.0)], axis=2)
    twice = fit_ridge(doubled, y, [2.0], dtype="float64")  # two halves of a weight have half its square
    d = shape[1]
    np.testing.assert_allclose(twice.weights[0, :d], once.weights[0] / 2, rtol=EXACT, atol=1e-12)
    np.testing.assert_allclose(twice.weights[0, d : 2 * d], once.weights[0] / 2, rtol=EXACT, atol=1e-12)
    np.testing.assert_array_equal(twice.weights[0, -1], 0)
