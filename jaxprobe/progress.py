"""Progress on stderr, with rate and time left; and none at all. Time and memory that were used."""

import re
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import rich.progress
from rich.console import Console

Advance = Callable[[int], None]


class Progress(Protocol):
    """Shows one task at a time, and remembers how long each took."""

    seconds: dict[str, float]

    def task(self, name: str, total: int, unit: str): ...


class NoProgress:
    """Says nothing, but keeps the seconds of each task."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def task(self, name: str, total: int, unit: str) -> Iterator[Advance]:
        started = time.perf_counter()
        yield lambda count: None
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started


class ConsoleProgress(NoProgress):
    """A bar on a terminal; a line at the end of each task elsewhere."""

    def __init__(self, console: Console):
        super().__init__()
        self.console = console

    @contextmanager
    def task(self, name: str, total: int, unit: str) -> Iterator[Advance]:
        columns = (
            rich.progress.TextColumn("{task.description}"),
            rich.progress.BarColumn(),
            rich.progress.MofNCompleteColumn(),
            rich.progress.TextColumn("{task.fields[rate]}"),
            rich.progress.TimeRemainingColumn(),
        )
        started = time.perf_counter()
        # Off a terminal the bar would leave an empty line.
        bar = rich.progress.Progress(
            *columns, console=self.console, transient=True, disable=not self.console.is_terminal
        )
        with super().task(name, total, unit), bar:
            shown = bar.add_task(name, total=total, rate="")

            def advance(count: int) -> None:
                done = bar.tasks[shown].completed + count
                rate = done / (time.perf_counter() - started)
                bar.update(shown, completed=done, rate=f"{rate:,.0f} {unit}/s")

            yield advance
        took = self.seconds[name]
        rate = f" ({total / max(took, 1e-9):,.0f} {unit}/s)" if total > 1 else ""
        self.console.print(f"{name}: {total:,} {unit} in {took:.1f} s{rate}")


def peak_memory() -> int:
    """Largest resident size of this process so far, in bytes."""
    # Linux's ru_maxrss begins at the size of the process that started this one; VmHWM is its own.
    status = Path("/proc/self/status")
    if status.exists():
        return int(re.search(r"VmHWM:\s*(\d+) kB", status.read_text())[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # macOS counts in bytes
