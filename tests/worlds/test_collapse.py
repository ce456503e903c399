"""The terms against collapse beside what they are on paper, and what does and does not see a collapse."""

import jax
import jax.numpy as jnp
import numpy as np
from scipy.integrate import quad

from jaxprobe.worlds.collapse import KNOTS, LARGEST, effective_rank, epps_pulley, sigreg, spread, vicreg


def reference_sigreg(x, projections):
    """rbalestr-lab/lejepa, MINIMAL.md, in NumPy, for given projections."""
    t = np.linspace(0, 3, 17)
    dt = 3 / 16
    weights = np.full(17, 2 * dt)
    weights[[0, -1]] = dt
    window = np.exp(-(t**2) / 2)
    x_t = (x @ projections)[..., None] * t
    error = (np.cos(x_t).mean(0) - window) ** 2 + np.sin(x_t).mean(0) ** 2
    return (error @ (weights * window) * len(x)).mean()


def test_sigreg_is_the_reference_on_the_same_projections():
    rng = np.random.default_rng(0)
    x, key = rng.normal(0.3, 1.5, (200, 8)).astype(np.float32), jax.random.key(3)
    directions = np.array(jax.random.normal(key, (8, 40)))
    directions /= np.linalg.norm(directions, axis=0)
    assert np.isclose(sigreg(jnp.asarray(x), key, slices=40), reference_sigreg(x, directions), rtol=1e-4)


def test_epps_pulley_is_its_closed_value():
    # Of a point at 0 the characteristic function is 1: N times the integral of (1 - exp(-t^2/2))^2 exp(-t^2/2).
    exact = 2 * quad(lambda t: (1 - np.exp(-(t**2) / 2)) ** 2 * np.exp(-(t**2) / 2), 0, LARGEST)[0]
    assert np.isclose(epps_pulley(jnp.zeros((50, 1)))[0], 50 * exact, rtol=2e-3)  # the trapezoid rule's own error
    # Of a normal sample of deviation s it is exp(-s^2 t^2/2) but for sampling, whose mean adds (1 - |phi|^2) / N.
    scale, rows = 1.7, 4000
    gap = lambda t: (np.exp(-((scale * t) ** 2) / 2) - np.exp(-(t**2) / 2)) ** 2
    noise = lambda t: (1 - np.exp(-((scale * t) ** 2))) / rows
    exact = 2 * quad(lambda t: (gap(t) + noise(t)) * np.exp(-(t**2) / 2), 0, LARGEST)[0] * rows
    u = scale * np.random.default_rng(0).standard_normal((rows, 60)).astype(np.float32)
    assert np.isclose(epps_pulley(jnp.asarray(u)).mean(), exact, rtol=0.05)
    assert KNOTS == 17


def test_sigreg_tells_a_normal_cloud_from_others():
    rng, key = np.random.default_rng(1), jax.random.key(0)
    normal = jnp.asarray(rng.standard_normal((1000, 8)), jnp.float32)
    least = sigreg(normal, key)
    for other in (0.1 * normal, normal + 1, normal.at[:, 1:].set(0)):
        assert sigreg(other, key) > 5 * least


def test_vicreg_is_numpy():
    rng = np.random.default_rng(0)
    h = (rng.standard_normal((300, 6)) @ rng.standard_normal((6, 6)) * 0.4).astype(np.float32)
    covariance = np.cov(h.T)
    off = covariance[~np.eye(6, dtype=bool)]
    exact = np.maximum(0, 1 - np.sqrt(h.var(0) + 1e-4)).mean() + (off**2).mean()
    assert np.isclose(vicreg(jnp.asarray(h)), exact, rtol=1e-5)
    apart = np.sqrt(6) * np.repeat(np.concatenate([np.eye(6), -np.eye(6)]), 10, axis=0)  # deviations 1, no covariance
    assert vicreg(jnp.asarray(apart, jnp.float32)) < 1e-6
    assert np.isclose(vicreg(jnp.ones((9, 6))), 0.99)  # the whole hinge of a constant


def test_the_deviation_sees_a_collapse_and_the_effective_rank_does_not():
    rng = np.random.default_rng(0)
    spread_out, point = rng.standard_normal((500, 16)), 3 + 1e-5 * rng.standard_normal((500, 16))
    assert np.isclose(spread(spread_out).deviation, 1, atol=0.05) and spread(point).deviation < 2e-5
    assert abs(spread(spread_out).effective_rank - spread(point).effective_rank) < 0.5


def test_effective_rank_counts_equal_directions():
    h = np.concatenate([np.eye(4), -np.eye(4)]) @ np.eye(4, 9)
    assert np.isclose(effective_rank(h), 4)
    assert effective_rank(np.zeros((5, 3))) == 0
