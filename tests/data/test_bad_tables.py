"""Tables that can't be used are refused with words that help; no bytes make anything but a table or a refusal."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jaxprobe.data.catalog import load_table
from jaxprobe.data.table import EntityTable
from jaxprobe.errors import InputError

ROWS = "".join(f"place {i},{i},{2 * i}\n" for i in range(10))


def column(*values, name="x"):
    """A CSV of names and one more column, which ends with these values."""
    cells = [*map(str, range(10)), *values]
    return f"name,{name}\n" + "".join(f'n{i},"{cell}"\n' for i, cell in enumerate(cells))


# what is written -> (the file's text, settings, words of the refusal)
BAD = {
    "nothing": ("", {}, "No columns to parse"),
    "a header only": ("name,x\n", {}, "has 0 rows"),
    "one row": ("name,x\na,1\n", {}, "has 1 rows"),
    "two columns of one name": ("name,x,x\n" + ROWS, {}, "more than one column 'x'. Rename or drop"),
    "two columns of one name but for a space": ("name,x, x\n" + ROWS, {}, "more than one column 'x'"),
    "a comment": ("# made by hand\nname,lat,lon\n" + ROWS, {}, "begins with a comment ('# made by hand'). Remove it"),
    "a comment with a comma": ("# made, by\nname,lat,lon\n" + ROWS, {}, "begins with a comment"),
    "semicolons": ("name;lat;lon\nOslo;59.9;10.7\n", {}, "its separator seems to be ';'"),
    "ragged": ("name,x\na,1\nb,2,3\n", {}, "Expected 2 fields in line 3, saw 3"),
    "another encoding": ("name,x\nK\udcf6ln,1\nb,2\n", {}, "can't decode byte 0xf6"),
    "no name of the text": ("place,x\na,1\nb,2\n", {}, "Which column is the text? Name it with --text"),
    "labels": (
        "name,country\na,France\nb,Spain\nc,Italy\n",
        {"target": ["country"]},
        "3 different labels in 3 rows; a class needs",
    ),
    "labels and no target": ("name,country\na,France\nb,Spain\n", {}, "No column is all numbers or dates"),
    "ISO is named": (
        "name,day\na,spring\nb,autumn\n",
        {"target": ["day"]},
        "dates as ISO 8601 writes them (1986-07-02)",
    ),
    "day or month": (
        "name,day\na,03/1/1900\nb,04/02/1901\n",
        {"target": ["day"]},
        "day and month can't be told apart in 2 rows (row 0 '03/1/1900', row 1 '04/02/1901'). "
        "Write them as ISO 8601 does: 1986-07-02.",
    ),
    "no day at all": (column("1986-02-30", name="day").replace('"', ""), {"target": ["day"]}, "row 10 '1986-02-30'"),
    "a day of two months": ("name,day\na,13/01/1900\nb,01/13/1900\n", {"target": ["day"]}, "is not a date in 1 row"),
    "a year among dates": ("name,day\na,1986-01-01\nb,1987-01-01\nc,1988\n", {}, "Name it with --target"),
    "true and false as a number": (
        "name,x\na,True\nb,False\n",
        {"target": ["x"], "labels": False},
        "Write 1 and 0 to predict it as a number.",
    ),
    "labels of which each has one row": (
        "name,x,split\na,u,train\nb,u,test\nc,v,train\nd,v,test\n",
        {"target": ["x"]},
        "'x' has 0 classes with two training rows or more; wanted two classes (training rows: 'u' 1, 'v' 1)",
    ),
    "a label missing": ("name,x\na,u\nb,\nc,v\nd,u\ne,v\n", {"target": ["x"]}, "is missing in 1 row (row 1)"),
    "two targets as labels": (
        "name,x,y\na,1,2\nb,3,4\n",
        {"target": ["x", "y"], "labels": True},
        "Labels are one target",
    ),
    "thousands": (column("1,000"), {"target": ["x"]}, "(row 10 '1,000'). Write '1,000' with digits and a point only"),
    "thousands and no target": (column("1,000"), {}, "not a number in 1 row (row 10 '1,000')"),
    "per cent": (column("5%"), {"target": ["x"]}, "Write '5%' with digits and a point only"),
    "per cent and no target": (column("5%"), {}, "not a number in 1 row (row 10 '5%')"),
    "money": (column("$3"), {"target": ["x"]}, "Write '$3' with digits and a point only"),
    "a number missing": (column(""), {"target": ["x"]}, "is missing in 1 row (row 10 '')"),
    "a number missing and no target": (column(""), {}, "is missing in 1 row (row 10 '')"),
    "a word among numbers": (column("north"), {"target": ["x"]}, "not a number in 1 row (row 10 'north'). Correct"),
    "infinite": (column("inf"), {"target": ["x"]}, "is infinite in 1 row"),
    "huge": (column("1e45"), {"target": ["x"]}, "is beyond 1e+30 in 1 row (row 10 '1e45')"),
    "hardly varies": ("name,x\na,0\nb,1e-300\nc,0\nd,1e-300\n" + "e,1e-300\n" * 6, {}, "varies by no more than 1e-300"),
    "does not vary": ("name,x\n" + "a,1\n" * 9, {}, "is 1 in all 7 training rows"),
    "latitude out of range": (column("91", name="lat"), {"target": ["lat"]}, "outside of -90..90 degrees in 1 row"),
    "a split with validation": (
        "name,x,split\na,1,train\nb,2,val\nc,3,test\n",
        {},
        "neither train nor test in 1 row (row 1 'val'). Write train and test, or true and false in a column called "
        "is_test. Rows for validation are training rows here",
    ),
    "a split without test rows": ("name,x,is_test\na,1,False\nb,2,False\n", {}, "has no test rows"),
    "a conversion": ("name,x\na,1\nb,2\n", {"text": "{name!r:>20}"}, "column 'name' in another form. Write columns in"),
    "a form": ("name,x\na,1\nb,2\n", {"text": "{name:>20}"}, "and nothing else: {name}."),
    "an open brace": ("name,x\na,1\nb,2\n", {"text": "{name"}, "Write columns in braces: {name}."),
    "no such column": ("name,x\na,1\nb,2\n", {"target": ["y"]}, "No column 'y'. The columns here: name, x."),
    "no such group": ("name,x\na,1\nb,2\n", {"group": ["z"]}, "No column 'z'"),
    "an empty name": ("name,x\na,1\n,2\nc,3\n", {}, "empty or missing in 1 row (row 1)"),
    "the same target twice": (
        "name,lat,latitude\na,1,2\nb,3,4\n",
        {"target": ["lat", "latitude"]},
        "the same thing twice",
    ),
    "blocks without a map": ("name,x\n" + ROWS.replace(",0\n", "\n"), {"split": "blocks"}, "Expected 2 fields"),
    "blocks of years": ("name,year\na,1\nb,2\n", {"split": "blocks"}, "spatial blocks need both"),
    "a limit of one": ("name,x\na,1\nb,2\nc,3\n", {"limit": 1}, "Give at least 2"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_table_is_refused(case, tmp_path: Path):
    text, options, words = BAD[case]
    path = tmp_path / "t.csv"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(InputError) as raised:
        load_table(str(path), **options)
    assert words in str(raised.value)


def test_what_has_one_reading_is_read_and_said(tmp_path: Path):
    def read(text, name="t.csv", **options):
        (tmp_path / name).write_text(text)
        return load_table(str(tmp_path / name), **options)

    places = read("name, latitude ,longitude\n" + ROWS, name="T.CSV")
    assert places.is_place and places.name == "T"
    middle = 1986 + 182 / 365  # 2 July, of any year that is not a leap year
    for first, written in {
        "02/07/1986": "day/month/year", "7/2/1986": "month/day/year", "2.7.1986": "day.month.year",
        "1986/07/02": "year/month/day", "1986-7-2": "year-month-day", "2 July 1986": "day month year",
        "Jul 2, 1986": "month day, year", "02-Jul-1986": "day-month-year",
    }.items():  # fmt: skip
        last = {"day/month/year": "31/12/1987", "month/day/year": "12/31/1987"}.get(written, first.replace("6", "7"))
        table = read(f'name,day\na,"{first}"\nb,"{last}"\nc,"{first}"\nd,"{last}"\n', target=["day"])
        assert table.targets[0, 0] == pytest.approx(middle) and table.units == ("year",)
        assert f"Column 'day' holds dates, read as {written}." in table.notes
    compact = read("name,day\na,19860702\nb,19870702\nc,19890702\n")
    assert compact.targets[:, 0] == pytest.approx([year + 182 / 365 for year in (1986, 1987, 1989)])
    assert "Column 'day' holds dates such as 19860702, not numbers" in "".join(compact.notes)
    numbers = read("name,day\na,19860702\nb,19871302\nc,19890702\n")  # no month 13
    assert numbers.targets[:, 0].tolist() == [19860702, 19871302, 19890702] and numbers.units == ("",)


CELLS = st.one_of(
    st.sampled_from(
        ["", " ", "NA", "nan", "inf", "-1", "1e400", "1e45", "1,000", "5%", "True", "test", "train", "val",
         "1986-07-02", "19860702", "03/01/1900", "#", '"', "'", "\n", "\r", "\x00", "\ufeff", "a,b", "90.5", "{name}",
         "🗺", "0x10", "1_0", "9" * 400, "0001-01-01T00:00+23:59", "٣"]
    ),
    st.text(max_size=4),
    st.integers().map(str),
    st.floats().map(repr),
)  # fmt: skip
HEADERS = st.sampled_from(
    ["name", "lat", "lon", "latitude", "is_test", "split", "year", "x", "", "#", " x", "text", "a,b"]
)
TABLES = st.lists(st.lists(CELLS, min_size=0, max_size=5), max_size=12)
OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "text": st.sampled_from(["name", "{name} {x}", "{", "{!r}", "{0}", "{name!r:>20}", "{}", "{{}}", "y"]),
        "target": st.lists(st.sampled_from(["x", "lat", "lon", "year", "y", ""]), max_size=3),
        "group": st.lists(st.sampled_from(["x", "name", "is_test", "y"]), max_size=2),
        "split": st.sampled_from(["split", "is_test", "blocks", "y"]),
        "limit": st.integers(-1, 5),
        "unit_vectors": st.booleans(),
    },
)


@pytest.mark.slow
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(HEADERS, max_size=5), TABLES, OPTIONS, st.sampled_from([",", ";", "\t"]), st.booleans())
def test_any_csv_is_a_table_or_refused(tmp_path, header, rows, options, separator, quoted):
    lines = [header, *rows]
    if quoted:
        lines = [['"' + cell.replace('"', '""') + '"' for cell in line] for line in lines]
    text = "\n".join(separator.join(line) for line in lines)
    _read_or_refused(tmp_path, text.encode("utf-8", "replace"), options)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=60) | st.binary(max_size=30).map(lambda tail: b"name,x\na,1\nb,2\n" + tail), OPTIONS)
def test_any_bytes_are_a_table_or_refused(tmp_path, content, options):
    _read_or_refused(tmp_path, content, options)


def _read_or_refused(tmp_path: Path, content: bytes, options: dict) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(content)
    try:
        table = load_table(str(path), **options)
    except InputError as error:
        assert all(problem.strip() for problem in error.problems)
        return
    assert isinstance(table, EntityTable) and len(table) >= 2 and np.isfinite(table.targets).all()
    assert all(text.strip() for text in table.texts) and 0 < table.is_test.sum() < len(table)
    assert table.targets.shape == (len(table), len(table.target_names)) and table.target_names
    assert (np.ptp(table.targets[~table.is_test], axis=0) > 0).all()


def test_a_table_is_read_without_jax_and_transformers(tmp_path):
    (tmp_path / "t.csv").write_text("name,x\na,b\nc,d\n")
    code = (
        "import sys\nfrom jaxprobe import load_table, InputError\n"
        "try:\n    load_table('t.csv')\nexcept InputError as error:\n    print(error)\n"
        "import jaxprobe.data.tokens, jaxprobe.data.fetch\n"
        "print([name for name in ('jax', 'transformers', 'torch', 'sklearn', 'matplotlib') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "Which column is the target" in done.stdout and done.stdout.endswith("[]\n")
