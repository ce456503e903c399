"""Local files and objects of a bucket by one set of names, files that are whole or absent, and how two settings differ.

A path on this machine is a ``pathlib.Path``; an address ``gs://BUCKET/NAME`` is an ``etils.epath.Path``, which has the
same methods and which Orbax takes as well. `as_path` makes them, and the functions beside it are for what an object
store can't do: map a file, rename one, or say how much room there is.
"""

import errno
import functools
import json
import os
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from os import PathLike
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from jaxprobe.errors import InputError

if TYPE_CHECKING:
    AnyPath = Path  # an epath.Path has the same methods
else:
    AnyPath = PurePath  # both are one: importing epath would make `jaxprobe --help` wait

_ADDRESS = re.compile("([a-z0-9]{2,}):/+")  # a Path makes one slash of two
_LONGEST_NAME = 240  # bytes; file systems take 255, and temporary names are longer
_REQUESTS = 16  # of a bucket, at once


def as_path(path: str | PathLike) -> AnyPath:
    """A path on this machine, or the address of something in a bucket.

    Raises:
      InputError: an address of a kind that is not supported; a bucket that is not there or can't be reached; or gcsfs,
        by which buckets are read and written, is not installed.
    """
    text = str(path)
    match = _ADDRESS.match(text)
    if match is None:
        return Path(path)
    if match[1] != "gs":
        raise InputError(
            f"{path} is an address of a kind that jaxprobe can't use; gs://BUCKET/NAME is one that it can. Mount the "
            "bucket as a folder (mountpoint-s3), or copy it to a disk that every process sees, and name that folder."
        )
    address = text[match.end() :].strip("/")
    if not address:
        raise InputError(f"{path} names no bucket. Write gs://BUCKET/NAME.")
    _check_bucket(address.partition("/")[0])
    from etils import epath

    return epath.Path(f"gs://{address}")


def is_address(path: str | PathLike) -> bool:
    """Whether this is the address of something in an object store, of whatever kind, and not a path."""
    return _ADDRESS.match(str(path)) is not None


def is_local(path: AnyPath) -> bool:
    """Whether the path is one of this machine's file system, which can map, lock and rename."""
    return isinstance(path, Path)


def absolute(path: str | PathLike) -> AnyPath:
    """The path from the root of the file system; an address is that already."""
    path = as_path(path)
    return path.absolute() if is_local(path) else path


def _object_store() -> Any:
    """gcsfs, by which epath reaches buckets as well."""
    try:
        import gcsfs  # noqa: F401
    except ImportError:
        raise InputError("gs:// needs gcsfs, which is not installed: pip install 'jaxprobe[gcs]'") from None
    import fsspec

    # It keeps what it has listed for ever, and would never see what another process writes.
    fsspec.config.conf.setdefault("gcs", {})["use_listings_cache"] = False
    return fsspec.filesystem("gcs")


@functools.cache
def _check_bucket(bucket: str) -> None:
    store = _object_store()
    try:
        found = store.exists(bucket)
    except Exception as error:  # gcsfs, google-auth and aiohttp raise all kinds
        raise InputError(
            f"gs://{bucket} can't be read: {str(error).strip() or type(error).__name__}. Mend the name, or log in with "
            "`gcloud auth application-default login`."
        ) from error
    if not found:
        raise InputError(f"There is no bucket gs://{bucket} that these credentials can see. Make it, or mend the name.")


# ---- Reading ------------------------------------------------------------------------------------------------------


@contextmanager
def local_copy(path: AnyPath) -> Iterator[Path]:
    """A file on this machine for as long as the block lasts: the file itself, or a copy of an object."""
    if is_local(path):
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / path.name
        _object_store().get_file(str(path), str(copy))
        yield copy


def file_size(path: AnyPath) -> int:
    """Bytes of a file."""
    stat = path.stat()
    return stat.st_size if is_local(path) else stat.length  # type: ignore[attr-defined]


def read_ranges(path: AnyPath, ranges: Iterable[tuple[int, int]]) -> Iterator[bytes]:
    """The bytes of a file from ``start`` to ``stop``, for each of the ranges; from a bucket several at once."""
    if is_local(path):
        with path.open("rb") as file:
            for start, stop in ranges:
                file.seek(start)
                yield file.read(stop - start)
        return
    store = _object_store()
    with ThreadPoolExecutor(_REQUESTS) as pool:
        yield from pool.map(lambda part: store.cat_file(str(path), *part), ranges)


# ---- Writing ------------------------------------------------------------------------------------------------------


@contextmanager
def replacing(path: str | PathLike) -> Iterator[Path]:
    """Give the name of a temporary file beside `path`; move it to `path` on success, remove it on failure.

    For an address the file is one of this machine, which is uploaded on success: an object is whole or absent.
    """
    path = as_path(path)
    if not is_local(path):
        with tempfile.TemporaryDirectory() as folder:
            temporary = Path(folder) / path.name
            yield temporary
            _object_store().put_file(str(temporary), str(path))
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    # The suffix stays last: writers such as matplotlib choose the format by it.
    temporary = path.with_name(f".{path.stem}.{secrets.token_hex(4)}{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def check_out(out: AnyPath, *, file: bool = False) -> None:
    """Refuses a folder (or a file) that can't be written: by a trial that leaves nothing behind.

    Raises:
      InputError: a file where a folder is wanted or the other way round, a name that the file system does not take,
        or a place that may not be written to.
    """
    if not is_local(out):
        return
    wanted, other = ("file", "folder") if file else ("folder", "file")

    def refused(fact: str) -> InputError:
        return InputError(f"{out} {fact}. Name another {wanted} with --out.")

    place = absolute(out)
    if "\0" in str(place):
        raise refused("holds a NUL character")
    missing = []
    for there in (place, *place.parents):
        try:
            is_folder = stat.S_ISDIR(there.stat().st_mode)
            break
        except FileNotFoundError as error:
            if there.is_symlink():
                raise refused(f"can't be used: {there} is a link to nothing") from error
            missing.append(there.name)
        except NotADirectoryError:
            missing.append(there.name)  # below a file, which is found next
        except OSError as error:
            looped = error.errno == errno.ELOOP
            reason = f"{there} is a link to itself" if looped else f"{error.strerror}"
            raise refused(f"can't be used: {reason}") from error
    if not missing and is_folder == file:
        raise refused(f"is a {other}, wanted a {wanted}")
    if missing and not is_folder:
        raise refused(f"lies below {there}, which is a file")
    if long := [name for name in missing if len(os.fsencode(name)) > _LONGEST_NAME]:
        raise refused(f"has a name of {len(os.fsencode(long[0]))} bytes; file systems take {_LONGEST_NAME}")
    if not missing and (file or (there / "config.json").exists()):
        return  # a finished run may lie where nothing can be written; it is only read then
    # In a folder of its own: other processes of this job are trying the same.
    try:
        with tempfile.TemporaryDirectory(prefix=".jaxprobe-", dir=there) as own:
            for name in missing[-1:]:
                Path(own, name).mkdir()
    except OSError as error:
        raise refused(f"can't be made in {there}: {error.strerror}") from error


def remove_folder(path: AnyPath) -> None:
    """Remove a folder and all that is in it."""
    if is_local(path):
        shutil.rmtree(path)
    else:
        path.rmtree()  # type: ignore[attr-defined]


# ---- Settings -----------------------------------------------------------------------------------------------------


def differences(existing: Mapping[str, Any], wanted: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Lines `a.b: old there, new wanted` for every leaf that differs; an absent one reads (absent)."""
    for name in dict.fromkeys((*existing, *wanted)):
        old, new = existing.get(name, _ABSENT), wanted.get(name, _ABSENT)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            yield from differences(old, new, f"{prefix}{name}.")
        # What was read from JSON has lists where what is to be written has tuples.
        elif _as_json(old) != _as_json(new):
            yield f"  {prefix}{name}: {_as_json(old)} there, {_as_json(new)} wanted"


_ABSENT = object()


def _as_json(value: Any) -> str:
    return "(absent)" if value is _ABSENT else json.dumps(value, ensure_ascii=False)
