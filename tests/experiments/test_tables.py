"""Which groups an experiment looks at, counted by hand."""

import numpy as np
import pytest

from jaxprobe.errors import InputError
from jaxprobe.experiments.tables import choose_labels
from tests.experiments.worlds import make_table

# Rows to fit on and to test on.
COUNTS = {
    "Asia": (5, 2),
    "Africa": (5, 3),
    "Europe": (9, 2),
    "Oceania": (2, 9),
    "Arctic": (1, 5),
    "Antarctica": (20, 1),
}
SIDES = [(name, side) for name, counts in COUNTS.items() for side in (False, True) for _ in range(counts[side])]
LABELS = np.array([name for name, _ in SIDES])
TABLE = make_table(np.zeros((len(SIDES), 1)), {"continent": LABELS}, np.array([side for _, side in SIDES]))


def chosen(*named, largest=20, labels=LABELS):
    return choose_labels(TABLE, "continent", labels, named, largest=largest)


def test_the_largest_by_training_rows_of_those_with_two_on_each_side():
    # Antarctica has one row to test on, Arctic one to fit on; equal sizes stand in the order of their names.
    assert chosen() == ["Europe", "Africa", "Asia", "Oceania"]
    assert chosen(largest=2) == ["Europe", "Africa"]
    order = np.random.default_rng(0).permutation(len(SIDES))
    mixed = make_table(TABLE.targets, {"continent": LABELS[order]}, TABLE.is_test[order])
    assert choose_labels(mixed, "continent", LABELS[order], (), largest=3) == ["Europe", "Africa", "Asia"]


def test_those_that_are_named_in_their_order_and_however_many():
    assert chosen("Oceania", "Europe", largest=1) == ["Oceania", "Europe"]


def test_every_group_that_cannot_be_used_is_named_at_once():
    with pytest.raises(InputError) as refused:
        chosen("Europe", "Arctic", "Atlantis", "Antarctica")
    assert refused.value.problems == (
        "No row has continent 'Atlantis'. Take a value of that column.",
        "continent 'Arctic' has 1 rows to fit on and 5 to test on; wanted 2 of each. Leave it out.",
        "continent 'Antarctica' has 20 rows to fit on and 1 to test on; wanted 2 of each. Leave it out.",
    )


def test_a_column_of_single_rows_is_refused():
    with pytest.raises(InputError, match="No continent has 2 rows to fit on and 2 to test on. Take a coarser group"):
        chosen(labels=np.arange(len(LABELS)).astype(str))
