"""The commands: each a dataclass whose fields are its options and whose docstrings are its help; calling one runs it.

What takes seconds to import (JAX, transformers) is imported by the command that needs it, after what can be checked
without.
"""

import ast
import dataclasses
import importlib.util
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from jaxprobe.cli.output import Output
from jaxprobe.errors import InputError
from jaxprobe.experiments import registry
from jaxprobe.host.paths import as_path, check_out
from jaxprobe.settings import RunSettings, check_settings, combine, run_folder

WRONG = 1  # what `jaxprobe doctor` exits with where it found something
Flag = Annotated[bool, tyro.conf.FlagCreatePairsOff]


@dataclass(frozen=True, kw_only=True)
class Command:
    """What every command takes."""

    quiet: Flag = False
    """Print nothing but results and errors."""
    json: Flag = False
    """Print one JSON object on stdout; of what can't be used, its problems."""

    def __call__(self, output: Output) -> None:
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Demo(Command):
    """See where a small model keeps the map of the world: 10,000 cities, about a minute on two cores."""

    out: Path | None = None
    """The run's folder; default: demo-run, or demo-run-LIMIT."""
    limit: int | None = None
    """Use a seeded sample of this many cities."""

    def __call__(self, output: Output) -> None:
        out = as_path(self.out or _smoke_folder("demo-run", self.limit))
        run_settings([RunSettings(model="demo", dataset="cities", out=out, limit=self.limit)], output)


@dataclass(frozen=True, kw_only=True)
class RunCommand(RunSettings, Command):
    """Read a model at each name's tokens, probe every layer, write scores and a report.

    Several tables, models or prompts make a run each, in folders of their own, and one page over all: index.html.
    """

    model: tuple[str, ...]  # type: ignore[assignment]
    """'demo', a Hugging Face folder (path or gs://...), .gguf file, or hub name such as meta-llama/Llama-2-7b-hf; or
    several."""
    dataset: tuple[str, ...]  # type: ignore[assignment]
    """A named table (see `jaxprobe data list`), a CSV or Parquet file (path or gs://...), or hf://datasets/ORG/NAME; or
    several."""
    prompt: tuple[str, ...] = ("empty",)  # type: ignore[assignment]
    """A named prompt of the table, or text with {} for the name: "Where is {}"; or several."""
    out: Path | None = None
    """The run's folder (path or gs://...), new or to go on with; default: runs/TABLE-MODEL, with prompt and limit. Of
    several runs the folder that has theirs; default: runs."""
    config: Path | None = None
    """Take the settings from another run, its folder or config.json; further options change them."""
    processes: str | None = None
    """One of several processes that share the work: auto on Cloud TPU, GKE and SLURM, otherwise I/N@HOST:PORT."""

    def __call__(self, output: Output) -> None:
        several = {name: getattr(self, name) for name in ("dataset", "model", "prompt")}
        settings = RunSettings(**{**_settings_in(self), "dataset": "", "model": "", "prompt": ""})
        runs = combine(settings, *several.values())
        run_settings(runs, output, self.processes)


def settings_of(command: RunSettings) -> RunSettings:
    """The settings alone of a command that takes them among others."""
    return RunSettings(**_settings_in(command))


def _settings_in(command: RunSettings) -> dict[str, Any]:
    return {field.name: getattr(command, field.name) for field in dataclasses.fields(RunSettings)}


def run_settings(several: Sequence[RunSettings], output: Output, processes: str | None = None) -> None:
    """Runs settings and prints the scores; of several processes the first one prints."""
    from jaxprobe.runs.inputs import read_several

    # What is wrong with a table or a folder is said before JAX is imported; several processes agree on it first.
    inputs = read_several(several) if processes is None else None
    from jaxprobe.host.processes import is_main, job
    from jaxprobe.runs.execute import run
    from jaxprobe.runs.several import run_all

    with job(processes, output.tell):
        output.quiet |= not is_main()
        if len(several) == 1:
            directory = run(several[0], output.reporter(), inputs and inputs[0])
            if is_main():
                output.run(directory)
            return
        page = run_folder(several[0]).parent / "index.html"
        directories = run_all(several, output.reporter(), inputs, page)
        if is_main():
            output.several(directories, page)


@dataclass(frozen=True, kw_only=True)
class Fit(Command):
    """Probe states that were made elsewhere: the same scores, controls without a model, predictions and report."""

    states: tyro.conf.Positional[Path]
    """A .npy file [row, dimension] or [layer, row, dimension], a folder of .npy files, or a .safetensors file."""
    dataset: str
    """A named table (see `jaxprobe data list`), or a CSV or Parquet file; its rows are the states' rows, in order."""
    out: Path
    """The run's folder."""
    text: str | None = None
    """Column of the names, or a template over columns: "{creator}'s {title}"."""
    target: tuple[str, ...] = ()
    """Columns to predict: numbers, or dates; or one of class labels."""
    labels: bool | None = None
    """The target is a class label and not a number; default: where its values are no numbers, or are all 0 or 1."""
    classifier: Literal["ridge", "lda", "means", "logistic"] = "ridge"
    """Of class labels: ridge on one column a class, linear discriminants, nearest class mean, logistic regression."""
    split: str | None = None
    """Column that says which rows are for testing, or blocks: whole cells of the map; default: a seeded 80/20 split."""
    unit_vectors: Flag = False
    """Fit places as points on the sphere, which has no dateline; predictions are degrees again."""
    group: tuple[str, ...] = ()
    """Columns to colour by and to hold out."""
    name: str = "own states"
    """What results call whoever made the states."""
    data_dir: Path | None = None
    """Folder of the paper's tables; default: the variable JAXPROBE_DATA."""
    seed: int = 0
    """Of the split and the bootstrap."""

    def __call__(self, output: Output) -> None:
        names = {field.name for field in dataclasses.fields(RunSettings)} - {"model"}
        kept = {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name in names}
        settings = RunSettings(model=self.name, **kept)
        check_settings(settings)
        out = as_path(self.out)
        check_out(out)
        from jaxprobe.extract.store.plain import PlainStates
        from jaxprobe.runs.inputs import load_run_table

        PlainStates(self.states)  # what is wrong with these, before JAX is imported
        table = load_run_table(settings)
        from jaxprobe.runs.own_states import probe

        run = probe(self.states, table, out, settings=settings, name=self.name, reporter=output.reporter())
        output.run(run.directory)


@dataclass(frozen=True, kw_only=True)
class Predict(Command):
    """Where is it, or when? A finished run's probe on names of your own, with 90 % intervals."""

    run: tyro.conf.Positional[Path]
    """The run's folder."""
    text: tuple[str, ...]
    """Names, as the run's table spells them; the run's prompt is put around them."""
    tokens: Flag = False
    """What every layer's probe reads at every token of the texts, as a table and a picture."""
    out: Path | None = None
    """With --tokens: where experiments/tokens.csv, .parquet, .png and .svg go; default: the run's folder."""

    def __call__(self, output: Output) -> None:
        from jaxprobe.results.results import Run

        run = Run(as_path(self.run))
        if not self.tokens:
            if self.out is not None:
                raise InputError("--out is for what --tokens writes; predictions alone are printed. Leave it out.")
            from jaxprobe.runs.predict import predict

            return output.predictions(run, predict(run, self.text, output.reporter()))
        out = run.path if self.out is None else as_path(self.out)
        check_out(out)
        from jaxprobe.experiments.base import write_pictures
        from jaxprobe.report.token_figure import draw_tokens
        from jaxprobe.runs.predict import predict_tokens

        frame = predict_tokens(run, self.text, output.reporter())
        texts = [part for _, part in frame.groupby("row")]
        table = write_pictures("tokens", frame, [draw_tokens(run, part) for part in texts], out)
        output.tokens(run, frame, texts, str(table))


@dataclass(frozen=True, kw_only=True)
class Steer(Command):
    """What does the model say of a name whose place is moved? Its own words and the moved ones side by side.

    By itself a shift does not show what the model reads: `jaxprobe experiment use` has the tests for that.
    """

    run: tyro.conf.Positional[Path]
    """The folder of a run with stored states."""
    to: tuple[float, ...]
    """What the probe shall read at the name: latitude and longitude, or a year."""
    text: tuple[str, ...]
    """Names."""
    prompt: str = "{} is a city in the country of"
    """What the model goes on from, with {} for the name."""
    state: str | None = None
    """The layer after which the name's last token is moved; default: the run's headline layer."""

    def __call__(self, output: Output) -> None:
        from jaxprobe.results.results import Run

        run = Run(as_path(self.run))
        from jaxprobe.runs.steer import plan_shift, steer_texts

        steering = plan_shift(run, self.to, self.state)
        frame = steer_texts(run, steering, self.text, self.prompt, output.reporter())
        output.frame(frame, f"After {self.prompt!r}, and with the place moved at layer {steering.layer}")


@dataclass(frozen=True, kw_only=True)
class Paper(Command):
    """The paper's tables for one model, beside the paper's own numbers."""

    model: str
    """'demo', a Hugging Face folder, a .gguf file, or a hub name."""
    out: Path | None = None
    """Folder for the runs, one for each table and prompt, and for the tables of results; default: paper-runs, or
    paper-runs-LIMIT."""
    data_dir: Path | None = None
    """Folder of the paper's tables; default: the variable JAXPROBE_DATA."""
    prompts: tuple[str, ...] = ()
    """Named prompts; default: the bare name, and each table's question."""
    limit: int = 10_000
    """Rows of each table, a seeded sample."""
    full: Flag = False
    """Use every row."""
    random_weights: Flag = False
    """Run the same architecture with random weights as well, on each table's first prompt."""

    def __call__(self, output: Output) -> None:
        limit = None if self.full else self.limit
        out = as_path(self.out or _smoke_folder("paper-runs", limit))
        check_settings(RunSettings(self.model, "cities", out, limit=limit))
        check_out(out)
        from jaxprobe.runs.paper import run_paper

        options = self.data_dir, self.prompts, limit, self.random_weights
        frame = run_paper(self.model, out, *options, reporter=output.reporter())
        output.frame(frame, "Test R2, ours and the paper's", folder=str(out))


@dataclass(frozen=True, kw_only=True)
class Plan(RunSettings, Command):
    """What a run would take on TPUs or GPUs that are not here: memory, operations, traffic, time. Reads no weights."""

    topology: str
    """v5e:8x8, v5p:2x2x4, v6e:4x4 (needs the extra `tpu`); a100:4, h100:8, h200:8 (compiled for with the extra
    `plan-gpu`, else counted from shapes)."""
    dataset: str = "cities"
    """A named table (see `jaxprobe data list`), or the path of a CSV or Parquet file."""
    # A plan is of both, with a store and without one, and writes nothing.
    out: Annotated[Path | None, tyro.conf.Suppress] = None
    show_tokens: Annotated[bool, tyro.conf.Suppress] = False
    repair: Annotated[bool, tyro.conf.Suppress] = False
    store: Annotated[bool, tyro.conf.Suppress] = True
    fold_group: Annotated[str | None, tyro.conf.Suppress] = None

    def __call__(self, output: Output) -> None:
        settings = settings_of(self)
        check_settings(settings)
        # Nothing runs here, and JAX would look for a TPU as soon as libtpu is installed.
        os.environ["JAX_PLATFORMS"] = "cpu"
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")  # the CUDA plugin says that it finds no driver
        from jaxprobe.plan.planning import plan

        output.plan(plan(settings, self.topology, output.reporter().say))


@dataclass(frozen=True, kw_only=True)
class Doctor(Command):
    """Check the installation, the devices and a model's states against PyTorch; paste its lines into a bug report.

    Exits with 1 where something is wrong; each such line says what to do.
    """

    model: str = "demo"
    """Compared with Hugging Face in float32, where PyTorch is installed."""
    tokenizer: str | None = None
    """Folder or hub name of another tokenizer."""

    def __call__(self, output: Output) -> None:
        from jaxprobe.cli.doctor import run_checks

        if not output.checks(run_checks(self.model, self.tokenizer)):
            sys.exit(WRONG)


@dataclass(frozen=True, kw_only=True)
class Export(Command):
    """Write a run's stored states as plain files, and its table with the same rows beside them as a CSV."""

    run: tyro.conf.Positional[Path]
    """The run's folder."""
    out: Path | None = None
    """A name that ends in .safetensors: one file, and its table as .csv. Any other: a folder, with STATE.npy for each
    state (float32) and table.csv."""
    states: tuple[str, ...] = ()
    """Which ones: embed, 0, 1, ..., final_norm; default: all that are stored."""
    vector: Path | None = None
    """Write directions in the place of states: what moves a target's reading by one unit, as .safetensors,
    or the first target's as a .gguf control vector."""

    def __call__(self, output: Output) -> None:
        from jaxprobe.results.folder import RunDirectory, refuse_own_file

        if (self.out is None) == (self.vector is None):
            raise InputError("Name what to write: --out for the states, or --vector for the directions of the probes.")
        if self.vector is not None:
            refuse_own_file(as_path(self.vector))
            check_out(as_path(self.vector), file=True)
            from jaxprobe.results.results import Run
            from jaxprobe.runs.steer import export_vector

            output.files([export_vector(Run(as_path(self.run)), self.vector, self.states)])
            return
        out = as_path(self.out)
        refuse_own_file(out)
        check_out(out, file=out.suffix == ".safetensors")
        from jaxprobe.extract.store.export import export_activations

        directory = RunDirectory(as_path(self.run))
        files = export_activations(directory.activations_path, out, self.states or None)
        if directory.is_fitted:
            from jaxprobe.data.columns import write_frame
            from jaxprobe.results.results import Run

            table = out.with_suffix(".csv") if out.suffix == ".safetensors" else out / "table.csv"
            write_frame(Run(directory).table.to_frame(), table)
            files.append(table)
        output.files(files)


@dataclass(frozen=True, kw_only=True)
class Push(Command):
    """Share a run's probes on a hub, with their scores and controls and a card that says what they are."""

    run: tyro.conf.Positional[Path]
    """The run's folder."""
    name: tyro.conf.Positional[str]
    """What the hub shall call it: ORG/NAME. Others read it with jaxprobe.load_probes("ORG/NAME")."""
    license: str = "unknown"
    """Of the probes, as the hub spells it: mit, cc-by-4.0, ... Mind the licences of the model and of the table."""
    private: Flag = False
    """Only those who may see it do."""
    dry_run: Path | None = None
    """Write the files into this new folder instead."""

    def __call__(self, output: Output) -> None:
        from jaxprobe.results.results import Run
        from jaxprobe.runs.push import push, write_shared

        run = Run(as_path(self.run))
        if self.dry_run is not None:
            output.files(write_shared(run, self.name, self.license, as_path(self.dry_run)))
        else:
            output.files([push(run, self.name, self.license, private=self.private)])


@dataclass(frozen=True, kw_only=True)
class Report(Command):
    """Write one page about one or several finished runs."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Folders of finished runs."""
    out: Path | None = None
    """The page; default: report.html in the first run's folder."""

    def __call__(self, output: Output) -> None:
        if not self.runs:
            raise InputError("No run to report on. Name the folders of finished runs: jaxprobe report RUN...")
        from jaxprobe.results.folder import RunDirectory, refuse_own_file

        if self.out is not None:
            refuse_own_file(as_path(self.out))
        from jaxprobe.report.page import write_report

        output.files([write_report(*map(RunDirectory, self.runs), path=self.out)])


@dataclass(frozen=True, kw_only=True)
class ListTables(Command):
    """The named tables, and where each is at hand."""

    data_dir: Path | None = None
    """Folder of the paper's tables; default: the variable JAXPROBE_DATA."""

    def __call__(self, output: Output) -> None:
        import pandas as pd

        from jaxprobe.data.catalog import list_datasets

        listed = [listing._replace(location=listing.location or "no") for listing in list_datasets(self.data_dir)]
        frame = pd.DataFrame(listed).rename(columns={"location": "at hand", "attribution": "source"})
        output.frame(frame, "Named tables")


@dataclass(frozen=True, kw_only=True)
class FetchTable(Command):
    """Download one of the paper's tables; its checksum is compared. The only command for data that uses a network."""

    name: tyro.conf.Positional[str]
    """As `jaxprobe data list` spells it."""
    data_dir: Path | None = None
    """Folder for the paper's tables; default: the variable JAXPROBE_DATA."""

    def __call__(self, output: Output) -> None:
        from jaxprobe.data.fetch import fetch

        output.files([fetch(self.name, self.data_dir)])


@dataclass(frozen=True, kw_only=True)
class ExportTable(Command):
    """Write a named table as CSV or Parquet: to look at, or to begin one of your own from."""

    name: tyro.conf.Positional[str]
    """As `jaxprobe data list` spells it."""
    out: Path
    """The file to write, .csv or .parquet."""
    data_dir: Path | None = None
    """Folder of the paper's tables; default: the variable JAXPROBE_DATA."""
    limit: int | None = None
    """A seeded sample of this many rows."""

    def __call__(self, output: Output) -> None:
        out = as_path(self.out)
        from jaxprobe.results.folder import refuse_own_file

        refuse_own_file(out)
        check_out(out, file=True)
        check_settings(RunSettings("demo", self.name, limit=self.limit))
        from jaxprobe.data.catalog import load_table
        from jaxprobe.data.columns import write_frame

        write_frame(load_table(self.name, data_dir=self.data_dir, limit=self.limit).to_frame(), out)
        output.files([out])


@dataclass(frozen=True, kw_only=True)
class World(Command):
    """Train a model of a world whose truth is known, and probe it: walks over 1,000 cities, and no coordinate.

    The folder is that of a run as well: report, experiments and predict take it. What is asked of each checkpoint is
    seen with `jaxprobe world probe RUN`, whether the model uses its map with `jaxprobe world steer RUN`.
    """

    kind: Literal["language", "joint-embedding"] = "language"
    """A Llama that reads walks as words, or an encoder and a predictor of codes."""
    out: Path | None = None
    """The folder, new or to go on with; default: runs/world-KIND."""
    tiny: Flag = False
    """A world of 100 cities, in half a minute."""
    minutes: float | None = None
    """Plan as many steps as this machine takes in that time now, at most the default."""
    steps: int | None = None
    """Of training; default: 1300 of a language model, 3000 of a joint embedding; of a tiny world 100 and 600."""
    seed: int = 0
    """Of what is held out, of walks and of weights."""
    wind_km: float = 0.0
    """How far a wind that nobody observes blows each arrival to one of four sides."""
    width: int | None = None
    """Of the states; default: 64 of a language model, 32 of a joint embedding."""
    layers: int | None = None
    """Blocks of a language model; default: 3."""
    encoder: Literal["vector", "features"] | None = None
    """Of a joint embedding: a free vector a city, or a network on noisy features of it; default: vector."""
    regulariser: Literal["vicreg", "sigreg", "none"] | None = None
    """Of a joint embedding: what keeps its codes apart; default: vicreg."""

    def __call__(self, output: Output) -> None:
        from jaxprobe.worlds.world_runs import train_into

        given = {name: getattr(self, name) for name in ("width", "layers", "encoder", "regulariser")}
        options = {name: value for name, value in given.items() if value is not None}
        out = as_path(self.out or Path("runs", f"world-{self.kind}{'-tiny' * self.tiny}"))
        plan = {"tiny": self.tiny, "steps": self.steps, "minutes": self.minutes, "wind_km": self.wind_km}
        output.run(train_into(out, self.kind, options, seed=self.seed, reporter=output.reporter(), **plan))


@dataclass(frozen=True, kw_only=True)
class WorldProbe(Command):
    """Ask every checkpoint of a world model: the map, places never named, next cities, open loops, collapse."""

    run: tyro.conf.Positional[Path]
    """The world model's folder."""

    def __call__(self, output: Output) -> None:
        from jaxprobe.worlds.world_runs import probe_into

        answers, path = probe_into(as_path(self.run), output.reporter())
        shown = answers[answers["step"].isin([-1, answers["step"].max()])]
        output.frame(shown, "What the last checkpoint knows, beside controls (step -1)", table=str(path))
        output.say(f"Every checkpoint: {path}; figures beside it.")


@dataclass(frozen=True, kw_only=True)
class WorldSteer(Command):
    """Does a world model use its map? States pushed to other places and cleared of theirs, beside controls."""

    run: tyro.conf.Positional[Path]
    """The world model's folder."""
    step: tuple[int, ...] = ()
    """Checkpoints to look at; default: the one with the best map by leave-one-out, and the last."""

    def __call__(self, output: Output) -> None:
        from jaxprobe.worlds.world_runs import steer_into

        shifts, cuts, path = steer_into(as_path(self.run), self.step, output.reporter())
        shown = shifts[(shifts["pairs"] == "held") & (shifts["how"] != "nothing")].drop(columns=["pairs", "run"])
        output.frame(shown, "Pushed states, moves never trained on", table=str(path))
        output.say(f"Every row: {path}; what was cut out: {path.with_name('cuts.csv')}, {len(cuts)} rows.")


@dataclass(frozen=True, kw_only=True)
class OverRuns(Command):
    """What every experiment takes beside its own options."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Folders of finished runs."""
    out: Path | None = None
    """Folder that gets experiments/NAME.csv and its figures; default: the first run's."""

    def __call__(self, output: Output) -> None:
        from jaxprobe.experiments import base

        module = registry.load(type(self).__name__)
        runs = base.check_runs(self.runs)
        folder = runs[0] if self.out is None else as_path(self.out)
        check_out(folder / "experiments")
        from jaxprobe.host.processes import is_main, job

        processes = getattr(self, "processes", None)
        with job(processes, output.tell):
            main = processes is None or is_main()  # to ask starts JAX's devices, which not every experiment needs
            output.quiet |= not main
            frame = module.run(runs, self, output.reporter())
            if main:
                path = base.write_table(module, frame, folder)
                output.frame(base.printed(module, frame), type(self).__name__, table=str(path))
                output.say(f"Every row: {path}; figures beside it.")


@dataclass(frozen=True, kw_only=True)
class OverRunsTogether(OverRuns):
    """The same of experiments that several processes may share."""

    processes: str | None = None
    """One of several processes that share the work: auto on Cloud TPU, GKE and SLURM, otherwise I/N@HOST:PORT."""


def experiment(name: str) -> type[Command]:
    """The command of an experiment, made of its options. Imports what the experiment needs."""
    module = registry.load(name)
    common = OverRunsTogether if getattr(module, "TOGETHER", False) else OverRuns
    made = dataclasses.make_dataclass(name, [], bases=(module.Options, common), frozen=True, kw_only=True)
    made.__doc__ = registry.summary(module)
    return made


def _experiment_help(name: str) -> str:
    """The first sentence of an experiment's docstring, without importing it."""
    spec = importlib.util.find_spec(f"jaxprobe.experiments.{name}")
    source = Path(spec.origin).read_text(encoding="utf-8") if spec and spec.origin else ""
    return ast.get_docstring(ast.parse(source)) or ""


def _smoke_folder(name: str, limit: int | None) -> Path:
    """A run of some rows goes beside the run of all, not into its folder."""
    return Path(name if limit is None else f"{name}-{limit}")


# Words of a command -> its dataclass, or what makes it.
COMMANDS: dict[str, type[Command]] = {
    "demo": Demo,
    "run": RunCommand,
    "fit": Fit,
    "predict": Predict,
    "steer": Steer,
    "report": Report,
    "export": Export,
    "push": Push,
    "paper": Paper,
    "plan": Plan,
    "doctor": Doctor,
    "world": World,
    "world probe": WorldProbe,
    "world steer": WorldSteer,
    "data list": ListTables,
    "data fetch": FetchTable,
    "data export": ExportTable,
}
EXPERIMENTS = {f"experiment {name.replace('_', '-')}": name for name in registry.EXPERIMENTS}


def find(words: str) -> type[Command] | None:
    """The command of one or two words; None where there is none."""
    if words in EXPERIMENTS:
        return experiment(EXPERIMENTS[words])
    return COMMANDS.get(words)


def summaries() -> dict[str, str]:
    """Words of each command -> what it does, in a line."""
    docs: dict[str, Any] = {words: command.__doc__ for words, command in COMMANDS.items()}
    docs |= {words: _experiment_help(name) for words, name in EXPERIMENTS.items()}
    first: Callable[[str], str] = lambda text: " ".join(text.partition("\n\n")[0].split())
    return {words: first(text) for words, text in docs.items()}


def nearest(words: str, known: Sequence[str]) -> str:
    """A hint at what may have been meant."""
    from difflib import get_close_matches

    found = get_close_matches(words, known, n=1)
    return f" Did you mean {found[0]}?" if found else ""
