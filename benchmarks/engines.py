"""What the benchmark asks of an engine, and the engines of each framework, ours among them."""

import importlib.util
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np

# engine -> (framework, what it is). The order is that of the tables.
ENGINES = {
    "jaxprobe": ("jax", "jaxprobe"),
    "paper_loop": ("torch", "1. the paper's loop"),
    "tuned": ("torch", "2. tuned"),
    "tuned_compiled": ("torch", "2. tuned, torch.compile"),
    "prefix_cached": ("torch", "3. tuned, prompt's keys and values cached"),
    "prefix_cached_compiled": ("torch", "3. tuned, cached, torch.compile"),
    "transformer_lens": ("torch", "4. TransformerLens, run_with_cache"),
    "nnsight": ("torch", "5. nnsight, trace"),
}
# Packages that are not needed to run the rest.
_OPTIONAL = {"transformer_lens": "transformer-lens", "nnsight": "nnsight"}
NOT_COMPARED = {"vllm": "needs a GPU and an environment of its own, with another version of PyTorch"}


def not_installed(engine: str) -> str | None:
    """Why an engine can't be run here; None where it can."""
    if engine in _OPTIONAL and importlib.util.find_spec(engine) is None:
        return f"not installed: pip install {_OPTIONAL[engine]}"
    return None


class Engine(Protocol):
    """One way of getting all states of a table's last tokens to the host.

    A table's work is cut into parts (batches, or shards) that can be run alone, so that slow engines are timed on a
    sample of their own parts. ``run`` yields, for each of some parts, table rows and for each state [E, D] on the host.
    """

    states: tuple[str, ...]
    extra_flops: int  # a slot, beyond the blocks' weights
    once: int  # slots run one time for the table, whatever the parts

    def plan(self, ids: np.ndarray, starts: np.ndarray) -> None: ...
    def slots(self) -> list[int]: ...
    def entities(self) -> list[int]: ...
    def settings(self) -> dict[str, Any]: ...
    def warm_parts(self, sample: list[int]) -> list[int]: ...  # after these, nothing is left to compile
    def run(self, parts: Sequence[int]) -> Iterator[tuple[np.ndarray, Sequence[Any]]]: ...


class JaxProbe:
    """jaxprobe's own extraction, through the functions that `jaxprobe run` calls; a part is a shard."""

    extra_flops = 0

    def __init__(self, model):
        from jaxprobe.sites import choose_sites

        self.model = model
        self.states = tuple(map(str, choose_sites(model.config.layers)))

    def plan(self, ids: np.ndarray, starts: np.ndarray) -> None:
        from jaxprobe.extract.forward import bins_per_step, devices_per_share
        from jaxprobe.extract.trie import plan_bins

        mesh = self.model.mesh
        self._plan = plan_bins(ids, starts, bins=bins_per_step(mesh), multiple=devices_per_share(mesh), even=True)
        self.once = self._plan.slots - sum(self.slots())

    def slots(self) -> list[int]:
        return [sum(batch.tokens.size for batch in shard.batches) for shard in self._plan.shards]

    def entities(self) -> list[int]:
        return [len(shard.rows) for shard in self._plan.shards]

    def settings(self) -> dict[str, Any]:
        from jaxprobe.extract.trie import batch_shapes

        return {"shapes": batch_shapes(self._plan), "prefix tokens": len(self._plan.root)}

    def warm_parts(self, sample: list[int]) -> list[int]:
        """Shards that have every shape of the table between them."""
        seen: set[tuple[int, int]] = set()
        parts = []
        for part, shard in enumerate(self._plan.shards):
            shapes = {batch.tokens.shape for batch in shard.batches}
            if not shapes <= seen:
                seen |= shapes
                parts.append(part)
        return parts

    def run(self, parts: Sequence[int]) -> Iterator[tuple[np.ndarray, list[np.ndarray]]]:
        from jaxprobe.extract.forward import run_plan

        for shard in run_plan(self.model, self._plan, self.states, parts):
            yield shard.rows, list(shard.states.values())
