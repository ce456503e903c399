"""Progress in a log and on a terminal; the notebook's is in test_notebook.py."""

import io
import re
import time

from rich.console import Console

from jaxprobe.host.progress import (
    LogReporter,
    Reporter,
    TerminalReporter,
    console_reporter,
    default_reporter,
    in_words,
)


def show(progress, seconds=0.0):
    with progress.task("extract", 300, "entities") as advance:
        for _ in range(3):
            time.sleep(seconds)
            advance(100)


def test_a_log_has_lines_with_rate_and_time_left():
    written = io.StringIO()
    progress = LogReporter(Console(file=written, width=200))
    progress.every = 0.05
    show(progress, 0.06)
    running, again, ended = written.getvalue().splitlines()
    done, rate, left = re.fullmatch(
        r"extract: (\d+) of 300 entities, ([\d,]+) entities/s, (\d+) s left", running
    ).groups()
    assert done == "100" and int(left) >= 1
    assert int(rate.replace(",", "")) <= 100 / 0.06 + 1  # less where the machine is busy
    assert again.startswith("extract: 200 of 300")
    assert re.fullmatch(r"extract: 300 entities in 0\.\d s \([\d,]+ entities/s\)", ended)
    assert progress.seconds["extract"] >= 0.18


def test_a_terminal_has_a_bar_that_vanishes():
    written = io.StringIO()
    progress = TerminalReporter(Console(file=written, force_terminal=True, width=80))
    show(progress, 0.15)
    text = written.getvalue()
    lines = [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line) for line in text.replace("\r", "\n").splitlines()]
    assert any("━" in line and "entities/s" in line for line in lines)
    assert max(map(len, lines)) <= 80
    assert lines[-1].startswith("extract: 300 entities in")


def test_what_is_shown_where():
    assert isinstance(console_reporter(Console(file=io.StringIO())), LogReporter)
    assert isinstance(console_reporter(Console(file=io.StringIO(), force_terminal=True)), TerminalReporter)
    assert type(default_reporter()) is Reporter


def test_durations_in_words():
    found = [in_words(seconds) for seconds in (0.2, 89, 90, 600, 5399, 5400, 100_000)]
    assert found == ["1 s", "89 s", "2 min", "10 min", "90 min", "1.5 h", "27.8 h"]
