"""The pictures of world models, from what was asked of them (world_questions.py) and the causal test (steering.py).

Each takes a tidy table and gives a Matplotlib figure; tables of several models may be put together, told apart by
``run``.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import hsv_to_rgb
from matplotlib.figure import Figure

from jaxprobe.data.sphere import places_of
from jaxprobe.host.paths import AnyPath
from jaxprobe.probes.ridge import predict
from jaxprobe.report.canvas import FAINT, MUTED, area, house_style, save, write_title
from jaxprobe.report.maps import OKABE_ITO, WORLD, read_coastlines
from jaxprobe.worlds.world_questions import fit_points

if TYPE_CHECKING:
    from jaxprobe.worlds.world_runs import Trained

GLOBE_STEPS = (25, 50, 100, 200)  # and the last
WAYS = {  # of pushing a state -> what the legend calls it, colour, marker
    "surface": ("along the surface place → state", OKABE_ITO[0], "o"),
    "probe, covariance": ("along the probe, by covariance", OKABE_ITO[1], "D"),
    "probe, minimum norm": ("along the probe, minimum norm", OKABE_ITO[5], "s"),
    "another row's": ("another row's, the surface's size", MUTED, "x"),
    "random": ("random, the surface's size", FAINT, "x"),
}


def save_all(folder: AnyPath, figures: Mapping[str, Figure]) -> None:
    """Writes each as NAME.png and NAME.svg."""
    for name, figure in figures.items():
        for suffix in (".png", ".svg"):
            save(figure, folder / f"{name}{suffix}")


def draw_globe(trained: "Trained") -> Figure:
    """The globe appearing: held-out cities where each checkpoint's best probe puts them, coloured by where they are."""
    kept, world = trained.history.weights, trained.world
    steps = [step for step in GLOBE_STEPS if step in kept and step < max(kept)] + [max(kept)]
    test = world.is_test
    colours = _hues(world.places[test])
    with house_style():
        figure = Figure(figsize=(9.2, 1.0 + 2.0 * -(-(len(steps) + 1) // 3)))
        space = area(figure, left=0.13, right=0.13, bottom=0.2, top=0.85)
        grid = space.subgridspec(-(-(len(steps) + 1) // 3), 3, wspace=0.04, hspace=0.18)
        for number, step in enumerate(steps):
            state, found, score = _best_reading(trained.model(step))
            axes = _map(figure.add_subplot(grid[number // 3, number % 3]))
            places = places_of(found)
            axes.scatter(places[:, 1], places[:, 0], s=9, c=colours, linewidths=0)
            axes.set_title(f"step {step:,}: R² {score:.2f} ({_place(state)})", fontsize=9, loc="left", pad=3)
        axes = _map(figure.add_subplot(grid[len(steps) // 3, len(steps) % 3]))
        axes.scatter(world.places[test, 1], world.places[test, 0], s=9, c=colours, linewidths=0)
        axes.set_title("where they are", fontsize=9, loc="left", pad=3)
        write_title(
            figure,
            "Where a model that never saw a coordinate has its cities",
            f"{test.sum()} cities that no probe was fitted on, where a linear probe reads them; {trained.name}, "
            f"{len(world):,} cities",
        )
    return figure


def draw_training(answers: pd.DataFrame) -> Figure:
    """R2 of the map and right next cities over training, on one axis: they may part."""
    with house_style():
        figure = Figure(figsize=(7.2, 4.0))
        axes = figure.add_subplot(area(figure, left=0.6, right=2.1, bottom=0.5, top=0.85))
        lines = {
            "map: R² in held-out cities": ("city", "best", "r2", OKABE_ITO[0], "-"),
            "moves never trained on, right": ("next_city", "held", "exact", OKABE_ITO[1], "-"),
            "moves trained on, right": ("next_city", "seen", "exact", OKABE_ITO[1], ":"),
            "labels, right": ("label", "all", "exact", OKABE_ITO[2], ":"),
        }
        ends = {}
        for name, (question, of, metric, colour, style) in lines.items():
            part = _of(answers, question, of, metric)
            part = part[part["step"] > 0]
            if len(part):
                axes.plot(part["step"], part["value"], color=colour, linestyle=style, linewidth=1.6)
                ends[name] = (part["step"].iloc[-1], part["value"].iloc[-1], colour)
        _name_lines(axes, ends)
        axes.set_xscale("log")
        _step_ticks(axes, answers)
        axes.set(ylim=(0, 1.02), xlabel="Training steps")
        axes.grid(axis="y", color=FAINT, linewidth=0.5)
        write_title(figure, "The map and the right answers over training", ", ".join(answers["run"].unique()))
    return figure


def draw_shifts(shifts: pd.DataFrame) -> Figure:
    """How far the predicted city moves, of how far it was asked to, by state and way; pairs never trained on."""
    frame = shifts[(shifts["pairs"] == "held") & (shifts["how"] != "nothing")]
    steps, handles = sorted(frame["step"].unique()), list(dict.fromkeys(frame["handle"]))
    asked = frame["asked_km"].min()
    frame = frame[frame["asked_km"] == asked]
    with house_style():
        figure = Figure(figsize=(2.6 + 3.0 * len(steps), 1.75 + 0.42 * len(handles)))
        grid = area(figure, left=1.75, right=0.3, bottom=1.0, top=0.95).subgridspec(1, len(steps), wspace=0.12)
        for column, step in enumerate(steps):
            axes = figure.add_subplot(grid[0, column])
            part = frame[frame["step"] == step].set_index(["how", "handle"])["slope"]
            for edge in (0, 1):
                axes.axvline(edge, color=FAINT, linewidth=0.8, zorder=0)
            for how, (name, colour, marker) in WAYS.items():
                axes.plot(
                    part[how].reindex(handles), range(len(handles)), marker, color=colour, label=name, markersize=6
                )
            axes.set_yticks(range(len(handles)), [_place(handle) for handle in handles] if column == 0 else [])
            axes.tick_params(axis="y", length=0)
            axes.set(ylim=(len(handles) - 0.4, -0.6), xlim=(-0.12, 1.12))
            axes.set_xlabel("moved, of what was asked")
            axes.set_title(f"step {step:,}", fontsize=9, loc="left", pad=3)
        handles_, labels = axes.get_legend_handles_labels()
        figure.legend(handles_, labels, loc="lower left", frameon=False, fontsize=8, ncols=2, borderaxespad=0.4)
        write_title(
            figure,
            "Pushing the place that a state holds",
            f"{asked:,.0f} km asked for, departures that no probe saw; {', '.join(frame['run'].unique())}",
        )
    return figure


def draw_collapse(answers: pd.DataFrame) -> Figure:
    """With and without a term against collapse: deviation, effective rank and R2 over training, a line a run."""
    panels = {
        "deviation of a code": ("codes", "embed", "deviation"),
        "effective rank": ("codes", "embed", "effective_rank"),
        "map: R² in held-out cities": ("city", "embed", "r2"),
    }
    runs = list(dict.fromkeys(answers["run"]))
    with house_style():
        figure = Figure(figsize=(9.2, 3.4))
        grid = area(figure, left=0.65, right=0.25, bottom=0.85, top=0.95).subgridspec(1, len(panels), wspace=0.26)
        for column, (name, question) in enumerate(panels.items()):
            axes = figure.add_subplot(grid[0, column])
            for run, colour in zip(runs, OKABE_ITO, strict=False):
                part = _of(answers[answers["run"] == run], *question)
                axes.plot(part["step"], part["value"], color=colour, linewidth=1.6, label=run)
            axes.set_title(name, fontsize=9, loc="left", pad=3)
            axes.set_xlabel("Training steps")
            if question[2] == "deviation":
                axes.set_yscale("log")
                axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")  # no mathtext in the house's style
            elif question[2] == "r2":
                axes.set_ylim(-0.1, 1.02)
            else:
                axes.set_ylim(0, None)
        lines, labels = axes.get_legend_handles_labels()
        figure.legend(lines, labels, loc="lower left", frameon=False, fontsize=8, ncols=len(runs), borderaxespad=0.4)
        write_title(
            figure,
            "Codes with and without a term against collapse",
            "The deviation sees a collapse; the effective rank, which has no scale, does not",
        )
    return figure


def draw_open_loop(answers: pd.DataFrame) -> Figure:
    """Right cities after 1 to 8 steps of which only the first city is observed, a line a run."""
    with house_style():
        figure = Figure(figsize=(5.6, 3.4))
        axes = figure.add_subplot(area(figure, left=0.6, right=2.0, bottom=0.5, top=0.85))
        ends = {}
        for run, colour in zip(dict.fromkeys(answers["run"]), OKABE_ITO, strict=False):
            part = answers[
                (answers["run"] == run) & (answers["question"] == "open_loop") & (answers["metric"] == "exact")
            ]
            part = part[part["step"] == part["step"].max()]
            steps = part["of"].astype(int)
            axes.plot(steps, part["value"], "o-", color=colour, linewidth=1.6, markersize=4)
            ends[run] = (steps.iloc[-1], part["value"].iloc[-1], colour)
        _name_lines(axes, ends)
        axes.set(ylim=(0, 1.02), xlabel="Steps without an observation", ylabel="right city")
        axes.grid(axis="y", color=FAINT, linewidth=0.5)
        write_title(figure, "Walking in the dark", "Walks over all moves that exist, those trained on among them")
    return figure


def draw_sizes(answers: pd.DataFrame) -> Figure:
    """R2 by state and over training, for models of several sizes."""
    runs = list(dict.fromkeys(answers["run"]))
    with house_style():
        figure = Figure(figsize=(8.2, 3.6))
        grid = area(figure, left=0.6, right=0.25, bottom=0.85, top=0.95).subgridspec(1, 2, wspace=0.2)
        by_state, over_steps = figure.add_subplot(grid[0, 0]), figure.add_subplot(grid[0, 1])
        for run, colour in zip(runs, OKABE_ITO, strict=False):
            part = answers[(answers["run"] == run) & (answers["question"] == "city") & (answers["metric"] == "r2")]
            best = _of(part, "city", "best", "r2")
            over_steps.plot(best["step"], best["value"], color=colour, linewidth=1.6, label=run)
            peak = best.loc[best["value"].idxmax(), "step"]
            states = part[(part["step"] == peak) & ~part["of"].isin(["best", "final_norm"])]
            by_state.plot(range(len(states)), states["value"], "o-", color=colour, markersize=4, linewidth=1.6)
        depth = max(len(part["of"].unique()) for _, part in answers[answers["question"] == "city"].groupby("run")) - 2
        by_state.set_xticks(range(depth), ["embed", *(f"block {block}" for block in range(depth - 1))])
        by_state.set_title("by state, at its best step", fontsize=9, loc="left", pad=3)
        over_steps.set_title("best state, over training", fontsize=9, loc="left", pad=3)
        over_steps.set_xlabel("Training steps")
        over_steps.set_xscale("symlog", linthresh=25)
        _step_ticks(over_steps, answers)
        for axes in (by_state, over_steps):
            axes.set_ylim(-0.02, 1.02)
            axes.grid(axis="y", color=FAINT, linewidth=0.5)
        lines, labels = over_steps.get_legend_handles_labels()
        figure.legend(lines, labels, loc="lower left", frameon=False, fontsize=8, ncols=len(runs), borderaxespad=0.4)
        write_title(figure, "The map by size of the model", "R² of the map in cities that no probe was fitted on")
    return figure


# ---- Pieces -----------------------------------------------------------------------------------------------------


def _best_reading(model) -> tuple[str, np.ndarray, float]:
    """The state whose probe has the least leave-one-out error, what it reads in test cities, and R2 of that."""
    world, best = model.world, (np.inf, "", np.empty(0))
    for state, x in model.states().items():
        fit = fit_points(world, x)
        loss = float(np.nanmin(fit.loo_mse.mean(-1)))
        if loss < best[0]:
            best = (loss, state, predict(fit, x[None, world.is_test])[0])
    truth = world.points[world.is_test]
    return best[1], best[2], float((1 - ((truth - best[2]) ** 2).sum(0) / ((truth - truth.mean(0)) ** 2).sum(0)).mean())


def _hues(places: np.ndarray) -> np.ndarray:
    """A colour for each place: hue by longitude, brighter to the north."""
    longitude, latitude = places[:, 1], places[:, 0]
    parts = (longitude + 180) / 360 % 1, np.full(len(places), 0.75), 0.45 + 0.5 * (latitude + 60) / 140
    return hsv_to_rgb(np.clip(np.stack(parts, 1), 0, 1))


def _map(axes: Axes) -> Axes:
    coast = read_coastlines()
    axes.plot(coast[:, 0], coast[:, 1], color=FAINT, linewidth=0.5, zorder=0)
    axes.set(xlim=(WORLD.west, WORLD.east), ylim=(-90, 90), xticks=[], yticks=[], aspect="equal")
    for spine in axes.spines.values():
        spine.set(visible=True, color=FAINT, linewidth=0.5)
    return axes


def _of(answers: pd.DataFrame, question: str, of: str, metric: str) -> pd.DataFrame:
    rows = (answers["question"] == question) & (answers["of"] == of) & (answers["metric"] == metric)
    return answers[rows & (answers["step"] >= 0)].sort_values("step")


def _place(state: str) -> str:
    """A state as people call it."""
    word, _, state = state.rpartition(" ")
    name = (
        f"block {state}" if state.isdecimal() else {"embed": "embedding", "final_norm": "final norm"}.get(state, state)
    )
    return f"{word}'s word, {name}" if word and state != "h" else name


def _name_lines(axes: Axes, ends: Mapping[str, tuple[float, float, str]]) -> None:
    """Names at the lines' right ends, pushed apart where they would touch."""
    least, below = 0.07, -np.inf
    for name, (x, y, colour) in sorted(ends.items(), key=lambda item: item[1][1]):
        below = max(y, below + least)
        axes.annotate(
            name, (x, y), textcoords="offset points", color=colour, fontsize=8.5, va="center",
            annotation_clip=False, xytext=(8, (below - y) * axes.get_window_extent().height * 72 / axes.figure.dpi),
        )  # fmt: skip


def _step_ticks(axes: Axes, answers: pd.DataFrame) -> None:
    last = answers["step"].max()
    ticks = [step for step in (25, 50, 100, 200, 400, 800, 1600) if step < last * 0.6] + [last]
    axes.set_xticks(ticks, [f"{step:,}" for step in ticks])
    axes.minorticks_off()
