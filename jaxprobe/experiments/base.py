"""What is around every experiment: finished runs read one by one, its table and its figures written.

An experiment is a file of this folder with the name of its command. It holds

    __doc__               its first paragraph is the command's help
    Options               a frozen dataclass, one field an option, its docstring the option's help
    run(runs, options, reporter)
                          folders of finished runs -> a tidy table, whose column ``run`` names the folder of each row
    figures(frame)        the table -> its pictures
    printed(frame)        the rows that a terminal shows; optional
    TOGETHER              true where several processes may share the work; optional
"""

from collections.abc import Iterator, Sequence
from pathlib import PurePath
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from jaxprobe.data.table import EntityTable
from jaxprobe.errors import InputError
from jaxprobe.host.paths import AnyPath, as_path, replacing
from jaxprobe.host.progress import Progress
from jaxprobe.results.results import Run

if TYPE_CHECKING:  # figures are drawn by the functions that draw them, so that tables don't wait for matplotlib
    from matplotlib.figure import Figure


def each_run(runs: Sequence[AnyPath], task: str, reporter: Progress) -> Iterator[Run]:
    """Reads one run after the other; what is done with it counts towards the task.

    Raises:
      InputError: no run at all, one folder twice, or as `Run`.
    """
    runs = check_runs(runs)
    with reporter.task(task, len(runs), "run" if len(runs) == 1 else "runs") as advance:
        for path in runs:
            yield Run(path)
            advance(1)


def check_runs(runs: Sequence[AnyPath]) -> list[AnyPath]:
    """The folders. Raises InputError where there is none, or one stands twice."""
    runs = [as_path(run) for run in runs]
    if not runs:
        raise InputError("No run to look at. Name the folders of finished runs.")
    if twice := sorted({str(run) for run in runs if runs.count(run) > 1}):
        raise InputError(f"Runs named more than once: {', '.join(twice)}. Name each once.")
    return runs


def columns_of(run: Run) -> dict[str, object]:
    """What tells the rows of a run's table from those of another run."""
    return {"model": run.model, "prompt": run.prompt, "run": str(run.path)}


def usable_groups(table: EntityTable) -> tuple[str, ...]:
    """The group columns of which some group can be held out and another is left."""
    return tuple(group for group, labels in table.groups.items() if _two_labels(table, np.asarray(labels).astype(str)))


def _two_labels(table: EntityTable, labels: np.ndarray) -> bool:
    names, counts = np.unique(labels[~table.is_test], return_counts=True)
    tested = np.unique(labels[table.is_test], return_counts=True)
    usable = set(names[counts > 1]) & {name for name, count in zip(*tested, strict=True) if count > 1}
    return len(names) > 1 and bool(usable)


def write_table(experiment: ModuleType, frame: pd.DataFrame, folder: AnyPath) -> AnyPath:
    """Writes experiments/NAME.parquet, .csv and figures (.png and .svg) in a folder; returns the path of the CSV.

    One figure is called NAME; several (one for each run, or for each table) are NAME-1, NAME-2, ...
    """
    return write_pictures(name_of(experiment), frame, experiment.figures(frame), folder)


def write_pictures(name: str, frame: pd.DataFrame, figures: "Sequence[Figure]", folder: AnyPath) -> AnyPath:
    """The same of a table and pictures that are at hand."""
    from jaxprobe.report.canvas import save

    path = write_rows(name, frame, folder)
    stems = [name] if len(figures) == 1 else [f"{name}-{i}" for i in range(1, len(figures) + 1)]
    for suffix in ("png", "svg"):  # what an earlier call with other runs wrote
        for old in [path.with_name(f"{name}.{suffix}"), *path.parent.glob(f"{name}-*.{suffix}")]:
            old.unlink(missing_ok=True)
    for stem, figure in zip(stems, figures, strict=True):
        for suffix in ("png", "svg"):
            save(figure, path.with_name(f"{stem}.{suffix}"))
    return path


def write_rows(name: str, frame: pd.DataFrame, folder: AnyPath) -> AnyPath:
    """Writes experiments/NAME.parquet and .csv in a folder; returns the path of the CSV."""
    path = as_path(folder) / "experiments" / f"{name}.csv"
    with replacing(path.with_suffix(".parquet")) as temporary:
        frame.to_parquet(temporary, index=False)
    with replacing(path) as temporary:
        frame.to_csv(temporary, index=False)
    return path


def name_of(experiment: ModuleType) -> str:
    """What an experiment is called: its command, its file, its table."""
    return experiment.__name__.rpartition(".")[2]


def printed(experiment: ModuleType, frame: pd.DataFrame) -> pd.DataFrame:
    """What a terminal shows: one number for all targets of test rows, and the columns in which these rows differ."""
    shown = getattr(experiment, "printed", one_number)(frame)
    varied = [column for column in shown if shown[column].nunique(dropna=False) > 1]
    return shown[varied]


def one_number(frame: pd.DataFrame, *metrics: str) -> pd.DataFrame:
    """Test scores that are one number for all targets; of these metrics only, where some are named."""
    kept = frame["target"].isin(("mean", "place")) & (frame["split"] == "test")
    return frame[kept & frame["metric"].isin(metrics)] if metrics else frame[kept]


def by_run(frame: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """(what it is called, its rows) of each run; the folder is named where nothing else tells two runs apart."""
    parts = dict(list(frame.groupby("run", sort=False)))
    words = {run: " · ".join(part[["model", "dataset", "prompt"]].iloc[0]) for run, part in parts.items()}
    for run, part in parts.items():
        alone = list(words.values()).count(words[run]) == 1
        yield words[run] if alone else f"{words[run]} · {short_name(run, list(parts))}", part


def short_name(run: str, runs: Sequence[str]) -> str:
    """The end of a folder's path that no other run's path ends in."""
    parts = PurePath(run).parts
    for count in range(1, len(parts) + 1):
        if sum(PurePath(other).parts[-count:] == parts[-count:] for other in runs) == 1:
            return "/".join(parts[-count:])
    return run


def dots(title: str, called: str, frame: pd.DataFrame, kinds: dict[str, str]) -> "Figure":
    """Scores of one run as dots with their intervals, as `draw_dots` wants them; ``called`` is the run's name."""
    from jaxprobe.report.dot_figure import draw_dots
    from jaxprobe.report.phrases import layer_title

    subtitle = f"{called} · {layer_title(frame['layer'].iloc[0])} · 95 % interval"
    if frame["ci_low"].isna().any():
        subtitle += " (a dot without a line has none)"
    return draw_dots(frame, kinds, title, subtitle)


def matrix(frame: pd.DataFrame, rows: str, columns: str) -> pd.DataFrame:
    """Values by two columns' cells, each in the frame's order."""
    order = {"index": list(dict.fromkeys(frame[rows])), "columns": list(dict.fromkeys(frame[columns]))}
    return frame.pivot(index=rows, columns=columns, values="value").reindex(**order)
