"""The command line as a user types it."""

import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file

from jaxprobe import cli
from jaxprobe.extract.store import ActivationStore


def call(*arguments, **options):
    return subprocess.run(
        [sys.executable, "-m", "jaxprobe", *arguments], capture_output=True, text=True, timeout=300, **options
    )


def test_help_names_the_commands_and_does_not_wait_for_jax():
    result = call("--help")
    assert result.returncode == 0
    for command in ("demo", "run", "data"):
        assert command in result.stdout
    probe = "import sys, jaxprobe.cli; sys.exit('jax' in sys.modules or 'transformers' in sys.modules)"
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
    assert "--config belongs to the command run" in capsys.readouterr().err


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
