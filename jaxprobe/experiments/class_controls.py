"""What else would explain the accuracy of a class probe? The controls of controls.py, for labels."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pandas as pd

from jaxprobe.data.table import EntityTable
from jaxprobe.experiments.baselines import (
    PERMUTATIONS,
    groups_that_say_something,
    predict_from_ngrams,
    predict_group_means,
)
from jaxprobe.experiments.tables import require_states, tidy_scores
from jaxprobe.probes.class_metrics import accuracy_difference, score_classes
from jaxprobe.probes.labels import ClassFit, class_scores, fit_state
from jaxprobe.probes.metrics import Interval

METRICS = ("accuracy", "balanced_accuracy")
NOTHING = np.full(1, np.nan)


def control_classes(
    activations: Mapping[str, np.ndarray],
    table: EntityTable,
    state: str,
    *,
    classifier: str = "ridge",
    random_weights: Mapping[str, np.ndarray] | None = None,
    model: str = "",
    prompt: str = "",
    seed: int = 0,
) -> pd.DataFrame:
    """The class probe of one state beside its controls, on the test rows.

    Args and columns are those of `controls.measure`, with the metrics accuracy, balanced_accuracy and, against each
    control, ``selectivity``: accuracy less the control's, paired. The controls are:
        none               the probe itself
        chance             one class named at random
        majority           the class that most training rows have
        embed              the probe of the token's embedding
        ngrams             ridge on the name's characters
        group_mean_GROUP   the class that most training rows of the same group have
        random_weights     the probe of the same state with random weights
        permuted           labels permuted over the training rows, at the probe's own penalty: accuracy, selectivity and
                           ``p_value``, the share of permutations that reach the probe's accuracy
    """
    wanted = [state] if state == "embed" or "embed" not in activations else [state, "embed"]
    require_states(activations, table, wanted)
    train, code = ~table.is_test, table.targets.argmax(axis=1)
    probes = {"none": (state, activations), "embed": ("embed", activations), "random_weights": (state, random_weights)}
    scored: dict[str, tuple[str, np.ndarray, float]] = {}
    for control, (name, states) in probes.items():
        if states is not None and name in states and (control != "embed" or "embed" in wanted[1:]):
            scored[control] = name, *_probe(states[name], table, classifier, None, seed, name)
    shares = table.targets[train].mean(axis=0)
    scored["majority"] = "", np.broadcast_to(np.log(shares), (int(table.is_test.sum()), len(shares))), np.nan
    lexical = predict_from_ngrams(table.texts, table.targets, table.is_test, seed)
    scored["ngrams"] = "", lexical.predictions, lexical.alpha
    for group, labels in groups_that_say_something(table):
        scored[f"group_mean_{group}"] = "", predict_group_means(labels, table.targets, table.is_test), np.nan
    tested = code[table.is_test]
    frames = [*_against(table, tested, scored, seed), _chance(table, tested, scored["none"][1])]
    for group, labels in groups_that_say_something(table):
        found = score_classes(
            tested, scored["none"][1][None], groups=labels[table.is_test], seed=seed, metrics=METRICS[:1]
        )
        frames.append(tidy_scores(table, found, [state], scored["none"][2], control="none", resampled=group))
    frames.append(_permuted(activations[state], table, code, classifier, scored["none"], seed))
    names = {"model": model, "dataset": table.name, "prompt": prompt}
    frame = pd.concat(frames, ignore_index=True).assign(**names)
    return frame[[*names, *(column for column in frame if column not in names)]]


def _probe(
    x: np.ndarray, table: EntityTable, classifier: str, alphas: Sequence[float] | None, seed: int, name: str
) -> tuple[np.ndarray, float]:
    """(log-probabilities [N_test, K], penalty) of a state's own probe."""
    train, code = ~table.is_test, table.targets.argmax(axis=1)
    weights, intercept, alpha, _ = fit_state(x[train], code[train], classifier, alphas, seed=seed, name=name)
    fit = ClassFit(table.target_names, weights[None], intercept[None], np.empty(0), np.empty(0))
    return class_scores(fit, 0, x[table.is_test]), alpha


def _against(
    table: EntityTable, code: np.ndarray, scored: Mapping[str, tuple[str, np.ndarray, float]], seed: int
) -> Iterator[pd.DataFrame]:
    """Scores of each control's scores of the classes, and the probe's accuracy less it."""
    real = scored["none"][1]
    for control, (state, scores, alpha) in scored.items():
        found = score_classes(code, scores[None], seed=seed, metrics=METRICS)
        if control != "none":
            found["selectivity"] = accuracy_difference(code, real[None], scores[None], seed=seed)
        yield tidy_scores(table, found, [state], alpha, control=control, resampled="rows")


def _chance(table: EntityTable, code: np.ndarray, real: np.ndarray) -> pd.DataFrame:
    share, accuracy = np.full(1, 1 / real.shape[1]), np.mean(real.argmax(axis=1) == code)
    values = {"accuracy": share, "balanced_accuracy": share, "selectivity": accuracy - share}
    found = {metric: Interval(value, NOTHING, NOTHING) for metric, value in values.items()}
    return tidy_scores(table, found, [""], control="chance", resampled="rows")


def _permuted(
    x: np.ndarray,
    table: EntityTable,
    code: np.ndarray,
    classifier: str,
    real: tuple[str, np.ndarray, float],
    seed: int,
) -> pd.DataFrame:
    """The accuracy of probes whose labels mean nothing."""
    state, log_p, alpha = real
    rng, test = np.random.default_rng(seed), table.is_test
    accuracy, alphas = np.mean(log_p.argmax(axis=1) == code[test]), None if np.isnan(alpha) else [alpha]
    values = np.empty(PERMUTATIONS)
    for i in range(PERMUTATIONS):
        targets = table.targets.copy()
        targets[~test] = rng.permutation(table.targets[~test])
        permuted = EntityTable("", table.texts, targets, table.target_names, table.units, test, label=table.label)
        values[i] = np.mean(_probe(x, permuted, classifier, alphas, seed, state)[0].argmax(axis=1) == code[test])
    p = np.full(1, (1 + np.sum(values >= accuracy)) / (1 + PERMUTATIONS))
    found = {name: _spread(value) for name, value in (("accuracy", values), ("selectivity", accuracy - values))}
    return tidy_scores(
        table, found | {"p_value": Interval(p, NOTHING, NOTHING)}, [state], control="permuted", resampled="permutations"
    )


def _spread(values: np.ndarray) -> Interval:
    return Interval(*(np.reshape(value, 1) for value in (values.mean(), *np.quantile(values, [0.025, 0.975]))))
