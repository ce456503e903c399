import re
import threading

import numpy as np
import pytest
from sklearn.linear_model import Ridge, RidgeCV

from jaxprobe.errors import InputError
from jaxprobe.probes import eigen as factors
from jaxprobe.probes.devices import layer_mesh, over_layers
from jaxprobe.probes.ridge import fit_ridge, fit_states, predict, predict_layer
from jaxprobe.probes.search import RELATIVE_ALPHAS

# Float32 products round at 6e-8 and some hundred of them add up (the project promises 1e-4).
FLOAT32 = 1e-5
# x x' of the wide shapes holds 1e12 (the huge dimensions) beside alpha = 10: 1e12 / 10 * 1e-16 is lost even in float64.
FLOAT64 = 1e-6
ALPHAS = np.logspace(1, 6, 12)
SHAPES = {"tall": (4200, 24), "square": (51, 50), "wide": (40, 120)}


def planted(n, d, layers=2, seed=0):
    """States with three dimensions 1e4 times larger than the rest, means that are not 0, and targets they explain."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(layers, n, d)) @ (rng.normal(size=(d, d)) / d**0.5 + np.eye(d)) + rng.normal(size=d)
    x[..., :3] = 1e4 * x[..., :3] + 9000
    y = x[0, :, 3:5] @ rng.normal(size=(2, 2)) + 0.5 * rng.normal(size=(n, 2)) + [1900, -3]
    return x.astype(np.float32), y * [30, 1]


def hat_matrix_leave_one_out(x, y, alphas):
    """[A, C] leave-one-out MSE from the singular values of centred x in float64."""
    centred = x.astype(np.float64) - x.mean(0, dtype=np.float64)
    u, s, _ = np.linalg.svd(centred, full_matrices=False)
    errors = []
    for alpha in alphas:
        half = u * (s / np.sqrt(s**2 + alpha))  # the hat matrix is half half' + 1/N
        residual = y - y.mean(0) - half @ (half.T @ y)
        errors.append(((residual / (1 - 1 / len(x) - (half**2).sum(1))[:, None]) ** 2).mean(0))
    return np.array(errors)


def refit_leave_one_out(x, y, alphas):
    """[A, C] leave-one-out MSE by N refits of scikit-learn's Ridge."""
    errors = np.empty((len(alphas), *y.shape))
    for a, alpha in enumerate(alphas):
        for i in range(len(y)):
            rest = np.arange(len(y)) != i
            errors[a, i] = y[i] - Ridge(alpha, solver="cholesky").fit(x[rest], y[rest]).predict(x[i : i + 1])[0]
    return (errors**2).mean(1)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_equals_numpy_and_scikit_learn(shape, dtype):
    x, y = planted(*SHAPES[shape])
    fit = fit_ridge(x, y, ALPHAS, dtype=dtype)
    tolerance = FLOAT32 if dtype == "float32" else FLOAT64
    standardised = (y - y.mean(0)) / y.std(0)  # RidgeCV chooses by the mean over targets, we by the mean of MSE / var
    for layer in range(2):
        reference = RidgeCV(ALPHAS, store_cv_results=True).fit(x[layer].astype(np.float64), standardised)
        scikit = reference.cv_results_.mean(0).T * y.var(0)
        np.testing.assert_allclose(fit.loo_mse[layer], scikit, rtol=tolerance)
        np.testing.assert_allclose(fit.loo_mse[layer], hat_matrix_leave_one_out(x[layer], y, ALPHAS), rtol=tolerance)
        assert fit.alpha[layer] == reference.alpha_
    predicted = predict(fit, x)
    for layer, exact in enumerate(x.astype(np.float64)):
        reference = Ridge(fit.alpha[layer]).fit(exact, y)
        scale = exact.std(0)[:, None] / y.std(0)  # weights in deviations, so that huge dimensions count as any
        np.testing.assert_allclose(fit.weights[layer] * scale, reference.coef_.T * scale, atol=FLOAT32)
        np.testing.assert_allclose(predicted[layer] / y.std(0), reference.predict(exact) / y.std(0), atol=FLOAT32)
        by_weights = exact @ fit.weights[layer].astype(np.float64) + fit.intercept[layer]
        np.testing.assert_allclose(predicted[layer] / y.std(0), by_weights / y.std(0), atol=FLOAT32)


@pytest.mark.parametrize("n, d", [(2, 1), (2, 6), (3, 2), (9, 4), (12, 12), (12, 40)])
def test_leave_one_out_equals_refits(n, d):
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(1, n, d)) + 5, rng.normal(size=(n, 2))
    alphas = [1e-3, 0.1, 10.0]
    fit = fit_ridge(x, y, alphas, dtype="float64")
    np.testing.assert_allclose(fit.loo_mse[0], refit_leave_one_out(x[0], y, alphas), rtol=1e-9)


@pytest.mark.slow
def test_alpha_per_target_equals_ridgecv():
    x, y = planted(600, 60)
    y[:, 1] = np.random.default_rng(2).normal(size=600)  # noise wants the largest penalty
    fit = fit_ridge(x, y, ALPHAS, alpha_per_target=True)
    reference = RidgeCV(ALPHAS, alpha_per_target=True).fit(x[0].astype(np.float64), y)
    np.testing.assert_array_equal(fit.alpha[0], reference.alpha_)
    assert fit.alpha[0, 0] != fit.alpha[0, 1]
    scale = x[0].std(0)[:, None] / y.std(0)
    np.testing.assert_allclose(fit.weights[0] * scale, reference.coef_.T * scale, atol=FLOAT32)


def test_a_grid_of_its_own_extends_at_either_edge_and_only_there():
    rng = np.random.default_rng(3)
    x = rng.normal(size=(3, 2000, 30))
    signal = x[1] @ rng.normal(size=(30, 1)) + 30 * rng.normal(size=(2000, 1))  # wants a penalty inside the grid
    exact, noise = x[0] @ rng.normal(size=(30, 1)), rng.normal(size=(2000, 1))
    scale = np.median(((x - x.mean(1, keepdims=True)) ** 2).sum(1), axis=1)
    width = 10**6
    for y, layer, low, high in [(exact, 0, 1 / width, 1), (signal, 1, 1, 1), (noise, 2, 1, width)]:
        fit = fit_ridge(x[layer : layer + 1], y)
        tried = fit.alphas[0] / scale[layer]
        np.testing.assert_allclose(tried[[0, -1]], [RELATIVE_ALPHAS[0] * low, RELATIVE_ALPHAS[-1] * high], rtol=1e-4)
        np.testing.assert_allclose(np.diff(np.log10(tried)), 0.5, rtol=1e-6)
        assert fit.loo_mse[0].min() == fit.loo_mse[0, np.flatnonzero(fit.alphas[0] == fit.alpha[0]), 0]
    # Together: the same, and NaN where a layer had no call to look.
    both = fit_ridge(x[:2], exact)
    assert both.alphas.shape == (2, 24) and np.isfinite(both.loo_mse[0]).all()
    assert np.isnan(both.loo_mse[1, :12]).all() and np.isfinite(both.loo_mse[1, 12:]).all()
    np.testing.assert_array_equal(both.alpha[0], fit_ridge(x[:1], exact).alpha[0])


def test_states_equal_arrays_and_are_read_in_order_while_another_is_solved():
    x, y = planted(700, 30, layers=4)
    reads, readers = [], set()

    class Store(dict):
        def __getitem__(self, name):
            reads.append(name)
            readers.add(threading.current_thread())
            return super().__getitem__(name)

    names = ["embed", "0", "1", "final_norm"]
    rows = np.random.default_rng(4).permutation(700)[:500]
    by_state = fit_states(Store(zip(names, x, strict=True)), rows, y[rows])
    by_array = fit_ridge(x[:, rows], y[rows])
    for field, ours, theirs in zip(by_state._fields, by_state, by_array, strict=True):
        np.testing.assert_array_equal(ours, theirs, err_msg=field)
    assert reads == names and threading.main_thread() in readers and len(readers) == 2
    mask = np.zeros(700, bool)
    mask[rows] = True
    by_mask = fit_states(dict(zip(names, x, strict=True)), mask, y[mask])
    np.testing.assert_allclose(by_mask.weights, by_state.weights, atol=FLOAT32 * abs(by_state.weights).max())


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_narrow_states_are_solved_in_float32(dtype):
    import ml_dtypes

    x, y = planted(2000, 20)
    narrow = (x / 1e3).astype(getattr(ml_dtypes, dtype, dtype))
    fit, wide = fit_ridge(narrow, y), fit_ridge(narrow.astype(np.float32), y)
    np.testing.assert_array_equal(fit.weights, wide.weights)
    np.testing.assert_array_equal(predict(fit, narrow), predict(wide, narrow.astype(np.float32)))


@pytest.mark.slow
def test_a_badly_conditioned_state_is_solved_again_in_float64_and_named():
    rng = np.random.default_rng(5)
    x = rng.normal(size=(2, 4000, 20))
    x[1, :, 0] = x[1, :, 1] + 1e-4 * rng.normal(size=4000)  # all but a duplicate, and the target is in the difference
    y = 1e4 * (x[1, :, :1] - x[1, :, 1:2]) + 0.1 * rng.normal(size=(4000, 1))
    fit = fit_ridge(x, y, [1e-6], names=["6", "7"])
    assert len(fit.notes) == 1 and re.match(r"State '7': solved again in float64 .*condition .*e\+0\d", fit.notes[0])
    exact = fit_ridge(x, y, [1e-6], dtype="float64", names=["6", "7"])
    assert not exact.notes
    np.testing.assert_array_equal(fit.loo_mse[1], exact.loo_mse[1])
    np.testing.assert_allclose(predict(fit, x)[1], predict(exact, x)[1], atol=FLOAT64 * y.std())
    np.testing.assert_allclose(fit.loo_mse[1], hat_matrix_leave_one_out(x[1], y, [1e-6]), rtol=FLOAT64)
    gram = np.cov(x[1].T, bias=True) * 4000
    vif = np.diag(gram) * np.diag(np.linalg.inv(gram + 1e-6 * np.eye(20)))
    np.testing.assert_allclose(fit.condition[1], vif.max(), rtol=FLOAT64)
    with pytest.warns(UserWarning, match=r"State '0' has condition .*float64 may reach the third digit"):
        fit_ridge(x[1:, :, :1] * np.ones(2), y, [1e-12], dtype="float64")


def errors_of_the_rest(x, y, alpha, row):
    """[C] leave-one-out squared errors of all rows but one, which is in their fits, by N - 1 solves in float64."""
    total = np.zeros(y.shape[1])
    z = np.concatenate([np.ones((len(x), 1)), x - x.mean(0)], axis=1)
    gram, cross = z.T @ z + np.diag([0.0] + [alpha] * x.shape[1]), z.T @ y
    for i in np.setdiff1d(np.arange(len(x)), [row]):
        weights = np.linalg.solve(gram - np.outer(z[i], z[i]), cross - np.outer(z[i], y[i]))
        total += (y[i] - z[i] @ weights) ** 2
    return total / len(x)


@pytest.mark.slow
@pytest.mark.parametrize("huge", [1e4, 1e5])
@pytest.mark.parametrize("dims", [1, 30])
def test_a_row_far_from_all_others_counts_as_refits_say(huge, dims):
    """The row's leverage is 1 to ten digits: float32 had 2 % of error at 1e4 times the spread, 99 % at 1e5."""
    rng = np.random.default_rng(6)
    x, y = rng.normal(size=(2, 3000, 30)), rng.normal(size=(3000, 2))
    y += x[0, :, :2]
    x[0, 17, :dims] *= huge
    alphas = [1.0, 1e3]
    fit = fit_ridge(x, y, alphas)
    assert len(fit.notes) == 1 and "State '0'" in fit.notes[0] and "least 1 - h of a row" in fit.notes[0]
    rest = np.arange(3000) != 17
    for a, alpha in enumerate(alphas):
        refit = Ridge(alpha, solver="svd").fit(x[0, rest], y[rest])
        own = (y[17] - refit.predict(x[0, 17:18])[0]) ** 2 / 3000
        np.testing.assert_allclose(fit.loo_mse[0, a], own + errors_of_the_rest(x[0], y, alpha, 17), rtol=1e-4)
    np.testing.assert_array_equal(fit.loo_mse[1], fit_ridge(x[1:], y, alphas).loo_mse[0])


def test_bad_input_is_refused_with_every_problem():
    x, y = planted(60, 8)
    with pytest.raises(InputError, match="wanted 60 rows|has shape") as caught:
        fit_ridge(x[:, :50], y)
    assert "'0'" in str(caught.value)
    bad = y.copy()
    bad[7, 1] = np.inf
    with pytest.raises(InputError, match="row 7, column 1") as caught:
        fit_ridge(x, bad, [1.0, 0.0], dtype="float16", criterion="bic", solver="svd")
    assert len(caught.value.problems) == 5
    for states in (x[0], x[:0]):
        with pytest.raises(InputError, match=r"pass x\[None\]"):
            fit_ridge(states, y)
    with pytest.raises(InputError, match="at least 2 rows"):
        fit_ridge(x[:, :1], y[:1])
    x[1, 30, 2] = np.nan
    with pytest.raises(InputError, match="State 1 holds values that are not finite"):
        fit_ridge(x, y)
    fit = fit_ridge(x[:1], y)
    with pytest.raises(InputError, match="2 layers, the fit 1"):
        predict(fit, x)
    with pytest.raises(InputError, match="7 dimensions, the probe 8"):
        predict_layer(fit, 0, x[0, :, :7])
    with pytest.raises(InputError, match="State 'a' has shape \\(60, 8\\); wanted"):
        fit_states({"a": x[0]}, np.arange(1, 61), y)
    with pytest.raises(InputError, match="no states"):
        fit_states({}, np.arange(60), y)
    with pytest.raises(InputError, match="'b' has shape"):
        fit_states({"a": x[0], "b": x[0, :, :5]}, np.arange(60), y)


@pytest.mark.slow
def test_rows_that_are_left_out_do_not_count():
    x, y = planted(4200, 24)
    rows = np.random.default_rng(5).random(4200) < 0.7
    y[~rows], x[:, ~rows] = 1e3 * y[~rows], -x[:, ~rows]
    fit = fit_ridge(x, y, ALPHAS, rows=rows)
    standardised = (y - y[rows].mean(0)) / y[rows].std(0)
    for layer in range(2):
        kept = x[layer, rows].astype(np.float64)
        reference = RidgeCV(ALPHAS, store_cv_results=True).fit(kept, standardised[rows])
        scikit = reference.cv_results_.mean(0).T * y[rows].var(0)
        np.testing.assert_allclose(fit.loo_mse[layer], scikit, rtol=FLOAT32)
        expected = Ridge(fit.alpha[layer]).fit(kept, y[rows]).predict(kept)
        found = predict_layer(fit, layer, x[layer, rows])
        np.testing.assert_allclose(found, expected, atol=FLOAT32 * y[rows].std(0).max())
        np.testing.assert_allclose(fit.x_mean[layer], kept.mean(0), rtol=FLOAT32)
    # Others of as many rows in all take the same program.
    compiled = over_layers(factors.factor, layer_mesh(None), (0, None, None), dtype="float32")
    before = compiled._cache_size()
    fit_ridge(x, y, ALPHAS, rows=~rows)
    assert compiled._cache_size() == before >= 1


def test_few_rows_of_many_are_solved_as_few_rows():
    x, y = planted(4200, 24)
    rows = np.arange(4200) < 30
    few, alone = fit_ridge(x, y, ALPHAS, rows=rows), fit_ridge(x[:, rows], y[rows], ALPHAS)
    for found, expected in zip(few, alone, strict=True):
        np.testing.assert_array_equal(found, expected)
    with pytest.raises(InputError, match="Mark each row of x"):
        fit_ridge(x, y, rows=rows[:-1])


def test_groups_are_cut_by_rows_as_x_and_y_are():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(1, 60, 4)).astype(np.float32), rng.normal(size=(60, 1))
    rows, groups = np.arange(60) % 3 > 0, np.arange(60) % 5
    options = dict(criterion="leave_one_group_out")
    found = fit_ridge(x, y, groups=groups, rows=rows, **options)
    expected = fit_ridge(x[:, rows], y[rows], groups=groups[rows], **options)
    np.testing.assert_array_equal(found.weights, expected.weights)
    np.testing.assert_array_equal(found.alpha, expected.alpha)
    with pytest.raises(InputError, match="groups has 40 labels for 60 rows"):
        fit_ridge(x, y, groups=groups[rows], rows=rows, **options)
