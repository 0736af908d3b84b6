"""Give samples of known targets a density by every method, run the sampler with each as its proposal, print two tables.

    python benchmarks/densities.py [--targets shells-2,...] [--sizes 1000,10000]   # held-out density, efficiency, times
    python benchmarks/densities.py --runs [--targets ...] [--seeds 4]              # calls per effective sample, pull
    python benchmarks/densities.py --table                                         # only print what was measured

Samples of a target are exact up to a ten-thousandth of its mass: draws of a finished run's mixture, kept with
probability weight over largest weight. Each cell is one line of `results/densities.jsonl`; what is there is not
repeated. One process at a time runs; times include compilation.
"""

import argparse
import json
import subprocess
import sys
import time
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

RESULTS = Path(__file__).resolve().parent / "results" / "densities.jsonl"
SAMPLES = Path(__file__).resolve().parent / "samples"  # not committed
TARGETS = "shells-2,eggbox-2,mixture-5,loggamma-10,shells-10,funnel-10"
RUN_TARGETS = "shells-2,mixture-5,loggamma-10"
NUM_TEST = 5000
NUM_SAMPLES = 100_000 + NUM_TEST


def methods() -> dict[str, Any]:
    from nsflow.action_matching import ActionMatching
    from nsflow.adapters.flowjax import DiscreteFlowEstimator
    from nsflow.coupling import Sinkhorn
    from nsflow.estimator import FlowEstimator, GaussianEstimator, GaussianMixtureEstimator, KernelEstimator
    from nsflow.maximum_likelihood import MaximumLikelihood
    from nsflow.objective import FlowMatching
    from nsflow.path import LinearPath, TrigonometricPath
    from nsflow.process import ProcessPath, VariancePreserving
    from nsflow.score_matching import DenoisingScoreMatching, ImplicitScoreMatching, SlicedDivergence
    from nsflow.train import Training

    path = TrigonometricPath()
    objectives = {
        "flow matching": FlowMatching(path),
        "flow matching, linear path": FlowMatching(LinearPath()),
        "flow matching, optimal transport": FlowMatching(LinearPath(), coupling=Sinkhorn(num_iterations=30)),
        "denoising score matching": DenoisingScoreMatching(path),
        "denoising score matching, VP": DenoisingScoreMatching(ProcessPath(VariancePreserving())),
        "sliced score matching": ImplicitScoreMatching(path, divergence=SlicedDivergence()),
        "action matching": ActionMatching(path),
        "maximum likelihood": MaximumLikelihood(path),
    }
    return {
        "Gaussian": GaussianEstimator(),
        "Gaussian mixture": GaussianMixtureEstimator(),
        "kernels": KernelEstimator(),
        "discrete flow": DiscreteFlowEstimator(),
        **{name: FlowEstimator(Training(objective=objective), wide=False) for name, objective in objectives.items()},
    }


def as_proposal(name: str) -> Any:
    """The estimator as the sampler takes it: flows with a wider base; the default is none at all."""
    from nsflow.estimator import FlowEstimator

    if name == "default":
        return None
    estimator = methods()[name]
    return replace(estimator, wide=True) if isinstance(estimator, FlowEstimator) else estimator


def posterior(name: str) -> tuple[np.ndarray, Any]:
    """Latent points of the posterior, and its normalised log-density."""
    import jax
    from samplers import build, model

    import nsflow
    from nsflow.likelihood import as_likelihood, evaluate
    from nsflow.precision import float64
    from nsflow.state import Phase, extend, no_batches

    problem = build(name)
    log_likelihood, prior = model(problem)

    def log_density(x: np.ndarray) -> np.ndarray:
        values = evaluate(as_likelihood(log_likelihood), prior.forward(x)).log_likelihood
        return values + np.asarray(prior.latent_log_prob(x)) - problem.logz

    SAMPLES.mkdir(exist_ok=True)
    file = SAMPLES / f"{name}.npy"
    if not file.exists():
        state = nsflow.init(jax.random.key(0), nsflow.Problem(as_likelihood(log_likelihood), prior))
        for i in range(1, 1000):
            if state.phase is Phase.FINISHED:
                break
            state, _ = nsflow.step(jax.random.key(i), state)
        frozen = state.frozen
        weights = np.exp(frozen.log_likelihood + frozen.log_prior - frozen.draws.log_Q)
        largest = 1.5 * np.sort(weights)[int(np.searchsorted(np.cumsum(np.sort(weights)) / weights.sum(), 1 - 1e-4))]
        rng, kept, num = np.random.default_rng(0), [], 0
        num_draws = dict(zip(frozen.components, (int(n) for n in frozen.proposal.num_draws), strict=True))
        while num < NUM_SAMPLES:
            _, batch = float64(extend)(jax.random.key(10_000 + len(kept)), state, no_batches(state, num_draws))
            weights = np.exp(batch.log_likelihood + batch.log_prior - batch.draws.log_Q)
            kept.append(batch.draws.x[rng.random(len(weights)) < weights / largest])
            num += len(kept[-1])
        np.save(file, rng.permutation(np.concatenate(kept)))
    return np.load(file), log_density


def fit_cells(name: str, sizes: list[int], wanted: list[str]) -> None:
    """All methods on one target."""
    import jax

    x, log_density = posterior(name)
    held_out = x[:NUM_TEST]
    done = {(row["target"], row["size"], row["method"]) for row in load() if "size" in row}
    for size in sizes:
        points = x[NUM_TEST : NUM_TEST + size]
        for method in wanted:
            if (name, size, method) in done or (method == "maximum likelihood" and (size > 10_000 or x.shape[1] > 5)):
                continue
            start = time.perf_counter()
            density = methods()[method].fit(jax.random.key(1), points, np.zeros(size))
            train_s = time.perf_counter() - start
            start = time.perf_counter()
            draws, log_q = density.sample_and_log_prob(jax.random.key(2), NUM_TEST)
            sample_s = time.perf_counter() - start
            log_weights = log_density(np.asarray(draws, np.float64)) - np.asarray(log_q)
            weights = np.exp(np.nan_to_num(log_weights, nan=-np.inf))
            log_prob = np.asarray(density.log_prob(held_out))
            row = {
                "target": name,
                "size": size,
                "method": method,
                "log_prob": np.mean(np.maximum(np.nan_to_num(log_prob, nan=-100.0), -100.0)),
                "entropy": -np.mean(log_density(held_out)),
                "efficiency": np.sum(weights) ** 2 / np.sum(weights**2) / NUM_TEST,
                "mass": np.mean(weights),
                "train_s": train_s,
                "sample_s": sample_s,
            }
            append(row)


def run_cell(name: str, method: str, seed: int) -> None:
    """One run of the sampler."""
    from samplers import build, model

    import nsflow

    problem = build(name)
    log_likelihood, prior = model(problem)
    start = time.perf_counter()
    result = nsflow.run(log_likelihood, prior, seed=seed, max_calls=300_000, proposal=as_proposal(method))
    append(
        {
            "target": name,
            "method": method,
            "seed": seed,
            "logZ_error": result.logZ - problem.logz,
            "logZ_err": result.logZ_err,
            "ess": result.ess,
            "num_calls": result.num_calls,
            "finished": result.finished,
            "alarms": list(result.alarms),
            "wall_s": time.perf_counter() - start,
        }
    )


def append(row: dict) -> None:
    with RESULTS.open("a") as file:
        file.write(json.dumps(row, default=float) + "\n")
    print({k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()}, flush=True)


def load() -> list[dict]:
    return [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []


def table_of_fits(rows: list[dict]) -> str:
    """Efficiency and what a density falls short of the target's own log-density, one column a target."""
    cells = {(row["target"], row["size"], row["method"]): row for row in rows if "size" in row}
    targets = [t for t in TARGETS.split(",") if any(key[0] == t for key in cells)]
    lines = [
        "| points | method | " + " | ".join(targets) + " | training s | 5000 draws s |",
        "|" + "---|" * (4 + len(targets)),
    ]
    for size in sorted({key[1] for key in cells}):
        for method in methods():
            found = [cells.get((target, size, method)) for target in targets]
            if not any(found):
                continue
            entries = [f"{r['efficiency']:.2f}, {-r['entropy'] - r['log_prob']:.2f}" if r else "" for r in found]
            times = [np.median([r[key] for r in found if r]) for key in ("train_s", "sample_s")]
            lines.append(f"| {size} | {method} | " + " | ".join(entries) + f" | {times[0]:.1f} | {times[1]:.1f} |")
    return "\n".join(lines)


def table_of_runs(rows: list[dict]) -> str:
    """Calls for an effective sample and pulls of runs of the sampler."""
    groups = defaultdict(list)
    for row in rows:
        if "seed" in row:
            groups[row["target"], row["method"]].append(row)
    lines = [
        "| problem | proposal | seeds | calls / ESS | mean pull | rms pull | not finished | flagged | wall s |",
        "|" + "---|" * 9,
    ]
    order = ["default", *methods()]
    for (target, method), group in sorted(groups.items(), key=lambda item: (item[0][0], order.index(item[0][1]))):
        pull = np.array([row["logZ_error"] / row["logZ_err"] for row in group])
        calls, ess, wall = (np.mean([row[key] for row in group]) for key in ("num_calls", "ess", "wall_s"))
        unfinished = sum(not row["finished"] for row in group)
        flagged = sum(bool(row["alarms"]) for row in group)
        lines.append(
            f"| {target} | {method} | {len(group)} | {calls / ess:.2f} | {pull.mean():+.2f} | "
            f"{np.sqrt(np.mean(pull**2)):.2f} | {unfinished} | {flagged} | {wall:.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets")
    parser.add_argument("--sizes", default="1000,10000,100000")
    parser.add_argument("--methods")
    parser.add_argument("--runs", action="store_true")
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--cell", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.cell:
        if args.runs:
            run_cell(args.cell[0], args.cell[1], int(args.cell[2]))
        else:
            fit_cells(args.cell[0], [int(n) for n in args.sizes.split(",")], [args.methods])
        return
    if args.table:
        print(table_of_fits(load()), table_of_runs(load()), sep="\n\n")
        return
    wanted = args.methods.split(";") if args.methods else list(methods())
    command = [sys.executable, __file__]
    if args.runs:
        done = {(row["target"], row["method"], row["seed"]) for row in load() if "seed" in row}
        for seed in range(args.seeds):
            for name in (args.targets or RUN_TARGETS).split(","):
                for method in args.methods.split(";") if args.methods else ["default", *wanted]:
                    if (name, method, seed) not in done:
                        subprocess.run([*command, "--runs", "--cell", name, method, str(seed)], check=False)
    else:
        for name in (args.targets or TARGETS).split(","):
            for size in args.sizes.split(","):
                for method in wanted:
                    subprocess.run([*command, "--sizes", size, "--methods", method, "--cell", name], check=False)


if __name__ == "__main__":
    main()
