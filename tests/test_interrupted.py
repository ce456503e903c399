"""The command line, interrupted at random moments by every signal that comes: nothing is lost or computed twice."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest

from jaxprobe import open_activations
from jaxprobe.extract.store.layout import is_complete
from jaxprobe.extract.trie import SHARD_ENTITIES
from tests import compiling, started
from tests.tiny_llama import save_model

pytestmark = pytest.mark.slow

NAMES = ["Paris", "Lima", "Oslo", "Rome", "Quito", "Accra", "Delhi", "Kyoto", "Perth", "Cairo"]
SHARDS = 5


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    """The command of a run of five shards, less --out."""
    folder = tmp_path_factory.mktemp("run")
    save_model(folder / "model", NAMES)
    count = SHARDS * SHARD_ENTITIES - 100
    names = [f"{NAMES[i % 10]} {i // 10}" for i in range(count)]
    years = np.random.default_rng(0).uniform(1500, 2000, count)
    pd.DataFrame({"name": names, "founded": years}).to_csv(folder / "towns.csv", index=False)
    options = {"model": folder / "model", "dataset": folder / "towns.csv", "target": "founded", "mesh": "data=1"}
    return ["run", *(part for k, v in options.items() for part in (f"--{k}", str(v)))]


def start(command, out, python=False):
    """``python``: with its imports, as a user starts it."""
    environment = {**os.environ, "XLA_FLAGS": compiling.FLAGS}  # one device, as a user has it
    command = [*command, "--out", str(out)]
    if not python:
        return started.Process(command, env=environment)
    pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-m", "jaxprobe", *command], env=environment, **pipe)


def complete(out):
    return [shard for shard in range(SHARDS) if is_complete(out / "activations", shard)]


def interrupt(process, out, shards, number, delay=0.0):
    """Waits until so many shards are complete, and a little longer; sends the signal; returns (exit code, stderr)."""
    while process.poll() is None and not ((out / "activations").exists() and len(complete(out)) >= shards):
        time.sleep(0.02)
    time.sleep(delay)
    process.send_signal(number)
    _, errors = process.communicate(timeout=120)
    return process.returncode, errors


def test_interrupted_at_random_moments(command, tmp_path):
    out, rng = tmp_path / "run", np.random.default_rng(1)
    written = {}  # shard -> when its last file was
    for number, code in (
        (signal.SIGKILL, -signal.SIGKILL),
        (signal.SIGTERM, 143),
        (signal.SIGINT, 130),
    ):
        goal = min(len(written) + int(rng.integers(2)), SHARDS - 1)
        process = start(command, out, python=number != signal.SIGTERM)
        found, errors = interrupt(process, out, goal, number, rng.uniform(0, 0.3))
        assert found == code, errors
        assert "Traceback" not in errors
        if written:
            assert f"Going on: {len(written)} of {SHARDS} shards are stored" in errors or len(written) == SHARDS
        if code > 0:
            assert "Stored shards are kept: the same command goes on from there" in errors
        now = {shard: (out / "activations" / str(shard)).stat().st_mtime_ns for shard in complete(out)}
        # What was complete was not computed again.
        assert written.items() <= now.items()
        written = now
    code, errors = interrupt(start(command, out), out, SHARDS, signal.SIGKILL)
    assert code == -signal.SIGKILL, errors  # it had not ended by itself
    assert all((out / "activations" / str(shard)).stat().st_mtime_ns == time for shard, time in written.items())

    straight = tmp_path / "straight"
    code, errors = interrupt(start(command, straight), straight, SHARDS, signal.SIGKILL)
    assert code == -signal.SIGKILL, errors
    ours, theirs = (open_activations(folder / "activations") for folder in (out, straight))
    for state in theirs:
        assert ours[state].tobytes() == theirs[state].tobytes()
