"""Rotary positions: every kind of them is two arrays, the angle a position of each pair and the pair's amplitude."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxprobe.models.families.fields import Fields


class Rotary(NamedTuple):
    """H/2 pairs: of dimension i and i + H/2. A pair that does not turn has frequency 0 and amplitude 1."""

    frequencies: tuple[float, ...]  # radians a position
    amplitudes: tuple[float, ...]  # that cosine and sine are multiplied with

    @property
    def turning(self) -> int:
        """Pairs that turn."""
        return sum(frequency != 0 for frequency in self.frequencies)

    @property
    def pairs(self) -> int:
        return len(self.frequencies)


class Scaling(NamedTuple):
    """What a kind of scaling is made from."""

    plain: np.ndarray  # [pairs] frequencies without scaling
    theta: float
    width: int  # dimensions that turn: twice the pairs
    context: int  # of the model


_Scaled = tuple[np.ndarray, float]  # frequencies and amplitude


def _linear(base: Scaling, factor: float) -> _Scaled:
    return base.plain / factor, 1.0


def _llama3(
    base: Scaling,
    factor: float,
    low_freq_factor: float,
    high_freq_factor: float,
    original_max_position_embeddings: float,
) -> _Scaled:
    """Long wavelengths are stretched by ``factor``, short ones kept, those between blended (Llama 3.1)."""
    turns = original_max_position_embeddings * base.plain / (2 * math.pi)
    kept = np.clip((turns - low_freq_factor) / (high_freq_factor - low_freq_factor), 0, 1)
    return kept * base.plain + (1 - kept) * base.plain / factor, 1.0


def _yarn(
    base: Scaling,
    factor: float,
    original_max_position_embeddings: float,
    beta_fast: float = 32.0,
    beta_slow: float = 1.0,
    attention_factor: float | None = None,
    mscale: float | None = None,
    mscale_all_dim: float | None = None,
    truncate: bool = True,
) -> _Scaled:
    """Pairs that turn often over the original context are kept, the others stretched. Source: arXiv 2309.00071."""
    long, pairs = float(original_max_position_embeddings), np.arange(len(base.plain))
    # The pair that turns so many times over the original context.
    pair = lambda turns: base.width * math.log(long / (turns * 2 * math.pi)) / (2 * math.log(base.theta))
    low, high = pair(beta_fast), pair(beta_slow)
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, base.width - 1)
    stretched = np.clip((pairs - low) / (high - low if high != low else 0.001), 0, 1)
    grown = lambda scale=1.0: 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0
    if attention_factor is None:
        attention_factor = grown(mscale) / grown(mscale_all_dim) if mscale and mscale_all_dim else grown()
    return base.plain * (1 - stretched) + base.plain / factor * stretched, float(attention_factor)


def _longrope(
    base: Scaling,
    short_factor: tuple[float, ...],
    long_factor: tuple[float, ...],  # of prompts that are longer than the original context, which are refused
    original_max_position_embeddings: float,
    factor: float | None = None,
    attention_factor: float | None = None,
) -> _Scaled:
    """Each pair has its own factor; the amplitude grows with the context whatever a prompt's length."""
    long = float(original_max_position_embeddings)
    factor = base.context / long if factor is None else factor
    if attention_factor is None:
        attention_factor = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(long))
    return base.plain / np.array(short_factor, np.float64), float(attention_factor)


# kind -> (function, what it must have, what it may have)
_OPTIONAL_YARN = ("beta_fast", "beta_slow", "attention_factor", "mscale", "mscale_all_dim", "truncate")
_FROM_LLAMA3 = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
_FROM_LONGROPE = ("short_factor", "long_factor", "original_max_position_embeddings")
KINDS: dict[str, tuple[Callable[..., _Scaled], tuple[str, ...], tuple[str, ...]]] = {
    "default": (lambda base: (base.plain, 1.0), (), ()),
    "linear": (_linear, ("factor",), ()),
    # Only prompts longer than the context, which are refused, have another base.
    "dynamic": (lambda base, factor: (base.plain, 1.0), ("factor",), ()),
    "llama3": (_llama3, _FROM_LLAMA3, ()),
    "yarn": (_yarn, ("factor", "original_max_position_embeddings"), _OPTIONAL_YARN),
    "longrope": (_longrope, _FROM_LONGROPE, ("factor", "attention_factor")),
}
_ALSO_CALLED = {"su": "longrope"}


def read_rotary(
    rope: Mapping[str, Any],
    head_width: int,
    context: int,
    fields: Fields,
    *,
    theta: float = 10_000.0,
    part: float = 1.0,
    in_part: bool = False,
    kinds: tuple[str, ...] = ("default", "linear", "dynamic", "llama3", "yarn"),
) -> Rotary:
    """The rotary that a config's dictionary describes; what is wrong with it goes to ``fields``.

    Args:
      rope: ``rope_type`` (or ``type``), ``rope_theta``, ``partial_rotary_factor`` and what its kind needs.
      head_width: H.
      context: positions that the model was made for.
      theta: where the dictionary has none.
      part: of a head's dimensions that turn, where the dictionary does not say.
      in_part: whether the family's own code runs heads of which not all dimensions turn.
      kinds: those that the family's own code runs.
    """
    rope = {name: value for name, value in rope.items() if value is not None}
    kind = rope.pop("rope_type", rope.pop("type", "default"))
    rope.pop("type", None)
    kind = _ALSO_CALLED.get(kind, kind) if isinstance(kind, str) else kind
    numbers = Fields(rope, f"the rope of {fields.source}", fields.problems)
    theta = numbers.number("rope_theta", theta, above=1.0)
    part = numbers.number("partial_rotary_factor", part, above=0.0, most=1.0)
    nothing = Rotary((1.0,) * (head_width // 2), (1.0,) * (head_width // 2))
    if kind not in kinds:
        fields.problem(
            f"Rope type {fields.shown(kind)} is not one of {', '.join(kinds)}. This model can't be run exactly."
        )
        return nothing
    turned = int(head_width * part)
    if turned != head_width and not in_part:
        fields.problem(f"Rope turns {turned} of {head_width} dimensions of a head; all is implemented for this family.")
        return nothing
    if head_width % 2 or turned % 2 or not turned:
        fields.problem(f"Rope turns {turned} of {head_width} dimensions of a head; both must be even.")
        return nothing
    function, needed, optional = KINDS[kind]
    left = numbers.left()
    if "original_max_position_embeddings" in needed and "original_max_position_embeddings" not in left:
        left |= {"original_max_position_embeddings": context}
        numbers = Fields(left, numbers.source, numbers.problems)
    missing, unknown = set(needed) - set(left), set(left) - set(needed) - set(optional)
    if missing or unknown:
        names = ", ".join(fields.shown(name)[1:-1] for name in sorted(left)) or "none"
        fields.problem(
            f"Rope type {kind!r} takes {', '.join((*needed, *optional)) or 'no parameters'}; found {names}. "
            "This model can't be run exactly."
        )
        return nothing
    values = {}
    for name in (*needed, *optional):
        if name not in left:
            continue
        if name == "truncate":
            values[name] = numbers.flag(name, True)
        elif name in ("short_factor", "long_factor"):
            values[name] = numbers.numbers(name, turned // 2)
        else:
            values[name] = numbers.number(name, None, above=0.0)
    if numbers.problems:
        return nothing
    plain = float(theta) ** -(np.arange(0, turned, 2, dtype=np.float64) / turned)
    try:
        with np.errstate(all="raise"):
            frequencies, amplitude = function(Scaling(plain, theta, turned, context), **values)
    except (ArithmeticError, ValueError) as error:
        fields.problem(f"Rope type {kind!r} can't be computed from {fields.shown(values)} ({error}).")
        return nothing
    still = (head_width - turned) // 2
    return Rotary(tuple(map(float, frequencies)) + (0.0,) * still, (amplitude,) * (turned // 2) + (1.0,) * still)


def head_order(head_width: int, turned: int, interleaved: bool = False) -> tuple[int, ...]:
    """Where each dimension of our heads lies in the file's; empty where both are alike.

    We pair dimension i with i + H/2. A head of which only the first ``turned`` dimensions turn has the pairs
    (i, i + turned/2): a query's product with a key does not change where both are put into one other order, so they
    go to where ours are, and what does not turn behind them. ``interleaved``: the file has the pairs side by side.
    """
    pairs = turned // 2
    if interleaved:
        first, second = list(range(0, turned, 2)), list(range(1, turned, 2))
    else:
        first, second = list(range(pairs)), list(range(pairs, turned))
    rest = list(range(turned, head_width))
    half = len(rest) // 2
    order = (*first, *rest[:half], *second, *rest[half:])
    return () if order == tuple(range(head_width)) else order
