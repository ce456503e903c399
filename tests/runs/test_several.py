"""Several runs of one command: checked together, weights read once, gone on with, and one page over all."""

import json

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file, save_file

from jaxprobe.cli import main as cli
from jaxprobe.errors import InputError
from jaxprobe.results.results import Run
from jaxprobe.runs import several
from jaxprobe.settings import RunSettings, combine
from tests.runs.conftest import NAMES
from tests.tiny_llama import save_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two models called alike, and a table of numbers and one of labels."""
    folder = tmp_path_factory.mktemp("several")
    for name in ("first", "second"):
        save_model(folder / name / "model", NAMES)
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"name": [f"{NAMES[i % 6]} {i}" for i in range(60)]})
    frame.assign(value=rng.uniform(0, 9, 60)).to_csv(folder / "heights.csv", index=False)
    frame.assign(value=["ab"[i % 2] for i in range(60)]).to_csv(folder / "kinds <i>.csv", index=False)
    return folder


def call(folder, out, *arguments, models=("first/model",), tables=("heights.csv",)):
    common = ["--json", "--quiet", "--mesh", "data=1", "--out", str(out)]
    given = [str(folder / model) for model in models], [str(folder / table) for table in tables]
    cli.main(["run", "--model", *given[0], "--dataset", *given[1], *common, *arguments])


@pytest.mark.slow
def test_models_are_read_once_and_finished_runs_are_kept(folder, tmp_path, capsys, monkeypatch):
    loaded = []
    load = several.load
    monkeypatch.setattr(several, "load", lambda *given: (loaded.append(given[0].settings.model), load(*given))[1])
    command = (folder, tmp_path, "--prompt", "empty", "<b>At {}</b>")
    call(*command, models=("first/model", "second/model"))
    assert loaded == [str(folder / name / "model") for name in ("first", "second")]
    found = json.loads(capsys.readouterr().out)
    paths = [tmp_path / each["run"] for each in found["runs"]]
    assert len({path.name for path in paths}) == 4 and found["page"] == str(tmp_path / "index.html")
    assert all("first" in path.name or "second" in path.name for path in paths)
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "<b>At" not in page and page.count("&lt;b&gt;At") == 2 and "<script" not in page
    for each, path in zip(found["runs"], paths, strict=True):
        score = Run(path).score(Run(path).headline_layer, "r2")
        assert each["headline"]["r2"] == pytest.approx(score.value)  # JSON has 15 digits
        assert f"R² {score.value:.3f}".replace("-", "−") in page and f'href="{path.name}/report.html"' in page
    # A run by itself is the same, and its seconds are its own.
    alone = tmp_path / "alone"
    call(folder, alone)
    pd.testing.assert_frame_equal(Run(alone).scores, Run(paths[0]).scores)
    assert all(0 < each["seconds"]["extract"] < each["seconds"]["total"] for each in found["runs"])
    capsys.readouterr()
    # Whatever is missing is done, and no more.
    (paths[1] / "scores.parquet").unlink()
    before = [path.stat().st_mtime_ns for path in (paths[0] / "scores.parquet", paths[2] / "scores.parquet")]
    call(*command, models=("first/model", "second/model"))
    assert before == [path.stat().st_mtime_ns for path in (paths[0] / "scores.parquet", paths[2] / "scores.parquet")]
    assert (paths[1] / "scores.parquet").is_file() and len(loaded) == 2


def test_numbers_and_labels_stand_on_one_page(folder, tmp_path, capsys):
    call(folder, tmp_path, "--target", "value", tables=("heights.csv", "kinds <i>.csv"))
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "accuracy 0." in page or "accuracy 1." in page
    assert "R² " in page and "kinds &lt;i&gt;" in page and "kinds <i>" not in page


def test_all_problems_are_told_before_anything_is_written(folder, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        call(folder, tmp_path / "out", "--prompt", "empty", "nowhere", tables=("heights.csv", "absent.csv"))
    problems = json.loads(capsys.readouterr().out)["problems"]
    assert stop.value.code == 2 and len(problems) == 2
    assert sum("heights" in line and "'nowhere' is not the name of a prompt" in line for line in problems) == 1
    assert sum("absent.csv" in line for line in problems) == 1
    assert not (tmp_path / "out").exists()


def test_one_that_fails_leaves_the_others(folder, tmp_path, capsys):
    save_model(tmp_path / "broken", NAMES)
    (file,) = (tmp_path / "broken").glob("*.safetensors")
    tensors = load_file(file)
    next(value for name, value in tensors.items() if "layers.1" in name)[:] = np.nan
    save_file(tensors, file)
    with pytest.raises(SystemExit) as stop:
        call(folder, tmp_path / "out", models=(tmp_path / "broken", "first/model"))
    (problem,) = json.loads(capsys.readouterr().out)["problems"]
    assert stop.value.code == 2 and "heights-broken" in problem and "not finite" in problem
    assert Run(tmp_path / "out" / "heights-model").headline_layer
    page = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert "not finished" in page and 'href="heights-model/report.html"' in page


def test_folders_are_told_apart(tmp_path):
    settings = RunSettings(model="", dataset="", out=tmp_path)
    prompts = ("Where is {}", "Where is {}?", "empty")
    found = [each.out.name for each in combine(settings, ["cities"], ["demo"], prompts)]
    assert len(set(found)) == 3 and found[2] == "cities-demo"
    (single,) = combine(settings, ["cities"], ["demo"], ["empty"])
    assert single.out == tmp_path
    for given, message in (((["a", "a"], ["m"], ["empty"]), "twice"), (([], ["m"], ["empty"]), "names nothing")):
        with pytest.raises(InputError, match=message):
            combine(settings, *given)
    (tmp_path / "config.json").touch()
    with pytest.raises(InputError, match="is the folder of one run"):
        combine(settings, ["cities"], ["demo"], prompts)
