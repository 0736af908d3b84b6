"""Run only the ladder, and print where it ends: what it has lost, no later phase proposes.

    python benchmarks/ladder.py [--problems funnel-10,rosenbrock-10] [--seeds 5]

A line for each run: log Z of the ladder's points minus the truth, their effective number as posterior samples, calls,
levels, the highest log-likelihood met, the last contour, and the CPU seconds of a step in the later half of the
ladder over those in the earlier half, without the first five, which compile.
"""

import argparse
import time

import jax
import numpy as np
from samplers import build, model

import nsflow
from nsflow.likelihood.likelihood import as_likelihood
from nsflow.nested.state import Phase, Problem


def run_ladder(name: str, seed: int) -> str:
    """One line about one ladder."""
    problem = build(name)
    likelihood, prior = model(problem)
    key = jax.random.key(seed)
    state = nsflow.init(key, Problem(as_likelihood(likelihood), prior), nsflow.Settings())
    clock, info = [time.process_time()], None
    while state.phase is Phase.LADDER:
        state, info = nsflow.step(jax.random.fold_in(key, len(clock)), state)
        clock.append(time.process_time())
    assert info is not None
    early, late = clock[5 : len(clock) // 2 + 1], clock[len(clock) // 2 :]
    slower = np.mean(np.diff(late)) / np.mean(np.diff(early)) if len(clock) > 20 else np.nan
    return (
        f"| {name} | {seed} | {info.logZ - problem.logz:+.2f} | {info.ess:.0f} | {state.num_calls} "
        f"| {len(state.contours) - 1} | {max(state.points.log_likelihood):.2f} | {state.contours[-1]:.2f} "
        f"| {slower:.1f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", default="funnel-10,rosenbrock-10,shells-10,loggamma-10,skilling-10,slab-5")
    parser.add_argument("--seeds", type=int, default=5)
    args = parser.parse_args()
    print("| problem | seed | log Z - truth | ESS | calls | levels | highest log L | last contour | later / earlier |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name in args.problems.split(","):
        for seed in range(args.seeds):
            print(run_ladder(name, seed), flush=True)


if __name__ == "__main__":
    main()
