"""How the tests' programs are compiled: quickly, or with the mark ``compiled_fully`` as users' are.

Most of the suite's seconds were XLA's: programs of tiny models, which compute for milliseconds, optimised as if for
hours. What emits fused loops takes half of what is left; from jaxlib 0.11 on there is no other.
"""

import jax
import jaxlib.version

QUICKLY = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
if jaxlib.version.__version_info__ < (0, 11):
    QUICKLY["xla_cpu_use_fusion_emitters"] = False
# For processes that tests start: a part of XLA_FLAGS.
FLAGS = " ".join(f"--{name}={str(value).lower()}" for name, value in QUICKLY.items())

_fully = jax._src.compiler.get_compile_options


def _quickly(*arguments, env_options_overrides=None, **options):
    return _fully(*arguments, env_options_overrides=QUICKLY | (env_options_overrides or {}), **options)


def compile_quickly(wanted: bool) -> None:
    """Of this process, from now on."""
    chosen = _quickly if wanted else _fully
    if jax._src.compiler.get_compile_options is not chosen:
        jax._src.compiler.get_compile_options = chosen
        jax.clear_caches()
