"""Langevin dynamics reach the Gibbs distribution. Statistical gates: 5 standard errors, or p > 1e-4."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from nsflow.diffusion.langevin import annealed_langevin, metropolis_langevin, run_chain, unadjusted_langevin
from nsflow.diffusion.process import ProcessPath, VarianceExploding
from tests.marginals import MixtureOnPath

NUM = 20_000


def ends(step, start, num_steps, key=0):
    """Last point of many chains."""
    keys = jax.random.split(jax.random.key(key), len(start))
    chain = jax.jit(jax.vmap(lambda key, x: run_chain(key, step, x, num_steps)[-1]))
    return np.asarray(chain(keys, jnp.asarray(start, jnp.float32)), np.float64)


@pytest.mark.parametrize("step_size", [0.05, 0.5])
@pytest.mark.parametrize("temperature", [1.0, 0.3])
def test_unadjusted_langevin_on_a_gaussian(step_size, temperature):
    """L = x^2 / 2v has stationary variance v T / (1 - eta / 2v): at T = eta sigma^2 / 2 that is exp(-2L/(eta sigma^2))
    up to the known error of the step."""
    v = np.array([1.0, 4.0])
    step = lambda key, x: unadjusted_langevin(key, lambda x: -x / jnp.asarray(v, x.dtype), x, step_size, temperature)  # noqa: E731
    x = ends(step, np.zeros((NUM, 2)), int(40 / step_size))
    expected = v * temperature / (1 - step_size / (2 * v))
    np.testing.assert_allclose(x.var(axis=0), expected, rtol=5 * (2 / NUM) ** 0.5)


def test_stationary_variance_without_chance():
    """The step is linear on a Gaussian: its factor and its noise give v T / (1 - eta / 2v) to rounding."""
    key, v, step_size, temperature = jax.random.key(0), 4.0, 0.5, 0.3
    step = lambda x: unadjusted_langevin(key, lambda x: -x / v, x, step_size, temperature)  # noqa: E731
    noise = float(step(jnp.zeros(1))[0] / jax.random.normal(key, (1,))[0])
    factor = float(step(jnp.ones(1))[0] - step(jnp.zeros(1))[0])
    assert noise**2 / (1 - factor**2) == pytest.approx(v * temperature / (1 - step_size / (2 * v)), rel=1e-4)


def quartic_quantiles(x, temperature):
    """Distribution function of exp(-L/T), L = (x^2 - 1)^2 - x / 2."""
    grid = np.linspace(-3, 3, 6001)
    density = np.exp(-((grid**2 - 1) ** 2 - grid / 2) / temperature)
    return np.interp(x, grid, np.cumsum(density) / np.sum(density))


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_metropolis_langevin_is_exact(temperature):
    """Whatever the step, the Gibbs distribution; of the same step without Metropolis the test sees the error."""
    log_prob = lambda x: -jnp.sum((x**2 - 1) ** 2 - x / 2)  # noqa: E731
    start = np.random.default_rng(0).normal(size=(NUM, 1))
    step_size = 0.1
    x = ends(lambda key, x: metropolis_langevin(key, log_prob, x, step_size, temperature)[0], start, 1000)
    assert stats.kstest(quartic_quantiles(x[:, 0], temperature), "uniform").pvalue > 1e-4
    x = ends(lambda key, x: unadjusted_langevin(key, jax.grad(log_prob), x, step_size, temperature), start, 1000)
    assert not stats.kstest(quartic_quantiles(x[:, 0], temperature), "uniform").pvalue > 1e-4


def test_metropolis_langevin_refuses_what_is_outside():
    """A proposal of density zero or NaN is never taken."""
    log_prob = lambda x: jnp.where(x[0] > 0, -x[0], jnp.nan)  # noqa: E731
    x = ends(lambda key, x: metropolis_langevin(key, log_prob, x, 1.0)[0], np.full((1000, 1), 0.5), 50)
    assert np.all(x > 0)


def test_metropolis_langevin_says_whether_it_moved():
    x, accepted = metropolis_langevin(jax.random.key(0), lambda x: -0.5 * jnp.sum(x**2), jnp.ones(2), 0.01)
    assert bool(accepted) == bool(np.any(x != 1))


def test_annealed_langevin_finds_the_weights_of_both_modes():
    """A chain at the data's own noise alone stays in the mode that it starts in."""
    path = ProcessPath(VarianceExploding(0.1, 10.0), end=0.01)
    target = MixtureOnPath(path, means=((-3.0,), (3.0,)), widths=(0.3, 0.3))
    times = jnp.linspace(0, 1, 12)
    draw = jax.jit(jax.vmap(lambda key, x: annealed_langevin(key, target.score, path, times, x)))
    num = 4000
    keys, start = jax.random.split(jax.random.key(0), num), 10 * jax.random.normal(jax.random.key(1), (num, 1))
    x = np.asarray(draw(keys, start))
    assert np.mean(x < 0) == pytest.approx(0.7, abs=0.05)  # 5 standard errors are 0.036, and the steps are finite
    assert np.std(x[x < 0]) == pytest.approx(0.3, rel=0.1)
    cold = jax.jit(jax.vmap(lambda key, x: annealed_langevin(key, target.score, path, times[-1:], x)))
    stuck = np.asarray(cold(keys, 3 + 0 * start))
    assert np.mean(stuck < 0) < 0.01
