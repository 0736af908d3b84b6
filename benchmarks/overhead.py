"""What nsflow costs beside the likelihood: per call at 0, 1 and 100 ms, and over a run of a million calls.

Times over a long run are those of the processor, which other people's work on the machine does not change.

    python benchmarks/overhead.py calls      # seconds of overhead a call, with 1 and 2 workers
    python benchmarks/overhead.py long       # time and memory a call over 1e6 calls
    python benchmarks/overhead.py figure     # docs/images/overhead.png of both

Each writes its part of benchmarks/results/overhead.json.
"""

import argparse
import concurrent.futures
import json
import multiprocessing
import os
import time
from functools import partial
from pathlib import Path

import jax
import numpy as np
import numpyro.distributions as dist

import nsflow
from nsflow.likelihood.likelihood import as_likelihood
from nsflow.nested.state import Phase

RESULTS = Path(__file__).parent / "results" / "overhead.json"
FIGURE = Path(__file__).parent.parent / "docs" / "images" / "overhead.png"
PRIOR = {"x": dist.Uniform(-5.0, 5.0).expand([2])}


def sleeping(seconds, params):
    """A Gaussian that takes its time."""
    if seconds:
        time.sleep(seconds)
    return -0.5 * float(np.sum((params["x"] / 0.3) ** 2))


def vectorized(params):
    return -0.5 * np.sum((params["x"] / 0.3) ** 2, axis=1)


def measure_calls() -> list[dict]:
    """Wall-clock seconds of whole runs beyond those that the calls themselves take, shared among the workers."""
    rows = []
    for milliseconds, max_calls in ((0, 20_000), (1, 20_000), (100, 2_000)):
        for workers in (1, 2):
            pool = concurrent.futures.ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))
            with pool:
                list(pool.map(abs, range(8)))  # start the workers
                likelihood = nsflow.HostLikelihood(partial(sleeping, milliseconds / 1000), pool=pool)
                run = partial(nsflow.run, likelihood, nsflow.Prior(PRIOR), ess=10_000)
                run(max_calls=3000 if milliseconds < 100 else 1100)  # imports and some of the compilation
                start, start_cpu = time.perf_counter(), time.process_time()
                result = run(seed=1, max_calls=max_calls)
                seconds, cpu = time.perf_counter() - start, time.process_time() - start_cpu
            own = result.num_calls * milliseconds / 1000 / workers
            rows.append({
                "milliseconds": milliseconds, "workers": workers, "calls": result.num_calls,
                "seconds": round(seconds, 2),
                "overhead_per_call_ms": round(1000 * (seconds - own) / result.num_calls, 3),
                "cpu_per_call_ms": round(1000 * cpu / result.num_calls, 3),
                "efficiency": round(own / seconds, 3),
            })  # fmt: skip
            print(rows[-1], flush=True)
    return rows


def resident() -> float:
    """Resident memory in MB."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def measure_long(num_calls: int) -> list[dict]:
    """Seconds of the processor and memory after each step of a run of a likelihood that costs next to nothing."""
    likelihood = as_likelihood(nsflow.HostLikelihood(vectorized, vectorized=True))
    settings = nsflow.Settings(ess=num_calls)
    key = jax.random.key(0)
    state = nsflow.init(key, nsflow.Problem(likelihood, nsflow.Prior(PRIOR)), settings)
    rows, start, i = [], time.process_time(), 0
    while state.num_calls < num_calls and state.phase is not Phase.FINISHED:
        i += 1
        state, info = nsflow.step(jax.random.fold_in(key, i), state)
        rows.append({
            "phase": info.phase, "calls": state.num_calls, "seconds": round(time.process_time() - start, 3),
            "megabytes": round(resident(), 1),
        })  # fmt: skip
        if state.num_calls // 50_000 > (rows[-2]["calls"] if len(rows) > 1 else 0) // 50_000:
            print(rows[-1], flush=True)
    return rows


def draw_figure(results: dict) -> None:
    """Time and memory per call against calls."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = [row for row in results["long"] if row["phase"] == "frozen"]
    calls, seconds, memory = (np.array([row[name] for row in rows]) for name in ("calls", "seconds", "megabytes"))
    edges = np.linspace(calls[0], calls[-1], 21)
    at = np.interp(edges, calls, seconds)
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
    left.stairs(1e6 * np.diff(at) / np.diff(edges), edges, baseline=0)
    left.set(xlabel="likelihood calls", ylabel="CPU microseconds per call", ylim=(0, None))
    right.plot(calls, 1e3 * (memory - memory[0]) / np.maximum(calls - calls[0], 1), ".")
    right.set(xlabel="likelihood calls", ylabel="kilobytes per call", ylim=(0, 1))
    FIGURE.parent.mkdir(exist_ok=True)
    figure.savefig(FIGURE, dpi=120)


def main() -> None:
    """Measure one part, or draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["calls", "long", "figure"])
    parser.add_argument("--num-calls", type=int, default=1_000_000)
    arguments = parser.parse_args()
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    if arguments.part == "figure":
        draw_figure(results)
        return
    results[arguments.part] = measure_calls() if arguments.part == "calls" else measure_long(arguments.num_calls)
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
