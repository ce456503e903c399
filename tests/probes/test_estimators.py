import numpy as np
import pytest
from sklearn.base import clone
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from jaxprobe.probes.estimators import ClassProbe, MlpProbe, RidgeProbe

# The checks' tables have tens of rows: smaller batches, or early stopping ends after a few steps.
SMALL = dict(hidden=16, batch_size=16, weight_decays=(0.01,))


@pytest.mark.slow
@parametrize_with_checks([RidgeProbe(), MlpProbe(**SMALL), ClassProbe(), ClassProbe("logistic")])
def test_scikit_learns_own_checks(estimator, check):
    check(estimator)


def table(n=400, d=10, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d))
    return x, x[:, :2] @ rng.normal(size=(2, 2)) + rng.normal(size=(n, 2))


@pytest.mark.slow
def test_ridge_probe_equals_ridgecv_in_pipeline_and_cross_validation():
    x, y = table()
    alphas = np.logspace(-1, 4, 11)
    ours, theirs = RidgeProbe(alphas, dtype="float64"), RidgeCV(alphas)
    y = (y - y.mean(0)) / y.std(0)  # RidgeCV chooses by the mean over targets, we by the mean of MSE / var
    ours.fit(x, y), theirs.fit(x, y)
    np.testing.assert_allclose(ours.coef_, theirs.coef_, rtol=1e-9)
    np.testing.assert_allclose(ours.intercept_, theirs.intercept_, rtol=1e-9, atol=1e-12)
    assert ours.alpha_ == theirs.alpha_ and ours.score(x, y) == pytest.approx(theirs.score(x, y), rel=1e-9)
    scores = [cross_val_score(make_pipeline(StandardScaler(), clone(e)), x, y[:, 0], cv=3) for e in (ours, theirs)]
    np.testing.assert_allclose(*scores, rtol=1e-9)
    one = RidgeProbe(alphas, dtype="float64").fit(x, y[:, 0])
    assert one.predict(x).shape == (400,) and one.coef_.shape == (10,) and np.ndim(one.intercept_) == 0
    grouped = RidgeProbe(alphas, criterion="leave_one_group_out").fit(x, y, groups=np.arange(400) % 7)
    assert grouped.alpha_ in alphas


@pytest.mark.slow
def test_mlp_probe_in_a_grid_search():
    x, y = table(200)
    search = GridSearchCV(MlpProbe(**SMALL, max_epochs=30), {"learning_rate": [1e-5, 1e-2]}, cv=2).fit(
        x, np.abs(y[:, 0])
    )
    assert search.best_params_ == {"learning_rate": 1e-2}
