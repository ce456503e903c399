"""scikit-learn estimators over the probes of one layer: fit, predict, score, clone, pipelines, cross_val_score."""

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin, MultiOutputMixin, RegressorMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from jaxprobe.probes.labels import fit_state, log_softmax
from jaxprobe.probes.mlp import fit_mlp, predict_mlp
from jaxprobe.probes.ridge import fit_ridge, predict_layer


class _Probe(MultiOutputMixin, RegressorMixin, BaseEstimator):
    """What both probes share: checked input, and a target [N] that comes back as [N]."""

    def _check(self, X, y):
        X, y = validate_data(self, X, y, multi_output=True, y_numeric=True, dtype="numeric", ensure_min_samples=2)
        self._one_target = y.ndim == 1
        return _floating(X), y.reshape(len(y), -1)

    def _check_predict(self, X):
        check_is_fitted(self)
        return _floating(validate_data(self, X, dtype="numeric", reset=False))

    def _shaped(self, predictions):
        return predictions[:, 0] if self._one_target else predictions


def _floating(X: np.ndarray) -> np.ndarray:
    return X if X.dtype.kind == "f" else X.astype(np.float64)


class RidgeProbe(_Probe):
    """Ridge probe of one layer; the penalty is found by exact leave-one-out. Parameters are those of ``fit_ridge``.

    Attributes:
      coef_: [C, D], or [D] for a single target given as [N]; intercept_: [C] or a number.
      alpha_: the chosen penalty, or [C] with ``alpha_per_target``.
      fit_: the RidgeFit of one layer.
    """

    def __init__(self, alphas=None, *, alpha_per_target=False, criterion="leave_one_out", dtype="float32", solver=None):
        self.alphas = alphas
        self.alpha_per_target = alpha_per_target
        self.criterion = criterion
        self.dtype = dtype
        self.solver = solver

    def fit(self, X, y, groups=None):
        """Fits X [N, D] to y [N] or [N, C]; ``groups`` [N] for the criteria that want them."""
        X, y = self._check(X, y)
        options = dict(alpha_per_target=self.alpha_per_target, criterion=self.criterion, groups=groups)
        self.fit_ = fit_ridge(X[None], y, self.alphas, **options, dtype=self.dtype, solver=self.solver)
        self.coef_ = self._shaped(self.fit_.weights[0]).T
        self.intercept_ = self._shaped(self.fit_.intercept)[0]
        self.alpha_ = self.fit_.alpha[0]
        return self

    def predict(self, X):
        """Predictions [N] or [N, C] in target units."""
        X = self._check_predict(X)
        return self._shaped(predict_layer(self.fit_, 0, X)).astype(np.float64)


class MlpProbe(_Probe):
    """One-hidden-layer probe of one layer. Parameters are those of ``fit_mlp``; ``fit_`` is its MlpFit."""

    def __init__(
        self,
        *,
        hidden=256,
        weight_decays=(0.01, 0.03, 0.1, 0.3),
        learning_rate=1e-3,
        batch_size=256,
        max_epochs=100,
        patience=5,
        validation_share=0.1,
        seed=0,
    ):
        self.hidden = hidden
        self.weight_decays = weight_decays
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.max_epochs = max_epochs
        self.patience = patience
        self.validation_share = validation_share
        self.seed = seed

    def fit(self, X, y):
        """Fits X [N, D] to y [N] or [N, C]."""
        X, y = self._check(X, y)
        self.fit_ = fit_mlp(X[None], y, **self.get_params())
        return self

    def predict(self, X):
        """Predictions [N] or [N, C] in target units."""
        X = self._check_predict(X)
        return self._shaped(predict_mlp(self.fit_, X[None])[0])


class ClassProbe(ClassifierMixin, BaseEstimator):
    """Class probe of one layer. Parameters are those of ``probes.labels.fit_classes``.

    Attributes:
      classes_: K labels; coef_: [K, D]; intercept_: [K], of scores whose softmax is the probability.
      alpha_: the chosen penalty.
    """

    def __init__(self, classifier="ridge", *, alphas=None, seed=0):
        self.classifier = classifier
        self.alphas = alphas
        self.seed = seed

    def fit(self, X, y):
        """Fits X [N, D] to labels y [N]."""
        X, y = validate_data(self, X, y, dtype="numeric", ensure_min_samples=2)
        check_classification_targets(y)
        self.classes_, code = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"All rows are of one class, {self.classes_[0]!r}; two are needed.")
        weights, self.intercept_, self.alpha_, _ = fit_state(X, code, self.classifier, self.alphas, seed=self.seed)
        self.coef_ = weights.T
        return self

    def decision_function(self, X):
        """Scores [N, K]; of two classes [N], the second's less the first's."""
        scores = self._scores(X)
        return scores[:, 1] - scores[:, 0] if len(self.classes_) == 2 else scores

    def predict_log_proba(self, X):
        """Log-probabilities [N, K]."""
        return log_softmax(self._scores(X))

    def predict_proba(self, X):
        """Probabilities [N, K]."""
        return np.exp(self.predict_log_proba(X))

    def predict(self, X):
        """The likeliest label of each row, [N]."""
        best = self._scores(X).argmax(axis=1)
        return self.classes_[best]

    def _scores(self, X):
        check_is_fitted(self)
        X = validate_data(self, X, dtype="numeric", reset=False)
        return X @ self.coef_.T + self.intercept_
