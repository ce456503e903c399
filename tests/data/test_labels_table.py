import numpy as np
import pandas as pd
import pytest

from jaxprobe.data.catalog import load_table
from jaxprobe.data.table import make_table


def frame(values, **columns):
    return pd.DataFrame({"name": [f"n{i}" for i in range(len(values))], "kind": list(map(str, values)), **columns})


def test_labels_become_one_column_a_class():
    table = make_table(frame(["b", "a", "b", "c"] * 10), "t", target=["kind"])
    assert table.label == "kind" and table.target_names == ("a", "b", "c") and table.units == ("", "", "")
    np.testing.assert_array_equal(table.targets.sum(1), 1)
    assert list(table.labels) == ["b", "a", "b", "c"] * 10
    assert "kind (3 classes)" in repr(table)
    again = make_table(table.to_frame(), "t", target=["kind"])
    assert list(again.labels) == list(table.labels) and (again.is_test == table.is_test).all()


@pytest.mark.parametrize(
    ("values", "label"),
    [
        (["yes", "no"], True),
        (["True", "False"], True),
        (["0", "1"], True),
        (["0", "1", "2"], False),
        (["1986-01-01", "1987-01-01"], False),
        (["1.5", "2"], False),
        (["1.5e-05", "2E+20"], False),
    ],
)
def test_what_is_read_as_labels(values, label):
    table = make_table(frame(values * 20), "t", target=["kind"])
    assert bool(table.label) == label


def test_numbers_are_labels_on_request_and_zeros_and_ones_numbers():
    assert make_table(frame([3, 4, 5] * 20), "t", target=["kind"], labels=True).target_names == ("3", "4", "5")
    assert make_table(frame([0, 1] * 20), "t", target=["kind"], labels=False).label == ""


def test_classes_that_cannot_be_fitted_are_left_out_with_a_note():
    split = ["train"] * 20 + ["train", "test", "test"]
    table = make_table(frame(["a", "b"] * 10 + ["rare", "rare", "a"], split=split), "t", target=["kind"])
    assert table.target_names == ("a", "b") and len(table) == 21 and table.is_test.sum() == 1
    assert any("fewer than two training rows: 1 (rare); their 2 rows are left out" in note for note in table.notes)


@pytest.mark.slow
def test_the_label_of_a_named_table_is_no_group_of_it():
    table = load_table("cities", target=["continent"], limit=300)
    assert table.label == "continent" and "Europe" in table.target_names and tuple(table.groups) == ("country",)


def test_a_data_frame_reads_as_its_file_does(tmp_path):
    given = frame(["a", "b", "c"] * 10, size=np.arange(30.0), born=pd.date_range("1900-01-01", periods=30, freq="YS"))
    given.to_csv(tmp_path / "table.csv", index=False)
    for target in ("kind", "size", "born"):
        ours, file = load_table(given, target=[target]), load_table(str(tmp_path / "table.csv"), target=[target])
        assert ours.name == "table" and ours.target_names == file.target_names and ours.texts == file.texts
        np.testing.assert_allclose(ours.targets, file.targets)
