"""Places on the sphere: points, distances, and back to degrees."""

import numpy as np
from scipy.spatial import cKDTree

EARTH_RADIUS_KM = 6371.0088  # mean radius, as in the great-circle errors of the probes


def unit_vectors(latitude: np.ndarray, longitude: np.ndarray) -> np.ndarray:
    """[..., 3] points on the unit sphere of places in degrees."""
    phi, lam = np.radians(latitude), np.radians(longitude)
    return np.stack([np.cos(phi) * np.cos(lam), np.cos(phi) * np.sin(lam), np.sin(phi)], axis=-1)


def places_of(vectors: np.ndarray) -> np.ndarray:
    """[..., 2] latitude and longitude in degrees of the directions of vectors [..., 3], of any length but 0."""
    x, y, z = np.moveaxis(np.asarray(vectors, np.float64), -1, 0)
    return np.degrees(np.stack([np.arctan2(z, np.hypot(x, y)), np.arctan2(y, x)], axis=-1))


def nearest_km(
    latitude: np.ndarray, longitude: np.ndarray, other_latitude: np.ndarray, other_longitude: np.ndarray
) -> np.ndarray:
    """[N] great-circle distance from each of N places to the nearest of M others, in memory of N + M.

    The nearest by the chord through the sphere is the nearest over its surface, so a k-d tree of unit vectors serves.
    """
    chord, _ = cKDTree(unit_vectors(other_latitude, other_longitude)).query(unit_vectors(latitude, longitude))
    return 2 * EARTH_RADIUS_KM * np.arcsin(np.minimum(chord / 2, 1))
