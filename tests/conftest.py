"""Strict mode: shapes are checked at run time, types and ranks are not promoted silently."""

import os
from pathlib import Path

# Compiled functions are shared among the workers and the processes that tests start.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).resolve().parent.parent / ".jax_cache"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")

import jax  # noqa: E402
from jaxtyping import install_import_hook  # noqa: E402

install_import_hook("nsflow", "beartype.beartype")

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
