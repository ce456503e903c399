"""Devices of machines that are not here, to compile for: TPU slices by libtpu, GPUs by JAX's CUDA plugin."""

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
from jax.experimental import topologies
from jax.experimental.compilation_cache import compilation_cache

from jaxprobe.cost.chips import Machine
from jaxprobe.errors import InputError, first_line

_PLUGIN = "jax_plugins.xla_cuda13"
# What XLA asks to know of a GPU. Sources: NVIDIA's tuning guides for compute capability 8.0 and 9.0, and data sheets;
# XLA has the same (xla/backends/gpu/target_config/specs).
_TARGET = """
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  registers_per_core_limit: 65536 registers_per_block_limit: 65536 shared_memory_per_block: 49152
  shared_memory_per_core: {shared} shared_memory_per_block_optin: {optin}
  core_count: {cores} fpus_per_core: {units} clock_rate_ghz: {clock} l2_cache_size: {cache}
  memory_bandwidth: {bandwidth} device_memory_size: {memory} cuda_compute_capability {{ major: {capability} }}
}}
platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 12 }} runtime_version {{ major: 13 minor: 0 patch: 0 }}
device_description_str: "{name}"
"""
_AMPERE = dict(shared=167936, optin=166912, cores=108, units=64, clock=1.41, cache=41943040, capability=8)
_HOPPER = dict(shared=233472, optin=232448, cores=132, units=128, clock=1.98, cache=52428800, capability=9)
_ARCHITECTURES = {"a100": _AMPERE, "h100": _HOPPER, "h200": _HOPPER}


def topology_devices(machine: Machine) -> list[jax.Device] | None:
    """Devices to compile for, none of which has to be there; None for GPUs where the extra `plan-gpu` is missing.

    Raises:
      InputError: libtpu is not installed, or knows no such slice.
    """
    if machine.chip.platform == "tpu":
        return tpu_devices(machine)
    return gpu_devices(machine) if _found(_PLUGIN) and _assembler() else None


def gpu_devices(machine: Machine) -> list[jax.Device]:
    """GPUs, each with a process of its own, as scripts/launch_slurm starts them."""
    chip, kind = machine.chip, machine.topology.partition(":")[0]
    numbers = dict(bandwidth=int(chip.memory_bandwidth * 1e9), memory=int(chip.memory * 1e9), name=chip.name)
    target = _TARGET.format(**_ARCHITECTURES[kind], **numbers)
    shape = f"1x{machine.count}x1"  # one device a process
    try:
        found = topologies.get_topology_desc(platform="cuda", target_config=target, topology=shape)
    except NotImplementedError:  # the plugin came onto the path after JAX had looked for plugins
        importlib.import_module(_PLUGIN).initialize()
        found = topologies.get_topology_desc(platform="cuda", target_config=target, topology=shape)
    return list(found.devices)


def compiler_options(platform: str) -> dict[str, str]:
    """What the compiler must be told of a device that is not there, for `Lowered.compile`."""
    # Kernels are not tried out, as there is no device to try them on.
    return {"xla_gpu_autotune_level": "0", "xla_gpu_cuda_data_dir": str(_assembler())} if platform == "gpu" else {}


def _found(module: str) -> bool:
    parts = module.split(".")
    return all(importlib.util.find_spec(".".join(parts[: end + 1])) for end in range(len(parts)))


def _assembler() -> Path | None:
    """The folder of NVIDIA's ptxas and of its library for the device, which the compiler of GPU programs calls."""
    spec = importlib.util.find_spec("nvidia")
    folders = [Path(folder) / "cu13" for folder in (spec.submodule_search_locations if spec else ())]
    return next((each for each in folders if (each / "bin" / "ptxas").exists() and (each / "nvvm").exists()), None)


def tpu_devices(machine: Machine) -> list[jax.Device]:
    """Devices of a TPU slice.

    Raises:
      InputError: libtpu is not installed, or knows no such slice.
    """
    # Without these libtpu asks the network which TPU it runs on, keeps logs, and lets one process at a time load it.
    for name, value in {
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_ACCELERATOR_TYPE": "v5litepod-4",
        "TPU_LOG_DIR": "disabled",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }.items():
        os.environ.setdefault(name, value)
    try:
        devices = list(topologies.get_topology_desc(platform="tpu", topology_name=machine.topology).devices)
    except Exception as error:  # JAX has no type of its own for this
        remedy = f"Slices of this chip are listed on {machine.chip.source}."
        if importlib.util.find_spec("libtpu") is None:
            remedy = 'Install libtpu with: pip install "jaxprobe[tpu]".'
        fact = first_line(error)
        raise InputError(f"Programs can't be compiled for {machine.topology} here ({fact}). {remedy}") from error
    if len(devices) != machine.count:
        raise InputError(f"{machine.topology} has {len(devices)} devices, not {machine.count}. Name another slice.")
    return devices


@contextmanager
def without_cache() -> Iterator[None]:
    """Compiles without JAX's persistent cache, which can't read back a program for a device that is not there."""
    before = jax.config.jax_enable_compilation_cache  # type: ignore[attr-defined]
    try:
        jax.config.update("jax_enable_compilation_cache", False)
        compilation_cache.reset_cache()
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)
        compilation_cache.reset_cache()


@contextmanager
def with_little_effort() -> Iterator[None]:
    """Compiles for a TPU in a sixth of the time, where all that is asked of a program is a bound on its memory.

    It takes up to a tenth more than with full effort (the fit of 8,000 rows of width 4,096: 726 MB, not 660; adding to
    Llama-2-7B's sums: 1,604 MB at its peak, not 1,532). Operations are the same, traffic is within 4 %.
    """
    before = jax.config.jax_exec_time_optimization_effort  # type: ignore[attr-defined]
    try:
        jax.config.update("jax_exec_time_optimization_effort", -1.0)
        yield
    finally:
        jax.config.update("jax_exec_time_optimization_effort", before)
