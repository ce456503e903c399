"""Linear probes on every layer of a language model, in JAX: where it keeps the map of the world and of time."""

import importlib
import os
from typing import TYPE_CHECKING, Any

# What transformers says of missing PyTorch on its first import is no concern of this package, which uses none.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")

if TYPE_CHECKING:  # for editors and type checkers; each name once more in _PUBLIC
    from jaxprobe.data.catalog import list_datasets as list_datasets
    from jaxprobe.data.catalog import load_table as load_table
    from jaxprobe.data.table import EntityTable as EntityTable
    from jaxprobe.errors import InputError as InputError
    from jaxprobe.extract.extraction import extract_states as extract_states
    from jaxprobe.extract.store.reader import open_activations as open_activations
    from jaxprobe.host.progress import Reporter as Reporter
    from jaxprobe.models.load import load_model as load_model
    from jaxprobe.probes.estimators import ClassProbe as ClassProbe
    from jaxprobe.probes.estimators import MlpProbe as MlpProbe
    from jaxprobe.probes.estimators import RidgeProbe as RidgeProbe
    from jaxprobe.probes.ridge import RidgeFit as RidgeFit
    from jaxprobe.probes.ridge import fit_ridge as fit_ridge
    from jaxprobe.results.folder import RunDirectory as RunDirectory
    from jaxprobe.results.probes import Probes as Probes
    from jaxprobe.results.probes import load_probes as load_probes
    from jaxprobe.results.results import Run as Run
    from jaxprobe.runs.execute import run as run_probes  # noqa: F401
    from jaxprobe.runs.fit import fit_probes as fit_probes
    from jaxprobe.runs.own_states import probe as probe
    from jaxprobe.runs.predict import predict as predict_names  # noqa: F401
    from jaxprobe.runs.predict import predict_tokens as predict_tokens
    from jaxprobe.settings import RunConfig as RunConfig
    from jaxprobe.settings import RunSettings as RunSettings
    from jaxprobe.worlds.earth import make_world as make_world
    from jaxprobe.worlds.world_runs import probe_world as probe_world
    from jaxprobe.worlds.world_runs import steer_world as steer_world
    from jaxprobe.worlds.world_runs import train_world_model as train_world_model

# name -> where it lives; read on first use, so that `jaxprobe --help` does not wait for JAX.
# Not `run` and `predict`: they would be hidden by the modules of that name once these are imported.
_PUBLIC = {
    "ClassProbe": "jaxprobe.probes.estimators",
    "EntityTable": "jaxprobe.data.table",
    "InputError": "jaxprobe.errors",
    "MlpProbe": "jaxprobe.probes.estimators",
    "RidgeFit": "jaxprobe.probes.ridge",
    "RidgeProbe": "jaxprobe.probes.estimators",
    "Reporter": "jaxprobe.host.progress",
    "Run": "jaxprobe.results.results",
    "RunConfig": "jaxprobe.settings",
    "RunSettings": "jaxprobe.settings",
    "RunDirectory": "jaxprobe.results.folder",
    "extract_states": "jaxprobe.extract.extraction",
    "fit_probes": "jaxprobe.runs.fit",
    "fit_ridge": "jaxprobe.probes.ridge",
    "list_datasets": "jaxprobe.data.catalog",
    "make_world": "jaxprobe.worlds.earth",
    "train_world_model": "jaxprobe.worlds.world_runs",
    "probe_world": "jaxprobe.worlds.world_runs",
    "steer_world": "jaxprobe.worlds.world_runs",
    "load_model": "jaxprobe.models.load",
    "load_table": "jaxprobe.data.catalog",
    "open_activations": "jaxprobe.extract.store.reader",
    "Probes": "jaxprobe.results.probes",
    "load_probes": "jaxprobe.results.probes",
    "probe": "jaxprobe.runs.own_states",
    "predict_names": "jaxprobe.runs.predict:predict",
    "predict_tokens": "jaxprobe.runs.predict",
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
