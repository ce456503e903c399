import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxprobe.errors import InputError
from jaxprobe.probes.metrics import r2
from jaxprobe.probes.mlp import fit_mlp, predict_mlp
from jaxprobe.probes.ridge import fit_ridge, predict


def curved(n=600, d=6, layers=2, seed=0):
    """Targets that bend, one dimension 1e4 times larger than the rest, one that is constant."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(layers, n, d)).astype(np.float32)
    y = np.stack([np.abs(x[0, :, 0]) + 0.1 * x[0, :, 1], x[0, :, 0] * x[0, :, 2]], axis=1) * 50 + 1900
    x[..., 3], x[..., 4] = 1e4 * x[..., 3] + 9000, 7.0
    return x, y


@pytest.mark.slow
@pytest.mark.compiled_fully
def test_learns_what_a_line_cannot_and_repeats():
    x, y = curved(2000)
    options = dict(hidden=64, batch_size=64, learning_rate=3e-3, weight_decays=(0.01, 0.1))
    fit = fit_mlp(x[:, :1600], y[:1600], **options)
    bent, straight = predict_mlp(fit, x[:, 1600:]), predict(fit_ridge(x[:, :1600], y[:1600]), x[:, 1600:])
    assert r2(y[1600:], bent)[0].min() > 0.8 and r2(y[1600:], straight)[0].max() < 0.1
    assert r2(y[1600:], bent)[1].max() < 0.1  # layer 1 knows nothing of it
    again, other = fit_mlp(x[:, :1600], y[:1600], **options), fit_mlp(x[:, :1600], y[:1600], seed=1, **options)
    np.testing.assert_array_equal(predict_mlp(again, x), predict_mlp(fit, x))
    assert not np.array_equal(predict_mlp(other, x), predict_mlp(fit, x))


@pytest.mark.slow
def test_equals_a_plain_loop_over_layers_and_decays():
    """The same seeds, batches and stopping, written out for one probe at a time with no vmap."""
    x, y = curved(300)
    decays, patience, epochs, batch = (0.01, 1.0), 2, 40, 32
    options = dict(hidden=8, batch_size=batch, max_epochs=epochs, patience=patience, learning_rate=0.01)
    fit = fit_mlp(x, y, weight_decays=decays, seed=5, **options)
    rng = np.random.default_rng(5)
    validation, training = np.split(rng.permutation(300), [30])
    orders = [rng.permutation(training)[: 270 // batch * batch].reshape(-1, batch) for _ in range(epochs)]
    wide = x.astype(np.float64)
    mean, scale = wide[:, training].mean(1), wide[:, training].std(1)
    scale[:, 4] = 1
    standard_x = (x - mean[:, None].astype(np.float32)) / scale[:, None].astype(np.float32)
    standard_y = ((y - y[training].mean(0)) / y[training].std(0)).astype(np.float32)

    def forward(p, x):
        return jax.nn.relu(x @ p["w"] + p["b"][None]) @ p["v"] + p["c"][None]

    loss = lambda p, x, y: jnp.mean((forward(p, x) - y) ** 2)
    for layer, key in enumerate(jax.random.split(jax.random.key(5), 2)):
        found = []
        for decay in decays:
            first, second = jax.random.split(key)
            w = jax.nn.initializers.he_normal()(first, (6, 8))
            v = jax.nn.initializers.lecun_normal()(second, (8, 2))
            p = {"w": w, "b": jnp.zeros(8), "v": v, "c": jnp.zeros(2)}
            adam = optax.adamw(0.01, weight_decay=decay)

            @jax.jit
            def step(p, state, xb, yb, adam=adam):
                with jax.numpy_dtype_promotion("standard"):
                    updates, state = adam.update(jax.grad(loss)(p, xb, yb), state, p)
                return optax.apply_updates(p, updates), state

            state, best = adam.init(p), (np.inf, 0, p)
            for epoch, order in enumerate(orders, start=1):
                for rows in order:
                    p, state = step(p, state, standard_x[layer, rows], standard_y[rows])
                mse = float(loss(p, standard_x[layer, validation], standard_y[validation]))
                if mse < best[0]:
                    best = (mse, epoch, p)
                elif epoch - best[1] >= patience:
                    break
            found.append(best)
        # Adam divides by its second moment and so enlarges rounding; a hundred or so steps of float32.
        np.testing.assert_allclose(fit.validation_mse[layer], [mse for mse, _, _ in found], rtol=1e-3)
        assert fit.best_epoch[layer].tolist() == [epoch for _, epoch, _ in found]
        chosen = int(np.argmin([mse for mse, _, _ in found]))
        assert fit.weight_decay[layer] == decays[chosen]
        expected = np.asarray(forward(found[chosen][2], standard_x[layer])) * y[training].std(0) + y[training].mean(0)
        np.testing.assert_allclose(predict_mlp(fit, x)[layer], expected, atol=2e-3 * y.std())
    assert fit.best_epoch.max() < epochs  # it was stopped, and its best restored


@pytest.mark.slow
def test_bad_input_is_refused():
    x, y = curved(50)
    with pytest.raises(InputError, match="with 40 rows as y") as caught:
        fit_mlp(x, np.where(np.arange(40)[:, None] == 3, np.nan, y[:40]))
    assert len(caught.value.problems) == 2
    x[1, 4, 2] = np.inf
    with pytest.raises(InputError, match="Layer 1 of x holds values that are not finite"):
        fit_mlp(x, y)
    fit = fit_mlp(x[:1], y, hidden=4, max_epochs=1)
    with pytest.raises(InputError, match=r"wanted \[1, rows, 6\]"):
        predict_mlp(fit, x)


@pytest.mark.slow
def test_no_probe_comes_back_untrained():
    x, y = curved(50)
    with pytest.raises(InputError, match="patience is 0; wanted 1 or more") as caught:
        fit_mlp(x, y, patience=0, hidden=0, learning_rate=np.nan, weight_decays=(), validation_share=1.5, max_epochs=0)
    assert len(caught.value.problems) == 6
    with pytest.raises(
        InputError, match="layers 0, 1 had no finite validation error.*smaller learning rate than 1e\\+30"
    ):
        fit_mlp(x, y, hidden=4, learning_rate=1e30)
    # One decay that overflows does not spoil the others, and is not chosen.
    fit = fit_mlp(x, y, hidden=4, weight_decays=(1e38, 0.01), max_epochs=3)
    assert (fit.weight_decay == 0.01).all() and np.isfinite(predict_mlp(fit, x)).all()


@pytest.mark.slow
def test_a_constant_dimension_that_rounds_keeps_its_scale():
    x, y = curved(50)
    x = x.astype(np.float64)
    x[..., 4] = 0.1  # the deviation of 45 of these is some 1e-17, not 0
    fit = fit_mlp(x, y, hidden=4, max_epochs=1)
    assert (fit.x_scale[:, 4] == 1).all() and np.abs(predict_mlp(fit, x)).max() < 1e4
