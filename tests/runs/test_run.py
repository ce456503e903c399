"""Whole runs on a tiny model: the files, going on, doing nothing twice, and refusing bad input with nothing written."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score

import jaxprobe
from jaxprobe.errors import InputError
from jaxprobe.experiments.controls import random_states
from jaxprobe.host.progress import Reporter
from jaxprobe.probes.metrics import great_circle_km
from jaxprobe.results.results import Run
from jaxprobe.runs.execute import run
from jaxprobe.runs.predict import predict
from jaxprobe.settings import RunSettings, read_settings
from tests.tiny_llama import save_model

NAMES = ["Paris", "Lima", "Oslo", "Rome", "Quito", "Accra", "Delhi", "Kyoto", "Perth", "Cairo"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    save_model(folder, NAMES)
    return str(folder)


@pytest.fixture
def places(tmp_path):
    rng = np.random.default_rng(0)
    count = 60
    frame = pd.DataFrame(
        {
            "name": [f"{NAMES[i % 10]} {i // 10}" for i in range(count)],
            "latitude": rng.uniform(-60, 70, count),
            "longitude": rng.uniform(-180, 180, count),
            "founded": [f"{1900 + i}-07-01" for i in range(count)],
            "is_test": [i % 4 == 0 for i in range(count)],
            "continent": [NAMES[i % 3] for i in range(count)],
        }
    )
    path = tmp_path / "places.csv"
    frame.to_csv(path, index=False)
    return path


def settings(model, places, tmp_path, **other):
    return RunSettings(model=model, dataset=str(places), out=tmp_path / "run", mesh="data=1", **other)


@pytest.mark.slow
def test_a_run_writes_its_files_and_its_scores_follow_from_its_states(model, places, tmp_path):
    heard = Reporter()
    directory = run(settings(model, places, tmp_path, target=("latitude", "longitude"), group=("continent",)), heard)
    names = {path.name for path in directory.path.iterdir()}
    assert names >= {"config.json", "activations", "probes.safetensors", "scores.csv", "report.html", "figures"}
    states = jaxprobe.open_activations(directory.activations_path)
    assert tuple(states) == ("embed", "0", "1", "2")
    # A refit by scikit-learn at the alpha that was chosen, from the stored states.
    scores, entities = directory.read_scores(), directory.read_entities()
    test = (entities["split"] == "test").to_numpy()
    targets = entities[["true_latitude", "true_longitude"]].to_numpy()
    for state in states:
        row = scores.query(f"layer == '{state}' and split == 'test' and metric == 'r2' and target == 'mean'").iloc[0]
        probe = Ridge(row["alpha"]).fit(states[state][~test].astype(np.float64), targets[~test])
        assert row["value"] == pytest.approx(r2_score(targets[test], probe.predict(states[state][test])), abs=1e-4)
    assert any("60 entities" in line for line in heard.lines)
    config = directory.read_config()
    assert config["result"]["headline_layer"] in states and config["result"]["peak_memory_bytes"] > 0


@pytest.mark.slow
def test_spatial_blocks_as_the_split(model, places, tmp_path):
    options = dict(target=("latitude", "longitude"), split="blocks", cell_degrees=30.0, buffer_km=2000.0)
    heard = Reporter()
    directory = run(settings(model, places, tmp_path, **options), heard)
    entities = directory.read_entities()
    place = lambda split: entities.loc[entities["split"] == split, ["true_latitude", "true_longitude"]].to_numpy()
    test, train = place("test"), place("train")
    assert 0 < len(test) <= 12 and len(test) + len(train) < 60
    assert min(great_circle_km(row, train).min() for row in test) >= 2000
    cells = entities.groupby("group_block")["split"].nunique()
    assert (cells == 1).all()
    assert any(f"{len(train)} rows to fit on, {len(test)} to test on" in line for line in heard.lines)
    assert not any("No split column" in line for line in heard.lines)
    assert read_settings(directory.config_path).split == "blocks"


@pytest.mark.slow
def test_a_finished_run_does_nothing_and_says_so(model, places, tmp_path):
    config = settings(model, places, tmp_path)
    config = RunSettings(**{**vars(config), "target": ("latitude", "longitude")})
    directory = run(config)
    before = {path: path.stat().st_mtime_ns for path in directory.path.rglob("*") if path.is_file()}
    heard = Reporter()
    run(config, heard)
    assert any("finished: nothing to do" in line for line in heard.lines)
    assert before == {path: path.stat().st_mtime_ns for path in directory.path.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_a_run_without_results_goes_on_from_its_states(model, places, tmp_path):
    config = settings(model, places, tmp_path, target=("founded",))
    directory = run(config)
    scores = directory.read_scores()
    directory.scores_path.unlink()
    heard = Reporter()
    run(config, heard)
    assert any("All states are stored already" in line for line in heard.lines)
    pd.testing.assert_frame_equal(directory.read_scores(), scores)


@pytest.mark.slow
def test_another_run_in_the_same_folder_is_refused(model, places, tmp_path):
    run(settings(model, places, tmp_path, target=("founded",)))
    with pytest.raises(InputError, match='prompt: "empty" there, "Where is {}" wanted'):
        run(settings(model, places, tmp_path, target=("founded",), prompt="Where is {}"))


@pytest.mark.slow
def test_config_json_gives_the_settings_back(model, places, tmp_path):
    config = settings(model, places, tmp_path, target=("founded",), layers=(0, 1))
    directory = run(config)
    assert read_settings(directory.config_path) == replace(config, dtype="float32")
    assert read_settings(directory.path) == read_settings(directory.config_path)
    with pytest.raises(InputError, match="There is no .*nowhere. Name the folder of a run, or its config.json"):
        read_settings(tmp_path / "nowhere")
    assert tuple(jaxprobe.open_activations(directory.activations_path)) == ("embed", "0", "1")
    (tmp_path / "bad.json").write_text(json.dumps({"settings": {"model": "x", "unheard": 1}}))
    with pytest.raises(InputError, match="not known .unheard. or lacks some .dataset"):
        read_settings(tmp_path / "bad.json")


@pytest.mark.slow
@pytest.mark.parametrize("mesh", ["data=2,model=2", "data=8"])
def test_devices_change_no_score(model, places, tmp_path, mesh):
    one = run(settings(model, places, tmp_path, target=("latitude", "longitude"))).read_scores()
    config = RunSettings(model, str(places), tmp_path / "many", mesh=mesh, target=("latitude", "longitude"))
    many = run(config).read_scores()
    pd.testing.assert_frame_equal(one, many, rtol=1e-2, atol=1e-3)


@pytest.mark.slow
def test_ten_lines_of_python(model, places):
    table = jaxprobe.load_table(str(places), target=["latitude", "longitude"])
    language_model = jaxprobe.load_model(model)
    activations = jaxprobe.extract_states(language_model, table, "Where is {}")
    probes = jaxprobe.fit_probes(activations, table)
    assert activations["2"].shape == (60, 64)
    assert probes.headline in activations and len(probes.scores)


@pytest.mark.slow
@pytest.mark.parametrize("fold_group", [None, "continent"])
def test_a_run_without_a_store_writes_the_same_files(model, places, tmp_path, fold_group):
    config = settings(
        model,
        places,
        tmp_path,
        target=("latitude", "longitude"),
        group=("continent",),
        store=False,
        fold_group=fold_group,
    )
    heard = Reporter()
    directory = run(config, heard)
    assert directory.is_complete and not directory.activations_path.exists() and not directory.controls_path.exists()
    assert read_settings(directory.config_path) == replace(config, dtype="float32")
    how = "leaving out each of 3 values of continent" if fold_group else "5-fold cross-validation"
    assert any(f"not stored: penalties are chosen by {how}" in line for line in heard.lines)
    assert directory.read_config()["result"]["chosen_by"] == how
    assert f"chosen by {how} on the 45 training rows" in directory.report_path.read_text()
    arrays, _ = directory.read_probes()
    assert arrays["k_fold_mse"].shape[0] == 4 and "leave_one_out_mse" not in arrays
    # The same probes from rows: a refit by scikit-learn at the alpha that was chosen.
    table = jaxprobe.load_table(str(places), target=["latitude", "longitude"])
    states = jaxprobe.extract_states(jaxprobe.load_model(model), table)
    predictions = directory.read_predictions().set_index(["layer", "row"])
    scores = directory.read_scores().set_index(["metric", "split", "target", "layer"])["alpha"]
    for state in states:
        alpha = scores["r2", "test", "mean", state]
        probe = Ridge(alpha).fit(states[state][~table.is_test].astype(np.float64), table.targets[~table.is_test])
        found = predictions.loc[state][["predicted_latitude", "predicted_longitude"]]
        expected = probe.predict(states[state][table.is_test])
        np.testing.assert_allclose(found.loc[np.flatnonzero(table.is_test)], expected, rtol=1e-3, atol=0.05)  # degrees
    run(config, heard)
    assert "finished: nothing to do" in heard.lines[-1]


def test_too_little_memory_is_said_before_any_work(model, places, tmp_path, monkeypatch):
    monkeypatch.setattr("jaxprobe.cost.memory.free_memory", lambda: 1000)
    for store in (True, False):
        heard = Reporter()
        with pytest.raises(InputError, match=r"needs 0.0\d GB of memory and this machine has 0.00 GB free"):
            run(settings(model, places, tmp_path, target=("founded",), store=store), heard)
        assert any(line.startswith("Memory: ") for line in heard.lines)
        assert not (tmp_path / "run").exists()


def test_too_little_disk_is_said_before_any_work(model, places, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(InputError, match=r"GB free"):
        run(settings(model, places, tmp_path, target=("founded",)))
    assert not (tmp_path / "run").exists()


def without_bos(model, tmp_path):
    folder = tmp_path / "no-bos"
    folder.mkdir()
    for path in jaxprobe.models.files.source.Path(model).iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config.pop("bos_token")
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return str(folder)


BAD = {
    "missing column": ({"target": ("altitude",)}, "altitude"),
    "no such prompt": ({"target": ("founded",), "prompt": "where"}, "is not the name of a prompt"),
    "layer": ({"target": ("founded",), "layers": (7,)}, "Layer 7 does not exist"),
    "mesh": ({"target": ("founded",), "mesh": "data=9"}, "needs 9 devices"),
    "dtype": ({"target": ("founded",), "dtype": "float16"}, "float16 overflows"),
    "text target": ({"target": ("continent",), "labels": False}, "continent"),
    "data set": ({"dataset": "world_places"}, "Did you mean world_place"),
    "fold group with a store": ({"target": ("founded",), "fold_group": "continent"}, "goes with --no-store"),
    "no such fold group": ({"target": ("founded",), "store": False, "fold_group": "land"}, "Add --group land"),
    "model": ({"model": "./nowhere"}, "No model at"),
    "unit vectors of years": ({"target": ("founded",), "unit_vectors": True}, "unit vectors need both"),
    "unit vectors from sums": (
        {"target": ("latitude", "longitude"), "unit_vectors": True, "store": False},
        "--unit-vectors needs stored states",
    ),
    "blocks of years": ({"target": ("founded",), "split": "blocks"}, "spatial blocks need both"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_settings_write_nothing(model, places, tmp_path, case):
    change, message = BAD[case]
    config = RunSettings(**{**vars(settings(model, places, tmp_path)), **change})
    with pytest.raises(InputError, match=message):
        run(config)
    assert not (tmp_path / "run").exists()


def test_a_text_longer_than_the_context_writes_nothing(model, places, tmp_path):
    frame = pd.read_csv(places)
    frame.loc[3, "name"] = "Paris " * 400
    frame.to_csv(places, index=False)
    with pytest.raises(InputError, match="longer, with their prompt, than the context of 256 tokens: 1 .*row 3"):
        run(settings(model, places, tmp_path, target=("founded",)))
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_tokenizer_without_bos_is_run_with_a_note(model, places, tmp_path):
    directory = run(settings(without_bos(model, tmp_path), places, tmp_path, target=("founded",)))
    assert any("no BOS" in note for note in directory.read_result()["notes"])


@pytest.mark.slow
def test_the_dtype_that_was_chosen_is_kept(model, places, tmp_path, monkeypatch):
    """A GPU's default is bfloat16: what begins there goes on so elsewhere, or is refused with that reason."""
    monkeypatch.setattr("jaxprobe.runs.prepare.choose_dtype", lambda dtype: dtype or "bfloat16")
    config = settings(model, places, tmp_path, target=("founded",))
    directory = run(config)
    monkeypatch.undo()
    assert read_settings(directory.config_path).dtype == "bfloat16"
    with pytest.raises(InputError, match='dtype: "bfloat16" there, "float32" wanted'):
        run(config)
    heard = Reporter()
    run(read_settings(directory.config_path), heard)
    assert "finished: nothing to do" in heard.lines[-1]


@pytest.mark.slow
def test_other_groups_are_another_run(model, places, tmp_path):
    config = settings(model, places, tmp_path, target=("founded",), group=("continent",))
    run(config)
    frame = pd.read_csv(places)
    frame["continent"] = frame["continent"].replace("Paris", "Rome")
    frame.to_csv(places, index=False)
    with pytest.raises(InputError, match="the weights, the table or the version of jaxprobe changed"):
        run(config)


@pytest.mark.slow
def test_predict_and_random_weights_need_no_mesh_of_the_run(model, places, tmp_path):
    """The settings of a run on more devices than are here."""
    directory = run(settings(model, places, tmp_path, target=("founded",)))
    config = directory.read_config()
    directory.write_config(config | {"settings": config["settings"] | {"mesh": "data=64"}})
    assert len(predict(directory.path, ["Paris"])) == 1
    assert random_states(Run(directory.path), "0")["0"].shape == (60, 64)
