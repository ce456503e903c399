"""The command line: finds the command, parses, calls, says how it ended. Results go to stdout, all else to stderr."""

import argparse
import contextlib
import errno
import gc
import importlib.metadata
import io
import os
import re
import signal
import sys
import threading
import traceback
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from types import FrameType

import tyro

import jaxprobe
from jaxprobe.cli import commands
from jaxprobe.cli.output import Output
from jaxprobe.errors import InputError, first_line
from jaxprobe.host.compiled import keep_compiled
from jaxprobe.settings import is_utf8, read_settings

CRASHED, UNUSABLE_INPUT, INTERRUPTED, TERMINATED = 1, 2, 130, 143
HELP = f"""{jaxprobe.__doc__}

Begin with `jaxprobe demo`. Then bring a table of named things and a model:
`jaxprobe run --dataset FILE.csv --model MODEL`. `jaxprobe COMMAND --help`
explains a command. Every command takes --quiet (nothing but results and
errors) and --json (one JSON object on stdout). It exits with 0; 1 for what
doctor found; 2 for input that can't be used; 130 after Ctrl-C.

Compiled programs are kept in ~/.cache/jaxprobe for the next start;
JAX_ENABLE_COMPILATION_CACHE=false turns that off.
"""


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
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    output = Output("--json" in arguments, "--quiet" in arguments)
    keep_compiled()
    try:
        _dispatch(arguments, output)
        sys.stdout.flush()
    except InputError as error:
        _end(UNUSABLE_INPUT, error.problems, error, output)
    except (KeyboardInterrupt, _Terminated) as stop:
        terminated = isinstance(stop, _Terminated)
        line = (
            f"{'Terminated' if terminated else 'Interrupted'}. Stored shards are kept: "
            "the same command goes on from there (without a store it starts anew)."
        )
        _end(TERMINATED if terminated else INTERRUPTED, [line], stop, output)
    except BrokenPipeError:  # `jaxprobe ... | head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        _end(UNUSABLE_INPUT, [_system_problem(error)], error, output)
    except Exception as error:
        if isinstance(error, MemoryError) or "failed to map segment" in str(error):  # as a library that is loaded
            line = "There is not enough memory for this. Take fewer rows (--limit), fewer layers, or a larger machine."
            _end(UNUSABLE_INPUT, [line], error, output)
        traceback.print_exc()
        _end(
            CRASHED,
            [f"{type(error).__name__}: {first_line(error)}. Please report this, with the lines above."],
            error,
            output,
        )
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end(code: int, lines: Sequence[str], error: BaseException, output: Output) -> None:
    """Says why, and exits. Where this is one of several processes all of them end."""
    distributed = sys.modules.get("jaxprobe.host.processes")  # not imported yet: there is no job
    if distributed:
        distributed.end(code, lines, output.tell, agreed=isinstance(error, distributed.AgreedError))
    output.tell(code, lines)
    sys.exit(code)


def _system_problem(error: OSError) -> str:
    """What the system refused, in a line."""
    reason = error.strerror or str(error).strip() or type(error).__name__
    where = f"{error.filename}: " if error.filename else ""
    remedies = {
        "ENOSPC": "Free some space and give the same command again; it goes on where it stopped.",
        "EDQUOT": "Free some space and give the same command again; it goes on where it stopped.",
        "EACCES": "Name a place that you may read and write.",
        "EPERM": "Name a place that you may read and write.",
        "EROFS": "Name a folder on a disk that can be written to.",
    }
    remedy = remedies.get(errno.errorcode.get(error.errno or 0, ""), "Mend that, or name another path.")
    return f"{where}{reason}. {remedy}"


def _dispatch(arguments: list[str], output: Output) -> None:
    if odd := [argument for argument in arguments if not is_utf8(argument)]:
        raise InputError(*(f"Argument {argument!r} is not UTF-8. Write it in UTF-8." for argument in odd))
    while arguments and arguments[0] in ("--json", "--quiet"):  # before the command as well
        arguments = [*arguments[1:], arguments[0]]
    if not arguments or arguments[0] in ("-h", "--help") or set(arguments) <= {"--json", "--quiet"}:
        print(_help(""))
    elif arguments[0] == "--version":
        print(f"jaxprobe {importlib.metadata.version('jaxprobe')}")
    else:
        _parse(arguments, output)(output)


def _parse(arguments: list[str], output: Output) -> commands.Command:
    """The command that the arguments name, with its options."""
    known = [*commands.COMMANDS, *commands.EXPERIMENTS]
    groups = {words.partition(" ")[0] for words in known if " " in words}
    # A group may be a command itself: `world` is one, `world probe` another.
    single = arguments[0] in known and " ".join(arguments[:2]) not in known
    count = 2 if arguments[0] in groups and not single else 1
    words, rest = " ".join(arguments[:count]), arguments[count:]
    if count == 2 and (len(arguments) < 2 or arguments[1] in ("-h", "--help")):
        print(_help(f"{arguments[0]} "))
        sys.exit(0)
    found = commands.find(words)
    if found is None:
        raise InputError(
            f"There is no command {words!r}.{commands.nearest(words, known)} `jaxprobe --help` lists all of them."
        )
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    finder.add_argument("--config", type=Path)
    default = {}
    if found is commands.RunCommand and (config := finder.parse_known_args(rest)[0].config):
        # Another run's settings as defaults, which the other options then change.
        values = asdict(read_settings(config))
        # An address is a path to tyro only as a Path, which as_path turns back.
        values |= {name: Path(str(values[name])) for name in ("out", "data_dir") if values[name] is not None}
        values |= {name: (values[name],) for name in ("dataset", "model", "prompt")}  # of which `run` takes several
        default = {"default": commands.RunCommand(**values, config=config)}
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(found, args=rest, prog=f"jaxprobe {words}", **default)
    except SystemExit as stop:
        if not stop.code:
            raise
        raise InputError(f"{_in_words(said.getvalue())} `jaxprobe {words} --help` lists all options.") from None


def _in_words(said: str) -> str:
    """What tyro says of arguments that it can't use, in a sentence."""
    lines = said.splitlines()
    rules = [number for number, line in enumerate(lines) if re.search("[-─]{8}", line)]
    first = lines[rules[0] + 1 : rules[1]] if len(rules) > 1 else lines
    text = " ".join(" ".join(line.strip(" │") for line in first).split())
    kinds = {"INT": "a whole number", "FLOAT": "a number"}
    if match := re.match(r"Error parsing (\S+): no type matching \S*?(INT|FLOAT)\S* could .* from \['(.*?)'\]", text):
        return f"{match[1]} {match[3]!r} is not {kinds[match[2]]}."
    if match := re.match(r"Error parsing (\S+): invalid literal for int\(\) with base 10: (.*)", text):
        return f"{match[1]} {match[2]} is not a whole number."
    if match := re.match(r"Error parsing (\S+): could not convert string to float: (.*)", text):
        return f"{match[1]} {match[2]} is not a number."
    if match := re.match(r"Error parsing (\S+): Could not find valid parse for arguments: \[(.*)\]", text):
        return f"{match[1]} {match[2]} can't be used: wanted {'whole ' if 'INT' in said else ''}numbers."
    named = [match[1] for line in lines if (match := re.match(r"[│ ] {5}(--\S+|[\[A-Z]+)", line))]
    if text.startswith("Missing from") and named:
        return f"What is missing: {', '.join(named)}."
    meant = re.search(r"Perhaps you meant:.*?(--[\w-]+)", said, re.DOTALL)
    return f"{text.rstrip('.')}." + (f" Did you mean {meant[1]}?" if meant else "")


def _help(prefix: str) -> str:
    """What `jaxprobe --help` prints, or that of the commands which begin with a word."""
    shown = {words: line for words, line in commands.summaries().items() if words.startswith(prefix)}
    width = max(map(len, shown))
    lines = [f"  {words:<{width}}  {line}" for words, line in shown.items()]
    head = "" if prefix else f"\n{HELP}"
    return f"usage: jaxprobe {prefix}COMMAND [OPTIONS]\n{head}\ncommands:\n" + "\n".join(lines)
