"""A figure for each experiment, from its tidy table alone."""

from collections.abc import Callable, Iterator

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from jaxprobe.host.paths import AnyPath
from jaxprobe.report.canvas import FAINT, LOWEST_R2, area, house_style, legend_label, r2_limits, save, write_title
from jaxprobe.report.control_section import describe_control
from jaxprobe.report.dot_figure import draw_dots
from jaxprobe.report.maps import OKABE_ITO
from jaxprobe.report.matrix_figure import draw_matrices
from jaxprobe.report.phrases import layer_title

RUN = ["model", "dataset", "prompt"]


def write_experiment_figures(name: str, frame: pd.DataFrame, folder: AnyPath) -> list[AnyPath]:
    """Write the figures of the experiment ``name`` as PNG and SVG; returns the paths, none where it has no figure.

    One figure is called NAME; several (one for each run, or for each table) are NAME-1, NAME-2, ...
    """
    figures = FIGURES[name](frame) if name in FIGURES else []
    stems = [name] if len(figures) == 1 else [f"{name}-{i}" for i in range(1, len(figures) + 1)]
    for suffix in ("png", "svg"):  # what an earlier call with other runs wrote
        for old in [folder / f"{name}.{suffix}", *folder.glob(f"{name}-*.{suffix}")]:
            old.unlink(missing_ok=True)
    return [
        save(figure, folder / f"{stem}.{suffix}")
        for stem, figure in zip(stems, figures, strict=True)
        for suffix in ("png", "svg")
    ]


def layer_figures(frame: pd.DataFrame) -> list[Figure]:
    """R2 and Spearman against relative depth: a panel for each table, a line for each model and prompt."""
    frame = _means(frame[(frame["compared_with"] == "") & (frame["resampled"] == "rows")], "r2", "spearman")
    frame = frame[frame["layer"] != "final_norm"]  # at the depth of the last block
    varied = [column for column in ("model", "prompt") if frame[column].nunique() > 1] or ["model"]
    frame = frame.assign(line=frame[varied].agg(", ".join, axis=1))
    styles = dict(zip(dict.fromkeys(frame["line"]), _line_styles(), strict=False))
    datasets = list(dict.fromkeys(frame["dataset"]))
    below = 0.6 + 0.19 * len(styles)
    with house_style():
        figure = Figure(figsize=(max(5.4, 3.1 * len(datasets) + 0.8), 5.4 + below))
        grid = area(figure, left=0.72, right=0.2, bottom=below, top=0.95).subgridspec(
            2, len(datasets), hspace=0.1, wspace=0.1
        )
        for row, (metric, name) in enumerate({"r2": "Test R²", "spearman": "Spearman"}.items()):
            shared = None
            for column, dataset in enumerate(datasets):
                axes = shared = figure.add_subplot(grid[row, column], sharey=shared)
                _draw_lines(axes, frame[(frame["dataset"] == dataset) & (frame["metric"] == metric)], styles)
                axes.tick_params(labelleft=column == 0, labelbottom=row == 1)
                axes.set_title(dataset if row == 0 else "", loc="left", fontsize=10)
                axes.set_ylabel(name if column == 0 else "")
                axes.set_xlabel("Relative depth" if row == 1 else "")
            values = frame.loc[frame["metric"] == metric, ["value", "ci_low", "ci_high"]]
            shared.set_ylim(*r2_limits(values.to_numpy()))
        handles = [
            Line2D([], [], label=legend_label(label, 90), linewidth=2, **style) for label, style in styles.items()
        ]
        figure.legend(handles=handles, loc="lower left", frameon=False, fontsize=8.5, borderaxespad=0.4)
        fixed = [frame[column].iloc[0] for column in ("model", "prompt") if column not in varied]
        scale = "0: the embedding, 1: after the last block · 95 % interval over test rows"
        write_title(figure, "Test scores by layer", " · ".join([*fixed, scale]))
    return [figure]


def _draw_lines(axes: Axes, frame: pd.DataFrame, styles: dict[str, dict]) -> None:
    for line, part in frame.groupby("line", sort=False):
        part = part.sort_values("depth")
        colour = styles[line]["color"]
        low, high, value = (part[name].clip(LOWEST_R2 - 1, 2) for name in ("ci_low", "ci_high", "value"))
        axes.fill_between(part["depth"], low, high, alpha=0.15, linewidth=0, color=colour)
        axes.plot(part["depth"], value, linewidth=1.8, **styles[line])
    axes.set_xlim(-0.02, 1.02)
    axes.grid(True, color=FAINT, linewidth=0.5)
    axes.set_axisbelow(True)


def _line_styles() -> Iterator[dict]:
    for style in ("-", (0, (5, 2)), (0, (1, 1.5))):
        for colour in OKABE_ITO:
            yield {"color": colour, "linestyle": style}


def prompt_figures(frame: pd.DataFrame) -> list[Figure]:
    """For each model and table the matrix of training and testing prompts: raw, and moved by the means' difference."""
    names = {"raw": "States as they are", "recentred": "Mean shift removed"}
    figures = []
    for (model, dataset), part in _means(frame, "r2").groupby(["model", "dataset"], sort=False):
        panels = {
            names[centring]: _matrix(each, "train_prompt", "prompt")
            for centring, each in part.groupby("centring", sort=False)
        }
        subtitle = f"{model} · {dataset} · {layer_title(part['layer'].iloc[0])}"
        figures.append(draw_matrices(panels, "One prompt's probe on another's states", subtitle, "prompt"))
    return figures


def type_figures(frame: pd.DataFrame) -> list[Figure]:
    """For each run the matrix of types that a probe was trained and tested on."""
    figures = []
    for run, part in _means(frame, "r2").groupby(RUN, sort=False):
        matrix = _matrix(part, "train_on", "test_on")
        last = ["others", "all"]
        matrix = matrix.reindex([name for name in matrix.index if name not in last] + last)
        subtitle = f"{' · '.join(run)} · {layer_title(part['layer'].iloc[0])} · R² about the tested type's mean"
        figures.append(draw_matrices({"": matrix}, "One type's probe on another", subtitle, "type"))
    return figures


def _matrix(frame: pd.DataFrame, rows: str, columns: str) -> pd.DataFrame:
    """Values by two columns' cells, each in the frame's order."""
    order = {"index": list(dict.fromkeys(frame[rows])), "columns": list(dict.fromkeys(frame[columns]))}
    return frame.pivot(index=rows, columns=columns, values="value").reindex(**order)


def block_figures(frame: pd.DataFrame) -> list[Figure]:
    """For each run: every group by the probe of all training rows, and by one that was fitted without the group."""
    frame = _means(frame)[lambda rows: rows["fit"] != "difference"]
    # The cells' R2 is about the mean of all rows tested, which are its group.
    rows = frame["held_out"].replace("", "(none)")  # places of no continent
    frame = frame.assign(section=frame["group"].str.replace("_", " "), row=rows, kind=frame["fit"])
    frame["metric"] = frame["metric"].replace("r2", "r2_block_mean")
    kinds = {"nominal": "probe of all training rows", "held_out": "fitted without the group, or cells and buffer"}
    return [_dots(run, part, kinds, "Groups that the probe never saw") for run, part in frame.groupby(RUN, sort=False)]


def control_figures(frame: pd.DataFrame) -> list[Figure]:
    """For each run: R2 of the probe beside that of each control."""
    frame = _means(frame, "r2")
    names = [describe_control(*pair)[0] for pair in zip(frame["control"], frame["resampled"], strict=True)]
    kind = frame["control"].eq("none").map({True: "probe", False: "control"})
    frame = frame.assign(section="", row=names, kind=kind).sort_values("kind", ascending=False, kind="stable")
    kinds = {"probe": "the probe", "control": "a control"}
    return [_dots(run, part, kinds, "The probe beside its controls") for run, part in frame.groupby(RUN, sort=False)]


def dateline_figures(frame: pd.DataFrame) -> list[Figure]:
    """For each run: probes of degrees and of points on the sphere."""
    frame = _means(frame)[lambda rows: rows["target_form"] != "difference"]
    kinds = {"degrees": "fitted on degrees", "unit_vector": "fitted on points of the sphere"}
    frame = frame.assign(section="", row=frame["target_form"].map(kinds), kind=frame["target_form"])
    return [_dots(run, part, kinds, "Does the dateline matter?") for run, part in frame.groupby(RUN, sort=False)]


def _dots(run: tuple[str, ...], frame: pd.DataFrame, kinds: dict[str, str], title: str) -> Figure:
    subtitle = f"{' · '.join(run)} · {layer_title(frame['layer'].iloc[0])} · 95 % interval"
    if frame["ci_low"].isna().any():
        subtitle += " (a dot without a line has none)"
    return draw_dots(frame, kinds, title, subtitle)


def _means(frame: pd.DataFrame, *metrics: str) -> pd.DataFrame:
    """Test scores that are one number for all targets; of these metrics only, where some are named."""
    kept = frame["target"].isin(("mean", "place")) & (frame["split"] == "test")
    return frame[kept & frame["metric"].isin(metrics)] if metrics else frame[kept]


FIGURES: dict[str, Callable[[pd.DataFrame], list[Figure]]] = {
    "layers": layer_figures,
    "prompts": prompt_figures,
    "blocks": block_figures,
    "entity_types": type_figures,
    "controls": control_figures,
    "dateline": dateline_figures,
}
