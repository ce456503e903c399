"""What notebooks show: every name is text, and the numbers are those of the arrays."""

import html.parser

import numpy as np
import pandas as pd
import pytest

from jaxprobe import fit_probes
from jaxprobe.data.table import EntityTable
from jaxprobe.html import decimal_text, html_table, scores_by_layer, scores_in_words
from jaxprobe.results.folder import RunDirectory

STRANGE = '</td><script>alert("1")</script> & <b>'


class Cells(html.parser.HTMLParser):
    """Tags and texts, as a browser sees them."""

    def __init__(self, markup):
        super().__init__()
        self.tags, self.texts = set(), []
        self.feed(markup)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)

    def handle_data(self, data):
        self.texts.append(data)


@pytest.fixture(scope="module")
def table():
    rng = np.random.default_rng(0)
    texts = (STRANGE, *(f"name {i}" for i in range(99)))
    targets = rng.standard_normal((100, 2)) * 10
    groups = {STRANGE: np.array([STRANGE] * 100, object)}
    names = ("latitude", "longitude")
    return EntityTable(STRANGE, texts, targets, names, ("degree", "degree"), np.arange(100) % 5 == 0, groups)


@pytest.fixture(scope="module")
def probes(table):
    rng = np.random.default_rng(1)
    states = {name: rng.standard_normal((100, 8)).astype(np.float32) for name in ("embed", "0", "1")}
    states["1"][:, :2] = table.targets
    return fit_probes(states, table, model="m", prompt="p")


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (0.41234, 3, "0.412"),
        (0.0029812, 5, "0.00298"),
        (-12.345, 3, "-12.35"),
        (-750.2, 3, "-750.2"),
        (3624.4, 1, "3,624"),
        (36.24, 1, "36.2"),
        (-1e53, 3, "-1.00e+53"),
        (float("nan"), 3, "nan"),
    ],
)
def test_numbers_of_any_size_stay_short(value, digits, text):
    assert decimal_text(value, digits) == text


def test_names_are_text(table, probes, tmp_path):
    for shown in (
        table._repr_html_(),
        html_table([STRANGE], [[STRANGE]], STRANGE),
        RunDirectory(tmp_path / STRANGE)._repr_html_(),
    ):
        page = Cells(shown)
        assert page.tags <= {"table", "caption", "thead", "tbody", "tr", "th", "td", "img"}
        assert any(STRANGE in text for text in page.texts)
    assert repr(table).startswith(f"EntityTable({STRANGE}: 100 entities, 20 for testing; target latitude, longitude")


def test_the_scores_shown_are_the_scores(probes):
    frame = scores_by_layer(probes.scores)
    assert list(frame["layer"]) == ["embed", "0", "1"]
    for _, row in frame.iterrows():
        test = probes.scores.query(f"split == 'test' and layer == '{row['layer']}'").set_index(["metric", "target"])
        assert row["r2"] == test.loc[("r2", "mean"), "value"] and row["ci_low"] == test.loc[("r2", "mean"), "ci_low"]
        assert row["error_km_median"] == test.loc[("error_km_median", "place"), "value"]
        assert row["alpha"] == test.loc[("r2", "mean"), "alpha"]
    heads, rows, marked = scores_in_words(probes.scores, probes.headline)
    assert rows[marked][0] == "1 *" and probes.headline == "1" and "median km" in heads
    assert f"{frame['r2'].iloc[2]:.3f}" in Cells(probes._repr_html_()).texts


def test_without_one_unit_there_is_no_mean_error():
    columns = {"model": "m", "dataset": "d", "prompt": "p", "layer": "embed", "target": "mean", "split": "test"}
    values = {"value": 0.5, "ci_low": 0.4, "ci_high": 0.6, "alpha": 10.0}
    scores = pd.DataFrame([columns | values | {"metric": metric} for metric in ("r2", "spearman")])
    assert np.isnan(scores_by_layer(scores)["mae"].iloc[0])
    assert scores_in_words(scores, "embed")[1] == [["embed *", "0.500", "0.400 to 0.600", "0.500", "", "10"]]
