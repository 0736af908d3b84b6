"""Give samples of known targets a density by every method, run the sampler with each as its proposal, print two tables.

    python benchmarks/densities.py [--targets shells-2,...] [--sizes 1000,10000]   # held-out density, efficiency, times
    python benchmarks/densities.py --runs [--targets ...] [--seeds 0,1]            # calls per effective sample, pull
    python benchmarks/densities.py --table                                         # only print what was measured

Samples of the targets are exact, in the coordinates in which nsflow works: the prior is normal there. Each cell is one
line of `results/densities.jsonl`; what is there is not repeated. Times are CPU seconds, so that other load on the
machine does not count; those of the fits leave out compilation, for a short fit of the same shapes comes first.
"""

import argparse
import json
import time
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from scipy import integrate, special, stats

RESULTS = Path(__file__).resolve().parent / "results" / "densities.jsonl"
TARGETS = "shells-2,eggbox-2,mixture-5,loggamma-10,shells-10,funnel-10"
RUN_TARGETS = "shells-2,mixture-5,loggamma-10"
NUM_TEST = 5000


def methods() -> dict[str, Any]:
    from nsflow.adapters.flowjax import DiscreteFlowEstimator
    from nsflow.densities.kernels import Kernels
    from nsflow.diffusion.action_matching import ActionMatching
    from nsflow.diffusion.process import ProcessPath, VariancePreserving
    from nsflow.diffusion.score_matching import DenoisingScoreMatching, ImplicitScoreMatching, SlicedDivergence
    from nsflow.flow.coupling import Sinkhorn
    from nsflow.flow.maximum_likelihood import MaximumLikelihood
    from nsflow.flow.objective import FlowMatching
    from nsflow.flow.path import LinearPath, TrigonometricPath
    from nsflow.flow.training import Training
    from nsflow.proposals.estimators import (
        AbstractEstimator,
        FlowEstimator,
        GaussianEstimator,
        GaussianMixtureEstimator,
        KernelEstimator,
    )

    @dataclass(frozen=True)
    class LocalKernels(AbstractEstimator):
        """What nsflow itself takes in up to six dimensions: kernels as wide as the cloud of their neighbours."""

        def fit(self, key: Any, points: np.ndarray, log_weights: np.ndarray) -> Kernels:
            return Kernels.fit(key, points, log_weights)

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
        "kernel density": KernelEstimator(),
        "local kernels": LocalKernels(),
        "discrete flow": DiscreteFlowEstimator(),
        "flow matching, ten times the steps": FlowEstimator(
            Training(num_steps=10 * Training().num_steps, patience=10 * Training().patience), wide=False
        ),
        **{name: FlowEstimator(Training(objective=objective), wide=False) for name, objective in objectives.items()},
    }


def as_proposal(name: str) -> Any:
    """The estimator as the sampler takes it: flows with a wider base; the default is none at all."""
    from nsflow.proposals.estimators import FlowEstimator

    if name == "default":
        return None
    estimator = methods()[name]
    return replace(estimator, wide=True) if isinstance(estimator, FlowEstimator) else estimator


def exact_samples(name: str, rng: np.random.Generator, n: int) -> np.ndarray:
    """At least n draws from the posterior of a problem of `problems.py`, in its own parameters."""
    family, dim = name.rsplit("-", 1)[0], int(name.rsplit("-", 1)[1])
    if family == "shells":
        r = np.linspace(1.5, 2.5, 10_001)  # the radial density is below e^-12 of its maximum beyond
        mass = integrate.cumulative_trapezoid(r ** (dim - 1) * stats.norm.pdf(r, 2.0, 0.1), r, initial=0.0)
        direction = rng.normal(size=(n, dim))
        radius = np.interp(rng.random(n) * mass[-1], mass, r)
        x = radius[:, None] * direction / np.linalg.norm(direction, axis=1, keepdims=True)
        x[:, 0] += rng.choice([-3.5, 3.5], n)
        return x
    if family == "eggbox":
        kept: list[np.ndarray] = []
        while sum(map(len, kept)) < n:
            x = rng.uniform(0, 10 * np.pi, (10**6, 2))
            log_ratio = (2 + np.cos(x[:, 0] / 2) * np.cos(x[:, 1] / 2)) ** 5 - 3.0**5
            kept.append(x[np.log(rng.random(len(x))) < log_ratio])
        return np.concatenate(kept)
    if family == "mixture":
        weights, widths = np.array([0.4, 0.3, 0.2, 0.1]), np.array([1.0, 0.5, 0.3, 0.2])
        centres = np.array([[-4, -4, 0, 2, -3], [5, -3, 4, -5, 0], [-2, 6, -6, 3, 5], [7, 7, 2, -1, -7]])
        k = rng.choice(4, n, p=weights)
        return centres[k] + widths[k, None] * rng.normal(size=(n, dim))
    if family == "loggamma":
        num_log_gamma = (dim + 2) // 2 - 1
        log_gamma = np.log(rng.exponential(size=(n, num_log_gamma)))
        x = 2 / 3 + np.concatenate([log_gamma, rng.normal(size=(n, dim - num_log_gamma))], axis=1) / 30
        x = x[:, [0, num_log_gamma, *range(1, num_log_gamma), *range(num_log_gamma + 1, dim)]]
        x[:, :2] -= rng.choice([0.0, 1 / 3], (n, 2))
        return x
    assert family == "funnel", name
    v = 3 * rng.normal(size=(2 * n, 1))
    return np.concatenate([v, np.exp(v / 2) * rng.normal(size=(2 * n, dim - 1))], axis=1)


def posterior(name: str, n: int) -> tuple[np.ndarray, Any]:
    """Exact draws of the posterior in latent coordinates, and its normalised log-density there."""
    from samplers import build

    problem = build(name)
    low, high = np.array([(p.low, p.high) for p in problem.priors]).T

    def log_density(z: np.ndarray) -> np.ndarray:
        x = low + (high - low) * special.ndtr(z)
        return problem.log_likelihood(x) + np.sum(stats.norm.logpdf(z), axis=1) - problem.logz

    x = exact_samples(name, np.random.default_rng(0), n + n // 100)  # a few lie outside of the prior
    x = x[np.all((x > low) & (x < high), axis=1)][:n]
    return special.ndtri((x - low) / (high - low)), log_density


def shortened(estimator: Any) -> Any:
    """The estimator with hardly any training, to compile what the whole of it will call."""
    from nsflow.adapters.flowjax import DiscreteFlowEstimator
    from nsflow.proposals.estimators import FlowEstimator

    if isinstance(estimator, FlowEstimator):
        training = estimator.training
        return replace(estimator, training=replace(training, num_steps=training.steps_per_score))
    return replace(estimator, max_epochs=1) if isinstance(estimator, DiscreteFlowEstimator) else None


def fit_cell(name: str, size: int, method: str) -> None:
    """One method on one target."""
    z, log_density = posterior(name, NUM_TEST + size)
    held_out, points = z[:NUM_TEST], z[NUM_TEST:]
    estimator = methods()[method]
    short = shortened(estimator)
    if short is not None:
        short.fit(jax.random.key(0), points, np.zeros(size)).sample_and_log_prob(jax.random.key(0), NUM_TEST)
    start = time.process_time()
    density = estimator.fit(jax.random.key(1), points, np.zeros(size))
    trained = time.process_time()
    draws, log_q = density.sample_and_log_prob(jax.random.key(2), NUM_TEST)
    sampled = time.process_time()
    log_weights = log_density(np.asarray(draws, np.float64)) - np.asarray(log_q)
    weights = np.exp(np.nan_to_num(log_weights, nan=-np.inf))
    log_prob = np.asarray(density.log_prob(held_out))
    append(
        {
            "target": name,
            "size": size,
            "method": method,
            "log_prob": np.mean(np.maximum(np.nan_to_num(log_prob, nan=-100.0), -100.0)),
            "entropy": -np.mean(log_density(held_out)),
            "efficiency": np.sum(weights) ** 2 / np.sum(weights**2) / NUM_TEST,
            "mass": np.mean(weights),
            "train_cpu_s": trained - start,
            "sample_cpu_s": sampled - trained,
        }
    )


def run_cell(name: str, method: str, seed: int) -> None:
    """One run of the sampler."""
    from samplers import build, model

    import nsflow

    problem = build(name)
    log_likelihood, prior = model(problem)
    start = time.process_time()
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
            "cpu_s": time.process_time() - start,
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
        "| points | method | " + " | ".join(targets) + " | training, CPU s | 5000 draws, CPU s |",
        "|" + "---|" * (4 + len(targets)),
    ]
    for size in sorted({key[1] for key in cells}):
        for method in methods():
            found = [cells.get((target, size, method)) for target in targets]
            if not any(found):
                continue
            entries = [f"{r['efficiency']:.2f}, {-r['entropy'] - r['log_prob']:.2f}" if r else "" for r in found]
            times = [np.median([r[key] for r in found if r]) for key in ("train_cpu_s", "sample_cpu_s")]
            lines.append(f"| {size} | {method} | " + " | ".join(entries) + f" | {times[0]:.1f} | {times[1]:.1f} |")
    return "\n".join(lines)


def table_of_runs(rows: list[dict]) -> str:
    """Calls for an effective sample and pulls of runs of the sampler."""
    groups = defaultdict(list)
    for row in rows:
        if "seed" in row:
            groups[row["target"], row["method"]].append(row)
    lines = [
        "| problem | proposal | seeds | calls / ESS | mean pull | rms pull | not finished | flagged |",
        "|" + "---|" * 8,
    ]
    order = ["default", *methods()]
    for (target, method), group in sorted(groups.items(), key=lambda item: (item[0][0], order.index(item[0][1]))):
        pull = np.array([row["logZ_error"] / row["logZ_err"] for row in group])
        calls, ess = (np.mean([row[key] for row in group]) for key in ("num_calls", "ess"))
        unfinished = sum(not row["finished"] for row in group)
        flagged = sum(bool(row["alarms"]) for row in group)
        lines.append(
            f"| {target} | {method} | {len(group)} | {calls / ess:.2f} | {pull.mean():+.2f} | "
            f"{np.sqrt(np.mean(pull**2)):.2f} | {unfinished} | {flagged} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets")
    parser.add_argument("--sizes", default="1000,10000,100000")
    parser.add_argument("--methods", help="names separated by semicolons")
    parser.add_argument("--runs", action="store_true")
    parser.add_argument("--seeds", default="0,1,2,3")
    parser.add_argument("--table", action="store_true")
    args = parser.parse_args()
    if args.table:
        print(table_of_fits(load()), table_of_runs(load()), sep="\n\n")
        return
    wanted = args.methods.split(";") if args.methods else list(methods())
    targets = (args.targets or (RUN_TARGETS if args.runs else TARGETS)).split(",")
    done = {(row["target"], row.get("size", row.get("seed")), row["method"]) for row in load()}
    if args.runs:
        wanted = wanted if args.methods else ["default", *wanted]
    for last in (int(n) for n in (args.seeds if args.runs else args.sizes).split(",")):
        for name in targets:
            for method in wanted:
                if (name, last, method) not in done:
                    run_cell(name, method, last) if args.runs else fit_cell(name, last, method)
                    jax.clear_caches()  # a process may map 65 530 pieces of memory: the programs of fifty fits


if __name__ == "__main__":
    main()
