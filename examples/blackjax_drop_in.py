# %% [markdown]
# # blackjax's nested sampler, and the same with a learned proposal
#
# How noisy is the diabetes score of Efron et al. (2004), given five covariates? The first function is a script as
# blackjax's users write it, with nested slice sampling. The second is the same script but for two lines: the one that
# imports and the one that builds the algorithm. The exact evidence, by Gaussian algebra, stands beside both.
#
#     python examples/blackjax_drop_in.py [--output chains]

# %%
import argparse
import time
from pathlib import Path

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from blackjax.ns.utils import finalise
from diabetes import INTERCEPT, MODELS, NOISE, SLOPE, data, exact_log_evidence

import nsflow.adapters.blackjax as nested  # first of the two lines

jax.config.update("jax_enable_x64", True)

NUM_LIVE, NUM_DELETE = 500, 50
X, Y = data(MODELS["five covariates"])
PRIOR = {
    "intercept": dist.Normal(*INTERCEPT),
    "slopes": dist.Normal(jnp.zeros(X.shape[1]), SLOPE).to_event(1),
    "log_noise": dist.Uniform(*np.log(NOISE)),
}


# %% [markdown]
# ## Model
#
# Positions are dicts: blackjax and nsflow take any tree of arrays. The noise is sampled by its logarithm, so the prior
# has a hard edge there.


# %%
def log_prior(position):
    """Log-prior of one position; -inf outside."""
    inside = (position["log_noise"] > np.log(NOISE[0])) & (position["log_noise"] < np.log(NOISE[1]))
    bounded = position | {"log_noise": jnp.where(inside, position["log_noise"], np.log(NOISE[0]))}
    return jnp.where(inside, sum(prior.log_prob(bounded[name]) for name, prior in PRIOR.items()), -jnp.inf)


def log_likelihood(position):
    """Log-likelihood of one position."""
    mean = position["intercept"] + X @ position["slopes"]
    return dist.Normal(mean, jnp.exp(position["log_noise"])).log_prob(Y).sum()


def prior_draws(key):
    """The first live points."""
    keys = jax.random.split(key, len(PRIOR))
    return {name: prior.sample(k, (NUM_LIVE,)) for k, (name, prior) in zip(keys, PRIOR.items(), strict=True)}


# %% [markdown]
# ## The two scripts


# %%
def run(algorithm, key):
    """The loop of blackjax's documentation: step until the live points hold a twentieth of the evidence."""
    key, key_init = jax.random.split(key)
    state, step, dead = algorithm.init(prior_draws(key_init)), jax.jit(algorithm.step), []
    while state.integrator.logZ_live - state.integrator.logZ > -3:
        key, key_step = jax.random.split(key)
        state, info = step(key_step, state)
        dead.append(info)
    return state, dead


def with_slices(key):
    """Nested slice sampling with the recommended five slices a dimension; log-evidence, error, calls."""
    algorithm = blackjax.nss(log_prior, log_likelihood, num_inner_steps=35, num_delete=NUM_DELETE)
    state, dead = run(algorithm, key)
    points = finalise(state, dead, update_info=False).particles
    samples = nested.nested_samples(points.position, points.loglikelihood, points.loglikelihood_birth)
    volumes = samples.logZ(1000)
    slices = [info.update_info for info in dead]
    num_calls = NUM_LIVE + sum(int(jnp.sum(s.num_expansions + s.num_shrink + 2)) for s in slices)
    return volumes.mean(), volumes.std(), num_calls


def with_flow(key):
    """The same with a learned proposal; log-evidence, error, calls, and all that nsflow has to say of the run."""
    algorithm = nested.as_top_level_api(log_prior, log_likelihood, num_inner_steps=8, num_delete=NUM_DELETE)
    state, dead = run(algorithm, key)
    result = nested.finalise(state, dead)
    return result.logZ, result.logZ_err, result.num_calls, result


# %%
def main(output="chains"):
    """Run both, print both, draw both."""
    exact = exact_log_evidence(X, Y)
    print(f"exact log-evidence {exact:.3f}\n")
    print(f"{'':<24}{'logZ':>20}{'pull':>7}{'calls':>10}{'seconds':>9}")
    rows = {}
    for name, script in (("blackjax.nss", with_slices), ("learned proposal", with_flow)):
        print(f"  compiling and running {name} ...", flush=True)
        start = time.perf_counter()
        logZ, error, num_calls, *result = script(jax.random.key(0))
        seconds = time.perf_counter() - start
        rows[name] = float(logZ), float(error), int(num_calls)
        print(f"{name:<24}{logZ:>11.3f} +- {error:.3f}{(logZ - exact) / error:>7.1f}{num_calls:>10}{seconds:>9.1f}")
    print(f"\n{result[0]}")
    output = Path(output)
    output.mkdir(parents=True, exist_ok=True)
    plot(rows, exact, output / "blackjax-drop-in.png")
    print(f"Wrote {output}/blackjax-drop-in.png")
    return result[0]


def plot(rows, exact, path):
    """Log-evidences less the exact one, and likelihood calls."""
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 2.2), sharey=True, layout="constrained")
    logZ, errors, calls = zip(*rows.values(), strict=True)
    left.errorbar(np.array(logZ) - exact, list(rows), xerr=errors, fmt="o", color="#1f4e79")
    left.axvline(0, color="0.6", linewidth=1)
    left.set(xlabel="log Z less the exact one, nats", ylim=(1.5, -0.5))
    right.barh(list(rows), np.array(calls) / 1000, height=0.5, color="#1f4e79")
    right.set(xlabel="thousands of likelihood calls")
    figure.savefig(path, dpi=100)


# %%
if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="blackjax's nested sampler, and the same with a learned proposal.")
    parser.add_argument("--output", default="chains", help="folder for the picture (default: chains)")
    main(parser.parse_args().output)
