"""A run's files: what is written comes back, bad tables are refused whole, an interrupted write changes nothing."""

import json

import numpy as np
import pandas as pd
import pytest

from jaxprobe.errors import InputError
from jaxprobe.results.folder import RunDirectory, replacing


@pytest.fixture
def run(tmp_path):
    return RunDirectory(tmp_path / "run")


def scores_frame() -> pd.DataFrame:
    keys = {"model": "m", "dataset": "d", "prompt": "", "layer": "embed", "target": "mean", "split": "test"}
    rows = [
        keys | {"metric": "r2", "value": 0.1 + 0.2, "ci_low": 0.25, "ci_high": 0.35, "alpha": 10.0},
        keys | {"metric": "mae", "value": -1.5e-30, "ci_low": np.nan, "ci_high": np.nan, "alpha": 10.0},
    ]
    return pd.DataFrame(rows)


def entities_frame() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "row": [7, 3],
            "text": ['Ō"tsu</script>', "عمّان\n🏙️"],
            "split": ["train", "test"],
            "group_continent": ["NA", ""],
            "true_latitude": [35.0, 31.95],
            "true_longitude": [135.9, 35.93],
        }
    )


def predictions_frame() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "layer": ["embed", "0"],
            "row": [3, 3],
            "predicted_latitude": np.float32([30.5, 31.0]),
            "predicted_longitude": np.float32([36.5, -181.0]),
            "error_km": [170.0, np.nan],
        }
    )


@pytest.mark.parametrize(
    ("name", "frame"),
    [("scores", scores_frame()), ("entities", entities_frame()), ("predictions", predictions_frame())],
)
def test_a_table_comes_back_as_it_was_written(run, name, frame):
    getattr(run, f"write_{name}")(frame)
    pd.testing.assert_frame_equal(getattr(run, f"read_{name}")(), frame)


def test_scores_csv_holds_the_same_numbers_to_the_last_bit(run):
    run.write_scores(scores_frame())
    from_csv = pd.read_csv(run.scores_csv_path, keep_default_na=False, na_values={"ci_low": "", "ci_high": ""})
    pd.testing.assert_frame_equal(from_csv, scores_frame(), check_exact=True)


def test_probes_and_config_come_back(run):
    arrays = {"weights": np.arange(24, dtype=np.float32).reshape(4, 6).T, "alpha": np.float64([1e-3, 1e4])}
    run.write_probes(arrays, {"headline_layer": "17"})
    read, metadata = run.read_probes()
    assert metadata == {"headline_layer": "17"}
    assert {name: array.dtype for name, array in read.items()} == {"weights": np.float32, "alpha": np.float64}
    for name in arrays:
        np.testing.assert_array_equal(read[name], arrays[name])
    config = {"settings": {"prompt": "où est {}"}, "fingerprint": "ab"}
    run.write_config(config)
    assert run.read_config() == config


def test_every_problem_of_a_table_is_raised_at_once(run):
    bad = scores_frame().drop(columns=["ci_low", "metric"]).assign(value=["high", "low"], colour="red")
    with pytest.raises(InputError) as caught:
        run.write_scores(bad)
    message = str(caught.value)
    assert "missing column metric, ci_low (found model, dataset, prompt, layer, target, split, value" in message
    assert "column 'value' holds" in message and "wanted float" in message
    assert "unknown column 'colour'" in message
    assert not run.path.exists()


@pytest.mark.parametrize(
    ("name", "frame", "message"),
    [
        ("scores", scores_frame().assign(metric="r2"), "1 rows repeat another row's"),
        ("scores", scores_frame().assign(split=["test", "dev"]), "split holds 'dev'"),
        ("scores", scores_frame().assign(layer=["0", None]), "'layer' has 1 missing values"),
        ("entities", entities_frame().assign(row=3), "1 values of row occur twice"),
        ("entities", entities_frame().assign(row=[1.0, 2.0]), "'row' holds float64, wanted integer"),
        ("entities", entities_frame().assign(group_continent=[1, 2]), "'group_continent' holds int64, wanted string"),
        ("entities", entities_frame().filter(["row", "text", "split"]), "no column true_<target>"),
        ("predictions", predictions_frame().assign(layer="0"), "1 pairs of layer and row occur twice"),
        ("predictions", predictions_frame().filter(["layer", "row"]), "no column predicted_<target>"),
    ],
)
def test_a_bad_table_is_refused_with_the_fact(run, name, frame, message):
    with pytest.raises(InputError) as caught:
        getattr(run, f"write_{name}")(frame)
    assert message in str(caught.value)
    assert not run.path.exists()


def test_an_interrupted_write_leaves_the_old_file_and_no_other(run):
    run.write_config({"fingerprint": "old"})
    with pytest.raises(KeyboardInterrupt), replacing(run.config_path) as temporary:
        temporary.write_text('{"finger')
        raise KeyboardInterrupt
    assert run.read_config() == {"fingerprint": "old"}
    assert [file.name for file in run.path.iterdir()] == ["config.json"]


def test_a_config_that_json_cannot_hold_leaves_the_old_one(run):
    run.write_config({"fingerprint": "old"})
    with pytest.raises(ValueError, match="Out of range float"):
        run.write_config({"fingerprint": "new", "result": float("nan")})
    assert run.read_config() == {"fingerprint": "old"}


def test_missing_or_damaged_files_are_said(run):
    with pytest.raises(InputError, match=r"config\.json is missing"):
        run.read_config()
    run.path.mkdir()
    for path in (run.config_path, run.scores_path, run.probes_path):
        path.write_bytes(b"\x00 half a file")
    with pytest.raises(InputError, match="is not valid JSON"):
        run.read_config()
    run.config_path.unlink()
    with pytest.raises(InputError, match="cannot be read as Parquet"):
        run.read_scores()
    with pytest.raises(InputError, match=r"cannot be read .*jaxprobe run --config"):
        run.read_probes()


def test_owner_new_empty_and_own_folders_pass(run):
    config = {"fingerprint": "a", "settings": {"prompt": ""}}
    run.check_owner(config)
    run.path.mkdir()
    (run.path / ".DS_Store").touch()
    run.check_owner(config)
    run.write_config(config)
    run.check_owner(config | {"settings": {"prompt": "", "mesh": "data=8"}})


def test_owner_of_another_run_shows_each_difference_side_by_side(run):
    settings = {"model": "a", "probe": {"alphas": [1.0, 10.0], "seed": 0}, "layers": None}
    run.write_config({"fingerprint": "a", "settings": settings})
    wanted = {"model": "b", "probe": {"alphas": (1.0, 10.0), "seed": 1}, "dtype": "float32", "layers": None}
    with pytest.raises(InputError) as caught:
        run.check_owner({"fingerprint": "b", "settings": wanted})
    assert str(caught.value).splitlines()[1:] == [
        '  model: "a" there, "b" wanted',
        "  probe.seed: 0 there, 1 wanted",
        '  dtype: (absent) there, "float32" wanted',
    ]
    with pytest.raises(InputError, match="settings are equal; the weights"):
        run.check_owner({"fingerprint": "b", "settings": settings})


def test_controls_are_scores_with_their_control(run):
    controls = scores_frame().assign(control="none", resampled="rows")
    controls = pd.concat([controls, controls.assign(control="ngrams")], ignore_index=True)
    run.write_controls(controls)
    pd.testing.assert_frame_equal(run.read_controls(), controls)
    with pytest.raises(InputError, match="controls: missing column control, resampled"):
        run.write_controls(scores_frame())


def test_owner_a_folder_of_other_files_is_refused(run):
    run.path.mkdir()
    (run.path / "thesis.tex").touch()
    with pytest.raises(InputError, match=r"not a run of jaxprobe \(found thesis.tex\)"):
        run.check_owner({"fingerprint": "a"})


def test_complete_only_with_a_result_and_every_file(run):
    run.write_scores(scores_frame())
    run.write_controls(scores_frame().assign(control="none", resampled="rows"))
    run.write_entities(entities_frame())
    run.write_predictions(predictions_frame())
    run.write_probes({"weights": np.zeros(3)}, {})
    run.report_path.write_text("<!doctype html>")
    assert not run.is_complete
    run.write_config({"fingerprint": "a"})
    assert not run.is_complete
    run.write_config({"fingerprint": "a", "result": {"headline_layer": "3"}})
    assert run.is_complete
    run.report_path.unlink()
    assert not run.is_complete


def test_config_is_readable_text(run):
    run.write_config({"settings": {"prompt": "東京 {}"}})
    assert "東京 {}" in run.config_path.read_text(encoding="utf-8")
    assert json.loads(run.config_path.read_text(encoding="utf-8")) == {"settings": {"prompt": "東京 {}"}}
