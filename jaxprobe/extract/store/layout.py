"""What a store is on disk, and when it is whole: its manifest, its shards' names and their checksums.

A store is a folder, on a disk or in a bucket:
  manifest.json  what the states are of, their shape and dtype, and how the rows are spread over shards
  0/, 1/, ...    one Orbax checkpoint a shard, complete or absent. Its leaves: `rows` [E], the table rows of its
                 entities; an array [E, width] for each state; `checksums`, one for each of the others and one of itself
  writer.lock    held by the process that writes (jaxprobe.extract.store.writer); not in a bucket
"""

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import ml_dtypes  # noqa: F401  (registers bfloat16 with NumPy)
import numpy as np

from jaxprobe.errors import InputError
from jaxprobe.host.paths import AnyPath, replacing
from jaxprobe.settings import mend_command
from jaxprobe.sites import parse_sites

FORMAT = 1
DTYPES = ("float32", "bfloat16")
MANIFEST = "manifest.json"
COMMITTED = "commit_success.txt"  # the last file that Orbax writes
# Bytes of Orbax's own files; they vary with the order in which it wrote. Measured for 3 to 31 states.
_BYTES_PER_SHARD, _BYTES_PER_LEAF = 3_000, 1_000


class DamagedError(InputError):
    """Stored data that is not what was written. ``shards`` are the damaged ones; empty when it is the manifest."""

    def __init__(self, problem: str, shards: tuple[int, ...] = ()):
        super().__init__(problem)
        self.shards = shards


@dataclass(frozen=True)
class Manifest:
    """What a store holds.

    Attributes:
      settings: what the states depend on: weights, tokens, prompt; never hardware or batch shape.
      states: names of sites (jaxprobe/sites.py), in model order.
      width: D, that of the residual stream.
      dtype: "float32" or "bfloat16".
      rows: N, rows of the table.
      shards: number of shards.
      row_order: digest of which rows each shard holds.
      versions: libraries that began the store; they don't bind who continues it.
      source: the model's name and revision then, for information.
      widths: of the states that are not D wide: state -> numbers a row.
    """

    settings: Mapping[str, Any]
    states: tuple[str, ...]
    width: int
    dtype: str
    rows: int
    shards: int
    row_order: str
    versions: Mapping[str, str]
    source: Mapping[str, str | None]
    widths: Mapping[str, int] = field(default_factory=dict)

    def key(self) -> dict[str, Any]:
        """All that must be equal for two runs to share a store."""
        return {name: value for name, value in _fields(self).items() if name not in ("versions", "source")}

    def width_of(self, state: str) -> int:
        """Numbers in one row of a state."""
        return self.widths.get(state, self.width)


def _fields(manifest: Manifest) -> dict[str, Any]:
    # Stores of residual streams alone, older ones among them, have nothing to say of other widths.
    return {name: value for name, value in asdict(manifest).items() if name != "widths" or value}


def write_manifest(path: AnyPath, manifest: Manifest) -> None:
    """Write the manifest with a checksum of its own, whole or not at all."""
    body = {"format": FORMAT} | _fields(manifest)
    body["crc32"] = zlib.crc32(canonical(body))
    with replacing(path / MANIFEST) as temporary:
        temporary.write_text(json.dumps(body, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_manifest(path: AnyPath) -> Manifest:
    """The manifest of the store at ``path``.

    Raises:
      InputError: there is none, a newer jaxprobe wrote it, or it names what is no state; DamagedError: it can't be
        read.
    """
    file = path / MANIFEST
    if not file.is_file():
        raise InputError(f"{path} holds no stored activations ({MANIFEST} is missing). Name a finished run's folder.")
    try:
        body = json.loads(file.read_text(encoding="utf-8"))
        version = body.pop("format")
        crc32 = body.pop("crc32", None)
        if version == FORMAT and crc32 == zlib.crc32(canonical({"format": version} | body)):
            manifest = Manifest(**(body | {"states": tuple(body["states"])}))
            if _has_shape(manifest):
                parse_sites(manifest.states)  # their names become paths: of leaves, and of exported files
                return manifest
    except InputError as error:
        raise InputError(f"{file} can't be used: {error} Remove that folder. {remedy(path)}") from error
    except (ValueError, AttributeError, KeyError, TypeError):
        version = None
    if isinstance(version, int) and version > FORMAT:
        raise InputError(
            f"{path} was written by a newer jaxprobe: its format is {version}, this version reads up to {FORMAT}. "
            "Update jaxprobe, or name another folder."
        )
    raise DamagedError(f"{file} is damaged. {remedy(path, '--repair')}")


def remedy(path: AnyPath, *options: str) -> str:
    """What to do about a store that is damaged or not complete: the command, where it is a run's."""
    if (path.parent / "config.json").is_file():
        return f"What is missing or damaged is computed anew by: {mend_command(path.parent, *options)}"
    return f"{'Remove what is damaged and extract' if options else 'Extract'} the same again into this folder."


def _has_shape(manifest: Manifest) -> bool:
    """Whether its numbers are numbers: a manifest may come from anyone."""
    numbers = (manifest.width, manifest.rows, manifest.shards, *manifest.widths.values())
    return (
        all(type(number) is int and 0 < number < 2**31 for number in numbers)
        and manifest.dtype in DTYPES
        and len(set(manifest.states)) == len(manifest.states)
        and set(manifest.widths) <= set(manifest.states)
    )


def is_complete(path: AnyPath, shard: int) -> bool:
    """Whether the shard is whole: on a disk Orbax gives a checkpoint its name, by a rename, after its last file.

    In a bucket it has its name from the start, and the last object says that the others are there.
    """
    return (path / str(shard) / COMMITTED).exists()


def checksums(manifest: Manifest, shard: int, leaves: Mapping[str, np.ndarray]) -> np.ndarray:
    """uint32 CRCs of a shard's leaves (``rows`` and the states), then one of those numbers.

    They start from the store's key, the shard's number and the leaf's name, so that a sound leaf in the wrong place
    is found as well.
    """
    seed = zlib.crc32(canonical(manifest.key()))
    values = np.empty(len(manifest.states) + 2, np.uint32)
    for i, name in enumerate(("rows", *manifest.states)):
        values[i] = checksum(seed, shard, name, leaves[name])
    values[-1] = checksum(seed, shard, "checksums", values[:-1])
    return values


def size_on_disk(rows: int, widths: Sequence[int], dtype: str, shards: int = 1) -> int:
    """Bytes that a store of ``rows`` rows of states of these widths takes."""
    values = rows * (sum(widths) * np.dtype(dtype).itemsize + 4)
    return values + shards * (_BYTES_PER_SHARD + _BYTES_PER_LEAF * (len(widths) + 2))


def checksum(seed: int, shard: int, name: str, values: np.ndarray) -> int:
    """CRC-32 of a state's values in a shard, told apart from the same values in another shard, state or store."""
    data = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
    return zlib.crc32(data, zlib.crc32(f"{shard}/{name}".encode(), seed))


def canonical(value: Mapping[str, Any]) -> bytes:
    """The JSON of a mapping, the same whatever the order of its names."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False).encode()
