"""Commands keep what they compile: the second start compiles nothing, and a cache that is no good stops nobody."""

import json
import os
import subprocess
import sys

import pytest

from jaxprobe.data.catalog import load_table
from jaxprobe.host import compiled
from tests import compiling
from tests.tiny_llama import save_model

COUNTED = """
import atexit, json, sys
from jaxprobe.cli.main import main
from jaxprobe.host.compiled import keep_compiled
keep_compiled()
import jax
counts = {"compile_requests_use_cache": 0, "cache_hits": 0, "cache_misses": 0}
def listen(event, **about):
    name = event.rpartition("/")[2]
    if "compilation_cache" in event and name in counts:
        counts[name] += 1
jax.monitoring.register_event_listener(listen)
atexit.register(lambda: print(json.dumps(counts), file=sys.stderr))
main(sys.argv[1:])
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compiled")
    save_model(folder / "model", load_table("cities", limit=60).texts)
    return folder


def start(folder, name):
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("JAX_", "XLA_"))}
    environment |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": compiling.FLAGS, "XDG_CACHE_HOME": str(folder / "cache")}
    command = ["run", "--model", "model", "--dataset", "cities", "--limit", "60", "--out", name]
    return subprocess.Popen(
        [sys.executable, "-c", COUNTED, *command], cwd=folder, env=environment, stderr=subprocess.PIPE, text=True
    )


def counts(process):
    _, said = process.communicate()
    assert process.returncode == 0, said
    assert "compilation cache" not in said  # neither of two processes at once, nor of a damaged program
    return json.loads(said.splitlines()[-1])


@pytest.mark.slow
def test_the_second_start_compiles_nothing(folder):
    for first in [start(folder, "first"), start(folder, "beside it")]:
        counts(first)
    (cache,) = (folder / "cache" / "jaxprobe").iterdir()
    again = counts(start(folder, "second"))
    assert again["cache_hits"] == again["compile_requests_use_cache"] > 10 and not again["cache_misses"]
    # One program is cut short, of another the writing was broken off.
    short, half = sorted(cache.glob("*-cache"), key=lambda path: path.stat().st_size)[-2:]
    short.write_bytes(short.read_bytes()[:100])
    half.write_bytes(half.read_bytes()[:100])
    half.with_name(half.name.removesuffix("-cache") + "-atime").unlink()
    assert counts(start(folder, "third"))["cache_misses"] >= 1
    assert half.stat().st_size > 100


@pytest.mark.parametrize(
    "variables",
    [
        {"JAX_ENABLE_COMPILATION_CACHE": "false"},
        {"JAX_COMPILATION_CACHE_DIR": "mine"},
        {"XDG_CACHE_HOME": "a file"},
        {},
    ],
    ids=str,
)
def test_what_decides_of_the_folder(monkeypatch, tmp_path, variables):
    (tmp_path / "a file").write_text("")
    for name in compiled.VARIABLES:
        monkeypatch.setenv(name, "")  # so that it is put back
        monkeypatch.delenv(name)
    monkeypatch.delitem(sys.modules, "jax")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name, value in variables.items():
        monkeypatch.setenv(name, str(tmp_path / value) if name == "XDG_CACHE_HOME" else value)
    compiled.keep_compiled()
    chosen = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    if variables:
        assert chosen == variables.get("JAX_COMPILATION_CACHE_DIR") and not (tmp_path / "cache").exists()
    else:
        assert chosen == str(compiled.cache_folder()) and os.path.isdir(chosen)
        assert os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] == "0"


def test_without_a_folder_of_its_own_it_is_the_homes(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    for base in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", base)
        assert compiled.cache_folder().parent == tmp_path / ".cache" / "jaxprobe"
