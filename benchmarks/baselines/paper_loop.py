"""Baseline 1: the loop of the paper's own code (wesg52/world-models, save_activations.py, its Hugging Face path).

Batches of 128 in file order, clipped to the longest; the causal model with its output head; every hidden state of
every token to the host; there the entity's last token is taken. Left out, in its favour: the cast to float16.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
import transformers

from benchmarks.baselines.batches import PAPER_BATCH, Batch, in_file_order


class PaperLoop:
    """One model and one table at a time; see `benchmarks.engines.Engine`."""

    def __init__(self, model: transformers.LlamaForCausalLM):
        self.model = model
        config = model.config
        # Its hidden_states: the embedding, all blocks but the last, and the last after the final norm.
        self.states = ("embed", *map(str, range(config.num_hidden_layers - 1)), "final_norm")
        self.extra_flops = 2 * config.hidden_size * config.vocab_size  # a token: the output head

    def plan(self, ids: np.ndarray, starts: np.ndarray) -> None:
        self.batches = in_file_order(ids, starts, PAPER_BATCH)

    def slots(self) -> list[int]:
        return [batch.tokens.size for batch in self.batches]

    def entities(self) -> list[int]:
        return [len(batch.rows) for batch in self.batches]

    once = 0  # slots that are run one time for the whole table

    def settings(self) -> dict:
        return {"batch": PAPER_BATCH, "attention": self.model.config._attn_implementation}

    def warm_parts(self, sample: list[int]) -> list[int]:
        return []

    @torch.no_grad()
    def run(self, parts: Sequence[int]) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
        for part in parts:
            yield self.batches[part].rows, self._batch(self.batches[part])

    def _batch(self, batch: Batch) -> torch.Tensor:
        tokens = torch.from_numpy(batch.tokens).to(self.model.device)
        out = self.model(tokens, output_hidden_states=True, output_attentions=False, return_dict=True, use_cache=False)
        last = torch.from_numpy(batch.last)
        return torch.stack([state.cpu()[torch.arange(len(last)), last] for state in out.hidden_states])
