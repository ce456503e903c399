"""What a run tells while it works: lines, and progress with rate and time left; on a terminal, in a log, in a notebook.

And the time and the memory that it used.
"""

import re
import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Protocol

import rich.progress
from rich.console import Console

Advance = Callable[[int], None]
LOG_SECONDS = 30  # between two lines of a task in a log
NOTEBOOK_SECONDS = 0.5  # between two updates of a notebook's line


class Progress(Protocol):
    """Shows one task at a time: what the rooms below need of a `Reporter`."""

    def task(self, name: str, total: int, unit: str) -> AbstractContextManager[Advance]: ...


class Reporter:
    """Told what a user should know: lines, and how far each task is. This one shows nothing, but keeps what it heard.

    Attributes:
      seconds: task -> how long it took, all of that name together.
      lines: what was said.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        """A fact that the user should know."""
        self.lines.append(line)

    @contextmanager
    def task(self, name: str, total: int, unit: str) -> Iterator[Advance]:
        """One task of ``total`` units; what is yielded is called with how many more are done."""
        started = time.perf_counter()
        yield lambda count: None
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started


class Stopwatch:
    """What one run took of the tasks that a reporter hears of; it can be stopped while others go on."""

    def __init__(self, reporter: Reporter):
        self._reporter, self._kept = reporter, {"total": 0.0}
        self.start()

    def start(self) -> None:
        """Goes on."""
        self._at, self._before = time.perf_counter(), dict(self._reporter.seconds)

    def stop(self) -> None:
        """Keeps what there is; what comes before the next start does not count."""
        self._kept = self.seconds()

    def seconds(self) -> dict[str, float]:
        """Task -> how long it took so far, and ``total``."""
        now = self._reporter.seconds | {"total": time.perf_counter()}
        before = self._before | {"total": self._at}
        return {name: self._kept.get(name, 0.0) + value - before.get(name, 0.0) for name, value in now.items()}


class _Lines(Reporter):
    """A line of text for a task: while it runs, every so many seconds, and one at its end."""

    def __init__(self, every: float):
        super().__init__()
        self.every = every

    @contextmanager
    def task(self, name: str, total: int, unit: str) -> Iterator[Advance]:
        self._begin(name)
        with super().task(name, total, unit):
            started = shown = time.perf_counter()
            done = 0

            def advance(count: int) -> None:
                nonlocal done, shown
                done += count
                now = time.perf_counter()
                if done < total and now - shown >= self.every:
                    shown = now
                    self._show(_running(name, done, total, unit, now - started))

            yield advance
        self._end(_ended(name, total, unit, time.perf_counter() - started))

    def _begin(self, name: str) -> None: ...
    def _show(self, line: str) -> None: ...
    def _end(self, line: str) -> None:
        self._show(line)


class LogReporter(_Lines):
    """Lines in a log file or a pipe."""

    def __init__(self, console: Console):
        super().__init__(LOG_SECONDS)
        self.console = console

    def say(self, line: str) -> None:
        super().say(line)
        self.console.print(line, markup=False)

    def _show(self, line: str) -> None:
        self.console.print(line, markup=False)


class NotebookReporter(_Lines):
    """One line of a cell's output for each task, kept up to date in its place."""

    def __init__(self) -> None:
        super().__init__(NOTEBOOK_SECONDS)
        self._handle: Any = None

    def say(self, line: str) -> None:
        super().say(line)
        print(line)

    def _begin(self, name: str) -> None:
        from IPython.display import display

        self._handle = display({"text/plain": f"{name} ..."}, raw=True, display_id=True)

    def _show(self, line: str) -> None:
        self._handle.update({"text/plain": line}, raw=True)


class TerminalReporter(Reporter):
    """A bar that vanishes, and a line at the end of each task."""

    def __init__(self, console: Console):
        super().__init__()
        self.console = console

    def say(self, line: str) -> None:
        super().say(line)
        self.console.print(line, markup=False)

    @contextmanager
    def task(self, name: str, total: int, unit: str) -> Iterator[Advance]:
        columns = (
            rich.progress.TextColumn("{task.description}"),
            rich.progress.BarColumn(bar_width=20),
            rich.progress.MofNCompleteColumn(),
            rich.progress.TextColumn("{task.fields[rate]}"),
            rich.progress.TimeRemainingColumn(),
        )
        started = time.perf_counter()
        bar = rich.progress.Progress(*columns, console=self.console, transient=True)
        with super().task(name, total, unit), bar:
            shown = bar.add_task(name, total=total, rate="")

            def advance(count: int) -> None:
                done = bar.tasks[shown].completed + count
                bar.update(shown, completed=done, rate=_rate(done, unit, time.perf_counter() - started))

            yield advance
        self.console.print(_ended(name, total, unit, time.perf_counter() - started), markup=False)


def console_reporter(console: Console) -> Reporter:
    """Bars on a terminal, lines elsewhere."""
    return TerminalReporter(console) if console.is_terminal else LogReporter(console)


def default_reporter() -> Reporter:
    """What a call from Python shows that names no reporter: a line a task in a notebook, nothing elsewhere."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return NotebookReporter() if hasattr(shell, "kernel") else Reporter()


def in_words(seconds: float) -> str:
    """A duration to a person's precision: "40 s", "12 min", "3.5 h"."""
    if seconds < 90:
        return f"{max(seconds, 1):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


def _rate(done: float, unit: str, seconds: float) -> str:
    each = done / max(seconds, 1e-9)
    return f"{each:,.0f} {unit}/s" if each >= 10 else f"{each:.2g} {unit}/s"


def _running(name: str, done: int, total: int, unit: str, seconds: float) -> str:
    left = in_words(seconds / done * (total - done))
    return f"{name}: {done:,} of {total:,} {unit}, {_rate(done, unit, seconds)}, {left} left"


def _ended(name: str, total: int, unit: str, seconds: float) -> str:
    rate = f" ({_rate(total, unit, seconds)})" if total > 1 else ""
    return f"{name}: {total:,} {unit} in {seconds:.1f} s{rate}"


def peak_memory() -> int:
    """Largest resident size of this process so far, in bytes."""
    # Linux's ru_maxrss begins at the size of the process that started this one; VmHWM is its own.
    status = Path("/proc/self/status")
    if status.exists():
        return int(re.search(r"VmHWM:\s*(\d+) kB", status.read_text())[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # macOS counts in bytes
