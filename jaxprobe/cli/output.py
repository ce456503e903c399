"""What a command leaves: results on stdout, as tables for people or with --json as one object; all else on stderr."""

import json
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from jaxprobe.host.paths import AnyPath
from jaxprobe.host.progress import Reporter, console_reporter

if TYPE_CHECKING:
    import pandas as pd

    from jaxprobe.cli.doctor import Check
    from jaxprobe.plan.planning import RunPlan
    from jaxprobe.results.folder import RunDirectory
    from jaxprobe.results.results import Run

WIDTH = 240  # of tables that are not printed on a terminal
UNUSABLE_INPUT = 2


class Output:
    """Where a command prints: ``as_json`` says for whom its results are; ``quiet`` leaves only them and errors."""

    def __init__(self, as_json: bool = False, quiet: bool = False, width: int | None = None):
        self.as_json = as_json
        self._console = Console(highlight=False, width=width or (None if sys.stdout.isatty() else WIDTH))
        # Names from data are text: a bracket in them is no markup.
        self._log = Console(stderr=True, highlight=False, soft_wrap=True, quiet=quiet)
        self._errors = Console(stderr=True, highlight=False, soft_wrap=True)  # --quiet leaves these

    @property
    def quiet(self) -> bool:
        """Whether nothing but results and errors is printed."""
        return self._log.quiet

    @quiet.setter
    def quiet(self, quiet: bool) -> None:
        self._log.quiet = quiet

    def reporter(self) -> Reporter:
        """Shows on stderr what a run tells."""
        return console_reporter(self._log)

    def say(self, line: str) -> None:
        """A line on stderr."""
        self._log.print(line, markup=False)

    def tell(self, code: int, lines: Sequence[str]) -> None:
        """Why the command ends; of several processes that have met one tells it for all."""
        for line in lines:
            self._errors.print(("[bold red]Error:[/] " if code == UNUSABLE_INPUT else "") + escape(line))
        if self.as_json:
            self._object({"problems": list(lines)})

    def frame(self, frame: "pd.DataFrame", title: str, **about: Any) -> None:
        """Every row and column; numbers to four digits for people, in full for scripts. ``about`` goes to scripts."""
        if self.as_json:
            return self._object({**about, "title": title, "rows": _records(frame)})
        table = Table(*map(escape, frame), title=escape(title))
        for row in frame.itertuples(index=False):
            table.add_row(*(escape(f"{cell:,.4g}" if isinstance(cell, float) else str(cell)) for cell in row))
        self._console.print(table)

    def run(self, directory: "RunDirectory") -> None:
        """A finished run: test scores by layer with the headline layer marked; for scripts where its files are too."""
        from jaxprobe.html import scores_in_words

        if self.as_json:
            return self._object(_record(directory))
        scores, result = directory.read_scores(), directory.read_result()
        names = {name: scores[name].iloc[0] for name in ("model", "dataset", "prompt")}
        heads, rows, marked = scores_in_words(scores, result["headline_layer"])
        table = Table(
            *heads,
            title=escape("{model}, {dataset}, prompt {prompt}: test scores".format(**names)),
            caption=f"embed: what the token alone tells. *: chosen by {result['chosen_by']} on the training rows.",
        )
        for number, row in enumerate(rows):
            table.add_row(*map(escape, row), style="bold" if number == marked else None)
        self._console.print(table)

    def several(self, directories: "Sequence[RunDirectory]", page: AnyPath) -> None:
        """Finished runs side by side, a row each; for scripts what `run` gives of each."""
        from jaxprobe.report.overview import HEADS, overview_row
        from jaxprobe.results.results import Run

        if self.as_json:
            return self._object({"page": str(page), "runs": [_record(directory) for directory in directories]})
        table = Table(*HEADS, title=f"{len(directories)} runs: test scores of the chosen layer and its controls")
        for directory in directories:
            table.add_row(*map(escape, overview_row(Run(directory))))
        self._console.print(table)

    def predictions(self, run: "Run", frame: "pd.DataFrame") -> None:
        """What a run's probe says of names: years as years, distances in whole km."""
        names = {"model": run.model, "layer": run.headline_layer, "prompt": run.wording, "run": str(run.path)}
        title = "90 % intervals: as wide as 90 % of the run's test errors"
        if self.as_json:
            return self._object({**names, "title": title, "rows": _records(frame)})
        shown = frame.copy()
        for column in frame.select_dtypes("number"):
            unit = "km" if column == "radius_km" else run.unit(column.removesuffix("_low").removesuffix("_high"))
            shown[column] = [_number(value, unit) for value in frame[column]]
        about = "{model}, layer {layer}, prompt {prompt!r}, {run}".format(**names)
        table = Table(*map(escape, shown), title=escape(about), caption=title)
        for row in shown.itertuples(index=False):
            table.add_row(*map(escape, row))
        self._console.print(table)

    def tokens(self, run: "Run", frame: "pd.DataFrame", texts: "Sequence[pd.DataFrame]", path: str) -> None:
        """What a run's probes say along texts: a table for each, layers by tokens."""
        if self.as_json:
            return self._object({"run": str(run.path), "table": path, "rows": _records(frame)})
        names = (run.label, "probability") if run.label else run.targets
        for text in texts:
            tokens = text.drop_duplicates("at")["token"]
            table = Table("layer", *map(escape, tokens), title=escape(f"{', '.join(names)}: {text['text'].iloc[0]}"))
            for layer, row in text.groupby("layer", sort=False):
                cells = [
                    ", ".join(f"{cell:,.3g}" if isinstance(cell, float) else str(cell) for cell in values)
                    for values in row[list(names)].itertuples(index=False)
                ]
                marked = layer == run.headline_layer
                style = "bold" if marked else None
                table.add_row(f"{layer} *" if marked else str(layer), *map(escape, cells), style=style)
            self._console.print(table)
        self.say(f"All of it: {path}; pictures beside it.")

    def plan(self, plan: "RunPlan") -> None:
        """What a run would take: of each program, and of the whole."""
        from jaxprobe.plan import words

        if self.as_json:
            return self._object(words.to_json(plan))
        lines = Console(highlight=False, soft_wrap=True)
        for line in words.describe(plan):
            lines.print(escape(line))
        head, *rows = words.program_rows(plan)
        table = Table(head[0], *(Column(name, justify="right") for name in head[1:]))
        for row in rows:
            table.add_row(*row)
        self._console.print(table)
        for line in words.conclusions(plan):
            lines.print(escape(line))

    def checks(self, checks: "Iterable[Check]") -> bool:
        """The lines of `jaxprobe doctor`, each as soon as it is known; whether nothing is wrong."""
        seen = []
        for check in checks:
            seen.append(check)
            if not self.as_json:
                mark = "WRONG" if check.kind == "wrong" else check.kind
                print(f"{mark:<6}{check.name:<13}{check.found}", flush=True)
                if check.remedy:
                    print(f"{'':<6}{'':<13}-> {check.remedy}", flush=True)
        sound = all(check.kind != "wrong" for check in seen)
        if self.as_json:
            self._object({"sound": sound, "checks": [check._asdict() for check in seen]})
        return sound

    def files(self, paths: Sequence[AnyPath | str]) -> None:
        """Files that were written, one a line."""
        if self.as_json:
            return self._object({"files": [str(path) for path in paths]})
        for path in paths:
            print(path)

    def _object(self, value: dict[str, Any]) -> None:
        print(json.dumps(value, ensure_ascii=False, allow_nan=False))


def _record(directory: "RunDirectory") -> dict[str, Any]:
    """What scripts get of a finished run."""
    from jaxprobe.html import scores_by_layer

    scores, config = directory.read_scores(), directory.read_config()
    result, by_layer = config["result"], scores_by_layer(scores)
    chosen = _records(by_layer[by_layer["layer"] == result["headline_layer"]])[0]
    return {
        "run": str(directory.path),
        "report": str(directory.report_path),
        "scores": str(directory.scores_csv_path),
        **{name: scores[name].iloc[0] for name in ("model", "dataset", "prompt")},
        "fingerprint": config["fingerprint"],
        "headline": chosen | {"chosen_by": result["chosen_by"]},
        "seconds": result["seconds"],
        "peak_memory_bytes": result["peak_memory_bytes"],
    }


def _number(value: float, unit: str) -> str:
    """A number to the precision that people want of its unit."""
    if not abs(value) < float("inf"):
        return "not known"
    form = {"year": "{:.0f}", "km": "{:,.0f}", "degree": "{:.2f}"}.get(unit, "{:,.4g}")
    return form.format(value)


def _records(frame: "pd.DataFrame") -> list[dict[str, Any]]:
    """One object a row; null for what is not known or not finite."""
    return json.loads(frame.to_json(orient="records", double_precision=15))
