"""Baselines 4 and 5: TransformerLens and nnsight, each asked for the wanted states only, as its documentation shows.

Both get batches of distinct sequences sorted by length, which their users would have to make themselves.
"""

import copy
from collections.abc import Iterator, Sequence

import numpy as np
import torch
import transformers

from benchmarks.baselines.batches import Batch, by_length

BATCH = 64


class _SortedBatches:
    """What both share: sorted batches in, wanted rows out; see `benchmarks.engines.Engine`."""

    once = 0

    def __init__(self, model: transformers.LlamaForCausalLM):
        # A module tree of its own around the same weights: both libraries change what they are given.
        self.own = copy.deepcopy(model, {id(weight): weight for weight in model.parameters()})
        self.device, self.layers = model.device, model.config.num_hidden_layers
        self.states = ("embed", *map(str, range(self.layers)))
        self.extra_flops = 0

    def plan(self, ids: np.ndarray, starts: np.ndarray) -> None:
        self.batches = by_length(ids, starts, BATCH)

    def slots(self) -> list[int]:
        return [batch.tokens.size for batch in self.batches]

    def entities(self) -> list[int]:
        return [len(batch.rows) for batch in self.batches]

    def settings(self) -> dict:
        return {"batch": BATCH}

    def warm_parts(self, sample: list[int]) -> list[int]:
        return []

    @torch.inference_mode()
    def run(self, parts: Sequence[int]) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
        for part in parts:
            batch = self.batches[part]
            yield batch.rows, self._batch(batch)[:, torch.from_numpy(batch.sequence)]

    def _inputs(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Tokens, and the index of each sequence's last token."""
        tokens, last = (torch.from_numpy(array).to(self.device) for array in (batch.tokens, batch.last))
        return tokens, torch.arange(len(last), device=self.device), last


class TransformerLens(_SortedBatches):
    """``run_with_cache``, its cache filtered to the residual stream. Attention is its own."""

    def __init__(self, model: transformers.LlamaForCausalLM, tokenizer: transformers.PreTrainedTokenizerFast):
        from transformer_lens.model_bridge import TransformerBridge

        super().__init__(model)
        # It is only given tokens. Left to itself it asks a hub for the tokenizer again, which a GGUF file's is not in.
        tokenizer = copy.deepcopy(tokenizer)
        tokenizer.init_kwargs |= {"name_or_path": model.config.name_or_path, "add_bos_token": True}
        self.bridge = TransformerBridge.boot_transformers(
            model.config.name_or_path, hf_model=self.own, tokenizer=tokenizer, dtype=model.dtype
        )
        self.hooks = ["embed.hook_out", *(f"blocks.{layer}.hook_out" for layer in range(self.layers))]
        self.extra_flops = 2 * model.config.hidden_size * model.config.vocab_size  # a token: the output head

    def _batch(self, batch: Batch) -> torch.Tensor:
        tokens, each, last = self._inputs(batch)
        _, cache = self.bridge.run_with_cache(tokens, names_filter=lambda name: name in self.hooks)
        return torch.stack([cache[name][each, last] for name in self.hooks]).cpu()


class NNsight(_SortedBatches):
    """One trace a batch over the model without its head; wanted rows saved."""

    def __init__(self, model: transformers.LlamaForCausalLM):
        import nnsight

        super().__init__(model)
        self.nnsight, self.traced = nnsight, nnsight.NNsight(self.own.model)

    def _batch(self, batch: Batch) -> torch.Tensor:
        tokens, each, last = self._inputs(batch)
        with self.traced.trace(tokens, use_cache=False):
            kept = [self.traced.embed_tokens.output[each, last]]
            for layer in self.traced.layers:
                kept.append(layer.output[each, last])
            kept = self.nnsight.save(torch.stack(kept))
        return kept.cpu()
