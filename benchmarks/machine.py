"""What a measurement was made on: machine, versions, and the code's own commit."""

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("jaxprobe", "jax", "jaxlib", "flax", "numpy", "torch", "transformers", "transformer-lens", "nnsight")
# These slow NumPy and scikit-learn down where they are set, so every process here runs without them.
UNSET = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")
# Settings that change speed, reported where they are set.
_SPEED_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "XLA_FLAGS", "JAX_PLATFORMS", "CUDA_VISIBLE_DEVICES")


def describe() -> dict[str, Any]:
    """Processor, cores, memory, versions and environment."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "processor": _first_value("/proc/cpuinfo", "model name") or platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": f"{platform.system()} {platform.machine()}",
        "load_average": os.getloadavg()[0],  # when the run began: others at work make every number worse
        "environment": {name: os.environ[name] for name in _SPEED_VARIABLES if name in os.environ},
        "versions": versions,
        "commit": _commit(),
    }


def worker_environment() -> dict[str, str]:
    """The environment of a worker process."""
    kept = {name: value for name, value in os.environ.items() if name not in UNSET}
    # Frameworks share the accelerator's memory.
    return kept | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "PYTHONPATH": str(ROOT)}


def _first_value(path: str, field: str) -> str | None:
    if not Path(path).is_file():
        return None
    lines = (line.split(":", 1) for line in Path(path).read_text().splitlines() if ":" in line)
    return next((value.strip() for name, value in lines if name.strip() == field), None)


def _commit() -> str | None:
    """The commit, with "+" where files of the package or the benchmarks differ from it."""
    git = lambda *arguments: subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True)
    head = git("rev-parse", "HEAD")
    if head.returncode:
        return None
    return head.stdout.strip() + ("+" if git("status", "--porcelain", "jaxprobe", "benchmarks").stdout else "")
