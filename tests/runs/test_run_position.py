"""Runs on other tokens than the last: stored and streamed, and predictions by the same tokens."""

import numpy as np
import pytest

import jaxprobe
from jaxprobe.errors import InputError
from jaxprobe.host.progress import Reporter
from jaxprobe.report.token_figure import draw_tokens
from jaxprobe.results.results import Run
from jaxprobe.runs.execute import run
from jaxprobe.runs.predict import predict, predict_tokens
from jaxprobe.runs.steer import plan_shift
from jaxprobe.settings import RunSettings


@pytest.fixture(scope="module")
def of_means(tmp_path_factory, settings_of_heights):
    """Settings of a run of means, its run and what was said."""
    folder = tmp_path_factory.mktemp("run")
    settings = settings_of_heights(folder, position="mean")
    heard = Reporter()
    return settings, Run(run(settings, heard)), heard


def test_the_states_are_means_and_the_run_says_so(of_means):
    settings, made, heard = of_means
    model = jaxprobe.load_model(settings.model, mesh=jaxprobe.mesh.make_mesh({"data": 1}), dtype="float32")
    every = jaxprobe.extract_states(model, made.table, position="all")
    for state, values in made.activations.items():
        mean = np.stack([every[state][every.entities == i].mean(0) for i in range(60)])
        np.testing.assert_allclose(values, mean, rtol=1e-5, atol=1e-6)
    assert any(note.startswith("States are means over each name's tokens") for note in made.notes)
    assert any(line.startswith("States are means") for line in heard.lines)
    assert made.config["inputs"]["position"] == "mean"
    assert made.read_at == "averaged over each name's tokens"


def test_predictions_are_of_the_same_tokens(of_means):
    _, made, _ = of_means
    found, _ = made.predicted(made.headline_layer)
    names = list(made.test_entities["text"])
    np.testing.assert_allclose(predict(made, names)["height"], found[:, 0], rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_probes_along_the_tokens_of_texts(of_means):
    """A probe is linear: of a name's mean state it reads the mean of what it reads at the tokens."""
    _, made, _ = of_means
    texts = ["Lima Oslo", "Cairo", "Lima Oslo"]
    frame = predict_tokens(made, texts)
    assert set(frame["layer"]) == {"embed", "0", "1", "2"} and list(frame["row"].unique()) == [0, 1, 2]
    at_headline = frame[frame["layer"] == made.headline_layer]
    assert at_headline.groupby("row")["token"].agg("".join).tolist() == ["LimaĠOslo", "Cairo", "LimaĠOslo"]
    np.testing.assert_allclose(at_headline.groupby("row")["height"].mean(), predict(made, texts)["height"], rtol=1e-4)
    figure = draw_tokens(made, frame[frame["row"] == 2])
    image = figure.axes[0].images[0].get_array()
    last = frame[(frame["row"] == 2) & (frame["layer"] == "2")]
    np.testing.assert_allclose(image[3], last["height"], rtol=1e-12)
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == last["token"].tolist()


@pytest.mark.slow
def test_sums_alone_give_the_same_states(of_means, tmp_path):
    """Training R2 of each layer by an unpenalised fit would differ with another token; here by the chosen penalty."""
    settings, made, _ = of_means
    streamed = Run(run(RunSettings(**{**vars(settings), "out": tmp_path / "run", "store": False})))
    arrays, _ = streamed.probes
    train = ~made.table.is_test
    for i, state in enumerate(made.activations):
        np.testing.assert_allclose(arrays["x_mean"][i], made.activations[state][train].mean(0), rtol=1e-4, atol=1e-5)
    found, _ = streamed.predicted("2")
    x = np.asarray(made.activations["2"][~train], np.float64)
    i = list(made.activations).index("2")
    by_hand = x @ arrays["weights"][i] + arrays["intercept"][i]
    np.testing.assert_allclose(found, by_hand, rtol=1e-3, atol=1e-3)


def test_what_needs_another_token_is_refused(of_means, tmp_path):
    settings, made, _ = of_means
    with pytest.raises(InputError, match="position: "):
        run(RunSettings(**{**vars(settings), "position": "last"}))
    with pytest.raises(InputError, match="--position all gives a row a token"):
        run(RunSettings(**{**vars(settings), "position": "all", "out": tmp_path / "run"}))
    with pytest.raises(InputError, match="read at position mean of each name"):
        plan_shift(made, [1.0])
    assert not (tmp_path / "run").exists()
