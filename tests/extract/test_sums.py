"""Streamed moments against float64 sums over the same rows."""

import itertools
import re

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxprobe.extract.sums import MomentStream, _pick, moments_size, wave_size
from jaxprobe.probes import solve
from jaxprobe.probes.moments import Moments
from jaxprobe.probes.ridge import fit_moments, predict_layer, solve_moments, solve_sums, to_fit
from jaxprobe.probes.root import BLOCK
from jaxprobe.probes.solve import sums_programs
from tests.probes.hard_states import Truth, make_states

# The rounding of float32 products (6e-8), summed over a shard's rows, relative to the two columns' lengths.
TOLERANCE = 1e-6


def make_rows(rng, layers=3, rows=600, width=16, targets=2):
    """States as models have them: means far from zero, two dimensions around 1e4, one that is 1e4 in few rows only."""
    x = rng.standard_normal((layers, rows, width)) @ rng.standard_normal((layers, width, width))
    x += 5 * rng.standard_normal((layers, 1, width))
    x[:, :, 3] = 9644 + 30 * x[:, :, 3]
    x[:, :, 4] = -12000 + x[:, :, 4]
    x[:, ::50, 5] += 1e4
    y = np.stack([90 * rng.standard_normal(rows), 1900 + 40 * rng.standard_normal(rows)], axis=1)[:, :targets]
    return x.astype(np.float32), y


def make_segments(rng, rows):
    """Five folds of four fifths of the rows, and two groups: one small, one that overlaps the folds."""
    order = rng.permutation(rows)
    folds = np.array_split(order[: rows * 4 // 5], 5)
    return {f"fold {i}": fold for i, fold in enumerate(folds)} | {"France": order[:3], "Spain": order[40:140]}


def stream_of(x, y, shard_rows, segments, devices=None, convert=lambda x: x):
    states = [str(i) for i in range(len(x))]
    stream = MomentStream(states, x.shape[-1], shard_rows, segments, y, devices or jax.devices()[:1])
    for shard, rows in enumerate(shard_rows):
        stream.add(shard, convert(x[:, rows]))
    return stream


def moments_of(stream):
    return {state: Moments(**stream.moments(state)) for state in stream.states}


def in_float64(stream):
    return solve_moments(moments_of(stream), criterion="k_fold")


def in_float32(stream):
    """As accelerators do, where the sums are."""
    return solve_sums(stream.on_devices(), moments_of(stream))


def in_float32_alone(stream):
    """The same of a width at which nothing is asked of the host but what may be chosen."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(solve, "REDONE_WIDTH", 0)
        return solve_sums(stream.on_devices(), dict.fromkeys(stream.states))


def as_on_tpus(stream):
    """By block columns, all folds at once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(solve, "on_tpu", lambda mesh: True)
        patch.setitem(solve.TOGETHER, "cpu", 4096)
        return in_float32(stream)


def assert_moments_are_right(stream, x, y, segments):
    for layer, state in enumerate(stream.states):
        found = stream.moments(state)
        for i, rows in enumerate(segments.values()):
            exact_x = x[layer][rows].astype(np.float64)
            count = found["count"][i]
            assert count == len(rows)
            x_mean = found["x_shift"][i] + found["x_sum"][i] / count
            y_mean = found["y_shift"][i] + found["y_sum"][i] / count
            x_centred, y_centred = exact_x - exact_x.mean(0), y[rows] - y[rows].mean(0)
            # About the mean of all rows, not about the pilot mean that was used; a group of one row has its spread.
            every_x = x[layer].astype(np.float64)
            x_length = np.hypot(np.linalg.norm(exact_x - every_x.mean(0), axis=0), count**0.5 * every_x.std(0))
            y_length = np.hypot(np.linalg.norm(y_centred, axis=0), count**0.5 * np.nanstd(y, axis=0))
            bound = TOLERANCE * x_length / np.sqrt(count)
            assert (abs(x_mean - exact_x.mean(0)) <= bound).all()
            assert (abs(y_mean - y[rows].mean(0)) <= TOLERANCE * y_length / np.sqrt(count)).all()
            gram = found["xx"][i] - np.outer(found["x_sum"][i], found["x_sum"][i]) / count
            cross = found["xy"][i] - np.outer(found["x_sum"][i], found["y_sum"][i]) / count
            squares = found["yy"][i] - found["y_sum"][i] ** 2 / count
            assert (abs(gram - x_centred.T @ x_centred) <= TOLERANCE * np.outer(x_length, x_length)).all()
            assert (abs(cross - x_centred.T @ y_centred) <= TOLERANCE * np.outer(x_length, y_length)).all()
            assert (abs(squares - (y_centred**2).sum(0)) <= TOLERANCE * y_length**2).all()


@pytest.mark.slow
@pytest.mark.parametrize("shard_size", [64, 600])
def test_moments_equal_float64(shard_size):
    rng = np.random.default_rng(0)
    x, y = make_rows(rng)
    segments = make_segments(rng, 600)
    order = rng.permutation(600)
    shards = [order[i : i + shard_size] for i in range(0, 600, shard_size)]
    assert_moments_are_right(stream_of(x, y, shards, segments), x, y, segments)


@pytest.mark.slow
def test_the_shards_do_not_matter_beyond_rounding():
    """Different shards, another pilot mean: the same centred moments. Guards the arithmetic of the shift."""
    rng = np.random.default_rng(1)
    x, y = make_rows(rng, layers=1)
    segments = {"all": np.arange(600)}
    grams = []
    for size in (37, 200):
        stream = stream_of(x, y, [np.arange(i, min(i + size, 600)) for i in range(0, 600, size)], segments)
        found = stream.moments("0")
        grams.append(found["xx"][0] - np.outer(found["x_sum"][0], found["x_sum"][0]) / 600)
    scale = np.sqrt(np.outer(np.diag(grams[0]), np.diag(grams[0])))
    assert (abs(grams[0] - grams[1]) <= TOLERANCE * scale).all()


def test_sums_keep_what_float32_would_lose():
    """A thousand shards of one product that float32 can't add up exactly: the total is exact."""
    row = np.float32([[1.1, -0.7]])
    shards = [np.arange(i, i + 1) for i in range(1001)]
    x = np.repeat(row, 1001, axis=0)
    x[0] = 0  # the pilot mean is 0, so every later product is that of the row itself
    stream = stream_of(x[None], np.zeros((1001, 1)), shards, {"all": np.arange(1001)})
    product = (row.T @ row).astype(np.float32).astype(np.float64)
    found = stream.moments("0")["xx"][0]
    # One float32 addition after another ends near 1e-5 relative; with 16 bits more each of them rounds at 2^-33.
    np.testing.assert_allclose(found, 1000 * product, rtol=1000 * 2.0**-33)
    naive = np.cumsum(np.full(1000, np.float32(product[0, 0])), dtype=np.float32)[-1]
    assert abs(naive / (1000 * product[0, 0]) - 1) > 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_eight_devices_give_the_same_bits_as_one(dtype):
    """Each state's sums are made on one device, so their number can't change them."""
    rng = np.random.default_rng(2)
    x, y = make_rows(rng, layers=11)  # 8 devices: the last ones are filled up
    x = x.astype(np.dtype(dtype))
    segments = make_segments(rng, 600)
    shards = [np.arange(i, min(i + 256, 600)) for i in range(0, 600, 256)]
    one = stream_of(x, y, shards, segments)
    on_bins = NamedSharding(Mesh(np.array(jax.devices()), ("data",)), P(None, "data"))
    from_host = stream_of(x, y, shards, segments, jax.devices())
    from_devices = stream_of(x, y, shards, segments, jax.devices(), lambda part: jax.device_put(part, on_bins))
    for stream in (from_host, from_devices):
        assert stream._sums.sharding.spec == P("layer")
        assert {part.data.shape[0] for part in stream._sums.addressable_shards} == {2}
        for state in one.states:
            for name, expected in one.moments(state).items():
                np.testing.assert_array_equal(stream.moments(state)[name], expected, strict=True)
    assert_moments_are_right(one, x, y, segments)


@pytest.mark.slow
def test_rows_of_no_segment_are_not_looked_at():
    rng = np.random.default_rng(3)
    x, y = make_rows(rng)
    segments = {"a": np.arange(100, 200), "b": np.array([7]), "none in this table": np.array([], int)}
    unused = np.setdiff1d(np.arange(600), np.r_[np.arange(100, 200), 7])
    y[unused] = np.nan
    shards = [np.arange(0, 300), np.arange(300, 600)]
    stream = stream_of(x, y, shards, segments)
    last = stream.moments("2")
    assert last["count"].tolist() == [100, 1, 0]
    assert all(np.isfinite(values).all() for values in last.values())
    assert not last["xx"][2].any()
    assert_moments_are_right(stream, x, y, dict(list(segments.items())[:2]))


def test_moments_size():
    stream = stream_of(*(rows := make_rows(np.random.default_rng(4), layers=3)), [np.arange(600)], {"a": np.arange(9)})
    assert stream._sums.nbytes == moments_size(3, 1, rows[0].shape[-1], 2)
    # Llama-2 70B, five folds on 64 devices: 80 blocks and the embedding, two to a device.
    square = 8192 * 8192 * (17 / 32) * 6  # 136 of 256 blocks, in float32 and 16 bits
    beside = 8192 * 8 * 6  # 3 columns, in eights
    assert moments_size(81, 5, 8192, 2, devices=64) == 2 * 5 * (square + beside)


def test_wave_size():
    x, y = make_rows(np.random.default_rng(0), layers=5, rows=40)
    devices = np.array(jax.devices()).reshape(4, 2)
    shards = [np.arange(24), np.arange(24, 40)]
    stream = MomentStream(list("abcde"), 16, shards, {"all": np.arange(40)}, y, devices)
    received = stream._exchange(x[:, :24])
    added = _pick(stream._sharding)(received, 0)
    assert wave_size(5, 24, 16, 4, 8) == added.addressable_shards[0].data.nbytes
    # As much is sent as received.
    on_a_device = 2 * received.addressable_shards[0].data.nbytes + added.addressable_shards[0].data.nbytes
    assert wave_size(5, 24, 16, 4, 8, shares=2) == on_a_device


def test_a_shard_must_be_whole():
    x, y = make_rows(np.random.default_rng(5))
    stream = MomentStream(["0", "1", "2"], 16, [np.arange(600)], {"a": np.arange(9)}, y, jax.devices()[:1])
    with pytest.raises(ValueError, match="no shard was added"):
        stream.moments("0")
    with pytest.raises(ValueError, match=r"\(3, 599, 16\), not 3 states of 600 rows"):
        stream.add(0, x[:, :599])


@pytest.mark.slow
@pytest.mark.parametrize(
    "solved_in, share",
    [
        *itertools.product([in_float64, in_float32, in_float32_alone], [0.5, 1.2, 2]),
        pytest.param(as_on_tpus, 1.2, marks=pytest.mark.compiled_fully),  # column by column
    ],
)
def test_massive_dimensions_that_move_together_leave_the_digits_of_the_rest(solved_in, share):
    """Five folds of states as models have them, against float64; not rotated, products were wrong by 4e-2."""
    d = BLOCK + 40 if solved_in is as_on_tpus else 128
    x, y = make_states("massive", int(share * d), d)
    truth, order = Truth(x, y), np.random.default_rng(0).permutation(len(x))
    folds = {str(i): np.sort(part) for i, part in enumerate(np.array_split(order, 5))}
    labels = np.empty(len(x), int)
    for name, rows in folds.items():
        labels[rows] = int(name)
    stream = stream_of(x[None], y, np.array_split(np.arange(len(x)), 3), folds)
    fit = to_fit(solved_in(stream), stream.states)  # no warning
    searched = ~np.isnan(fit.loo_mse[0, :, 0])
    alphas, losses = fit.alphas[0, searched], fit.loo_mse[0, searched]
    assert np.isclose(alphas, truth.scale, rtol=1e-5).any()  # the grid is in this unit, and has 1
    expected = np.array([truth.without(labels, alpha) for alpha in alphas])
    best = (expected / y.var(0)).mean(1).argmin()
    assert fit.alpha[0] == alphas[best]
    left = 0
    if solved_in is in_float32_alone and share == 0.5:  # the smallest penalties are named, and so they must be
        left = int(re.search(r"up to (\d+) penalties the criterion may be wrong in its third", fit.notes[0])[1])
        assert 0 < left <= 3 and best >= left
    np.testing.assert_allclose(losses[left:], expected[left:], rtol=1e-3)
    np.testing.assert_allclose(losses[best], expected[best], rtol=1e-5)
    _, _, fitted = truth.leave_one_out(alphas[best])
    np.testing.assert_allclose(predict_layer(fit, 0, x), fitted, atol=1e-4 * y.std(0).max())


@pytest.mark.slow
def test_sums_that_float32_spoilt_are_named():
    """Two dimensions that differ by less than float32 resolves: judged by the products' digits, not the sums'."""
    rng = np.random.default_rng(7)
    x = rng.normal(size=(1, 800, 100)).astype(np.float32)
    x[..., 90] = x[..., 91] * (1 + 1e-4 * rng.normal(size=800))
    stream = stream_of(x, rng.normal(size=(800, 1)), [np.arange(800)], {"a": np.arange(400), "b": np.arange(400, 800)})
    with pytest.warns(UserWarning, match="State '0' has condition .*float32"):
        fit_moments({"0": Moments(**stream.moments("0"))}, [1e-6], criterion="k_fold")


@pytest.mark.slow
def test_a_penalty_in_doubt_that_may_be_the_best_goes_to_the_host():
    """Targets all but linear in what two dimensions differ by: no digits are left of errors a millionth as large."""
    rng = np.random.default_rng(8)
    x = rng.normal(size=(1, 400, 4)).astype(np.float32)
    x[..., 3] = x[..., 2] * (1 + 5e-3 * rng.normal(size=400))
    y = 1000 * (x[0, :, 2:3].astype(np.float64) - x[0, :, 3:]) + 5e-3 * rng.normal(size=(400, 1))
    folds = {str(i): np.arange(i, 400, 5) for i in range(5)}
    stream = stream_of(x, y, [np.arange(400)], folds)
    fit = to_fit(solve_sums(stream.on_devices(), moments_of(stream)), stream.states)
    exact = to_fit(in_float64(stream), stream.states)
    assert "penalties solved again in float64 on the host" in fit.notes[0]
    np.testing.assert_allclose(fit.alpha, exact.alpha, rtol=1e-5)
    np.testing.assert_allclose(fit.loo_mse, exact.loo_mse, rtol=1e-3)
    np.testing.assert_allclose(predict_layer(fit, 0, x[0]), predict_layer(exact, 0, x[0]), atol=1e-4 * y.std())


@pytest.mark.parametrize("criterion", ["k_fold", "generalised"])
def test_probes_from_sums_where_they_are_equal_those_from_float64(criterion):
    """What accelerators do, on eight devices: float32 throughout, massive dimensions that move together and all."""
    d, n = 160, 400
    x, y = zip(*(make_states("massive", n, d, seed) for seed in range(3)), strict=True)
    x, y = np.stack(x), y[0]
    order = np.random.default_rng(0).permutation(n)
    folds = {str(i): np.sort(part) for i, part in enumerate(np.array_split(order, 5))}
    stream = stream_of(x, y, np.array_split(np.arange(n), 2), folds, jax.devices()[:2])  # one state fills up
    moments = moments_of(stream)
    exact = fit_moments(moments, criterion=criterion)
    fit = to_fit(solve_sums(stream.on_devices(), moments, criterion=criterion), stream.states)
    assert not fit.notes
    np.testing.assert_allclose(fit.alpha, exact.alpha, rtol=1e-5)
    np.testing.assert_allclose(fit.loo_mse, exact.loo_mse, rtol=1e-3)
    np.testing.assert_allclose(np.nanmin(fit.loo_mse, axis=1), np.nanmin(exact.loo_mse, axis=1), rtol=1e-5)
    for layer, state in enumerate(x):
        found, expected = predict_layer(fit, layer, state), predict_layer(exact, layer, state)
        np.testing.assert_allclose(found, expected, atol=1e-4 * y.std(0).max())
    with jax.enable_x64(False):
        mesh = stream.on_devices().mesh
        for compiled, *arguments in sums_programs(mesh, 4, 5, d, 2, 12).values():
            text = compiled.lower(*arguments).as_text()
            assert "f32" in text and "f64" not in text and "eigh" not in text
