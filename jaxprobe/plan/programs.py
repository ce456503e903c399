"""The programs of a run, compiled for TPUs or GPUs from shapes alone: no weights, no rows and no chip are needed."""

import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxprobe.cost.counts import Program, Step, count_ridge, count_step, count_sums
from jaxprobe.errors import first_line
from jaxprobe.extract.forward import compiled_step
from jaxprobe.extract.sums import Pilot, compiled_add, layers_on, members
from jaxprobe.mesh import spec
from jaxprobe.models.config import ModelConfig
from jaxprobe.models.load import DTYPES
from jaxprobe.models.transformer import Bins, Root, abstract_weights
from jaxprobe.plan.hlo import collectives, turns
from jaxprobe.plan.topologies import compiler_options, with_little_effort, without_cache
from jaxprobe.probes import solve
from jaxprobe.probes.devices import layers_at_once
from jaxprobe.probes.moments import ROTATED
from jaxprobe.probes.packed import packing
from jaxprobe.probes.search import RELATIVE_ALPHAS


def forward_program(config: ModelConfig, states: tuple[str, ...], step: Step, mesh: Mesh, dtype: str) -> Program:
    """One step of the forward, as `run_plan` runs it."""
    platform = mesh.devices.flat[0].platform
    counted = count_step(config, step, mesh.shape, dtype, platform)
    graph, parameters = abstract_weights(config, mesh, DTYPES[dtype])
    bins = Bins(*(_shaped((step.bins, n), jnp.int32, mesh, spec("BT")) for n in (*(step.slots,) * 3, step.wanted)))
    keys = _shaped((config.layers, step.root, config.kv_heads, config.head_width), DTYPES[dtype], mesh, spec("LRKH"))
    root = Root(keys, keys, jax.ShapeDtypeStruct((), jnp.int32))
    return _compile(
        counted, platform, compiled_step(config, states, mesh, dtype), nnx.merge(graph, parameters), bins, root
    )


def moments_program(
    states: int,
    width: int,
    parts: Sequence[np.ndarray],
    segments: Sequence[np.ndarray],
    targets: int,
    devices: Sequence[jax.Device],
    dtype: str,
) -> Program:
    """Adding one of the ``parts`` of the rows to the sums, as `MomentStream` does it."""
    mesh, layers = layers_on(devices, states)
    layer = P("layer")
    rows = max(map(len, parts))
    sums = _shaped((layers, len(segments), *packing(width, targets).words), jnp.uint32, mesh, layer)
    x = _shaped((layers, rows, width), DTYPES[dtype], mesh, layer)
    k = min(ROTATED, width)
    pilot = Pilot(
        _shaped((layers, width), jnp.float32, mesh, layer),
        _shaped((layers, k), jnp.int32, mesh, layer),
        _shaped((layers, k, k), jnp.float32, mesh, layer),
    )
    y = jax.ShapeDtypeStruct((rows, targets), jnp.float32)
    counted = count_sums(states, rows, len(segments), width, targets, mesh.size, dtype)
    arguments = sums, x, pilot, y, members(parts, segments)[0]
    with with_little_effort():
        return _compile(counted, devices[0].platform, compiled_add(mesh), *arguments)


def ridge_programs(
    states: int, rows: int, width: int, targets: int, devices: Sequence[jax.Device], dtype: str
) -> list[Program] | None:
    """The fit of a batch of states with leave-one-out, as `fit_states` runs it; None where it runs on the host."""
    mesh, solver = solve.place(devices, None, "float32")
    if solver != "cholesky":
        return None
    batch = layers_at_once((rows, width), np.dtype(DTYPES[dtype]).itemsize, states, mesh) * mesh.size
    # Loops within loops, of which some end early: what the compiler counts of them means little.
    counted = count_ridge(rows, width, len(RELATIVE_ALPHAS), devices[0].platform)
    each = batch // mesh.size
    compiled = []
    with jax.enable_x64(False), with_little_effort():
        programs = solve.row_programs(mesh, batch, rows, width, targets, DTYPES[dtype], len(RELATIVE_ALPHAS))
        for name, program in programs.items():
            named = Program(f"ridge: {name}", 0, 0, 0, 0, each * counted[name].operations, 0)
            one = _compile(named, devices[0].platform, *program)
            compiled.append(one._replace(operations=named.operations, traffic=0))
    return compiled


def _shaped(shape: tuple[int, ...], dtype, mesh: Mesh, sharding: P) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, sharding))


def _compile(counted: Program, platform: str, jitted: jax.stages.Wrapped, *arguments) -> Program:
    """``counted`` with what the compiler has in its place; compilers for GPUs count neither operations nor traffic."""
    started = time.perf_counter()
    lowered = jitted.lower(*arguments)
    try:
        with without_cache():
            compiled = lowered.compile(compiler_options(platform))
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        refused = first_line(error)
        return Program(counted.name, 0, 0, 0, 0, 0, 0, (), time.perf_counter() - started, refused)
    memory, costs, text = compiled.memory_analysis(), compiled.cost_analysis(), compiled.as_text()
    repeated = turns(text)
    return Program(
        counted.name,
        memory.argument_size_in_bytes,
        memory.output_size_in_bytes,
        memory.temp_size_in_bytes,
        memory.peak_memory_in_bytes,
        costs["flops"] * repeated if costs else counted.operations,
        costs["bytes accessed"] * repeated if costs else counted.traffic,
        tuple(collectives(text)),
        time.perf_counter() - started,
    )
