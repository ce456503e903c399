"""A world model in a folder: trained into it, exported as a checkpoint, run and probed as any other model, and steered.

OUT is the folder of a run (results/folder.py) whose model was made here; beside that run's files it holds

  world/world.json          what the world and the model were made of
  world/checkpoints/        weights, optimiser and losses by step (Orbax)
  world/earth.csv           the cities as a table
  world/NAME/               the last weights as a Hugging Face folder
  world/answers.parquet     what was asked of every checkpoint (questions.py; `jaxprobe world probe`)
  world/shifts.parquet, world/cuts.parquet      the causal test (steering.py; `jaxprobe world steer`)
  world/figures/            pictures of these
"""

import dataclasses
import json
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jax.sharding import Mesh

from jaxprobe.errors import InputError
from jaxprobe.host.paths import AnyPath, as_path, differences, replacing
from jaxprobe.host.progress import Reporter, default_reporter
from jaxprobe.mesh import make_mesh
from jaxprobe.results.folder import RunDirectory
from jaxprobe.runs.execute import run
from jaxprobe.runs.inputs import read_inputs
from jaxprobe.settings import RunSettings
from jaxprobe.worlds import jepa, llm, world_figures
from jaxprobe.worlds.definition import WorldModel
from jaxprobe.worlds.earth import TINY, World, WorldSettings, make_world
from jaxprobe.worlds.steering import steer_model
from jaxprobe.worlds.training import CHUNK, History, Objective, check_plan, load_history, seconds_a_step, train
from jaxprobe.worlds.world_questions import ask, ask_controls, fit_points

KINDS = {"language": llm.LanguageSettings, "joint-embedding": jepa.JointEmbeddingSettings}
STEPS = {"language": 1300, "joint-embedding": 3000}
TINY_STEPS = {"language": 100, "joint-embedding": 600}
FOLDER = "world"

Settings = llm.LanguageSettings | jepa.JointEmbeddingSettings


class Trained(NamedTuple):
    """A world model with what it was at each checkpoint.

    Attributes:
      settings: of the model.
      seed: of its weights and walks.
      history: weights by step, 0 being before training; losses of every step.
    """

    world: World
    kind: str
    settings: Settings
    seed: int
    history: History

    def model(self, step: int | None = None) -> WorldModel:
        """The model after ``step`` steps; default: the last. Raises InputError where no checkpoint was kept."""
        weights = self.history.weights
        step = max(weights) if step is None else step
        if step not in weights:
            raise InputError(f"No checkpoint of step {step} was kept. There are {', '.join(map(str, weights))}.")
        if self.kind == "language":
            return llm.WorldLanguageModel(self.world, self.settings, weights[step])
        return jepa.JointEmbedding(self.world, weights[step])

    @property
    def name(self) -> str:
        """What results call the model."""
        shape = self.settings
        if self.kind == "language":
            return f"world-language-{shape.width}x{shape.layers}"
        return f"world-{shape.encoder}-{shape.width}-{shape.regulariser}"


def train_world_model(
    world: World,
    kind: str = "language",
    *,
    settings: Settings | None = None,
    out: AnyPath | None = None,
    steps: int | None = None,
    minutes: float | None = None,
    seed: int | None = None,
    mesh: Mesh | None = None,
    reporter: Reporter | None = None,
) -> Trained:
    """Trains a world model, from where its folder stands.

    Args:
      kind: "language" or "joint-embedding".
      settings: of the model; default: the ones of its kind.
      out: a new folder, or one to go on in; None keeps the checkpoints in memory.
      steps: default: STEPS of the kind.
      minutes: plans as many steps as this machine, as busy as it is now, takes in that time; at most ``steps``.
      seed: of weights and walks; default: the world's.
      mesh: axis ``data`` shares the walks; default: one device.

    Raises:
      InputError: what can't be used, or a folder of another model.
    """
    if kind not in KINDS:
        raise InputError(f"There is no kind {kind!r} of world model. Take one of {', '.join(KINDS)}.")
    reporter, mesh = reporter or default_reporter(), mesh or make_mesh({"data": 1})
    settings, seed = settings or KINDS[kind](), world.settings.seed if seed is None else seed
    document = {
        "kind": kind,
        "world": dataclasses.asdict(world.settings),
        "model": dataclasses.asdict(settings),
        "seed": seed,
    }
    folder = None if out is None else as_path(out) / FOLDER
    planned = None if folder is None else _check_owner(folder, document, steps)
    objective = _objective(world, kind, settings, seed, mesh)
    if planned is None:
        check_plan(objective, STEPS[kind] if steps is None else steps, mesh)  # before anything is written
        planned = _plan(objective, STEPS[kind] if steps is None else steps, minutes, seed, mesh, reporter)
        if folder is not None:
            _write_json(folder / "world.json", document | {"steps": planned})
    checkpoints = None if folder is None else folder / "checkpoints"
    started = time.process_time()
    history = train(objective, planned, seed, mesh, checkpoints, reporter)
    if folder is not None and not np.isnan(history.seconds):  # trained from the first step in this process
        spent = {"seconds": round(history.seconds, 1), "cpu_seconds": round(time.process_time() - started, 1)}
        _write_json(folder / "world.json", document | {"steps": planned} | spent)
    return Trained(world, kind, settings, seed, history)


def open_trained(out: AnyPath) -> Trained:
    """The world model in a folder, as far as it is trained.

    Raises:
      InputError: no such folder, or one that can't be read.
    """
    folder = as_path(out) / FOLDER
    document = _read_json(folder / "world.json")
    world = make_world(_world_settings(document["world"]))
    kind, seed = document["kind"], document["seed"]
    settings = KINDS[kind](**document["model"])
    objective = _objective(world, kind, settings, seed, make_mesh({"data": 1}))
    history = load_history(objective, folder / "checkpoints")
    if max(history.weights) < document["steps"]:
        raise InputError(
            f"{out} is trained for {max(history.weights)} of {document['steps']} steps. "
            f"Go on with the command that began it: jaxprobe world --out {out} ..."
        )
    return Trained(world, kind, settings, seed, history)


def run_world(trained: Trained, out: AnyPath, reporter: Reporter | None = None) -> RunDirectory:
    """Writes the model as a checkpoint and the cities as a table, and runs them as any model and table are run."""
    out = as_path(out)
    folder, model = out / FOLDER, trained.model()
    if trained.kind == "language":
        fields, weights = llm.config_fields(len(trained.world.words), trained.settings), trained.history.weights
        llm.write_checkpoint(trained.world, fields, weights[max(weights)], folder / trained.name)
    else:
        llm.write_codes(trained.world, model.states()["embed"], folder / trained.name)
    with replacing(folder / "earth.csv") as temporary:
        trained.world.table().to_frame().to_csv(temporary, index=False)
    settings = RunSettings(
        model=str(folder / trained.name),
        dataset=str(folder / "earth.csv"),
        out=out,
        group=("continent", "country"),
        unit_vectors=True,
        dtype="float32",
        seed=trained.world.settings.seed,
    )
    inputs = read_inputs(settings)
    table = dataclasses.replace(inputs.table, attribution=trained.world.table().attribution)
    directory = run(settings, reporter, inputs._replace(table=table))
    world_figures.save_all(folder / "figures", {"globe": world_figures.draw_globe(trained)})
    return directory


def probe_world(trained: Trained, reporter: Reporter | None = None) -> pd.DataFrame:
    """Asks every question of every checkpoint: the columns of `questions.Answer`, with ``run`` and ``step``.

    Only the last one has intervals. Controls that need no model are at step -1.

    Raises:
      InputError: states that are not finite.
    """
    weights = trained.history.weights
    frames = [ask_controls(trained.world).assign(step=-1)]
    with (reporter or default_reporter()).task("ask", len(weights), "checkpoints") as advance:
        for step in weights:
            frames.append(ask(trained.model(step), intervals=step == max(weights)).assign(step=step))
            advance(1)
    frame = pd.concat([part for part in frames if len(part)], ignore_index=True)
    return frame.assign(run=trained.name)


def peak_step(trained: Trained) -> int:
    """The step at which the map is best, by leave-one-out on the training cities; test cities play no part in it."""
    world = trained.world

    def loss(step: int) -> float:
        states = trained.model(step).states().values()
        return min(float(np.nanmin(fit_points(world, x).loo_mse.mean(-1))) for x in states)

    return min((step for step in trained.history.weights if step), key=loss)


def steer_world(
    trained: Trained, steps: Sequence[int] = (), reporter: Reporter | None = None
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The causal test at these steps: tables of shifts and of cuts, with ``run`` and ``step``.

    Args:
      steps: default: where the map is best (`peak_step`), and the last.

    Raises:
      InputError: a step without a checkpoint, or a world with wind.
    """
    steps = tuple(steps) or sorted({peak_step(trained), max(trained.history.weights)})
    tables: tuple[list, list] = ([], [])
    with (reporter or default_reporter()).task("steer", len(steps), "checkpoints") as advance:
        for step in steps:
            for kept, frame in zip(tables, steer_model(trained.model(step)), strict=True):
                kept.append(frame.assign(run=trained.name, step=step))
            advance(1)
    shifts, cuts = (pd.concat(kept, ignore_index=True) for kept in tables)
    return shifts, cuts


# ---- What the commands do ---------------------------------------------------------------------------------------


def train_into(
    out: AnyPath,
    kind: str,
    options: Mapping[str, Any],
    *,
    tiny: bool = False,
    steps: int | None = None,
    minutes: float | None = None,
    wind_km: float = 0.0,
    seed: int = 0,
    reporter: Reporter,
) -> RunDirectory:
    """`jaxprobe world`: trains, then runs.

    Args:
      options: settings of the model, by name; those that its kind does not have are refused.
    """
    known = {field.name for field in dataclasses.fields(KINDS[kind])}
    if foreign := sorted(set(options) - known):
        raise InputError(f"A {kind} model has no {', '.join(foreign)}; it has {', '.join(sorted(known))}.")
    settings = KINDS[kind](**options)
    world = make_world(TINY if tiny else None, wind_km=wind_km, seed=seed)
    reporter.say(
        f"World: {len(world):,} cities, {world.seen.sum():,} moves to train on, {world.held.sum():,} held out; "
        f"{world.is_test.sum():,} cities that no probe is fitted on."
    )
    steps = TINY_STEPS[kind] if tiny and steps is None else steps
    trained = train_world_model(
        world, kind, settings=settings, out=out, steps=steps, minutes=minutes, reporter=reporter
    )
    return run_world(trained, out, reporter)


def probe_into(out: AnyPath, reporter: Reporter) -> tuple[pd.DataFrame, AnyPath]:
    """`jaxprobe world probe`: asks every checkpoint, writes answers and figures; the table and where it is."""
    trained, folder = open_trained(out), as_path(out) / FOLDER
    answers = probe_world(trained, reporter)
    _write_table(answers, folder / "answers")
    figures = {"training": world_figures.draw_training(answers), "globe": world_figures.draw_globe(trained)}
    if not trained.world.settings.wind_km:
        figures["open_loop"] = world_figures.draw_open_loop(answers)
    world_figures.save_all(folder / "figures", figures)
    return answers, folder / "answers.csv"


def steer_into(out: AnyPath, steps: Sequence[int], reporter: Reporter) -> tuple[pd.DataFrame, pd.DataFrame, AnyPath]:
    """`jaxprobe world steer`: the causal test, its tables and figure; the tables and where that of shifts is."""
    trained, folder = open_trained(out), as_path(out) / FOLDER
    shifts, cuts = steer_world(trained, steps, reporter)
    _write_table(shifts, folder / "shifts")
    _write_table(cuts, folder / "cuts")
    world_figures.save_all(folder / "figures", {"shifts": world_figures.draw_shifts(shifts)})
    return shifts, cuts, folder / "shifts.csv"


# ---- Pieces -----------------------------------------------------------------------------------------------------


def _objective(world: World, kind: str, settings: Settings, seed: int, mesh: Mesh) -> Objective:
    if kind == "language":
        return llm.objective(world, settings, seed, mesh)
    return jepa.objective(world, settings, seed)


def _plan(objective: Objective, most: int, minutes: float | None, seed: int, mesh: Mesh, reporter: Reporter) -> int:
    """How many steps."""
    if minutes is None:
        return most
    if not minutes > 0:
        raise InputError(f"{minutes} minutes are no time to train in. Give some, or leave --minutes away.")
    seconds = seconds_a_step(objective, seed, mesh)
    steps = int(np.clip(60 * minutes / seconds // CHUNK * CHUNK, CHUNK, most))
    reporter.say(f"A step takes {seconds:.3f} s here now: {steps:,} steps in {minutes:g} minutes.")
    return steps


def _check_owner(folder: AnyPath, document: dict[str, Any], steps: int | None) -> int | None:
    """The steps planned for a folder that this model began; None for a new one. Refuses another model's."""
    if not (folder / "world.json").is_file():
        RunDirectory(folder.parent).check_owner({"fingerprint": "", "settings": {}})
        return None
    existing = _read_json(folder / "world.json")
    wanted = document | {"steps": steps or existing["steps"]}
    lines = list(differences(existing, json.loads(json.dumps(wanted))))
    if lines:
        raise InputError(
            f"{folder.parent} belongs to another world model. Name another folder, or remove this one. What differs:\n"
            + "\n".join(lines)
        )
    return existing["steps"]


def _world_settings(values: dict[str, Any]) -> WorldSettings:
    return WorldSettings(**values | {"distances_km": tuple(values["distances_km"])})


def _write_json(path: AnyPath, document: dict[str, Any]) -> None:
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def _read_json(path: AnyPath) -> dict[str, Any]:
    if not path.is_file():
        raise InputError(f"There is no {path}, so {path.parent.parent} is no world model's folder. Train one there.")
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        return {name: document[name] for name in ("kind", "world", "model", "seed", "steps")}
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} can't be read ({error}). Remove the folder and train again.") from None


def _write_table(frame: pd.DataFrame, path: AnyPath) -> None:
    with replacing(path.with_suffix(".parquet")) as temporary:
        frame.to_parquet(temporary, index=False)
    with replacing(path.with_suffix(".csv")) as temporary:
        frame.to_csv(temporary, index=False)
