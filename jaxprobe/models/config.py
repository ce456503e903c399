"""A model's sizes and the constants of its arithmetic: what a family reads from a checkpoint, and all that runs it."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from jaxprobe.models.rope import Rotary


@dataclass(frozen=True)
class ModelConfig:
    """Sizes by the alphabet's letters, and the constants of the arithmetic. A family fills all of them.

    Which parameters a block has is the family's to say (`jaxprobe.models.families`); the block that runs them looks at
    what is there.
    """

    family: str  # the model type, by which its file is found
    layers: int  # L, those that are run
    width: int  # D
    kv_heads: int  # K
    queries_per_kv: int  # G
    head_width: int  # H
    mlp_width: int  # F
    vocabulary: int  # V
    context: int  # positions that the model was made for
    longest_prompt: int  # tokens for which the forward is the model's own
    longest_because: str  # "the context", or what ends before it, such as "an attention window"
    positions: int  # P: rows of a learned position table; 0 where there is none
    norm: str  # "rms", or "layer": minus the mean
    norm_epsilon: float
    gain_offset: float  # 1 where a file's norm gains are what is added to one
    biases: tuple[str, ...]  # the products that have one
    qk_norm: str  # of queries and keys before they are turned: "none", over each "head", or over the whole "width"
    activation: str  # "silu", "gelu" or "gelu_tanh"
    gated: bool  # whether the MLP is act(gate) * up, or act(up)
    parallel: bool  # whether MLP and attention read the same stream
    rotaries: tuple[Rotary, ...]  # the different ones; none where positions are not rotated
    rotary_of_layer: tuple[int, ...]  # of the whole model
    score_divisors: tuple[float, ...]  # of attention scores, for each layer of the whole model
    score_cap: float | None  # c tanh(score / c)
    embedding_scale: float
    tied: bool  # whether the output head is the embedding
    logit_cap: float | None
    initializer_range: float  # standard deviation of a matrix before training
    head: bool = False  # whether the output head is loaded
    kv_copies: int = 1  # of each key/value head of the checkpoint, side by side; more than one only on request

    def with_kv_copies(self, copies: int) -> "ModelConfig":
        """The same model with every key/value head held ``copies`` times, each for a part of its queries."""
        return dataclasses.replace(
            self,
            kv_heads=self.kv_heads * copies,
            queries_per_kv=self.queries_per_kv // copies,
            kv_copies=self.kv_copies * copies,
        )

    def sizes(self) -> dict[str, int]:
        """The size behind each letter of a weight's shape."""
        return {
            "L": self.layers,
            "D": self.width,
            "K": self.kv_heads,
            "G": self.queries_per_kv,
            "H": self.head_width,
            "F": self.mlp_width,
            "V": self.vocabulary,
            "P": self.positions,
        }

    def file_sizes(self) -> dict[str, int]:
        """The same of the checkpoint, which holds each key/value head once."""
        return self.sizes() | {
            "K": self.kv_heads // self.kv_copies,
            "G": self.queries_per_kv * self.kv_copies,
        }

    def states(self) -> tuple[str, ...]:
        """Every state's name: the embedding, the stream after each block, and the final norm of the last."""
        return ("embed", *map(str, range(self.layers)), "final_norm")

    def parameter_count(self) -> int:
        """Numbers in the weights that are loaded: up to the last hidden state, and the head where it is asked for."""
        from jaxprobe.models.families.known import parameters  # families are made of configurations

        sizes = self.sizes()
        return sum(math.prod(sizes[letter] for letter in one.axes) for one in parameters(self).values())

    def constants(self) -> dict[str, Any]:
        """All that a state depends on besides weights and tokens, as JSON values: for the key of a store.

        Neither how many blocks are run nor how heads are copied, which change no state; of floats nine digits, as the
        last ones may differ between machines that computed them.
        """
        left_out = {"layers", "head", "kv_copies", "context", "longest_prompt", "longest_because", "initializer_range"}
        fields = {name: value for name, value in dataclasses.asdict(self).items() if name not in left_out}
        sizes = self.file_sizes()
        return _as_json(fields | {"kv_heads": sizes["K"], "queries_per_kv": sizes["G"]})


def _as_json(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _as_json(part) for name, part in value.items()}
    if isinstance(value, tuple | list):
        return [_as_json(part) for part in value]
    return float(f"{value:.9g}") if isinstance(value, float) else value
