"""Several processes as one job: how they begin, what they tell each other, and how all end when one fails.

Every process runs the same program on the same settings and meets the others in the same order. Small facts go through
the key-value store of JAX's coordination service (which process 0 runs), arrays through the devices.
"""

import itertools
import json
import os
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np
import safetensors.numpy
from jax._src import distributed as jax_distributed  # the key-value store has no public name; Orbax imports it as well
from jax.experimental import multihost_utils

from jaxprobe.errors import InputError, first_line, tell_once

Tell = Callable[[int, Sequence[str]], None]  # shows the user why the job ends: its exit code, and lines
# A process that was killed, or whose machine is gone, ends the others after this long. (JAX itself would after 100 s,
# with a trace of its C++ code.)
HEARTBEAT_SECONDS = 30
# Processes of a job may begin at different times.
START_SECONDS = 300
# A process that fails by itself tells the others, who look this often.
LOOK_SECONDS = 1.0
# How long process 0, which the others hear it from, stays for that.
LEAVE_SECONDS = 5.0
_ENDED, _ALIVE = "jaxprobe/ended", "jaxprobe/alive/"
_GO_ON = "Stored shards are kept: the same command goes on from there."
_LOST = (1, [f"Process 0 does not answer any more: killed, or its machine is gone. {_GO_ON}"])
_exchanges = itertools.count()
_joined = threading.Event()  # set while this process is one of a job
_ending = threading.Lock()  # held by the thread that ends this process


class AgreedError(InputError):
    """An InputError that is raised in every process of the job, with what each of them found."""


def is_main() -> bool:
    """Whether this is the process that prints and writes small files."""
    return jax.process_index() == 0


def start(processes: str, tell: Tell) -> None:
    """Makes this process one of a job, before anything else is asked of JAX.

    Ends it where the others have not come after START_SECONDS.

    Args:
      processes: ``auto`` (Cloud TPU, GKE, SLURM and Open MPI tell), or ``I/N@HOST:PORT``: process I of N, of which
        number 0 listens at HOST:PORT.
      tell: shows the user why it ended.

    Raises:
      InputError: text that is neither, nothing to detect, or an address that can't be used.
    """
    where: dict[str, Any] = {}
    if processes != "auto":
        match = re.fullmatch(r"(\d+)/(\d+)@([^@]+:\d+)", processes)
        if match is None or int(match[1]) >= int(match[2]):
            raise InputError(
                f"--processes {processes} is neither auto nor I/N@HOST:PORT with I below N. For two processes on this "
                "machine give one 0/2@localhost:12345 and the other 1/2@localhost:12345."
            )
        where = {"process_id": int(match[1]), "num_processes": int(match[2]), "coordinator_address": match[3]}
        where["cluster_detection_method"] = "deactivate"
    # JAX's own answer to SIGTERM waits for a training step that asks for it; ours stores what is under way and ends.
    jax.config.update("jax_enable_preemption_service", False)
    late = threading.Timer(START_SECONDS, _give_up, [processes, tell])
    late.daemon = True
    late.start()
    try:
        jax.distributed.initialize(**where, initialization_timeout=2 * START_SECONDS)
    except (ValueError, RuntimeError) as error:
        detect = (
            "Outside of Cloud TPU, GKE and SLURM give I/N@HOST:PORT." if processes == "auto" else "Mend the address."
        )
        raise InputError(f"--processes {processes} can't be used: {first_line(error).rstrip('.')}. {detect}") from error
    finally:
        late.cancel()


def _give_up(processes: str, tell: Tell) -> None:
    # JAX itself would, with a trace of its C++ code.
    tell(
        2,  # as for any input that can't be used
        [
            f"--processes {processes}: the processes did not come together within {START_SECONDS} s. Start all of "
            "them, with one address that all of them reach."
        ],
    )
    sys.stdout.flush()
    os._exit(2)


@contextmanager
def job(processes: str | None, tell: Tell) -> Iterator[None]:
    """Runs the block as one process of a job. None waits for another that failed: all end.

    Args:
      processes: see ``start``; None: this process is alone.
      tell: shows the user why the job ended; called in process 0, or where that is gone.
    """
    if processes is None:
        yield
        return
    start(processes, tell)
    # Gloo, by which CPUs talk, prints to the stdout of C, and ours is for results.
    sys.stdout = os.fdopen(os.dup(1), "w", buffering=1, encoding=sys.stdout.encoding)
    os.dup2(2, 1)
    _joined.set()
    done = threading.Event()
    watch = threading.Thread(target=_watch, args=(done, tell), daemon=True)
    watch.start()
    try:
        yield
        exchange("done")  # until process 0 has written everything, it may still fail
    except InputError:
        raise
    except Exception as error:
        line = f"{type(error).__name__}: {error}"
        if "Gloo" in str(error) or "UNAVAILABLE" in str(error):
            line = f"Another process was killed, or its machine is gone ({error}). {_GO_ON}"
        else:
            traceback.print_exc()
        end(1, [line], tell)
    done.set()
    watch.join()
    _joined.clear()


def end(code: int, lines: Sequence[str], tell: Tell, *, agreed: bool = False) -> None:
    """Ends this process and with it the job: the others follow within seconds. Returns where there is no job.

    Python's own way out would wait for the others, and they for this one.

    Args:
      code: what each process exits with.
      lines: why; told by process 0.
      agreed: whether the others end for the same reason by themselves.
    """
    if not _joined.is_set():
        return
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)  # it is under way
    client = jax_distributed.global_state.client
    with _ending:
        process = jax.process_index()
        named = lines if agreed or process == 0 else [f"Process {process}: {line}" for line in lines]
        try:
            client.key_value_set(_ENDED, json.dumps([code, list(named)]))
            heard = True
        except jax.errors.JaxRuntimeError as error:  # another one ended first, or process 0 is gone
            heard = "ALREADY_EXISTS" in str(error)
        if process == 0 or not heard:
            tell(code, lines)
        _leave(client, code)


def _watch(done: threading.Event, tell: Tell) -> None:
    """Ends this process when another one has said that it ends, or is silent."""
    client = jax_distributed.global_state.client
    heard: dict[str, tuple[str, float]] = {}  # process -> its last sign of life, and when it came
    for beat in itertools.count():
        if done.wait(LOOK_SECONDS):
            return
        try:
            client.key_value_set(f"{_ALIVE}{jax.process_index()}", str(beat), allow_overwrite=True)
            silent = is_main() and _silent(client, heard)
            if silent:
                line = f"Process {silent} is silent for {HEARTBEAT_SECONDS} s: killed, or its machine is gone. {_GO_ON}"
                end(1, [line], tell)
            code, lines = json.loads(client.key_value_try_get(_ENDED))
        except jax.errors.JaxRuntimeError as error:
            if "NOT_FOUND" in str(error):
                continue
            code, lines = _LOST
        with _ending:
            if is_main() or (code, lines) == _LOST:
                tell(code, lines)
            _leave(client, code)


def _silent(client: Any, heard: dict[str, tuple[str, float]]) -> str:
    """The processes without a sign of life for too long."""
    now = time.monotonic()
    beats = {str(process): "" for process in range(jax.process_count())}
    beats |= {key.removeprefix(_ALIVE): beat for key, beat in client.key_value_dir_get(_ALIVE)}
    for process, beat in beats.items():
        if process not in heard or heard[process][0] != beat:
            heard[process] = beat, now
    return ", ".join(process for process, (_, when) in heard.items() if now - when > HEARTBEAT_SECONDS)


def _leave(client: Any, code: int) -> None:
    """Exits at once; process 0 only when the others have heard of it, since they hear it from there."""
    try:
        client.key_value_set(f"{_ENDED}/{jax.process_index()}", "")
        if is_main():
            until = time.monotonic() + LEAVE_SECONDS
            for process in range(1, jax.process_count()):
                left = max(1, int(1000 * (until - time.monotonic())))
                client.blocking_key_value_get(f"{_ENDED}/{process}", left)
            time.sleep(0.5)  # from telling to its end a process needs a moment, and would abort without this one
    except jax.errors.JaxRuntimeError:
        pass
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def exchange(value: Any) -> list[Any]:
    """Every process's JSON value, in the order of the processes. Returns when each of them has come here."""
    name, text = f"jaxprobe/{next(_exchanges)}", json.dumps(value)
    if jax.process_count() == 1:
        return [json.loads(text)]
    client = jax_distributed.global_state.client
    client.key_value_set(f"{name}/{jax.process_index()}", text)
    return [json.loads(_wait_for(client, f"{name}/{process}")) for process in range(jax.process_count())]


def _wait_for(client: Any, key: str) -> str:
    # However long another process works; in pieces, between which this one answers to signals.
    while True:
        try:
            return client.blocking_key_value_get(key, 1000)
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise


@contextmanager
def agreed() -> Iterator[None]:
    """What one process refuses, all refuse: raises an InputError of the block in every process, once all are through.

    Raises:
      AgreedError: what each process found; in a job of one process the error itself.
    """
    if jax.process_count() == 1:
        yield
        return
    problems: tuple[str, ...] = ()
    try:
        yield
    except InputError as error:
        problems = error.problems
    found = {str(process): theirs for process, theirs in enumerate(exchange(problems))}
    if any(found.values()):
        raise AgreedError(*tell_once(found, "Process"))


def check_alike(fingerprints: Sequence[str]) -> None:
    """Raises AgreedError where processes have other settings, another table, model or mesh than process 0."""
    unlike = [process for process, fingerprint in enumerate(fingerprints) if fingerprint != fingerprints[0]]
    if unlike:
        raise AgreedError(
            f"Process {', '.join(map(str, unlike))} has other settings, another table, model or mesh than process 0 "
            f"({fingerprints[unlike[0]]}, not {fingerprints[0]}). Give all of them the same command and files, "
            "and with devices of several sizes a --mesh."
        )


def share(count: int) -> np.ndarray:
    """Which of ``count`` things this process works on: one at least, which another process may then have as well."""
    mine = np.arange(jax.process_index(), count, jax.process_count())
    return mine if len(mine) else np.array([jax.process_index() % count])


def gather_rows(arrays: Mapping[str, np.ndarray], rows: np.ndarray) -> dict[str, np.ndarray]:
    """Whole arrays [N, ...] in every process, of which each process has some rows.

    Args:
      arrays: this process's rows of each array, [n, ...]; none at all where it has no rows.
      rows: [n], where they belong. What several processes have is taken from one of them.
    """
    parts = [dict(arrays) | {"rows": np.asarray(rows)}]
    if jax.process_count() > 1:
        contiguous = {name: np.ascontiguousarray(array) for name, array in parts[0].items()}
        data = np.frombuffer(safetensors.numpy.save(contiguous), np.uint8)
        sizes = exchange(len(data))
        # As bytes: JAX would make float32 of float64.
        every = multihost_utils.process_allgather(np.pad(data, (0, max(sizes) - len(data))))
        parts = [safetensors.numpy.load(part[:size].tobytes()) for part, size in zip(every, sizes, strict=True)]
    parts = [part for part in parts if len(part["rows"])]
    count = 1 + max(int(part["rows"].max()) for part in parts)
    whole = {name: np.empty((count, *part.shape[1:]), part.dtype) for name, part in parts[0].items() if name != "rows"}
    for part in parts:
        for name, array in whole.items():
            array[part["rows"]] = part[name]
    return whole
