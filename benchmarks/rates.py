"""The best matmul rate of each framework on this machine, and JAX's over a stack of layers: GFLOP/s."""

import functools
import time
from collections.abc import Callable

from jaxprobe.models.config import ModelConfig

# A sample lasts about this long, in seconds; the best of REPEATS counts, as anything that disturbs only slows.
SAMPLE_SECONDS = 0.1
REPEATS = 3
# A product that takes longer is timed once: bfloat16 on processors that have no instructions for it.
SLOW_SECONDS = 1.0


def matmul_shapes(config: ModelConfig, rows: int, cube: int) -> dict[str, tuple[int, int, int]]:
    """(M, K, N) of a block's products for ``rows`` tokens, and a cube."""
    d, f, kh = config.width, config.mlp_width, config.kv_heads * config.head_width
    heads = kh * config.queries_per_kv
    shapes = {"query": (d, heads), "key": (d, kh), "output": (heads, d), "gate": (d, f), "down": (f, d)}
    return {name: (rows, *shape) for name, shape in shapes.items()} | {"cube": (cube, cube, cube)}


def block_flops(config: ModelConfig) -> int:
    """Floating-point operations a token in the blocks' weight matrices; attention's own products are not counted."""
    d, kh = config.width, config.kv_heads * config.head_width
    return config.layers * (2 * 2 * d * kh * (config.queries_per_kv + 1) + 2 * 3 * d * config.mlp_width)


def best_rate(flops: float, once: Callable[[], object], wait: Callable[[object], object]) -> float:
    """GFLOP/s of ``once``, queued often enough to fill a sample; ``wait`` ends when its result is there."""
    wait(once())
    best, count = float("inf"), 1
    for _ in range(1 + REPEATS):
        began = time.perf_counter()
        for _ in range(count):
            result = once()
        wait(result)
        best = min(best, (time.perf_counter() - began) / count)
        if best > SLOW_SECONDS:
            break
        count = max(1, int(SAMPLE_SECONDS / best))
    return flops / best / 1e9


def torch_rates(shapes: dict[str, tuple[int, int, int]], dtype: str, device: str) -> dict[str, float]:
    import torch

    wait = (lambda _: torch.cuda.synchronize()) if device == "cuda" else (lambda _: None)
    rates = {}
    with torch.inference_mode():
        for name, (m, k, n) in shapes.items():
            # As nn.Linear holds it: the weight's rows are the outputs.
            x = torch.randn(m, k, device=device).to(getattr(torch, dtype))
            weight = torch.randn(n, k, device=device).to(getattr(torch, dtype))
            once = functools.partial(torch.nn.functional.linear, x, weight)
            rates[name] = best_rate(2 * m * k * n, once, wait)
    return rates


def jax_rates(shapes: dict[str, tuple[int, int, int]], dtype: str) -> dict[str, float]:
    import jax
    import jax.numpy as jnp

    multiply = jax.jit(functools.partial(jnp.matmul, precision="highest", preferred_element_type=jnp.float32))
    rates = {}
    for name, (m, k, n) in shapes.items():
        x = jax.random.normal(jax.random.key(0), (m, k)).astype(dtype)
        weight = jax.random.normal(jax.random.key(1), (k, n)).astype(dtype)
        rates[name] = best_rate(2 * m * k * n, functools.partial(multiply, x, weight), jax.block_until_ready)
    return rates


def jax_scan_rate(config: ModelConfig, dtype: str, rows: int) -> float:
    """GFLOP/s of a scan over as many layers of the same shapes with nothing but their matmuls.

    The sums between them let every product count; the weights' scales keep their size the same from layer to layer.
    """
    import jax
    import jax.numpy as jnp

    d, f, g = config.width, config.mlp_width, config.queries_per_kv
    kh = config.kv_heads * config.head_width
    # name -> (inputs, outputs, variance of the sum that it is a part of)
    shapes = {"query": (d, kh * g, 3), "key": (d, kh, 3), "value": (d, kh, 3), "output": (kh * g, d, 1)}
    shapes |= {"gate": (d, f, 2), "up": (d, f, 2), "down": (f, d, 1)}
    keys = dict(zip(shapes, jax.random.split(jax.random.key(0), len(shapes)), strict=True))
    weights = {
        name: (jax.random.normal(keys[name], (config.layers, i, o)) / (parts * i) ** 0.5).astype(dtype)
        for name, (i, o, parts) in shapes.items()
    }
    multiply = lambda x, w: jnp.matmul(x.astype(dtype), w, precision="highest", preferred_element_type=jnp.float32)

    def layer(x, w):
        mixed = multiply(x, w["query"]) + jnp.tile(multiply(x, w["key"]) + multiply(x, w["value"]), (1, g))
        x = multiply(mixed, w["output"])
        return multiply(multiply(x, w["gate"]) + multiply(x, w["up"]), w["down"]), None

    run = jax.jit(lambda x, weights: jax.lax.scan(layer, x, weights)[0])
    x = jax.random.normal(jax.random.key(1), (rows, d))
    return best_rate(block_flops(config) * rows, lambda: run(x, weights), jax.block_until_ready)
