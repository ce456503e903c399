"""A run on class labels, from its table to its page, beside scikit-learn on the states that it exports."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import RidgeClassifier

import jaxprobe
from jaxprobe.cli.main import main
from jaxprobe.errors import InputError
from jaxprobe.report.class_figures import curves_figure
from jaxprobe.results.results import Run
from jaxprobe.runs.execute import run
from jaxprobe.runs.predict import predict
from jaxprobe.settings import RunSettings
from tests.tiny_llama import save_model

NAMES = ["Paris", "Lima", "Oslo", "Rome", "Quito", "Accra", "Delhi", "Kyoto", "Perth", "Cairo"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("labels")
    save_model(folder / "model", NAMES)
    count = 120
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "name": [f"{NAMES[i % 10]} {i // 10}" for i in range(count)],
            # What a name begins with decides its label, but for some noise and a rare class.
            "kind": ["rare <b>" if i % 29 == 0 else "abc"[(i % 10 + (rng.random() < 0.2)) % 3] for i in range(count)],
            "side": ["left" if i % 10 < 5 else "right" for i in range(count)],
        }
    )
    frame.to_csv(folder / "things.csv", index=False)
    settings = RunSettings(
        model=str(folder / "model"),
        dataset=str(folder / "things.csv"),
        target=("kind",),
        group=("side",),
        mesh="data=1",
    )
    return run(replace(settings, out=folder / "run")), settings


@pytest.mark.slow
def test_scores_are_those_of_scikit_learn_on_the_exported_states(made):
    finished, entities = Run(made[0]), Run(made[0]).entities
    test, labels = (entities["split"] == "test").to_numpy(), entities["true_kind"].to_numpy()
    scores = finished.scores.set_index(["split", "target", "metric", "layer"])
    for layer, x in finished.activations.items():
        row = scores.loc[("test", "kind", "accuracy", layer)]
        theirs = RidgeClassifier(alpha=row["alpha"]).fit(np.asarray(x, np.float64)[~test], labels[~test])
        assert row["value"] == pytest.approx(theirs.score(x[test], labels[test]), abs=1e-12)
        assert row["value"] == scores.loc[("test", "mean", "accuracy", layer), "value"]


@pytest.mark.slow
def test_predictions_and_the_table_come_back(made):
    finished = Run(made[0])
    assert finished.label == "kind" and finished.classes == ("a", "b", "c", "rare <b>")
    assert list(finished.table.labels) == list(finished.entities["true_kind"])
    rows = finished.test_predictions(finished.headline_layer)
    accuracy = (rows["true_kind"] == rows["predicted_kind"]).mean()
    assert accuracy == pytest.approx(finished.score(finished.headline_layer, "accuracy").value)
    assert -np.log(rows["true_probability"]).mean() == pytest.approx(
        finished.score(finished.headline_layer, "log_loss").value, rel=1e-4
    )
    again = predict(made[0].path, list(rows["text"][:5]))
    assert list(again["kind"]) == list(rows["predicted_kind"][:5])
    np.testing.assert_allclose(again["probability"], rows["probability"][:5], atol=1e-5)


def test_controls_stand_beside_the_probe(made):
    frame = Run(made[0]).controls
    assert set(frame["control"]) == {
        "none", "chance", "majority", "embed", "ngrams", "group_mean_side", "permuted"
    }  # fmt: skip
    value = frame.set_index(["control", "metric", "resampled"])["value"]
    assert value[("chance", "accuracy", "rows")] == 0.25
    majority = Run(made[0]).entities.query("split == 'test'")["true_kind"].value_counts(normalize=True)
    assert value[("majority", "accuracy", "rows")] in set(majority)
    lead = value[("none", "accuracy", "rows")] - value[("ngrams", "accuracy", "rows")]
    assert value[("ngrams", "selectivity", "rows")] == pytest.approx(lead)


def test_the_page_has_its_pictures_and_names_are_text(made):
    page = made[0].report_path.read_text(encoding="utf-8")
    assert page.count("<img") == 3 and "<script" not in page
    assert "rare <b>" not in page and "rare &lt;b&gt;" in page
    assert {path.name for path in made[0].figures_path.glob("*.png")} == {
        "accuracy_by_layer.png", "confusion.png", "calibration.png"
    }  # fmt: skip


def test_the_command_line_names_label_and_probability(made, capsys):
    main(["predict", str(made[0].path), "--text", "Paris 3"])
    assert "probability" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("classifier", ["lda", "means", "logistic"])
def test_other_classifiers(made, classifier):
    activations, table = Run(made[0]).activations, Run(made[0]).table
    probes = jaxprobe.fit_probes(activations, table, classifier=classifier)
    test = probes.scores.query("split == 'test' and target == 'mean' and metric == 'accuracy'")
    assert len(test) == len(activations) and test["value"].between(0, 1).all()


def test_labels_need_stored_states(made, tmp_path):
    with pytest.raises(InputError, match="need stored states"):
        run(replace(made[1], out=tmp_path / "none", store=False))
    assert not (tmp_path / "none").exists()


@pytest.mark.slow
def test_experiments_take_a_run_on_labels(made, capsys):
    run_folder = str(made[0].path)
    main(["experiment", "blocks", run_folder, "--group", "side", "--json"])
    rows = pd.read_csv(made[0].path / "experiments" / "blocks.csv")
    held = rows.query("metric == 'accuracy' and fit == 'held_out'")
    assert len(held) == 2 and held["value"].between(0, 1).all()
    main(["experiment", "controls", run_folder, "--random-weights", "--json"])
    rows = pd.read_csv(made[0].path / "experiments" / "controls.csv")
    assert "random_weights" in set(rows["control"])
    main(["experiment", "layers", run_folder, "--json"])
    rows = pd.read_csv(made[0].path / "experiments" / "layers.csv").query("layer == '1' and split == 'test'")
    value = rows.query("target == 'mean'").set_index(["metric", "compared_with", "resampled"])["value"]
    predicted = Run(made[0]).predictions.set_index(["layer", "row"])["predicted_kind"]
    true = Run(made[0]).entities.set_index("row")["true_kind"]
    right = {layer: (predicted[layer] == true[predicted[layer].index]).mean() for layer in ("1", "embed")}
    assert value["accuracy", np.nan, "side"] == pytest.approx(right["1"])
    assert value["accuracy_difference", "embed", "rows"] == pytest.approx(right["1"] - right["embed"])


@pytest.mark.slow
def test_labels_and_numbers_are_not_compared(made, tmp_path, capsys):
    frame = pd.read_csv(made[1].dataset).assign(size=np.arange(120.0))
    frame.to_csv(tmp_path / "sizes.csv", index=False)
    settings = replace(made[1], dataset=str(tmp_path / "sizes.csv"), target=("size",), out=tmp_path / "run")
    with pytest.raises(SystemExit, match="2"):
        main(["experiment", "layers", str(made[0].path), str(run(settings).path)])
    assert "no scale in common" in capsys.readouterr().err


@pytest.mark.slow
def test_two_classes_have_their_curves(made, tmp_path):
    settings = replace(made[1], target=("side",), group=(), out=tmp_path / "run")
    finished = run(settings)
    assert (finished.figures_path / "curves.png").is_file()
    assert finished.report_path.read_text(encoding="utf-8").count("<img") == 4
    axes = curves_figure(Run(finished)).axes[0]
    x, y = axes.lines[1].get_data()
    score = Run(finished).score(Run(finished).headline_layer, "auroc").value
    assert np.trapezoid(y, x) == pytest.approx(score, abs=1e-6)
