"""Baselines 2 and 3: what a good engineer makes of it in PyTorch.

No output head, sdpa attention, inference_mode, duplicates removed, batches sorted by length, hooks so that only the
wanted rows leave, the best batch size by a short search; eager or torch.compile. Baseline 3 also runs the tokens that
all prompts begin with once, and gives their keys and values to every batch.
"""

import copy
import time
from collections.abc import Iterator, Sequence

import numpy as np
import torch
import transformers
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from benchmarks.baselines.batches import Batch, by_length, common_prefix

# Batch sizes to try, by device.
SIZES = {"cpu": (32, 64, 128, 256), "cuda": (128, 256, 512, 1024, 2048)}
SLOW_SECONDS = 2.0
PREFIX_ATTENTION = "sdpa_after_prefix"


def _attend_after_prefix(module, query, key, value, attention_mask, **rest):
    # What a DynamicCache does, without its layer index, for which torch.compile would build one program a layer.
    key = torch.cat([module.prefix_key.expand(len(key), -1, -1, -1), key], dim=2)
    value = torch.cat([module.prefix_value.expand(len(value), -1, -1, -1), value], dim=2)
    return sdpa_attention_forward(module, query, key, value, attention_mask, **rest)


AttentionInterface.register(PREFIX_ATTENTION, _attend_after_prefix)


class Tuned:
    """One model and one table at a time; see `benchmarks.engines.Engine`.

    Args:
      cache_prefix: whether the common prefix is run once (baseline 3).
      compiled: whether each block goes through torch.compile: one program for all blocks and lengths.
    """

    def __init__(self, model: transformers.LlamaForCausalLM, *, cache_prefix: bool, compiled: bool):
        # A module tree of its own (hooks, compiled forwards) around the same weights.
        self.model = copy.deepcopy(model.model, {id(weight): weight for weight in model.parameters()})
        self.original, self.device = model.model, model.device
        self.cache_prefix, self.compiled = cache_prefix, compiled
        self.states = ("embed", *map(str, range(len(self.model.layers))))
        self.extra_flops = 0
        if compiled:
            for layer in self.model.layers:
                layer.forward = torch.compile(layer.forward, dynamic=True)
        for module in (self.model.embed_tokens, *self.model.layers):
            module.register_forward_hook(self._keep_wanted)

    def plan(self, ids: np.ndarray, starts: np.ndarray) -> None:
        self.prefix = ids[starts[0] :][: common_prefix(ids, starts)] if self.cache_prefix else ids[:0]
        self.table = ids, starts
        if self.cache_prefix:
            self._run_prefix()
        self.cut(SIZES[self.device.type][0])

    def cut(self, size: int) -> None:
        """Cuts the table into batches of ``size``."""
        self.size, self.batches = size, by_length(*self.table, size, skip=len(self.prefix))

    def search_size(self) -> dict[int, float]:
        """Cuts by the size of the most sequences a second on the batch of median length; returns all that were tried.

        Sizes grow until one is not faster by a fiftieth, or does not fit into memory.
        """
        rates: dict[int, float] = {}
        for size in SIZES[self.device.type]:
            self.cut(size)
            try:
                seconds = self._median_batch_seconds()
            except torch.cuda.OutOfMemoryError:
                break
            before = max(rates.values(), default=0.0)
            rates[size] = len(self.batches[len(self.batches) // 2].tokens) / seconds
            if len(self.batches) == 1 or rates[size] < 1.02 * before:
                break
        self.cut(max(rates, key=rates.__getitem__))
        return rates

    def _median_batch_seconds(self) -> float:
        """The best of three, after one that may compile; of one that takes long, itself."""
        best = float("inf")
        for _ in range(4):
            began = time.perf_counter()
            list(self.run([len(self.batches) // 2]))
            best = min(best, time.perf_counter() - began)
            if best > SLOW_SECONDS and not self.compiled:
                break
        return best

    def slots(self) -> list[int]:
        return [batch.tokens.size for batch in self.batches]

    def entities(self) -> list[int]:
        return [len(batch.rows) for batch in self.batches]

    @property
    def once(self) -> int:
        return len(self.prefix)

    def settings(self) -> dict:
        return {"batch": self.size, "attention": "sdpa", "prefix tokens": len(self.prefix)}

    def warm_parts(self, sample: list[int]) -> list[int]:
        # A compiled program is made again for lengths that the first one does not cover, such as 1.
        return sample if self.compiled else []

    @torch.inference_mode()
    def run(self, parts: Sequence[int]) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
        for part in parts:
            batch = self.batches[part]
            yield batch.rows, self._batch(batch)[:, torch.from_numpy(batch.sequence)]

    def _batch(self, batch: Batch) -> torch.Tensor:
        tokens = torch.from_numpy(batch.tokens).to(self.device)
        self._last = torch.from_numpy(batch.last).to(self.device)
        self._each = torch.arange(len(batch.last), device=self.device)
        self._kept: list[torch.Tensor] = []
        if self.cache_prefix:
            self.model(tokens, use_cache=False, **self._after_prefix(tokens.shape[1]))
        else:
            # Right padding needs no mask: a causal model's real tokens never see it.
            self.model(tokens, use_cache=False)
        return torch.stack(self._kept).cpu()

    def _keep_wanted(self, module: torch.nn.Module, args: tuple, output: torch.Tensor) -> None:
        self._kept.append(output[self._each, self._last])

    def _after_prefix(self, length: int) -> dict[str, torch.Tensor]:
        """Positions and the mask of ``length`` tokens that follow the prefix: it and what stands before are seen."""
        seen = len(self.prefix)
        position = torch.arange(seen, seen + length, device=self.device)
        mask = torch.arange(seen + length, device=self.device)[None, :] <= position[:, None]
        return {"position_ids": position[None], "attention_mask": mask[None, None]}

    @torch.inference_mode()
    def _run_prefix(self) -> None:
        cache = transformers.DynamicCache()
        tokens = torch.from_numpy(self.prefix.astype(np.int64))[None].to(self.device)
        self.original(tokens, past_key_values=cache, use_cache=True)
        for layer, kept in zip(self.model.layers, cache.layers, strict=True):
            layer.self_attn.prefix_key, layer.self_attn.prefix_value = kept.keys, kept.values
        self.model.config._attn_implementation = PREFIX_ATTENTION
