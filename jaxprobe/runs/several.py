"""Several runs as one: all are checked before the first starts, and the weights of each model are read once."""

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import jax

from jaxprobe.errors import InputError, first_line, tell_once
from jaxprobe.extract.store.writer import check_space
from jaxprobe.host.paths import AnyPath
from jaxprobe.host.processes import agreed, is_main
from jaxprobe.host.progress import Reporter, Stopwatch, default_reporter
from jaxprobe.report.overview import write_overview
from jaxprobe.report.page import check_page
from jaxprobe.results.folder import RunDirectory
from jaxprobe.runs.execute import execute, is_done, load, read_states
from jaxprobe.runs.inputs import Inputs, read_several
from jaxprobe.runs.prepare import Prepared, effort, open_run_model, prepare
from jaxprobe.settings import RunSettings, run_folder

T = TypeVar("T")


def run_all(
    several: Sequence[RunSettings],
    reporter: Reporter | None = None,
    inputs: Sequence[Inputs] | None = None,
    page: AnyPath | None = None,
) -> list[RunDirectory]:
    """Runs each of several settings from where its folder stands, and returns the folders.

    All are checked, and their size and time said, before the first one starts. The states of all runs of a model are
    read first, then its weights are released and the probes fitted. A run that fails does not stop the others.

    Args:
      several: with a folder each.
      inputs: what `read_several` makes of them, where that is at hand.
      page: where a page over all of them goes.

    Raises:
      InputError: whatever can't be used of any of them, before anything is computed; and at the end what made some
        of them fail.
    """
    reporter = reporter or default_reporter()
    with agreed():
        if page is not None:
            check_page(page)
        prepared, said = _prepare_all(inputs or read_several(several), reporter)
    failed: dict[str, Exception] = {}
    try:
        for model in dict.fromkeys(map(_model_of, prepared)):
            _run_model([each for each in prepared if _model_of(each) == model], said, reporter, failed)
    finally:  # also where it is interrupted
        if page is not None and is_main():
            write_overview(page, [each.directory for each in prepared])
            reporter.say(f"Page over all: {page}")
    if failed:
        raise _joined(failed, prepared)
    return [each.directory for each in prepared]


def _prepare_all(inputs: Sequence[Inputs], reporter: Reporter) -> tuple[list[Prepared], dict[AnyPath, list[str]]]:
    """Each run with what is to be said of it when it starts; the sizes of all are said now."""
    prepared, said = [], {}
    problems: dict[str, Sequence[str]] = {}
    opened = {
        settings.model: _once(functools.partial(open_run_model, settings)) for settings, _ in reversed(list(inputs))
    }
    for each in inputs:
        name, heard = str(run_folder(each.settings)), Reporter()
        problems[name] = ()
        try:
            prepared.append(prepare(each, heard, opened[each.settings.model]()))
            said[prepared[-1].directory.path] = heard.lines
        except InputError as error:
            problems[name] = error.problems
    if any(problems.values()):
        raise InputError(*tell_once(problems, "Run"))
    todo = [each for each in prepared if not each.is_fitted]
    new = [each for each in todo if each.settings.store and not each.directory.activations_path.exists()]
    disk = sum(each.disk_bytes for each in new)
    if is_main():
        check_space(prepared[0].directory.path, disk)
        size = f": forward passes of {effort(todo)}; {disk / 1e9:.2f} GB on disk" if todo else ""
        reporter.say(f"{len(todo)} of {len(prepared)} runs to do{size}.")
    return prepared, said


def _run_model(
    runs: Sequence[Prepared], said: dict[AnyPath, list[str]], reporter: Reporter, failed: dict[str, Exception]
) -> None:
    """All runs of one model; what fails goes into ``failed``."""
    watches, states = {}, {}
    model = _once(lambda: load(runs[0], reporter))
    for each in runs:
        path = each.directory.path
        for line in said[path]:
            reporter.say(line)
        watches[path] = watch = Stopwatch(reporter)
        with _apart(path, reporter, failed):
            if not each.settings.store:
                execute(each, reporter, watch, model)
            elif not is_done(each):
                states[path] = read_states(each, reporter, model)
        watch.stop()
    del model  # the fits have the memory for themselves
    for each in runs:
        path = each.directory.path
        if each.settings.store and str(path) not in failed:
            watches[path].start()
            if path in states:
                reporter.say(f"Probes of {path}")
            with _apart(path, reporter, failed):
                execute(each, reporter, watches[path], activations=states.pop(path, None))


def _model_of(prepared: Prepared) -> tuple[str, str | None]:
    return prepared.settings.model, prepared.settings.revision


@contextmanager
def _apart(path: AnyPath, reporter: Reporter, failed: dict[str, Exception]) -> Iterator[None]:
    """Notes what one run fails of, and goes on; of several processes none may, as the others wait for it."""
    try:
        yield
    except Exception as error:
        if jax.process_count() > 1:
            raise
        failed[str(path)] = error
        reporter.say(f"{path} failed: {first_line(error)}")


def _joined(failed: dict[str, Exception], prepared: Sequence[Prepared]) -> Exception:
    """One error for all, of whoever failed."""
    problems: dict[str, Sequence[str]] = {str(each.directory.path): () for each in prepared}
    for path, error in failed.items():
        problems[path] = error.problems if isinstance(error, InputError) else [first_line(error)]
    lines = tell_once(problems, "Run")
    unforeseen = [error for error in failed.values() if not isinstance(error, InputError | OSError)]
    if not unforeseen:
        return InputError(*lines)
    unforeseen[0].add_note("\n".join(lines))
    return unforeseen[0]


def _once(call: Callable[[], T]) -> Callable[[], T]:
    """Calls it when it is first asked for, and then gives the same or raises the same."""

    @functools.cache
    def outcome() -> tuple[T | None, Exception | None]:
        try:
            return call(), None
        except Exception as error:
            return None, error

    def again() -> T:
        value, error = outcome()
        if error is not None:
            raise error
        return value  # type: ignore[return-value]

    return again
