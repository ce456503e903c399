"""p-values are uniform where nothing is there, and sentences say no more than the tests allow."""

import json

import numpy as np
import pytest
from scipy.stats import kstest

from jaxprobe.errors import InputError
from jaxprobe.experiments.questions import read_question, shipped
from jaxprobe.experiments.verdicts import Evidence, Mean, mean_of, p_of_family, p_value, sentences
from tests.experiments.worlds import make_table

FOUND = Evidence(
    competent=True,
    erased=1e-12,
    p={"permuted": 0.01, "random subspaces": 0.01, "random differences": 0.02},
    layer="3",
    effect=Mean(-0.3, -0.4, -0.2),
    beside=Mean(-0.2, -0.3, -0.1),
    moved=Mean(0.5, 0.4, 0.6),
    moved_at_random=Mean(0.0, -0.1, 0.1),
    across=Mean(0.02, -0.1, 0.1),
    moved_layer="4",
    kl=(0.1, 0.01),
)


def test_p_values_are_uniform_under_the_null():
    rng = np.random.default_rng(0)
    values = rng.standard_normal((4000, 100))
    found = np.array([p_value(row[0], row[1:]) for row in values])
    assert found.min() >= 0.01 and kstest(found - 0.005, "uniform").pvalue > 0.01
    # Of several layers whose draws go together, as permutations of one seed do.
    layers = rng.standard_normal((2000, 1, 100)) + rng.standard_normal((2000, 6, 100))
    scale = np.array([1, 3, 0.1, 20, 1, 1])[:, None]
    family = np.array([p_of_family(*(lambda v: (v[:, 0], v[:, 1:]))(each * scale))[0] for each in layers])
    assert kstest(family - 0.005, "uniform").pvalue > 0.01
    assert 0.03 < (family <= 0.05).mean() < 0.07


def test_a_real_effect_is_found_at_its_layer():
    draws = np.random.default_rng(0).standard_normal((4, 99))
    assert p_of_family(np.array([0.0, -9.0, 0.1, 0.0]), draws) == (0.01, 1)


def test_intervals_over_rows_and_groups():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(30), 10)
    values = rng.standard_normal(30)[groups] + 0.1 * rng.standard_normal(300)
    rows, whole = mean_of(values), mean_of(values, groups)
    assert rows.value == whole.value == pytest.approx(values.mean())
    width = lambda mean: mean.ci_high - mean.ci_low
    assert width(rows) == pytest.approx(2 * 1.96 * values.std() / 300**0.5, rel=0.1)
    assert width(whole) == pytest.approx(2 * 1.96 * np.bincount(groups, values).std() / 10 / 30**0.5, rel=0.15)


def said(**changes):
    return " ".join(sentences("place", "Where?", FOUND._replace(**changes)))


def test_words_follow_from_the_tests():
    assert "is needed for" in said() and "Moving it moves the answer" in said() and "not selective" not in said()
    assert "not selective" in said(kl=(0.03, 0.03))
    for failed in (
        {"p": FOUND.p | {"random subspaces": 0.2}},
        {"erased": 1e-3},
        {"beside": Mean(-0.1, -0.2, 0.01)},
        {"moved": Mean(0.05, 0.0, 0.1)},
    ):
        assert "Moving it moves the answer" not in said(**failed)
    for failed in ({"p": FOUND.p | {"permuted": 0.06}}, {"erased": 1e-3}, {"beside": Mean(-0.1, -0.2, 0.01)}):
        assert "is needed" not in said(**failed).replace("It was not found that", "").split("in this model")[0] or (
            "It was not found" in said(**failed)
        )
    assert said(competent=False).startswith("It can't be tested")
    assert "uses" not in said() + said(erased=1) + said(competent=False)


def test_shipped_questions_can_be_read():
    assert set(shipped()) == {"country", "continent", "north_south", "east_west", "decade"}
    for name in shipped():
        assert read_question(name).name == name


def test_answers_of_groups_and_of_intervals():
    table = make_table(np.array([[5.0, 1], [-3, 2], [0, 3], [8, 4]]), {"country": ["A_b", "A_b", "C", ""]}, places=True)
    table = make_table(table.targets, table.groups, np.zeros(4, bool), places=True)
    names, right = read_question("north_south").answers(table)
    assert [names[i] for i in right] == ["North", "South", "North", "North"]
    with pytest.raises(InputError, match="1 answers"):
        read_question("country").answers(table)
    with pytest.raises(InputError, match="needs group 'continent'"):
        read_question("continent").answers(table)
    with pytest.raises(InputError, match="needs target 'release_date'"):
        read_question("decade").answers(table)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"template": "no place"}, "0 times"),
        ({"extra": 1}, "not known"),
        ({"group": None, "target": None}, "either group or target"),
        ({"target": "latitude"}, "either group or target"),
        ({"most": 1}, "2 or more"),
        ({"group": 7}, "wanted text"),
        ({"edges": [3, 1]}, "ascending"),
        ({"group": None, "target": "x", "edges": [1], "labels": ["a"]}, "2 intervals"),
    ],
)
def test_files_that_are_no_question(tmp_path, changes, words):
    body = {"asks": "Where?", "template": "{},", "group": "country"} | changes
    body = {key: value for key, value in body.items() if value is not None}
    (tmp_path / "q.json").write_text(json.dumps(body))
    with pytest.raises(InputError, match=words):
        read_question(str(tmp_path / "q.json"))
    for text in ("[]", "{", "[" * 100_000):
        (tmp_path / "q.json").write_text(text)
        with pytest.raises(InputError):
            read_question(str(tmp_path / "q.json"))
    with pytest.raises(InputError, match="Shipped are"):
        read_question("nowhere")
