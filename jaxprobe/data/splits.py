"""Splits that keep neighbours together: a random split leaves most test places with a training place next door."""

from dataclasses import replace
from typing import NamedTuple

import numpy as np

from jaxprobe.data.sphere import nearest_km
from jaxprobe.data.table import EntityTable
from jaxprobe.errors import InputError


class BlockSplit(NamedTuple):
    """N rows of which each is for testing, for fitting, or in the buffer between them (neither).

    Attributes:
      block: [N] strings, the grid cell of each row, as `spatial_blocks` names it.
      is_test: [N] bool.
      is_train: [N] bool.
    """

    block: np.ndarray
    is_test: np.ndarray
    is_train: np.ndarray


def spatial_blocks(latitude: np.ndarray, longitude: np.ndarray, cell_degrees: float) -> np.ndarray:
    """The grid cell of each place, named by its south-western corner, e.g. "40,-80" (degrees).

    Cells are equal in degrees, so narrower in kilometres towards the poles. A longitude of 180 is one of -180.

    Args:
      latitude, longitude: [N] degrees.
      cell_degrees: the side of a cell, at most 180.
    Returns:
      [N] strings.
    Raises:
      InputError: a side that is not positive or too large.
    """
    if not 0 < cell_degrees <= 180:
        raise InputError(f"Cells of {cell_degrees} degrees; give more than 0 and at most 180.")
    row = np.floor((np.asarray(latitude) + 90) / cell_degrees)
    # The pole itself belongs to the last full row: it would be a row of its own.
    row = np.minimum(row, np.ceil(180 / cell_degrees) - 1)
    column = np.floor((np.asarray(longitude) + 180) % 360 / cell_degrees)
    south, west = row * cell_degrees - 90, column * cell_degrees - 180
    return np.array([f"{s:.9g},{w:.9g}" for s, w in zip(south, west, strict=True)], object)


def split_blocks(
    latitude: np.ndarray,
    longitude: np.ndarray,
    *,
    cell_degrees: float,
    buffer_km: float = 0.0,
    test_fraction: float = 0.2,
    seed: int = 0,
) -> BlockSplit:
    """Whole grid cells for testing, drawn at random up to the share wanted; training rows near any test row left out.

    Args:
      latitude, longitude: [N] degrees.
      cell_degrees: the side of a cell.
      buffer_km: training rows nearer than this to a test row are left out; 0 keeps all of them.
      test_fraction: the largest share of rows for testing.
      seed: of the draw.
    Raises:
      InputError: no cell is small enough for the share, or the buffer leaves no row to fit on.
    """
    if not 0 < test_fraction < 1 or buffer_km < 0:
        raise InputError(
            f"A test fraction of {test_fraction} and a buffer of {buffer_km} km; "
            "the fraction must lie between 0 and 1, and the buffer be 0 or more."
        )
    block = spatial_blocks(latitude, longitude, cell_degrees)
    cells, cell_of_row, sizes = np.unique(block, return_inverse=True, return_counts=True)
    chosen, rows = np.zeros(len(cells), bool), 0
    for cell in np.random.default_rng(seed).permutation(len(cells)):
        if rows + sizes[cell] <= test_fraction * len(block):
            chosen[cell], rows = True, rows + sizes[cell]
    if not rows:
        raise InputError(
            f"Each of the {len(cells)} cells of {cell_degrees:g} degrees has more than {test_fraction:.0%} of the "
            "rows. Use smaller cells."
        )
    is_test = chosen[cell_of_row]
    distance_km = nearest_km(latitude, longitude, latitude[is_test], longitude[is_test])
    is_train = ~is_test & (distance_km >= buffer_km)
    if not is_train.any():
        raise InputError(f"Every training row lies within {buffer_km:g} km of a test row. Use a smaller buffer.")
    return BlockSplit(block, is_test, is_train)


def with_block_split(
    table: EntityTable, *, cell_degrees: float, buffer_km: float = 0.0, test_fraction: float = 0.2, seed: int = 0
) -> EntityTable:
    """The table under a spatial-block split: without the buffer's rows, and with the cell as group ``block``.

    Raises:
      InputError: the table has no coordinates, or what `split_blocks` finds.
    """
    if not table.is_place:
        raise InputError(f"Table {table.name} has no latitude and longitude as targets; spatial blocks need both.")
    latitude, longitude = table.targets.T
    split = split_blocks(
        latitude, longitude, cell_degrees=cell_degrees, buffer_km=buffer_km, test_fraction=test_fraction, seed=seed
    )
    kept = split.is_test | split.is_train
    note = (
        f"Split by cells of {cell_degrees:g} degrees (seed {seed}): {split.is_train.sum():,} rows to fit on, "
        f"{split.is_test.sum():,} to test on, {(~kept).sum():,} left out within {buffer_km:g} km of a test row."
    )
    blocked = replace(
        table, is_test=split.is_test, groups={**table.groups, "block": split.block}, notes=(*table.notes, note)
    )
    return blocked.take(kept)
