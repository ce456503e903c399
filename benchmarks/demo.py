"""Runs `jaxprobe demo` as a user would and keeps what the README says of it.

    python benchmarks/demo.py

writes benchmarks/results/demo.json (time and peak memory of the process, scores with their intervals) and the two
figures beside it.
"""

import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from jaxprobe.results.folder import RunDirectory

RESULTS = Path(__file__).parent / "results"
FIGURES = ("map.png", "r2_by_layer.png")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        run = RunDirectory(Path(folder) / "run")
        started = time.perf_counter()
        subprocess.run([sys.executable, "-m", "jaxprobe", "demo", "--out", run.path], check=True)
        seconds = time.perf_counter() - started
        config = run.read_config()
        result = config["result"]
        (RESULTS / "demo.json").write_text(
            json.dumps(
                {
                    "command": "python benchmarks/demo.py",
                    "machine": f"{os.cpu_count()} x {platform.machine()}, {platform.system()}, no accelerator",
                    "versions": config["versions"],
                    "seconds": round(seconds, 1),
                    "seconds_by_part": result["seconds"],
                    "peak_memory_bytes": result["peak_memory_bytes"],
                    "headline_layer": result["headline_layer"],
                    "scores": _test_scores(run, ("embed", result["headline_layer"])),
                    "controls": _controls(run),
                },
                indent=2,
            )
            + "\n"
        )
        for name in FIGURES:
            shutil.copyfile(run.figures_path / name, RESULTS / f"demo-{name}")


def _test_scores(run: RunDirectory, layers: tuple[str, ...]) -> dict:
    """layer -> metric -> [value, low, high], means over the targets."""
    scores = run.read_scores()
    kept = scores[(scores["split"] == "test") & scores["target"].isin(["mean", "place"]) & scores["layer"].isin(layers)]
    found: dict = {layer: {} for layer in layers}
    for row in kept.itertuples():
        found[row.layer][row.metric] = [round(float(value), 4) for value in (row.value, row.ci_low, row.ci_high)]
    return found


def _controls(run: RunDirectory) -> dict:
    """control -> its test R2 and the probe's lead over it, each [value, low, high], means over the targets."""
    controls = run.read_controls()
    kept = controls[(controls["target"] == "mean") & (controls["resampled"] == "rows")]
    found: dict = {}
    for row in kept.itertuples():
        if row.metric in ("r2", "selectivity"):
            numbers = [round(float(value), 4) for value in (row.value, row.ci_low, row.ci_high)]
            found.setdefault(row.control, {})[row.metric] = numbers
    return found


if __name__ == "__main__":
    main()
