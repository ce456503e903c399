"""A run's settings: one frozen dataclass behind the command line, config.json and the Python API."""

import dataclasses
import hashlib
import importlib.metadata
import json
import re
from pathlib import Path, PurePath
from typing import Any, Literal

from jaxprobe.errors import InputError
from jaxprobe.host.paths import AnyPath, as_path


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """Read a model at each name's last token, fit ridge probes on every layer, and write the scores and a report."""

    model: str
    """'demo', a Hugging Face folder (path or gs://...), .gguf file, or hub name such as meta-llama/Llama-2-7b-hf."""
    dataset: str
    """A named table (see `jaxprobe data list`), or a CSV or Parquet file (path or gs://...)."""
    out: Path | None = None
    """The run's folder (path or gs://...), new or to go on with; default: runs/TABLE-MODEL, with prompt and limit."""
    prompt: str = "empty"
    """A named prompt of the table, or text with {} for the name: "Where is {}"."""
    text: str | None = None
    """Column of the names, or a template over columns: "{creator}'s {title}"."""
    target: tuple[str, ...] = ()
    """Columns to predict: numbers, or dates (ISO 8601 such as 1986-07-02; as years)."""
    split: str | None = None
    """Column that says which rows are for testing, or blocks: whole cells of the map; default: a seeded 80/20 split."""
    cell_degrees: float = 5.0
    """With --split blocks: side of a cell."""
    buffer_km: float = 100.0
    """With --split blocks: training rows nearer than this to a test row are left out."""
    unit_vectors: bool = False
    """Fit places as points on the sphere, which has no dateline; predictions are degrees again."""
    group: tuple[str, ...] = ()
    """Columns to colour by and to hold out."""
    data_dir: Path | None = None
    """Folder of the paper's tables; default: the variable JAXPROBE_DATA."""
    limit: int | None = None
    """Use a seeded sample of this many rows."""
    revision: str | None = None
    """Revision of a hub model."""
    tokenizer: str | None = None
    """Folder or hub name of another tokenizer."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Of the weights and the stored states; default: float32 on a CPU, bfloat16 elsewhere."""
    layers: tuple[int, ...] = ()
    """Layers to read, 0 being the first block; default: all. Later blocks are not run."""
    final_norm: bool = False
    """Read the state after the final norm as well."""
    store: bool = True
    """Keep the states in the run's folder; without it only sums are kept, and an interrupted run starts anew."""
    fold_group: str | None = None
    """With --no-store: the group whose values (up to 32) are held out in turn to choose penalties; default: 5 folds."""
    mesh: str | None = None
    """Devices: data=2,fsdp=2,model=2; default: all on data, or the model cut in as few parts as its size asks for."""
    replicate_kv: bool = False
    """Keep copies of each key/value head where model has more devices than there are such heads."""
    seed: int = 0
    """Of the split, the sample, the random prompt and the bootstrap."""
    show_tokens: bool = False
    """Print the first rows' tokens, BOS included."""
    repair: bool = False
    """Check the stored states and compute damaged ones anew."""


# What may differ between two starts of one run: where things lie (their content is in the key), what it runs on and
# what it shows.
NOT_IN_THE_KEY = ("model", "revision", "tokenizer", "out", "data_dir", "mesh", "replicate_kv", "show_tokens", "repair")


def default_folder(config: RunConfig) -> Path:
    """Where a run goes that names no folder: ``runs/cities-demo-Where-is-limit-300``."""
    parts = [Path(config.dataset).name.split(".")[0], Path(config.model).name.removesuffix(".gguf")]
    if config.prompt != "empty":
        parts.append(config.prompt)
    if config.limit is not None:
        parts.append(f"limit-{config.limit}")
    words = re.findall(r"[\w.]+", "-".join(parts))
    return Path("runs", "-".join(words))


def to_json(config: RunConfig) -> dict[str, Any]:
    """The settings as JSON values."""
    return {
        name: str(value) if isinstance(value, PurePath) else list(value) if isinstance(value, tuple) else value
        for name, value in dataclasses.asdict(config).items()
    }


def read_config(path: AnyPath) -> RunConfig:
    """The settings of a run, from its folder or the config.json that it wrote there.

    Raises:
      InputError: the file can't be read, lacks a setting or holds one that is not known.
    """
    path = as_path(path)
    if path.is_dir():
        path /= "config.json"
    if not path.is_file():
        raise InputError(f"There is no {path}. Name the folder of a run, or its config.json.")
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))["settings"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} can't be read as a run's config.json ({error}).") from error
    fields = {field.name: field for field in dataclasses.fields(RunConfig)}
    unknown = set(settings) - set(fields)
    missing = {name for name, field in fields.items() if field.default is dataclasses.MISSING} - set(settings)
    if unknown or missing:
        raise InputError(
            f"{path} has settings that are not known ({', '.join(sorted(unknown)) or 'none'}) or lacks some "
            f"({', '.join(sorted(missing)) or 'none'}). It was written by another version of jaxprobe."
        )
    for name in ("target", "group", "layers"):
        settings[name] = tuple(settings.get(name, ()))
    for name in ("out", "data_dir"):
        settings[name] = Path(settings[name]) if settings.get(name) else None
    return RunConfig(**settings)


def fingerprint(settings: dict[str, Any], inputs: dict[str, Any]) -> str:
    """A digest of the settings that change a number and of what they led to (weights, tokens, targets, groups)."""
    kept = {name: value for name, value in settings.items() if name not in NOT_IN_THE_KEY}
    return hashlib.sha256(json.dumps([kept, inputs], sort_keys=True).encode()).hexdigest()[:16]


def versions() -> dict[str, str]:
    """The versions that a result should be reported with."""
    packages = ("jaxprobe", "jax", "jaxlib", "flax", "orbax-checkpoint", "transformers", "numpy", "gguf", "safetensors")
    return {package: importlib.metadata.version(package) for package in packages}
