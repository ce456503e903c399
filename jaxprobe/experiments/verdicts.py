"""From measured effects to words: p-values against control draws, intervals, and the sentence that the tests allow."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

LEVEL = 0.05


class Mean(NamedTuple):
    """A mean with its 95 % interval by a bootstrap."""

    value: float
    ci_low: float
    ci_high: float


def mean_of(values: np.ndarray, groups: np.ndarray | None = None, seed: int = 0, replicates: int = 2000) -> Mean:
    """The mean of [E] values with a bootstrap over them, or over the groups [E] that they belong to."""
    values, rng = np.asarray(values, np.float64), np.random.default_rng(seed)
    if groups is None:
        sums, sizes = values, np.ones(len(values))
    else:
        number = np.unique(groups, return_inverse=True)[1]
        sums, sizes = np.bincount(number, values), np.bincount(number).astype(float)
    drawn = rng.integers(0, len(sums), (replicates, len(sums)))
    means = sums[drawn].sum(1) / sizes[drawn].sum(1)
    return Mean(float(values.mean()), *np.quantile(means, (0.025, 0.975)).tolist())


def p_value(effect: float, draws: np.ndarray) -> float:
    """The share of draws [M] that are as low as the effect, the effect itself counted among them.

    Where effect and draws are exchangeable it is uniform on 1/(M+1), ..., 1 (Phipson & Smyth 2010).
    """
    return float((1 + (np.asarray(draws) <= effect).sum()) / (1 + len(draws)))


def p_of_family(effects: np.ndarray, draws: np.ndarray) -> tuple[float, int]:
    """One p-value for the lowest of several layers' effects, and which layer that is.

    Each layer's effect and draws are put in deviations of its draws; the lowest over layers is compared with the
    lowest of each draw (Westfall & Young 1993), so that looking at many layers costs what it should.

    Args:
      effects: [L]; draws: [L, M], where draw m is the same permutation or the same seed at every layer.
    """
    every = np.concatenate([effects[:, None], draws], axis=1)
    spread = every.std(1, keepdims=True)
    scaled = (every - every.mean(1, keepdims=True)) / np.where(spread > 0, spread, 1)
    lowest = scaled.min(0)
    return float((lowest <= lowest[0]).mean()), int(scaled[:, 0].argmin())


class Evidence(NamedTuple):
    """What the sentence rests on.

    Attributes:
      competent: test 1 is passed.
      erased: test 2: the largest R2 of a probe fitted anew on training rows after LEACE.
      p: control -> family p-value of the lowest effect (tests 3 and 4).
      layer: where the effect is lowest.
      effect: there, in nats.
      beside: there, the paired difference from the control that comes nearest.
      moved: at the layer where most moves, moved over asked; None where nothing was steered.
      moved_at_random: the same of random changes of that size.
      across: moved across the axis over what was asked along it.
      kl: divergence of the answer's and of a neutral continuation's distribution at the layer.
    """

    competent: bool
    erased: float
    p: Mapping[str, float]
    layer: str
    effect: Mean
    beside: Mean
    moved: Mean | None = None
    moved_at_random: Mean | None = None
    across: Mean | None = None
    moved_layer: str = ""
    kl: tuple[float, float] = (0.0, 0.0)


def sentences(what: str, asks: str, evidence: Evidence) -> list[str]:
    """What may be said. "Is needed for" takes tests 1 to 4, "moving it moves" test 6 as well; never "uses".

    Args:
      what: that was erased: "latitude and longitude".
      asks: the question in words.
    """
    quoted = f'"{asks}"'
    if not evidence.competent:
        return [f"It can't be tested whether {what} is needed for {quoted}: the model does not answer it well enough."]
    found = evidence.erased < 1e-6 and max(evidence.p.values()) <= LEVEL and evidence.beside.ci_high < 0
    size = f"{evidence.effect.value:+.2f} [{evidence.effect.ci_low:+.2f}, {evidence.effect.ci_high:+.2f}] nats"
    worst = max(evidence.p, key=evidence.p.get)
    if found:
        said = [
            f"What a linear probe reads as {what} is needed for {quoted} in this model: without it at layer "
            f"{evidence.layer} the right answer changes by {size}, more than under every kind of control "
            f"(p = {evidence.p[worst]:.3f} against {worst}, over all layers tested)."
        ]
        place, other = evidence.kl
        if other >= 0.5 * place:
            said.append(
                f"The cut is not selective: a neutral continuation changes by {other:.3f} nats (KL), the question's by "
                f"{place:.3f}."
            )
    else:
        reason = f"the effect at layer {evidence.layer} does not differ from that of the nearest control"
        if evidence.p[worst] > LEVEL:
            reason = f"the largest effect, {size} at layer {evidence.layer}, is not beyond {worst}"
            reason += f" (p = {evidence.p[worst]:.3f})"
        if evidence.erased >= 1e-6:
            reason = f"an erased target could still be read (R2 {evidence.erased:.1e})"
        said = [f"It was not found that what a linear probe reads as {what} is needed for {quoted}: {reason}."]
    if evidence.moved is not None:
        moves = evidence.moved.ci_low > max(evidence.moved_at_random.ci_high, 0)
        straight = abs(evidence.across.value) < 0.5 * abs(evidence.moved.value)
        share = f"{evidence.moved.value:.2f} [{evidence.moved.ci_low:.2f}, {evidence.moved.ci_high:.2f}]"
        if found and moves and straight:
            said.append(f"Moving it moves the answer: by {share} of what was asked, at layer {evidence.moved_layer}.")
        elif moves:
            said.append(
                f"A shift elsewhere at layer {evidence.moved_layer} moves the answer by {share} of what was asked"
                + ("." if straight else f", and by {evidence.across.value:.2f} across the axis.")
                + " By itself that does not show what the model reads."
            )
        else:
            said.append(f"Moving it does not move the answer more than a random change of that size ({share} of it).")
    return said


def frame_of(rows: Sequence[Mapping[str, object]]) -> pd.DataFrame:
    """Rows as a table with every column of any of them."""
    return pd.DataFrame(list(rows))
