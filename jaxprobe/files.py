"""Files that are whole or absent, addresses that are none, and how two settings differ."""

import json
import os
import re
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any

from jaxprobe.errors import InputError

_ADDRESS = re.compile("[a-z0-9]{2,}:/")  # a Path makes one slash of two


def refuse_address(path: str | PathLike) -> None:
    """Raises InputError for an address (``gs://...``): what lies there can't be mapped, locked or renamed."""
    if _ADDRESS.match(str(path)):
        raise InputError(
            f"{path} is an address, and jaxprobe needs files that can be mapped, locked and renamed. Mount the bucket "
            "as a folder (gcsfuse, mountpoint-s3), or copy it to a disk that every process sees, and name that folder."
        )


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give the name of a temporary file beside `path`; move it to `path` on success, remove it on failure."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # The suffix stays last: writers such as matplotlib choose the format by it.
    temporary = path.with_name(f".{path.stem}.{secrets.token_hex(4)}{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


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
