"""The experiments by name; light, so that naming them waits for nothing. What one holds: experiments/base.py."""

import importlib
import inspect
from types import ModuleType

EXPERIMENTS = (
    "layers",
    "prompts",
    "blocks",
    "entity_types",
    "controls",
    "nonlinear",
    "components",
    "neurons",
    "use",
    "dateline",
)


def load(name: str) -> ModuleType:
    """The experiment of a name; imports JAX."""
    return importlib.import_module(f"jaxprobe.experiments.{name}")


def summary(experiment: ModuleType) -> str:
    """What an experiment asks, in a sentence or two: the first paragraph of its docstring."""
    return " ".join(inspect.cleandoc(experiment.__doc__ or "").partition("\n\n")[0].split())
