"""Ridge probes of every state with their scores: from rows, or with no row kept from sums over them."""

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import pandas as pd

from jaxprobe.data.table import EntityTable
from jaxprobe.errors import InputError
from jaxprobe.experiments.probe import fitted_targets, in_target_units
from jaxprobe.experiments.tables import tidy_scores
from jaxprobe.extract.extraction import Extraction, stream_moments, stream_states
from jaxprobe.extract.forward import ShardStates
from jaxprobe.extract.store.reader import Activations
from jaxprobe.extract.sums import MomentStream
from jaxprobe.host.processes import gather_rows, share
from jaxprobe.host.progress import Progress, default_reporter
from jaxprobe.html import html_table, scores_in_words
from jaxprobe.models.load import LanguageModel
from jaxprobe.probes.devices import on_cpu
from jaxprobe.probes.lengths import length_notes, row_lengths
from jaxprobe.probes.metrics import Interval, great_circle_km, score
from jaxprobe.probes.moments import Moments
from jaxprobe.probes.ridge import RidgeFit, predict_layer, solve_moments, solve_states, solve_sums, to_fit
from jaxprobe.runs.fit_classes import ClassProbes, fit_class_probes

FOLDS = 5
MAX_GROUPS = 32  # each takes a D x D matrix for every state


class LayerProbes(NamedTuple):
    """Probes of every state with their scores.

    Attributes:
      states: L state names.
      fit: the probes, in the order of ``states``.
      criterion: what chose penalties and headline, on the training rows: "leave_one_out" or "k_fold".
      headline: the state with the least error by that criterion; test scores play no part in it.
      scores: one row for each state, target, split and metric (the columns of a run's scores).
      test_predictions: [L, N_test, C] in target units.
      notes: sentences that a reader should see: layers solved again in float64, rows with huge states.
    """

    states: tuple[str, ...]
    fit: RidgeFit
    criterion: str
    headline: str
    scores: pd.DataFrame
    test_predictions: np.ndarray
    notes: tuple[str, ...] = ()

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """What probes.safetensors keeps."""
        kept = {name: getattr(self.fit, name) for name in ("weights", "intercept", "x_mean", "alpha", "alphas")}
        return kept | {f"{self.criterion}_mse": self.fit.loo_mse}

    def metadata(self, table: EntityTable) -> dict[str, Any]:
        """What probes.safetensors says of its arrays."""
        fitted = "unit_vectors" if table.unit_vectors else "targets"
        return {"targets": table.target_names, "units": table.units, "fitted": fitted}

    def prediction_frame(self, table: EntityTable) -> pd.DataFrame:
        """The test rows' predictions at every state: layer, row, predicted_<target> and, for places, error_km."""
        rows = np.flatnonzero(table.is_test)
        frames = []
        for state, predicted in zip(self.states, self.test_predictions, strict=True):
            frame = pd.DataFrame({"layer": state, "row": rows.astype(np.int32)})
            for column, target in enumerate(table.target_names):
                frame[f"predicted_{target}"] = predicted[:, column].astype(np.float32)
            if table.is_place:
                frame["error_km"] = great_circle_km(predicted, table.targets[rows]).astype(np.float32)
            frames.append(frame)
        return pd.concat(frames, ignore_index=True)

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
    classifier: str = "ridge",
) -> LayerProbes | ClassProbes:
    """Fits a ridge probe, or of labels a class probe, on each state's training rows and scores it on both splits.

    Of several processes each solves some of the states, and all return the same.

    Args:
      activations: state -> [N, D], in the table's row order.
      table: the entities, their targets and their split.
      model, prompt: for the columns of the score table.
      seed: of the bootstrap.
      classifier: of a table of labels, one of `probes.labels.CLASSIFIERS`.

    Returns:
      Probes and scores (of labels, see `fit_class_probes`): R2, Spearman and MAE of each target and their mean,
      great-circle errors in km for places;
      95 % intervals by a bootstrap over test rows with the probe fixed.

    Raises:
      InputError: rows that don't match the table, or states that are not finite.
    """
    states = tuple(activations)
    if not states or len(activations[states[0]]) != len(table):
        found = f"{len(activations[states[0]])} rows" if states else "no states"
        raise InputError(f"The activations have {found}; the table has {len(table)} rows. Extract this table.")
    if table.label:
        return fit_class_probes(
            activations, table, classifier=classifier, model=model, prompt=prompt, seed=seed, progress=progress
        )
    train = ~table.is_test
    progress = progress or default_reporter()
    here = share(len(states))
    join = functools.partial(gather_rows, rows=here)
    with progress.task("fit", len(states), "states") as advance:
        mine = _Counted(activations, [states[layer] for layer in here], advance)
        solved = _solve_by_width(mine, _widths(activations), train, fitted_targets(table)[train])
        fit = to_fit(join(solved), states)
    with progress.task("score", len(states), "states") as advance:
        mine = _Counted(activations, [states[layer] for layer in here], advance)
        predicted, lengths = [], []
        for layer, x in zip(here, mine.values(), strict=True):
            predicted.append(in_target_units(table, predict_layer(fit, layer, x)))
            lengths.append(row_lengths(x))
        joined = join({"predictions": np.stack(predicted), "lengths": np.stack(lengths)})
        predictions = joined["predictions"]
        in_training = score(table.targets[train], predictions[:, train], places=table.is_place, replicates=0)
        return score_probes(
            table,
            states,
            fit,
            "leave_one_out",
            in_training,
            predictions[:, ~train],
            joined["lengths"],
            np.arange(len(table)),
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
    lengths: np.ndarray,
    rows: np.ndarray,
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
      lengths: [L, M] of the states of some rows [M] of the table, of which the long ones are told.
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
    notes = *fit.notes, *length_notes(lengths, states, headline, table.texts, rows)
    return LayerProbes(states, fit, criterion, headline, scores, test_predictions, notes)


def _widths(activations: Mapping[str, np.ndarray]) -> dict[str, int]:
    """Numbers a row of each state; of stored ones without reading them."""
    if isinstance(activations, Activations):
        return {state: activations.width_of(state) for state in activations}
    return {state: values.shape[1] for state, values in activations.items()}


def _solve_by_width(
    activations: Mapping[str, np.ndarray], widths: Mapping[str, int], rows: np.ndarray, y: np.ndarray
) -> dict[str, np.ndarray]:
    """`solve_states` of the states of each width; weights and means of narrower states end in zeros."""
    names, widest = list(activations), max(widths.values())
    parts, order = [], []
    for width in dict.fromkeys(widths[name] for name in names):
        same = [name for name in names if widths[name] == width]
        leaves = solve_states(_Chosen(activations, same), rows, y)
        for wide in ("weights", "x_mean"):
            room = [(0, 0), (0, widest - width), (0, 0)][: leaves[wide].ndim]
            leaves[wide] = np.pad(leaves[wide], room)
        parts.append(leaves)
        order += [names.index(name) for name in same]
    if len(parts) < 2:
        return parts[0] if parts else {}
    back = np.argsort(order)
    return {leaf: np.concatenate([part[leaf] for part in parts])[back] for leaf in parts[0]}


class _Chosen(Mapping):
    """Some of the states."""

    def __init__(self, activations: Mapping[str, np.ndarray], states: Sequence[str]):
        self._activations, self._states = activations, states

    def __getitem__(self, state: str) -> np.ndarray:
        return self._activations[state]

    def __iter__(self) -> Iterator[str]:
        return iter(self._states)

    def __len__(self) -> int:
        return len(self._states)


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
    if table.label:
        return frame.assign(**{f"true_{table.label}": table.labels})
    for column, target in enumerate(table.target_names):
        frame[f"true_{target}"] = table.targets[:, column]
    return frame


# ---- From sums -------------------------------------------------------------------------------------------------------


def make_folds(table: EntityTable, group: str | None = None, seed: int = 0) -> dict[str, np.ndarray]:
    """Table rows of each fold of the training rows: five at random, or one for each value of a group.

    Raises:
      InputError: no such group, or one with less than 2 or more than 32 values in the training rows.
    """
    train = np.flatnonzero(~table.is_test)
    if group is None:
        parts = np.array_split(np.random.default_rng(seed).permutation(train), FOLDS)
        return {f"fold {i}": np.sort(part) for i, part in enumerate(parts)}
    if group not in table.groups:
        raise InputError(
            f"--fold-group {group} is no group of table {table.name} (it has {', '.join(table.groups) or 'none'}). "
            f"Add --group {group}."
        )
    labels = table.groups[group][train]
    names = np.unique(labels)
    if not 2 <= len(names) <= MAX_GROUPS:
        raise InputError(
            f"--fold-group {group} has {len(names)} values in the training rows; wanted 2 to {MAX_GROUPS}: each takes "
            "a matrix of width x width for every state. Take another column, or store the states."
        )
    return {str(name): train[labels == name] for name in names}


def stream_probes(
    language_model: LanguageModel,
    train: Extraction,
    test: Extraction,
    table: EntityTable,
    folds: Mapping[str, np.ndarray],
    *,
    model: str = "",
    prompt: str = "",
    seed: int = 0,
    progress: Progress | None = None,
) -> LayerProbes:
    """Fits a ridge probe on each state without keeping the states of any row.

    Penalties and headline are chosen by cross-validation over ``folds``, as leave-one-out needs rows. Of the training
    rows, the R2 follows from the moments; the other metrics need rows and are given for the test rows only.

    Args:
      train, test: the extraction of the training rows, for moments, and of the test rows, for predictions.
      folds: from ``make_folds``.
      model, prompt, seed: as in ``fit_probes``.
    """
    progress = progress or default_reporter()
    stream = stream_moments(language_model, train, folds, table.targets, progress)
    with progress.task("fit", len(stream.states), "states") as advance:
        here = np.array([stream.states.index(state) for state in stream.states_here], np.int64)
        join = functools.partial(gather_rows, rows=here)
        if on_cpu(language_model.mesh):  # float64 costs little there
            solved = join(solve_moments(_StateMoments(stream, advance), criterion="k_fold"))
        else:
            solved = join(solve_sums(stream.on_devices(), _StateMoments(stream, lambda count: None)))
            advance(len(here))
        fit = to_fit(solved, stream.states, "float64")
        r2 = np.column_stack([solved["r2"], solved["r2"].mean(axis=1)])  # with the mean over targets last
        none = np.full(r2.shape, np.nan)
    del stream  # its memory is free while the test rows run
    predictions, lengths = _predict(fit, stream_states(language_model, test, "predict", progress), table)
    with progress.task("score", len(test.states), "states"):
        return score_probes(
            table,
            test.states,
            fit,
            "k_fold",
            {"r2": Interval(r2, none, none)},
            predictions,
            lengths,
            np.flatnonzero(table.is_test),
            model=model,
            prompt=prompt,
            seed=seed,
        )


def _predict(fit: RidgeFit, shards: Iterable[ShardStates], table: EntityTable) -> tuple[np.ndarray, np.ndarray]:
    """Predictions [L, N_test, C] of the test rows and the lengths [L, N_test] of their states; a process sees some."""
    place = np.full(len(table), -1)
    place[table.is_test] = np.arange(table.is_test.sum())
    rows, predictions = [np.empty(0, np.int64)], [np.empty((0, len(fit.weights), table.targets.shape[1]))]
    lengths = [np.empty((0, len(fit.weights)))]
    for shard in shards:
        if shard.index is not None:
            rows.append(place[shard.rows])
            predictions.append(np.stack([predict_layer(fit, i, x) for i, x in enumerate(shard.values)], axis=1))
            lengths.append(np.stack([row_lengths(np.asarray(x)) for x in shard.values], axis=1))
    both = {"predictions": np.concatenate(predictions), "lengths": np.concatenate(lengths)}
    joined = gather_rows(both, np.concatenate(rows))
    return np.ascontiguousarray(joined["predictions"].swapaxes(0, 1)), joined["lengths"].T


class _StateMoments(Mapping[str, Moments]):
    """The moments of each state of this process's devices, read when they are asked for."""

    def __init__(self, stream: MomentStream, advance: Callable[[int], None]):
        self._stream, self._advance = stream, advance

    def __getitem__(self, state: str) -> Moments:
        self._advance(1)
        return Moments(**self._stream.moments(state))

    def __iter__(self) -> Iterator[str]:
        return iter(self._stream.states_here)

    def __len__(self) -> int:
        return len(self._stream.states_here)
