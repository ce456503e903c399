"""Reading a file and its columns: text, targets, split and groups, each checked.

A CSV is read as strings throughout, so that a place called "NA", a zip code "02134" and a number out of range are all
seen as they were written. Rows are counted from 0, after the header.
"""

import functools
import re
import string
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from jaxprobe.data import dates
from jaxprobe.errors import InputError
from jaxprobe.host.paths import AnyPath, local_copy, replacing

EXAMPLES = 3
# How a column of degrees may be called, and what it is.
COORDINATES = {"latitude": "latitude", "lat": "latitude"} | dict.fromkeys(
    ("longitude", "long", "lng", "lon"), "longitude"
)
LARGEST_DEGREES = {"latitude": 90, "longitude": 180}
LARGEST_NUMBER = 1e30  # a target's square must fit into what probes and figures are made of


def read_frame(path: AnyPath) -> pd.DataFrame:
    """The file's table: strings for a CSV (compressed or not), the file's own types for Parquet.

    Spaces around the columns' names are dropped.

    Raises:
      InputError: no such file, another kind of file, one that can't be read as its name says, or columns of one name.
    """
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if not path.is_file():
        raise InputError(f"{path} is not a file. Give a CSV or Parquet file.")
    if suffixes[-1:] != [".parquet"] and ".csv" not in suffixes:
        raise InputError(f"{path} is neither .csv nor .parquet. Convert it to one of them.")
    try:
        with local_copy(path) as copy:
            frame = pd.read_parquet(copy) if suffixes[-1] == ".parquet" else _read_csv(copy, path)
    except InputError:
        raise
    # pandas, pyarrow and the decompressors raise all kinds for a damaged file; their text is what helps.
    except Exception as error:
        raise InputError(f"{path} can't be read: {error}. Check that it is whole, and a CSV in UTF-8.") from error
    return named_once(frame, str(path))


def named_once(frame: pd.DataFrame, source: str) -> pd.DataFrame:
    """The frame with its columns' names as text, spaces around them dropped. Raises InputError where two are equal."""
    names = [str(name).strip() for name in frame.columns]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(
            f"{source} has more than one column {', '.join(map(repr, twice))}. Rename or drop all but one."
        )
    return frame.set_axis(names, axis=1)


def write_frame(frame: pd.DataFrame, path: AnyPath) -> None:
    """Writes a table as CSV or Parquet, whichever the path's name says; the file is whole or absent.

    Raises:
      InputError: a name that says neither.
    """
    writers = {".csv": pd.DataFrame.to_csv, ".parquet": pd.DataFrame.to_parquet}
    if path.suffix.lower() not in writers:
        raise InputError(f"{path} is neither .csv nor .parquet. End the name in one of them.")
    with replacing(path) as temporary:
        writers[path.suffix.lower()](frame, temporary, index=False)


def _read_csv(file: Path, path: AnyPath) -> pd.DataFrame:
    """The table of ``file``, which errors call ``path``."""
    with warnings.catch_warnings():
        # A row with more fields than the header would lose its last ones.
        warnings.simplefilter("error", pd.errors.ParserWarning)
        read = functools.partial(
            pd.read_csv, file, dtype=str, keep_default_na=False, index_col=False, encoding="utf-8-sig"
        )
        # Not as a header, whose repeated names pandas would number.
        header = read(nrows=1, header=None).iloc[0].tolist()
        if len(header) == 1 and (found := [mark for mark in ";\t|" if mark in header[0]]):
            raise InputError(
                f"{path} has one column, {shorten(header[0])!r}: its separator seems to be {found[0]!r}. Save it with "
                "commas."
            )
        if header[0].startswith("#") and len(header) != len(read(nrows=1, header=None, skiprows=1).columns):
            raise InputError(
                f"{path} begins with a comment ({shorten(', '.join(header))!r}). Remove it, so that the first line "
                "names the columns."
            )
        frame = read()
        # An unnamed one stays as pandas calls it, "Unnamed: 0".
        return frame.set_axis([name or made for name, made in zip(header, frame.columns, strict=True)], axis=1)


def require_columns(frame: pd.DataFrame, columns: Sequence[str]) -> None:
    """Raises InputError where the table lacks one of the columns."""
    missing = [column for column in columns if column not in frame.columns]
    if missing:
        raise InputError(f"No column {', '.join(map(repr, missing))}. The columns here: {', '.join(frame.columns)}.")


def strings(column: pd.Series) -> list[str]:
    """A column's values as text; a missing one is ""."""
    return [str(value) for value in column.astype(object).where(column.notna(), "")]


def text_values(frame: pd.DataFrame, text: str) -> list[str]:
    """The names: a column, or a template over columns such as ``"{creator}'s {title}"``.

    Raises:
      InputError: a column that is not there; rows without text.
    """
    if text in frame.columns or "{" not in text:
        require_columns(frame, [text])
        values = strings(frame[text])
    else:
        values = _fill_template(frame, text)
    empty = [row for row, value in enumerate(values) if not value.strip()]
    if empty:
        raise InputError(f"Text {text!r} is empty or missing in {in_rows(empty)}. Fill it in, or leave these rows out.")
    return values


def _fill_template(frame: pd.DataFrame, template: str) -> list[str]:
    try:
        parsed = list(string.Formatter().parse(template))
    except ValueError as error:
        raise InputError(f"Text template {template!r}: {error}. Write columns in braces: {{name}}.") from None
    for _, column, form, conversion in parsed:
        if form or conversion:
            raise InputError(
                f"Text template {template!r} wants column {column!r} in another form. Write columns in braces and "
                f"nothing else: {{{column}}}."
            )
    pieces = [(before, column) for before, column, _, _ in parsed]
    require_columns(frame, [column for _, column in pieces if column is not None])
    parts: list[Sequence[str]] = []
    for before, column in pieces:
        parts.append([before] * len(frame))
        if column is not None:
            parts.append(strings(frame[column]))
    return ["".join(row).strip() for row in zip(*parts, strict=True)]


class Target(NamedTuple):
    """A column to predict.

    Attributes:
      values: [N] float64.
      unit: "degree" of latitude or longitude, "year" (a date becomes a fractional one), or "".
      note: how the column was read, where that is not plain; else "".
    """

    values: np.ndarray
    unit: str
    note: str = ""


def target_values(frame: pd.DataFrame, column: str) -> Target:
    """A column's numbers, or its dates as fractional years.

    Raises:
      InputError: values that are missing, neither number nor date, infinite or very large, or degrees out of range.
    """
    require_columns(frame, [column])
    words = strings(frame[column])
    missing = np.array([not word.strip() for word in words], bool)
    values, kind, note = _numbers(words), "number", ""
    unit = "year" if column.lower().endswith("year") else ""
    if np.isnan(values[~missing]).any():
        found = dates.read_dates(words)
        if np.isfinite(found.years).sum() > (~np.isnan(values)).sum():
            if found.ambiguous:
                rows = np.flatnonzero(np.isfinite(found.years))
                raise InputError(
                    f"Target {column!r} has dates of which day and month can't be told apart in "
                    f"{in_rows(rows, words)}. Write them as ISO 8601 does: {dates.EXAMPLE}."
                )
            values, kind, unit = found.years, "date", "year"
            note = f"Column {column!r} holds dates, read as {found.written}." if found.written else ""
    elif dates.are_compact(words):
        values, kind, unit = dates.read_dates(words).years, "date", "year"
        note = f"Column {column!r} holds dates such as {words[0].strip()}, not numbers: read as years, months and days."
    wrong = {
        "is missing": missing,
        f"is not a {kind}": np.isnan(values) & ~missing,
        "is infinite": np.isinf(values),
        f"is beyond {LARGEST_NUMBER:g}": np.isfinite(values) & (np.abs(values) > LARGEST_NUMBER),
    }
    if column.lower() in COORDINATES:
        unit = "degree"
        largest = LARGEST_DEGREES[COORDINATES[column.lower()]]
        wrong[f"is outside of -{largest}..{largest} degrees"] = np.isfinite(values) & (np.abs(values) > largest)
    problems = [
        f"Target {column!r} {what} in {in_rows(np.flatnonzero(rows), words)}. "
        + _remedy(kind, [words[row].strip() for row in np.flatnonzero(rows & np.isnan(values) & ~missing)], len(words))
        for what, rows in wrong.items()
        if rows.any()
    ]
    if problems:
        raise InputError(*problems)
    return Target(values, unit, note)


def _remedy(kind: str, unread: Sequence[str], rows: int) -> str:
    """What to do about a target's values, of which these are neither number nor date."""
    if not unread:
        return "Correct these rows, or leave them out."
    if kind == "date":
        return f"Write all of them as ISO 8601 does: {dates.EXAMPLE}."
    if all(word.lower() in ("true", "false", "yes", "no") for word in unread):
        return "Write 1 and 0 to predict it as a number."
    example = next(filter(_LIKE_A_NUMBER.fullmatch, unread), None)
    if example is not None:
        return f"Write {example!r} with digits and a point only."
    if len(unread) == rows:
        return WHAT_A_TARGET_IS
    return f"Correct these rows, or leave them out. (Dates are read as ISO 8601 writes them: {dates.EXAMPLE}.)"


WHAT_A_TARGET_IS = (
    f"A target is numbers, dates as ISO 8601 writes them ({dates.EXAMPLE}), or labels that several rows share."
)


def are_labels(words: Sequence[str]) -> bool:
    """Whether a column holds class labels: no value is near a number or a date, or all of them are 0 or 1."""
    given = [word for word in words if word]
    if set(given) == {"0", "1"}:
        return True
    read = np.isfinite(_numbers(given)) | np.isfinite(dates.read_dates(given).years)
    return not read.any() and not any(map(_LIKE_A_NUMBER.fullmatch, given))


# 1,000 or 59,9 or 5% or $3 or 12 km: a number to people.
_LIKE_A_NUMBER = re.compile(r"[^\w\s]?\s?[-+]?\d[\d,.'’\s]*\s?([^\w\s]|\w{1,3})?")


def nearest_to_a_target(frame: pd.DataFrame, taken: Sequence[str | None]) -> str:
    """What keeps the column from being a target that comes nearest to one; "" where none has numbers or dates."""
    shares: dict[str, float] = {}
    for column in frame.columns:
        if column not in taken:
            words = [word for word in map(str.strip, strings(frame[column])) if word]
            read = np.isfinite(_numbers(words)) | np.isfinite(dates.read_dates(words).years)
            like = [bool(number or _LIKE_A_NUMBER.fullmatch(word)) for number, word in zip(read, words, strict=True)]
            shares[column] = float(np.mean(like)) if like else 0.0
    best = max(shares, key=lambda column: shares[column], default=None)
    if best is None or shares[best] < 0.5:
        return ""
    try:
        target_values(frame, best)
    except InputError as error:
        return str(error)
    return ""


def _numbers(words: Sequence[str]) -> np.ndarray:
    """[N] float64; NaN for what is no number."""
    return pd.to_numeric(pd.Series(words, dtype=object), errors="coerce").to_numpy(np.float64)


def split_values(frame: pd.DataFrame, column: str) -> np.ndarray:
    """[N] bool, True for a test row: from booleans in a column with "test" in its name, or from "train" and "test".

    Raises:
      InputError: other values; no test row or no training row.
    """
    require_columns(frame, [column])
    words = [word.strip().lower() for word in strings(frame[column])]
    test, train = {"test"}, {"train"}
    if "test" in column.lower():  # true means something else in a column called is_train
        test, train = test | {"true", "1"}, train | {"false", "0"}
    unknown = [row for row, word in enumerate(words) if word not in test | train]
    if unknown:
        validation = [word for word in words if word.startswith(("val", "dev"))]
        more = (
            " Rows for validation are training rows here: penalties are chosen by leave-one-out." if validation else ""
        )
        raise InputError(
            f"Split {column!r} is neither train nor test in {in_rows(unknown, words)}. "
            f"Write train and test, or true and false in a column called is_test.{more}"
        )
    is_test = np.array([word in test for word in words], bool)
    for kind, count in (("test", is_test.sum()), ("training", (~is_test).sum())):
        if not count:
            raise InputError(f"Split {column!r} has no {kind} rows. Mark some, or name no split for a seeded one.")
    return is_test


def in_rows(rows: Sequence[int], words: Sequence[str] | None = None) -> str:
    """ "2 rows (row 3 'x', row 8 'y')": how many rows, and the first few with their values, for a message."""
    shown = [f"row {row}" + (f" {shorten(words[row])!r}" if words is not None else "") for row in rows[:EXAMPLES]]
    more = ", ..." if len(rows) > EXAMPLES else ""
    return f"{len(rows):,} row{'s' if len(rows) > 1 else ''} ({', '.join(shown)}{more})"


def shorten(word: str, width: int = 60) -> str:
    """The word, cut where it is longer."""
    return word if len(word) <= width else word[: width - 3] + "..."
