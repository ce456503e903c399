"""The command line: parses, calls, prints. Results go to stdout, everything else to stderr.

What takes seconds to import (JAX, transformers) is imported by the command that needs it.
"""

import argparse
import gc
import json
import os
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Annotated, Literal

import tyro
from rich.console import Console
from rich.markup import escape

import jaxprobe
from jaxprobe.errors import InputError
from jaxprobe.host.compiled import keep_compiled
from jaxprobe.host.paths import as_path
from jaxprobe.host.progress import console_reporter
from jaxprobe.settings import RunSettings, read_settings

WRONG, UNUSABLE_INPUT, INTERRUPTED, TERMINATED = 1, 2, 130, 143
WIDTH = 240  # of tables that are not printed on a terminal
HELP = f"""{jaxprobe.__doc__}

Begin with `jaxprobe demo`. Then bring a table of named things and a model:
`jaxprobe run --dataset FILE.csv --model MODEL`. `jaxprobe COMMAND --help`
explains a command. Every command takes --quiet (nothing but results and
errors) and --json (one JSON object on stdout). It exits with 0; 1 for what
doctor found; 2 for input that can't be used; 130 after Ctrl-C.

Compiled programs are kept in ~/.cache/jaxprobe for the next start;
JAX_ENABLE_COMPILATION_CACHE=false turns that off.
"""

app = tyro.extras.SubcommandApp()
data = tyro.extras.SubcommandApp()
experiment = tyro.extras.SubcommandApp()

# Names from data are text: a bracket in them is no markup.
log = Console(stderr=True, highlight=False, soft_wrap=True)
errors = Console(stderr=True, highlight=False, soft_wrap=True)  # --quiet leaves these
as_json = False
Settings = Annotated[RunSettings, tyro.conf.arg(name="")]
Runs = tyro.conf.Positional[tuple[Path, ...]]


@app.command
def demo(out: Path | None = None, limit: int | None = None) -> None:
    """See where a small model keeps the map of the world: 10,000 cities, about a minute on two cores.

    Args:
        out: The run's folder; default: demo-run, or demo-run-LIMIT.
        limit: Use a seeded sample of this many cities.
    """
    from jaxprobe.runs.execute import demo_settings

    _run(demo_settings(out or _smoke_folder("demo-run", limit), limit))


@app.command
def run(settings: Settings) -> None:
    """Read a model at each name's last token, probe every layer, write scores and a report.

    --config RUN takes the settings from another run, its folder or config.json; further options change them.
    --processes makes it one of several processes that share the work: auto on Cloud TPU, GKE and SLURM, otherwise
    I/N@HOST:PORT.
    """
    _run(settings)


@app.command
def predict(run: tyro.conf.Positional[Path], text: tuple[str, ...]) -> None:
    """Where is it, or when? A finished run's probe on names of your own, with 90 % intervals.

    Args:
        run: The run's folder.
        text: Names, as the run's table spells them; the run's prompt is put around them.
    """
    from jaxprobe.runs.predict import predict as predict_texts

    run = as_path(run)
    _output().frame(predict_texts(run, text), "90 % intervals: as wide as 90 % of the run's test errors", run=str(run))


@app.command
def paper(
    model: str,
    out: Path | None = None,
    data_dir: Path | None = None,
    prompts: tuple[str, ...] = (),
    limit: int = 10_000,
    full: bool = False,
    random_weights: bool = False,
) -> None:
    """The paper's tables for one model, beside the paper's own numbers.

    Args:
        model: 'demo', a Hugging Face folder, a .gguf file, or a hub name.
        out: Folder for the runs, one for each table and prompt, and for the tables of results; default: paper-runs, or
            paper-runs-LIMIT.
        data_dir: Folder of the paper's tables; default: the variable JAXPROBE_DATA.
        prompts: Named prompts; default: the bare name, and each table's question.
        limit: Rows of each table, a seeded sample.
        full: Use every row.
        random_weights: Run the same architecture with random weights as well, on each table's first prompt.
    """
    from jaxprobe.runs.paper import run_paper

    limit = None if full else limit
    out = as_path(out or _smoke_folder("paper-runs", limit))
    frame = run_paper(model, out, data_dir, prompts, limit, random_weights, console_reporter(log))
    _output().frame(frame, "Test R2, ours and the paper's", folder=str(out))


@app.command(name="plan")
def plan_run(
    model: str,
    topology: str,
    dataset: str = "cities",
    prompt: str = "empty",
    mesh: str | None = None,
    dtype: Literal["float32", "bfloat16"] = "bfloat16",
    limit: int | None = None,
    data_dir: Path | None = None,
    tokenizer: str | None = None,
    replicate_kv: bool = False,
) -> None:
    """What a run would take on TPUs or GPUs that are not here: memory, operations, traffic, time. Reads no weights.

    Args:
        model: llama-2-7b, -13b, -70b, llama-3.1-8b, -70b, -405b, a config.json, or what `jaxprobe run` takes.
        topology: v5e:8x8, v5p:2x2x4, v6e:4x4 (needs the extra `tpu`); a100:4, h100:8, h200:8 (compiled for with the
            extra `plan-gpu`, else counted from shapes).
        dataset: A named table (see `jaxprobe data list`), or the path of a CSV or Parquet file.
        prompt: A named prompt of the table, or text with {} for the name.
        mesh: data=2,fsdp=4,model=8; default: chosen from the model's size and the chips' memory.
        dtype: Of the weights and the states.
        limit: Use a seeded sample of this many rows.
        data_dir: Folder of the paper's tables; default: the variable JAXPROBE_DATA.
        tokenizer: Folder or hub name; default: the model's own, or where that is not at hand the demo model's.
        replicate_kv: Keep copies of each key/value head where model has more devices than there are such heads.
    """
    # Nothing runs here, and JAX would look for a TPU as soon as libtpu is installed.
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")  # the CUDA plugin says that it finds no driver
    from jaxprobe.plan.planning import plan

    made = plan(
        model, topology, dataset, prompt,
        mesh=mesh, dtype=dtype, limit=limit, data_dir=data_dir, tokenizer=tokenizer, replicate_kv=replicate_kv,
        say=_say,
    )  # fmt: skip
    _output().plan(made)


@app.command
def doctor(model: str = "demo", tokenizer: str | None = None) -> None:
    """Check the installation, the devices and a model's states against PyTorch; paste its lines into a bug report.

    Exits with 1 where something is wrong; each such line says what to do.

    Args:
        model: Compared with Hugging Face in float32, where PyTorch is installed.
        tokenizer: Folder or hub name of another tokenizer.
    """
    from jaxprobe.cli.doctor import run_checks

    if not _output().checks(run_checks(model, tokenizer)):
        sys.exit(WRONG)


@experiment.command
def layers(runs: Runs) -> None:
    """R2 by layer of several runs, against relative depth.

    Args:
        runs: Folders of finished runs.
    """
    _experiment("layers", runs)


@experiment.command
def prompts(runs: Runs, state: str | None = None) -> None:
    """Train on one prompt, test on another, with states as they are and re-centred.

    Args:
        runs: Folders of finished runs of one table and model under different prompts.
        state: The state to look at; default: the headline layer of the first run.
    """
    _experiment("prompts", runs, state=state)


@experiment.command
def blocks(
    runs: Runs,
    group: tuple[str, ...] = (),
    held: tuple[str, ...] = (),
    state: str | None = None,
    cell_degrees: float = 5.0,
    buffer_km: float = 100.0,
) -> None:
    """Hold whole groups out of the fit, and whole cells of the map.

    Args:
        runs: Folders of finished runs.
        group: Group columns; default: all, and cells of the map for places.
        held: Groups to hold out; default: the twenty largest.
        state: The state to look at; default: each run's headline layer.
        cell_degrees: Side of a cell.
        buffer_km: Training rows nearer than this to a test row are left out as well.
    """
    options = dict(group=group, held=held, state=state, cell_degrees=cell_degrees, buffer_km=buffer_km)
    _experiment("blocks", runs, **options)


@experiment.command
def entity_types(runs: Runs, group: str = "entity_type", state: str | None = None) -> None:
    """Train on some types of entity, test on another.

    Args:
        runs: Folders of finished runs.
        group: Column of the types.
        state: The state to look at; default: each run's headline layer.
    """
    _experiment("entity_types", runs, group=group, state=state)


@experiment.command
def controls(runs: Runs, state: str | None = None, random_weights: bool = False) -> None:
    """What else would explain the score: spelling, groups, the last token, permuted targets, random weights.

    Args:
        runs: Folders of finished runs.
        state: The state to look at; default: each run's headline layer.
        random_weights: Run the same architecture with random weights as well.
    """
    _experiment("controls", runs, state=state, random_weights=random_weights)


@experiment.command
def dateline(runs: Runs, state: str | None = None) -> None:
    """Places as points on the sphere, which has no dateline, beside degrees.

    Args:
        runs: Folders of finished runs.
        state: The state to look at; default: each run's headline layer.
    """
    _experiment("dateline", runs, state=state)


@app.command
def export(run: tyro.conf.Positional[Path], out: Path, states: tuple[str, ...] = ()) -> None:
    """Write a run's stored states as plain files, rows in the order of entities.parquet.

    Args:
        run: The run's folder.
        out: A name that ends in .safetensors: one file. Any other: a folder, with STATE.npy for each state (float32).
        states: Which ones: embed, 0, 1, ..., final_norm; default: all that are stored.
    """
    from jaxprobe.extract.store.export import export_activations
    from jaxprobe.results.folder import RunDirectory

    _output().files(export_activations(RunDirectory(run).activations_path, out, states or None))


@data.command(name="list")
def list_tables(data_dir: Path | None = None) -> None:
    """The named tables, and where each is at hand.

    Args:
        data_dir: Folder of the paper's tables; default: the variable JAXPROBE_DATA.
    """
    import pandas as pd

    from jaxprobe.data.catalog import list_datasets

    listed = [listing._replace(location=listing.location or "no") for listing in list_datasets(data_dir)]
    frame = pd.DataFrame(listed).rename(columns={"location": "at hand", "attribution": "source"})
    _output().frame(frame, "Named tables")


@data.command(name="fetch")
def fetch_table(name: tyro.conf.Positional[str], data_dir: Path | None = None) -> None:
    """Download one of the paper's tables; its checksum is compared. The only command for data that uses a network.

    Args:
        name: As `jaxprobe data list` spells it.
        data_dir: Folder for the paper's tables; default: the variable JAXPROBE_DATA.
    """
    from jaxprobe.data.fetch import fetch

    _output().files([fetch(name, data_dir)])


@data.command(name="export")
def export_table(
    name: tyro.conf.Positional[str], out: Path, data_dir: Path | None = None, limit: int | None = None
) -> None:
    """Write a named table as CSV or Parquet: to look at, or to begin one of your own from.

    Args:
        name: As `jaxprobe data list` spells it.
        out: The file to write, .csv or .parquet.
        data_dir: Folder of the paper's tables; default: the variable JAXPROBE_DATA.
        limit: A seeded sample of this many rows.
    """
    from jaxprobe.data.catalog import load_table
    from jaxprobe.data.columns import write_frame

    out = as_path(out)
    write_frame(load_table(name, data_dir=data_dir, limit=limit).to_frame(), out)
    _output().files([out])


@app.command
def report(runs: Runs, out: Path | None = None) -> None:
    """Write one page about one or several finished runs.

    Args:
        runs: Folders of finished runs.
        out: The page; default: report.html in the first run's folder.
    """
    from jaxprobe.report.page import write_report
    from jaxprobe.results.folder import RunDirectory

    if not runs:
        raise InputError("No run to report on. Name the folders of finished runs: jaxprobe report RUN...")
    _output().files([write_report(*map(RunDirectory, runs), path=out)])


app.command(experiment, name="experiment", help="What finished runs show, and what they don't.")
app.command(data, name="data", help="The named tables.")


class _Terminated(BaseException):
    """SIGTERM, as a scheduler sends it before it takes a machine away."""


def _stop(number: int, frame: FrameType | None) -> None:
    """Ends the command by an exception; not in a callback of the garbage collection (JAX has one), which drops it."""
    callbacks = {getattr(callback, "__code__", None) for callback in gc.callbacks}
    while frame is not None and frame.f_code not in callbacks:
        frame = frame.f_back
    if frame is not None:
        threading.Timer(0.05, os.kill, (os.getpid(), number)).start()
    elif number == signal.SIGINT:
        raise KeyboardInterrupt
    else:
        raise _Terminated


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of ``jaxprobe``.

    Exits with 0, 2 for input that can't be used, 130 after Ctrl-C, or 143 after SIGTERM.
    """
    # One that the shell has put to rest (nohup, a job in the background) stays so.
    heard = [number for number in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, _stop) for number in heard}
    keep_compiled()
    try:
        _dispatch(list(sys.argv[1:] if arguments is None else arguments))
        sys.stdout.flush()
    except InputError as error:
        _end_job(UNUSABLE_INPUT, error.problems, error)
        _tell(UNUSABLE_INPUT, error.problems)
        sys.exit(UNUSABLE_INPUT)
    except (KeyboardInterrupt, _Terminated) as stop:
        terminated = isinstance(stop, _Terminated)
        line = (
            f"{'Terminated' if terminated else 'Interrupted'}. Stored shards are kept: "
            "the same command goes on from there (without a store it starts anew)."
        )
        code = TERMINATED if terminated else INTERRUPTED
        _end_job(code, [line], stop)
        _tell(code, [line])
        sys.exit(code)
    except BrokenPipeError:  # `jaxprobe ... | head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _dispatch(arguments: list[str]) -> None:
    global as_json
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    # --config gives another run's settings as defaults, which the other options then change.
    finder.add_argument("--config", type=Path)
    finder.add_argument("--processes")  # of this process only, so no setting of the run
    for flag in ("--quiet", "--json"):
        finder.add_argument(flag, action="store_true")
    known, rest = finder.parse_known_args(arguments)
    log.quiet, as_json = known.quiet, known.json
    if known.config is None and known.processes is None:
        app.cli(prog="jaxprobe", description=HELP, args=rest or ["--help"])
    elif rest[:1] == ["run"]:
        default = {} if known.config is None else {"default": read_settings(known.config)}
        _run(tyro.cli(RunSettings, args=rest[1:], **default, prog="jaxprobe run"), known.processes)
    else:
        raise InputError("--config and --processes belong to the command run: jaxprobe run --config RUN.")


def _run(settings: RunSettings, processes: str | None = None) -> None:
    from jaxprobe.host.processes import is_main, job
    from jaxprobe.runs.execute import run as run_settings

    with job(processes, _tell):
        log.quiet |= not is_main()
        directory = run_settings(settings, console_reporter(log))
        if is_main():
            _output().run(directory)


def _end_job(code: int, lines: Sequence[str], error: BaseException) -> None:
    """Where this is one of several processes: ends all of them, itself too."""
    distributed = sys.modules.get("jaxprobe.host.processes")  # not imported yet: there is no job
    if distributed:
        distributed.end(code, lines, _tell, agreed=isinstance(error, distributed.AgreedError))


def _say(line: str) -> None:
    log.print(escape(line))


def _tell(code: int, lines: Sequence[str]) -> None:
    """Why the command ends; of several processes that have met one tells it for all."""
    for line in lines:
        errors.print(("[bold red]Error:[/] " if code == UNUSABLE_INPUT else "") + escape(line))
    if as_json and code == UNUSABLE_INPUT:
        print(json.dumps({"problems": lines}, ensure_ascii=False))


def _smoke_folder(name: str, limit: int | None) -> Path:
    """A run of some rows goes beside the run of all, not into its folder."""
    return Path(name if limit is None else f"{name}-{limit}")


def _output():
    from jaxprobe.cli.output import Output

    return Output(as_json, None if sys.stdout.isatty() else WIDTH)


def _experiment(name: str, runs: tuple[Path, ...], **options) -> None:
    from jaxprobe.experiments import registry
    from jaxprobe.experiments.base import check_runs, printed, write_table

    experiment = registry.load(name)
    paths = check_runs(runs)
    frame = experiment.run(paths, experiment.Options(**options), console_reporter(log))
    path = write_table(experiment, frame, paths[0])
    _output().frame(printed(experiment, frame), name, table=str(path))
    log.print(f"Every row: {path}; figures beside it.", markup=False)
