"""Bringing the paper's tables from the reference repository: the only code for data that uses a network."""

import hashlib
import http.client
import os
import urllib.request
from pathlib import Path

from jaxprobe.errors import InputError
from jaxprobe.host.paths import AnyPath, as_path, replacing

COMMIT = "a572f162948ee185e9c842eb5fa15e23aad3d218"
SOURCE = f"https://raw.githubusercontent.com/wesg52/world-models/{COMMIT}/data/entity_datasets"
SHA256 = {
    "world_place": "b1608f9410b48fe4ca71836d81baa5aa20d34d319cd7f98a725fd8545bdce040",
    "us_place": "95af51d5b80ba1a0085c431583294f4917b95628869130d65762a7e8bf6eff6e",
    "nyc_place": "72558b55c86e0f113fdb35f3cd7ef0dfb439820e36b47e654e5169cb094445cf",
    "art": "37ef497d0c2871c074c166a0c4f229c460aca092a90ecc83bd6f9d0f12bc3b41",
}
GIT_BLOB = {
    "historical_figure": "4ed5329f7192b288b0fe784ca57db9bb9cb78010",
    "headline": "94f86281b95e5407f276ea3d663b256349f45f54",
}
LARGEST_BYTES = 100_000_000  # what the host takes at most for one file; the tables have 3 to 8 million
TIMEOUT_S = 60


def fetch(name: str, data_dir: str | Path | None = None) -> AnyPath:
    """Puts one of the paper's tables into a folder, unless it is there already, and returns its path.

    Nothing is trusted on first use: what arrives is kept only if it is the file of the pinned commit. Four tables have
    been read and are pinned by SHA-256. The other two were not at hand when this was written; they are pinned by their
    blob id in the commit's tree, which is git's own SHA-1 of the content. The file appears under its name only when it
    is whole and right.

    Args:
      name: a table of the paper.
      data_dir: the folder (path or gs://...), made where it does not exist; None for the one that the environment names
        as JAXPROBE_DATA.
    Raises:
      InputError: no such table, no folder, no network, or content that is not the pinned one.
    """
    if name not in SHA256 | GIT_BLOB:
        raise InputError(
            f"No table {name!r} to fetch; the ones there are: {', '.join(SHA256 | GIT_BLOB)}. "
            "The data set cities comes with the package."
        )
    folder = data_dir or os.environ.get("JAXPROBE_DATA")
    if not folder:
        raise InputError("No folder is named to put the table in. Name one with --data-dir or JAXPROBE_DATA.")
    path = as_path(folder) / f"{name}.csv"
    if path.exists():
        if not _is_pinned(name, path.read_bytes()):
            raise InputError(f"{path} exists and is not the paper's table. Move it away, or name another folder.")
        return path
    content = _download(f"{SOURCE}/{name}.csv")
    if not _is_pinned(name, content):
        raise InputError(
            f"{SOURCE}/{name}.csv gave {len(content):,} bytes that are not the pinned table. Nothing was kept. "
            "A proxy or an interrupted transfer may have changed it; try again."
        )
    try:
        with replacing(path) as temporary:
            temporary.write_bytes(content)
    except OSError as error:
        raise InputError(f"{path} could not be written: {error}. Name another folder with --data-dir.") from error
    return path


def _is_pinned(name: str, content: bytes) -> bool:
    if name in SHA256:
        return hashlib.sha256(content).hexdigest() == SHA256[name]
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest() == GIT_BLOB[name]


def _download(url: str) -> bytes:
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as response:
            return response.read(LARGEST_BYTES)
    # URLError, HTTPError and time-outs are OSErrors; a connection cut short is an HTTPException.
    except (OSError, http.client.HTTPException) as error:
        raise InputError(f"{url} could not be read: {error}. This command needs a network; try again.") from error
