"""A run's tables must belong together; what does not is said before anything is drawn."""

import pytest

from jaxprobe.errors import InputError
from jaxprobe.results.results import Run


def test_scores_are_found_by_name(place_run):
    results = Run(place_run)
    scores = place_run.read_scores()
    row = scores.query("layer == '4' and target == 'place' and metric == 'error_km_median'").iloc[0]
    score = results.score("4", "error_km_median", "place")
    assert (score.value, score.ci_low, score.ci_high) == (row["value"], row["ci_low"], row["ci_high"])
    assert results.score("4", "no such metric") is None
    assert results.layers == ("embed", "0", "1", "2", "3", "4", "5")
    assert results.is_place
    assert results.groups == ("country", "continent")


def test_headline_layer_comes_from_the_config_or_else_the_probes(place_run):
    config = place_run.read_config()
    config["result"]["headline_layer"] = "2"
    place_run.write_config(config)
    assert Run(place_run).headline_layer == "2"
    del config["result"]["headline_layer"]
    place_run.write_config(config)
    assert Run(place_run).headline_layer == "4"
    del config["result"]
    place_run.write_config(config)
    with pytest.raises(InputError, match="is not finished. Go on with: jaxprobe run --config"):
        Run(place_run)


def test_every_disagreement_between_the_files_is_raised_at_once(place_run):
    scores, predictions = place_run.read_scores(), place_run.read_predictions()
    scores.loc[0, "model"] = "another"
    place_run.write_scores(scores)
    predictions.loc[0, "row"] = 1_000_000
    place_run.write_predictions(predictions.rename(columns={"predicted_latitude": "predicted_lat"}))
    config = place_run.read_config()
    config["result"]["headline_layer"] = "9"
    place_run.write_config(config)
    with pytest.raises(InputError) as caught:
        Run(place_run).check_together()
    message = str(caught.value)
    assert "holds 2 values of model, wanted one" in message
    assert "headline layer '9' has no test scores" in message
    assert "headline layer '9' has no test predictions" in message
    assert "entities have targets latitude, longitude, predictions lat, longitude" in message
    assert "1 predictions are for rows that are no test entities" in message
