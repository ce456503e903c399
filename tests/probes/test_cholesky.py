"""The accelerators' solver, forced on a CPU, against float64 on states that are hard for float32."""

import jax
import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from jaxprobe.probes import solve
from jaxprobe.probes.devices import layer_mesh
from jaxprobe.probes.ridge import fit_ridge, predict_layer
from jaxprobe.probes.root import BLOCK, factor, inverse_root, solve_lower, solve_upper
from tests.probes.hard_states import RELATIVE, Truth, make_states

# What the project promises of the accelerators: the criterion over the grid, at the chosen penalty, fitted values.
GRID, CHOSEN, FITTED = 1e-3, 1e-5, 1e-4
D = 128
KINDS = [
    *("plain", "massive", "massive bfloat16", "half rank", "duplicated", "few rows", "one row", "constant"),
    "massive few rows duplicated",
]


@pytest.fixture(autouse=True)
def one_thread():
    """More threads than cores take the truth's time."""
    with threadpool_limits(1, user_api="blas"):
        yield


def assert_promises(fit, layer, expected, fitted, alphas, y, x):
    """``expected`` [A, C] the criterion, ``fitted`` a function of the penalty."""
    relative = abs(fit.loo_mse[layer] / expected - 1).max(axis=1)
    by_penalty = (expected / y.var(0)).mean(1)
    best, chosen = by_penalty.argmin(), int(np.flatnonzero(alphas == fit.alpha[layer])[0])
    assert relative.max() <= GRID
    assert relative[best] <= CHOSEN
    assert by_penalty[chosen] <= by_penalty[best] * (1 + 1e-4)
    truth = fitted(alphas[chosen])
    difference = np.linalg.norm(predict_layer(fit, layer, x) - truth) / np.linalg.norm(truth - y.mean(0))
    assert difference <= FITTED


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.5, 1.2, 2.0])
def test_leave_one_out_is_float64s(share):
    """All kinds at once, a layer each: float32 by its own, whitened, or in float64 where it says so."""
    states = [make_states(kind, int(share * D), D, seed) for seed, kind in enumerate(KINDS)]
    for (x, y), kind in zip(states, KINDS, strict=True):
        truth = Truth(x, y)
        alphas = RELATIVE * truth.scale
        found = [truth.leave_one_out(alpha) for alpha in alphas]
        expected = np.array([losses for _, losses, _ in found])
        fit = fit_ridge(x[None], y, alphas, solver="cholesky", names=[kind])
        assert_promises(fit, 0, expected, lambda alpha, truth=truth: truth.leave_one_out(alpha)[2], alphas, y, x)
        if share > 1 and "one row" not in kind:
            assert not fit.notes  # it was float32's own
        if "one row" in kind and share > 1:
            assert "in float64 on the host" in fit.notes[0] and kind in fit.notes[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    "criterion, share", [("k_fold", 0.5), ("k_fold", 1.2), ("leave_one_group_out", 1.2), ("generalised", 1.2)]
)
def test_other_criteria_are_float64s(criterion, share):
    n = int(share * D)
    for kind in ("plain", "massive", "one row"):
        x, y = make_states(kind, n, D)
        truth = Truth(x, y)
        alphas = RELATIVE[::3] * truth.scale
        labels = np.random.default_rng(1).integers(5 if criterion == "k_fold" else 40, size=n)
        if criterion == "generalised":
            expected, groups = np.array([truth.generalised(alpha) for alpha in alphas]), None
        else:
            expected, groups = np.array([truth.without(labels, alpha) for alpha in alphas]), labels
        fit = fit_ridge(x[None], y, alphas, solver="cholesky", criterion=criterion, groups=groups)
        assert_promises(fit, 0, expected, lambda alpha, truth=truth: truth.leave_one_out(alpha)[2], alphas, y, x)


@pytest.mark.slow
@pytest.mark.parametrize("n, d", [(3, 1), (3, 6), (9, 4), (5, 41)])
def test_small_tables(n, d):
    rng = np.random.default_rng(n + d)
    x, y = rng.normal(size=(1, n, d)) + 5, rng.normal(size=(n, 1))
    alphas = [1e-3, 0.1, 10.0]
    fit = fit_ridge(x, y, alphas, solver="cholesky")
    exact = fit_ridge(x, y, alphas, dtype="float64", solver="eigh")
    np.testing.assert_allclose(fit.loo_mse, exact.loo_mse, rtol=GRID)
    np.testing.assert_allclose(predict_layer(fit, 0, x[0]), predict_layer(exact, 0, x[0]), atol=FITTED)


@pytest.mark.slow
def test_a_penalty_for_each_target_and_a_grid_of_its_own():
    x, y = make_states("massive", 200, D)
    y = np.concatenate([y, np.random.default_rng(2).normal(size=(200, 1))], axis=1)  # noise wants the largest
    fit = fit_ridge(x[None], y, alpha_per_target=True, solver="cholesky")
    exact = fit_ridge(x[None], y, alpha_per_target=True, dtype="float64")
    np.testing.assert_allclose(fit.alpha, exact.alpha, rtol=1e-5)
    assert fit.alpha[0, 2] > 100 * fit.alpha[0, 0]
    np.testing.assert_allclose(predict_layer(fit, 0, x), predict_layer(exact, 0, x), atol=FITTED * y.std(0).max())


@pytest.mark.slow
@pytest.mark.parametrize("d", [7, 200, BLOCK + 40, 1100])
def test_the_root_of_block_columns_is_one(d):
    rng = np.random.default_rng(d)
    rows = rng.normal(size=(2 * d, d)) * 10 ** rng.uniform(-3, 3, size=d)
    gram = (rows.T @ rows).astype(np.float32)
    for blocked in (False, True):
        root = np.asarray(jax.jit(inverse_root, static_argnames="blocked")(gram, blocked=blocked), np.float64)
        np.testing.assert_array_equal(np.tril(root, -1), 0)
        assert np.linalg.norm(root.T @ gram @ root - np.eye(d)) < 1e-5 * d
    batched = jax.jit(jax.vmap(lambda matrix: inverse_root(matrix, blocked=True)))(np.stack([gram, 4 * gram]))
    np.testing.assert_allclose(batched[1], root / 2, rtol=1e-3, atol=1e-4 * abs(root).max())
    assert np.isnan(np.asarray(inverse_root(-np.eye(5, dtype=np.float32), blocked=True))).any()


@pytest.mark.slow
@pytest.mark.parametrize("d", [7, BLOCK + 40, 900])
@pytest.mark.parametrize("blocked", [False, True])
def test_a_factor_solves_and_goes_through_rows(d, blocked):
    """Against NumPy's float64, with dimensions of very different size; what is above the diagonal is never read."""
    rng = np.random.default_rng(d)
    rows = rng.normal(size=(2 * d, d)) * 10 ** rng.uniform(-3, 3, size=d)
    gram, below, b = (part.astype(np.float32) for part in (rows.T @ rows, rows[:300], rng.normal(size=(d, 3))))
    lower = np.linalg.cholesky(gram.astype(np.float64))

    @jax.jit
    def every(gram, below, b):
        found, through = factor(gram, below, blocked=blocked)
        return through, solve_lower(found, b), solve_upper(found, b)

    expected = np.linalg.solve(lower, below.T).T, np.linalg.solve(lower, b), np.linalg.solve(lower.T, b)
    for found, exact in zip(every(gram, below, b), expected, strict=True):
        np.testing.assert_allclose(found, exact, rtol=0, atol=1e-6 * d * abs(exact).max())


@pytest.mark.parametrize("rows", [64, 256])
def test_the_programs_hold_no_float64_and_no_large_eigendecomposition(rows):
    with jax.enable_x64(False):
        programs = solve.row_programs(layer_mesh(None), 2, rows, D, 2, "bfloat16", 12)
        assert set(programs) >= {"survey", "normal equations", "leave-one-out", "weights"}
        for name, (compiled, *arguments) in programs.items():
            text = compiled.lower(*arguments).as_text().lower()
            assert "f32" in text and "f64" not in text and "eigh" not in text and "syevd" not in text, name


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.5, 1.2])
def test_as_tpus_factor_it_is_float64s(share, monkeypatch):
    """By block columns, of states wider than a block."""
    monkeypatch.setattr(solve, "on_tpu", lambda mesh: True)
    d = BLOCK + 40
    x, y = make_states("massive", int(share * d), d)
    truth = Truth(x, y)
    alphas = RELATIVE * truth.scale
    expected = np.array([truth.leave_one_out(alpha)[1] for alpha in alphas])
    fit = fit_ridge(x[None], y, alphas, solver="cholesky")
    assert_promises(fit, 0, expected, lambda alpha: truth.leave_one_out(alpha)[2], alphas, y, x)
