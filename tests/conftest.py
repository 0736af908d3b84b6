"""Strict mode: shapes are checked at run time, types and ranks are not promoted silently. And what is quick."""

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

# Files of which `make check` runs nothing: whole runs, networks that learn, processes that start.
COSTLY = {
    "test_action_matching",
    "test_blackjax",
    "test_checkpoint",
    "test_conflict",
    "test_constrained",
    "test_devices",
    "test_diffusion_page",
    "test_energy",
    "test_estimator",
    "test_examples",
    "test_fit_objectives",
    "test_fuzz",
    "test_hard",
    "test_kills",
    "test_langevin",
    "test_merge",
    "test_modes",
    "test_online",
    "test_parameters",
    "test_phases",
    "test_plots",
    "test_pool",
    "test_prior",
    "test_process",
    "test_report",
    "test_ridges",
    "test_running_page",
    "test_sampler",
    "test_score_matching",
    "test_sde",
    "test_start",
    "test_stop",
    "test_tails",
    "test_terminal",
    "test_triangular",
    "test_workers",
}
COSTLY_TESTS = {"test_code_runs_and_prints_what_the_page_says"}


def pytest_collection_modifyitems(items):
    """Mark what `make check` runs."""
    for item in items:
        is_costly = item.path.stem in COSTLY or getattr(item, "originalname", "") in COSTLY_TESTS
        if not is_costly and item.get_closest_marker("slow") is None:
            item.add_marker("quick")
