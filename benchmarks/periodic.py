"""Likelihood calls for an effective sample of a posterior across the ends of an angle, with and without `Periodic`.

python benchmarks/periodic.py --dims 2 --seeds 0,1,2
"""

import argparse

import numpy as np
import numpyro.distributions as dist

import nsflow


def log_likelihood(params):
    """A von Mises posterior of width 0.2 at phi = 0, and Gaussians of width 0.2 whose centres turn with it."""
    centres = np.sin(params["phi"])[:, None]
    return 25 * (np.cos(params["phi"]) - 1) - 0.5 * np.sum(((params["x"] - centres) / 0.2) ** 2, axis=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dims", type=int, default=2)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--ess", type=int, default=5000)
    arguments = parser.parse_args()
    angle, x = dist.Uniform(0.0, 2 * np.pi), dist.Uniform(-2.0, 2.0).expand([arguments.dims - 1])
    for name, phi in (("periodic", nsflow.Periodic(angle)), ("plain", angle)):
        for seed in map(int, arguments.seeds.split(",")):
            likelihood = nsflow.HostLikelihood(log_likelihood, vectorized=True)
            result = nsflow.run(likelihood, nsflow.Prior({"phi": phi, "x": x}), seed=seed, ess=arguments.ess)
            print(
                f"{arguments.dims}-d {name:8s} seed {seed}: logZ {result.logZ:.3f} +- {result.logZ_err:.3f}, "
                f"{result.num_calls} calls, {result.num_calls / result.ess:.2f} per effective sample, "
                f"{result.ess / result.num_draws:.2f} of each draw, alarms {len(result.alarms)}",
                flush=True,
            )


if __name__ == "__main__":
    main()
