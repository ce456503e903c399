"""The model in Hugging Face PyTorch, and its states one sequence at a time: what every engine must reproduce."""

import copy
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import transformers


def load(path: Path, dtype: torch.dtype, device: str) -> transformers.LlamaForCausalLM:
    """The causal model of a Hugging Face folder or a GGUF file, whose blocks are expanded to dense weights."""
    if path.suffix == ".gguf":
        folder, where = path.parent, {"gguf_file": path.name}
        where["quantization_config"] = transformers.GgufConfig(path.name, dequantize=True)
    else:
        folder, where = path, {}
    model = transformers.LlamaForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="sdpa", **where)
    return model.eval().to(device)


def reference_states(model: transformers.LlamaForCausalLM, sequences: Sequence[Sequence[int]]) -> dict[str, np.ndarray]:
    """Every state at each sequence's last token, without padding or batches: state -> [N, D] float32.

    A float32 model runs in float64, so that an engine's error is its own: two ways of rounding, each within the bounds,
    may be further apart than one. The last block's state comes from a hook, as Hugging Face's last hidden state is
    after the final norm.
    """
    if model.dtype == torch.float32:
        model = copy.deepcopy(model).double()
    layers = len(model.model.layers)
    last_block: list[torch.Tensor] = []
    found: dict[str, list[np.ndarray]] = {name: [] for name in ("embed", *map(str, range(layers)), "final_norm")}
    handle = model.model.layers[-1].register_forward_hook(lambda module, args, output: last_block.append(output))
    with torch.inference_mode():
        for sequence in sequences:
            tokens = torch.tensor([sequence], device=model.device)
            states = model(tokens, output_hidden_states=True, use_cache=False).hidden_states
            for name, state in zip(found, [*states[:-1], last_block.pop(), states[-1]], strict=True):
                found[name].append(state[0, -1].float().cpu().numpy())
    handle.remove()
    return {name: np.array(rows) for name, rows in found.items()}
