"""Ridge probes of every state with no row kept: sums over the training rows, then predictions of the test rows."""

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping

import jax
import numpy as np

from jaxprobe.data.table import EntityTable
from jaxprobe.errors import InputError
from jaxprobe.experiments.layers import LayerProbes, score_probes
from jaxprobe.extract.extraction import Extraction, stream_moments, stream_states
from jaxprobe.extract.forward import ShardStates
from jaxprobe.extract.sums import MomentStream
from jaxprobe.host.processes import gather_rows
from jaxprobe.host.progress import Progress, default_progress
from jaxprobe.models.load import LanguageModel
from jaxprobe.probes.folds import total
from jaxprobe.probes.metrics import Interval
from jaxprobe.probes.moments import Moments, centre
from jaxprobe.probes.ridge import RidgeFit, predict_layer, solve_moments, to_fit

FOLDS = 5
MAX_GROUPS = 32  # each takes a D x D matrix for every state


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
    progress = progress or default_progress()
    stream = stream_moments(language_model, train, folds, table.targets, progress)
    with progress.task("fit", len(stream.states), "states") as advance:
        here = np.array([stream.states.index(state) for state in stream.states_here], np.int64)
        join = functools.partial(gather_rows, rows=here)
        solved = join(solve_moments(_StateMoments(stream, advance), criterion="k_fold"))
        fit = to_fit(solved, stream.states, "float64")
        r2 = join({"r2": _training_r2(fit.weights[here], _StateMoments(stream, lambda count: None))})["r2"]
        none = np.full(r2.shape, np.nan)
    del stream  # its memory is free while the test rows run
    predictions = _predict(fit, stream_states(language_model, test, "predict", progress), table)
    with progress.task("score", len(test.states), "states"):
        return score_probes(
            table,
            test.states,
            fit,
            "k_fold",
            {"r2": Interval(r2, none, none)},
            predictions,
            model=model,
            prompt=prompt,
            seed=seed,
        )


def _predict(fit: RidgeFit, shards: Iterable[ShardStates], table: EntityTable) -> np.ndarray:
    """Predictions [L, N_test, C] of the test rows, of which each process sees some."""
    place = np.full(len(table), -1)
    place[table.is_test] = np.arange(table.is_test.sum())
    rows, predictions = [np.empty(0, np.int64)], [np.empty((0, len(fit.weights), table.targets.shape[1]))]
    for shard in shards:
        if shard.index is not None:
            rows.append(place[shard.rows])
            predictions.append(np.stack([predict_layer(fit, i, x) for i, x in enumerate(shard.values)], axis=1))
    joined = gather_rows({"predictions": np.concatenate(predictions)}, np.concatenate(rows))["predictions"]
    return np.ascontiguousarray(joined.swapaxes(0, 1))


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


def _training_r2(every_weights: np.ndarray, moments: Mapping[str, Moments]) -> np.ndarray:
    """R2 on the training rows, [L, C + 1] with the mean over targets last, for weights [L, D, C].

    The residual's sum of squares is y'y - 2 w'x'y + w'x'x w, all about the means.
    """
    values = []
    for weights, of_folds in zip(every_weights, moments.values(), strict=True):
        with jax.enable_x64(True):
            sums = jax.tree.map(np.asarray, centre(total(of_folds)))
        residual = sums.y_squares - 2 * (weights * sums.cross).sum(0) + (weights * (sums.gram @ weights)).sum(0)
        with np.errstate(invalid="ignore", divide="ignore"):
            r2 = np.where(sums.y_squares > 0, 1 - residual / sums.y_squares, np.nan)
        values.append([*r2, r2.mean()])
    return np.array(values).reshape(len(values), every_weights.shape[2] + 1)
