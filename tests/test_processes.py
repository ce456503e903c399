"""Real processes on this machine that share a run: the scores of one process, an end of all, refusals."""

import contextlib
import functools
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from jaxprobe.errors import InputError
from jaxprobe.extract import extraction as collect
from jaxprobe.extract.store.layout import is_complete
from jaxprobe.host.processes import check_alike, gather_rows, start
from jaxprobe.models.files.source import DEMO_MODEL
from jaxprobe.results.folder import RunDirectory
from jaxprobe.runs.execute import run
from jaxprobe.settings import RunConfig
from tests import compiling, started
from tests.tiny_llama import save_model

pytestmark = pytest.mark.slow

SHARD, SHARDS = 60, 12  # entities; in a run 4,096
NAMES = ["Paris", "Lima", "Oslo", "Rome", "Quito", "Accra", "Delhi", "Kyoto", "Perth", "Cairo"]
HEARTBEAT = 5  # seconds, for these tests
PATIENCE = 200  # seconds after which a process hangs, also on a machine with other work
# Sums in another order leave 1e-6 in the states; a penalty chosen between two that are as good may then differ.
TOLERANCE = 1e-4
# Rows that are predicted alike change places: of 30 test rows each such pair moves Spearman's coefficient by 4e-4, and
# where the last token tells nothing `embed` predicts all of them alike.
RANK_TOLERANCE = 5e-3
SCRIPTS = Path(__file__).parents[1] / "scripts"
# The command line, with small shards, a slow disk, and a line for each shard that a process writes.
PROGRAM = f"""
import functools, sys, time
from jaxprobe.host import processes as distributed
from jaxprobe.cli.main import main
from jaxprobe.extract import extraction as collect
from jaxprobe.extract.store import writer
from jaxprobe.extract.store.writer import ActivationStore

def write(self, shard, states, write=ActivationStore.write):
    write(self, shard, states)
    print("wrote", shard, file=sys.stderr)
    time.sleep(0.1)

ActivationStore.write = write
collect.plan_bins = functools.partial(collect.plan_bins, shard_entities={SHARD})
distributed.HEARTBEAT_SECONDS = {HEARTBEAT}
writer.SHARED_SECONDS = 1  # a disk of this machine shows a file at once
main(sys.argv[1:])
"""

# Where the other process is killed: none has to hear of it.
NOBODY_LISTENS = "from jaxprobe.host import processes\nprocesses.LEAVE_SECONDS = 0\n"
FULL_DISK = "import shutil\nshutil.disk_usage = lambda path, usage=shutil.disk_usage('/'): usage._replace(free=0)\n"


@pytest.fixture(scope="module", autouse=True)
def small_shards():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(collect, "plan_bins", functools.partial(collect.plan_bins, shard_entities=SHARD))
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny model, and a table of five shards in which the names tell something of the target."""
    return write_inputs(tmp_path_factory.mktemp("inputs"))


def write_inputs(folder, **save):
    """The model and the table in a folder; ``save`` as of `tests.tiny_llama.save_llama`."""
    save_model(folder / "model", NAMES, **save)
    count = SHARDS * SHARD - 10
    names = [f"{NAMES[i % 10]} {i // 10}" for i in range(count)]
    years = np.random.default_rng(0).normal(1700 + 20.0 * (np.arange(count) % 10), 10)
    pd.DataFrame({"name": names, "founded": years}).to_csv(folder / "towns.csv", index=False)
    return folder


@pytest.fixture(scope="module")
def stored(folder):
    """The run of one process."""
    return run(settings(folder, folder / "stored", store=True))


def settings(folder, out, **other):
    options = {"dataset": str(folder / "towns.csv"), "target": ("founded",), "mesh": "data=1"} | other
    return RunConfig(model=str(folder / "model"), out=out, **options)


def launch(commands, *, devices=1, folders=None, slurm=False, before=None, python=False):
    """Starts the processes of a run, one for each command, told where they are or with the variables of a SLURM job.

    ``before`` is a line for each of them, which runs before its program; ``python`` starts them as users do, with
    imports and hashes of their own.
    """
    # Below the ports that the system gives to connections, of which a bucket has many.
    count, number = len(commands), int(np.random.default_rng().integers(12_000))
    processes = []
    for process, command in enumerate(commands):
        environment = {**os.environ, "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} {compiling.FLAGS}"}
        where = f"{process}/{count}@localhost:{20_000 + number}"
        if slurm:
            names = {
                "JOB_ID": number,
                "STEP_NODELIST": "localhost",
                "NTASKS": count,
                "PROCID": process,
                "LOCALID": process,
            }
            environment |= {f"SLURM_{name}": str(value) for name, value in names.items()}
            where = "auto"
        program = (before[process] if before else "") + PROGRAM
        options = {"env": environment, "cwd": folders[process] if folders else None}
        words = [*command, "--processes", where]
        if python:
            pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
            processes.append(subprocess.Popen([sys.executable, "-c", program, *words], **pipe, **options))
        else:
            processes.append(started.Process(words, program=program, **options))
    return processes


def ended(processes):
    """[(exit code, stdout, stderr)] of all of them; fails, and leaves none behind, where one hangs."""
    try:
        until = time.monotonic() + PATIENCE
        ends = [process.communicate(timeout=max(1, until - time.monotonic())) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, *output) for process, output in zip(processes, ends, strict=True)]


def arguments(folder, out, *more):
    options = {"model": folder / "model", "dataset": folder / "towns.csv", "target": "founded", "out": out}
    return ["run", *(part for name, value in options.items() for part in (f"--{name}", str(value))), *more]


def assert_same_scores(out, expected):
    ours, theirs = (RunDirectory(path).read_scores() for path in (out, expected.path))
    keys = ["layer", "target", "split", "metric"]
    ours, theirs = (frame.set_index(keys).sort_index() for frame in (ours, theirs))
    r2 = theirs.query("metric == 'r2' and split == 'test'")["value"]
    assert r2.max() > 0.1  # there is something to read
    assert list(ours.index) == list(theirs.index)
    scale = theirs["value"].abs().clip(lower=1)
    bound = np.where(theirs.index.get_level_values("metric") == "spearman", RANK_TOLERANCE, TOLERANCE) * scale
    for column in ("value", "ci_low", "ci_high"):
        difference = (ours[column] - theirs[column]).abs()
        assert (ours[column].isna() == theirs[column].isna()).all()
        assert not (difference > bound).any(), difference[difference > bound]
    assert RunDirectory(out).read_result()["headline_layer"] == expected.read_result()["headline_layer"]


@pytest.mark.parametrize(
    ("count", "devices", "mesh"),
    [
        (2, 2, "data=4"),  # each process takes shards of its own
        (4, 1, "data=2,model=2"),  # two processes share each shard's heads, and take turns at writing
    ],
)
def test_the_scores_are_those_of_one_process(folder, stored, tmp_path, count, devices, mesh):
    commands = [arguments(folder, tmp_path / "run", "--mesh", mesh)] * count
    ends = ended(launch(commands, devices=devices, python=count == 2))
    assert [code for code, _, _ in ends] == [0] * count, ends[0][2]
    assert_same_scores(tmp_path / "run", stored)
    assert "Report: " in ends[0][2] and "R2" in ends[0][1]
    assert all(output == "" for _, output, _ in ends[1:])
    written = [re.findall(r"^wrote (\d+)$", errors, re.MULTILINE) for _, _, errors in ends]
    assert all(written) and sorted(int(shard) for shards in written for shard in shards) == list(range(SHARDS))


def test_without_a_store(folder, tmp_path):
    expected = run(settings(folder, tmp_path / "alone", store=False))
    ends = ended(launch([arguments(folder, tmp_path / "run", "--no-store", "--mesh", "fsdp=2")] * 2))
    assert [code for code, _, _ in ends] == [0, 0], ends[0][2]
    assert_same_scores(tmp_path / "run", expected)


def complete(out):
    """Shard -> when its last file was written."""
    shards = [out / "activations" / str(shard) for shard in range(SHARDS)]
    return {shard.name: shard.stat().st_mtime_ns for shard in shards if is_complete(shard.parent, int(shard.name))}


def end_one(processes, out, shards, process, number):
    """Waits for so many complete shards and sends the signal to one process; returns how all ended, and when."""
    while len(complete(out)) < shards and all(process.poll() is None for process in processes):
        time.sleep(0.02)
    processes[process].send_signal(number)
    sent = time.monotonic()
    return ended(processes), time.monotonic() - sent


def test_a_process_that_ends_ends_all_and_the_next_start_goes_on(folder, stored, tmp_path):
    out = tmp_path / "run"
    commands = [arguments(folder, out)] * 2
    ends, seconds = end_one(launch(commands, before=[NOBODY_LISTENS] * 2), out, 1, 1, signal.SIGKILL)
    assert ends[1][0] == -signal.SIGKILL and ends[0][0] != 0
    assert seconds < HEARTBEAT + 20
    assert "Process 1 is silent for 5 s: killed, or its machine is gone" in ends[0][2]
    first = complete(out)
    assert first and not (out / "scores.csv").exists()

    ends, seconds = end_one(launch(commands), out, len(first) + 1, 1, signal.SIGTERM)
    assert [code for code, _, _ in ends] == [143, 143], ends
    assert seconds < 20
    assert "Stored shards are kept: the same command goes on from there" in ends[0][2]
    assert f"Going on: {len(first)} of {SHARDS} shards are stored" in ends[0][2]
    second = complete(out)
    assert first.items() < second.items()

    # One process goes on with what two have begun.
    run(settings(folder, out, store=True))
    assert second.items() <= complete(out).items()
    assert_same_scores(out, stored)


def test_a_folder_that_is_not_shared_is_refused(folder, tmp_path):
    folders = [tmp_path / "one machine", tmp_path / "another"]
    for each in folders:
        each.mkdir()
    ends = ended(launch([arguments(folder, "run")] * 2, folders=folders, slurm=True))
    assert [code for code, _, _ in ends] == [2, 2], ends
    assert re.search("Process 1: .* is not the folder that process 0 writes to", ends[0][2])
    assert not list(folders[1].iterdir())


def test_unlike_processes_are_refused():
    check_alike(["a", "a"])
    with pytest.raises(InputError, match=r"Process 1, 2 has other settings, another table, .* \(b, not a\)"):
        check_alike(["a", "b", "b"])


def test_other_meshes_are_refused_and_scripts_are_told_by_process_0(folder, tmp_path):
    meshes = "data=2", "model=2"
    ends = ended(launch([arguments(folder, tmp_path / "run", "--mesh", mesh, "--json") for mesh in meshes]))
    assert [code for code, _, _ in ends] == [2, 2], ends
    (problem,) = json.loads(ends[0][1])["problems"]
    assert re.search(r"Process 1 has .* \((\w+) on model=2, not \1 on data=2\)", problem)
    assert f"Error: {problem}" in ends[0][2] and ends[1][1] == ""


def test_scripts_are_told_what_one_process_found(folder, tmp_path):
    """The disk of one process is full, which no other one sees."""
    commands = [arguments(folder, tmp_path / "run", "--json")] * 2
    ends = ended(launch(commands, before=("", FULL_DISK)))
    assert [code for code, _, _ in ends] == [2, 2], ends
    (problem,) = json.loads(ends[0][1])["problems"]
    assert re.match("Process 1: Shard .* the disk is full", problem) and problem in ends[0][2] and ends[1][1] == ""


@pytest.mark.parametrize("text", ["2", "2/2@localhost:1", "0/2@localhost", "-1/2@localhost:1"])
def test_unusable_processes_are_refused(text):
    with pytest.raises(InputError, match="neither auto nor I/N@HOST:PORT"):
        start(text, print)


def test_rows_go_to_their_places():
    values = np.arange(6.0).reshape(3, 2)
    whole = gather_rows({"values": values}, np.array([2, 0, 1]))
    assert whole["values"].tolist() == [[2, 3], [4, 5], [0, 1]]


def test_a_real_model_by_a_launch_script(tmp_path):
    options = {"model": DEMO_MODEL, "dataset": "cities", "limit": 150}
    expected = run(RunConfig(out=tmp_path / "alone", mesh="data=1", **options))
    command = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    environment |= {"XLA_FLAGS": "", "JAXPROBE": str(Path(sys.executable).with_name("jaxprobe"))}
    # Outside of SLURM: two processes of this machine.
    script = subprocess.Popen(
        [SCRIPTS / "launch_slurm", "run", *command, "--out", str(tmp_path / "run")],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        output, errors = script.communicate(timeout=PATIENCE)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(script.pid, signal.SIGKILL)
    assert script.returncode == 0, errors
    assert output.count("test scores") == 1 and "Mesh data=2" in errors
    assert_same_scores(tmp_path / "run", expected)
