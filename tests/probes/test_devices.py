import subprocess
import sys


def test_the_limit_on_blas_threads_reaches_the_lapack_that_jax_uses():
    """In a fresh process: jaxlib loads LAPACK at its first call, which once was inside the limit and escaped it."""
    code = """
import jax.numpy as jnp
from threadpoolctl import threadpool_info
from jaxprobe.probes.devices import solving
with solving((4, 4)):
    jnp.linalg.eigh(jnp.eye(4))
    threads = {info["filepath"]: info["num_threads"] for info in threadpool_info() if info["user_api"] == "blas"}
assert set(threads.values()) == {1}, threads
"""
    subprocess.run([sys.executable, "-c", code], check=True)
