"""Configurations that ship with the package, as the config.json of their models: no weights and no tokenizer."""

import json
from pathlib import Path
from typing import Any

from jaxprobe.models.config import ModelConfig
from jaxprobe.models.families.known import read_config

_FOLDER = Path(__file__).parent / "configs"


def published_models() -> dict[str, dict[str, Any]]:
    """Short name -> the fields of its config.json; by suite, small models first."""
    found = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in _FOLDER.glob("*.json")}
    size = lambda item: (item[0].rpartition("-")[0], read_config(item[1]).parameter_count())
    return dict(sorted(found.items(), key=size))


def find_published(name: str) -> tuple[str, ModelConfig] | None:
    """(short name, configuration) of ``llama-2-7b`` or ``meta-llama/Llama-2-7b-hf``; None for any other name."""
    for short, fields in published_models().items():
        if name.lower() in (short, fields["_name_or_path"].lower()):
            return short, read_config(fields)
    return None
