"""Models, tables and runs in a bucket: gcsfs, tensorstore and Orbax as users have them, with an emulator behind."""

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import fsspec
import numpy as np
import pandas as pd
import pytest
import safetensors.numpy

from jaxprobe import open_activations
from jaxprobe.cli.main import main
from jaxprobe.data import fetch as fetch_module
from jaxprobe.data.catalog import load_table
from jaxprobe.data.fetch import fetch
from jaxprobe.errors import InputError
from jaxprobe.extract.store.layout import COMMITTED, DamagedError
from jaxprobe.host.paths import as_path, is_local, remove_folder, replacing
from jaxprobe.host.progress import Reporter
from jaxprobe.models.files import checkpoint, digest
from jaxprobe.models.files.digest import weights_digest
from jaxprobe.models.files.open import open_checkpoint
from jaxprobe.models.files.source import find_model
from jaxprobe.results.folder import RunDirectory
from jaxprobe.runs.execute import run
from jaxprobe.runs.predict import predict
from tests.test_processes import (
    NAMES,
    NOBODY_LISTENS,
    SHARDS,
    arguments,
    assert_same_scores,
    ended,
    launch,
    settings,
    small_shards,  # noqa: F401  (a fixture that every test uses)
    write_inputs,
)
from tests.tiny_llama import save_model

# gcsfs hands aiohttp a file below 5 MB in one piece.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:Sending a large body directly with raw bytes:ResourceWarning"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny model in several files, and a table of as many shards as those of the tests that share a run."""
    return write_inputs(tmp_path_factory.mktemp("inputs"), max_shard_size="200KB")


@pytest.fixture(scope="module")
def local(folder):
    """The run on a disk that those in the bucket are compared with."""
    return run(settings(folder, folder / "run"))


@pytest.fixture(scope="module")
def bucket(folder):
    """The bucket's address, with the model and the table in it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    program = Path(__file__).with_name("gcs_emulator.py")
    server = subprocess.Popen(
        [sys.executable, program, port, "bucket"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        with pytest.MonkeyPatch.context() as patch:
            for name in ("STORAGE_EMULATOR_HOST", "TENSORSTORE_GCS_HTTP_URL"):
                patch.setenv(name, f"http://127.0.0.1:{port}")
            patch.setenv("GOOGLE_AUTH_TOKEN_FOR_TESTING", "token")  # tensorstore would ask for a machine's own
            patch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # asks another service for a bucket's kind
            assert server.stdout.readline() == "ready\n"
            address = as_path("gs://bucket")
            for file in (folder / "model").iterdir():
                (address / "model" / file.name).write_bytes(file.read_bytes())
            (address / "towns.csv").write_bytes((folder / "towns.csv").read_bytes())
            yield address
    finally:
        server.kill()
        server.wait()
        server.stdout.close()


@pytest.fixture(scope="module")
def remote(bucket):
    """The run of one process in the bucket, of a model and a table that are there as well."""
    with pytest.warns(UserWarning, match=r"gs://bucket/run/activations can't be locked .*: let only one job write"):
        return run(settings(bucket, Path("gs://bucket/run")))  # as the command line gives it


def assert_same_states(ours, theirs):
    ours, theirs = open_activations(ours.activations_path), open_activations(theirs.activations_path)
    assert list(ours) == list(theirs)
    for state in theirs:
        assert ours[state].tobytes() == theirs[state].tobytes()


def names(path):
    """The files of a run, less those inside of shards."""
    files = [file for file in path.rglob("*") if file.is_file()] if is_local(path) else objects(path)
    found = {str(file).removeprefix(f"{path}/") for file in files}
    return {name for name in found if name.count("/") < 2 and not name.endswith("writer.lock")}


def objects(path):
    return [as_path(f"gs://{name}") for name in fsspec.filesystem("gcs").find(str(path))]


def test_a_run_is_the_one_on_a_disk(bucket, remote, local, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert str(remote.path) == remote.read_config()["settings"]["out"] == "gs://bucket/run"
    assert remote.is_complete and names(remote.path) == names(local.path)
    assert_same_scores(remote.path, local)
    assert_same_states(remote, local)
    heard = Reporter()
    run(settings(bucket, "gs://bucket/run"), heard)
    assert heard.lines[-1] == "gs://bucket/run is finished: nothing to do. Report: gs://bucket/run/report.html"
    with pytest.raises(InputError, match="gs://bucket/run belongs to another run"):
        run(settings(bucket, "gs://bucket/run", seed=1))
    assert not list(tmp_path.iterdir())


def test_what_reads_a_run(remote, local, tmp_path, capsys):
    def command(*arguments):
        main(["--json", *map(str, arguments)])
        return json.loads(capsys.readouterr().out)

    texts = ["Paris 3", "Cairo 90"]
    pd.testing.assert_frame_equal(predict(remote.path, texts), predict(local.path, texts))
    assert command("predict", "gs://bucket/run", "--text", "Lima 1")["run"] == "gs://bucket/run"
    table = command("experiment", "layers", "gs://bucket/run")["table"]
    assert table == "gs://bucket/run/experiments/layers.csv" and as_path(table).with_suffix(".svg").is_file()
    command("experiment", "controls", "gs://bucket/run")
    assert command("report", "gs://bucket/run", "--out", "gs://bucket/page.html")["files"] == ["gs://bucket/page.html"]
    assert "</html>" in as_path("gs://bucket/page.html").read_text()
    files = command("export", "gs://bucket/run", "--out", "gs://bucket/states.safetensors", "--states", "1")["files"]
    assert files == ["gs://bucket/states.safetensors", "gs://bucket/states.csv"]
    command("export", local.path, "--out", tmp_path, "--states", "1")
    exported = safetensors.numpy.load(as_path(files[0]).read_bytes())["1"]
    assert exported.tobytes() == np.load(tmp_path / "1.npy").tobytes()
    again = command("run", "--config", "gs://bucket/run/config.json")
    assert again["run"] == "gs://bucket/run" and again["scores"] == "gs://bucket/run/scores.csv"


def complete(out):
    """Shard -> when its last object was written."""
    shards = {shard: out / "activations" / str(shard) / COMMITTED for shard in range(SHARDS)}
    return {shard: last.stat().mtime for shard, last in shards.items() if last.exists()}


def test_two_processes_go_on_where_one_was_killed(bucket, local):
    out = bucket / "shared"
    commands = [arguments(bucket, out)] * 2
    processes = launch(commands, before=[NOBODY_LISTENS] * 2)
    while not complete(out) and all(process.poll() is None for process in processes):
        time.sleep(0.01)
    processes[1].send_signal(signal.SIGKILL)
    ends = ended(processes)
    assert ends[1][0] == -signal.SIGKILL and ends[0][0] not in (0, 2), ends[0][2]
    first = complete(out)
    assert 0 < len(first) < SHARDS and not (out / "scores.csv").exists(), ends[0][2]

    ends = ended(launch(commands))
    assert [code for code, _, _ in ends] == [0, 0], ends[0][2]
    assert f"Going on: {len(first)} of {SHARDS} shards are stored already in {out}/activations" in ends[0][2]
    assert first.items() < complete(out).items()
    assert_same_scores(out, local)
    assert not [name for name in names(out) if "process-" in name]


def test_damaged_shards_are_computed_anew(bucket, local):
    out = bucket / "damaged"
    with pytest.warns(UserWarning, match="can't be locked"):
        directory = run(settings(bucket, out))
    largest = max(objects(directory.activations_path / "1"), key=lambda file: file.stat().length)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    with pytest.raises(DamagedError, match="shard 1"):
        view = open_activations(directory.activations_path)
        [view[state] for state in view]
    (directory.activations_path / "3" / COMMITTED).unlink()
    with pytest.raises(InputError, match="1 of 12 shards are missing"):
        open_activations(directory.activations_path)

    heard = Reporter()
    with pytest.warns(UserWarning, match="can't be locked"):
        run(settings(bucket, out, repair=True), heard)
    assert "Damaged shards, computed anew: 1." in heard.lines
    assert f"Going on: 10 of 12 shards are stored already in {out}/activations." in heard.lines
    assert_same_states(directory, local)


def test_tensors_are_fetched_by_rows(bucket, folder, monkeypatch):
    ours, theirs = open_checkpoint(bucket / "model"), open_checkpoint(folder / "model")
    assert len(ours.files) > 1 and ours.shapes() == theirs.shapes()
    fetched = []

    def read_ranges(path, ranges, read=checkpoint.read_ranges):
        for (start, stop), data in zip(ranges, read(path, ranges), strict=True):
            fetched.append(stop - start)
            yield data

    monkeypatch.setattr(checkpoint, "read_ranges", read_ranges)
    for name, shape in theirs.shapes().items():
        for index in ((slice(3, 11),), (slice(None),), (slice(0, 8), slice(5, 20)), (slice(0, 8), slice(20, 30))):
            if len(index) <= len(shape):
                found, expected = ours.read(name, index), theirs.read(name, index)
                assert found.dtype == expected.dtype and found.tobytes() == expected.tobytes()
        # The last two want other columns of the same rows, which are fetched once.
        row = 4 * int(np.prod(shape[1:]))
        assert fetched == [8 * row, shape[0] * row, *[8 * row] * (len(shape) - 1)]
        fetched.clear()


def test_the_digest_is_that_of_the_files(bucket, folder, monkeypatch):
    for whole in (digest.WHOLE_CHECKPOINT, 1000):  # all of it, or blocks of its larger tensors
        monkeypatch.setattr(digest, "WHOLE_CHECKPOINT", whole)
        monkeypatch.setattr(digest, "WHOLE_TENSOR", 4096)
        monkeypatch.setattr(digest, "BLOCK", 64)
        assert weights_digest(open_checkpoint(bucket / "model")) == weights_digest(open_checkpoint(folder / "model"))


@pytest.mark.parametrize("keep", [4, 200, -100])
def test_truncated_weights(bucket, folder, keep):
    address = bucket / f"truncated-{keep}"
    save_model(folder / "single", NAMES)
    for file in (folder / "single").iterdir():
        content = file.read_bytes()
        (address / file.name).write_bytes(content[:keep] if file.suffix == ".safetensors" else content)
    with pytest.raises(InputError, match="model.safetensors can't be read .* Download it again"):
        open_checkpoint(find_model(str(address)).path)


def test_what_is_not_there(bucket):
    (bucket / "model.gguf").write_bytes(b"GGUF")
    for place, problem in {
        "gs://bucket/nothing": "No model at gs://bucket/nothing",
        "gs://bucket/model/config.json": "is not a .gguf file",
        "gs://bucket/model.gguf": "only a file on a disk can be",
        "gs://bucket": "has no config.json",
        "gs://nowhere/model": "There is no bucket gs://nowhere that these credentials can see",
        "gs://": "names no bucket",
    }.items():
        with pytest.raises(InputError, match=problem):
            find_model(place)
    with pytest.raises(InputError, match="gs://bucket/nothing.csv is not a file"):
        load_table("gs://bucket/nothing.csv")
    with pytest.raises(InputError, match="gs://bucket/nothing/config.json is missing"):
        RunDirectory("gs://bucket/nothing").read_config()
    with pytest.raises(InputError, match="gs://bucket/nothing holds no stored activations"):
        open_activations("gs://bucket/nothing")


def test_a_table_is_fetched_into_it(bucket, tmp_path, monkeypatch):
    content = b"name,latitude\nOslo,59.9\n"
    (tmp_path / "art.csv").write_bytes(content)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(fetch_module, "SOURCE", tmp_path.as_uri())
    monkeypatch.setitem(fetch_module.SHA256, "art", hashlib.sha256(content).hexdigest())
    path = fetch("art", Path("gs://bucket/tables"))  # as the command line gives it
    assert str(path) == "gs://bucket/tables/art.csv" and path.read_bytes() == content
    (tmp_path / "art.csv").unlink()
    assert fetch("art", "gs://bucket/tables") == path and not list(tmp_path.iterdir())
    path.write_bytes(b"mine")
    with pytest.raises(InputError, match="gs://bucket/tables/art.csv exists and is not the paper's table"):
        fetch("art", "gs://bucket/tables")


def test_objects_are_whole_or_absent(bucket):
    place = bucket / "some folder, 100%" / "a.txt"
    with pytest.raises(ZeroDivisionError), replacing(place) as temporary:
        temporary.write_text("half")
        _ = 1 / 0
    assert not place.exists() and not temporary.exists()
    for text in ("whole", "another"):
        with replacing(str(place)) as temporary:
            temporary.write_text(text)
        assert place.read_text() == text
    remove_folder(place.parent)
    assert not place.exists() and not place.parent.exists()


@pytest.mark.parametrize("address", ["s3://bucket/run", "az://bucket/run", "hf://owner/run", "https://host/run"])
def test_other_stores_are_refused(address):
    for use in (RunDirectory, find_model, load_table, open_activations):
        for path in {address, str(Path(address))}:  # which has one slash
            with pytest.raises(InputError, match="is an address of a kind that jaxprobe can't use; gs://"):
                use(path)


def test_without_gcsfs(folder, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    for use in (RunDirectory, find_model, load_table, open_activations):
        with pytest.raises(InputError, match=r"needs gcsfs, .*: pip install 'jaxprobe\[gcs\]'"):
            use("gs://another/run")
    with pytest.raises(SystemExit) as end:
        main([*arguments(folder, "gs://another/run"), "--json"])
    assert end.value.code == 2 and "jaxprobe[gcs]" in capsys.readouterr().out


def test_a_path_is_what_it_was(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for text in ("run", "../run", str(tmp_path / "a:b"), "C:/run"):
        assert type(as_path(text)) is type(Path()) and os.fspath(as_path(text)) == text
