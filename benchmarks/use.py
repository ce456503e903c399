"""Keeps what docs/use.md says of a finished `jaxprobe experiment use`: its table, its figure, its size and its time.

    jaxprobe run --model demo --dataset cities --limit 6500 --out RUN
    { cat /proc/loadavg; /usr/bin/time -v jaxprobe experiment use RUN; cat /proc/loadavg; } > LOG 2>&1
    python benchmarks/use.py RUN LOG

writes benchmarks/results/use.json and docs/use-country.png. A LOG may hold several starts, where one was interrupted.
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a script, Python sees only this folder

from benchmarks import machine
from jaxprobe.experiments import use
from jaxprobe.host.paths import replacing
from jaxprobe.report.canvas import save

RESULTS = machine.ROOT / "benchmarks" / "results"
FIGURE = machine.ROOT / "docs" / "use-country.png"
ABOUT = ("model", "dataset", "prompt", "question")
CELLS = ("test", "layer", "edit", "metric", "value", "ci_low", "ci_high", "p", "n", "resampled", "text")


def main(run: Path, log: Path, out: Path = RESULTS / "use.json", figure: Path = FIGURE) -> dict[str, Any]:
    """Writes the result and the experiment's figure; returns the result."""
    frame = pd.read_parquet(run / "experiments" / "use.parquet")
    rows = json.loads(frame[list(CELLS)].to_json(orient="records", double_precision=5))
    rows = [{name: value for name, value in row.items() if value not in (None, "")} for row in rows]
    result = {
        **{name: frame[name].iloc[0] for name in ABOUT},
        "table_rows": json.loads((run / "config.json").read_text())["settings"]["limit"],
        "took": read_log(log.read_text()),
        "machine": {key: value for key, value in machine.describe().items() if key != "load_average"},
        "rows": rows,
    }
    with replacing(out) as temporary:
        lines = ",\n".join(json.dumps(row) for row in result.pop("rows"))
        temporary.write_text(json.dumps(result, indent=2)[:-2] + f',\n  "rows": [\n{lines}\n]}}\n')
    [drawn] = use.figures(frame)
    save(drawn, figure)
    return result | {"rows": rows}


def read_log(text: str) -> dict[str, Any]:
    """Size, seconds, peak memory and the machine's load of a log; what it lacks is null."""
    found = lambda pattern: re.findall(pattern, text, re.MULTILINE)
    seconds = [
        sum(60**i * float(part) for i, part in enumerate(reversed(clock.split(":"))))
        for clock in found(r"Elapsed \(wall clock\) time.*: ([\d:.]+)$")
    ]
    loads = [float(load) for load in found(r"^([\d.]+) [\d.]+ [\d.]+ \d+/\d+ \d+$")]
    return {
        "announced": next(iter(found(r"^(\d+ entities, .*at this machine's rate\.)$")), None),
        "starts": len(seconds),
        "seconds": sum(seconds) or None,
        "cpu_seconds": sum(map(float, found(r"(?:User|System) time \(seconds\): ([\d.]+)$"))) or None,
        "peak_memory_bytes": max(
            (1024 * int(kb) for kb in found(r"Maximum resident set size.*: (\d+)$")), default=None
        ),
        "load_averages": loads,
    }


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
