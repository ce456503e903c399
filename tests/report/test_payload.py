"""The page's numbers, decoded again as the script does, are those of the run's files; what is left out is said."""

import json
from base64 import b64decode

import numpy as np
import pandas as pd
import pytest

from jaxprobe.report import payload
from jaxprobe.report.map_figure import place_map
from jaxprobe.report.page import write_report
from jaxprobe.report.payload import MISSING, encode_runs
from jaxprobe.results.results import Run
from tests.invented import QUALITY, city_entities, write_run


def array(text: str, dtype: str) -> np.ndarray:
    return np.frombuffer(b64decode(text), dtype)


def by_layer(run: dict, column: int) -> np.ndarray:
    block, rows = run["map"]["values"][column], len(array(run["map"]["rows"], "<u4"))
    codes = array(block["codes"], "<u2").reshape(len(run["map"]["layers"]), rows)
    return np.where(codes == MISSING, np.nan, block["low"] + block["step"] * codes.astype(np.float64))


def test_predictions_of_every_layer_come_back(place_run):
    run = encode_runs([Run(place_run)])["runs"][0]
    predictions = place_run.read_predictions()
    for column, name in enumerate(["predicted_latitude", "predicted_longitude", "error_km"]):
        wanted = predictions.pivot(index="layer", columns="row", values=name).loc[list(QUALITY)]
        # Half a step between the least and the greatest value.
        tolerance = 0.51 * np.ptp(wanted.to_numpy()) / 65534
        np.testing.assert_allclose(by_layer(run, column), wanted, rtol=0, atol=tolerance)


def test_entities_come_back(place_run):
    page = encode_runs([Run(place_run)])
    table, entities = page["tables"][0], place_run.read_entities()
    assert table["text"] == entities["text"].tolist()
    np.testing.assert_array_equal(array(table["is_test"], "u1") == 1, entities["split"] == "test")
    np.testing.assert_array_equal(array(table["truth"][1], "<f8"), entities["true_longitude"])
    country = table["groups"]["country"]
    codes = array(country["codes"], "<u2")
    assert [country["labels"][code] for code in codes] == entities["group_country"].tolist()
    error = array(page["runs"][0]["headline_predictions"][2], "<f8")
    assert np.isnan(error).sum() == (entities["split"] == "train").sum()


def test_a_group_has_one_colour_in_the_page_and_in_the_figure(place_run):
    """The most frequent of the training rows need not be that of the test rows."""
    entities = place_run.read_entities()
    entities["group_continent"] = np.where(
        entities["split"] == "train", "Oceania", entities["group_continent"].replace("Oceania", "Europe")
    )
    place_run.write_entities(entities)
    results = Run(place_run)
    page = encode_runs([results])["tables"][0]["groups"]["continent"]["colours"]
    figure = {handle.get_label(): handle.get_color() for handle in place_map(results).legends[0].legend_handles}
    assert len(figure) > 3 and {label: page[label] for label in figure} == figure


@pytest.mark.slow
def test_a_missing_prediction_is_missing_in_the_page(place_run):
    predictions = place_run.read_predictions()
    gone = predictions.query("layer == '2'").index[0]
    place_run.write_predictions(predictions.drop(index=gone))
    run = encode_runs([Run(place_run)])["runs"][0]
    missing = np.isnan(by_layer(run, 0))
    rows = array(run["map"]["rows"], "<u4")
    assert missing.sum() == 1
    layer, at = (int(index[0]) for index in np.nonzero(missing))
    assert (run["map"]["layers"][layer], rows[at]) == ("2", predictions.loc[gone, "row"])


def test_large_runs_are_sampled_and_the_page_says_so(place_run, monkeypatch):
    monkeypatch.setattr(payload, "MOST_PREDICTIONS", 7 * 50)
    monkeypatch.setattr(payload, "MOST_TEXT_BYTES", 2000)
    entities = place_run.read_entities()
    entities["text"] = [f"place {row}" for row in entities["row"]]
    place_run.write_entities(entities)
    page = encode_runs([Run(place_run)])
    run, table = page["runs"][0], page["tables"][0]
    assert sum(len(name) for name in table["text"]) <= 2000 < sum(entities["text"].str.len())
    assert table["sampled_from"] == 600
    assert set(entities.query("split == 'test'")["text"]) < set(table["text"])
    rows = array(run["map"]["rows"], "<u4")
    assert len(rows) == 50 and run["map"]["sampled_from"] == 121
    shown = [int(table["text"][row].removeprefix("place ")) for row in rows]
    wanted = place_run.read_predictions().query("layer == '4'").set_index("row")["predicted_latitude"]
    np.testing.assert_allclose(by_layer(run, 0)[run["map"]["layers"].index("4")], wanted[shown], atol=0.01)


def test_runs_on_the_same_entities_share_a_table(tmp_path, time_run):
    entities = city_entities(100)
    runs = [write_run(tmp_path / name, entities, QUALITY, "cities", name) for name in "ab"]
    page = encode_runs([Run(run) for run in (*runs, time_run)])
    assert [run["table"] for run in page["runs"]] == [0, 0, 1]
    assert len(page["tables"]) == 2


def test_the_page_is_valid_json_whatever_the_scores(place_run):
    scores = place_run.read_scores()
    scores.loc[(scores["metric"] == "r2") & (scores["layer"] == "1"), ["value", "ci_low", "ci_high"]] = np.nan
    place_run.write_scores(scores)
    page = encode_runs([Run(place_run)])
    json.dumps(page, allow_nan=False)
    assert page["runs"][0]["scores"]["mean r2"][2] == [None, None, None]


@pytest.mark.slow
@pytest.mark.parametrize("layers", [33, 82])
def test_forty_thousand_places_stay_below_15_megabytes(tmp_path, layers):
    """A table as large as the paper's largest, at the depth of a 7-billion and of a 70-billion model."""
    entities = pd.concat([city_entities(20_000)] * 2, ignore_index=True)
    entities["row"] = np.arange(len(entities))
    states = ["embed", *map(str, range(layers - 1))]
    run = write_run(tmp_path / "run", entities, dict.fromkeys(states, 0.8), "cities")
    assert 8_000 <= run.read_predictions()["row"].nunique() <= 8_002
    assert write_report(run).stat().st_size < 15e6
