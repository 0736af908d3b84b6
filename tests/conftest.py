"""Strict mode: shapes are checked at run time, types and ranks are not promoted silently."""

import jax
from jaxtyping import install_import_hook

install_import_hook("nsflow", "beartype.beartype")

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
