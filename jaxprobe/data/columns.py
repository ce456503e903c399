"""Reading a file and its columns: text, targets, split and groups, each checked.

A CSV is read as strings throughout, so that a place called "NA", a zip code "02134" and a number out of range are all
seen as they were written. Rows are counted from 0, after the header.
"""

import calendar
import functools
import string
import warnings
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd

from jaxprobe.errors import InputError
from jaxprobe.host.paths import AnyPath, local_copy

EXAMPLES = 3
# How a column of degrees may be called, and what it is.
COORDINATES = {"latitude": "latitude", "lat": "latitude"} | dict.fromkeys(
    ("longitude", "long", "lng", "lon"), "longitude"
)
LARGEST_DEGREES = {"latitude": 90, "longitude": 180}


def read_frame(path: AnyPath) -> pd.DataFrame:
    """The file's table: strings for a CSV (compressed or not), the file's own types for Parquet.

    Raises:
      InputError: no such file, another kind of file, or one that can't be read as its name says.
    """
    if not path.is_file():
        raise InputError(f"{path} is not a file. Give a CSV or Parquet file.")
    if path.suffix != ".parquet" and ".csv" not in path.suffixes:
        raise InputError(f"{path} is neither .csv nor .parquet. Convert it to one of them.")
    try:
        with local_copy(path) as copy:
            frame = pd.read_parquet(copy) if path.suffix == ".parquet" else _read_csv(copy, path)
    except InputError:
        raise
    # pandas, pyarrow and the decompressors raise all kinds for a damaged file; their text is what helps.
    except Exception as error:
        raise InputError(f"{path} can't be read: {error}. Check that it is whole, and a CSV in UTF-8.") from error
    return frame.set_axis(frame.columns.map(str), axis=1)


def _read_csv(file: Path, path: AnyPath) -> pd.DataFrame:
    """The table of ``file``, which errors call ``path``."""
    with warnings.catch_warnings():
        # A row with more fields than the header would lose its last ones.
        warnings.simplefilter("error", pd.errors.ParserWarning)
        read = functools.partial(
            pd.read_csv, file, dtype=str, keep_default_na=False, index_col=False, encoding="utf-8-sig"
        )
        header = list(read(nrows=0))
        if len(header) == 1 and (found := [mark for mark in ";\t|" if mark in header[0]]):
            raise InputError(
                f"{path} has one column, {shorten(header[0])!r}: its separator seems to be {found[0]!r}. Save it with "
                "commas."
            )
        return read()


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
        pieces = [(before, column) for before, column, _, _ in string.Formatter().parse(template)]
    except ValueError as error:
        raise InputError(f"Text template {template!r}: {error}. Write columns in braces: {{name}}.") from None
    require_columns(frame, [column for _, column in pieces if column is not None])
    parts: list[Sequence[str]] = []
    for before, column in pieces:
        parts.append([before] * len(frame))
        if column is not None:
            parts.append(strings(frame[column]))
    return ["".join(row).strip() for row in zip(*parts, strict=True)]


def target_values(frame: pd.DataFrame, column: str) -> tuple[np.ndarray, str]:
    """[N] float64 and its unit: "degree" of latitude or longitude, "year" (a date becomes a fractional one), or "".

    Raises:
      InputError: values that are missing, neither number nor date, infinite, or degrees out of range.
    """
    require_columns(frame, [column])
    words = strings(frame[column])
    missing = np.array([not word.strip() for word in words], bool)
    values, kind = _numbers(words), "number"
    unit = "year" if column.lower().endswith("year") else ""
    if np.isnan(values[~missing]).any():
        years = _fractional_years(words)
        if np.isfinite(years).sum() > (~np.isnan(values)).sum():
            values, kind, unit = years, "date", "year"
    wrong = {
        "is missing": missing,
        f"is not a {kind}": np.isnan(values) & ~missing,
        "is infinite": np.isinf(values),
    }
    if column.lower() in COORDINATES:
        unit = "degree"
        largest = LARGEST_DEGREES[COORDINATES[column.lower()]]
        wrong[f"is outside of -{largest}..{largest} degrees"] = np.isfinite(values) & (np.abs(values) > largest)
    problems = [
        f"Target {column!r} {what} in {in_rows(np.flatnonzero(rows), words)}. Correct these rows, or leave them out."
        for what, rows in wrong.items()
        if rows.any()
    ]
    if problems:
        raise InputError(*problems)
    return values, unit


def _numbers(words: Sequence[str]) -> np.ndarray:
    """[N] float64; NaN for what is no number."""
    return pd.to_numeric(pd.Series(words, dtype=object), errors="coerce").to_numpy(np.float64)


def _fractional_years(words: Sequence[str]) -> np.ndarray:
    """[N] float64; NaN for what is no ISO 8601 date. The middle of 2 July 1986 is 1986.5."""
    return np.array([_fractional_year(word) for word in words], np.float64)


def _fractional_year(word: str) -> float:
    try:
        moment = datetime.fromisoformat(word.strip())
    except ValueError:
        return np.nan
    if moment.tzinfo is not None:
        moment = moment.astimezone(UTC).replace(tzinfo=None)
    seconds = (moment - datetime(moment.year, 1, 1)).total_seconds()
    return moment.year + seconds / (86_400 * (365 + calendar.isleap(moment.year)))


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
        raise InputError(
            f"Split {column!r} is neither train nor test in {in_rows(unknown, words)}. "
            "Write train and test, or true and false in a column called is_test."
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
