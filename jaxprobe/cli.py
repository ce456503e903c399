"""The command line: parses, calls, prints. Results go to stdout, everything else to stderr.

What takes seconds to import (JAX, transformers) is imported by the command that needs it.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from jaxprobe.config import RunConfig, read_config
from jaxprobe.errors import InputError
from jaxprobe.progress import ConsoleProgress

UNUSABLE_INPUT, INTERRUPTED = 2, 130

app = tyro.extras.SubcommandApp()
data = tyro.extras.SubcommandApp()
app.command(data, name="data", help="The named tables.")

# Names from data are text: a bracket in them is no markup.
log = Console(stderr=True, highlight=False, soft_wrap=True)
Settings = Annotated[RunConfig, tyro.conf.arg(name="")]


@app.command
def demo(out: Path = Path("demo-run"), limit: int | None = None) -> None:
    """See where a small model keeps the map of the world: 10,000 cities, about a minute on two cores.

    Args:
        out: The run's folder.
        limit: Use a seeded sample of this many cities.
    """
    from jaxprobe.run import demo_config

    _run(demo_config(out, limit))


@app.command
def run(settings: Settings) -> None:
    """Read a model at each name's last token, probe every layer, write scores and a report.

    --config FILE takes the settings from a run's config.json; further options change them.
    """
    _run(settings)


@data.command(name="list")
def list_tables(data_dir: Path | None = None) -> None:
    """The named tables, and where each is at hand.

    Args:
        data_dir: Folder of the paper's tables; default: the variable JAXPROBE_DATA.
    """
    from jaxprobe.data.catalog import list_datasets

    table = Table("name", "rows", "at hand", "source")
    for listing in list_datasets(data_dir):
        table.add_row(listing.name, f"{listing.rows:,}", listing.location or "no", listing.attribution)
    Console(highlight=False).print(table)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of ``jaxprobe``; exits with 0, 2 for input that can't be used, or 130 after Ctrl-C."""
    try:
        _dispatch(list(sys.argv[1:] if arguments is None else arguments))
    except InputError as error:
        for problem in error.problems:
            log.print(f"[bold red]Error:[/] {escape(problem)}")
        sys.exit(UNUSABLE_INPUT)
    except KeyboardInterrupt:
        log.print("Interrupted. What is complete is kept; the same command goes on from there.")
        sys.exit(INTERRUPTED)


def _dispatch(arguments: list[str]) -> None:
    # --config gives another run's settings as defaults, which the other options then change.
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    finder.add_argument("--config", type=Path)
    known, rest = finder.parse_known_args(arguments)
    if known.config is None:
        app.cli(prog="jaxprobe", description=__import__("jaxprobe").__doc__, args=arguments)
    elif rest[:1] == ["run"]:
        _run(tyro.cli(RunConfig, args=rest[1:], default=read_config(known.config), prog="jaxprobe run"))
    else:
        raise InputError("--config belongs to the command run: jaxprobe run --config FILE.")


def _run(settings: RunConfig) -> None:
    from jaxprobe.run import run as run_settings

    directory = run_settings(settings, lambda line: log.print(escape(line)), ConsoleProgress(log))
    _print_scores(directory)


def _print_scores(directory) -> None:
    """Test scores by layer, the headline layer marked."""
    scores = directory.read_scores()
    headline = directory.read_config()["result"]["headline_layer"]
    test = scores[(scores["split"] == "test") & scores["target"].isin(["mean", "place"])]
    error = "error_km_median" if "error_km_median" in set(test["metric"]) else "mae"
    by = test.set_index(["layer", "metric"])
    title = f"{test['model'].iloc[0]}, {test['dataset'].iloc[0]}, prompt {test['prompt'].iloc[0]}: test scores"
    table = Table(
        *("layer", "R2", "95 % interval", "Spearman", {"mae": "mean error"}.get(error, "median km"), "alpha"),
        title=escape(title),
        caption="embed: what the last token alone tells. *: chosen by leave-one-out on the training rows.",
    )
    for layer in dict.fromkeys(test["layer"]):
        r2 = by.loc[(layer, "r2")]
        table.add_row(
            layer + (" *" if layer == headline else ""),
            f"{r2['value']:.3f}",
            f"{r2['ci_low']:.3f} to {r2['ci_high']:.3f}",
            f"{by.loc[(layer, 'spearman'), 'value']:.3f}",
            f"{by.loc[(layer, error), 'value']:,.1f}" if (layer, error) in by.index else "",
            f"{r2['alpha']:.3g}",
            style="bold" if layer == headline else None,
        )
    Console(highlight=False).print(table)
