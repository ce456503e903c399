"""Input that can't be used, a line each: it ends with 2, says fact and remedy, with --json too, and writes nothing."""

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file, save_file

from jaxprobe.cli import main as cli
from jaxprobe.extract.store import layout
from tests.tiny_llama import save_model

NAMES = ["Paris", "Lima", "Oslo", "Rome", "Quito", "Accra"]
OWN = ("config.json", "scores.parquet", "scores.csv", "probes.safetensors", "entities.parquet", "predictions.parquet")
DEEP = '{"settings": ' + "[" * 100_000 + "]" * 100_000 + "}"


def call(arguments):
    """(exit code, stdout, stderr) of a command in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            cli.main(arguments)
            code = 0
        except SystemExit as stop:
            code = stop.code or 0
    return code, out.getvalue(), err.getvalue()


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with a model, tables, runs and things that are none of these, in which the cases are called."""
    folder = tmp_path_factory.mktemp("world")
    before = os.getcwd()
    os.chdir(folder)
    save_model(folder / "model", NAMES)
    rng, count = np.random.default_rng(0), 50
    frame = pd.DataFrame(
        {
            "name": [f"{NAMES[i % 6]} {i // 6}" for i in range(count)],
            "latitude": rng.uniform(-60, 70, count),
            "longitude": rng.uniform(-180, 180, count),
            "founded, about": rng.uniform(1500, 2000, count),
            "continent": [NAMES[i % 3] for i in range(count)],
            "fold": ["val" if i % 4 == 0 else "train" for i in range(count)],
        }
    )
    frame.to_csv("places.csv", index=False)
    (folder / "header.csv").write_text("name,year\n")
    (folder / "nothing.csv").write_text("")
    (folder / "odd.parquet").write_text("PAR1 no more")
    (folder / "notes.txt").write_text("mine")
    (folder / "data").mkdir()
    (folder / "thesis").mkdir()
    (folder / "thesis" / "thesis.tex").write_text("mine")
    os.symlink("loop", "loop")
    os.symlink("nowhere", "dangling")
    for name, text in CONFIGS.items():
        (folder / f"{name}.json").write_text(text)
    for name, text in MODELS.items():
        shutil.copytree("model", name)
        (folder / name / "config.json").write_text(text)
    options = ["--model", "model", "--dataset", "places.csv", "--mesh", "data=1", "--layers", "0", "--quiet"]
    for more in (
        ["--target", "latitude", "longitude", "--group", "continent", "--out", "run"],
        ["--target", "founded, about", "--no-store", "--out", "sums"],
    ):
        assert call(["run", *options, *more])[0] == 0
    for name, spoil in RUNS.items():
        shutil.copytree("run", name)
        spoil(folder / name)
    yield folder
    os.chdir(before)


def with_config(change):
    def spoil(run):
        config = json.loads((run / "config.json").read_text())
        change(config)
        (run / "config.json").write_text(json.dumps(config))

    return spoil


def with_manifest(**change):
    """A manifest whose checksum is right, as one who means harm would write it."""

    def spoil(run):
        manifest = layout.read_manifest(run / "activations")
        path = run / "activations" / "manifest.json"
        body = json.loads(path.read_text())
        body.pop("crc32")
        body |= change
        body["crc32"] = layout.zlib.crc32(layout.canonical(body))
        assert manifest and path.write_text(json.dumps(body))

    return spoil


def cut(name):
    return lambda run: (run / name).write_bytes((run / name).read_bytes()[:100])


# Names of config.json files that are none.
SETTINGS = {"model": "model", "dataset": "places.csv"}
CONFIGS = {
    "null": "null",
    "list": "[]",
    "text": "no json",
    "deep": DEEP,
    "bare": "{}",
    "settings-null": '{"settings": null}',
    "unknown": json.dumps({"settings": SETTINGS | {"unheard": 1}}),
    "lacking": json.dumps({"settings": {"model": "model"}}),
} | {
    f"odd-{name}": json.dumps({"settings": SETTINGS | {name: value}})
    for name, value in {
        "seed": "0", "store": "yes", "target": "latitude", "cell_degrees": "five", "dtype": "float16", "layers": [0.5],
        "limit": True, "model": 5, "out": 3, "prompt": None, "group": [1],
    }.items()
}  # fmt: skip
MODELS = {"model-null": "null", "model-list": "[]", "model-bare": "{}"}
RUNS = {
    "run-null": lambda run: (run / "config.json").write_text("null"),
    "run-text": lambda run: (run / "config.json").write_text("no json"),
    "run-unfinished": with_config(lambda config: config.pop("result")),
    "run-odd": with_config(lambda config: config["settings"].update(seed="zero")),
    "run-result": with_config(lambda config: config.update(result=[])),
    "run-no-probes": lambda run: (run / "probes.safetensors").unlink(),
    "run-cut-predictions": cut("predictions.parquet"),
    "run-cut-scores": cut("scores.parquet"),
    "run-cut-entities": cut("entities.parquet"),
    "run-cut-probes": cut("probes.safetensors"),
    "run-no-shard": lambda run: shutil.rmtree(run / "activations" / "0"),
    "run-no-manifest": lambda run: (run / "activations" / "manifest.json").write_text("{}"),
    "run-evil": with_manifest(states=["../../evil", "/tmp/evil"]),
    "run-vast": with_manifest(rows=10**15, shards=10**12),
    "run-wide": with_manifest(width=10**12),
    "run-other": with_config(lambda config: config["inputs"].update(weights_sha256="another")),
}
RUN = [
    "run",
    "--model",
    "model",
    "--dataset",
    "places.csv",
    "--target",
    "latitude",
    "longitude",
    "--mesh",
    "data=1",
    "--out",
    "new",
]
CASES = {
    # Arguments.
    "no such command": (["rnu"], "no command 'rnu' Did you mean run"),
    "no such experiment": (["experiment", "layer"], "no command Did you mean experiment layers"),
    "no such data command": (["data", "lst"], "no command Did you mean data list"),
    "nothing named": (["run"], "missing --model --dataset --help"),
    "no table named": (["run", "--model", "model"], "missing --dataset"),
    "no text named": (["predict", "run"], "missing --text"),
    "no out named": (["export", "run"], "--out --vector"),
    "misspelt option": ([*RUN, "--promt", "x"], "Unrecognized --promt Did you mean --prompt"),
    "option of another command": (["demo", "--config", "run"], "Unrecognized --config"),
    "one too many": ([*RUN[:5], "more"], "more"),
    "words for a number": ([*RUN, "--limit", "many"], "--limit 'many' is not a whole number"),
    "half a row": ([*RUN, "--limit", "1.5"], "--limit '1.5' is not a whole number"),
    "a word for a seed": ([*RUN, "--seed", "x"], "--seed 'x' is not a whole number"),
    "a word for degrees": ([*RUN, "--cell-degrees", "x"], "--cell-degrees 'x' is not a number"),
    "a word for a layer": ([*RUN, "--layers", "last"], "--layers"),
    "float16": ([*RUN, "--dtype", "float16"], "float16 bfloat16 float32"),
    # Ranges.
    "negative seed": ([*RUN, "--seed", "-1"], "--seed is -1 wanted 0 to 4294967295"),
    "large seed": ([*RUN, "--seed", "4294967296"], "--seed is 4294967296 wanted 0 to"),
    "no row": ([*RUN, "--limit", "0"], "--limit is 0 wanted 1 or more rows"),
    "negative rows": ([*RUN, "--limit", "-3"], "--limit is -3"),
    "one row": ([*RUN, "--limit", "1"], "row"),
    "cells of no size": ([*RUN, "--cell-degrees", "0"], "--cell-degrees is 0"),
    "cells of nan": ([*RUN, "--cell-degrees", "nan"], "--cell-degrees is nan"),
    "negative buffer": ([*RUN, "--buffer-km", "-1"], "--buffer-km is -1"),
    "infinite buffer": ([*RUN, "--buffer-km", "inf"], "--buffer-km is inf"),
    "negative layer": ([*RUN, "--layers", "-1"], "-1"),
    "layer past the last": ([*RUN, "--layers", "0", "3"], "3 layers 0 to 2"),
    "empty prompt": ([*RUN, "--prompt", ""], "--prompt is empty"),
    "empty text column": ([*RUN, "--text", ""], "--text is empty"),
    "empty split": ([*RUN, "--split", ""], "--split is empty"),
    "empty model": (["run", "--model", "", "--dataset", "places.csv"], "--model is empty"),
    "empty dataset": (["run", "--model", "model", "--dataset", ""], "--dataset is empty"),
    "everything at once": ([*RUN, "--seed", "-1", "--limit", "0"], "--seed --limit"),
    "demo of no rows": (["demo", "--limit", "0", "--out", "new"], "--limit is 0"),
    "export of no rows": (["data", "export", "cities", "--out", "new.csv", "--limit", "0"], "--limit is 0"),
    "paper of no rows": (["paper", "--model", "model", "--limit", "0", "--out", "new"], "--limit is 0"),
    "plan of no rows": (["plan", "--model", "llama-2-7b", "--topology", "h100:8", "--limit", "0"], "--limit is 0"),
    # Bytes.
    "bytes in a prompt": ([*RUN, "--prompt", "caf\udce9 {}"], "not UTF-8"),
    "bytes in a text": (["predict", "run", "--text", "caf\udce9"], "not UTF-8"),
    "bytes in a template": ([*RUN, "--text", "{name}\udcff"], "not UTF-8"),
    "NUL in a prompt": ([*RUN, "--prompt", "a\0{}"], "--prompt NUL"),
    "NUL in a folder": ([*RUN[:-1], "a\0b"], "--out NUL"),
    "NUL in a model": (["run", "--model", "a\0b", "--dataset", "places.csv"], "--model NUL"),
    # Folders.
    "out is a file": ([*RUN[:-1], "notes.txt"], "notes.txt is a file wanted a folder --out"),
    "out below a file": ([*RUN[:-1], "notes.txt/run"], "lies below which is a file"),
    "out is a loop": ([*RUN[:-1], "loop"], "link to itself"),
    "out below a loop": ([*RUN[:-1], "loop/run"], "link to itself"),
    "out is a dangling link": ([*RUN[:-1], "dangling"], "link to nothing"),
    "out below a dangling link": ([*RUN[:-1], "dangling/run"], "link to nothing"),
    "out is too long": ([*RUN[:-1], "x" * 300], "too long"),
    "out has a long part": ([*RUN[:-1], f"new/{'é' * 130}/run"], "bytes file systems take"),
    "out where nothing can be made": ([*RUN[:-1], "/proc/run"], "can't be made in /proc"),
    "out holds other files": ([*RUN[:-1], "thesis"], "thesis.tex not a run Name an empty or a new folder"),
    "out is another run": ([*RUN[:-1], "run", "--seed", "1"], "belongs to another run seed: 0 there, 1 wanted"),
    "out is a bucket of another kind": ([*RUN[:-1], "s3://bucket/run"], "gs://BUCKET/NAME"),
    # Tables and columns.
    "no such table": (["run", "--model", "model", "--dataset", "world_plaec"], "Did you mean world_place"),
    "no such file": (["run", "--model", "model", "--dataset", "there/none.csv"], "none.csv"),
    "a folder for a table": (["run", "--model", "model", "--dataset", "./data"], "data"),
    "an empty table": (["run", "--model", "model", "--dataset", "nothing.csv"], "nothing.csv"),
    "a table of no rows": (["run", "--model", "model", "--dataset", "header.csv"], "row"),
    "a table that is none": (["run", "--model", "model", "--dataset", "odd.parquet"], "odd.parquet"),
    "a text file": (["run", "--model", "model", "--dataset", "notes.txt"], "notes.txt"),
    "no such target": ([*RUN, "--target", "altitude"], "altitude"),
    "no such text": ([*RUN, "--text", "title"], "title"),
    "no such group": ([*RUN, "--group", "land"], "land"),
    "no such split": ([*RUN, "--split", "side"], "side"),
    "another word for a split": ([*RUN, "--split", "fold"], "val"),
    "blocks of years": ([*RUN, "--target", "founded, about", "--split", "blocks"], "latitude and longitude"),
    "unit vectors of years": ([*RUN, "--target", "founded, about", "--unit-vectors"], "unit vectors need both"),
    "unit vectors from sums": ([*RUN, "--unit-vectors", "--no-store"], "--unit-vectors needs stored states"),
    "fold group with a store": ([*RUN, "--fold-group", "continent"], "--fold-group goes with --no-store"),
    "no such fold group": ([*RUN, "--no-store", "--fold-group", "land"], "--fold-group land Add --group land"),
    # Prompts, models, meshes.
    "no such prompt": ([*RUN, "--prompt", "where"], "'where' is not the name of a prompt {}"),
    "a prompt with two names": ([*RUN, "--prompt", "{} or {}"], "has {} 2 times"),
    "no such model": (["run", "--model", "./none", "--dataset", "places.csv"], "No model at ./none"),
    "a long way to no model": (["run", "--model", "a/b/c", "--dataset", "places.csv"], "No model at a/b/c"),
    "a file for a model": (["run", "--model", "notes.txt", "--dataset", "places.csv"], "notes.txt .gguf"),
    "a folder for a model": (["run", "--model", "thesis", "--dataset", "places.csv"], "no config.json"),
    "a model of nothing": ([*RUN, "--model", "model-null"], "config.json"),
    "a model of a list": ([*RUN, "--model", "model-list"], "config.json"),
    "a model without fields": ([*RUN, "--model", "model-bare"], "model"),
    "more devices than there are": ([*RUN, "--mesh", "data=64"], "needs 64 devices"),
    "no such axis": ([*RUN, "--mesh", "pipe=2"], "pipe"),
    "no size": ([*RUN, "--mesh", "data"], "data"),
    "a size of none": ([*RUN, "--mesh", "data=0"], "data"),
    "a word for processes": ([*RUN, "--processes", "two"], "--processes two I/N@HOST:PORT"),
    "a process too many": ([*RUN, "--processes", "2/2@localhost:1234"], "--processes 2/2"),
    # --config.
    "no such config": (["run", "--config", "none"], "There is no none Name the folder of a run"),
    **{
        f"config {name}": (["run", "--config", f"{name}.json"], words)
        for name, words in {
            "null": "holds no settings", "list": "holds no settings", "text": "can't be read", "deep": "deep.json",
            "bare": "holds no settings", "settings-null": "holds no settings", "unknown": "unheard another version",
            "lacking": "dataset another version", "odd-seed": 'seed is "0", wanted a whole number',
            "odd-store": 'store is "yes", wanted true or false', "odd-target": "target wanted a list of text",
            "odd-cell_degrees": "cell_degrees wanted a number", "odd-dtype": 'dtype "float32" or "bfloat16" or null',
            "odd-layers": "layers wanted a list of a whole number", "odd-limit": "limit is true",
            "odd-model": "model is 5, wanted text", "odd-out": "out is 3", "odd-prompt": "prompt is null",
            "odd-group": "group is [1]",
        }.items()
    },
    # Finished runs.
    "predict of nothing": (["predict", "none", "--text", "Lima"], "none is not a run"),
    "predict of a folder": (["predict", "thesis", "--text", "Lima"], "thesis is not a run"),
    "predict of an unfinished run": (["predict", "run-unfinished", "--text", "Lima"], "not finished jaxprobe run"),
    "predict of null": (["predict", "run-null", "--text", "Lima"], "config.json --repair"),
    "predict of no json": (["predict", "run-text", "--text", "Lima"], "not valid JSON --repair"),
    "predict of odd settings": (["predict", "run-odd", "--text", "Lima"], "seed wanted a whole number"),
    "predict of an odd result": (["predict", "run-result", "--text", "Lima"], "result should be an object"),
    "predict an empty name": (["predict", "run", "--text", " "], "No text to predict for"),
    "predict no name": (["predict", "run", "--text"], "No text to predict for"),
    "predict without probes": (["predict", "run-no-probes", "--text", "Lima"], "missing anew jaxprobe run --config"),
    **{
        f"predict with damaged {part}": (["predict", f"run-cut-{part}", "--text", "Lima"], f"{part} jaxprobe run")
        for part in ("predictions", "scores", "entities", "probes")
    },
    "report on nothing": (["report"], "No run to report on"),
    "report on a folder": (["report", "thesis"], "thesis is not a run"),
    "report on an unfinished run": (["report", "run-unfinished"], "not finished jaxprobe run --config"),
    "report on damaged scores": (["report", "run-cut-scores"], "scores.parquet jaxprobe run --config"),
    "report on both": (["report", "run-cut-scores", "run-cut-entities"], "scores.parquet entities.parquet"),
    **{f"report over {name}": (["report", "run", "--out", f"run/{name}"], "the run Name another") for name in OWN},
    "report into the states": (["report", "run", "--out", "run/activations/report.html"], "the run Name another"),
    "report over a folder": (["report", "run", "--out", "thesis"], "thesis is a folder wanted a file"),
    "report below a file": (["report", "run", "--out", "notes.txt/a.html"], "lies below"),
    "report over notes": (["report", "run", "--out", "notes.txt"], "notes.txt"),
    "export of nothing": (["export", "thesis", "--out", "new"], "no stored"),
    "export of sums": (["export", "sums", "--out", "new"], "no stored"),
    "export no such state": (["export", "run", "--out", "new", "--states", "7"], "no state 7"),
    **{f"export over {name}": (["export", "run", "--out", f"run/{name}"], "the run Name another") for name in OWN},
    "export into the states": (["export", "run", "--out", "run/activations"], "the run Name another"),
    "export over the figures": (["export", "run", "--out", "run/figures"], "the run Name another"),
    "export over a file": (["export", "run", "--out", "notes.txt"], "is a file wanted a folder"),
    "export below a file": (["export", "run", "--out", "notes.txt/a.safetensors"], "lies below"),
    "export without a shard": (["export", "run-no-shard", "--out", "new"], "shards are missing jaxprobe run --config"),
    "export without a manifest": (["export", "run-no-manifest", "--out", "new"], "damaged jaxprobe run --repair"),
    "export to elsewhere": (["export", "run-evil", "--out", "new"], "evil"),
    "export of endless shards": (["export", "run-vast", "--out", "new"], "run-vast"),
    "export of endless width": (["export", "run-wide", "--out", "new"], ""),
    "export a table over a run's file": (["data", "export", "cities", "--out", "run/scores.csv"], "the run in"),
    "export no such table": (["data", "export", "citties", "--out", "new.csv"], "cities"),
    "export a table to a folder": (["data", "export", "cities", "--out", "thesis"], "thesis"),
    "fetch no such table": (["data", "fetch", "citties"], "citties"),
    "experiment on nothing": (["experiment", "layers"], "No run to look at"),
    "experiment on a folder": (["experiment", "layers", "thesis"], "thesis is not a run"),
    "experiment on one run twice": (["experiment", "layers", "run", "run"], "more than once"),
    "experiment on an unfinished run": (["experiment", "controls", "run-unfinished"], "not finished"),
    "experiment on sums": (["experiment", "controls", "sums"], "no stored states --store --out NEW_FOLDER"),
    "experiment on no such state": (["experiment", "controls", "run", "--state", "9"], "9"),
    "experiment on no such group": (["experiment", "entity-types", "run", "--group", "kind"], "kind"),
    "experiment on others' states": (["experiment", "controls", "run-other"], "other weights"),
    "experiment without a shard": (["experiment", "controls", "run-no-shard"], "jaxprobe run --config"),
    "experiment where a file is": (["experiment", "layers", "run", "--out", "notes.txt"], "lies below --out"),
    "experiment where nothing can be made": (["experiment", "layers", "run", "--out", "/proc"], "can't be made --out"),
    "the dateline of years": (["experiment", "dateline", "sums"], "sums"),
    "papers without tables": (["paper", "--model", "model", "--data-dir", "data", "--out", "new"], "--data-dir"),
    "plan for no such machine": (["plan", "--model", "llama-2-7b", "--topology", "abacus:3"], "abacus"),
    "plan for no such mesh": (["plan", "--model", "llama-2-7b", "--topology", "h100:8", "--mesh", "data=3"], "data=3"),
}  # fmt: skip


def everything(folder):
    """Path -> what tells whether it changed."""
    found = {}
    for path in folder.rglob("*"):
        status = path.lstat()
        found[str(path)] = None if path.is_dir() else (status.st_size, status.st_mtime_ns)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_bad_input_ends_with_2_says_why_and_writes_nothing(world, case):
    arguments, words = CASES[case]
    before = everything(world)
    code, printed, said = call([*arguments, "--json"])
    assert code == 2, (code, said)
    assert everything(world) == before
    problems = "\n".join(json.loads(printed)["problems"])
    assert problems and "Traceback" not in said
    missing = [word for word in words.split() if word not in problems]
    assert not missing, (missing, problems)
    assert all(line in said for problem in json.loads(printed)["problems"] for line in problem.splitlines())


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "--model", "model", "--dataset", "nothing.csv"],
        ["run", "--model", "./none", "--dataset", "places.csv"],
        ["run", "--config", "deep.json"],
        ["report", "run", "--out", "run/scores.csv"],
    ],
)
def test_what_can_be_known_without_the_model_is_said_at_once(world, arguments):
    """In a process of its own, as a user starts it: JAX and transformers are not waited for."""
    watch = (
        "import sys, atexit\n"
        "atexit.register(lambda: print('slow imports:', {'jax', 'transformers'} & set(sys.modules), file=sys.stderr))\n"
        "from jaxprobe.cli.main import main\n"
        "main(sys.argv[1:])"
    )
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", watch, *arguments], capture_output=True, text=True, cwd=world)
    seconds = time.perf_counter() - started
    assert done.returncode == 2 and done.stderr.startswith("Error: ") and "slow imports: set()" in done.stderr
    assert seconds < 10  # 1 to 2 on a quiet machine


def test_bytes_that_are_no_text_come_from_a_real_shell(world):
    command = [sys.executable.encode(), b"-m", b"jaxprobe", b"predict", b"run", b"--text", b"caf\xe9"]
    done = subprocess.run(command, capture_output=True, cwd=world)
    assert done.returncode == 2 and b"not UTF-8" in done.stderr and b"Traceback" not in done.stderr


# ---- What is damaged, and the command that mends it ----------------------------------------------------------------


DAMAGED = ["run-cut-predictions", "run-cut-scores", "run-cut-entities", "run-no-probes", "run-no-shard"]


@pytest.mark.slow
@pytest.mark.parametrize("name", [*DAMAGED, "run-no-manifest"])
def test_the_command_that_is_named_mends_the_run(world, tmp_path, monkeypatch, name):
    """From another folder, as it was printed."""
    shutil.copytree(world / name, tmp_path / name)
    command = ["export", "--out", "plain"] if "shard" in name or "manifest" in name else ["predict", "--text", "Lima"]
    monkeypatch.chdir(tmp_path)
    code, _, said = call([command[0], name, *command[1:]])
    assert code == 2
    named = said.partition("jaxprobe run ")[2].split("\n")[0]
    code, _, after = call(["run", *named.rstrip(".").split()])
    assert code == 0 and "nothing to do" not in after
    assert call([command[0], name, *command[1:]])[0] == 0
    code, _, after = call(["run", *named.split()])
    assert code == 0 and ("nothing to do" in after or "--repair" in named)
    before, mended = (pd.read_parquet(folder / "predictions.parquet") for folder in (world / "run", tmp_path / name))
    pd.testing.assert_frame_equal(before, mended)


def test_a_config_that_is_damaged_is_mended_by_repair(world, tmp_path):
    shutil.copytree(world / "run-text", tmp_path / "run")
    options = [*RUN[:-1], str(tmp_path / "run"), "--layers", "0", "--group", "continent"]
    code, _, said = call(options)
    assert code == 2 and "--repair" in said
    assert call([*options, "--repair"])[0] == 0
    assert "nothing to do" in call(options)[2]


def test_a_run_that_died_at_its_report_is_finished_by_the_same_command(world, tmp_path):
    shutil.copytree(world / "run", tmp_path / "run")
    (tmp_path / "run" / "report.html").unlink()
    before = (tmp_path / "run" / "scores.parquet").stat().st_mtime_ns
    code, _, said = call([*RUN[:-1], str(tmp_path / "run"), "--layers", "0", "--group", "continent"])
    assert code == 0 and (tmp_path / "run" / "report.html").is_file()
    assert "fit: " not in said and (tmp_path / "run" / "scores.parquet").stat().st_mtime_ns == before


def test_a_run_whose_owner_removed_the_states_is_finished(world, tmp_path):
    shutil.copytree(world / "run", tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "activations")
    options = [*RUN[:-1], str(tmp_path / "run"), "--layers", "0", "--group", "continent"]
    assert "nothing to do" in call(options)[2]


# ---- Whose weights, and from where ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_finished_run_works_from_any_folder(world, tmp_path, monkeypatch):
    """Its table and its model were named by relative paths."""
    monkeypatch.chdir(tmp_path)
    run = os.path.relpath(world / "run")
    here, there = (json.loads(call([*words, "--json", "--quiet"])[1]) for words in (
        ["predict", run, "--text", "Lima 1", "Oslo"], ["predict", run, "--text", "Lima 1", "Oslo"],
    ))  # fmt: skip
    assert here["rows"] == there["rows"] and len(here["rows"]) == 2
    assert call(["experiment", "controls", run, "--random-weights", "--quiet"])[0] == 0
    assert "nothing to do" in call(["run", "--config", run, "--out", run])[2]


@pytest.mark.slow
def test_other_weights_in_the_models_place_are_refused(world, tmp_path):
    """Same shapes, other numbers: the old run must not answer with them."""
    shutil.copytree(world / "model", tmp_path / "model")
    options = ["--model", str(tmp_path / "model"), "--dataset", "places.csv", "--target", "latitude", "longitude"]
    assert (
        call(["run", *options, "--mesh", "data=1", "--layers", "0", "--out", str(tmp_path / "run"), "--quiet"])[0] == 0
    )
    assert call(["predict", str(tmp_path / "run"), "--text", "Lima"])[0] == 0
    weights = tmp_path / "model" / "model.safetensors"
    save_file({name: tensor + 0.01 for name, tensor in load_file(weights).items()}, weights, metadata={"format": "pt"})
    for command in (["predict", "--text", "Lima"], ["experiment", "controls", "--random-weights"]):
        where = 2 if command[0] == "experiment" else 1
        code, _, said = call([*command[:where], str(tmp_path / "run"), *command[where:]])
        assert code == 2 and "has other weights than those that" in said and "--out NEW_FOLDER" in said


def test_weights_that_are_not_finite_leave_nothing_behind(world, tmp_path):
    shutil.copytree(world / "model", tmp_path / "model")
    weights = tmp_path / "model" / "model.safetensors"
    tensors = load_file(weights)
    tensors["model.layers.0.mlp.up_proj.weight"][0, 0] = np.nan
    save_file(tensors, weights, metadata={"format": "pt"})
    code, _, said = call([*RUN[:2], str(tmp_path / "model"), *RUN[3:-1], str(tmp_path / "run")])
    assert code == 2 and "not finite" in said and not (tmp_path / "run").exists()


def test_a_target_with_a_comma_in_its_name_is_predicted(world):
    code, printed, _ = call(["predict", "sums", "--text", "Lima", "--json"])
    (row,) = json.loads(printed)["rows"]
    assert code == 0 and set(row) == {"text", "founded, about", "founded, about_low", "founded, about_high"}


def test_predictions_are_titled_and_in_peoples_precision(world):
    code, printed, _ = call(["predict", "run", "--text", "Lima"])
    assert code == 0 and "model, layer " in printed and "prompt '{}'" in printed and ", run" in printed
    assert not [word for word in printed.split() if "e+" in word or (word.count(".") and len(word.split(".")[1]) > 2)]


def test_what_the_system_refuses_is_said_without_a_traceback(world, monkeypatch):
    def full(*_, **__):
        raise OSError(28, os.strerror(28), "new/config.json")

    monkeypatch.setattr("jaxprobe.results.folder.RunDirectory.write_config", full)
    code, printed, said = call([*RUN, "--layers", "0", "--json", "--quiet"])
    assert code == 2 and "new/config.json: No space left on device. Free some space" in said
    assert json.loads(printed)["problems"]


def test_a_crash_is_json_too(world, monkeypatch):
    def crash(*_, **__):
        raise RuntimeError

    monkeypatch.setattr("jaxprobe.runs.execute.fit_probes", crash)
    code, printed, said = call([*RUN[:-1], "crashed", "--layers", "0", "--json", "--quiet"])
    assert (
        code == 1
        and "Traceback" in said
        and json.loads(printed)["problems"] == ["RuntimeError: RuntimeError. Please report this, with the lines above."]
    )
    shutil.rmtree("crashed")
