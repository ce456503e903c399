"""Writing hidden states to disk as they come, in shards that are complete or absent; a start goes on where one ended.

The folder's layout stands at the top of jaxprobe.extract.store.layout.
"""

import errno
import hashlib
import json
import os
import secrets
import shutil
import signal
import socket
import threading
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from io import StringIO, TextIOBase
from os import PathLike
from typing import Any

import jax
import numpy as np

from jaxprobe.errors import InputError, first_line
from jaxprobe.extract.store.layout import (
    COMMITTED,
    DTYPES,
    MANIFEST,
    DamagedError,
    Manifest,
    checksums,
    is_complete,
    read_manifest,
    size_on_disk,
    write_manifest,
)
from jaxprobe.extract.store.reader import verify_shards
from jaxprobe.extract.store.shards import UNFINISHED, ShardWriter
from jaxprobe.host.paths import AnyPath, absolute, differences, is_local, remove_folder
from jaxprobe.host.processes import agreed, exchange, is_main
from jaxprobe.sites import parse_sites

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

LOCK = "writer.lock"
SHARED_SECONDS, SEEN_SECONDS = 10, 60  # how long a network file system may take to show a new file, or a new shard
_NO_LOCK = "{path} can't be locked ({reason}): let only one job write to it."


def check_space(path: str | PathLike, size: int) -> None:
    """Raises InputError where the file system of ``path`` (which need not exist) has less than ``size`` bytes free.

    A bucket has no such bound.
    """
    folder = absolute(path)
    if not is_local(folder):
        return
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < size:
        raise InputError(
            f"The hidden states need {size / 1e9:.2f} GB on disk and {folder} has {free / 1e9:.2f} GB free. "
            "Free some space, name a folder on another disk, store bfloat16 (half of float32), or use --no-store."
        )


class ActivationStore:
    """A folder that takes hidden states shard by shard. Made by ``ActivationStore.open``; use it in a ``with`` block.

    Attributes:
      path: the folder.
      manifest: what it holds.
      dropped: shards that ``open(repair=True)`` found damaged; they are among the missing now.
    """

    def __init__(
        self,
        path: AnyPath,
        manifest: Manifest,
        rows: Sequence[np.ndarray],
        lock: TextIOBase | None,
        dropped: tuple[int, ...],
    ):
        self.path = path
        self.manifest = manifest
        self.dropped = dropped
        self._rows = rows
        self._lock = lock
        self._missing = {shard for shard in range(manifest.shards) if not is_complete(path, shard)}
        self._in_flight: tuple[int, Any] | None = None  # a shard and Orbax's promise for it
        self._writer = ShardWriter()

    @classmethod
    def open(
        cls,
        path: str | PathLike,
        settings: Mapping[str, Any],
        rows: Sequence[np.ndarray],
        states: Sequence[str],
        width: int,
        dtype: str,
        *,
        widths: Mapping[str, int] | None = None,
        source: Mapping[str, str | None] | None = None,
        repair: bool = False,
    ) -> "ActivationStore":
        """Makes the store, or goes on with the one that is there.

        Args:
          path: a folder, or its address in a bucket; made where it is absent.
          settings: what the states depend on, as JSON values: weights digest, tokens, prompt; not hardware.
          rows: table rows of each shard; together 0..N-1, each once.
          states: names of sites.
          width: D.
          dtype: "float32" or "bfloat16".
          widths: of the states that are not D wide.
          source: the model's name and revision, to be kept for information; not compared.
          repair: first read everything that is there and drop what is damaged.

        Raises:
          InputError: not a folder, not a store, other settings, a newer format, another writer, no permission, or too
            little space for what is missing. DamagedError: the manifest is damaged.
        """
        if dtype not in DTYPES:
            raise InputError(
                f"States can't be stored as {dtype} (activations beyond 65,504 overflow float16). Use one of "
                f"{', '.join(DTYPES)}."
            )
        path = absolute(path)  # which Orbax asks for
        wanted = _manifest(settings, rows, states, width, dtype, widths, source)
        finished = _check_folder(path, wanted, repair)
        lock = _take_lock(path, needed=repair or not finished)
        try:
            dropped = _prepare(path, wanted, repair) if lock else ()
            missing = [rows[shard] for shard in range(len(rows)) if not is_complete(path, shard)]
            if missing:
                each = [wanted.width_of(state) for state in states]
                check_space(path, size_on_disk(sum(map(len, missing)), each, dtype, len(missing)))
        except BaseException:
            _release(lock)
            raise
        return cls(path, wanted, rows, lock, dropped)

    @property
    def missing(self) -> tuple[int, ...]:
        """Shards that are not known to be on disk, in order."""
        return tuple(sorted(self._missing))

    @property
    def complete(self) -> bool:
        """Whether every shard is on disk."""
        return not self._missing

    def write(self, shard: int, states: Mapping[str, np.ndarray]) -> None:
        """Hands a missing shard over to be written while the caller goes on.

        One shard is written at a time: the call waits for the one before it, so that memory never holds more than two.
        The arrays must not be changed afterwards.

        Args:
          shard: which one.
          states: state -> [E, D] in the store's dtype.

        Raises:
          InputError: the shard before this one could not be written (a full disk, say); those before it are safe.
        """
        self._check_shard(shard, states)
        leaves = {name: np.ascontiguousarray(states[name]) for name in self.manifest.states}
        leaves["rows"] = self._rows[shard].astype(np.int32)
        leaves["checksums"] = checksums(self.manifest, shard, leaves)
        self.wait()
        try:
            # Orbax takes a full disk badly: it leaves a part of the shard, and threads that print to the terminal.
            size = sum(leaf.nbytes for leaf in leaves.values())
            if is_local(self.path) and shutil.disk_usage(self.path).free < size:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            with _uninterrupted():
                self._in_flight = (shard, self._writer.start(self.path / str(shard), leaves))
        except Exception as error:
            raise self._not_written(shard, error) from error

    def wait(self) -> None:
        """Waits until what was handed over is on disk. Raises InputError where it could not be written."""
        if self._in_flight is None:
            return
        shard, promise = self._in_flight
        try:
            promise.result()
        except Exception as error:
            self._in_flight = None
            raise self._not_written(shard, error) from error
        # Only now: an interrupt while it waits leaves the shard to the wait in ``close``.
        self._in_flight = None
        self._missing.discard(shard)

    def wait_for_all(self) -> None:
        """Waits until every process of the job has written its shards and this one sees them all."""
        self.wait()
        exchange("written")
        until = time.monotonic() + SEEN_SECONDS
        while self._missing:
            self._missing = {shard for shard in self._missing if not is_complete(self.path, shard)}
            if self._missing and time.monotonic() > until:
                raise InputError(
                    f"{self.path} lacks shards {', '.join(map(str, sorted(self._missing)))} as process "
                    f"{jax.process_index()} sees it, and another process wrote them. Use storage that all see alike."
                )
            time.sleep(0.1 if self._missing else 0)

    def close(self) -> None:
        """Waits for the shard in flight and lets other processes write."""
        try:
            self.wait()
        finally:
            self._writer.close()
            _release(self._lock)
            self._lock = None

    def __enter__(self) -> "ActivationStore":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _check_shard(self, shard: int, states: Mapping[str, np.ndarray]) -> None:
        if shard not in self._missing or (self._in_flight and self._in_flight[0] == shard):
            raise ValueError(f"shard {shard} is not missing")
        if set(states) != set(self.manifest.states):
            raise ValueError(f"shard {shard} has states {', '.join(states)}, not {', '.join(self.manifest.states)}")
        for name, values in states.items():
            expected = ((len(self._rows[shard]), self.manifest.width_of(name)), self.manifest.dtype)
            if (values.shape, values.dtype.name) != expected:
                raise ValueError(f"state {name!r} of shard {shard} is {values.shape} {values.dtype}, not {expected}")

    def _not_written(self, shard: int, error: Exception) -> InputError:
        safe = self.manifest.shards - len(self._missing)
        # Orbax and tensorstore wrap the system's error in their own words.
        full = os.strerror(errno.ENOSPC) in str(error) or getattr(error, "errno", None) == errno.ENOSPC
        reason = "the disk is full" if full else first_line(error)
        return InputError(
            f"Shard {shard} could not be written to {self.path}: {reason}. {safe} of {self.manifest.shards} shards are "
            f"safe. {'Free some space' if full else 'Mend the cause'} and run the same command again; it goes on there."
        )


def open_together(
    path: str | PathLike, settings: Mapping[str, Any], rows: Sequence[np.ndarray], *shape: Any, **options: Any
) -> ActivationStore:
    """``ActivationStore.open`` by all processes of a job: the first one locks and prepares the folder, the others join.

    Raises:
      InputError: as ``open``, or the folder is not the same one for all processes.
    """
    if jax.process_count() == 1:
        return ActivationStore.open(path, settings, rows, *shape, **options)
    store, folder = None, absolute(path)
    try:
        with agreed():
            store = ActivationStore.open(path, settings, rows, *shape, **options) if is_main() else None
        _check_shared(folder)
        missing, dropped = exchange([store.missing, store.dropped] if store else None)[0]
        if store is None:
            manifest = _manifest(settings, rows, *shape, options.get("widths"), options.get("source"))
            store = ActivationStore(folder, manifest, rows, None, tuple(dropped))
        store._missing = set(missing)  # as process 0 sees it; a network file system may show others an older state
        return store
    except BaseException:
        if store is not None:
            store.close()
        raise


def _check_shared(path: AnyPath) -> None:
    """Refuses a folder that is another one for this process than for process 0, or that it can't write to."""
    mine = path / f".process-{jax.process_index()}-{secrets.token_hex(8)}"
    try:
        with agreed():
            try:
                mine.touch()
            except FileNotFoundError:  # not shared: said below
                pass
            except OSError as error:
                reason = error.strerror or error
                raise InputError(
                    f"{path} can't be written to on {socket.gethostname()}: {reason}. Name another folder."
                ) from error
        first = path / exchange(mine.name)[0]
        with agreed():
            until = time.monotonic() + SHARED_SECONDS
            while not first.exists():
                if time.monotonic() > until:
                    raise InputError(
                        f"{path} on {socket.gethostname()} is not the folder that process 0 writes to. Name one on "
                        "storage that all processes share, or keep no states (--no-store)."
                    )
                time.sleep(0.1)
    finally:
        mine.unlink(missing_ok=True)


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Holds Ctrl-C and SIGTERM back until the block ends.

    An exception in the middle of starting a save leaves Orbax's thread waiting, and with it the process, for minutes.
    """
    if threading.current_thread() is not threading.main_thread():  # where signals are never handled
        yield
        return
    received: list[int] = []
    numbers = [number for number in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(number) is not None]
    handlers = [signal.signal(number, lambda number, frame: received.append(number)) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, handlers, strict=True):
            signal.signal(number, handler)
        for number in received[:1]:
            signal.raise_signal(number)


def _manifest(
    settings: Mapping[str, Any],
    rows: Sequence[np.ndarray],
    states: Sequence[str],
    width: int,
    dtype: str,
    widths: Mapping[str, int] | None,
    source: Mapping[str, str | None] | None,
) -> Manifest:
    parse_sites(states)
    order = np.concatenate(rows)
    if not np.array_equal(np.sort(order), np.arange(len(order))):
        raise ValueError("the shards' rows are not 0..N-1, each once")
    digest = hashlib.sha256()
    for shard in rows:
        digest.update(f"{len(shard)}:".encode() + shard.astype("<i8").tobytes())
    return Manifest(
        settings=json.loads(json.dumps(settings)),  # as it will be read back
        states=tuple(states),
        width=width,
        dtype=dtype,
        rows=len(order),
        shards=len(rows),
        row_order=digest.hexdigest()[:16],
        versions={name: version(name) for name in ("jaxprobe", "jax", "orbax-checkpoint")},
        source=dict(source or {}),
        widths=dict(widths or {}),
    )


def _check_folder(path: AnyPath, wanted: Manifest, repair: bool) -> bool:
    """Refuses a folder that this store can't be in; returns whether all of it is there. Writes nothing."""
    try:
        is_folder, exists = path.is_dir(), path.exists()
    except OSError as error:
        raise InputError(f"{path} can't be read: {error.strerror}. Name another folder.") from error
    if exists and not is_folder:
        raise InputError(f"{path} is a file; the activations need a folder. Name another one.")
    stored = _stored_manifest(path, repair)
    if stored is None:
        own = (LOCK, MANIFEST, *map(str, range(wanted.shards))) if repair else (LOCK,)
        found = sorted(entry.name for entry in path.iterdir()) if is_folder else []
        found = [name for name in found if name not in own and not name.startswith(".")]
        if found:
            raise InputError(
                f"{path} holds other files ({', '.join(found[:3])}{', ...' if len(found) > 3 else ''}) and no "
                "activations. Name an empty or a new folder."
            )
        return False
    lines = list(differences(stored.key(), wanted.key()))
    if lines:
        raise InputError(
            f"{path} holds activations that were made with other settings. Name another folder, or remove this one. "
            "What differs:\n" + "\n".join(lines)
        )
    return all(is_complete(path, shard) for shard in range(wanted.shards))


def _stored_manifest(path: AnyPath, repair: bool) -> Manifest | None:
    """The manifest that is there; None where there is none, or one that is to be repaired."""
    if not (path / MANIFEST).exists():
        return None
    try:
        return read_manifest(path)
    except DamagedError:
        if repair:
            return None
        raise


def _take_lock(path: AnyPath, needed: bool) -> TextIOBase | None:
    """Locks the folder for writing, until the process ends or releases it.

    Returns None where nothing will be written and the folder is not writable (a finished store on a read-only disk) or
    is in a bucket. What is written to a bucket can't be locked.
    """
    if not is_local(path):
        if not needed:
            return None
        warnings.warn(_NO_LOCK.format(path=path, reason="a bucket has no locks"), stacklevel=4)
        return StringIO()
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = open(path / LOCK, "a+", encoding="utf-8")  # noqa: SIM115  (open as long as the store is)
    except OSError as error:
        if not needed:
            return None
        raise InputError(f"{path} can't be written to: {error.strerror}. Name another folder.") from error
    try:
        if fcntl is None:
            raise OSError(errno.ENOSYS, "no flock on this system")
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        lock.close()
        raise InputError(
            f"Another process is writing to {path}. Wait until it ends (or end it), or name another folder."
        ) from error
    except OSError as error:
        warnings.warn(_NO_LOCK.format(path=path, reason=error.strerror), stacklevel=4)
    return lock


def _release(lock: TextIOBase | None) -> None:
    if lock is not None:
        lock.close()


def _prepare(path: AnyPath, wanted: Manifest, repair: bool) -> tuple[int, ...]:
    """With the lock held: manifest in place, remains of an interrupted run gone, damaged shards dropped (returned)."""
    # Checked again: another process may have begun the store before the lock was taken.
    _check_folder(path, wanted, repair)
    if _stored_manifest(path, repair) is None:
        write_manifest(path, wanted)
    complete = [shard for shard in range(wanted.shards) if is_complete(path, shard)]
    damaged: tuple[int, ...] = ()
    if repair:
        try:
            verify_shards(path, wanted, complete)
        except DamagedError as error:
            damaged = error.shards
    for shard in damaged:
        # Without its last file a shard is not complete, so a kill between these two steps leaves no half shard.
        (path / str(shard) / COMMITTED).unlink()
    remains = [path / str(shard) for shard in range(wanted.shards) if not is_complete(path, shard)]
    for folder in (*remains, *path.glob(UNFINISHED)):
        if folder.exists():
            remove_folder(folder)
    return damaged
