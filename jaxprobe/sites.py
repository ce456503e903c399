"""What can be read of a model, and where it stands in the forward pass: one name for each place.

``embed`` (the input of block 0), ``12.mid`` (the stream between attention and MLP of block 12), ``mlp.12`` (the
activations of its MLP's neurons), ``12`` (the stream after block 12), ``final_norm``.

A site that nobody asks for is dead code to the compiler. A new kind of site is one entry of KINDS, and a line in the
block that returns it (models/transformer.py).
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import total_ordering
from typing import NamedTuple

from jaxprobe.errors import InputError


class Kind(NamedTuple):
    """Sites of one kind, one for each block or one for the model."""

    pattern: str  # of the name; {} is the block's number
    stage: float  # where it stands: after the blocks before it, from 0 (its block's input) to 1 (its block's output)
    letter: str  # of its width, as in jaxprobe/mesh.py
    words: str  # in a sentence


KINDS = {
    "embed": Kind("embed", 0.0, "D", "embed"),
    "mid": Kind("{}.mid", 0.5, "D", "layer {} between attention and MLP"),
    "mlp": Kind("mlp.{}", 0.75, "F", "the MLP's neurons of layer {}"),
    "block": Kind("{}", 1.0, "D", "layer {}"),
    "final_norm": Kind("final_norm", 1.0, "D", "final norm"),
}
_LAST = 10**6 + 1  # final_norm stands after any number of blocks


@total_ordering
@dataclass(frozen=True)
class Site:
    """One place of the forward pass; ``str(site)`` is its name, and sites sort as the forward reaches them.

    Attributes:
      kind: a key of KINDS.
      layer: the block's number; None for the sites that are the model's own.
    """

    kind: str
    layer: int | None = None

    @classmethod
    def parse(cls, name: str) -> "Site":
        """The site of a name.

        Raises:
          InputError: a name that is none.
        """
        for kind, (pattern, *_) in KINDS.items():
            if found := re.fullmatch(re.escape(pattern).replace(r"\{\}", "(0|[1-9][0-9]{0,5})"), str(name)):
                return cls(kind, int(found[1]) if "{}" in pattern else None)
        raise InputError(
            f"{str(name)[:100]!r} is no site of a model. Sites are embed, 12 (the stream after block 12), 12.mid "
            "(between its attention and its MLP), mlp.12 (its neurons), and final_norm."
        )

    def __str__(self) -> str:
        return KINDS[self.kind].pattern.format(self.layer)

    def __lt__(self, other: "Site") -> bool:
        return self._order < other._order

    @property
    def _order(self) -> tuple[float, ...]:
        # A site of the model's own is not after the block whose depth it has.
        return self.depth, self.layer is None

    @property
    def depth(self) -> float:
        """Blocks that stand before it: embed 0, ``12`` 13, ``mlp.12`` 12.75; final_norm after any number of them."""
        if self.layer is None:
            return 0.0 if self.kind == "embed" else float(_LAST)
        return self.layer + KINDS[self.kind].stage

    @property
    def letter(self) -> str:
        """Its width's letter: D, or F for neurons."""
        return KINDS[self.kind].letter

    @property
    def words(self) -> str:
        """In a sentence: "layer 17"."""
        return KINDS[self.kind].words.format(self.layer)

    @property
    def last_block(self) -> int | None:
        """The last block that has to be run for it: -1 for none, None for all."""
        return {"embed": -1, "final_norm": None}.get(self.kind, self.layer)


def parse_sites(names: Iterable[str]) -> tuple[Site, ...]:
    """The sites of names, in the order of the forward pass, each once.

    Raises:
      InputError: names that are none, all of them at once.
    """
    sites: set[Site] = set()
    problems: list[str] = []
    for name in names:
        try:
            sites.add(Site.parse(name))
        except InputError as error:
            problems += error.problems
    if problems:
        raise InputError(*problems)
    return tuple(sorted(sites))


def find_site(name: str) -> Site | None:
    """The site of a name, or None for a state that was made elsewhere and has a name of its own."""
    try:
        return Site.parse(name)
    except InputError:
        return None


def axis_positions(names: Sequence[str]) -> dict[str, float]:
    """Where states stand on an axis of blocks: a block at its number, what is inside it before, at both ends the rest.

    ``12`` at 12, ``mlp.12`` at 11.75; ``embed`` one before the first of them, ``final_norm`` one after the last. States
    of which one is no site stand in their order.
    """
    sites = {name: find_site(name) for name in names}
    found = [site for site in sites.values() if site is not None]
    if len(found) < len(sites):
        return {name: float(place) for place, name in enumerate(sites)}
    blocks = [site.layer for site in found if site.layer is not None] or [0]
    ends = {"embed": min(blocks) - 1.0, "final_norm": max(blocks) + 1.0}
    return {str(site): ends[site.kind] if site.layer is None else site.depth - 1 for site in found}


def choose_sites(
    blocks: int,
    complete: bool = True,
    *,
    layers: Sequence[int] | None = None,
    final_norm: bool = False,
    sites: Sequence[str] = (),
) -> tuple[Site, ...]:
    """What a run reads: the sites that are named, or ``embed`` and the stream after every block or those of ``layers``.

    Args:
      blocks: that are loaded.
      complete: whether these are all that the model has.
      final_norm: whether the state after the final norm is read as well.

    Raises:
      InputError: a block that the model does not have, or the final norm of a model cut short.
    """
    chosen = set(parse_sites(sites))
    if not sites:
        chosen = {Site("embed")} | {Site("block", layer) for layer in (range(blocks) if layers is None else layers)}
    if final_norm:
        chosen.add(Site("final_norm"))
    problems = [
        f"Layer {site.layer} does not exist: the model has layers 0 to {blocks - 1}."
        for site in sorted(chosen)
        if site.layer is not None and not 0 <= site.layer < blocks
    ]
    if Site("final_norm") in chosen and not complete:
        problems.append("final_norm follows the last block, which --layers leaves out. Add the last layer.")
    if problems:
        raise InputError(*problems)
    return tuple(sorted(chosen))


def last_block(sites: Iterable[Site]) -> int | None:
    """The last block that has to be loaded for these sites; None for all. Block 0 always is."""
    needed = [site.last_block for site in sites]
    return None if None in needed else max([0, *needed])
