"""Every test runs with eight CPU devices, strict dtypes and no silent rank promotion; shapes are checked."""

import fcntl
import importlib.metadata
import importlib.util
import os
import re
import signal
import subprocess
import sys

# Read when jax starts; NVPL/OpenBLAS settings are left as the machine has them.
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8 " + os.environ.get("XLA_FLAGS", "")
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["HF_HUB_OFFLINE"] = "1"

from jaxtyping import install_import_hook

with install_import_hook(["jaxprobe.models", "jaxprobe.extract", "jaxprobe.probes"], "beartype.beartype"):
    import jaxprobe  # noqa: F401

import jax
import pytest

# A shell starts what it runs in the background deaf to Ctrl-C, and the processes that tests interrupt would inherit it.
signal.signal(signal.SIGINT, signal.default_int_handler)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="session")
def libtpu(request):
    """TPU programs can be compiled: libtpu is there, or put into a folder of its own that only these tests see.

    Installed beside everything else it would look for a TPU in every run; the folder is kept for the next run.
    """
    if importlib.util.find_spec("libtpu"):
        return
    wanted = next(
        match[0] for need in importlib.metadata.requires("jax") if (match := re.match(r"libtpu==[\d.*]+", need))
    )
    folder = request.config.cache.mkdir(re.sub(r"[^\w.]+", "-", wanted).rstrip("-."))
    with open(folder / "installing", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # tests run in two processes
        if not (folder / "complete").exists():
            pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--upgrade", "--target", str(folder)]
            done = subprocess.run([*pip, wanted], capture_output=True, text=True)
            if done.returncode:
                pytest.skip(f"{wanted} can't be installed: {(done.stderr or 'no message').strip().splitlines()[-1]}")
            (folder / "complete").touch()
    sys.path.append(str(folder))
