import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxprobe.data.catalog import load_table
from jaxprobe.data.table import make_table, seeded_split
from jaxprobe.errors import InputError


def places(rows=10, **more):
    return pd.DataFrame(
        {"name": [f"place {n}" for n in range(rows)], "lng": np.arange(rows) * 2.0, "lat": np.arange(rows) * 1.0} | more
    )


def test_everything_is_found_and_said():
    table = make_table(places(is_test=[True, False] * 5), "mine")
    assert table.name == "mine" and table.texts[3] == "place 3" and table.is_place and len(table) == 10
    # Longitude comes first in the file and last in the table.
    np.testing.assert_array_equal(table.targets, np.stack([np.arange(10.0), np.arange(10) * 2.0], axis=1))
    assert table.units == ("degree", "degree")
    assert table.is_test.tolist() == [True, False] * 5
    assert table.notes == (
        "The text is column 'name'.",
        "The split is column 'is_test'.",
        "The targets are columns 'lng' and 'lat', in degrees.",
        "10 rows: 5 to fit on, 5 to test on.",
        "Warning: only 5 rows to test on: one of them can decide a score. Take more rows.",
    )


def test_what_is_named_is_taken(tmp_path):
    part = ["train", "train", "test", "train", "test"] * 2
    frame = places(year=np.arange(10) + 1900, country=["NA", None] * 5, part=part)
    frame.to_parquet(tmp_path / "my.table.parquet")
    table = load_table(
        str(tmp_path / "my.table.parquet"), text="{name}, {country}", target=["year"], split="part", group=["country"]
    )
    assert table.name == "my"
    assert table.texts[:2] == ("place 0, NA", "place 1,")
    assert table.target_names == ("year",) and table.units == ("year",) and not table.is_place
    assert table.groups["country"].tolist() == ["NA", ""] * 5
    assert table.notes[0] == "10 rows: 6 to fit on, 4 to test on."


def test_coordinates_come_first_among_other_targets():
    table = make_table(places(height=np.arange(10) ** 2), "t", target=["height", "lng", "lat"])
    assert table.target_names == ("latitude", "longitude", "height")
    assert table.units == ("degree", "degree", "")
    assert table.targets[3].tolist() == [3, 6, 9]
    with pytest.raises(InputError, match="name the same thing twice"):
        make_table(places(latitude=np.arange(10)), "t", target=["lat", "latitude"])


def test_the_only_number_or_date_is_the_target():
    frame = pd.DataFrame({"title": ["a", "b", "c"], "released": ["1990-01-01", "1991-01-01", "1992-01-01"]})
    table = make_table(frame, "t")
    assert table.target_names == ("released",) and table.units == ("year",)
    assert table.targets[:, 0].tolist() == [1990, 1991, 1992]
    with pytest.raises(InputError, match=r"Which column is the target\?.*numbers or dates: released, pages"):
        make_table(frame.assign(pages=[1, 2, 3]), "t")
    with pytest.raises(InputError, match="No column is all numbers or dates"):
        make_table(frame[["title"]], "t")


def test_every_problem_is_said_at_once():
    frame = pd.DataFrame({"label": ["a", "", "c"], "x": ["1", "b", "3"], "part": ["train", "dev", "test"]})
    with pytest.raises(InputError) as raised:
        make_table(frame, "t", text="label", target=["x", "y"], split="part", group=["z"])
    assert [problem.split(" in ")[0] for problem in raised.value.problems] == [
        "Text 'label' is empty or missing",
        "Split 'part' is neither train nor test",
        "Target 'x' is not a number",
        "No column 'y'. The columns here: label, x, part.",
        "No column 'z'. The columns here: label, x, part.",
    ]
    with pytest.raises(InputError, match=r"Which column is the text\?.*label, x, part"):
        make_table(frame, "t", target=["x"])


@pytest.mark.parametrize("rows", [0, 1])
def test_a_table_of_one_row(rows):
    with pytest.raises(InputError, match=f"has {rows} rows"):
        make_table(places(rows), "t")


def test_a_target_that_does_not_vary_where_it_is_fitted():
    frame = places(is_test=[False] * 8 + [True] * 2, x=[5.0] * 8 + [1.0, 2.0])
    with pytest.raises(InputError, match="Target 'x' is 5 in all 8 training rows"):
        make_table(frame, "t", target=["x"])
    make_table(frame.assign(x=[5.0] * 7 + [6.0] + [5.0] * 2), "t", target=["x"])


def test_duplicate_names_are_counted_and_never_refused():
    frame = places(6, is_test=[False, False, False, False, True, True])
    frame["name"] = ["a", "a", "b", "c", "a", "d"]
    table = make_table(frame, "t")
    assert table.notes[-2:] == (
        "Names that occur more than once: 1, in 3 rows.",
        "Warning: test rows whose name a training row has too: 1.",
    )


@pytest.mark.parametrize(("rows", "said"), [(147, True), (150, False)])
def test_few_test_rows_are_said(rows, said):
    table = make_table(places(rows).assign(x=np.arange(rows)), "t", target=["x"])
    assert (table.is_test.sum() < 30) == said == any("rows to test on: one of them" in note for note in table.notes)


@given(st.integers(2, 300), st.floats(0.001, 0.999), st.integers(0, 5))
def test_seeded_split(rows, fraction, seed):
    is_test = seeded_split(rows, fraction, seed)
    assert is_test.shape == (rows,)
    assert 1 <= is_test.sum() <= rows - 1
    assert abs(is_test.sum() - rows * fraction) <= 1
    np.testing.assert_array_equal(is_test, seeded_split(rows, fraction, seed))


@pytest.mark.parametrize("fraction", [0, 1, -0.2, 20])
def test_bad_test_fraction(fraction):
    with pytest.raises(InputError, match="between 0 and 1"):
        make_table(places(), "t", test_fraction=fraction)


@given(st.integers(8, 60), st.data())
def test_limit_is_a_sample_of_both_sides(rows, data):
    tests = data.draw(st.integers(2, rows // 2))
    limit = data.draw(st.integers(6, rows))
    frame = places(rows, is_test=np.random.default_rng(rows).permutation(np.arange(rows) < tests), kind=["k"] * rows)
    whole = make_table(frame, "t", group=["kind"])
    table = make_table(frame, "t", group=["kind"], limit=limit)
    assert limit - 1 <= len(table) <= limit
    assert abs(table.is_test.sum() - limit * tests / rows) <= 1
    rows_taken = [whole.texts.index(text) for text in table.texts]
    assert rows_taken == sorted(set(rows_taken))
    np.testing.assert_array_equal(table.targets, whole.targets[rows_taken])
    np.testing.assert_array_equal(table.is_test, whole.is_test[rows_taken])
    assert len(table.groups["kind"]) == len(table)
    assert any(note.startswith(f"A random {limit:,} of {rows:,} rows") for note in table.notes) == (limit < rows)


def test_limit_keeps_the_split_of_the_whole_table_and_is_seeded():
    whole = make_table(places(90), "t")
    sample = make_table(places(90), "t", limit=40)
    assert sample.texts == make_table(places(90), "t", limit=40).texts
    test_names = {text for text, test in zip(whole.texts, whole.is_test, strict=True) if test}
    assert [text in test_names for text in sample.texts] == sample.is_test.tolist()
    with pytest.raises(InputError, match="limit of 1 rows"):
        make_table(places(90), "t", limit=1)


def test_take():
    table = make_table(places(group=list("aabbccddee")), "t", group=["group"])
    by_mask = table.take(table.targets[:, 0] > 6)
    by_row = table.take(np.array([7, 8, 9]))
    assert by_mask.texts == by_row.texts == ("place 7", "place 8", "place 9")
    assert by_mask.groups["group"].tolist() == by_row.groups["group"].tolist() == ["d", "e", "e"]
    np.testing.assert_array_equal(by_mask.targets[:, 0], [7, 8, 9])


def test_names_that_scores_keep_for_themselves_are_refused():
    more = dict(mean=np.arange(10) ** 2, place=np.arange(10) ** 3, rows=["a", "b"] * 5, permutations=["c"] * 10)
    frame = places().assign(**more)
    with pytest.raises(InputError) as raised:
        make_table(frame, "t", target=["mean", "place", "y"], group=["rows", "permutations"])
    assert [problem.split(",")[0] for problem in raised.value.problems] == [
        "No column 'y'. The columns here: name",
        "A target cannot be called 'mean'",
        "A target cannot be called 'place'",
        "A group cannot be called 'rows'",
        "A group cannot be called 'permutations'",
    ]
    assert raised.value.problems[1].endswith("Rename the column.")
    make_table(frame.rename(columns={"mean": "average"}), "t", target=["average"])
