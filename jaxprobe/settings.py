"""A run's settings: one frozen dataclass behind the command line, config.json, plans and the Python API."""

import dataclasses
import hashlib
import importlib.metadata
import json
import math
import os
import re
import shlex
import types
import typing
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Annotated, Any, Literal

from jaxprobe.errors import InputError
from jaxprobe.host.paths import AnyPath, absolute, as_path, is_address

# Marks a setting that is no part of a run's key, for it may differ between two starts of one run: where things lie
# (their content is in the key), what it runs on, and what it shows.
FREE = "not in the key"
# Which of an entity's tokens are read.
Position = Literal["last", "first", "mean", "all"]


@dataclasses.dataclass(frozen=True)
class RunSettings:
    """Read a model at each name's tokens, fit ridge probes on every layer, and write the scores and a report."""

    model: Annotated[str, FREE]
    """'demo', a Hugging Face folder (path or gs://...), .gguf file, or hub name such as meta-llama/Llama-2-7b-hf."""
    dataset: Annotated[str, FREE]
    """A named table (see `jaxprobe data list`), a CSV or Parquet file (path or gs://...), or hf://datasets/ORG/NAME."""
    out: Annotated[Path | None, FREE] = None
    """The run's folder (path or gs://...), new or to go on with; default: runs/TABLE-MODEL, with prompt and limit."""
    prompt: str = "empty"
    """A named prompt of the table, or text with {} for the name: "Where is {}"."""
    chat: bool = False
    """Put the prompt, as what a user says, into the tokenizer's own chat template."""
    position: Position = "last"
    """Which of a name's tokens is read: the last, the first, or their mean. (all: in Python, by extract_states.)"""
    text: str | None = None
    """Column of the names, or a template over columns: "{creator}'s {title}"."""
    target: tuple[str, ...] = ()
    """Columns to predict: numbers, or dates (ISO 8601 such as 1986-07-02; as years); or one of class labels."""
    labels: bool | None = None
    """The target is a class label and not a number; default: where its values are no numbers, or are all 0 or 1."""
    classifier: Literal["ridge", "lda", "means", "logistic"] = "ridge"
    """Of class labels: ridge on one column a class, linear discriminants, nearest class mean, logistic regression."""
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
    data_dir: Annotated[Path | None, FREE] = None
    """Folder of the paper's tables; default: the variable JAXPROBE_DATA."""
    limit: int | None = None
    """Use a seeded sample of this many rows."""
    revision: Annotated[str | None, FREE] = None
    """Revision of a hub model."""
    tokenizer: Annotated[str | None, FREE] = None
    """Folder or hub name of another tokenizer."""
    prepend: str | None = None
    """Token that every text starts with, such as <|endoftext|>; default: the tokenizer's BOS, if it has one."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Of the weights and the stored states; default: float32 on a CPU, bfloat16 elsewhere."""
    layers: tuple[int, ...] = ()
    """Layers to read, 0 being the first block; default: all. Later blocks are not run."""
    final_norm: bool = False
    """Read the state after the final norm as well."""
    sites: tuple[str, ...] = ()
    """In the place of layers: embed, 12 (the stream after block 12), 12.mid (before its MLP), mlp.12 (its neurons)."""
    store: bool = True
    """Keep the states in the run's folder; without it only sums are kept, and an interrupted run starts anew."""
    fold_group: str | None = None
    """With --no-store: the group whose values (up to 32) are held out in turn to choose penalties; default: 5 folds."""
    mesh: Annotated[str | None, FREE] = None
    """Devices: data=2,fsdp=2,model=2; default: all on data, or the model cut in as few parts as its size asks for."""
    replicate_kv: Annotated[bool, FREE] = False
    """Keep copies of each key/value head where model has more devices than there are such heads."""
    seed: int = 0
    """Of the split, the sample, the random prompt and the bootstrap."""
    show_tokens: Annotated[bool, FREE] = False
    """Print the first rows' tokens, BOS included."""
    repair: Annotated[bool, FREE] = False
    """Check the stored states and compute damaged ones anew."""


RunConfig = RunSettings  # its name in version 0.1

_PATHS = ("model", "dataset", "tokenizer", "data_dir")  # settings that may name something on this machine
_SEEDS = 2**32  # scikit-learn takes no larger one
_LONGEST_NAME = 120  # bytes; file systems take 255, and temporary names are longer


def default_folder(settings: RunSettings) -> Path:
    """Where a run goes that names no folder: ``runs/cities-demo-Where-is-limit-300``."""
    model = Path(settings.model).name.removesuffix(".gguf")
    return Path("runs", _folder_name(settings, Path(settings.dataset).name.split(".")[0], model))


def _folder_name(settings: RunSettings, dataset: str, model: str) -> str:
    parts = [dataset, model]
    if settings.prompt != "empty":
        parts.append(settings.prompt)
    parts += ["chat"] * settings.chat
    if settings.position != "last":
        parts.append(settings.position)
    if settings.limit is not None:
        parts.append(f"limit-{settings.limit}")
    words = "-".join(re.findall(r"[\w.]+", "-".join(parts)))
    if len(words.encode()) > _LONGEST_NAME:
        words = f"{words.encode()[:_LONGEST_NAME].decode(errors='ignore')}-{_digest(words)[:8]}"
    return words


def run_folder(settings: RunSettings) -> AnyPath:
    """The folder of a run: the one that it names, or the default."""
    return as_path(settings.out or default_folder(settings))


def combine(
    settings: RunSettings, datasets: Sequence[str], models: Sequence[str], prompts: Sequence[str]
) -> list[RunSettings]:
    """A run for each table, model and prompt; of several each has a folder in ``out`` (default: runs).

    A folder is called as `default_folder` calls it; where two would be called alike, after the whole paths.

    Raises:
      InputError: nothing named, or one thing twice; ``out`` is the folder of one run.
    """
    problems = []
    for name, given in (("dataset", datasets), ("model", models), ("prompt", prompts)):
        if not given:
            problems.append(f"{option(name)} names nothing. Give one or several, or leave it out.")
        for twice in (value for value, count in Counter(given).items() if count > 1):
            problems.append(f"{option(name)} has {twice!r} twice. Name each once.")
    if problems:
        raise InputError(*problems)
    several = [
        dataclasses.replace(settings, dataset=dataset, model=model, prompt=prompt)
        for dataset in datasets
        for model in models
        for prompt in prompts
    ]
    if len(several) == 1:
        return several
    out = as_path(settings.out or "runs")
    if (out / "config.json").is_file():
        raise InputError(
            f"{out} is the folder of one run, and each of {len(several)} needs its own. Name another folder with --out."
        )
    names = [default_folder(each).name for each in several]
    longer: Sequence[Callable[[RunSettings], str]] = (
        lambda each: _folder_name(each, each.dataset, each.model),
        lambda each: f"{default_folder(each).name}-{_digest(json.dumps([each.dataset, each.model, each.prompt]))[:8]}",
    )
    for rename in longer:
        counts = Counter(map(str.casefold, names))  # some file systems have one name for both
        names = [
            rename(each) if counts[name.casefold()] > 1 else name for each, name in zip(several, names, strict=True)
        ]
    return [dataclasses.replace(each, out=out / name) for each, name in zip(several, names, strict=True)]


def check_settings(settings: RunSettings) -> None:
    """What is wrong with settings whatever the table and the model are. Raises InputError, which names each problem."""
    problems = []
    for name, value in to_json(settings).items():
        for text in value if isinstance(value, list) else [value]:
            if isinstance(text, str) and "\0" in text:
                problems.append(f"{option(name)} {text!r} holds a NUL character. Leave it out.")
            elif isinstance(text, str) and not is_utf8(text):
                problems.append(f"{option(name)} {text!r} holds bytes that are not UTF-8. Write it in UTF-8.")
    for name, low, high, words in (
        ("seed", 0, _SEEDS - 1, f"0 to {_SEEDS - 1}"),
        ("limit", 1, math.inf, "1 or more rows"),
        ("cell_degrees", 1e-3, 180, "0.001 to 180 degrees"),
        ("buffer_km", 0, 30_000, "0 to 30000 km"),
    ):
        value = getattr(settings, name)
        if value is not None and not low <= value <= high:
            problems.append(f"{option(name)} is {value}, wanted {words}.")
    if settings.position == "all":
        problems.append(
            "--position all gives a row a token, and a run has a row a name. Use mean; or take the tokens' states with "
            'jaxprobe.extract_states(model, table, position="all").'
        )
    for layer in settings.layers:
        if layer < 0:
            problems.append(f"--layers has {layer}; layers are counted from 0, the first block.")
    for name in ("text", "split", "prompt", "model", "dataset", "tokenizer", "revision", "mesh", "fold_group"):
        if getattr(settings, name) == "":
            problems.append(f"{option(name)} is empty. Leave it out, or name something.")
    if problems:
        raise InputError(*problems)


def option(name: str) -> str:
    """A setting as the command line spells it."""
    return f"--{name.replace('_', '-')}"


def is_utf8(text: str) -> bool:
    """Whether a text can be written as UTF-8: the bytes of an argument that are none come as lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def to_json(settings: RunSettings) -> dict[str, Any]:
    """The settings as JSON values."""
    return {name: to_value(value) for name, value in dataclasses.asdict(settings).items()}


def to_value(value: Any) -> Any:
    """A setting's value as JSON has it."""
    return str(value) if isinstance(value, PurePath) else list(value) if isinstance(value, tuple) else value


def absolute_paths(settings: RunSettings) -> dict[str, str]:
    """Setting -> where on this machine it lies, for those that name a file or folder: for a start from elsewhere."""
    found = {name: getattr(settings, name) for name in _PATHS}
    # These are names, whatever lies here under them.
    if settings.model == "demo":
        del found["model"]
    if re.fullmatch(r"\w+", settings.dataset):
        del found["dataset"]
        found["data_dir"] = settings.data_dir or os.environ.get("JAXPROBE_DATA")
    places = {name: as_path(value).expanduser() for name, value in found.items() if value and not is_address(value)}
    return {name: str(absolute(place)) for name, place in places.items() if place.exists()}


def read_settings(path: AnyPath) -> RunSettings:
    """The settings of a run, from its folder or the config.json that it wrote there.

    What they name by a relative path is what lay there when the run was made, from whatever folder this is called.

    Raises:
      InputError: the file can't be read, lacks a setting or holds one that is not known or of another type.
    """
    path = as_path(path)
    if path.is_dir():
        path /= "config.json"
    if not path.is_file():
        raise InputError(f"There is no {path}. Name the folder of a run, or its config.json.")
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} can't be read as a run's config.json ({error}).") from error
    return parse_settings(document, path)


def parse_settings(document: Any, path: AnyPath) -> RunSettings:
    """The settings in a config.json that was read from ``path``. Raises InputError as `read_settings`."""
    settings = document.get("settings") if isinstance(document, dict) else None
    if not isinstance(settings, dict):
        raise InputError(f"{path} is not a run's config.json: it holds no settings. Name the folder of a run.")
    fields = {field.name: field for field in dataclasses.fields(RunSettings)}
    unknown = set(settings) - set(fields)
    missing = {name for name, field in fields.items() if field.default is dataclasses.MISSING} - set(settings)
    if unknown or missing:
        raise InputError(
            f"{path} has settings that are not known ({', '.join(sorted(unknown)) or 'none'}) or lacks some "
            f"({', '.join(sorted(missing)) or 'none'}). It was written by another version of jaxprobe."
        )
    hints = typing.get_type_hints(RunSettings)
    odd = [
        f"{path}: {name} is {json.dumps(value, ensure_ascii=False)}, wanted {_in_words(hints[name])}. Mend it, or give "
        "the run's command again."
        for name, value in settings.items()
        if not _is_of(value, hints[name])
    ]
    if odd:
        raise InputError(*odd)
    paths = document.get("paths")
    for name, place in paths.items() if isinstance(paths, dict) else ():
        if name in _PATHS and isinstance(place, str) and as_path(place).exists():
            settings[name] = place
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()}
    for name in ("out", "data_dir"):
        values[name] = as_path(values[name]) if values.get(name) else None
    return RunSettings(**values)


def _is_of(value: Any, hint: Any) -> bool:
    """Whether a JSON value is of a setting's type."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_is_of(value, part) for part in parts)
    if origin is Literal:
        return value in parts
    if origin is tuple:
        return isinstance(value, list) and all(_is_of(item, parts[0]) for item in value)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, {Path: str}.get(hint, hint))


def _in_words(hint: Any) -> str:
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(map(_in_words, parts))
    if origin is Literal:
        return " or ".join(map(json.dumps, parts))
    if origin is tuple:
        return f"a list of {_in_words(parts[0])}"
    names = {str: "text", int: "a whole number", float: "a number", bool: "true or false", type(None): "null"}
    return names.get(hint, "a path")


def fingerprint(settings: Mapping[str, Any], inputs: Any) -> str:
    """A digest of the settings that change a number and of what they led to (weights, tokens, targets, groups)."""
    hints = typing.get_type_hints(RunSettings, include_extras=True)
    # What is as it is by default is left out, so that a setting that is new does not disown the runs made before it.
    usual = {field.name: to_value(field.default) for field in dataclasses.fields(RunSettings)}
    kept = {
        name: value
        for name, value in settings.items()
        if FREE not in getattr(hints[name], "__metadata__", ()) and value != usual[name]
    }
    return _digest(json.dumps([kept, inputs], sort_keys=True))[:16]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def mend_command(folder: AnyPath, *options: str) -> str:
    """The command that writes anew what is missing or damaged of the run in a folder, from wherever it is given."""
    place = shlex.quote(str(folder))
    return " ".join(("jaxprobe run --config", place, "--out", place, *options))


def versions() -> dict[str, str]:
    """The versions that a result should be reported with."""
    packages = ("jaxprobe", "jax", "jaxlib", "flax", "orbax-checkpoint", "transformers", "numpy", "gguf", "safetensors")
    return {package: importlib.metadata.version(package) for package in packages}
