"""Stochastic dynamics carry the base to a mixture whose score is known. Statistical gates: 5 standard errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from nsflow.diffusion.process import (
    AbstractProcess,
    ProcessPath,
    SubVariancePreserving,
    VarianceExploding,
    VariancePreserving,
)
from nsflow.diffusion.schedule import ConstantSchedule
from nsflow.diffusion.sde import (
    EulerMaruyama,
    PathProcess,
    PredictorCorrector,
    ReverseProcess,
    StochasticHeun,
    simulate,
)
from nsflow.flow.path import LinearPath, TrigonometricPath
from tests.marginals import MixtureOnPath

NUM = 20_000
MODES = {"weights": (0.7, 0.3), "means": ((-1.0,), (1.5,)), "widths": (0.5, 0.3)}


def quantiles(x):
    """The mixture's distribution function at points: uniform if they are right."""
    parts = zip(MODES["weights"], MODES["means"], MODES["widths"], strict=True)
    return sum(w * stats.norm.cdf(x, m[0], s) for w, m, s in parts)


def run(process, start, key=0, **options):
    """Ends of many trajectories in one dimension."""
    keys = jax.random.split(jax.random.key(key), len(start))
    end = jax.jit(jax.vmap(lambda key, x: simulate(key, process, x, **options)[-1]))
    return np.asarray(end(keys, jnp.asarray(start, jnp.float32)[:, None])[:, 0], np.float64)


class Backwards:
    """A path's coefficients in the time of its process."""

    def __init__(self, process):
        self.alpha, self.sigma = process.scale, lambda t: jnp.sqrt(process.variance(t))


@pytest.mark.parametrize("stochasticity", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("process", [VariancePreserving(), SubVariancePreserving(), VarianceExploding(0.01, 20.0)])
def test_reverse_process_carries_noise_to_the_mixture(process, stochasticity):
    """Kolmogorov and Smirnov at a false-alarm rate of 1e-4 for each of nine cases."""
    target = MixtureOnPath(Backwards(process), **MODES)
    reverse = ReverseProcess(process, target.score, stochasticity)
    width = ProcessPath(process, end=0.0).width
    x = run(reverse, width * np.random.default_rng(0).normal(size=NUM), num_steps=400, times=(0.0, 0.999))
    assert stats.kstest(quantiles(x), "uniform").pvalue > 1e-4


@pytest.mark.parametrize("stochasticity", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("path", [TrigonometricPath(), LinearPath(), ProcessPath(VariancePreserving())])
def test_path_process_carries_the_base_to_the_mixture(path, stochasticity):
    """Kolmogorov and Smirnov at a false-alarm rate of 1e-4 for each of nine cases."""
    process = PathProcess(path, MixtureOnPath(path, **MODES).noise, stochasticity)
    x = run(process, np.random.default_rng(1).normal(size=NUM), num_steps=400, times=(0.0, 0.999))
    assert stats.kstest(quantiles(x), "uniform").pvalue > 1e-4


def test_wrong_score_is_seen():
    """The gate is not blind: the score of a mixture with other weights fails it."""
    process = VariancePreserving()
    target = MixtureOnPath(Backwards(process), **MODES | {"weights": (0.6, 0.4)})
    x = run(ReverseProcess(process, target.score), np.random.default_rng(0).normal(size=NUM), num_steps=400)
    assert stats.kstest(quantiles(x), "uniform").pvalue < 1e-8


def test_forward_simulation_has_the_exact_kernel():
    process = VariancePreserving()
    factor, std = process.transition(jnp.array(0.0), jnp.array(0.5))
    x = run(process, np.full(NUM, 3.0), num_steps=200, times=(0.0, 0.5))
    assert x.mean() == pytest.approx(3 * float(factor), abs=5 * float(std) / NUM**0.5)
    assert x.std() == pytest.approx(float(std), rel=5 / (2 * NUM) ** 0.5)


class Moments(AbstractProcess):
    """Ornstein-Uhlenbeck with a diffusion that grows, whose variance a quadrature gives."""

    def drift(self, t, x):  # noqa: ARG002
        return -3.0 * x

    def diffusion(self, t):
        return 1.0 + 2.0 * t


def variance_error(integrator, num_steps):
    """Error of the variance at time 1, without chance: the integrator is linear in x and its noise.

    Draws of +1 and -1 times one noise a step average the cross terms away.
    """
    h = jnp.asarray(1.0 / num_steps)
    variance = 0.0
    for i in range(num_steps):
        t = jnp.asarray(i / num_steps)
        step = lambda x, key, t=t: integrator(key, Moments(), t, x, h)  # noqa: E731
        factor = step(jnp.ones(1), jax.random.key(0)) - step(jnp.zeros(1), jax.random.key(0))
        noise = step(jnp.zeros(1), jax.random.key(0)) / jax.random.normal(jax.random.key(0), (1,))
        variance = float(factor[0]) ** 2 * variance + float(noise[0]) ** 2
    s = np.linspace(0, 1, 20_001)
    exact = np.trapezoid(np.exp(-6 * (1 - s)) * (1 + 2 * s) ** 2, s)
    return abs(variance - exact)


def test_weak_orders():
    """Halving the step halves the error of Euler and Maruyama, and quarters that of stochastic Heun."""
    with jax.enable_x64(True):
        euler = [variance_error(EulerMaruyama(), k) for k in (20, 40)]
        heun = [variance_error(StochasticHeun(), k) for k in (20, 40)]
    assert 1.7 < euler[0] / euler[1] < 2.4
    assert 3.4 < heun[0] / heun[1] < 5.0
    assert heun[1] < 0.2 * euler[1]


class DoubleWell(AbstractProcess):
    """A nonlinear process, dX = -V' dt + g dW with V = (x^2 - 1)^2, stationary at exp(-2 V / g^2)."""

    def drift(self, t, x):  # noqa: ARG002
        return -4 * x * (x**2 - 1)

    def diffusion(self, t):
        return jnp.asarray(1.2, t.dtype)


def double_well_quantiles(x):
    grid = np.linspace(-3, 3, 4001)
    density = np.exp(-2 * (grid**2 - 1) ** 2 / 1.2**2)
    cumulated = np.cumsum(density)
    return np.interp(x, grid, cumulated / cumulated[-1])


def test_nonlinear_process_reaches_its_gibbs_density():
    x = run(DoubleWell(), np.random.default_rng(0).normal(size=NUM), num_steps=1000, times=(0.0, 10.0))
    assert stats.kstest(double_well_quantiles(x), "uniform").pvalue > 1e-4


def test_reverse_of_a_nonlinear_process():
    """A stationary process is its own reversal; its score is -2 V' / g^2."""
    score = lambda t, x: 2 * DoubleWell().drift(t, x) / DoubleWell().diffusion(t) ** 2  # noqa: E731
    x = run(DoubleWell(), np.random.default_rng(0).normal(size=NUM), num_steps=500, times=(0.0, 5.0))
    x = run(ReverseProcess(DoubleWell(), score), x, key=1, num_steps=100)
    assert stats.kstest(double_well_quantiles(x), "uniform").pvalue > 1e-4


def test_corrector_mends_a_coarse_predictor():
    """Of 20 steps the corrector leaves less than two thirds of the predictor's distance to the mixture."""
    process = VariancePreserving(ConstantSchedule(8.0))
    target = MixtureOnPath(Backwards(process), **MODES)
    reverse = ReverseProcess(process, target.score)
    start = np.random.default_rng(0).normal(size=NUM)
    corrector = PredictorCorrector(
        reverse_score(target), lambda t: jnp.sqrt(process.variance(1 - t)), num_corrections=10, signal_to_noise=0.4
    )
    distance = [
        stats.kstest(quantiles(run(reverse, start, num_steps=20, times=(0.0, 0.99), integrator=integrator)), "uniform")
        for integrator in (EulerMaruyama(), corrector)
    ]
    assert distance[1].statistic < 0.67 * distance[0].statistic


def reverse_score(target):
    return lambda t, x: target.score(1 - t, x)


def test_trajectory_ends_at_the_sample():
    trajectory = simulate(jax.random.key(0), VariancePreserving(), jnp.ones(3), num_steps=7)
    assert trajectory.shape == (7, 3)
