"""The entity table: named things, and what is to be predicted of them."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd

from jaxprobe.data import columns
from jaxprobe.errors import InputError
from jaxprobe.html import html_table

# What a column is called that is plainly the text or the split; the first one that is there counts.
TEXT_COLUMNS = ("text", "name", "title", "entity", "headline")
SPLIT_COLUMNS = ("is_test", "split")
FEWEST_TESTED = 30  # with fewer test rows a table says so


@dataclass(frozen=True)
class EntityTable:
    """N named things, in the order of their file.

    Attributes:
      name: what the table is called in results, e.g. ``world_place``.
      texts: N names as the model reads them (without a prompt).
      targets: [N, C] float64, in the unit given for each column.
      target_names: C names; a place has ("latitude", "longitude"), in that order; of labels the classes, sorted.
      units: C units: "degree", "year", or "" for a plain number.
      is_test: [N] bool; the rows that no probe is fitted on.
      groups: column -> [N] strings, for colours and hold-outs.
      unit_vectors: whether probes are fitted on places as points on the unit sphere, which has no dateline.
      label: the column whose labels are to be predicted; the targets are then 1 for a row's class and 0 elsewhere.
      attribution: what the data's licence asks to be shown, or "".
      notes: what was inferred or noticed on reading, one sentence each, shown to the user.
    """

    name: str
    texts: tuple[str, ...]
    targets: np.ndarray
    target_names: tuple[str, ...]
    units: tuple[str, ...]
    is_test: np.ndarray
    groups: Mapping[str, np.ndarray] = field(default_factory=dict)
    unit_vectors: bool = False
    label: str = ""
    attribution: str = ""
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.texts)

    def __repr__(self) -> str:
        return (
            f"EntityTable({self.name}: {len(self):,} entities, {int(self.is_test.sum()):,} for testing; "
            f"target {self.target_words}; groups {', '.join(self.groups) or 'none'})"
        )

    def _repr_html_(self) -> str:
        """For notebooks: the first five rows."""
        first = self.take(np.arange(min(5, len(self)))).to_frame()
        return html_table(list(first), first.itertuples(index=False), repr(self))

    def to_frame(self) -> pd.DataFrame:
        """One row an entity: ``name``, ``is_test``, each target and each group; as a CSV it reads as this table."""
        targets = {self.label: self.labels} if self.label else dict(zip(self.target_names, self.targets.T, strict=True))
        return pd.DataFrame({"name": list(self.texts), "is_test": self.is_test, **targets, **self.groups})

    @property
    def labels(self) -> np.ndarray:
        """[N] each row's label, of a table of labels."""
        return np.array(self.target_names, object)[self.targets.argmax(axis=1)]

    @property
    def target_words(self) -> str:
        """The targets, for people: their names, or the label's with its number of classes."""
        if self.label:
            return f"{self.label} ({len(self.target_names)} classes)"
        return ", ".join(self.target_names)

    @property
    def is_place(self) -> bool:
        """Whether the targets are a latitude and a longitude in degrees."""
        return self.target_names == ("latitude", "longitude")

    def take(self, rows: np.ndarray) -> "EntityTable":
        """The table of these rows ([M] int or [N] bool), with the same notes."""
        rows = np.arange(len(self))[rows]
        return replace(
            self,
            texts=tuple(self.texts[row] for row in rows),
            targets=self.targets[rows],
            is_test=self.is_test[rows],
            groups={column: values[rows] for column, values in self.groups.items()},
        )


def make_table(
    frame: pd.DataFrame,
    name: str,
    *,
    text: str | None = None,
    target: Sequence[str] = (),
    split: str | None = None,
    group: Sequence[str] = (),
    attribution: str = "",
    seed: int = 0,
    test_fraction: float = 0.2,
    limit: int | None = None,
    divide: Callable[[EntityTable], EntityTable] | None = None,
    labels: bool | None = None,
) -> EntityTable:
    """The entity table that a data frame holds.

    Args:
      frame: N rows, of strings or of whatever reads as the text, number or date that is wanted.
      name: what results call the table.
      text: a column, or a template over columns such as ``"{creator}'s {title}"``; None takes a column that is
        plainly the name.
      target: columns of numbers or dates (ISO 8601 such as 1986-07-02), or one of class labels; () takes a latitude
        and longitude, or the only numbers or dates there.
      split: a column of "train" and "test", or of booleans with "test" in its name; None takes ``is_test`` or ``split``
        where there, and else draws a seeded split.
      group: columns to colour by and to hold out.
      attribution: what the data's licence asks to be shown.
      seed, test_fraction: of the seeded split.
      limit: a random sample (same seed) of so many rows, with both sides of the split in their share.
      divide: splits the whole table (which may cost it some rows), in place of a column.
      labels: whether the target is a class label and not a number; None takes labels where no value is a number or a
        date, and where all are 0 or 1. Rows of a class with fewer than two training rows are left out.
    Raises:
      InputError: every problem that was found, at once.
    """
    if len(frame) < 2:
        raise InputError(f"Table {name} has {len(frame)} rows; a probe needs some to be fitted on and others to test.")
    problems: list[str] = []
    notes: list[str] = []

    def attempt(read, *arguments):
        try:
            return read(*arguments)
        except InputError as error:
            problems.extend(error.problems)

    text = text or attempt(_find_text, frame, notes)
    split = split if split or divide else _find_split(frame, notes)
    target = target or attempt(_find_target, frame, {text, split, *group}, notes) or ()
    texts = attempt(columns.text_values, frame, text) if text else None
    is_test = (
        attempt(columns.split_values, frame, split)
        if split
        else attempt(seeded_split, len(frame), test_fraction, seed, None if divide else notes)
    )
    target = attempt(_order_target, target) or ()
    label = attempt(_find_label, frame, target, labels) or ""
    values = [] if label else [attempt(columns.target_values, frame, column) for column in target]
    attempt(columns.require_columns, frame, group)
    attempt(_refuse_own_names, target, group)
    if problems:
        raise InputError(*problems)
    notes.extend(read.note for read in values if read.note)
    if label:
        classes, targets = one_hot(columns.strings(frame[label]))
        units = ("",) * len(classes)
    else:
        classes = tuple(columns.COORDINATES.get(column.lower(), column) for column in target)
        targets = np.stack([read.values for read in values], axis=1)
        units = tuple(read.unit for read in values)

    table = EntityTable(
        name=name,
        texts=tuple(texts),
        targets=targets,
        target_names=classes,
        units=units,
        is_test=is_test,
        groups={column: np.array(columns.strings(frame[column]), object) for column in group},
        label=label,
        attribution=attribution,
    )
    if limit is not None and limit < len(table):
        notes.append(f"A random {limit:,} of {len(table):,} rows (seed {seed}).")
        table = sample_rows(table, limit, seed)
    if divide is not None:
        table = divide(table)
        notes.extend(table.notes)
    if label:
        table = keep_classes(table, notes)
    _require_variation(table)
    return replace(table, notes=(*notes, *_notes_on_names(table)))


def one_hot(labels: Sequence[str]) -> tuple[tuple[str, ...], np.ndarray]:
    """(classes, targets [N, K]): the labels in sorted order, and 1 for each row's own."""
    classes, code = np.unique(np.asarray(labels).astype(str), return_inverse=True)
    return tuple(map(str, classes)), np.eye(len(classes))[code]


def keep_classes(table: EntityTable, notes: list[str]) -> EntityTable:
    """A table of labels without the classes that have fewer than two training rows; a note tells of them.

    Raises:
      InputError: fewer than two classes are left.
    """
    rows = table.targets[~table.is_test].sum(axis=0)
    kept = rows >= 2
    if kept.sum() < 2:
        named = ", ".join(
            f"{name!r} {int(count)}" for name, count in list(zip(table.target_names, rows, strict=True))[:5]
        )
        raise InputError(
            f"Target {table.label!r} has {int(kept.sum())} classes with two training rows or more; wanted two classes "
            f"(training rows: {named}). Choose a coarser label, or more rows."
        )
    if kept.all():
        return table
    names = [name for name, keep in zip(table.target_names, kept, strict=True) if not keep]
    inside = table.targets[:, kept].sum(axis=1) > 0
    notes.append(
        f"Classes of {table.label!r} with fewer than two training rows: {len(names):,} ({', '.join(names[:5])}"
        f"{', ...' if len(names) > 5 else ''}); their {int((~inside).sum()):,} rows are left out."
    )
    table = replace(
        table,
        targets=table.targets[:, kept],
        target_names=tuple(name for name in table.target_names if name not in set(names)),
        units=("",) * int(kept.sum()),
    ).take(inside)
    if not table.is_test.any():
        raise InputError(f"No test row has a class of {table.label!r} that training rows have. Name another split.")
    return table


def _find_label(frame: pd.DataFrame, target: Sequence[str], labels: bool | None) -> str:
    """The target's column where it holds class labels; "" where it holds numbers or dates.

    Raises:
      InputError: labels are asked for with more than one target, a row has none, or nearly every row has its own.
    """
    if len(target) != 1:
        if labels:
            raise InputError(f"Labels are one target; {len(target)} are named. Name one column with --target.")
        return ""
    columns.require_columns(frame, target)
    words = [word.strip() for word in columns.strings(frame[target[0]])]
    if labels is None:
        labels = columns.are_labels(words)
    if not labels:
        return ""
    if empty := [row for row, word in enumerate(words) if not word]:
        raise InputError(
            f"Target {target[0]!r} is missing in {columns.in_rows(empty)}. Fill it in, or leave these rows out."
        )
    if len(set(words)) > len(words) / 2:
        raise InputError(
            f"Target {target[0]!r} has {len(set(words)):,} different labels in {len(words):,} rows; a class needs "
            f"several rows. {columns.WHAT_A_TARGET_IS}"
        )
    return target[0]


def _find_text(frame: pd.DataFrame, notes: list[str]) -> str:
    for wanted in TEXT_COLUMNS:
        for column in frame.columns:
            if column.lower() == wanted:
                notes.append(f"The text is column {column!r}.")
                return column
    raise InputError(f"Which column is the text? Name it with --text; the columns here: {', '.join(frame.columns)}.")


def _find_split(frame: pd.DataFrame, notes: list[str]) -> str | None:
    for column in SPLIT_COLUMNS:
        if column in frame.columns:
            notes.append(f"The split is column {column!r}.")
            return column
    return None


def _find_target(frame: pd.DataFrame, taken: set[str | None], notes: list[str]) -> tuple[str, ...]:
    """A latitude and longitude, or the only column of numbers or dates."""
    coordinates = [column for column in frame.columns if column.lower() in columns.COORDINATES]
    if sorted(columns.COORDINATES[column.lower()] for column in coordinates) == ["latitude", "longitude"]:
        notes.append(f"The targets are columns {coordinates[0]!r} and {coordinates[1]!r}, in degrees.")
        return tuple(coordinates)
    numeric = []
    for column in frame.columns:
        if column not in taken:
            try:
                columns.target_values(frame, column)
                numeric.append(column)
            except InputError:
                pass
    if len(numeric) == 1:
        notes.append(f"The target is column {numeric[0]!r}, the only one of numbers or dates.")
        return (numeric[0],)
    if numeric:
        found = f"Columns of numbers or dates: {', '.join(numeric)}."
    else:
        nearest = columns.nearest_to_a_target(frame, taken)
        found = f"No column is all numbers or dates. {nearest}".rstrip()
    raise InputError(f"Which column is the target? Name it with --target. {found}")


def _order_target(target: Sequence[str]) -> tuple[str, ...]:
    """The columns with latitude and longitude first, in that order, where both are there."""
    names = [columns.COORDINATES.get(column.lower(), column) for column in target]
    if len(set(names)) < len(names):
        raise InputError(f"Targets {', '.join(target)} name the same thing twice. Give each once.")
    if {"latitude", "longitude"} <= set(names):
        order = {"latitude": 0, "longitude": 1}
        target = sorted(target, key=lambda column: order.get(columns.COORDINATES.get(column.lower(), ""), 2))
    return tuple(target)


def _refuse_own_names(target: Sequence[str], group: Sequence[str]) -> None:
    """Names that a run's scores keep for their own rows would stand twice there."""
    taken = {"target": (target, ("mean", "place")), "group": (group, ("rows", "permutations"))}
    problems = [
        f"A {kind} cannot be called {column!r}, which the scores of a run call something else. Rename the column."
        for kind, (named, own) in taken.items()
        for column in named
        if column in own
    ]
    if problems:
        raise InputError(*problems)


def _require_variation(table: EntityTable) -> None:
    if table.label:  # a class more than one of which each has rows
        return
    train = table.targets[~table.is_test]
    problems = []
    for name, value, spread in zip(table.target_names, train[0], np.ptp(train, axis=0), strict=True):
        if spread == 0:
            problems.append(
                f"Target {name!r} is {value:g} in all {len(train):,} training rows. Choose a target that varies."
            )
        elif spread < 1 / columns.LARGEST_NUMBER:
            problems.append(f"Target {name!r} varies by no more than {spread:g}. Give it in a smaller unit.")
    if problems:
        raise InputError(*problems)


def _notes_on_names(table: EntityTable) -> list[str]:
    """Duplicate names are counted, never refused: real tables have them."""
    notes = [f"{len(table):,} rows: {(~table.is_test).sum():,} to fit on, {table.is_test.sum():,} to test on."]
    if table.is_test.sum() < FEWEST_TESTED:
        notes.append(
            f"Warning: only {table.is_test.sum():,} rows to test on: one of them can decide a score. Take more rows."
        )
    counts = Counter(table.texts)
    if repeated := sum(1 for count in counts.values() if count > 1):
        notes.append(
            f"Names that occur more than once: {repeated:,}, in "
            f"{sum(count for count in counts.values() if count > 1):,} rows."
        )
    trained = {text for text, test in zip(table.texts, table.is_test, strict=True) if not test}
    leaked = sum(test and text in trained for text, test in zip(table.texts, table.is_test, strict=True))
    if leaked:
        notes.append(f"Warning: test rows whose name a training row has too: {leaked:,}.")
    return notes


def seeded_split(rows: int, test_fraction: float, seed: int, notes: list[str] | None = None) -> np.ndarray:
    """[rows] bool, True for a test row: a random share, with at least one row on either side."""
    if not 0 < test_fraction < 1:
        raise InputError(f"The test fraction is {test_fraction}; it must lie between 0 and 1.")
    count = min(max(round(rows * test_fraction), 1), rows - 1)
    is_test = np.zeros(rows, bool)
    is_test[np.random.default_rng(seed).permutation(rows)[:count]] = True
    if notes is not None:
        notes.append(f"No split column: a random {test_fraction:.0%} of the rows is for testing (seed {seed}).")
    return is_test


def sample_rows(table: EntityTable, limit: int, seed: int) -> EntityTable:
    """So many random rows in the table's order, with both sides of the split in their share."""
    if limit < 2:
        raise InputError(f"A limit of {limit} rows leaves none to fit on or none to test. Give at least 2.")
    count = min(max(round(limit * table.is_test.mean()), 1), limit - 1)
    rng = np.random.default_rng(seed)
    test, train = np.flatnonzero(table.is_test), np.flatnonzero(~table.is_test)
    return table.take(np.sort(np.concatenate([rng.permutation(test)[:count], rng.permutation(train)[: limit - count]])))
