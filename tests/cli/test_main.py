"""The command line as a user types it."""

import gc
import importlib.metadata
import json
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file

from jaxprobe import load_table
from jaxprobe.cli import main as cli
from jaxprobe.extract.store.writer import ActivationStore
from jaxprobe.results.folder import RunDirectory
from jaxprobe.settings import RunConfig, default_folder
from tests.tiny_llama import save_model


def call(*arguments, **options):
    return subprocess.run(
        [sys.executable, "-m", "jaxprobe", *arguments], capture_output=True, text=True, timeout=300, **options
    )


def test_help_names_the_commands_and_does_not_wait_for_jax():
    result = call("--help")
    assert result.returncode == 0
    for command in ("demo", "run", "data"):
        assert command in result.stdout
    probe = "import sys, jaxprobe.cli.main; sys.exit('jax' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", probe]).returncode == 0


def test_lists_the_tables(capsys):
    cli.main(["data", "list"])
    printed = capsys.readouterr().out
    assert "cities" in printed and "world_place" in printed


def test_unusable_input_exits_with_2_and_says_why_on_stderr(tmp_path):
    result = call("run", "--model", "demo", "--dataset", "nowhere", "--out", str(tmp_path / "run"))
    assert result.returncode == 2
    assert result.stdout == "" and "No data set or file is called 'nowhere'" in result.stderr
    assert not (tmp_path / "run").exists()


def test_config_belongs_to_run(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["demo", "--config", str(tmp_path / "config.json")])
    assert stop.value.code == 2
    assert "Unrecognized options: --config" in capsys.readouterr().err


def test_exports_a_run(tmp_path, capsys):
    values = {state: np.arange(12, dtype=np.float32).reshape(4, 3) + i for i, state in enumerate(("embed", "0"))}
    with ActivationStore.open(
        tmp_path / "run" / "activations", {}, [np.arange(4)], tuple(values), 3, "float32"
    ) as store:
        store.write(0, values)
    cli.main(["export", str(tmp_path / "run"), "--out", str(tmp_path / "plain"), "--states", "0"])
    assert capsys.readouterr().out == f"{tmp_path / 'plain' / '0.npy'}\n"
    np.testing.assert_array_equal(np.load(tmp_path / "plain" / "0.npy"), values["0"])
    cli.main(["export", str(tmp_path / "run"), "--out", str(tmp_path / "all.safetensors")])
    assert {name: tensor.tolist() for name, tensor in load_file(tmp_path / "all.safetensors").items()} == {
        state: value.tolist() for state, value in values.items()
    }
    with pytest.raises(SystemExit) as stop:
        cli.main(["export", str(tmp_path / "run"), "--out", str(tmp_path / "plain"), "--states", "7"])
    assert stop.value.code == 2 and "has no state 7" in capsys.readouterr().err


@pytest.fixture(scope="module")
def towns(tmp_path_factory):
    """A folder with a table and a tiny model, and the command that runs them; the run's folder is not named."""
    folder = tmp_path_factory.mktemp("towns")
    save_model(folder / "model", ["Paris", "Lima"])
    years = np.random.default_rng(0).uniform(1500, 2000, 60)
    pd.DataFrame({"name": [f"[bold]Town {i}" for i in range(60)], "founded": years}).to_csv(folder / "towns.csv")
    return folder, ["run", "--model", "model", "--dataset", "towns.csv", "--target", "founded", "--mesh", "data=1"]


@pytest.mark.slow
def test_scripts_get_one_json_object_and_nothing_else(towns):
    folder, command = towns
    result = call(*command, "--json", "--quiet", cwd=folder)
    assert result.returncode == 0 and result.stderr == ""
    found = json.loads(result.stdout)
    assert found["run"] == "runs/towns-model" and found["model"] == "model"
    directory = RunDirectory(folder / found["run"])
    scores = pd.read_csv(folder / found["scores"])
    layer = found["headline"]["layer"]
    row = scores.query("split == 'test' and metric == 'r2' and target == 'mean'").set_index("layer").loc[layer]
    assert layer == directory.read_config()["result"]["headline_layer"]
    assert (found["headline"]["r2"], found["headline"]["alpha"]) == pytest.approx((row["value"], row["alpha"]))
    assert (folder / found["report"]).is_file() and found["seconds"]["total"] > found["seconds"]["extract"] > 0
    assert {"load", "compile", "extract", "fit", "score", "controls"} <= set(found["seconds"])


@pytest.mark.slow
def test_a_smoke_run_has_a_folder_of_its_own(towns, monkeypatch, capsys):
    folder, command = towns
    monkeypatch.chdir(folder)
    cli.main([*command, "--limit", "40"])
    printed = capsys.readouterr()
    assert (folder / "runs/towns-model-limit-40/report.html").is_file()
    assert "Folder: runs/towns-model-limit-40" in printed.err and " TFLOP, about " in printed.err
    assert "embed" in printed.out and max(map(len, printed.out.splitlines())) <= 80


def test_problems_are_json_too(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["run", "--model", "demo", "--dataset", "worldplace", "--json", "--quiet"])
    printed = capsys.readouterr()
    assert stop.value.code == 2 and "Error" in printed.err
    (problem,) = json.loads(printed.out)["problems"]
    assert "Did you mean world_place?" in problem


def test_default_folders():
    folder = lambda *arguments, **options: str(default_folder(RunConfig(*arguments, **options)))
    assert folder("demo", "cities") == "runs/cities-demo"
    assert folder("meta-llama/Llama-2-7b-hf", "my/rivers.csv.gz", limit=300) == "runs/rivers-Llama-2-7b-hf-limit-300"
    assert folder("~/x.gguf", "art", prompt="Where is {}?") == "runs/art-x-Where-is"


@pytest.mark.parametrize("name", ["cities.csv", "cities.parquet"])
def test_a_table_written_as_its_name_says_reads_as_the_same_table(name, tmp_path, capsys):
    path = tmp_path / name
    cli.main(["data", "export", "cities", "--out", str(path), "--limit", "200"])
    assert capsys.readouterr().out == f"{path}\n"
    table = load_table("cities", limit=200)
    again = load_table(str(path), target=["latitude", "longitude"], group=["country", "continent"])
    assert again.texts == table.texts and (again.is_test == table.is_test).all()
    np.testing.assert_array_equal(again.targets, table.targets)
    assert {name: list(labels) for name, labels in again.groups.items()} == {
        name: list(labels) for name, labels in table.groups.items()
    }


def test_a_table_is_not_written_under_another_kind_of_name(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["data", "export", "cities", "--out", str(tmp_path / "cities.xlsx"), "--limit", "200"])
    assert stop.value.code == 2 and "is neither .csv nor .parquet" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_reader_that_has_read_enough_is_no_error():
    pipe = f"{sys.executable} -m jaxprobe data list | head -n 1"
    result = subprocess.run(["bash", "-c", pipe], capture_output=True, text=True)
    assert result.returncode == 0 and result.stderr == ""


def test_ctrl_c_is_not_lost_in_the_garbage_collection(monkeypatch, capsys):
    """JAX has a callback there, and Python drops what is raised in one."""
    calls = []

    def _xla_gc_callback(*_):
        if not calls:
            calls.append(signal.raise_signal(signal.SIGINT))

    def work(*_):
        gc.callbacks.append(_xla_gc_callback)
        gc.collect()
        gc.callbacks.remove(_xla_gc_callback)
        time.sleep(5)

    monkeypatch.setattr(cli, "_dispatch", work)
    with pytest.raises(SystemExit) as stop:
        cli.main(["demo"])
    assert calls and stop.value.code == 130 and "Interrupted" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_without_a_command_the_help_is_shown(capsys):
    cli.main([])
    shown = capsys.readouterr().out
    assert "jaxprobe demo" in shown and "--json" in shown and "doctor" in shown


def test_every_command_says_in_its_help_what_it_takes(capsys):
    from jaxprobe.cli import commands

    for words in [*commands.COMMANDS, *commands.EXPERIMENTS]:
        with pytest.raises(SystemExit) as stop:
            cli.main([*words.split(), "--help"])
        shown = capsys.readouterr().out
        assert stop.value.code == 0 and "--json" in shown and "--quiet" in shown, words
        assert ("--config" in shown and "--processes" in shown) == (words == "run"), words
    cli.main(["--version"])
    assert capsys.readouterr().out == f"jaxprobe {importlib.metadata.version('jaxprobe')}\n"
