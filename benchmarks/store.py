"""What keeping the states costs, and what streaming (``--no-store``) gives in its place.

    python benchmarks/store.py --dataset world_place --prompt coords

writes benchmarks/results/store.json:

- storing: the same shards extracted with a store and without one, alternating in one process; and the bytes that the
  whole table's states take on disk, in float32 and rewritten in bfloat16;
- memory: the peak of whole ``jaxprobe run --no-store`` processes on samples of growing size;
- agreement: test R2 of every state by streaming, beside probes of the stored states with the same folds.
"""

import dataclasses
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a script, Python sees only this folder

from benchmarks import machine
from benchmarks.output import say, write_result
from jaxprobe.data.catalog import load_table
from jaxprobe.extract.extraction import fill_store, open_store, plan_extraction, stream_states
from jaxprobe.extract.store.reader import open_activations
from jaxprobe.extract.store.writer import ActivationStore
from jaxprobe.models.load import load_model
from jaxprobe.probes.metrics import score
from jaxprobe.probes.ridge import fit_states, predict_layer
from jaxprobe.results.folder import RunDirectory
from jaxprobe.runs.fit import make_folds


@dataclasses.dataclass(frozen=True)
class Settings:
    """Measure what storing costs and what streaming gives."""

    model: str = "demo"
    """What jaxprobe takes: demo, a folder, a .gguf file, a hub name."""
    dataset: str = "world_place"
    """A named table."""
    prompt: str = "coords"
    """A prompt of the table."""
    sizes: tuple[int, ...] = (5_000, 20_000)
    """Sizes of the samples that are streamed for the memory curve; the whole table comes last."""
    entities: int = 8_192
    """Sample that is extracted with and without a store, in turns."""
    rounds: int = 3
    """How often each."""
    stored: Path | None = None
    """A finished run of the whole table with its states; default: it is made here."""
    out: Path = Path("benchmarks/results/store.json")
    """The JSON file to write."""


def measure_storing(settings: Settings, scratch: Path) -> dict[str, Any]:
    """Seconds of extracting a sample with and without a store, in turns after one of each."""
    model = load_model(settings.model)
    table = load_table(settings.dataset, limit=settings.entities)
    extraction = plan_extraction(model.files, table, settings.prompt, mesh=model.mesh)

    def with_store(name: str) -> None:
        with open_store(scratch / name, model.files, extraction, model.dtype) as store:
            fill_store(store, model, extraction)

    def without_store(name: str) -> None:
        for shard in stream_states(model, extraction, name):
            for state in shard.states.values():
                np.asarray(state)  # to the host, as a store needs them

    seconds: dict[str, list[float]] = {"stored": [], "discarded": []}
    for turn in range(settings.rounds + 1):
        for kind, extract in (("stored", with_store), ("discarded", without_store)):
            began = time.perf_counter()
            extract(f"{kind}-{turn}")
            seconds[kind].append(time.perf_counter() - began)
        say(f"storing: {seconds['stored'][-1]:.1f} s with a store, {seconds['discarded'][-1]:.1f} s without")
    seconds = {kind: samples[1:] for kind, samples in seconds.items()}  # the first compiles
    overhead = median(seconds["stored"]) / median(seconds["discarded"]) - 1
    return {"entities": len(table), "dtype": model.dtype, "seconds": seconds, "overhead": overhead}


def measure_disk(activations_path: Path, scratch: Path) -> dict[str, int]:
    """Bytes of a store as it is, and of its states written anew in bfloat16."""
    activations = open_activations(activations_path)
    states = tuple(activations)
    count, width = activations[states[0]].shape
    rows = np.array_split(np.arange(count), -(-count // 4096))
    with ActivationStore.open(scratch / "bfloat16", {}, rows, states, width, "bfloat16") as store:
        for shard, members in enumerate(rows):
            store.write(shard, {state: activations.rows(state, members).astype("bfloat16") for state in states})
        store.wait()
    size = lambda folder: sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return {"entities": count, "float32": size(activations_path), "bfloat16": size(scratch / "bfloat16")}


def run_jaxprobe(settings: Settings, out: Path, *options: str) -> RunDirectory:
    """A run in a process of its own, as a user starts it."""
    what = ("--model", settings.model, "--dataset", settings.dataset, "--prompt", settings.prompt, "--out", str(out))
    command = [sys.executable, "-m", "jaxprobe", "run", *what, *options]
    subprocess.run(command, check=True, stdout=sys.stderr, env=machine.worker_environment())
    return RunDirectory(out)


def streamed(run: RunDirectory) -> dict[str, Any]:
    """Size, time and peak memory of a finished run."""
    result, entities = run.read_config()["result"], len(run.read_entities())
    return {"entities": entities, "peak_memory_bytes": result["peak_memory_bytes"], "seconds": result["seconds"]}


def compare_r2(settings: Settings, stored: RunDirectory, streaming: RunDirectory) -> dict[str, Any]:
    """Test R2 of every state by streaming beside probes of the stored states, with the same folds."""
    table = load_table(settings.dataset)
    activations = open_activations(stored.activations_path)
    train, labels = ~table.is_test, np.full(len(table), -1)
    for label, rows in enumerate(make_folds(table).values()):
        labels[rows] = label
    fit = fit_states(
        activations, train, table.targets[train], criterion="k_fold", groups=labels[train], dtype="float64"
    )
    test = np.stack([predict_layer(fit, layer, states[~train]) for layer, states in enumerate(activations.values())])
    ours = score(table.targets[~train], test, places=table.is_place, replicates=0)["r2"].value[:, -1]
    scores = streaming.read_scores().query("split == 'test' and metric == 'r2' and target == 'mean'")
    theirs = scores.set_index("layer")["value"].loc[list(activations)].to_numpy()
    alphas = streaming.read_probes()[0]["alpha"]
    return {
        "states": list(activations),
        "r2_stored": ours.tolist(),
        "r2_streamed": theirs.tolist(),
        "largest_difference": float(np.abs(ours - theirs).max()),
        "same_alpha": float(np.mean(np.isclose(fit.alpha, alphas, rtol=1e-3))),
    }


def main(settings: Settings) -> dict[str, Any]:
    result = {
        "command": " ".join(["python", "benchmarks/store.py", *sys.argv[1:]]),
        "model": settings.model,
        "dataset": settings.dataset,
        "prompt": settings.prompt,
        "machine": machine.describe(),
    }
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        result["storing"] = measure_storing(settings, scratch)
        stored = RunDirectory(settings.stored) if settings.stored else run_jaxprobe(settings, scratch / "whole")
        result["disk_bytes"] = measure_disk(stored.activations_path, scratch)
        runs = []
        for size in (*settings.sizes, None):
            limit = () if size is None else ("--limit", str(size))
            runs.append(run_jaxprobe(settings, scratch / f"streamed-{size}", "--no-store", *limit))
        result["streaming"] = [streamed(run) for run in runs]
        result["agreement"] = compare_r2(settings, stored, runs[-1])
    write_result(result, settings.out)
    difference = result["agreement"]["largest_difference"]
    say(f"storing costs {result['storing']['overhead']:.1%}; R2 differs by {difference:.1e} at most")
    return result


if __name__ == "__main__":
    main(tyro.cli(Settings))
