"""Columns of text, numbers, dates and splits; dates against pandas' own calendar."""

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxprobe.data.columns import in_rows, read_frame, split_values, strings, target_values, text_values
from jaxprobe.errors import InputError


def frame_of(**columns):
    return pd.DataFrame({name: pd.Series(values, dtype=object) for name, values in columns.items()})


def test_a_csv_is_read_as_it_is_written(tmp_path: Path):
    path = tmp_path / "t.csv"
    path.write_text('\ufeffname,zip,note\nNA,02134,\n"None, PA",1e3,nan\nnull,  7 ,"a ""b"""\n', encoding="utf-8")
    frame = read_frame(path)
    assert {column: strings(frame[column]) for column in frame} == {
        "name": ["NA", "None, PA", "null"],
        "zip": ["02134", "1e3", "  7 "],
        "note": ["", "nan", 'a "b"'],
    }


def test_parquet_and_compressed_csv(tmp_path: Path):
    frame = pd.DataFrame({"name": ["NA", None], "n": [1.5, np.inf], 7: pd.to_datetime(["1986-07-02 12:00", None])})
    frame.rename(columns=str).to_parquet(tmp_path / "t.parquet")
    read = read_frame(tmp_path / "t.parquet")
    assert list(read.columns) == ["name", "n", "7"]
    assert strings(read["name"]) == ["NA", ""] and strings(read["7"]) == ["1986-07-02 12:00:00", ""]
    pd.DataFrame({"name": ["NA"]}).to_csv(tmp_path / "t.csv.gz", index=False)
    assert strings(read_frame(tmp_path / "t.csv.gz")["name"]) == ["NA"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.csv", b"", "can't be read: No columns to parse"),
        ("latin.csv", "name\nMünchen\n".encode("latin-1"), "can't be read: 'utf-8' codec can't decode"),
        ("ragged.csv", b"a,b\n1,2\n3,4,5\n", "can't be read: .*Expected 2 fields in line 3, saw 3"),
        ("wide.csv", b"a,b\n1,2,3\n4,5,6\n", "can't be read: Length of header"),
        ("semicolon.csv", b"name;lat;lon\nOslo;59,9;10,7\n", "one column, 'name;lat;lon'.* Save it with commas"),
        ("quote.csv", b'a,b\n"1,2\n', "can't be read: .*EOF inside string"),
        ("cut.parquet", b"PAR1 and then nothing", "can't be read"),
        ("cut.csv.gz", b"\x1f\x8b\x08\x00", "can't be read"),
        ("table.xlsx", b"", "neither .csv nor .parquet"),
        ("folder.csv/x", None, "is not a file"),
    ],
)
def test_files_that_cannot_be_read(tmp_path: Path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message) as raised:
        read_frame(tmp_path / name)
    assert str(tmp_path / name) in str(raised.value)


def test_text_templates():
    frame = frame_of(creator=["Stephen King", ""], title=["It", "Untitled"])
    assert text_values(frame, "title") == ["It", "Untitled"]
    assert text_values(frame, "{creator}'s {title}") == ["Stephen King's It", "'s Untitled"]
    assert text_values(frame, "{creator} {title}") == ["Stephen King It", "Untitled"]
    assert text_values(frame, "{{{title}}}") == ["{It}", "{Untitled}"]
    assert text_values(frame_of(**{"{odd}": ["a"]}), "{odd}") == ["a"]
    with pytest.raises(InputError, match=r"No column 'maker', 'year'\. The columns here: creator, title\."):
        text_values(frame, "{maker} {title} {year}")
    with pytest.raises(InputError, match="Write columns in braces"):
        text_values(frame, "{title")
    with pytest.raises(InputError, match="No column ''"):
        text_values(frame, "The {}")


def test_empty_text_says_which_rows():
    frame = frame_of(name=["a", "", " ", None, float("nan"), "b", "NA", "nan"])
    with pytest.raises(InputError, match=r"empty or missing in 4 rows \(row 1, row 2, row 3, \.\.\.\)"):
        text_values(frame, "name")
    assert text_values(frame_of(name=["NA", "None", "null", "nan"]), "name") == ["NA", "None", "null", "nan"]


# A fractional year near 2000 has a float64 spacing of 2e-13 years; a few roundings stay under 1e-11 (0.3 ms).
YEAR_TOLERANCE = 1e-11


@given(st.datetimes(datetime(1, 1, 1), datetime(9999, 12, 31)))
def test_fractional_years_equal_the_calendar(moment):
    values, unit, note = target_values(frame_of(when=[moment.isoformat()]), "when")
    timestamp = np.datetime64(moment, "us")
    start = np.datetime64(f"{moment.year:04d}-01-01", "us")
    end = np.datetime64(f"{moment.year:04d}-12-31T23:59:59.999999", "us") + 1
    assert unit == "year" and not note
    assert values[0] == pytest.approx(moment.year + (timestamp - start) / (end - start), abs=YEAR_TOLERANCE)


def test_dates_numbers_and_units():
    assert target_values(frame_of(d=["1986-07-02T12:00", "2000-01-01", "1999-12-31"]), "d")[0].tolist() == [
        1986.5,
        2000.0,
        1999 + 364 / 365,
    ]
    utc = target_values(frame_of(d=["1986-07-02T14:00+02:00", "1986-07-02T12:00:00Z", "1986-07-02 12:00:00+0000"]), "d")
    assert utc[0].tolist() == [1986.5] * 3
    assert (
        target_values(frame_of(d=[datetime(1986, 7, 2, 12, tzinfo=UTC), pd.Timestamp(1986, 7, 2, 12)]), "d")[0].tolist()
        == [1986.5] * 2
    )
    assert target_values(frame_of(death_year=["-44", "14"]), "death_year")[1] == "year"
    assert target_values(frame_of(population=["1e3", " 2 "]), "population")[1] == ""
    assert target_values(frame_of(Lat=["90", "-90"]), "Lat")[1] == "degree"


@given(st.lists(st.floats(-1e30, 1e30), min_size=1))
def test_numbers_are_read_exactly(numbers):
    assert target_values(frame_of(x=list(map(repr, numbers))), "x").values.tolist() == numbers
    assert target_values(pd.DataFrame({"x": numbers}), "x")[0].tolist() == numbers


def test_every_problem_of_a_target_is_said_at_once():
    with pytest.raises(InputError) as raised:
        target_values(frame_of(lat=["1", "", "north", "inf", "-90.5", "1_0", None]), "lat")
    assert [problem.split("). ")[0] + ")." for problem in raised.value.problems] == [
        "Target 'lat' is missing in 2 rows (row 1 '', row 6 '').",
        "Target 'lat' is not a number in 2 rows (row 2 'north', row 5 '1_0').",
        "Target 'lat' is infinite in 1 row (row 3 'inf').",
        "Target 'lat' is outside of -90..90 degrees in 1 row (row 4 '-90.5').",
    ]
    with pytest.raises(InputError, match=r"outside of -180\.\.180 degrees in 1 row \(row 1 '181'\)"):
        target_values(frame_of(lng=["180", "181"]), "lng")
    with pytest.raises(InputError, match=r"is not a date in 2 rows \(row 2 '1986', row 3 '1986-02-30'\)"):
        target_values(frame_of(d=["1986-01-01", "1987-01-01", "1986", "1986-02-30"]), "d")
    with pytest.raises(InputError, match="No column 'year'"):
        target_values(frame_of(d=["1"]), "year")


def test_splits():
    assert split_values(frame_of(is_test=["True", "false", "1", "0"]), "is_test").tolist() == [True, False, True, False]
    assert split_values(pd.DataFrame({"is_test": [True, False]}), "is_test").tolist() == [True, False]
    assert split_values(frame_of(part=["Train", " test "]), "part").tolist() == [False, True]
    with pytest.raises(InputError, match=r"neither train nor test in 1 row \(row 1 'validation'\)"):
        split_values(frame_of(part=["train", "validation", "test"]), "part")
    # Read as "is a test row", the split would be upside down without a word.
    with pytest.raises(InputError, match="neither train nor test in 2 rows"):
        split_values(frame_of(is_train=["True", "False"]), "is_train")
    with pytest.raises(InputError, match="has no test rows"):
        split_values(frame_of(is_test=["False"] * 3), "is_test")
    with pytest.raises(InputError, match="has no training rows"):
        split_values(frame_of(is_test=["True"] * 3), "is_test")


def test_rows_in_words():
    assert in_rows([3]) == "1 row (row 3)"
    assert in_rows([0], ["long " * 20]) == f"1 row (row 0 '{('long ' * 20)[:57]}...')"
    assert in_rows([0, 1, 2, 3], "abcd") == "4 rows (row 0 'a', row 1 'b', row 2 'c', ...)"
