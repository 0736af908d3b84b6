"""Run blackjax's nested slice sampler and nsflow's drop-in with the same live points, and print one table.

    python benchmarks/blackjax_drop_in.py [--problems gauss-10,mixture-5] [--seeds 8] [--workers 1]
    python benchmarks/blackjax_drop_in.py --table      # only print what was measured

1000 live points, 100 replaced at once, stop at logZ_live - logZ < -3; 5 d slice steps, and d draws of the flow by a
`Mixture`, with `add_modes` from 5000 draws of the prior. Each cell is one process and one line of
`results/blackjax_drop_in.jsonl`; what is there is not repeated.
"""

import argparse
import json
import subprocess
import sys
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

RESULTS = Path(__file__).resolve().parent / "results" / "blackjax_drop_in.jsonl"
PROBLEMS = "gauss-10,loggamma-10,rosenbrock-10,mixture-5,shells-10,funnel-10"
NUM_LIVE, NUM_DELETE = 1000, 100


def run_cell(sampler: str, name: str, seed: int) -> dict[str, Any]:
    """Run one sampler; both start from the same live points."""
    import blackjax
    import jax
    import jax.numpy as jnp
    from samplers import build

    import nsflow.adapters.blackjax as nsflow_blackjax

    jax.config.update("jax_enable_x64", True)
    problem = build(name)
    start, cpu = time.perf_counter(), time.process_time()

    def log_likelihood(u: Any) -> Any:
        inside = jnp.clip(u, 1e-300, 1 - 1e-16)  # the prior refuses what is outside
        value = problem.log_likelihood_cube(inside[None], jnp)[0]
        return jnp.where(jnp.isfinite(value), value, -1e300)

    def log_prior(u: Any) -> Any:
        return jnp.where(jnp.all((u >= 0) & (u <= 1)), 0.0, -jnp.inf)

    if sampler == "nss":
        algorithm = blackjax.nss(log_prior, log_likelihood, 5 * problem.dim, NUM_DELETE)
    else:
        algorithm = nsflow_blackjax.as_top_level_api(
            log_prior, log_likelihood, problem.dim, NUM_DELETE, nsflow_blackjax.Mixture()
        )
    key, key_init = jax.random.split(jax.random.key(seed))
    state = algorithm.init(jax.random.uniform(key_init, (NUM_LIVE, problem.dim)))
    if sampler == "nsflow":
        draws = jax.random.uniform(jax.random.fold_in(key_init, 1), (5 * NUM_LIVE, problem.dim))
        state = nsflow_blackjax.add_modes(state, draws, log_prior, log_likelihood)
    step, dead, num_calls, first = jax.jit(algorithm.step), [], NUM_LIVE, 0.0
    while state.integrator.logZ_live - state.integrator.logZ > -3:
        key, key_step = jax.random.split(key)
        state, info = step(key_step, state)
        moves = info.update_info
        if sampler == "nss":  # two ends, the expansions and the shrinkage of each slice
            num_calls += int(jnp.sum(moves.num_expansions) + jnp.sum(moves.num_shrink) + 2 * moves.num_shrink.size)
            info = info._replace(update_info=None)
        dead.append(jax.device_get(info))
        first = first or time.perf_counter() - start
    wall, cpu = time.perf_counter() - start, time.process_time() - cpu
    row = {"sampler": sampler, "problem": name, "seed": seed, "first_step_s": first, "wall_s": wall}
    row |= {"cpu_s": cpu, "num_steps": len(dead)}
    if sampler == "nss":
        from blackjax.ns.utils import finalise

        from nsflow.adapters.blackjax.result import nested_samples

        points = finalise(state, dead, update_info=False).particles
        samples = nested_samples(points.position, points.loglikelihood, points.loglikelihood_birth)
        volumes = np.asarray(samples.logZ(1000))
        return row | {
            "logZ_error": np.mean(volumes) - problem.logz,
            "logZ_err": np.std(volumes),
            "num_calls": num_calls,
        }
    result = nsflow_blackjax.finalise(state, dead)
    return row | {
        "logZ_error": result.logZ - problem.logz,
        "logZ_err": result.logZ_err,
        "num_calls": result.num_calls,
        "importance_error": result.importance_logZ - problem.logz,
        "importance_err": result.importance_logZ_err,
        "acceptance": result.acceptance,
        "unique_fraction": result.unique_fraction,
        "khat": result.khat,
        "insertion_p": result.insertion_p_value,
        "worst_insertion_p": result.worst_insertion_p_value,
        "alarms": result.alarms,
    }


def load() -> list[dict]:
    return [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []


def table(rows: list[dict]) -> str:
    """One line for each problem and sampler; times of 1 ms a call are those of a serial likelihood added."""
    groups = defaultdict(list)
    for row in rows:
        groups[row["problem"], row["sampler"]].append(row)
    lines = [
        "| problem | sampler | seeds | calls | of NSS's | mean error | scatter | mean pull | of the draws: mean error "
        "| quoted | mean pull | k-hat (max) | acceptance | unique (min) | insertion p (min), worst stretch "
        "| alarms | wall s | first step s | wall s at 1 ms a call |",
        "|" + 19 * "---|",
    ]
    for (name, sampler), group in sorted(groups.items()):
        get = lambda key, group=group: np.array([row.get(key, np.nan) for row in group], float)  # noqa: E731
        calls = np.mean(get("num_calls"))
        reference = np.mean([row["num_calls"] for row in groups[name, "nss"]] or [np.nan])
        pull, error = get("logZ_error") / get("logZ_err"), len(group) ** -0.5
        line = (
            f"| {name} | {sampler} | {len(group)} | {calls:.0f} | 1/{reference / calls:.1f} "
            f"| {np.mean(get('logZ_error')):+.3f} | {np.std(get('logZ_error'), ddof=1):.3f} "
            f"| {np.mean(pull):+.2f} +- {error:.2f} "
        )
        if sampler == "nss":
            line += 8 * "| "
        else:
            own = get("importance_error") / get("importance_err")
            line += (
                f"| {np.mean(get('importance_error')):+.3f} | {np.mean(get('importance_err')):.3f} "
                f"| {np.mean(own):+.2f} +- {error:.2f} | {np.max(get('khat')):.2f} | {np.mean(get('acceptance')):.2f} "
                f"| {np.min(get('unique_fraction')):.2f} "
                f"| {np.min(get('insertion_p')):.2g}, {np.min(get('worst_insertion_p')):.2g} "
                f"| {sum(bool(row['alarms']) for row in group)} "
            )
        wall = np.mean(get("wall_s"))
        lines.append(line + f"| {wall:.0f} | {np.mean(get('first_step_s')):.0f} | {wall + 1e-3 * calls:.0f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", default=PROBLEMS)
    parser.add_argument("--samplers", default="nss,nsflow")
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--cell", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.cell:
        sampler, name, seed = args.cell
        print(json.dumps(run_cell(sampler, name, int(seed)), default=float))
        return

    def one(cell: tuple) -> None:
        output = subprocess.run(
            [sys.executable, __file__, "--cell", *map(str, cell)], capture_output=True, text=True, check=False
        )
        if output.returncode != 0:
            print(f"{cell} failed:\n{output.stderr}", file=sys.stderr, flush=True)
            return
        with RESULTS.open("a") as file:
            file.write(output.stdout.strip().splitlines()[-1] + "\n")
        print(output.stdout.strip().splitlines()[-1][:300], flush=True)

    if not args.table:
        done = {(row["sampler"], row["problem"], row["seed"]) for row in load()}
        cells = [
            (sampler, name, seed)
            for seed in range(args.seeds)
            for name in args.problems.split(",")
            for sampler in args.samplers.split(",")
        ]
        with ThreadPoolExecutor(args.workers) as pool:
            list(pool.map(one, [cell for cell in cells if cell not in done]))
    print(table(load()))


if __name__ == "__main__":
    main()
