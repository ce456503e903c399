"""Every test runs with eight CPU devices, strict dtypes and no silent rank promotion; shapes are checked."""

import os

# Read when jax starts; NVPL/OpenBLAS settings are left as the machine has them.
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8 " + os.environ.get("XLA_FLAGS", "")
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["HF_HUB_OFFLINE"] = "1"

from jaxtyping import install_import_hook

with install_import_hook(["jaxprobe.models", "jaxprobe.extract", "jaxprobe.probes"], "beartype.beartype"):
    import jaxprobe  # noqa: F401

import jax

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
