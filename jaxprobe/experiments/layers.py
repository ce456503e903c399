"""At which layers can the targets be read, and how well? A ridge probe on every state."""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np
import pandas as pd

from jaxprobe.data.table import EntityTable
from jaxprobe.errors import InputError
from jaxprobe.experiments.probe import fitted_targets, in_target_units
from jaxprobe.experiments.tables import tidy_scores
from jaxprobe.host.processes import gather_rows, share
from jaxprobe.host.progress import Progress, default_progress
from jaxprobe.html import html_table, scores_in_words
from jaxprobe.probes.metrics import Interval, great_circle_km, score
from jaxprobe.probes.ridge import RidgeFit, predict_layer, solve_states, to_fit


class LayerProbes(NamedTuple):
    """Probes of every state with their scores.

    Attributes:
      states: L state names.
      fit: the probes, in the order of ``states``.
      criterion: what chose penalties and headline, on the training rows: "leave_one_out" or "k_fold".
      headline: the state with the least error by that criterion; test scores play no part in it.
      scores: one row for each state, target, split and metric (the columns of a run's scores).
      test_predictions: [L, N_test, C] in target units.
    """

    states: tuple[str, ...]
    fit: RidgeFit
    criterion: str
    headline: str
    scores: pd.DataFrame
    test_predictions: np.ndarray

    def __repr__(self) -> str:
        return f"LayerProbes({len(self.states)} states; by {self.criterion} on the training rows: {self.headline})"

    def _repr_html_(self) -> str:
        """For notebooks: test scores by layer."""
        heads, rows, marked = scores_in_words(self.scores, self.headline)
        return html_table(heads, rows, f"Test scores. *: chosen by {self.criterion} on the training rows.", marked)


def fit_probes(
    activations: Mapping[str, np.ndarray],
    table: EntityTable,
    *,
    model: str = "",
    prompt: str = "",
    seed: int = 0,
    progress: Progress | None = None,
) -> LayerProbes:
    """Fits a ridge probe on each state's training rows and scores it on both splits.

    Of several processes each solves some of the states, and all return the same.

    Args:
      activations: state -> [N, D], in the table's row order.
      table: the entities, their targets and their split.
      model, prompt: for the columns of the score table.
      seed: of the bootstrap.

    Returns:
      Probes and scores: R2, Spearman and MAE of each target and their mean, great-circle errors in km for places;
      95 % intervals by a bootstrap over test rows with the probe fixed.

    Raises:
      InputError: rows that don't match the table, or states that are not finite.
    """
    states = tuple(activations)
    if not states or len(activations[states[0]]) != len(table):
        found = f"{len(activations[states[0]])} rows" if states else "no states"
        raise InputError(f"The activations have {found}; the table has {len(table)} rows. Extract this table.")
    train = ~table.is_test
    progress = progress or default_progress()
    here = share(len(states))
    join = functools.partial(gather_rows, rows=here)
    with progress.task("fit", len(states), "states") as advance:
        mine = _Counted(activations, [states[layer] for layer in here], advance)
        fit = to_fit(join(solve_states(mine, train, fitted_targets(table)[train])), states)
    with progress.task("score", len(states), "states") as advance:
        mine = _Counted(activations, [states[layer] for layer in here], advance)
        states_read = zip(here, mine.values(), strict=True)
        predicted = [in_target_units(table, predict_layer(fit, layer, x)) for layer, x in states_read]
        predictions = join({"predictions": np.stack(predicted)})["predictions"]
        in_training = score(table.targets[train], predictions[:, train], places=table.is_place, replicates=0)
        return score_probes(
            table,
            states,
            fit,
            "leave_one_out",
            in_training,
            predictions[:, ~train],
            model=model,
            prompt=prompt,
            seed=seed,
        )


def score_probes(
    table: EntityTable,
    states: tuple[str, ...],
    fit: RidgeFit,
    criterion: str,
    in_training: Mapping[str, Interval],
    test_predictions: np.ndarray,
    *,
    model: str,
    prompt: str,
    seed: int,
) -> LayerProbes:
    """Puts fitted probes together with their scores.

    Args:
      criterion: what ``fit.loo_mse`` holds.
      in_training: scores of the training rows, as `metrics.score` gives them.
      test_predictions: [L, N_test, C]; scored with 95 % intervals by a bootstrap over test rows.
    """
    in_test = score(table.targets[table.is_test], test_predictions, places=table.is_place, seed=seed)
    splits = {"train": in_training, "test": in_test}
    scores = pd.concat(
        [
            tidy_scores(table, found, states, fit.alpha, split=split, model=model, prompt=prompt)
            for split, found in splits.items()
        ],
        ignore_index=True,
    )
    if len(set(table.units)) > 1:  # a mean over errors in different units means nothing
        scores = scores[(scores["metric"] != "mae") | (scores["target"] != "mean")].reset_index(drop=True)
    relative = (fit.loo_mse / fitted_targets(table)[~table.is_test].var(0)).mean(-1)
    headline = states[int(np.nanmin(relative, axis=1).argmin())]
    return LayerProbes(states, fit, criterion, headline, scores, test_predictions)


class _Counted(Mapping):
    """Some of the activations; reports each state that is read, and as many for every other process."""

    def __init__(self, activations: Mapping[str, np.ndarray], states: Sequence[str], advance: Callable[[int], None]):
        self._activations, self._states, self._advance = activations, states, advance

    def __getitem__(self, state: str) -> np.ndarray:
        values = self._activations[state]
        self._advance(jax.process_count())
        return values

    def __iter__(self) -> Iterator[str]:
        return iter(self._states)

    def __len__(self) -> int:
        return len(self._states)


def prediction_frame(table: EntityTable, probes: LayerProbes) -> pd.DataFrame:
    """The test rows' predictions at every state: layer, row, predicted_<target> and, for places, error_km."""
    rows = np.flatnonzero(table.is_test)
    frames = []
    for state, predicted in zip(probes.states, probes.test_predictions, strict=True):
        frame = pd.DataFrame({"layer": state, "row": rows.astype(np.int32)})
        for column, target in enumerate(table.target_names):
            frame[f"predicted_{target}"] = predicted[:, column].astype(np.float32)
        if table.is_place:
            frame["error_km"] = great_circle_km(predicted, table.targets[rows]).astype(np.float32)
        frames.append(frame)
    return pd.concat(frames, ignore_index=True)


def entity_frame(table: EntityTable) -> pd.DataFrame:
    """The table as it was read: row, text, split, group_<name> and true_<target>."""
    frame = pd.DataFrame(
        {
            "row": np.arange(len(table), dtype=np.int32),
            "text": list(table.texts),
            "split": np.where(table.is_test, "test", "train"),
        }
    )
    for name, values in table.groups.items():
        frame[f"group_{name}"] = np.asarray(values, dtype=object)
    for column, target in enumerate(table.target_names):
        frame[f"true_{target}"] = table.targets[:, column]
    return frame
