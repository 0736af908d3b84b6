# %% [markdown]
# # Two moons by every method
#
# One set of points, and every method of nsflow that gives points a distribution or draws more of them: a Gaussian, a
# kernel density estimate, a mixture, a discrete flow; continuous flows by flow matching, score matching, action
# matching and maximum likelihood; stochastic and Langevin dynamics along a learned score; an energy. The density that
# the points come from is known, so each method is judged by what it says of points that it has not seen, and by where
# its own draws lie.
#
# It prints what it is doing, and takes less than two minutes on two cores.
#
#     python examples/two_moons.py [--output chains] [--quick]

# %%
import argparse
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from scipy.special import logsumexp

import nsflow
from nsflow.adapters.flowjax import DiscreteFlowEstimator
from nsflow.diffusion.action_matching import ActionMatching
from nsflow.diffusion.langevin import annealed_langevin, metropolis_langevin, run_chain
from nsflow.diffusion.process import ProcessPath, VariancePreserving
from nsflow.diffusion.score_matching import DenoisingScoreMatching, ImplicitScoreMatching, score
from nsflow.diffusion.sde import PredictorCorrector, ReverseProcess, StochasticHeun, simulate
from nsflow.flow.coupling import Sinkhorn
from nsflow.flow.maximum_likelihood import MaximumLikelihood
from nsflow.flow.objective import FlowMatching
from nsflow.flow.path import LinearPath, TrigonometricPath
from nsflow.flow.velocity import Architecture

matplotlib.use("agg")
WIDTH = 0.1  # of the moons

# %% [markdown]
# ## Data
#
# Points on two half circles, blurred by a normal of width 0.1. Their density is a mean over the circles.


# %%
def arcs(angle, upper):
    """Points on the upper and the lower half circle."""
    a = np.where(upper, np.cos(angle), 1 - np.cos(angle))
    b = np.where(upper, np.sin(angle), 0.5 - np.sin(angle))
    return np.stack([a, b], axis=-1)


def two_moons(n, seed):
    """Draws, shape (n, 2)."""
    rng = np.random.default_rng(seed)
    return arcs(rng.uniform(0, np.pi, n), rng.random(n) < 0.5) + WIDTH * rng.normal(size=(n, 2))


def true_log_prob(x):
    """Log-density of points in nats; 400 normals on each arc are as good as the integral."""
    angle = (np.arange(400) + 0.5) / 400 * np.pi
    centres = np.concatenate([arcs(angle, True), arcs(angle, False)])
    square = np.sum((np.asarray(x, np.float64)[:, None] - centres) ** 2, axis=2)
    return logsumexp(-0.5 * square / WIDTH**2, axis=1) - np.log(800 * 2 * np.pi * WIDTH**2)


# %% [markdown]
# ## Densities
#
# Each is fitted by `fit(key, points, log_weights)`, and then has `sample(key, n)` and `log_prob(x)`. The continuous
# flows differ in nothing but what they are taught by.

# %%
PROCESS = VariancePreserving()
DIFFUSION = ProcessPath(PROCESS)
PATH = TrigonometricPath()


def estimators(quick):
    """Ways to fit a density, by name."""
    network = Architecture(width=48) if quick else None
    training = {"num_steps": 400 if quick else 1500, "architecture": network, "patience": 5, "integration_steps": 12}

    def flow(objective, **changes):
        return nsflow.FlowEstimator(nsflow.Training(**training | changes, objective=objective), wide=False)

    return {
        "Gaussian": nsflow.GaussianEstimator(),
        "kernel density": nsflow.KernelEstimator(),
        "Gaussian mixture": nsflow.GaussianMixtureEstimator(),
        "discrete flow": DiscreteFlowEstimator(num_layers=4, max_epochs=40) if quick else DiscreteFlowEstimator(),
        "flow matching": flow(FlowMatching(PATH)),
        "optimal transport": flow(FlowMatching(LinearPath(), coupling=Sinkhorn(num_iterations=20))),
        "denoising score, VP": flow(DenoisingScoreMatching(DIFFUSION)),
        "implicit score": flow(ImplicitScoreMatching(PATH)),
        "action matching": flow(ActionMatching(PATH)),
        "maximum likelihood": flow(MaximumLikelihood(PATH, num_steps=4), num_steps=100 if quick else 200),
    }


# %% [markdown]
# ## Dynamics
#
# A learned score drives stochastic processes as well, which have draws but no density: the reverse of the diffusion,
# the same with Langevin corrections, and Langevin dynamics at falling noise. They take the field that denoising score
# matching has taught, in whitened coordinates.


# %%
def dynamics(key, flow, n):
    """Draws of each process that follows the score of a flow on the diffusion's path."""

    def noise(t, x):
        return DIFFUSION.noise_from_velocity(t, x, flow.velocity(t, x))

    path_score = score(noise, DIFFUSION)
    last = 1 - DIFFUSION.end

    def forward_score(t, x):  # of the process's own time, which runs from data to noise
        return path_score((1 - t) / last, x)

    reverse = ReverseProcess(PROCESS, forward_score)
    corrected = PredictorCorrector(
        lambda t, x: forward_score(1 - t, x), lambda t: jnp.sqrt(PROCESS.variance(1 - t)), StochasticHeun()
    )
    scales = jnp.linspace(0.5, 0.98, 12)

    @jax.jit
    @jax.vmap
    def draw(key, z):
        along = {"num_steps": 100, "times": (0.0, 0.99)}
        return (
            simulate(key, reverse, z, **along)[-1],
            simulate(key, reverse, z, integrator=corrected, **along)[-1],
            annealed_langevin(key, path_score, DIFFUSION, scales, z, num_steps=40),
        )

    keys, start = jax.random.split(key, n), jax.random.normal(jax.random.fold_in(key, 1), (n, 2))
    names = ("reverse SDE", "predictor-corrector", "annealed Langevin")
    whites = zip(names, draw(keys, start), strict=True)
    return {name: flow.mean + np.asarray(white) @ flow.scale.T for name, white in whites}


def energy_draws(key, points, n, quick):
    """Metropolis-adjusted Langevin dynamics in the energy that a scalar network has learned."""
    key_fit, key_start, key_chain = jax.random.split(key, 3)
    # The gradient of a network is what learns here, and it learns slowly.
    training = nsflow.Training(num_steps=1000 if quick else 2500, architecture=Architecture(width=48), patience=10)
    model, _ = nsflow.EnergyModel.fit(key_fit, points, training=training)
    start = model.whole.sample(key_start, n).astype(np.float32)

    def chain(key, x):
        return run_chain(key, lambda key, x: metropolis_langevin(key, model.log_density, x, 0.005)[0], x, 300)[-1]

    return np.asarray(jax.jit(jax.vmap(chain))(jax.random.split(key_chain, n), jnp.asarray(start)))


# %% [markdown]
# ## Comparison
#
# The higher the held-out log-density the better; the truth has the highest that can be. The last two columns judge the
# draws: 99 % of the points of the truth lie where its density is above its first percentile, half of them on each moon.


# %%
def main(output="chains", quick=False):
    """Fit and draw by every method, print a table, write a picture; return the draws by name."""
    points, held_out = two_moons(2000 if quick else 5000, seed=0), two_moons(2000, seed=1)
    num_draws = 500 if quick else 2000
    edge = np.quantile(true_log_prob(points), 0.01)
    draws, log_probs = {"data": held_out}, {"data": np.mean(true_log_prob(held_out))}
    key, start = jax.random.key(0), time.perf_counter()

    def say(what):
        print(f"  {time.perf_counter() - start:4.0f} s  {what}", flush=True)

    for name, estimator in estimators(quick).items():
        say(f"fitting: {name}")
        density = estimator.fit(key, points, np.zeros(len(points)))
        draws[name] = np.asarray(density.sample(jax.random.key(1), num_draws))
        log_probs[name] = np.mean(density.log_prob(held_out))
        if name == "denoising score, VP":
            followed = density
    say("following the learned score: reverse SDE, predictor-corrector, annealed Langevin")
    draws |= dynamics(jax.random.key(2), followed, num_draws)
    say("learning an energy, and Langevin dynamics in it")
    draws["energy, Langevin"] = energy_draws(jax.random.key(3), points, num_draws, quick)

    say("done\n")
    print(f"{'method':<22}{'held-out log-density':>22}{'on the moons':>14}{'upper moon':>12}")
    angle = np.linspace(0, np.pi, 100)
    for name, x in draws.items():
        on_moons = x[true_log_prob(x) > edge]
        distances = [np.min(np.sum((on_moons[:, None] - arcs(angle, upper)) ** 2, axis=2), axis=1) for upper in (1, 0)]
        log_prob = f"{log_probs[name]:.3f}" if name in log_probs else ""
        shares = len(on_moons) / len(x), np.mean(distances[0] < distances[1])
        print(f"{name:<22}{log_prob:>22}{shares[0]:>14.3f}{shares[1]:>12.3f}")
    output = Path(output)
    output.mkdir(parents=True, exist_ok=True)
    plot(draws, output / "two-moons.png")
    print(f"Wrote {output}/two-moons.png")
    return draws


def plot(draws, path):
    """One panel a method."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(3, 5, figsize=(12, 6.2), layout="constrained")
    for axis, (name, x) in zip(axes.flat, draws.items(), strict=True):
        axis.scatter(*x[:2000].T, s=1.5, linewidths=0, alpha=0.6, color="#1f4e79")
        axis.set(xticks=[], yticks=[], title=name, xlim=(-1.8, 2.8), ylim=(-1.3, 1.8), aspect="equal")
    figure.savefig(path, dpi=80)


# %%
if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Two moons by every method.")
    parser.add_argument("--output", default="chains", help="folder for the picture (default: chains)")
    parser.add_argument("--quick", action="store_true", help="fewer points and less training")
    arguments = parser.parse_args()
    main(arguments.output, arguments.quick)
