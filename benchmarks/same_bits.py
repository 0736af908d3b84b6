"""Compare the bits of fourteen runs between two checkouts: a change of structure must not change a number.

    python benchmarks/same_bits.py BASE                  # BASE: another checkout or a worktree of an earlier commit
    python benchmarks/same_bits.py BASE --only fit,merge
    python benchmarks/same_bits.py BASE --workers 2      # both checkouts at once

Each checkout runs its own copy of this script, so that a case can follow the spelling of its version. What is compared
is a digest of every array and number of the result, not its words. One line a case; the exit status is 1 if any
differs. BASE may be a file, too, with what `--here` printed in another checkout on this machine: processors differ in
their last digits. Compiled programs are kept in `.jax_cache` of this checkout.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent


def digest(parts: Any) -> str:
    """Digest of numbers, strings and arrays in nested sequences and dicts."""
    hashed = blake2b(digest_size=8)

    def add(part: Any) -> None:
        if isinstance(part, dict):
            for name in sorted(part):
                hashed.update(str(name).encode())
                add(part[name])
        elif isinstance(part, list | tuple):
            for item in part:
                add(item)
        elif isinstance(part, str):
            hashed.update(part.encode())
        else:
            array = np.asarray(part)
            hashed.update(f"{array.dtype}{array.shape}".encode() + np.ascontiguousarray(array).tobytes())

    add(parts)
    return hashed.hexdigest()


def bits(result: Any) -> tuple[str, str]:
    """Digest of a result of nsflow and a line that says what it is."""
    numbers = [result.logZ, result.logZ_err, result.ess, result.khat, result.max_weight_share, result.num_calls]
    steps = [[step["num_calls"], step["contour"], step["logZ"], step["ess"]] for step in result.trace]
    arrays = [result.names, result.samples, result.log_likelihood, result.log_weights, result.num_draws]
    parts = [numbers, steps, arrays, len(result.alarms), result.finished]
    return digest(parts), f"{result.num_calls} calls, log Z {result.logZ:.6f}, {len(result.alarms)} alarms"


def gaussian(num_dims: int) -> tuple[Callable, Any]:
    """Correlated normal likelihood in a box."""
    import jax.numpy as jnp
    import numpyro.distributions as dist

    import nsflow

    scale = np.logspace(-1, 0, num_dims)
    root = np.linalg.inv(np.linalg.cholesky(np.outer(scale, scale) * (0.5 + 0.5 * np.eye(num_dims))))
    prior = nsflow.Prior({"x": dist.Uniform(-10.0, 10.0).expand([num_dims])})
    return lambda p: -0.5 * jnp.sum((root @ p["x"]) ** 2), prior


def kernels() -> Any:
    """2-d, kernels on the levels."""
    import nsflow

    return nsflow.run(*gaussian(2), ess=1000, seed=1, progress=False)


def gauss_10() -> Any:
    """10-d, Gaussians on the levels."""
    import nsflow

    return nsflow.run(*gaussian(10), ess=1500, seed=2, progress=False)


def ridge() -> Any:
    """A chain of curved ridges in 8-d, with rounds that train flows and searches for ridges."""
    import jax.numpy as jnp
    import numpyro.distributions as dist

    import nsflow

    def log_likelihood(p: Any) -> Any:
        x = p["x"]
        return -jnp.sum(20 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)

    prior = nsflow.Prior({"x": dist.Uniform(-5.0, 5.0).expand([8])})
    return nsflow.run(log_likelihood, prior, ess=1500, seed=3, max_calls=40_000, progress=False)


def modes() -> Any:
    """Broad and narrow modes in 5-d: the search for modes that the levels have lost."""
    import jax.numpy as jnp
    import numpyro.distributions as dist

    import nsflow

    def log_likelihood(p: Any) -> Any:
        x = p["x"]
        terms = [
            jnp.log(w) - 5 * jnp.log(s) - 0.5 * jnp.sum(((x - m) / s) ** 2)
            for w, m, s in ((0.5, -4.0, 1.0), (0.3, 6.0, 0.2), (0.2, 2.0, 0.4))
        ]
        return jnp.logaddexp(jnp.logaddexp(terms[0], terms[1]), terms[2])

    prior = nsflow.Prior({"x": dist.Uniform(-10.0, 10.0).expand([5])})
    return nsflow.run(log_likelihood, prior, ess=1000, seed=4, max_calls=40_000, progress=False)


def funnel() -> Any:
    """Neal's funnel in 8-d: a mixture of levels, and the prior's tail."""
    import jax.numpy as jnp
    import numpyro.distributions as dist

    import nsflow

    def log_likelihood(p: Any) -> Any:
        v, x = p["v"], p["x"]
        return -0.5 * (v / 1.5) ** 2 - 0.5 * jnp.sum(x**2 * jnp.exp(-v)) - 0.5 * len(x) * v

    prior = nsflow.Prior({"v": dist.Uniform(-8.0, 8.0), "x": dist.Uniform(-20.0, 20.0).expand([7])})
    return nsflow.run(log_likelihood, prior, ess=1500, seed=5, max_calls=40_000, progress=False)


def host_log_likelihood(params: dict[str, Any]) -> tuple[float, dict[str, float]]:
    """A straight line, in NumPy, with a derived parameter; NaN in a corner."""
    x = np.linspace(0, 1, 7)
    residuals = (params["a"] + params["b"] * x - 0.3 - 2 * x) / 0.2
    value = -0.5 * float(np.sum(residuals**2)) if params["a"] < 4.9 else float("nan")
    return value, {"end": float(params["a"] + params["b"])}


def pool() -> Any:
    """A host likelihood with derived parameters and NaN, in a pool of two processes."""
    from multiprocessing import get_context

    import numpyro.distributions as dist

    import nsflow

    prior = nsflow.Prior({"a": dist.Uniform(-5.0, 5.0), "b": dist.Normal(0.0, 5.0)})
    with get_context("spawn").Pool(2) as workers:
        likelihood = nsflow.HostLikelihood(host_log_likelihood, pool=workers)
        return nsflow.run(likelihood, prior, ess=800, seed=6, progress=False)


def warm() -> Any:
    """A warm start from samples of the posterior."""
    import nsflow

    log_likelihood, prior = gaussian(6)
    cold = nsflow.run(log_likelihood, prior, ess=500, seed=7, progress=False)
    return nsflow.run(log_likelihood, prior, ess=1000, seed=8, start=cold, progress=False)


def periodic() -> Any:
    """An angle, an integer and a sparse prior with many values at an edge."""
    import jax.numpy as jnp
    import numpyro.distributions as dist

    import nsflow

    def log_likelihood(p: Any) -> Any:
        return 4 * jnp.cos(p["angle"] - 3.1) - 0.5 * (p["count"] - 3.0) ** 2 + 3 * jnp.log1p(-p["share"])

    prior = nsflow.Prior(
        {
            "angle": nsflow.Periodic(dist.Uniform(-np.pi, np.pi)),
            "count": dist.Poisson(4.0),
            "share": dist.Beta(0.05, 2.0),
        }
    )
    return nsflow.run(log_likelihood, prior, ess=1000, seed=9, progress=False)


def resumed() -> Any:
    """Stopped twice and resumed from a checkpoint."""
    import nsflow

    log_likelihood, prior = gaussian(3)
    with tempfile.TemporaryDirectory() as folder:
        where = Path(folder) / "run"
        for max_calls in (1800, 3200, 100_000):
            result = nsflow.run(
                log_likelihood, prior, ess=900, seed=10, max_calls=max_calls, checkpoint=where, progress=False
            )
    return result


def merged() -> Any:
    """Two checkpoints joined, whose proposals know each other."""
    import nsflow

    log_likelihood, prior = gaussian(3)
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / str(seed) for seed in (11, 12)]
        for seed, path in enumerate(paths, 11):
            nsflow.run(log_likelihood, prior, ess=500, seed=seed, checkpoint=path, progress=False)
        return nsflow.merge(paths, log_likelihood=log_likelihood, prior=prior)


def conflict() -> Any:
    """Prior and data in conflict: copies of Gaussians in the place of levels."""
    import jax.numpy as jnp
    import numpyro.distributions as dist

    import nsflow

    prior = nsflow.Prior({"x": dist.Normal(0.0, 1.0).expand([2])})
    return nsflow.run(lambda p: -0.5 * jnp.sum(((p["x"] - 30.0) / 0.1) ** 2), prior, ess=500, seed=13, progress=False)


def estimator() -> Any:
    """An estimator of the user's choice in the posterior rounds."""
    import nsflow

    log_likelihood, prior = gaussian(4)
    return nsflow.run(log_likelihood, prior, ess=600, seed=14, proposal=nsflow.GaussianEstimator(), progress=False)


def blackjax_drop_in() -> tuple[str, str]:
    """The drop-in with a mixture of moves and a search for modes, forty steps."""
    import jax
    import jax.numpy as jnp

    import nsflow.adapters.blackjax as nested

    def log_likelihood(x: Any) -> Any:
        return jnp.logaddexp(-0.5 * jnp.sum(((x - 1) / 0.3) ** 2), -0.5 * jnp.sum(((x + 1) / 0.2) ** 2))

    def log_prior(x: Any) -> Any:
        return jnp.where(jnp.all(jnp.abs(x) < 4), -4 * jnp.log(8.0), -jnp.inf)

    def draw(key: Any, n: int) -> Any:
        return jax.random.uniform(key, (n, 4), minval=-4.0, maxval=4.0)

    dead, parts = [], []
    algorithm = nested.as_top_level_api(log_prior, log_likelihood, 8, 40, nested.Mixture())
    key = jax.random.key(15)
    state = algorithm.init(draw(jax.random.fold_in(key, 0), 300))
    state = nested.add_modes(state, draw(jax.random.fold_in(key, 1), 900), log_prior, log_likelihood)
    step = jax.jit(algorithm.step)
    for i in range(40):
        state, info = step(jax.random.fold_in(key, 2 + i), state)
        dead.append(info)
        parts.append([np.asarray(leaf) for leaf in jax.tree.leaves(info.particles)])
    result = nested.finalise(state, dead)
    parts.append([result.logZ, result.logZ_err, result.num_calls, len(result.alarms)])
    return digest(parts), f"{result.num_calls} calls, log Z {float(result.logZ):.6f}"


def fit() -> tuple[str, str]:
    """`fit`, by flow matching and by denoising scores; densities, draws and inverses of the flows."""
    import jax

    import nsflow
    from nsflow.diffusion.process import ProcessPath, VariancePreserving
    from nsflow.diffusion.score_matching import DenoisingScoreMatching

    rng = np.random.default_rng(16)
    x = rng.normal(size=(600, 2))
    x[:, 1] += x[:, 0] ** 2
    parts, words = [], []
    for objective in (None, DenoisingScoreMatching(ProcessPath(VariancePreserving()))):
        training = nsflow.Training(num_steps=300, objective=objective)
        flow, info = nsflow.fit(jax.random.key(17), x, training=training)
        drawn, log_q = flow.sample_and_log_prob(jax.random.key(18), 200)
        parts.append([drawn, log_q, flow.log_prob(x), info.log_prob])
        words.append(f"{info.log_prob:.4f}")
    return digest(parts), f"held-out density {', '.join(words)} nats"


CASES: dict[str, Callable[[], Any]] = {
    case.__name__: case
    for case in (
        *(kernels, gauss_10, ridge, modes, funnel, pool, warm, periodic, resumed, merged, conflict, estimator),
        *(blackjax_drop_in, fit),
    )
}


def run_here(names: list[str]) -> None:
    """Print a line of JSON for each case of this checkout."""
    import warnings

    import jax

    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    for name in names:
        start = time.perf_counter()
        np.random.seed(0)  # anesthetic draws the volumes of live points from NumPy's own state
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made = CASES[name]()
        code, words = made if isinstance(made, tuple) else bits(made)
        print(json.dumps([name, code, words, round(time.perf_counter() - start, 1)]), flush=True)


def lines(checkout: Path, names: list[str]) -> Iterator[list[Any]]:
    """Run the cases of a checkout in a process of its own, or read a file; what it prints."""
    if checkout.is_file():
        rows = [json.loads(line) for line in checkout.read_text().splitlines()]
        yield from (row for row in rows if row[0] in names)
        return
    path = str(checkout.resolve())
    env = {"JAX_COMPILATION_CACHE_DIR": str(HERE.parent / ".jax_cache")} | os.environ | {"PYTHONPATH": path}
    command = [sys.executable, str(checkout / "benchmarks" / "same_bits.py"), "--here", "--only", ",".join(names)]
    with subprocess.Popen(command, cwd=path, env=env, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            yield json.loads(line)
    if process.returncode:
        raise SystemExit(f"the cases of {checkout} ended with status {process.returncode}")


def main() -> int:
    """Run both checkouts and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", nargs="?", type=Path, help="the other checkout, or what `--here` printed in it")
    parser.add_argument("--only", default=",".join(CASES), help="cases, with commas between")
    parser.add_argument("--workers", type=int, choices=(1, 2), default=1, help="2: both checkouts at once")
    parser.add_argument("--here", action="store_true", help="only print the digests of this checkout")
    options = parser.parse_args()
    names = options.only.split(",")
    unknown = [name for name in names if name not in CASES]
    if unknown:
        parser.error(f"unknown cases {unknown}; there are {list(CASES)}")
    if options.here:
        run_here(names)
        return 0
    if options.base is None:
        parser.error("BASE is missing: a checkout to compare with")
    with ThreadPoolExecutor(options.workers) as threads:
        base, here = threads.map(lambda checkout: list(lines(checkout, names)), (options.base, HERE.parent))
    num_different = 0
    before = {name: rest for name, *rest in base}
    for name, new, words, seconds in here:
        old, old_words, old_seconds = before[name]
        verdict = "same" if old == new else "DIFFERENT"
        num_different += old != new
        print(f"{name:<18}{verdict:<11}{words}" + (f"; was {old_words}" if old_words != words else ""), end="")
        print(f"  ({old_seconds} s, {seconds} s)")
    print(f"{len(names) - num_different} of {len(names)} runs have the same bits")
    return int(num_different > 0)


if __name__ == "__main__":
    sys.exit(main())
