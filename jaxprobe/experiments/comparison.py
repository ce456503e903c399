"""How far apart are layers, prompts and models? Differences of R2 on the same test rows, over rows and over groups."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd

from jaxprobe.data.table import EntityTable
from jaxprobe.errors import InputError
from jaxprobe.experiments.tables import tidy_scores
from jaxprobe.probes.metrics import paired_difference, score


class Predicted(NamedTuple):
    """What one run predicts.

    Attributes:
      table: the test rows only.
      predictions: state -> [N, C] in target units.
      headline: the state that the training rows chose.
      model, prompt: what results call them.
    """

    table: EntityTable
    predictions: Mapping[str, np.ndarray]
    headline: str
    model: str
    prompt: str


def compare_states(run: Predicted, seed: int = 0) -> pd.DataFrame:
    """R2 of every state with whole groups resampled, and less that of the ``embed`` state.

    Returns:
      A tidy table: metric r2 with ``resampled`` the group column; ``r2_difference`` (paired) with ``compared_with``
      "embed", where the run has that state, and ``resampled`` "rows" or the group column. 95 % intervals by a bootstrap
      over test rows, or over whole groups, with the probes fixed.
    """
    states = list(run.predictions)
    predicted, truth = np.stack([run.predictions[state] for state in states]), run.table.targets
    frames = []
    for resampled, labels in _resamplings(run.table).items():
        options = dict(groups=labels, seed=seed, metrics=("r2",))
        names = dict(model=run.model, prompt=run.prompt, resampled=resampled)
        if labels is not None:  # over rows, the run's own scores have it
            found = score(truth, predicted, **options)
            frames.append(tidy_scores(run.table, found, states, compared_with="", **names))
        if "embed" in states:
            less = paired_difference(truth, predicted, run.predictions["embed"][None], **options)
            found = {"r2_difference": less["r2"]}
            frames.append(tidy_scores(run.table, found, states, compared_with="embed", **names))
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def compare_headlines(run: Predicted, other: Predicted, seed: int = 0) -> pd.DataFrame:
    """R2 of a run's headline layer less that of another run with the same test rows, paired.

    Returns:
      A tidy table like that of `compare_states`; ``compared_with`` names the other run's model, prompt and layer.

    Raises:
      InputError: other rows.
    """
    if not same_rows(run.table, other.table):
        raise InputError(f"{run.table.name} and {other.table.name} are other test rows; only the same are paired.")
    y_pred, y_base = (each.predictions[each.headline][None] for each in (run, other))
    frames = []
    for resampled, labels in _resamplings(run.table).items():
        less = paired_difference(run.table.targets, y_pred, y_base, groups=labels, seed=seed, metrics=("r2",))
        names = dict(model=run.model, prompt=run.prompt, resampled=resampled)
        base = f"{other.model}, {other.prompt}, {other.headline}"
        found = {"r2_difference": less["r2"]}
        frames.append(tidy_scores(run.table, found, [run.headline], compared_with=base, **names))
    return pd.concat(frames, ignore_index=True)


def same_rows(a: EntityTable, b: EntityTable) -> bool:
    """Whether two tables have the same entities with the same targets on the same sides of the split."""
    return a.texts == b.texts and np.array_equal(a.targets, b.targets) and np.array_equal(a.is_test, b.is_test)


def _resamplings(table: EntityTable) -> dict[str, np.ndarray | None]:
    """What is resampled: the rows, and the groups of each column that has two or more."""
    labels = {name: np.asarray(values).astype(str) for name, values in table.groups.items()}
    return {"rows": None} | {name: values for name, values in labels.items() if len(np.unique(values)) > 1}
