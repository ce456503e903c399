"""The entity table: named things, and what is to be predicted of them."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class EntityTable:
    """N named things, in the order of their file.

    Attributes:
      name: what the table is called in results, e.g. ``world_place``.
      texts: N names as the model reads them (without a prompt).
      targets: [N, C] float64, in the unit given for each column.
      target_names: C names; a place has ("latitude", "longitude"), in that order.
      units: C units: "degree", "year", or "" for a plain number.
      is_test: [N] bool; the rows that no probe is fitted on.
      groups: column -> [N] strings, for colours and hold-outs.
      attribution: what the data's licence asks to be shown, or "".
      notes: what was inferred or noticed on reading, one sentence each, shown to the user.
    """

    name: str
    texts: tuple[str, ...]
    targets: np.ndarray
    target_names: tuple[str, ...]
    units: tuple[str, ...]
    is_test: np.ndarray
    groups: Mapping[str, np.ndarray] = field(default_factory=dict)
    attribution: str = ""
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def is_place(self) -> bool:
        """Whether the targets are a latitude and a longitude in degrees."""
        return self.target_names == ("latitude", "longitude")
