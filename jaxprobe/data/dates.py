"""Dates of a column as fractional years: ISO 8601, and other ways of writing them that have one reading."""

import calendar
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import NamedTuple

import numpy as np

EXAMPLE = "1986-07-02"  # of ISO 8601, for messages
# What has one reading; the first of each is how the user is told of it.
PLAIN = (
    ("year/month/day", "%Y/%m/%d"),
    ("year.month.day", "%Y.%m.%d"),
    ("year-month-day", "%Y-%m-%d"),  # without zeros, which ISO wants
    ("day.month.year", "%d.%m.%Y"),
    ("day month year", "%d %B %Y"),
    ("day month year", "%d %b %Y"),
    ("day-month-year", "%d-%b-%Y"),
    ("month day, year", "%B %d, %Y"),
    ("month day, year", "%b %d, %Y"),
)
# What has two, until some day of the column is larger than 12.
EITHER = (
    (("day/month/year", "%d/%m/%Y"), ("month/day/year", "%m/%d/%Y")),
    (("day-month-year", "%d-%m-%Y"), ("month-day-year", "%m-%d-%Y")),
)
_LOOKED_AT = 5  # values of which one must fit a way of writing, for it to be tried on all
_COMPACT = re.compile(r"[12]\d{3}(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])")


class Dates(NamedTuple):
    """N values as dates.

    Attributes:
      years: [N] float64, e.g. 1986.5 for noon of 2 July 1986; NaN for what is no date.
      written: how they are written, in words; "" for ISO 8601.
      ambiguous: whether they might as well be read with day and month exchanged.
    """

    years: np.ndarray
    written: str
    ambiguous: bool


def read_dates(words: Sequence[str]) -> Dates:
    """The values as dates, all written in the one way that reads the most of them; ISO 8601 first."""
    words = [word.strip() for word in words]
    best = Dates(_read(words, datetime.fromisoformat), "", False)
    filled = [word for word in words if word]
    if len(filled) == np.isfinite(best.years).sum():
        return best
    first = filled[:_LOOKED_AT]
    for written, how in PLAIN:
        best = _better(best, Dates(_read(words, how, first), written, False))
    for (by_day, day_first), (by_month, month_first) in EITHER:
        days, months = _read(words, day_first, first), _read(words, month_first, first)
        same = np.isfinite(days).sum() == np.isfinite(months).sum()
        best = _better(best, Dates(days, by_day, bool(same and np.nansum(np.abs(days - months)) > 0)))
        best = _better(best, Dates(months, by_month, False))
    return best


def are_compact(words: Sequence[str]) -> bool:
    """Whether all values are dates without separators, 19860702: of numbers drawn at random one in 30 looks so."""
    filled = [word for word in map(str.strip, words) if word]
    return len(filled) > 1 and all(map(_COMPACT.fullmatch, filled)) and bool(np.isfinite(_read(filled, "%Y%m%d")).all())


def _better(best: Dates, other: Dates) -> Dates:
    return other if np.isfinite(other.years).sum() > np.isfinite(best.years).sum() else best


def _read(words: Sequence[str], how, first: Sequence[str] = ()) -> np.ndarray:
    """[N] years; NaN for what is not written as ``how`` says, and for all where none of the ``first`` is."""
    if isinstance(how, str):
        form = how
        how = lambda word: datetime.strptime(word, form)
    if first and not np.isfinite(_read(first, how)).any():
        return np.full(len(words), np.nan)
    return np.array([_fractional_year(word, how) for word in words], np.float64)


def _fractional_year(word: str, how) -> float:
    try:
        moment = how(word)
        if moment.tzinfo is not None:
            moment = moment.astimezone(UTC).replace(tzinfo=None)
    except (ValueError, OverflowError):  # the latter: an hour before the year 1, or after 9999
        return np.nan
    seconds = (moment - datetime(moment.year, 1, 1)).total_seconds()
    return moment.year + seconds / (86_400 * (365 + calendar.isleap(moment.year)))
