"""Whether a model's axes divide over a mesh, and what to do where they don't."""

import math
from collections.abc import Mapping

from jaxprobe.errors import InputError
from jaxprobe.mesh import LEGEND
from jaxprobe.models.config import ModelConfig

_NAMES = {"K": "key/value heads", "F": "MLP units", "V": "vocabulary entries", "D": "columns of width"}
# mesh axis -> the letters of a weight's axes that it shares
_SHARED = {axis: [letter for letter in _NAMES if axis in LEGEND[letter][1]] for axis in ("model", "fsdp")}


def fit_config(config: ModelConfig, mesh: Mapping[str, int], replicate_kv: bool = False) -> ModelConfig:
    """The configuration as it runs on a mesh: with ``replicate_kv``, key/value heads repeated until they divide.

    Args:
      config: as the checkpoint has it.
      mesh: axis -> size.
      replicate_kv: whether devices of ``model`` may hold copies of one key/value head.

    Raises:
      InputError: an axis that does not divide over its mesh axis; names every such axis and a mesh that fits.
    """
    sizes = config.sizes()
    found = [
        f"{letter}={sizes[letter]} {_NAMES[letter]} do not divide over mesh axis '{axis}' of size {mesh[axis]}."
        for axis, letters in _SHARED.items()
        for letter in letters
        if sizes[letter] % mesh[axis]
    ]
    heads = config.kv_heads * config.queries_per_kv
    kv_heads = math.lcm(config.kv_heads, mesh["model"])
    copies_fit = heads % kv_heads == 0
    only_kv = len(found) == 1 and found[0].startswith("K=")
    if only_kv and replicate_kv and copies_fit:
        return config.with_kv_copies(kv_heads // config.kv_heads)
    if not found:
        return config
    remedy = f"Use --mesh {_mesh_that_fits(config, mesh)}"
    if only_kv and copies_fit:
        remedy += ", or --replicate-kv"
    elif only_kv and replicate_kv:
        remedy = f"Nor do copies of them (--replicate-kv), for {heads} query heads. " + remedy
    raise InputError(f"{' '.join(found)} {remedy}.")


def _mesh_that_fits(config: ModelConfig, mesh: Mapping[str, int]) -> str:
    """As many devices; what ``model`` and ``fsdp`` can't use goes to ``data``."""
    sizes = config.sizes()
    fits = dict(mesh)
    for axis, letters in _SHARED.items():
        fits[axis] = math.gcd(mesh[axis], *(sizes[letter] for letter in letters))
        fits["data"] *= mesh[axis] // fits[axis]
    return ",".join(f"{axis}={size}" for axis, size in fits.items() if size > 1) or "data=1"
