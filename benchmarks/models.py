"""The models that the benchmark knows by name: the demo model, and shapes with random weights."""

from pathlib import Path

from jaxprobe.models.load import open_model
from jaxprobe.models.published import published_models

NAMED = {"smollm2": "demo"}
_SHAPE = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "max_position_embeddings", "rms_norm_eps",
)  # fmt: skip
# Only speed is measured with these: their states mean nothing.
RANDOM = {
    "tiny": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 8,
             "num_key_value_heads": 4, "max_position_embeddings": 256},
    # llama2-7b-random and so on
    **{f"{name.replace('llama-', 'llama')}-random": {field: fields[field] for field in _SHAPE}
       for name, fields in published_models().items() if name.startswith("llama-")},
}  # fmt: skip


def find(name: str, scratch: Path) -> str:
    """What `jaxprobe.load_model` takes for ``name``; a random model is written into ``scratch`` first.

    Any other name is passed on: a Hugging Face folder, a GGUF file or a hub name.
    """
    return write_random(name, scratch / name) if name in RANDOM else NAMED.get(name, name)


def write_random(name: str, folder: Path) -> str:
    """A random bfloat16 model of that shape with the demo model's tokenizer, and so with its vocabulary's size."""
    import torch
    import transformers

    tokenizer = open_model("demo").tokenizer
    config = transformers.LlamaConfig(
        **RANDOM[name],
        vocab_size=len(tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        dtype="bfloat16",
    )
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
            model = transformers.LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(torch.float32)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    del model
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return str(folder)
