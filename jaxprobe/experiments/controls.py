"""What else would explain the score? Spelling, groups, the last token, permuted targets, random weights.

Each control is one thing that a bare R2 does not rule out.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from jaxprobe.data.table import EntityTable
from jaxprobe.experiments.base import by_run, dots, each_run, one_number
from jaxprobe.experiments.baselines import (
    PERMUTATIONS,
    centre_groups,
    exchange_groups,
    groups_that_say_something,
    predict_from_ngrams,
    predict_group_means,
    shares_its_group,
)
from jaxprobe.experiments.class_controls import control_classes
from jaxprobe.experiments.probe import fit_probe, fitted_targets, in_target_units
from jaxprobe.experiments.tables import require_states, score_metrics, tidy_scores
from jaxprobe.extract.extraction import extract_states
from jaxprobe.host.paths import AnyPath
from jaxprobe.host.progress import Progress
from jaxprobe.html import main_metric
from jaxprobe.models.load import DTYPES, LanguageModel, fit_mesh
from jaxprobe.models.placement import place
from jaxprobe.models.transformer import random_weights
from jaxprobe.probes.metrics import Interval, paired_difference, r2, score
from jaxprobe.probes.ridge import fit_ridge, predict_layer
from jaxprobe.results.results import Run


@dataclass(frozen=True)
class Options:
    """What is looked at, and beside what."""

    state: str | None = None
    """The state to look at; default: each run's headline layer."""
    random_weights: bool = False
    """Run the same architecture with random weights as well."""


def run(runs: Sequence[AnyPath], options: Options, reporter: Progress) -> pd.DataFrame:
    """`measure` for each run; with random weights the architecture is run once more.

    Raises:
      InputError: a run without states; with random weights, a model that is not there or has other weights than the run
        was made from; and as `measure`.
    """
    frames = []
    for each in list(each_run(runs, "open", reporter)):  # reading states with random weights shows its own tasks
        state = options.state or each.headline_layer
        random = random_states(each, state, reporter) if options.random_weights else None
        at = each.activations, each.table, state
        frames.append(
            measure(
                *at,
                random_weights=random,
                classifier=each.settings.classifier,
                model=each.model,
                prompt=each.prompt,
                seed=each.settings.seed,
            ).assign(run=str(each.path))
        )
    return pd.concat(frames, ignore_index=True)


def random_states(run: Run, state: str, reporter: Progress | None = None) -> Mapping[str, np.ndarray]:
    """The state of every entity of a run by its model's architecture with random weights, seeded, in memory."""
    settings = run.settings
    files = run.open_model(state)
    mesh, _ = place(files.config, None, settings.dtype)  # this machine's, not the run's
    files = fit_mesh(files, mesh, settings.replicate_kv)
    weights = random_weights(files.config, mesh, DTYPES[settings.dtype], settings.seed)
    model = LanguageModel(files, weights, mesh, settings.dtype)
    sites = ("embed", state)
    options = {"seed": settings.seed, "position": settings.position, "progress": reporter}
    return extract_states(model, run.table, run.full_prompt, sites=sites, **options)


def figures(frame: pd.DataFrame) -> list:
    """For each run: R2 (of labels the accuracy) of the probe beside that of each control."""
    from jaxprobe.report.control_section import describe_control

    frame = one_number(frame, main_metric(frame))
    names = [describe_control(*pair)[0] for pair in zip(frame["control"], frame["resampled"], strict=True)]
    kind = frame["control"].eq("none").map({True: "probe", False: "control"})
    frame = frame.assign(section="", row=names, kind=kind).sort_values("kind", ascending=False, kind="stable")
    kinds = {"probe": "the probe", "control": "a control"}
    return [dots("The probe beside its controls", called, part, kinds) for called, part in by_run(frame)]


def measure(
    activations: Mapping[str, np.ndarray],
    table: EntityTable,
    state: str,
    *,
    random_weights: Mapping[str, np.ndarray] | None = None,
    classifier: str = "ridge",
    model: str = "",
    prompt: str = "",
    seed: int = 0,
) -> pd.DataFrame:
    """The probe of one state beside its controls, on the test rows.

    Args:
      activations: state -> [N, D], in the table's row order; ``embed`` is used where it is there.
      state: the state whose probe is looked at.
      random_weights: the same states of the same architecture with random weights, where they were extracted.
      classifier: of a table of labels, whose controls are those of `control_classes`.

    Returns:
      A tidy table (columns of a run's scores) with two more columns. ``control``:
        none               the probe itself
        embed              the probe of the token's embedding: what the token alone tells
        ngrams             ridge on the name's characters: what the spelling tells, without a model
        group_mean_GROUP   the mean of the training rows of the same group: what the group alone tells
        random_weights     the probe of the same state with random weights: what the architecture keeps of the tokens
        permuted           targets permuted over all rows
        permuted_GROUP     groups exchange their mean targets, and rows their deviations inside the group
        within_GROUP       the probe itself, predictions and targets both less their mean over the group's test rows
      ``resampled``, what the 95 % interval is over: "rows" (a bootstrap over test rows, probe fixed), a group column
      (the same over whole groups, where they are enough), or "permutations" (the middle 95 % of them).
      Metrics are r2, error_km_median for places, ``selectivity`` (R2 of the probe less that of the control, paired),
      and for permuted targets ``p_value`` (share of permutations read as well as the true targets, these counted in;
      NaN without a score, and for groups that are too few to be exchanged in as many ways: 4 or fewer).

    Raises:
      InputError: a state that is not there, or rows that don't match.
    """
    if table.label:
        return control_classes(
            activations,
            table,
            state,
            classifier=classifier,
            random_weights=random_weights,
            model=model,
            prompt=prompt,
            seed=seed,
        )
    wanted = [state] if state == "embed" or "embed" not in activations else [state, "embed"]
    require_states(activations, table, wanted)
    if random_weights is not None:
        require_states(random_weights, table, [state])
    predictions, alphas = _predict(activations, table, wanted)
    fixed = {"none": (state, predictions[state], alphas[state])}
    if "embed" in wanted[1:]:
        fixed["embed"] = "embed", predictions["embed"], alphas["embed"]
    if random_weights is not None:
        predicted, alpha = _predict(random_weights, table, [state])
        fixed["random_weights"] = state, predicted[state], alpha[state]
    # Fitted on what the probe is fitted on: the means of degrees and of points on the sphere are other places.
    fitted = fitted_targets(table)
    lexical = predict_from_ngrams(table.texts, fitted, table.is_test, seed)
    fixed["ngrams"] = "", in_target_units(table, lexical.predictions), lexical.alpha
    for group, labels in groups_that_say_something(table):
        means = predict_group_means(labels, fitted, table.is_test)
        fixed[f"group_mean_{group}"] = "", in_target_units(table, means), np.nan
    frames = [
        *_against(table, fixed, seed),
        *_by_group(table, state, predictions[state], alphas[state], seed),
        *permutation_test(activations[state], table, state, seed),
    ]
    names = {"model": model, "dataset": table.name, "prompt": prompt}
    frame = pd.concat(frames, ignore_index=True).assign(**names)
    return frame[[*names, *(column for column in frame if column not in names)]]


def _predict(activations, table: EntityTable, states) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """Test predictions [N_test, C] and the penalty of each state's own probe."""
    predictions, alphas = {}, {}
    for state in states:
        x = activations[state]
        probe = fit_probe(x, table, ~table.is_test, state)
        predictions[state], alphas[state] = probe.predict(x[table.is_test]), probe.alpha
    return predictions, alphas


def _against(table: EntityTable, fixed: Mapping[str, tuple[str, np.ndarray, float]], seed: int) -> Iterator:
    """Scores of predictions of the true targets, and of the probe less each of them."""
    truth, real = table.targets[table.is_test], fixed["none"][1][None]
    for control, (state, predicted, alpha) in fixed.items():
        options = dict(places=table.is_place, seed=seed)
        found = score(truth, predicted[None], metrics=score_metrics(table), **options)
        if control != "none":
            found["selectivity"] = paired_difference(truth, real, predicted[None], metrics=("r2",), **options)["r2"]
        yield tidy_scores(table, found, [state], alpha, control=control, resampled="rows")


def _by_group(table: EntityTable, state: str, predicted: np.ndarray, alpha: float, seed: int) -> Iterator:
    """The probe's own score with whole groups resampled, and inside the groups."""
    truth, predicted = table.targets[table.is_test], predicted[None]
    for group, labels in groups_that_say_something(table):
        labels = labels[table.is_test]
        found = {"none": score(truth, predicted, groups=labels, seed=seed, metrics=("r2",))}
        # Group means are those of all test rows of the group, which a resample of whole groups leaves as they are. A
        # row that is alone in its group is 0 inside of it: it changes no score, and must not count as one group more.
        rows = shares_its_group(labels)
        inside = (centre_groups(x, labels)[..., rows, :] for x in (truth, predicted))
        found[f"within_{group}"] = score(*inside, groups=labels[rows], seed=seed, metrics=("r2",))
        for control, scores in found.items():
            yield tidy_scores(table, scores, [state], alpha, control=control, resampled=group)


def permutation_test(x: np.ndarray, table: EntityTable, state: str, seed: int) -> Iterator:
    """R2 of x [N, D] on targets that mean nothing; all of them are fitted at once, from one factorisation."""
    rng = np.random.default_rng(seed)
    makers, few = {"permuted": lambda: rng.permutation(table.targets)}, set()
    for group, labels in groups_that_say_something(table):
        if math.factorial(len(np.unique(labels)) - 1) < PERMUTATIONS:  # the rings of exchange_groups
            few.add(f"permuted_{group}")
        makers[f"permuted_{group}"] = lambda labels=labels: exchange_groups(table.targets, labels, rng)
    made = [replace(table, targets=make()) for make in makers.values() for _ in range(PERMUTATIONS)]
    found = _r2_of_each(x, [table, *made], state)
    real, rest = found[0], found[1:].reshape(len(makers), PERMUTATIONS, -1)
    for control, values in zip(makers, rest, strict=True):
        share = (1 + np.sum(values >= real[None], axis=0)) / (1 + PERMUTATIONS)
        nothing = np.full_like(share, np.nan)
        scored = np.isfinite(real) & np.isfinite(values).all(axis=0)
        share = np.where(scored & (control not in few), share, np.nan)
        intervals = {
            "r2": _over_permutations(values),
            "selectivity": _over_permutations(real[None] - values),
            "p_value": Interval(share, nothing, nothing),
        }
        yield tidy_scores(table, intervals, [state], control=control, resampled="permutations")


def _r2_of_each(x: np.ndarray, tables: Sequence[EntityTable], state: str) -> np.ndarray:
    """[tables, C + 1] test R2 of x [N, D] on tables that differ in their targets; the mean over these last."""
    test = tables[0].is_test
    fitted = np.stack([fitted_targets(table) for table in tables], axis=1)  # [N, tables, fitted targets]
    y = fitted.reshape(len(fitted), -1)
    # Each column chooses its own penalty, the true targets' as well, so that all of them are treated alike.
    fit = fit_ridge(x[None, ~test], y[~test], alpha_per_target=True, names=[state])
    predicted = in_target_units(tables[0], predict_layer(fit, 0, x[test]).reshape(-1, *fitted.shape[1:]))
    # Back from what was fitted: a latitude past the pole, as an exchange of groups makes it, has another name then.
    truth = in_target_units(tables[0], fitted[test])
    found = r2(*(values.reshape(len(values), -1) for values in (truth, predicted))).reshape(len(tables), -1)
    return np.concatenate([found, found.mean(1, keepdims=True)], axis=1)


def _over_permutations(values: np.ndarray) -> Interval:
    return Interval(values.mean(0), *np.quantile(values, [0.025, 0.975], axis=0))
