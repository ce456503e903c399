"""Tables of README.md and docs/, and plots, from benchmarks/results/*.json, so that no figure is typed by hand.

    python benchmarks/tables.py           # rewrites the pages between their markers, and the JSON files' plots
    python benchmarks/tables.py --check   # says whether the pages are up to date

A table stands between ``<!-- table:NAME -->`` and ``<!-- /table:NAME -->``; NAME is a result file's name, or one of
OTHERS, which are made of several files or of the package itself.
"""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a script, Python sees only this folder

from benchmarks.engines import ENGINES
from jaxprobe.host.paths import replacing
from jaxprobe.host.progress import in_words
from jaxprobe.mesh import mesh_text

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
_MARKED = re.compile(r"(<!-- table:([\w.-]+) -->\n).*?(<!-- /table:\2 -->)", re.DOTALL)


def extraction_table(result: dict[str, Any]) -> str:
    """One row for each engine and dtype of each table; then what was measured on, and what was not compared."""
    lines = [
        "| table, prompt | engine | dtype | entities/s | jaxprobe is faster by | = fewer slots × rate "
        "| slots per distinct prefix | GFLOP/s executed (of own best matmul) | peak memory |",
        "|---|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for table in result["tables"]:
        for entry in table["engines"]:
            speed = entry["speed_up_of_jaxprobe"]
            ours = entry["engine"] == "jaxprobe"
            cells = (
                f"{table['dataset']}, {table['prompt']}",
                ENGINES[entry["engine"]][1],
                entry["dtype"],
                number(entry["entities_per_s"]),
                "" if ours else f"{speed['factor']:.1f}×",
                "" if ours else f"{speed['fewer_slots']:.1f} × {speed['rate']:.1f}",
                f"{entry['slots_per_prefix']:.2f}",
                f"{number(entry['executed_gflops'])} ({entry['of_best_matmul']:.0%})",
                f"{entry['peak_bytes'] / 1e9:.1f} GB",
            )
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", *extraction_notes(result)])


def speed_table(results: Path) -> str:
    """The README's short table: entities a second of each engine in float32, and by how much jaxprobe is faster."""
    result = json.loads((results / "extraction-cpu.json").read_text())
    rates: dict[str, dict[str, dict]] = {}
    for table in result["tables"]:
        for entry in table["engines"]:
            if entry["dtype"] == "float32":
                rates.setdefault(entry["engine"], {})[f"{table['dataset']}, {table['prompt']}"] = entry
    columns = list(rates["jaxprobe"])
    lines = ["| names a second | " + " | ".join(columns) + " |", "|---|" + "---:|" * len(columns)]
    for engine, entries in rates.items():
        factor = lambda entry: "" if "factor" not in entry else f" ({entry['factor']:.1f}× slower)"
        cells = [
            number(entries[name]["entities_per_s"])
            + ("" if engine == "jaxprobe" else factor(entries[name]["speed_up_of_jaxprobe"]))
            for name in columns
        ]
        lines.append(f"| {ENGINES[engine][1]} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", extraction_notes(result)[0]])


def experiments_table(results: Path) -> str:
    """What each experiment asks, in the words of its own docstring."""
    from jaxprobe.experiments import registry

    lines = ["| `jaxprobe experiment` | question |", "|---|---|"]
    for name in registry.EXPERIMENTS:
        lines.append(f"| `{name.replace('_', '-')}` | {registry.summary(registry.load(name))} |")
    return "\n".join(lines)


def extraction_notes(result: dict[str, Any]) -> list[str]:
    """Sentences under a table, from the file's own fields."""
    machine, versions = result["machine"], result["machine"]["versions"]
    devices = sorted({worker["device"] for worker in result["workers"].values()})
    notes = [
        f"{result['model']['name']} on {machine['processor']}, {machine['cores']} cores, device {', '.join(devices)}; "
        f"jax {versions['jax']}, torch {versions['torch']}, transformers {versions['transformers']}. "
        f"Medians of {result['settings']['rounds']} alternating rounds."
    ]
    for table in result["tables"]:
        for entry in table["engines"]:
            if "whole" in entry:
                notes.append(
                    f"{table['dataset']}, {table['prompt']}, {entry['dtype']}: jaxprobe's whole table of "
                    f"{table['entities']:,} entities took {entry['whole']['seconds'] + entry['plan_s']:.1f} s "
                    f"({number(entry['whole']['entities_per_s'])} entities/s), planning included; its slots ran at "
                    f"{entry['of_scan']:.0%} of the rate of a scan of the same layers' matmuls alone."
                )
    notes.append(not_compared(result))
    return [notes[0], "", *(f"- {note}" for note in notes[1:])]


def not_compared(result: dict[str, Any]) -> str:
    """What was left out of a comparison, and why."""
    return "Not compared: " + "; ".join(f"{name} ({why})" for name, why in result["not_compared"].items()) + "."


def demo_table(result: dict[str, Any]) -> str:
    """The demo's headline layer beside what would explain its score away; written by benchmarks/demo.py."""
    headline = result["headline_layer"]
    scores, controls = result["scores"], result["controls"]
    lines = [
        "| what predicts | test R² (95 % interval) | the probe's lead |",
        "|---|---:|---:|",
        f"| the probe of layer {headline} | {with_interval(scores[headline]['r2'])} | |",
    ]
    names = {
        "embed": "the last token's embedding alone",
        "ngrams": "the name's spelling alone: character n-grams, no model",
    }
    for control, name in names.items():
        numbers = controls[control]
        lines.append(f"| {name} | {with_interval(numbers['r2'])} | {with_interval(numbers['selectivity'])} |")
    error, memory = scores[headline]["error_km_median"], result["peak_memory_bytes"] / 1e9
    note = (
        f"Median error of the probe {error[0]:,.0f} km. The demo took {result['seconds']:.0f} s and {memory:.1f} GB "
        f"({result['machine']})."
    )
    return "\n".join([*lines, "", note])


RIDGE_ENGINES = {
    "jaxprobe": "jaxprobe",
    "scikit-learn": "a loop of scikit-learn's `RidgeCV`, float32",
    "scikit-learn array API": "the same on PyTorch's tensors on the GPU",
    "numpy": "15 lines of NumPy, float32 throughout",
    "floor": "*the floor: two bare products and one `eigh` a layer*",
    "jaxprobe float64": "jaxprobe, float64",
    "scikit-learn float64": "a loop of scikit-learn's `RidgeCV`, float64",
    "numpy float64": "15 lines of NumPy, float64",
    "jaxprobe generalised": "jaxprobe, generalised cross-validation",
    "jaxprobe k-fold": "jaxprobe, 5 folds, a penalty for each target",
    "himalaya": "himalaya on PyTorch, the same folds (one state timed, times all)",
}


def ridge_table(result: dict[str, Any]) -> str:
    """Seconds of every engine on every case, and how often the whole fit of jaxprobe's own precision fits into them."""
    cases = result["cases"]
    heads = [f"{case['layers']} × {case['rows']:,} × {case['dimensions']:,}" for case in cases]
    lines = [f"| choosing and fitting | {' | '.join(heads)} |", f"|---|{'---:|' * len(cases)}"]
    for engine, words in RIDGE_ENGINES.items():
        entries = [case["engines"].get(engine) for case in cases]
        if any(entries):
            cells = [
                f"{number(entry['median_s'])} s ({number(entry['times_jaxprobe'])}×)" if entry else ""
                for entry in entries
            ]
            lines.append(f"| {words} | {' | '.join(cells)} |")
    machine, first = result["machine"], cases[0]
    ours, same = first["engines"]["jaxprobe"], first["engines"]["scikit-learn float64"]["same_alpha"]
    sources = "; ".join(case["states"] for case in cases)
    notes = [
        f"{machine['processor']}, {machine['cores']} cores; jax {machine['versions']['jax']}. Medians of "
        f"{len(ours['seconds'])} alternating rounds. States × rows × dimensions: {sources}. {len(first['alphas'])} "
        "penalties, exact leave-one-out where nothing else is said; what takes more than a minute is timed once.",
        f"On the first, jaxprobe takes {ours['times_floor']:.2f} times the floor; scikit-learn in float64 chooses the "
        f"penalty that jaxprobe chooses in float64 for {same:.0%} of the states.",
    ]
    if result["not_compared"]:
        notes.append(not_compared(result))
    return "\n".join([*lines, "", " ".join(notes)])


def store_table(result: dict[str, Any]) -> str:
    """What storing costs, what the states take, and that streaming gives the same scores in flat memory."""
    storing, disk, agreement, runs = (result[part] for part in ("storing", "disk_bytes", "agreement", "streaming"))
    row = lambda name, cells: f"| {' | '.join([name, *cells])} |"
    lines = [
        row("rows streamed (`--no-store`)", [f"{run['entities']:,}" for run in runs]),
        "|---|" + "---:|" * len(runs),
        row("peak memory", [f"{run['peak_memory_bytes'] / 1e9:.2f} GB" for run in runs]),
        row("time", [f"{run['seconds']['total']:,.0f} s" for run in runs]),
    ]
    note = (
        f"{result['dataset']}, prompt {result['prompt']}, {result['machine']['cores']} cores. Storing costs "
        f"{storing['overhead']:.1%} of extraction time ({storing['entities']:,} names, medians of "
        f"{len(storing['seconds']['stored'])} turns). {disk['entities']:,} names × {len(agreement['states'])} states "
        f"take {disk['float32'] / 1e9:.2f} GB in float32, {disk['bfloat16'] / 1e9:.2f} GB in bfloat16. Streamed and "
        f"stored states, with the same folds, give test R² within {agreement['largest_difference']:.0e} of each other."
    )
    return "\n".join([*lines, "", note])


def paper_table(result: dict[str, Any]) -> str:
    """Every run beside its controls, then without its neighbours; written by benchmarks/paper_tables.py."""
    beside = {"embed": "last token's embedding alone", "random_weights": "the same layer with random weights"}
    beside |= {"ngrams": "spelling alone"}
    beside = {name: head for name, head in beside.items() if any(name in run["controls"] for run in result["runs"])}
    lines = [
        f"| table, prompt | the probe's test R² (95 % interval) | {' | '.join(beside.values())} "
        "| the probe's lead over the spelling | Llama-2-7b in the paper |",
        f"|---|{'---:|' * (len(beside) + 3)}",
    ]
    for run in result["runs"]:
        controls = run["controls"]
        cells = (
            f"{run['dataset']}, {run['prompt']}",
            f"{with_interval(controls['none']['r2'])}, layer {run['layer']}",
            *(f"{controls[name]['r2'][0]:.3f}" if name in controls else "" for name in beside),
            with_interval(controls["ngrams"]["selectivity"]),
            f"{run['paper']['llama2_7b']:.3f}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        "| table, prompt | held out of the fit | with it | without it |",
        "|---|---|---:|---:|",
    ]
    lines += [f"| {' | '.join(_held_out_cells(held))} |" for held in result["held_out"]]
    rows = sorted({run["rows"] for run in result["runs"]})
    took = f", {result['seconds'] / 60:.1f} minutes" if result["seconds"] else ""
    machine = f"{result['machine']['processor']}, {result['machine']['cores']} cores"
    note = f"{result['runs'][0]['model']}; rows a table: {', '.join(f'{n:,}' for n in rows)}. {machine}{took}."
    return "\n".join([*lines, "", note, f"Made by `{result['command']}`."])


def _held_out_cells(held: dict[str, Any]) -> tuple[str, str, str, str]:
    """Cells of the map: R2. Groups: in how many R2 falls, and the median over groups of the error that they have."""
    run = f"{held['dataset']}, {held['prompt']}"
    if "r2" in held:
        return run, held["group"], *(f"R² {with_interval(held['r2'][fit])}" for fit in ("nominal", "held_out"))
    better = f", higher in {held['better']}" if held["better"] else ""
    what = f"each {held['group'].replace('_', ' ')}: R² lower in {held['worse']} of {held['groups']}{better}"
    metric, unit = ("error_km_median", " km") if "error_km_median" in held["medians"] else ("proximity_error", "")
    digits, name = (",.0f", "median error") if unit else (".3f", "proximity error")
    values = (f"{name} {held['medians'][metric][fit]:{digits}}{unit}" for fit in ("nominal", "held_out"))
    return run, what, *values


def with_interval(numbers: list[float]) -> str:
    value, low, high = numbers
    return f"{value:.3f} ({low:.3f} to {high:.3f})"


def plan_table(result: dict[str, Any]) -> str:
    """One row for each plan; then what the times rest on; written by benchmarks/plan.py."""
    lines = [
        "| model, dtype | machine | mesh | parameters | peak memory, stored / not | of | 10^12 operations a step "
        "| collectives a step | time, stored / not |",
        "|---|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for plan in result["plans"]:
        forward = plan["forward"]
        moved = sum(one["times"] * one["size"] for one in forward["collectives"]) / 1e9
        peaks = " / ".join(
            f"{plan[f'peak_{way}'] / 1e9:.1f} GB" + ("" if plan[f"fits_{way}"] else " (does not fit)")
            for way in ("stored", "streamed")
        )
        cells = (
            f"{plan['model']}, {plan['dtype']}",
            plan["topology"] + ("" if plan["compiled"] else " (counted)"),
            mesh_text(plan["mesh"]),
            f"{plan['parameters'] / 1e9:.1f} GB",
            peaks,
            f"{plan['usable_memory'] / 1e9:.0f} GB",
            number(forward["operations"] / 1e12),
            f"{number(moved)} GB",
            " / ".join(in_words(plan[way]["total"]) for way in ("stored", "streamed")),
        )
        lines.append(f"| {' | '.join(cells)} |")
    first = result["plans"][0]
    notes = [
        f"Sizes and operations are of each chip. {first['table']}, prompt `{first['prompt']}`: {first['entities']:,} "
        f"entities, {first['distinct_prefixes']:,} distinct prefixes. Compiled with jax {result['versions']['jax']}; "
        f"nothing was run. The times for {first['topology']} rest on the following, and the others on the like:",
        "",
        *(f"- {line}" for line in first["assumptions"]),
    ]
    return "\n".join([*lines, "", *notes])


def worlds_table(result: dict[str, Any]) -> str:
    """One row for each world model, then what else tells the next city, then the pushes, and the machine."""
    lines = [
        "| model, seed | steps (seconds of a core) | map: R² before training | at its best step | at the end "
        "| deviation of a code at the end | moves never trained on: right city | moves trained on "
        "| displacement to the target, never named: best R² |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, found in result["models"].items():
        last, cost = found["last"], result["training"][name]
        moved = [values[0] for what, values in last.items() if what.endswith("r2_moved") and "control" not in what]
        seconds = "" if cost["cpu_seconds"] is None else f" ({cost['cpu_seconds']:.0f})"
        cells = (
            name,
            f"{cost['steps']:,}{seconds}",
            f"{found['r2_by_step']['0']:.2f}",
            f"{found['r2_at_peak']:.3f} (step {found['peak_step']:,})",
            with_interval(last["city, best, r2"]),
            f"{last['codes, embed, deviation'][0]:.2g}",
            f"{last['next_city, held, exact'][0]:.1%}",
            f"{last['next_city, seen, exact'][0]:.1%}",
            f"{max(moved):.2f}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    seeds = [
        f"{kind}: R² {with_interval(found['r2 at the peak'])} at its best step, "
        f"{with_interval(found['city, best, r2'])} at the end, "
        f"right city {with_interval(found['next_city, held, exact'])}"
        for kind, found in result["over_seeds"].items()
    ]
    lines += ["", f"Mean of three seeds, with Student's 95 % interval: {'; '.join(seeds)}."]
    controls = next(iter(result["models"].values()))["last"]
    told = lambda control, metric="exact", question="next_city": controls[f"{question}, control: {control}, {metric}"][
        0
    ]
    lines += [
        "",
        f"Without a model, of the moves never trained on: the same action from neighbours in the graph of moves "
        f"{told('same action from neighbours'):.1%}, the same distance in the nearest heading "
        f"{told('same distance, nearest heading'):.1%}, chance {told('chance'):.1%}. The displacement from the "
        f"departure's position and the action, added up: R² {told('position + action', 'r2_moved', 'target'):.2f}.",
        "",
        "| pushed by 500 km, moves never trained on | along the surface: moved (cosine) "
        "| along the probe, by covariance | along the probe, minimum norm | another row's | random |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    hows = ("surface", "probe, covariance", "probe, minimum norm", "another row's", "random")
    pushes = result["shifts"]
    for key in dict.fromkeys(what.split(f", {hows[0]}")[0] for what in pushes if f", {hows[0]}" in what):
        cells = [pushes[f"{key}, {how}, 500.0"] for how in hows]
        shown = " | ".join(f"{cell['slope'][0]:.2f} ({cell['cosine'][0]:.2f})" for cell in cells)
        lines.append(f"| {key} | {shown} |")
    machine = result["machine"]
    return "\n".join([*lines, "", f"{machine['cores']} cores, {machine['processor']}. {result['note']}"])


def use_table(result: dict[str, Any]) -> str:
    """By layer the effect beside its controls and how far shifts moved; then the sentences; by benchmarks/use.py."""
    frame = pd.DataFrame(result["rows"])
    short = lambda row: f"{row['value']:.2f} [{row['ci_low']:.2f}, {row['ci_high']:.2f}]"

    def cell(test: str, layer: str, edit: str, metric: str, resampled: tuple[str, ...] = ("rows", "draws")) -> str:
        at = (frame["test"] == test) & (frame["layer"] == layer) & (frame["edit"] == edit) & (frame["metric"] == metric)
        rows = frame[at & frame["resampled"].isin(resampled)]
        return "" if rows.empty else short(rows.iloc[0])

    effects = {
        "erased (LEACE)": ("necessity", "leace"),
        "permuted targets": ("controls", "permuted"),
        "random subspaces": ("controls", "random subspaces"),
        "random changes of that size": ("controls", "random differences"),
        "an unrelated target": ("necessity", "unrelated"),
        "LEACE less permuted, reworded": ("reworded", "leace less permuted"),
        "all later layers too": ("all later layers", "leace"),
    }
    moves = {
        "covariance": "along the covariance",
        "least_norm": "least norm",
        "answer_means": "difference of answer means",
        "random_shift": "random change",
        "elsewhere": "towards elsewhere",
    }
    layers = list(dict.fromkeys(frame.loc[frame["test"] == "necessity", "layer"]))
    lines = [f"| layer | {' | '.join(effects)} |", f"|---|{'---:|' * len(effects)}"]
    for layer in layers:
        cells = (cell(test, layer, edit, "log_odds") for test, edit in effects.values())
        lines.append(f"| {layer} | {' | '.join(cells)} |")
    lines += ["", f"| moved, of what was asked | {' | '.join(moves.values())} |", f"|---|{'---:|' * len(moves)}"]
    lines += [f"| {layer} | {' | '.join(cell('moved', layer, edit, 'along') for edit in moves)} |" for layer in layers]
    left = frame[(frame["test"] == "erased") & (frame["metric"] == "r2")]
    left = left.pivot(index="layer", columns="edit", values="value").reindex(layers)
    probes = {"none": "before", "leace": "after LEACE, ridge fitted anew", "leace, read by mlp": "an MLP"}
    probes |= {
        "leace, read by kernel": "a kernel probe",
        "orthogonal": "after orthogonal projection, ridge fitted anew",
    }
    lines += ["", f"| what still reads the place, test R² | {' | '.join(probes.values())} |"]
    lines.append(f"|---|{'---:|' * len(probes)}")
    lines += [f"| {layer} | {' | '.join(f'{left.loc[layer, probe]:.2f}' for probe in probes)} |" for layer in layers]
    answers = frame[frame["test"] == "competence"].set_index("edit")["value"]
    told = frame[(frame["test"] == "competence") & (frame["edit"] == "none")].iloc[0]
    family = frame[frame["metric"] == "family"].set_index("edit")["p"]
    took, machine = result["took"], result["machine"]
    said = frame.loc[frame["test"] == "sentence", "text"]
    time = f"{took['seconds'] / 60:.0f} minutes ({took['cpu_seconds'] / 60:.0f} of CPU time)"
    return "\n".join([
        *(f"> {line}" for line in said),
        "",
        f"{result['model']}, {result['table_rows']:,} rows of {result['dataset']}, question `{result['question']}`. "
        f"The model answers {short(told)} of {told['n']:.0f} test rows; chance {answers['chance']:.2f}, the commonest "
        f"answer {answers['majority']:.2f}, spelling alone {answers['spelling']:.2f}. p over all layers at once: "
        f"{', '.join(f'{name} {p:.3f}' for name, p in family.items())}. Change of the right answer's log-odds in nats, "
        "95 % intervals; of controls the middle 95 % of draws.",
        "",
        *lines,
        "",
        f"{took['announced']} It took {time} and {took['peak_memory_bytes'] / 1e9:.1f} GB, on "
        f"{machine['cores']} cores ({machine['processor']}), load average "
        f"{' and '.join(f'{load:.1f}' for load in took['load_averages'])} at start and end.",
    ])  # fmt: skip


# The start of a result file's name -> what writes its table. Files of other benchmarks add their own.
WRITERS: dict[str, Callable[[dict[str, Any]], str]] = {
    "extraction": extraction_table,
    "demo": demo_table,
    "paper": paper_table,
    "plan": plan_table,
    "ridge": ridge_table,
    "store": store_table,
    "use": use_table,
    "worlds": worlds_table,
}
OTHERS: dict[str, Callable[[Path], str]] = {"speed": speed_table, "experiments": experiments_table}


def number(value: float) -> str:
    """Three significant digits, or whole numbers with separators."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def with_tables(text: str, results: Path = RESULTS) -> str:
    """``text`` with every marked table made anew. Raises ValueError for a marker without a result file."""

    def fill(match: re.Match) -> str:
        if match[2] in OTHERS:
            return f"{match[1]}{OTHERS[match[2]](results)}\n{match[3]}"
        path = results / f"{match[2]}.json"
        writer = next((writer for start, writer in WRITERS.items() if match[2].startswith(start)), None)
        if writer is None or not path.is_file():
            raise ValueError(f"Table {match[2]} is marked, but {path.name} is not in {results} or has no writer.")
        return f"{match[1]}{writer(json.loads(path.read_text()))}\n{match[3]}"

    return _MARKED.sub(fill, text)


def plot_extraction(result: dict[str, Any], path: Path) -> None:
    """Entities a second by engine, one panel for each table, with each bar's own figure."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    colours = {"float32": "#0072b2", "bfloat16": "#e69f00"}
    tables = result["tables"]
    bars = max(len(table["engines"]) for table in tables)
    size = (9, len(tables) * (0.3 * bars + 1.2))
    figure, axes = pyplot.subplots(len(tables), 1, figsize=size, squeeze=False, layout="constrained", sharex=True)
    for axis, table in zip(axes[:, 0], tables, strict=True):
        entries = table["engines"][::-1]
        rates = [entry["entities_per_s"] for entry in entries]
        drawn = axis.barh(
            [f"{ENGINES[entry['engine']][1]} ({entry['dtype']})" for entry in entries],
            rates,
            color=[colours[entry["dtype"]] for entry in entries],
        )
        axis.bar_label(drawn, [number(rate) for rate in rates], padding=3)
        axis.set(xlabel="entities a second", title=f"{table['dataset']}, prompt {table['prompt']}")
        axis.margins(x=0.1)
        axis.spines[["top", "right"]].set_visible(False)
    with replacing(path) as temporary:
        figure.savefig(temporary, metadata={"Date": None} if path.suffix == ".svg" else None)
    pyplot.close(figure)


def pages() -> list[Path]:
    """Every page that may hold a table."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def main(check: bool = False) -> None:
    """Rewrite the pages' tables and the plots from the result files.

    Args:
        check: Change nothing; end with an error where a table is not what the result files say.
    """
    for page in pages():
        text = page.read_text()
        made = with_tables(text)
        if check and made != text:
            sys.exit(f"{page.name} does not match benchmarks/results: run python benchmarks/tables.py")
        if made != text:
            with replacing(page) as path:
                path.write_text(made)
    if check:
        return
    for path in sorted(RESULTS.glob("extraction*.json")):
        plot_extraction(json.loads(path.read_text()), path.with_suffix(".svg"))


if __name__ == "__main__":
    tyro.cli(main)
