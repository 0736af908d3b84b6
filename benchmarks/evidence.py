"""Run nsflow and its peers on problems of known evidence over many seeds, and print one table.

    python benchmarks/evidence.py [--problems gauss-10,shells-2] [--samplers nsflow] [--seeds 10] [--workers 2]
    python benchmarks/evidence.py --table            # only print what was measured

Each cell (sampler, problem, seed, ESS, cost) is one process, so that its time includes imports and compilation, and
one line of `results/evidence.jsonl`; cells that are there already are skipped, so an interrupted benchmark carries on.
Peers run with the interpreter that NSFLOW_PEERS_PYTHON names, see `requirements-peers.txt`.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from samplers import SAMPLERS, build, python_of

RESULTS = Path(__file__).resolve().parent / "results" / "evidence.jsonl"
PROBLEMS = ("gauss-10", "loggamma-10", "shells-2", "rosenbrock-2", "eggbox-2", "mixture-5")


WRONG = 3.5  # quoted errors off, beyond which a run without an alarm counts as silently wrong


def run_cell(sampler: str, name: str, seed: int, ess: float, cost: float) -> dict:
    """Run one sampler on one problem with one seed; `cost` is the seconds that a likelihood call takes on top."""
    problem = build(name)
    start, cpu = time.perf_counter(), time.process_time()
    row = SAMPLERS[sampler](problem, seed, ess, **({"cost": cost} if cost else {}))
    row = {key: float(value) if isinstance(value, np.floating) else value for key, value in row.items()}
    return {
        "sampler": sampler,
        "problem": name,
        "seed": seed,
        "ess_target": ess,
        "cost": cost,
        "logZ_error": row.pop("logZ") - problem.logz,
        **row,
        "wall_s": round(time.perf_counter() - start, 1),
        "cpu_s": round(time.process_time() - cpu, 1),
        "memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


def load() -> list[dict]:
    return [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []


def run_all(cells: list[tuple], workers: int, limit_s: float) -> None:
    """Run what has not been run; a cell that exceeds the limit is recorded as such."""
    done = {(r["sampler"], r["problem"], r["seed"], r["ess_target"], r["cost"]) for r in load()}

    def one(cell: tuple) -> None:
        command = [python_of(cell[0], sys.executable), __file__, "--cell", *map(str, cell)]
        try:
            output = subprocess.run(command, capture_output=True, text=True, check=False, timeout=limit_s)
        except subprocess.TimeoutExpired:
            row = dict(zip(("sampler", "problem", "seed", "ess_target", "cost"), cell, strict=True))
            line = json.dumps({**row, "timeout_s": limit_s})
        else:
            if output.returncode != 0:
                print(f"{cell} failed:\n{output.stderr}", file=sys.stderr, flush=True)
                return
            line = output.stdout.strip().splitlines()[-1]
        with RESULTS.open("a") as file:
            file.write(line + "\n")
        print(line[:300], flush=True)

    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(one, [cell for cell in cells if cell not in done]))


def table(rows: list[dict]) -> str:
    """Mean and spread of the pulls, calls, alarms and times, one line for each problem and sampler."""
    groups = defaultdict(list)
    for row in rows:
        groups[row["problem"], row["ess_target"], row["cost"], row["sampler"]].append(row)
    lines = [
        "| problem | sampler | seeds | calls | ESS | calls / ESS | mean error | quoted error (max) | mean pull "
        "| rms pull | flagged | silent | wall s (max) | CPU s | of it compiling | MB (max) |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for (name, ess, cost, sampler), group in sorted(groups.items()):
        done = [row for row in group if "timeout_s" not in row]
        label = name + (f", ESS {ess:g}" if ess != 10_000 else "") + (f", {1000 * cost:g} ms a call" if cost else "")
        if not done:
            lines.append(
                f"| {label} | {sampler} | {len(group)} | none finished in {group[0]['timeout_s']:g} s |" + 13 * " |"
            )
            continue
        get = lambda key, done=done: np.array([row.get(key, np.nan) for row in done], float)  # noqa: E731
        pull = get("logZ_error") / get("logZ_err")
        flagged = np.array([bool(row.get("alarms")) or not row.get("finished", True) for row in done])
        lines.append(
            f"| {label} | {sampler}{'' if 'source' not in done[0] else ' *'} | {len(done)} "
            f"| {get('num_calls').mean():.0f} | {get('ess').mean():.0f} "
            f"| {(get('num_calls') / get('ess')).mean():.2f} | {get('logZ_error').mean():+.4f} "
            f"| {get('logZ_err').mean():.4f} ({get('logZ_err').max():.4f}) "
            f"| {pull.mean():+.2f} +- {len(done) ** -0.5:.2f} | {np.sqrt((pull**2).mean()):.2f} "
            f"| {flagged.sum()} | {np.sum((abs(pull) > WRONG) & ~flagged)} "
            f"| {get('wall_s').mean():.0f} ({get('wall_s').max():.0f}) | {get('cpu_s').mean():.0f} "
            f"| {get('compile_s').mean():.0f} | {np.fmax.reduce(get('memory_mb')):.0f} |"
        )
    return "\n".join(lines).replace(" nan |", " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", default=",".join(PROBLEMS))
    parser.add_argument("--samplers", default="nsflow", help=f"of {', '.join(SAMPLERS)}")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--ess", default="10000", help="one or more targets")
    parser.add_argument("--cost", default="0", help="seconds that a call takes on top, one or more")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--limit", type=float, default=1800.0, help="seconds after which a cell is given up")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--cell", nargs=5, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.cell:
        sampler, name, seed, ess, cost = args.cell
        print(json.dumps(run_cell(sampler, name, int(seed), float(ess), float(cost))))
        return
    if not args.table:
        cells = [
            (sampler, name, seed, float(ess), float(cost))
            for seed in range(args.seeds)
            for name in args.problems.split(",")
            for ess in args.ess.split(",")
            for cost in args.cost.split(",")
            for sampler in args.samplers.split(",")
        ]
        run_all(cells, args.workers, args.limit)
    print(table(load()))


if __name__ == "__main__":
    main()
