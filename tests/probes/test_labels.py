import numpy as np
import pytest
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression, Ridge, RidgeClassifier, RidgeClassifierCV
from sklearn.neighbors import NearestCentroid

from jaxprobe.errors import InputError
from jaxprobe.probes import labels as labels_module
from jaxprobe.probes.labels import (
    CLASSIFIERS,
    check_labels,
    class_scores,
    discriminants,
    fit_classes,
    leave_one_out,
    likeliest_scale,
    logistic_path,
)


def world(n=300, d=20, k=4, seed=0, spread=1.5):
    """States whose class means lie apart, with dimensions of very different size, as states have."""
    rng = np.random.default_rng(seed)
    code = rng.integers(k, size=n)
    x = rng.normal(size=(k, d))[code] * spread + rng.normal(size=(n, d))
    return (x * np.logspace(0, 2, d) + 50).astype(np.float32), code, np.array([f"class {i}" for i in code])


def predicted(fit, x):
    return np.array(fit.classes)[class_scores(fit, 0, x).argmax(1)]


@pytest.mark.parametrize("k", [2, 4])
@pytest.mark.parametrize("n", [300, 15])
def test_ridge_predicts_what_ridge_classifier_does(k, n):
    x, _, names = world(400, k=k)
    train = np.arange(400) < n
    fit = fit_classes({"s": x}, train, names[train], "ridge")
    theirs = RidgeClassifier(alpha=fit.alpha[0]).fit(x[train].astype(np.float64), names[train])
    assert (predicted(fit, x) == theirs.predict(x)).all()


def test_ridge_chooses_the_penalty_of_ridge_classifier_cv():
    x, _, names = world(300, k=3, spread=0.3)
    alphas = np.logspace(-1, 7, 9)
    fit = fit_classes({"s": x}, np.ones(300, bool), names, "ridge", alphas)
    theirs = RidgeClassifierCV(alphas).fit(x.astype(np.float64), names)
    assert np.isclose(fit.alpha[0], theirs.alpha_)


@pytest.mark.parametrize("shape", [(40, 8), (12, 30)])
def test_leave_one_out_equals_refitting_without_each_row(shape):
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=shape), rng.normal(size=(shape[0], 3))
    others = [np.arange(shape[0]) != i for i in range(shape[0])]
    refitted = [Ridge(alpha=2.0).fit(x[rest], y[rest]).predict(x[~rest])[0] for rest in others]
    np.testing.assert_allclose(leave_one_out(x, y, 2.0), refitted, atol=1e-9)


def test_scale_is_the_likeliest():
    rng = np.random.default_rng(2)
    scores = rng.normal(size=(500, 3))
    chances = np.exp(3 * scores) / np.exp(3 * scores).sum(1, keepdims=True)
    code = np.array([rng.choice(3, p=row) for row in chances])
    scale, loss = likeliest_scale(scores, code)
    assert 2.3 < scale < 3.7
    for other in (0.98 * scale, 1.02 * scale):
        assert labels_module._log_loss(other * scores, code) >= loss - 1e-12


def test_discriminants_equal_scikit_learns():
    x, code, _ = world(400, k=3)
    x = x.astype(np.float64)
    theirs = LinearDiscriminantAnalysis(solver="lsqr").fit(x, code)
    counts = np.bincount(code)
    means = np.stack([x[code == k].mean(0) for k in range(3)])
    inside = x - means[code]
    weights, intercept = discriminants(means, inside.T @ inside, counts)
    ours = x @ weights + intercept
    np.testing.assert_allclose(np.exp(labels_module.log_softmax(np.asarray(ours))), theirs.predict_proba(x), atol=1e-6)


def test_means_predict_the_nearest_centroid():
    x, _, names = world(300, k=4)
    fit = fit_classes({"s": x}, np.ones(300, bool), names, "means")
    theirs = NearestCentroid().fit(x.astype(np.float64), names)
    assert (predicted(fit, x) == theirs.predict(x)).mean() > 0.995  # ties aside


def test_means_of_two_classes_give_the_difference_of_means():
    x, code, names = world(300, k=2)
    fit = fit_classes({"s": x}, np.ones(300, bool), names, "means")
    direction = fit.weights[0, :, 1] - fit.weights[0, :, 0]
    difference = x[code == 1].mean(0) - x[code == 0].mean(0)
    cosine = direction @ difference / np.linalg.norm(direction) / np.linalg.norm(difference)
    assert cosine > 1 - 1e-6


@pytest.mark.parametrize("k", [2, 5])
def test_logistic_path_equals_scikit_learns(k):
    rng = np.random.default_rng(3)
    code = rng.integers(k, size=200)
    x = rng.normal(size=(k, 6))[code] + rng.normal(size=(200, 6))
    path = list(logistic_path(x, code, k, [30.0, 1.0, 0.01]))
    for alpha, (weights, intercept) in zip([30.0, 1.0, 0.01], path, strict=True):
        theirs = LogisticRegression(C=1 / alpha, tol=1e-10, max_iter=10_000).fit(x, code)
        ours = np.exp(labels_module.log_softmax(x @ weights + intercept))
        # With two classes scikit-learn penalises one vector where we penalise two of half the size: alpha / 2 of ours.
        if k == 2:
            theirs = LogisticRegression(C=2 / alpha, tol=1e-10, max_iter=10_000).fit(x, code)
        np.testing.assert_allclose(ours, theirs.predict_proba(x), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("classifier", CLASSIFIERS)
def test_every_classifier_reads_what_is_there_and_nothing_from_noise(classifier):
    x, _, names = world(600, k=3, spread=1.0)
    train = np.arange(600) < 400
    fit = fit_classes({"s": x}, train, names[train], classifier)
    assert (predicted(fit, x[~train]) == names[~train]).mean() > 0.75  # chance is a third
    noise = np.random.default_rng(4).permutation(names)
    fit = fit_classes({"s": x}, train, noise[train], classifier)
    log_loss = -class_scores(fit, 0, x[~train])[np.arange(200), np.searchsorted(fit.classes, noise[~train])].mean()
    assert log_loss < np.log(3) + 0.1  # a probe that knows nothing is not sure of itself


@pytest.mark.slow
@pytest.mark.parametrize("classifier", CLASSIFIERS)
def test_many_and_rare_classes(classifier):
    x, _, names = world(900, d=12, k=60)
    fit = fit_classes({"s": x}, np.ones(900, bool), names, classifier)
    assert fit.weights.shape == (1, 12, 60) and np.isfinite(fit.weights).all() and np.isfinite(fit.loss).all()
    rare = np.where(np.arange(900) % 100 == 0, "yes", "no")
    fit = fit_classes({"s": x}, np.ones(900, bool), rare, classifier)
    assert np.isfinite(class_scores(fit, 0, x)).all()
    assert (predicted(fit, x) == "no").mean() > 0.5


@pytest.mark.parametrize(
    ("given", "words"),
    [(["a"] * 4, "Two labels are needed"), (["a", "a", "a", "b"], r"one training row only \(b\)")],
)
def test_labels_that_cannot_be_fitted(given, words):
    with pytest.raises(InputError, match=words):
        check_labels(given)


def test_states_that_cannot_be_fitted():
    x, _, names = world(30, k=2)
    rows = np.ones(30, bool)
    with pytest.raises(InputError, match="not one of ridge"):
        fit_classes({"s": x}, rows, names, "svm")
    with pytest.raises(InputError, match="no states"):
        fit_classes({}, rows, names)
    with pytest.raises(InputError, match="30 training rows for 29 labels"):
        fit_classes({"s": x}, rows, names[:29])
    with pytest.raises(InputError, match="not finite"):
        fit_classes({"s": np.where(x > x.mean(), np.nan, x)}, rows, names)
