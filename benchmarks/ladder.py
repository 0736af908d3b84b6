"""Run only the ladder, and print where it ends: what it has lost, no later phase proposes.

    python benchmarks/ladder.py [--problems funnel-10,rosenbrock-10] [--seeds 5]

A line for each run: log Z of the ladder's points minus the truth, their effective number as posterior samples, calls,
levels, the highest log-likelihood met, the last contour.
"""

import argparse

import jax
from samplers import build, model

import nsflow
from nsflow.likelihood import as_likelihood
from nsflow.state import Phase, Problem


def run_ladder(name: str, seed: int) -> str:
    """One line about one ladder."""
    problem = build(name)
    likelihood, prior = model(problem)
    key = jax.random.key(seed)
    state = nsflow.init(key, Problem(as_likelihood(likelihood), prior), nsflow.Settings())
    level, info = 0, None
    while state.phase is Phase.LADDER:
        level += 1
        state, info = nsflow.step(jax.random.fold_in(key, level), state)
    assert info is not None
    return (
        f"| {name} | {seed} | {info.logZ - problem.logz:+.2f} | {info.ess:.0f} | {state.num_calls} "
        f"| {len(state.contours) - 1} | {max(state.points.log_likelihood):.2f} | {state.contours[-1]:.2f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", default="funnel-10,rosenbrock-10,shells-10,loggamma-10,skilling-10,slab-5")
    parser.add_argument("--seeds", type=int, default=5)
    args = parser.parse_args()
    print("| problem | seed | log Z - truth | ESS | calls | levels | highest log L | last contour |")
    print("|---|---|---|---|---|---|---|---|")
    for name in args.problems.split(","):
        for seed in range(args.seeds):
            print(run_ladder(name, seed), flush=True)


if __name__ == "__main__":
    main()
