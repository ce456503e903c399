"""Linear probes on every layer of a language model, in JAX: where it keeps the map of the world and of time."""

import importlib
from typing import Any

# name -> where it lives; read on first use, so that `jaxprobe --help` does not wait for JAX.
# Not `run` and `predict`: they would be hidden by the modules of that name once these are imported.
_PUBLIC = {
    "EntityTable": "jaxprobe.data.table",
    "InputError": "jaxprobe.errors",
    "RidgeFit": "jaxprobe.probes.ridge",
    "RunConfig": "jaxprobe.settings",
    "RunDirectory": "jaxprobe.results.folder",
    "extract_states": "jaxprobe.extract.extraction",
    "fit_probes": "jaxprobe.runs.fit",
    "fit_ridge": "jaxprobe.probes.ridge",
    "list_datasets": "jaxprobe.data.catalog",
    "load_model": "jaxprobe.models.load",
    "load_table": "jaxprobe.data.catalog",
    "open_activations": "jaxprobe.extract.store.reader",
    "predict_names": "jaxprobe.runs.predict:predict",
    "run_probes": "jaxprobe.runs.execute:run",
}
__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'jaxprobe' has no attribute {name!r}")
    module, _, attribute = _PUBLIC[name].partition(":")
    value = getattr(importlib.import_module(module), attribute or name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
