"""Run nsflow on problems of known evidence over many seeds, and print one table.

    python benchmarks/evidence.py [--problems gauss-10,shells-2] [--seeds 8] [--workers 2]
    python benchmarks/evidence.py --table            # only print what was measured

Each cell (problem, seed) is one process, so that its time includes imports and compilation, and one line of
`results/evidence.jsonl`; cells that are there already are skipped, so an interrupted benchmark carries on.
"""

import argparse
import json
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "evidence.jsonl"
PROBLEMS = ("gauss-10", "loggamma-10", "shells-2", "rosenbrock-2", "eggbox-2", "mixture-5")


def model(problem: Any) -> tuple[Callable, Any]:
    """Likelihood and prior of a problem, as a user would write them."""
    import jax.numpy as jnp
    import numpyro.distributions as dist

    import nsflow

    names = [f"x{i}" for i in range(problem.dim)]
    uniforms = (dist.Uniform(p.low, p.high) for p in problem.priors)

    def log_likelihood(params):
        x = jnp.stack([params[name] for name in names])
        return problem.log_likelihood(x[None], jnp)[0]

    return log_likelihood, nsflow.Prior(dict(zip(names, uniforms, strict=True)))


def run_cell(name: str, seed: int, ess: float) -> dict:
    """Run nsflow on one problem with one seed."""
    import problems

    import nsflow

    problem = problems.get(name)
    log_likelihood, prior = model(problem)
    start, cpu = time.perf_counter(), time.process_time()
    result = nsflow.run(log_likelihood, prior, seed=seed, ess=ess)
    return {
        "problem": name,
        "seed": seed,
        "ess_target": ess,
        "logZ_error": result.logZ - problem.logz,
        "logZ_err": result.logZ_err,
        "ess": result.ess,
        "num_calls": result.num_calls,
        "khat": result.khat,
        "max_weight_share": result.max_weight_share,
        "finished": result.finished,
        "alarms": list(result.alarms),
        "wall_s": round(time.perf_counter() - start, 1),
        "cpu_s": round(time.process_time() - cpu, 1),
        "num_draws": result.num_draws,
        "versions": result.versions,
    }


def load() -> list[dict]:
    return [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []


def run_all(names: list[str], seeds: int, ess: float, workers: int) -> None:
    done = {(row["problem"], row["seed"], row["ess_target"]) for row in load()}
    cells = [(name, seed) for seed in range(seeds) for name in names if (name, seed, ess) not in done]

    def one(cell: tuple[str, int]) -> None:
        command = [sys.executable, __file__, "--cell", cell[0], str(cell[1]), "--ess", str(ess)]
        output = subprocess.run(command, capture_output=True, text=True, check=False)
        if output.returncode != 0:
            raise RuntimeError(f"{cell} failed:\n{output.stderr}")
        line = output.stdout.strip().splitlines()[-1]
        with RESULTS.open("a") as file:
            file.write(line + "\n")
        row = json.loads(line)
        print(*cell, f"{row['logZ_error']:+.4f} +- {row['logZ_err']:.4f}", row["num_calls"], row["wall_s"], flush=True)

    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(one, cells))


def table(rows: list[dict]) -> str:
    """Mean and spread of the pulls, calls and times, one line a problem."""
    groups = defaultdict(list)
    for row in rows:
        groups[row["problem"]].append(row)
    lines = [
        "| problem | seeds | calls | ESS | calls / ESS | mean error | quoted error | mean pull | rms pull | flagged "
        "| wall s (largest) |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, group in groups.items():
        get = lambda key, group=group: np.array([row[key] for row in group], float)  # noqa: E731
        pull = get("logZ_error") / get("logZ_err")
        flagged = sum(bool(row["alarms"]) or not row["finished"] for row in group)
        lines.append(
            f"| {name} | {len(group)} | {get('num_calls').mean():.0f} | {get('ess').mean():.0f} "
            f"| {(get('num_calls') / get('ess')).mean():.2f} | {get('logZ_error').mean():+.4f} "
            f"| {get('logZ_err').mean():.4f} (max {get('logZ_err').max():.4f}) "
            f"| {pull.mean():+.2f} +- {len(group) ** -0.5:.2f} | {np.sqrt((pull**2).mean()):.2f} "
            f"| {flagged} | {get('wall_s').mean():.0f} ({get('wall_s').max():.0f}) |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", default=",".join(PROBLEMS))
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--ess", type=float, default=10_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--cell", nargs=2, metavar=("PROBLEM", "SEED"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.cell:
        print(json.dumps(run_cell(args.cell[0], int(args.cell[1]), args.ess)))
        return
    if not args.table:
        run_all(args.problems.split(","), args.seeds, args.ess, args.workers)
    print(table(load()))


if __name__ == "__main__":
    main()
