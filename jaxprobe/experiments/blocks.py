"""Does the probe work where it has seen nothing? Whole groups, and whole cells of the map, are held out of the fit."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from jaxprobe.data.sphere import nearest_km
from jaxprobe.data.splits import spatial_blocks
from jaxprobe.data.table import EntityTable
from jaxprobe.errors import InputError
from jaxprobe.experiments.base import by_run, columns_of, dots, each_run, one_number, usable_groups
from jaxprobe.experiments.probe import fit_probe
from jaxprobe.experiments.proximity import proximity_error
from jaxprobe.experiments.tables import choose_labels, require_group, require_states, score_metrics, tidy_scores
from jaxprobe.host.paths import AnyPath
from jaxprobe.host.progress import Progress, Reporter
from jaxprobe.probes.class_metrics import accuracy_difference, score_classes
from jaxprobe.probes.metrics import Interval, paired_difference, resample_counts, score

LARGEST = 20  # the paper's number of countries
FITS = ("nominal", "held_out", "difference")


@dataclass(frozen=True)
class Options:
    """What is held out."""

    group: tuple[str, ...] = ()
    """Group columns; default: all, and cells of the map for places."""
    held: tuple[str, ...] = ()
    """Groups to hold out; default: the twenty largest."""
    state: str | None = None
    """The state to look at; default: each run's headline layer."""
    cell_degrees: float = 5.0
    """Side of a cell."""
    buffer_km: float = 100.0
    """Training rows nearer than this to a test row are left out as well."""


def run(runs: Sequence[AnyPath], options: Options, reporter: Progress) -> pd.DataFrame:
    """`measure_groups` for every group column, or those named, and `measure_cells` for places, of each run.

    Raises:
      InputError: a run without states, or without a group or a map to hold out; and as these functions.
    """
    frames = []
    for each in list(each_run(runs, "open", reporter)):  # each hold-out shows its own task
        at = each.activations, each.table, options.state or each.headline_layer
        columns = options.group or usable_groups(each.table)
        if options.held and not options.group:
            columns = columns_with(each.table, columns, options.held)
        if not columns and not each.table.is_place:
            raise InputError(f"{each.path} has no group to hold out. Run it with --group COLUMN.")
        shared = columns_of(each) | {"seed": each.settings.seed, "reporter": reporter}
        frames += [measure_groups(*at, column, held=options.held, **shared) for column in columns]
        if each.table.is_place and not options.group:
            cells = dict(cell_degrees=options.cell_degrees, buffer_km=options.buffer_km)
            frames.append(measure_cells(*at, **cells, **shared))
    return pd.concat(frames, ignore_index=True)


def columns_with(table: EntityTable, columns: Sequence[str], held: Sequence[str]) -> tuple[str, ...]:
    """The columns that have all of these labels. Raises InputError where none has."""
    found = tuple(name for name in columns if set(held) <= set(np.asarray(table.groups[name]).astype(str)))
    if not found:
        named, among = ", ".join(map(repr, held)), ", ".join(columns) or "none"
        raise InputError(
            f"No group of table {table.name} has {named} (its groups: {among}). Take values of one column."
        )
    return found


def figures(frame: pd.DataFrame) -> list:
    """For each run: every group by the probe of all training rows, and by one that was fitted without the group."""
    frame = one_number(frame)[lambda rows: rows["fit"] != "difference"]
    # The cells' R2 is about the mean of all rows tested, which are its group.
    rows = frame["held_out"].replace("", "(none)")  # places of no continent
    frame = frame.assign(section=frame["group"].str.replace("_", " "), row=rows, kind=frame["fit"])
    frame["metric"] = frame["metric"].replace("r2", "r2_block_mean")
    kinds = {"nominal": "probe of all training rows", "held_out": "fitted without the group, or cells and buffer"}
    return [dots("Groups that the probe never saw", called, part, kinds) for called, part in by_run(frame)]


def measure_groups(
    activations: Mapping[str, np.ndarray],
    table: EntityTable,
    state: str,
    group: str,
    *,
    held: Sequence[str] = (),
    model: str = "",
    prompt: str = "",
    run: str = "",
    seed: int = 0,
    reporter: Progress | None = None,
) -> pd.DataFrame:
    """Each group's test rows by the probe of all training rows, and by one that was fitted without the group.

    Both choose their penalty by leave-one-out on their own training rows, so that they differ in these rows alone, and
    the second one's penalty has not seen the group either.

    Args:
      activations: state -> [N, D], in the table's row order.
      state: the state whose probes are looked at.
      group: the column of groups.
      held: the groups to hold out; () takes the twenty with the most training rows.

    Returns:
      A tidy table: ``fit`` is "nominal", "held_out", or "difference" (the second less the first, paired); ``group`` and
      ``held_out`` name the group, ``rows_test`` its test rows. 95 % intervals by a bootstrap over these, probes fixed.
      Metrics:
        r2_block_mean    about the mean of the group's test rows: what is known inside of the group
        r2_train_mean    about the mean of the training rows without the group: what is known of where the group lies
        proximity_error  see proximity.py; against all test rows, as the same probe predicts them (not of labels)
        accuracy         of class labels, whose R2 is that of the classes' columns
        error_km_median  for places

    Raises:
      InputError: a state or a column that is not there, a group without enough rows, or rows that don't match.
    """
    require_states(activations, table, [state])
    labels = require_group(table, group)
    held = choose_labels(table, group, labels, held, largest=LARGEST)
    x, test, targets = activations[state], table.is_test, table.targets
    nominal = fit_probe(x, table, ~test, state)
    base = nominal.predict(x[test])
    frames = []
    with (reporter or Reporter()).task(f"without each {group}", len(held), "groups") as advance:
        for name in held:
            train, inside = ~test & (labels != name), (labels == name)[test]
            probe = fit_probe(x, table, train, f"{state} without {name}")
            both = np.stack([base, probe.predict(x[test])])
            found = _block_scores(table, both, inside, targets[train], seed)
            alphas = (nominal.alpha, probe.alpha, np.nan)
            columns = dict(model=model, prompt=prompt, run=run, group=group, held_out=name, rows_test=int(inside.sum()))
            frames += _three_fits(table, found, state, alphas, columns)
            advance(1)
    return pd.concat(frames, ignore_index=True)


def measure_cells(
    activations: Mapping[str, np.ndarray],
    table: EntityTable,
    state: str,
    *,
    cell_degrees: float = 5.0,
    buffer_km: float = 100.0,
    folds: int = 5,
    model: str = "",
    prompt: str = "",
    run: str = "",
    seed: int = 0,
    reporter: Progress | None = None,
) -> pd.DataFrame:
    """All test rows by the probe of all training rows, and by probes that saw nothing near them.

    The cells of a grid are dealt into folds. A fold's test rows are predicted by a probe of the training rows outside
    of the fold's cells and at least ``buffer_km`` from each of its test rows.

    Returns:
      A tidy table as that of `measure_groups`, with ``group`` "cells of 5 degrees, 100 km" and ``held_out`` "each
      fold". Metrics are r2 (about the mean of all test rows) and error_km_median; 95 % intervals by a bootstrap over
      whole cells.

    Raises:
      InputError: a table without coordinates, a buffer that leaves nothing to fit on, and as `measure_groups`.
    """
    if not table.is_place:
        raise InputError(f"Table {table.name} has no latitude and longitude as targets; spatial blocks need both.")
    require_states(activations, table, [state])
    x, test, targets = activations[state], table.is_test, table.targets
    cells = spatial_blocks(*targets.T, cell_degrees).astype(str)
    fold = deal_groups(cells, folds, seed)
    nominal = fit_probe(x, table, ~test, state)
    both = np.stack([nominal.predict(x[test])] * 2)
    numbers = np.unique(fold[test])
    with (reporter or Reporter()).task("without cells", len(numbers), "folds") as advance:
        for number in numbers:
            inside = test & (fold == number)
            far = nearest_km(*targets.T, *targets[inside].T) >= buffer_km
            train = ~test & (fold != number) & far
            if train.sum() < 2:
                raise InputError(f"A buffer of {buffer_km:g} km leaves {train.sum()} training rows. Use a smaller one.")
            probe = fit_probe(x, table, train, f"{state} without fold {number}")
            both[1, inside[test]] = probe.predict(x[inside])
            advance(1)
    found = _score_fits(table, targets[test], both, seed, groups=cells[test])
    group = f"cells of {cell_degrees:g} degrees, {buffer_km:g} km"
    columns = dict(model=model, prompt=prompt, run=run, group=group, held_out="each fold", rows_test=int(test.sum()))
    return pd.concat(_three_fits(table, found, state, (nominal.alpha, np.nan, np.nan), columns), ignore_index=True)


def deal_groups(labels: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """[N] fold numbers: whole groups, the largest first (equal ones at random), each to the emptiest fold."""
    _, code, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    order = np.random.default_rng(seed).permutation(len(sizes))
    fold, filled = np.empty(len(sizes), int), np.zeros(folds, int)
    for group in order[np.argsort(-sizes[order], kind="stable")]:
        fold[group] = filled.argmin()
        filled[fold[group]] += sizes[group]
    return fold[code]


def _block_scores(table: EntityTable, both: np.ndarray, inside: np.ndarray, train: np.ndarray, seed: int) -> dict:
    """metric -> Interval of the three FITS, from both predictions [2, N_test, C]; inside: [N_test] the group."""
    truth = table.targets[table.is_test]
    y, p = truth[inside], both[:, inside]
    found = _score_fits(table, y, p, seed)
    found = {"r2_block_mean": found.pop("r2")} | found
    unexplained = ratio_intervals((y[None] - p) ** 2, (y - train.mean(0)[None]) ** 2, seed, average=True)
    # One less a ratio turns the interval around; in the difference the ones cancel.
    one = np.array([1.0, 1.0, 0.0])[:, None]
    found["r2_train_mean"] = Interval(one - unexplained.value, one - unexplained.ci_high, one - unexplained.ci_low)
    if table.label:
        return found
    scale = 1.0 if table.is_place else np.where(np.ptp(train, axis=0) > 0, train.std(0), 1.0)[None]
    shares = np.stack([proximity_error(q / scale, truth / scale, inside, places=table.is_place) for q in both])
    found["proximity_error"] = ratio_intervals(shares[..., None], np.ones((len(y), 1)), seed, average=False)
    return found


def _score_fits(
    table: EntityTable, truth: np.ndarray, both: np.ndarray, seed: int, groups: np.ndarray | None = None
) -> dict[str, Interval]:
    """metric -> Interval of the three FITS, from both predictions [2, N, C] of ``truth`` [N, C]."""
    options = dict(places=table.is_place, groups=groups, seed=seed, metrics=score_metrics(table))
    single, less = score(truth, both, **options), paired_difference(truth, both[1:], both[:1], **options)
    if table.label:
        code = truth.argmax(axis=1)
        single |= score_classes(code, both, groups=groups, seed=seed, metrics=("accuracy",))
        less["accuracy"] = accuracy_difference(code, both[1:], both[:1], groups=groups, seed=seed)
    return {name: Interval(*map(np.concatenate, zip(single[name], less[name], strict=True))) for name in single}


def ratio_intervals(above: np.ndarray, below: np.ndarray, seed: int, *, average: bool) -> Interval:
    """Sums of above [2, N, C] over those of below [N, C]: both ratios and the second less the first, [3, C].

    ``average`` adds a column, the mean over C. 95 % intervals by a bootstrap over rows.
    """

    def of(weights: np.ndarray) -> np.ndarray:
        ratios = np.einsum("bn,pnc->bpc", weights, above, optimize=True) / (weights @ below)[:, None]
        ratios = np.concatenate([ratios, ratios[:, 1:] - ratios[:, :1]], axis=1)
        return np.concatenate([ratios, ratios.mean(2, keepdims=True)], axis=2) if average else ratios

    drawn = np.concatenate([of(counts) for counts in resample_counts(len(below), None, 1000, seed)])
    return Interval(of(np.ones((1, len(below))))[0], *np.quantile(drawn, [0.025, 0.975], axis=0))


def _three_fits(table: EntityTable, found: Mapping[str, Interval], state: str, alphas: Sequence, columns: Mapping):
    """The rows of each of the FITS, whose values are the three entries of each interval."""
    return [
        tidy_scores(
            table,
            {name: Interval(*(part[i : i + 1] for part in interval)) for name, interval in found.items()},
            [state],
            alphas[i],
            fit=fit,
            **columns,
        )
        for i, fit in enumerate(FITS)
    ]
