"""Likelihoods as users have them: undefined, impossible, flat, broken, huge, tiny, imprecise, noisy."""

import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from scipy import special, stats

import nsflow

FALSE_ALARM = 1e-4  # chance that a correct nsflow fails any one test of this file; the seeds are fixed
SIGMAS = stats.norm.isf(FALSE_ALARM / 2)
PRIOR = nsflow.Prior({"x": dist.Uniform(-1.0, 1.0).expand([2])})
SETTINGS = nsflow.Settings(ess=1000, num_prior=1000)  # one prior, one number of dimensions: few compilations
WIDTH = 0.1
GAUSSIAN = np.log(2 * np.pi * WIDTH**2 / 4)  # its evidence


def gaussian(x):
    return -0.5 * np.sum((x / WIDTH) ** 2, axis=-1)


def host(function):
    """A vectorized likelihood of x, shape (n, 2)."""
    return nsflow.HostLikelihood(lambda params: function(params["x"]), vectorized=True)


def undefined_in_half(x):
    with np.errstate(invalid="ignore"):
        return np.where(x[:, 0] < 0, np.nan, gaussian(x))


def impossible_in_99_percent(x):
    """Zero but in the square of side 0.2 around (0.5, 0.5)."""
    return np.where(np.max(np.abs(x - 0.5), axis=1) < 0.1, gaussian(x - 0.5), -np.inf)


def terraces(x):
    """A Gaussian cut into steps of two nats: plateaus, each of them in a ring of its own."""
    return -2.0 * np.floor(-gaussian(x) / 2)


def cliff(x):
    """Twenty nats lower on one side of a diagonal through the peak."""
    return gaussian(x) - 20.0 * (x[:, 0] > x[:, 1])


def spread_of_a_million(x):
    """The peak has a latent width of a thousandth, and the prior reaches down to -2e6 nats."""
    return -1e6 * np.sum(x**2, axis=1)


def spread_of_a_millionth(x):
    return 1e-6 * x[:, 0]


def single_precision(x):
    return (gaussian(x).astype(np.float32) + np.float32(1000)).astype(np.float32)


TERRACES = np.log(np.pi * WIDTH**2 / 4 * 4 * sum(np.exp(-2.0 * k) for k in range(25)))
KNOWN = {
    "NaN in half of the prior": (undefined_in_half, GAUSSIAN - np.log(2)),
    "-inf in 99 % of the prior": (impossible_in_99_percent, GAUSSIAN + 2 * np.log(special.erf(1 / np.sqrt(2)))),
    "plateaus": (terraces, TERRACES),
    "a discontinuity": (cliff, GAUSSIAN + np.log((1 + np.exp(-20.0)) / 2)),
    "log L from -2e6 to 0": (spread_of_a_million, np.log(np.pi / 1e6 / 4)),
    "log L from -1e-6 to 1e-6": (spread_of_a_millionth, np.log(np.sinh(1e-6) / 1e-6)),
    "float32": (single_precision, GAUSSIAN + 1000),
}


@pytest.mark.parametrize(("function", "logZ"), KNOWN.values(), ids=KNOWN)
def test_evidence_is_right(function, logZ):
    result = nsflow.run(host(function), PRIOR, settings=SETTINGS)
    assert result.finished
    assert result.ess >= 1000
    assert result.logZ_err < 0.05
    assert abs(result.logZ - logZ) < SIGMAS * result.logZ_err + 1e-9
    assert not [alarm for alarm in result.alarms if "NaN" not in alarm]


def test_jax_function_of_single_precision_constants():
    """Float32 inside, as a network or a table has it, is float64 outside."""

    def log_likelihood(params):
        x = params["x"].astype(jnp.float32)
        return -jnp.float32(0.5) * jnp.sum((x / jnp.float32(WIDTH)) ** 2)

    result = nsflow.run(log_likelihood, PRIOR, settings=SETTINGS)
    assert result.log_likelihood.dtype == np.float64
    assert abs(result.logZ - GAUSSIAN) < SIGMAS * result.logZ_err


def test_noise_leaves_the_evidence_of_the_average_likelihood():
    """Noise of s nats that averages to zero gives L exp(s^2 / 2) in the mean: 0.005 nats at s = 0.1."""
    noise = np.random.default_rng(0)
    result = nsflow.run(host(lambda x: gaussian(x) + noise.normal(0.0, 0.1, len(x))), PRIOR, settings=SETTINGS)
    assert result.finished
    assert abs(result.logZ - GAUSSIAN - 0.1**2 / 2) < SIGMAS * result.logZ_err


def test_impossible_from_some_call_on_is_no_failure():
    """A likelihood that turns to -inf ends with evidence or without, never with an exception."""
    left = [3000]

    def dies(x):
        left[0] -= len(x)
        return gaussian(x) if left[0] > 0 else np.full(len(x), -np.inf)

    result = nsflow.run(host(dies), PRIOR, max_calls=8000, settings=SETTINGS)
    assert result.alarms
