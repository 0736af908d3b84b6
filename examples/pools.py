# %% [markdown]
# # One likelihood through every pool
#
# A likelihood in plain Python goes to the workers of whatever pool you have. Each function below makes one kind of it;
# the evidence is the same to the last bit, since the points do not depend on who evaluates them.
#
# `python examples/pools.py [--output chains] [KIND ...]` runs those that are named, or all that are installed. It says
# which one is at work, and draws how long each took.
# mpi4py wants `mpiexec -n 3 python -m mpi4py.futures examples/pools.py mpi4py`.

# %%
import argparse
import concurrent.futures
import contextlib
import multiprocessing
import time
from pathlib import Path

import numpy as np
import numpyro.distributions as dist

import nsflow


def log_likelihood(params):
    """Two numbers, one of them well measured; half a millisecond of work."""
    time.sleep(5e-4)
    return -0.5 * ((params["a"] - 1) ** 2 / 0.1**2 + (params["b"] + 0.5) ** 2)


def prior():
    return nsflow.Prior({"a": dist.Uniform(-5.0, 5.0), "b": dist.Normal(0.0, 1.0)})


# Normalising constants of a convolution: Gaussian in b, and a width of ten for a.
LOG_Z = np.log(0.1 * np.sqrt(2 * np.pi) / 10) - 0.5 * (np.log(2) + 0.5**2 / 2)


# %% [markdown]
# ## Pools
#
# A script that starts processes needs `if __name__ == "__main__":`, as below.


# %%
def multiprocessing_pool():
    return multiprocessing.get_context("spawn").Pool(2)


def process_executor():
    return concurrent.futures.ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn"))


def thread_executor():
    return concurrent.futures.ThreadPoolExecutor(2)


def schwimmbad_pool():
    import schwimmbad

    return schwimmbad.MultiPool(2)


def schwimmbad_serial():
    import schwimmbad

    return schwimmbad.SerialPool()


def dask_client():
    import distributed

    return distributed.Client(n_workers=2, threads_per_worker=1, dashboard_address=None)


@contextlib.contextmanager
def ray_pool():
    import ray
    from ray.util.multiprocessing import Pool

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    with Pool(2) as pool:
        yield pool
    ray.shutdown()


def mpi_executor():
    from mpi4py.futures import MPIPoolExecutor

    return MPIPoolExecutor()


POOLS = {
    "multiprocessing": multiprocessing_pool,
    "processes": process_executor,
    "threads": thread_executor,
    "schwimmbad": schwimmbad_pool,
    "schwimmbad-serial": schwimmbad_serial,
    "dask": dask_client,
    "ray": ray_pool,
    "mpi4py": mpi_executor,
}

# %% [markdown]
# ## The same run through each of them


# %%
def run(pool):
    likelihood = nsflow.HostLikelihood(log_likelihood, pool=pool)
    return nsflow.run(likelihood, prior(), seed=1, settings=nsflow.Settings(ess=1000, num_prior=500, num_live=300))


def main(kinds, output="chains"):
    print("no pool: running ...", flush=True)
    start = time.perf_counter()
    alone = run(None)
    seconds = {"no pool": time.perf_counter() - start}
    print(f"{'no pool':18s} logZ {alone.logZ:.4f} +- {alone.logZ_err:.4f}, exact {LOG_Z:.4f}")
    assert abs(alone.logZ - LOG_Z) < 5 * alone.logZ_err
    for kind in kinds or [kind for kind in POOLS if kind != "mpi4py"]:
        print(f"{kind}: starting workers, running ...", flush=True)
        try:
            context = POOLS[kind]()
            with context as pool:
                start = time.perf_counter()
                result = run(pool)
        except ImportError as error:
            print(f"{kind:18s} not installed: {error}")
            continue
        seconds[kind] = time.perf_counter() - start
        print(f"{kind:18s} logZ {result.logZ:.4f} +- {result.logZ_err:.4f} in {seconds[kind]:.1f} s")
        assert result == alone, f"{kind} gave another result"
    output = Path(output)
    output.mkdir(parents=True, exist_ok=True)
    plot(seconds, output / "pools.png")
    print(f"Wrote {output}/pools.png")


def plot(seconds, path):
    """One bar a pool."""
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(7, 0.5 + 0.4 * len(seconds)), layout="constrained")
    axis.barh(list(seconds), list(seconds.values()), color="#1f4e79")
    axis.invert_yaxis()
    axis.set(xlabel="seconds of one run, two workers")
    figure.savefig(path, dpi=100)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="One likelihood through every pool.")
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=f"of {', '.join(POOLS)} (default: all but mpi4py)")
    parser.add_argument("--output", default="chains", help="folder for the picture (default: chains)")
    arguments = parser.parse_args()
    main(arguments.kinds, arguments.output)
