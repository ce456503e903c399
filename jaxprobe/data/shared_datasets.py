"""Tables that are Hugging Face data sets: on the hub (hf://datasets/ORG/NAME), or a folder that `datasets` saved.

Only CSV, Parquet and Arrow files are read; the code that a data set may bring is never run.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from jaxprobe.data.columns import read_frame
from jaxprobe.errors import InputError
from jaxprobe.host.network import is_reachable

ADDRESS = "hf://datasets/"
TABLES = ("*.csv", "*.csv.gz", "*.parquet")
# How a split is called, and the side of ours that it is on: validation rows are training rows, as penalties are chosen
# by leave-one-out.
SIDES = {"train": "train", "training": "train", "validation": "train", "valid": "train", "dev": "train", "test": "test"}


def read_hub_dataset(address: str) -> tuple[pd.DataFrame, str, str]:
    """The table at ``hf://datasets/ORG/NAME[@REVISION][/FILE]``, what it is called, and what it was read from.

    Of a data set with several files those of a training and a test side are one table with a column ``split``.

    Raises:
      InputError: no such data set or file, no access, no network, or files that don't make one table.
    """
    from huggingface_hub import constants, errors, snapshot_download

    match = re.fullmatch(re.escape(ADDRESS) + r"([\w.-]+/[\w.-]+?)(?:@([\w.-]+))?(?:/(.+))?", address)
    if match is None:
        raise InputError(
            f"{address} is no data set of a hub. Write hf://datasets/ORG/NAME or hf://datasets/ORG/NAME/FILE."
        )
    name, revision, file = match.groups()
    try:
        folder = snapshot_download(
            name,
            repo_type="dataset",
            revision=revision,
            allow_patterns=[file] if file else list(TABLES),
            endpoint=constants.ENDPOINT,
            local_files_only=not is_reachable(constants.ENDPOINT),
        )
    except errors.GatedRepoError as error:
        raise InputError(
            f"Data set {name}: access is gated. Accept its licence on its hub page, then log in with `hf auth login`."
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise InputError(
            f"Data set {name}: not found, or no such revision. Check the spelling; if it is private, log in with "
            "`hf auth login`."
        ) from error
    except (errors.LocalEntryNotFoundError, errors.HfHubHTTPError, errors.OfflineModeIsEnabled, OSError) as error:
        raise InputError(
            f"Data set {name}: not in the local cache, and the hub can't be reached. Connect to a network, or name a "
            "CSV or Parquet file."
        ) from error
    root = Path(folder)
    files = [path for pattern in TABLES for path in sorted(root.rglob(pattern))]
    if file:
        files = [path for path in files if path.relative_to(root).as_posix() == file]
    if not files:
        raise InputError(f"Data set {name} has no {file or 'CSV or Parquet file'}. Name a file that it has.")
    parts = {path.relative_to(root).as_posix(): path for path in files}
    return _join(parts, name), name.rpartition("/")[2], f"{ADDRESS}{name} at commit {root.name[:12]}"


def is_saved_dataset(folder: Path) -> bool:
    """Whether a folder is one that ``datasets`` wrote by ``save_to_disk``."""
    return (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file()


def read_saved_dataset(folder: Path) -> pd.DataFrame:
    """The table in a folder that ``datasets`` wrote; of several splits one table with a column ``split``.

    Raises:
      InputError: a file that is missing or can't be read, or splits that don't make one table.
    """
    if (folder / "state.json").is_file():
        return _read_arrow(folder)
    splits = _read_json(folder / "dataset_dict.json").get("splits")
    if not isinstance(splits, list) or not all(
        isinstance(split, str) and Path(split).name == split for split in splits
    ):
        raise InputError(f"{folder / 'dataset_dict.json'} names no splits. Save the data set anew with save_to_disk.")
    return _join({split: folder / split for split in splits}, folder.name)


def _join(parts: Mapping[str, Path], name: str) -> pd.DataFrame:
    """One table of several files or folders, each of which is a side of the split."""
    read = lambda path: _read_arrow(path) if path.is_dir() else read_frame(path)
    if len(parts) == 1:
        return read(*parts.values())
    sides = {part: _side(part) for part in parts}
    if None in sides.values() or len({Path(part).suffix for part in parts}) > 1:
        raise InputError(f"{name} has several tables: {', '.join(parts)}. Name the one to read.")
    training_first = sorted(parts, key=lambda part: sides[part] == "test")
    frames = [(read(parts[part]), sides[part]) for part in training_first]
    columns = list(frames[0][0].columns)
    if any(list(frame.columns) != columns for frame, _ in frames):
        raise InputError(f"{name}: {', '.join(parts)} have different columns. Name the one to read.")
    if set(sides.values()) == {"train"} or "split" in columns:
        return pd.concat([frame for frame, _ in frames], ignore_index=True)
    return pd.concat([frame.assign(split=side) for frame, side in frames], ignore_index=True)


def _side(part: str) -> str | None:
    """The side that a file's or a split's name says: data/train-00000-of-00001.parquet, test.csv."""
    found = {SIDES[word] for word in re.split(r"[^a-z]+", part.lower()) if word in SIDES}
    return found.pop() if len(found) == 1 else None


def _read_json(path: Path) -> dict:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} can't be read: {error}. Save the data set anew with save_to_disk.") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} holds no JSON object. Save the data set anew with save_to_disk.")
    return content


def _read_arrow(folder: Path) -> pd.DataFrame:
    import pyarrow as pa

    listed: Sequence = _read_json(folder / "state.json").get("_data_files") or ()
    names = [str(entry.get("filename", "")) if isinstance(entry, dict) else "" for entry in listed]
    if not names or any(Path(name).name != name or not name for name in names):
        raise InputError(f"{folder / 'state.json'} names no files of its folder. Save the data set anew.")
    tables = []
    for name in names:
        try:
            with pa.memory_map(str(folder / name)) as source:
                tables.append(pa.ipc.open_stream(source).read_all().to_pandas())
        except (OSError, pa.ArrowException) as error:
            raise InputError(f"{folder / name} can't be read: {error}. Save the data set anew.") from error
    return pd.concat(tables, ignore_index=True)
