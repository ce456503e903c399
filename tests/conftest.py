"""Every test runs with eight CPU devices, strict dtypes and no silent rank promotion; shapes are checked."""

import atexit
import contextlib
import fcntl
import importlib.metadata
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile

# Read when jax starts; NVPL/OpenBLAS settings are left as the machine has them.
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8 " + os.environ.get("XLA_FLAGS", "")
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["HF_HUB_OFFLINE"] = "1"
# One folder for the session: its workers and the commands that they start compile a program once, and the user's own
# cache is left alone. Workers inherit the name.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="jaxprobe-compiled-")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)

from jaxtyping import install_import_hook

with install_import_hook(["jaxprobe.models", "jaxprobe.extract", "jaxprobe.probes"], "beartype.beartype"):
    import jaxprobe  # noqa: F401

import jax
import jaxlib.gpu_solver
import jaxlib.xla_client
import pytest

from tests.compiling import compile_quickly

# A shell starts what it runs in the background deaf to Ctrl-C, and the processes that tests interrupt would inherit it.
signal.signal(signal.SIGINT, signal.default_int_handler)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_collection_modifyitems(items):
    """Tests of the paper's tables are skipped where these are not at hand."""
    if os.environ.get("JAXPROBE_DATA"):
        return
    for item in items:
        if item.get_closest_marker("data"):
            item.add_marker(pytest.mark.skip(reason="JAXPROBE_DATA does not name the folder of the paper's tables"))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """Before the fixtures of a test: its programs are compiled quickly, or with a mark as users' are."""
    compile_quickly(not any(map(item.get_closest_marker, ("compiled_fully", "libtpu", "cuda"))))


def pytest_runtest_teardown(item, nextitem):
    """A file's programs do not stay for all of the session: they come to gigabytes."""
    if nextitem is None or nextitem.path != item.path:
        jax.clear_caches()


@pytest.fixture(scope="session")
def libtpu(request):
    """TPU programs can be compiled: libtpu is there, or in a folder of its own."""
    needed = next(need for need in importlib.metadata.requires("jax") if need.startswith("libtpu"))
    _put_on_path(request, "libtpu", [re.match(r"libtpu==[\d.*]+", needed)[0]])


@pytest.fixture(scope="session")
def cuda(request):
    """GPU programs can be compiled: the extra `plan-gpu` is there, or in a folder of its own."""
    version = importlib.metadata.version("jax")
    needed = [f"jax-cuda13-plugin=={version}", f"jax-cuda13-pjrt=={version}", "nvidia-cuda-nvcc", "nvidia-nvvm"]
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")  # the plugin says that it finds no driver
    _put_on_path(request, "jax_cuda13_plugin", needed)
    # JAX looked for these calls when it was imported; a plugin that was there then needs none of this.
    for name, value, api_version in importlib.reload(jaxlib.gpu_solver).registrations()["CUDA"]:
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # registered already
            jaxlib.xla_client.register_custom_call_target(name, value, platform="CUDA", api_version=api_version)


def _put_on_path(request, module: str, requirements: list[str]) -> None:
    """Installs into a folder that only these tests see, which is kept for the next run; skips where that can't be.

    Installed beside everything else, JAX would look for a TPU or a GPU in every run.
    """
    if importlib.util.find_spec(module):
        return
    folder = request.config.cache.mkdir(re.sub(r"[^\w.]+", "-", requirements[0]).rstrip("-."))
    with open(folder / "installing", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # tests run in two processes
        if not (folder / "complete").exists():
            pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--upgrade", "--target", str(folder)]
            done = subprocess.run([*pip, *requirements], capture_output=True, text=True)
            if done.returncode:
                reason = (done.stderr or "no message").strip().splitlines()[-1]
                pytest.skip(f"{requirements[0]} can't be installed: {reason}")
            (folder / "complete").touch()
    sys.path.append(str(folder))
