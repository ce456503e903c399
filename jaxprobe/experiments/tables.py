"""What the experiments share: the rows of a tidy table, and the checks of their inputs."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from jaxprobe.data.table import EntityTable
from jaxprobe.errors import InputError
from jaxprobe.probes.class_metrics import accuracy_difference, score_classes
from jaxprobe.probes.metrics import Interval, paired_difference, score


def tidy_scores(
    table: EntityTable,
    found: Mapping[str, Interval],
    states: Sequence[str] = ("",),
    alpha: np.ndarray | float = np.nan,
    **columns: object,
) -> pd.DataFrame:
    """One row for each state, metric and target, with the columns of a run's scores.

    Args:
      found: metric -> Interval of [L, C + 1] (the last one the mean over targets), or of [L] for one number a state,
        whose target is then "place" for errors in km and else "mean".
      states: L state names; "" where the score is of no state.
      alpha: [L] penalties.
      columns: model, prompt and the experiment's own columns, each one value for all rows; split is "test".
    """
    frames = []
    for metric, interval in found.items():
        value, low, high = (np.reshape(part, (len(states), -1)) for part in interval)
        one = "place" if metric.startswith("error_km") else "mean"
        targets = (*table.target_names, "mean") if value.shape[1] > 1 else (one,)
        for column, target in enumerate(targets):
            scores = {"value": value[:, column], "ci_low": low[:, column], "ci_high": high[:, column], "alpha": alpha}
            frames.append(pd.DataFrame({"layer": list(states), "target": target, "metric": metric, **scores}))
    frame = pd.concat(frames, ignore_index=True).assign(dataset=table.name, **({"split": "test"} | columns))
    first = ("model", "dataset", "prompt", "layer", "target", "split", "metric", "value", "ci_low", "ci_high", "alpha")
    first = [name for name in first if name in frame]
    return frame[first + [name for name in frame if name not in first]]


def same_rows(a: EntityTable, b: EntityTable) -> bool:
    """Whether two tables have the same entities with the same targets on the same sides of the split."""
    return a.texts == b.texts and np.array_equal(a.targets, b.targets) and np.array_equal(a.is_test, b.is_test)


def score_metrics(table: EntityTable) -> tuple[str, ...]:
    """The metrics that an experiment reports: R2 and, for places, the median error in km."""
    return ("r2", "error_km_median") if table.is_place else ("r2",)


def score_beside(
    table: EntityTable, truth: np.ndarray, predicted: np.ndarray, base: np.ndarray | None, seed: int
) -> dict[str, Interval]:
    """Scores of predictions [N, C] of ``truth``, and ``r2_difference``, R2 less that of ``base`` [N, C] (paired).

    95 % intervals by a bootstrap over the rows, the probes fixed. Without a base there is no difference.
    """
    options = dict(places=table.is_place, seed=seed)
    found = score(truth, predicted[None], metrics=score_metrics(table), **options)
    if base is not None:
        less = paired_difference(truth, predicted[None], base[None], metrics=("r2",), **options)
        found["r2_difference"] = less["r2"]
    if table.label:  # R2 is of the classes' columns then
        code = truth.argmax(axis=1)
        found["accuracy"] = score_classes(code, predicted[None], seed=seed, metrics=("accuracy",))["accuracy"]
        if base is not None:
            found["accuracy_difference"] = accuracy_difference(code, predicted[None], base[None], seed=seed)
    return found


def require_states(activations: Mapping[str, np.ndarray], table: EntityTable, states: Sequence[str]) -> None:
    """Raises InputError where a state is not there, or its rows are not the table's."""
    problems = []
    for state in states:
        if state not in activations:
            problems.append(f"State {state!r} is not there; found {', '.join(activations)}. Name one of these.")
        elif (rows := len(activations[state])) != len(table):
            problems.append(f"State {state!r} has {rows} rows; the table has {len(table)}. Extract this table.")
    if problems:
        raise InputError(*problems)


def require_group(table: EntityTable, group: str) -> np.ndarray:
    """[N] labels of a group column. Raises InputError where it is not there or all rows are of one group."""
    if group not in table.groups:
        found = f"it has {', '.join(table.groups)}" if table.groups else "it has none: run it with --group COLUMN"
        raise InputError(f"Table {table.name} has no group {group!r}; {found}.")
    labels = np.asarray(table.groups[group]).astype(str)
    if len(np.unique(labels[~table.is_test])) < 2:
        raise InputError(f"All training rows are of one {group}, {str(labels[0])!r}. Take another group.")
    return labels


def choose_labels(
    table: EntityTable, group: str, labels: np.ndarray, named: Sequence[str], *, largest: int
) -> list[str]:
    """The groups to look at: those named, or the ``largest`` by training rows, of labels [N].

    Raises:
      InputError: a group that is not there, or with fewer than two rows to fit on or to test on.
    """
    names, code = np.unique(labels, return_inverse=True)
    sides = (np.bincount(code[rows], minlength=len(names)).tolist() for rows in (~table.is_test, table.is_test))
    counts = dict(zip(names.tolist(), zip(*sides, strict=True), strict=True))
    problems = [f"No row has {group} {name!r}. Take a value of that column." for name in named if name not in counts]
    for name in named:
        train, test = counts.get(name, (2, 2))
        if min(train, test) < 2:
            problems.append(
                f"{group} {name!r} has {train} rows to fit on and {test} to test on; wanted 2 of each. Leave it out."
            )
    if problems:
        raise InputError(*problems)
    usable = [name for name, count in counts.items() if min(count) >= 2]
    if not usable:
        raise InputError(f"No {group} has 2 rows to fit on and 2 to test on. Take a coarser group, or more rows.")
    return list(named) or sorted(usable, key=lambda name: (-counts[name][0], name))[:largest]
