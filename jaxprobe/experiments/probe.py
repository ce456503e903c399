"""A ridge probe of one state, in the targets' own units whatever it is fitted on."""

from typing import NamedTuple

import numpy as np

from jaxprobe.data.sphere import places_of, unit_vectors
from jaxprobe.data.table import EntityTable
from jaxprobe.probes.ridge import RidgeFit, fit_ridge, predict_layer


class Probe(NamedTuple):
    """A probe of one state of a table's rows."""

    fit: RidgeFit
    table: EntityTable

    @property
    def alpha(self) -> float:
        """The penalty that leave-one-out chose."""
        return float(self.fit.alpha[0])

    def predict(self, x: np.ndarray) -> np.ndarray:
        """[N, C] in target units, for states x [N, D]."""
        return in_target_units(self.table, predict_layer(self.fit, 0, x))


def fit_probe(x: np.ndarray, table: EntityTable, rows: np.ndarray, name: str) -> Probe:
    """The probe of states x [N, D], fitted on the rows of the table that ``rows`` [N] marks; ``name`` is for messages.

    Hold-outs of one table share a compiled program, which would take longer than the fits otherwise.

    Raises:
      InputError: as `fit_ridge`.
    """
    return Probe(fit_ridge(x[None], fitted_targets(table), names=[name], rows=rows), table)


def fitted_targets(table: EntityTable) -> np.ndarray:
    """[N, C] what probes of a table are fitted on: its targets, or the points [N, 3] of its places on the sphere."""
    return unit_vectors(*table.targets.T) if table.unit_vectors else table.targets


def in_target_units(table: EntityTable, predicted: np.ndarray) -> np.ndarray:
    """[..., C] predictions of the targets, from those of what was fitted."""
    return places_of(predicted) if table.unit_vectors else predicted
