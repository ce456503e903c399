"""Ridge on every layer: jaxprobe beside scikit-learn, NumPy, himalaya, and the floor of bare matrix products.

    python benchmarks/ridge.py --states states.npy --targets targets.npy     real states, [L, N, D] and [N, C]
    python benchmarks/ridge.py --run RUN_DIRECTORY                            those of a run's training rows
    python benchmarks/ridge.py                                                synthetic states with planted outliers

Every engine is a process of its own; rounds alternate over them, after one warm-up each. Raw samples, medians, ratios
and how well the choices agree go to one JSON file, the growth curves to a picture beside it.
"""

import contextlib
import dataclasses
import importlib.util
import json
import os
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
from benchmarks.ridge_engines import ENGINES, ONE_LAYER, can_run
from benchmarks.tables import ridge_table
from jaxprobe.results.folder import RunDirectory

ALPHAS = np.logspace(0.8, 4.1, 12)  # the paper's grid
FOLDS = 5
# Growth: each in turn, the others at their first value.
GROWTH = {
    "rows": (8192, 1024, 2048, 4096, 16384, 32768),
    "dimensions": (512, 64, 128, 256, 1024, 2048),
    "layers": (4, 1, 2, 8, 16),
    "alphas": (12, 1, 4, 36, 108),
    "targets": (2, 1, 8, 32, 128),
}
# An engine whose warm-up takes longer, in seconds, is not run again: the warm-up is its sample.
LONGEST = 60
# Compared with: engine -> the one whose penalties and errors it should share.
REFERENCE = {"himalaya": "jaxprobe k-fold", "jaxprobe k-fold": None, "jaxprobe generalised": None}


@dataclasses.dataclass(frozen=True)
class Settings:
    """Compare the speed of choosing and fitting a ridge probe for every layer."""

    states: Path | None = None
    """A NumPy file [L, N, D] of training rows for case (a); needs targets."""
    targets: Path | None = None
    """A NumPy file [N, C]."""
    run: Path | None = None
    """A run directory with activations, in place of states and targets."""
    layers: int | None = None
    """Take this many of case (a)'s states, evenly spaced; each is fitted by itself, so ratios hold for all."""
    shape: tuple[int, int, int] = (31, 31_668, 576)
    """L, N, D of the synthetic states that stand in for case (a) without either."""
    square: tuple[int, int, int] = (2, 16_384, 2048)
    """L, N, D of case (b)."""
    wide: tuple[int, int, int] = (4, 2000, 4096)
    """L, N, D of case (c), fewer rows than dimensions."""
    engine: tuple[str, ...] = tuple(ENGINES)
    """Which to compare."""
    rounds: int = 5
    """How often each engine is timed."""
    growth: bool = True
    """Also time growth in rows, dimensions, layers, penalties and targets."""
    scale: float = 1.0
    """Shrinks the growth curves' rows and dimensions, for a trial."""
    out: Path = Path("benchmarks/results/ridge.json")
    """The JSON file to write."""


class Engine:
    """A worker process of one engine."""

    def __init__(self, name: str, folder: Path):
        self.name = name
        command = [sys.executable, "-m", "benchmarks.ridge_engines", name, str(folder)]
        pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        environment = machine.worker_environment()
        environment["PYTHONPATH"] += os.pathsep + os.environ.get("PYTHONPATH", "")  # where himalaya may be
        self._process = subprocess.Popen(command, env=environment, **pipes)

    def fit(self) -> dict[str, Any]:
        self._process.stdin.write("fit\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"{self.name} ended while it fitted; its own message stands above.")
        return json.loads(answer)

    def close(self) -> None:
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()


def synthetic(
    layers: int, rows: int, dimensions: int, targets: int = 2, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """States like a language model's: a falling spectrum, means that are not 0, three dimensions 1e4 times larger."""
    rng = np.random.default_rng(seed)
    x = np.empty((layers, rows, dimensions), np.float32)
    signal = rng.normal(size=(rows, targets))
    spectrum = np.logspace(0, -2, dimensions, dtype=np.float32)
    for layer in x:
        mixing = np.linalg.qr(rng.normal(size=(dimensions, dimensions)))[0].astype(np.float32)
        layer[:] = (rng.standard_normal((rows, dimensions), np.float32) * spectrum) @ mixing
        layer += signal.astype(np.float32) @ rng.normal(size=(targets, dimensions)).astype(np.float32) * 0.03
        layer += rng.standard_normal(dimensions, np.float32)
        outliers = rng.choice(dimensions, 3, replace=False)
        layer[:, outliers] = 300 * layer[:, outliers] + 9000
    return x, signal + rng.normal(size=(rows, targets))


def case_a(settings: Settings) -> tuple[np.ndarray, np.ndarray, str]:
    if settings.run is not None:
        import pandas as pd

        from jaxprobe.extract.store.reader import open_activations

        activations = open_activations(settings.run / "activations")
        entities = pd.read_parquet(settings.run / "entities.parquet").sort_values("row")
        train = entities.loc[entities["split"] == "train", "row"].to_numpy()
        y = entities.filter(like="true_").to_numpy()[(entities["split"] == "train").to_numpy()]
        states = list(activations)
        if settings.layers is not None:
            states = [states[i] for i in np.linspace(0, len(states) - 1, settings.layers).round().astype(int)]
        x = np.stack([np.asarray(activations.rows(state, train), np.float32) for state in states])
        about = RunDirectory(settings.run).read_config()
        return x, y, f"{about['result']['model']} on {about['settings']['dataset']}, training rows"
    if settings.states is not None:
        return np.load(settings.states, mmap_mode="r"), np.load(settings.targets), f"states of {settings.states.name}"
    return *synthetic(*settings.shape), "synthetic states"


def write_problem(folder: Path, x: np.ndarray, y: np.ndarray, alphas: np.ndarray = ALPHAS) -> None:
    folder.mkdir()
    np.save(folder / "x.npy", np.ascontiguousarray(x, np.float32))
    np.save(folder / "y.npy", (y - y.mean(0)) / y.std(0))
    np.save(folder / "alphas.npy", alphas)
    np.save(folder / "folds.npy", np.random.default_rng(0).permutation(len(y)) % FOLDS)


def measure(settings: Settings, folder: Path, x: np.ndarray, y: np.ndarray, source: str) -> dict[str, Any]:
    """All engines on one problem, alternating."""
    write_problem(folder, x, y)
    shape = dict(zip(("layers", "rows", "dimensions"), map(int, x.shape), strict=True))
    result = {"states": source, **shape, "targets": int(y.shape[1]), "alphas": ALPHAS.tolist(), "engines": {}}
    del x
    names = [name for name in settings.engine if can_run(name)]
    warm_up: dict[str, dict[str, Any]] = {}
    with contextlib.ExitStack() as stack:
        engines = {name: Engine(name, folder) for name in names}
        for engine in engines.values():
            stack.callback(engine.close)
            warm_up[engine.name] = engine.fit()
            say(f"  {engine.name}: warm-up {warm_up[engine.name]['seconds']:.2f} s")
        quick = [name for name in names if warm_up[name]["seconds"] <= LONGEST]
        answers = {name: [] if name in quick else [warm_up[name]] for name in names}
        for turn in range(settings.rounds):
            for name in quick[turn % len(quick) :] + quick[: turn % len(quick)]:  # each round begins with another
                answers[name].append(engines[name].fit())
            say(f"  round {turn + 1} of {settings.rounds}")
    for name, runs in answers.items():
        seconds = [run["seconds"] for run in runs]
        times = shape["layers"] if name in ONE_LAYER else 1
        entry = {"seconds": seconds, "median_s": times * median(seconds), "peak_bytes": runs[-1]["peak_bytes"]}
        entry |= {"alpha": runs[-1]["alpha"], "blas": runs[-1]["blas"]}
        result["engines"][name] = entry
    compare(result["engines"], {name: runs[-1] for name, runs in answers.items()})
    return result


def compare(engines: dict[str, Any], answers: dict[str, dict[str, Any]]) -> None:
    """Adds ratios of medians, and the agreement with jaxprobe's float64, in place."""
    for name, entry in engines.items():
        entry["times_jaxprobe"] = entry["median_s"] / engines["jaxprobe"]["median_s"]
        floor = {"jaxprobe generalised": "floor generalised", "jaxprobe float64": "floor float64"}.get(name, "floor")
        if floor in engines:
            entry["times_floor"] = entry["median_s"] / engines[floor]["median_s"]
        reference = answers.get(REFERENCE.get(name, "jaxprobe float64"))
        if reference is None or not answers[name]["alpha"]:
            continue
        ours, theirs = (np.array(answer["alpha"]) for answer in (answers[name], reference))
        theirs = theirs[: len(ours)]
        entry["same_alpha"] = float(np.mean(np.isclose(ours, theirs, rtol=1e-5)))
        if answers[name]["errors"] is not None and reference["errors"] is not None:
            ours, theirs = (np.array(answer["errors"]) for answer in (answers[name], reference))
            entry["error_difference"] = float(np.abs(ours / theirs - 1).max())


def measure_growth(settings: Settings) -> dict[str, Any]:
    """Seconds of jaxprobe as one size grows at a time."""
    from jaxprobe.probes.ridge import fit_ridge

    first = {name: sizes[0] for name, sizes in GROWTH.items()}
    result = {}
    for name, sizes in GROWTH.items():
        curves = {}
        for size in sorted(sizes):
            of = shrunk(first | {name: size}, settings.scale)
            x, y = synthetic(of["layers"], of["rows"], of["dimensions"], of["targets"])
            alphas, samples = np.logspace(0, 6, of["alphas"]), []
            for _ in range(settings.rounds + 1):
                began = time.perf_counter()
                fit_ridge(x, y, alphas)
                samples.append(time.perf_counter() - began)
            curves[of[name]] = samples[1:]
        result[name] = curves
        say(f"  growth in {name}: " + ", ".join(f"{size} {median(s):.2f} s" for size, s in curves.items()))
    return {"base": shrunk(first, settings.scale), "scale": settings.scale, "seconds": result}


def shrunk(sizes: dict[str, int], scale: float) -> dict[str, int]:
    return sizes | {name: max(16, int(scale * sizes[name])) for name in ("rows", "dimensions")}


def plot_growth(growth: dict[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(growth["seconds"]), figsize=(15, 3.2), sharey=True, layout="constrained")
    for axis, (name, curves) in zip(axes, growth["seconds"].items(), strict=True):
        sizes = [int(size) for size in curves]
        axis.loglog(sizes, [median(samples) for samples in curves.values()], "o-")
        axis.set_xlabel(name)
        axis.set_xticks(sizes, [f"{size:,}" for size in sizes], rotation=45)
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("seconds")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main(settings: Settings) -> dict[str, Any]:
    result: dict[str, Any] = {
        "command": " ".join(["python", "benchmarks/ridge.py", *sys.argv[1:]]),
        "settings": {name: str(value) for name, value in dataclasses.asdict(settings).items()},
        "machine": machine.describe(),
        "precision": "float32: products in float32 at the highest precision, eigh in float64 (numpy: all in float32)",
        "not_compared": {} if importlib.util.find_spec("himalaya") else {"himalaya": "not installed"},
        "cases": [],
    }
    with tempfile.TemporaryDirectory() as scratch:
        cases = {
            "a": lambda: case_a(settings),
            "b": lambda: (*synthetic(*settings.square), "synthetic states"),
            "c": lambda: (*synthetic(*settings.wide), "synthetic states"),
        }
        for letter, make in cases.items():
            x, y, source = make()
            say(f"case ({letter}): {source}, {' x '.join(map(str, x.shape))}")
            result["cases"].append(measure(settings, Path(scratch) / letter, x, y, source))
            (Path(scratch) / letter / "x.npy").unlink()
    if settings.growth:
        result["growth"] = measure_growth(settings)
        plot_growth(result["growth"], settings.out.with_suffix(".png"))
    write_result(result, settings.out)
    print(ridge_table(result))
    return result


if __name__ == "__main__":
    main(tyro.cli(Settings))
