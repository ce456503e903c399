"""Compiled programs are kept between commands, in the user's cache folder."""

import hashlib
import os
import platform
import sys
import warnings
from pathlib import Path

# What is set where it is not set already; None stands for the folder.
VARIABLES = {
    "JAX_COMPILATION_CACHE_DIR": None,
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",  # also what compiles in no time: nothing is compiled twice
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    "JAX_COMPILATION_CACHE_MAX_SIZE": 2**31,  # the programs used longest ago go first
}
_OFF = ("false", "f", "no", "n", "off", "0")  # as JAX reads them


def keep_compiled() -> None:
    """Lets JAX keep compiled programs in the user's cache folder; does nothing where JAX is imported already.

    JAX's own variables decide: JAX_ENABLE_COMPILATION_CACHE=false turns it off, JAX_COMPILATION_CACHE_DIR names another
    folder. A folder that can't be written leaves things as they were. JAX locks it for each reading and writing.
    """
    off = os.environ.get("JAX_ENABLE_COMPILATION_CACHE", "").lower() in _OFF
    if off or "JAX_COMPILATION_CACHE_DIR" in os.environ or "jax" in sys.modules:
        return
    try:
        folder = cache_folder()
        folder.mkdir(parents=True, exist_ok=True)
        _remove_halves(folder)
    except OSError:
        return
    # A program that can't be read or written is compiled: nothing that a user would have to know.
    warnings.filterwarnings("ignore", message="Error (reading|writing) persistent compilation cache entry")
    for name, value in VARIABLES.items():
        os.environ.setdefault(name, str(value or folder))


def cache_folder() -> Path:
    """In XDG_CACHE_HOME or ~/.cache; one for each kind of processor, as a home may be shared by several."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    base = Path(base) if os.path.isabs(base) else Path.home() / ".cache"
    processor = platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor += next((line for line in lines if line.startswith(("flags", "Features"))), "")
    except OSError:  # not Linux
        processor += platform.processor()
    return base / "jaxprobe" / f"compiled-{hashlib.sha256(processor.encode()).hexdigest()[:12]}"


def _remove_halves(folder: Path) -> None:
    """Removes programs whose writing was cut off: JAX notes the time of use after the program, and misses it later."""
    from filelock import FileLock

    with FileLock(folder / ".lockfile", timeout=10):
        for program in folder.glob("*-cache"):
            if not program.with_name(program.name.removesuffix("-cache") + "-atime").exists():
                program.unlink()
