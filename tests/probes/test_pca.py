import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.linear_model import LinearRegression, Ridge

from jaxprobe.errors import InputError
from jaxprobe.probes.pca import fit_components

COUNTS = (1, 2, 5, 11, 23)


def planted(n=300, d=24, seed=0):
    """A dimension 1e3 times the rest, and targets in components of little variance."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, d)) * np.linspace(3, 0.3, d) @ np.linalg.qr(rng.standard_normal((d, d)))[0]
    y = np.stack([x[:, 3] + 0.5 * rng.standard_normal(n), 30 * x[:, 5] + 1900], axis=1)
    x[:, 0] = 1e3 * x[:, 0] + 4000
    return x, y


@pytest.mark.parametrize("rows", [300, 20])
def test_equals_scikit_learn(rows):
    x, y = planted()
    x, y, new = x[:rows], y[:rows], x[200:]
    for alpha in (0.5, 40.0):
        fit = fit_components(x, y, COUNTS, [alpha])
        predicted = fit.predict(new)
        for j, k in enumerate(fit.counts):
            pca = PCA(int(k), svd_solver="full").fit(x)
            expected = Ridge(alpha).fit(pca.transform(x), y).predict(pca.transform(new))
            assert np.abs((predicted[j] - expected) / y.std(0)).max() < 1e-12
            assert fit.variance[j] == pytest.approx(pca.explained_variance_ratio_.sum(), rel=1e-12)
    assert fit.counts.tolist() == ([*COUNTS, 24] if rows == 300 else [1, 2, 5, 11, 19])


def test_without_a_penalty_it_is_least_squares():
    x, y = planted()
    fit = fit_components(x, y, (4,), [0.0])
    expected = LinearRegression().fit(x, y).predict(x)
    assert np.abs((fit.predict(x)[-1] - expected) / y.std(0)).max() < 1e-9


def test_leave_one_out_is_exact_for_every_count_and_penalty():
    """By as many fits as rows, on the components of all rows."""
    x, y = planted(40, 12)
    alphas = [0.1, 10.0, 1000.0]
    scores = PCA(svd_solver="full").fit_transform(x)
    found = {alpha: fit_components(x, y, (1, 3, 7), [alpha]) for alpha in alphas}
    for j, k in enumerate((1, 3, 7, 12)):
        losses = {}
        for alpha in alphas:
            rest = [np.arange(40) != i for i in range(40)]
            errors = [y[~r] - Ridge(alpha).fit(scores[r, :k], y[r]).predict(scores[~r, :k]) for r in rest]
            losses[alpha] = (np.concatenate(errors) ** 2).mean(0)
            np.testing.assert_allclose(found[alpha].loo_mse[j], losses[alpha], rtol=1e-9)
        best = min(losses, key=lambda alpha: (losses[alpha] / y.var(0)).mean())
        chosen = fit_components(x, y, (1, 3, 7), alphas)
        assert chosen.alpha[j] == best
        np.testing.assert_allclose(chosen.loo_mse[j], losses[best], rtol=1e-9)


def test_blocks_of_rows_add_up(monkeypatch):
    x, y = planted()
    whole = fit_components(x, y, COUNTS)
    monkeypatch.setattr("jaxprobe.probes.pca.ROWS", 37)
    for found, expected in zip(fit_components(x, y, COUNTS), whole, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-12)


def test_what_cannot_be_fitted_is_said():
    x, y = planted()
    for wrong, words in ((x[:, 0], "shape"), (np.where(x > 4, np.inf, x), "finite"), (np.ones_like(x), "the same")):
        with pytest.raises(InputError, match=words):
            fit_components(wrong, y)
