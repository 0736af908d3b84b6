"""Forward processes: kernels against the Fokker-Planck equation, schedules, and the paths that lead back."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial
from scipy import integrate as quadrature

from nsflow.diffusion.process import (
    AbstractLinearProcess,
    AbstractProcess,
    LinearProcess,
    ProcessPath,
    SubVariancePreserving,
    VarianceExploding,
    VariancePreserving,
)
from nsflow.diffusion.schedule import AbstractSchedule, ConstantSchedule, CosineSchedule, LinearSchedule
from nsflow.flow.flow import Flow
from nsflow.flow.path import LinearPath, TrigonometricPath
from tests.marginals import MixtureOnPath


class Brownian(AbstractLinearProcess):
    """A process that only a user has: two coefficients, everything else follows."""

    def scale(self, t):
        return 1 + 0 * t

    def variance(self, t):
        return 4 * t


class Bump(AbstractSchedule):
    """A schedule without an integral of its own."""

    def beta(self, t):
        return 1 + 5 * jnp.sin(jnp.pi * t) ** 2


def vp_rate(t):
    return -0.5 * LinearSchedule().beta(t)


def vp_noise(t):
    return jnp.sqrt(LinearSchedule().beta(t))


PROCESSES = {
    "OU": VariancePreserving(ConstantSchedule(3.0)),
    "VP": VariancePreserving(),
    "VP-cosine": VariancePreserving(CosineSchedule()),
    "VP-bump": VariancePreserving(Bump()),
    "sub-VP": SubVariancePreserving(),
    "VE": VarianceExploding(),
    "Brownian": Brownian(),
    "given": LinearProcess(vp_rate, vp_noise),
}
EVERY = pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
PATHS = {
    "linear": LinearPath(),
    "noisy": LinearPath(noise=0.1),
    "trigonometric": TrigonometricPath(),
} | {name: ProcessPath(process) for name, process in PROCESSES.items()}
EVERY_PATH = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


@EVERY
@pytest.mark.parametrize("t", [0.05, 0.4, 0.9])
def test_kernel_satisfies_the_fokker_planck_equation(process, t):
    """dp/dt = -div(mu p) + g^2 / 2 lap p for the kernel from a point at time 0.01, all derivatives by autodiff."""
    first, start, t = jnp.array(0.01), jnp.array([0.7, -0.2]), jnp.array(t)

    def density(t, x):
        factor, std = process.transition(first, t)
        return jnp.exp(-0.5 * jnp.sum((x - factor * start) ** 2) / std**2) / (2 * jnp.pi * std**2)

    for z in np.random.default_rng(0).normal(size=(5, 2)):
        factor, std = process.transition(first, t)
        x = factor * start + std * z
        rate = jax.grad(density, 0)(t, x)
        flux = jnp.trace(jax.jacfwd(lambda x: process.drift(t, x) * density(t, x))(x))
        spread = 0.5 * process.diffusion(t) ** 2 * jnp.trace(jax.hessian(density, 1)(t, x))
        scale = abs(flux) + abs(spread)
        np.testing.assert_allclose(rate, spread - flux, atol=1e-9 * scale, rtol=1e-8)


@EVERY
def test_kernels_compose(process):
    """From s to t is from s to u, then from u to t (Chapman and Kolmogorov)."""
    s, u, t = (jnp.array(v) for v in (0.2, 0.5, 0.8))
    (a, std_a), (b, std_b), (c, std_c) = (process.transition(*pair) for pair in ((s, u), (u, t), (s, t)))
    np.testing.assert_allclose([a * b, (b * std_a) ** 2 + std_b**2], [c, std_c**2], rtol=1e-10)


def test_ornstein_uhlenbeck_in_closed_form():
    """X_t | X_0 ~ N(e^(-t beta / 2) X_0, 1 - e^(-beta t)), drift -beta X / 2, diffusion beta^1/2."""
    process, t, x = PROCESSES["OU"], jnp.array(0.4), jnp.array([2.0])
    np.testing.assert_allclose(process.transition(jnp.array(0.0), t), [np.exp(-0.6), np.sqrt(1 - np.exp(-1.2))])
    np.testing.assert_allclose(process.drift(t, x), -1.5 * x)
    np.testing.assert_allclose(process.diffusion(t), np.sqrt(3.0))


@pytest.mark.parametrize("process", [VariancePreserving(), VariancePreserving(CosineSchedule())])
def test_variance_preserving_preserves_it(process):
    """s^2 + nu = 1, and sub-VP has the same mean with nu^2."""
    t = jnp.array(0.3)
    np.testing.assert_allclose(process.scale(t) ** 2 + process.variance(t), 1)
    other = SubVariancePreserving(process.schedule)
    np.testing.assert_allclose([other.scale(t), other.variance(t)], [process.scale(t), process.variance(t) ** 2])


@pytest.mark.parametrize("t", [0.05, 0.4, 1.0])
def test_coefficients_lead_to_the_kernel(t):
    """Drift and diffusion of the variance-preserving process, and nothing else, give its kernel and themselves back."""
    known, given, t, x = PROCESSES["VP"], PROCESSES["given"], jnp.array(t), jnp.array([2.0])
    np.testing.assert_allclose(given.transition(jnp.array(0.0), t), known.transition(jnp.array(0.0), t), rtol=1e-5)
    np.testing.assert_allclose(given.drift(t, x), vp_rate(t) * x, rtol=1e-10)
    np.testing.assert_allclose(given.diffusion(t), vp_noise(t), rtol=1e-4)


def test_variance_exploding_in_closed_form():
    """g = sigma(t) (2 log(sigma_max / sigma_min))^1/2 of Song et al. (2021), Eq. 9 in continuous time; no drift."""
    t, process = jnp.array(0.6), VarianceExploding(0.1, 20.0)
    expected = 0.1 * 200**0.6 * np.sqrt(2 * np.log(200))
    np.testing.assert_allclose(process.diffusion(t), expected)
    np.testing.assert_array_equal(process.drift(t, jnp.ones(2)), 0)


@pytest.mark.parametrize("schedule", [ConstantSchedule(), LinearSchedule(), CosineSchedule(), Bump()])
@pytest.mark.parametrize("t", [0.1, 1.0])
def test_integral_of_a_schedule(schedule, t):
    expected = quadrature.quad(lambda t: float(schedule.beta(jnp.array(t))), 0, t, epsabs=0, epsrel=1e-9, limit=200)[0]
    np.testing.assert_allclose(schedule.integral(jnp.array(t)), expected, rtol=1e-7)


@EVERY
def test_path_of_a_process_is_the_process_backwards(process):
    """Coefficients are those of the kernel, and the diffusion that the path finds from them is the process's own."""
    path, t = ProcessPath(process, end=0.01), jnp.array(0.3)
    tau = 1 - 0.99 * t
    factor, std = process.transition(jnp.array(0.0), tau)
    np.testing.assert_allclose([path.alpha(t), path.sigma(t)], [factor, std], rtol=1e-12)
    np.testing.assert_allclose(path.diffusion(t), np.sqrt(0.99) * process.diffusion(tau), rtol=1e-9)


@EVERY_PATH
def test_width_is_that_of_whitened_data_at_the_start(path):
    start = jnp.array(0.0)
    assert path.width == pytest.approx(float(jnp.hypot(path.alpha(start), path.sigma(start))))
    assert path.width == pytest.approx(1.0, abs=0.01) or isinstance(path.process, VarianceExploding | Brownian)


def velocity_of_modes(path, means, widths, t, x):
    return MixtureOnPath(path, means=means, widths=widths).velocity(t, x)


@pytest.mark.parametrize("name", ["linear", "noisy", "trigonometric", "VP", "sub-VP", "VE"])
def test_probability_flow_has_the_density_of_the_target(name):
    """The flow of the exact velocity ends in a Gaussian, or a mixture, and says so at every point.

    The base stands for the marginal at t = 0, where data of unit size are left with a share alpha / sigma: the density
    may be off by a few times that.
    """
    path, start = PATHS[name], jnp.array(0.0)
    tolerance = 2e-3 + 3 * float(path.alpha(start) / path.sigma(start))
    # Two equal modes are a Gaussian, and share a compilation with the mixture.
    for means, widths in (([[0.3, -0.2]] * 2, [0.6] * 2), ([[-1.0, 0.5], [1.5, -0.5]], [0.5, 0.3])):
        velocity = Partial(partial(velocity_of_modes, path), jnp.array(means), jnp.array(widths))
        flow = replace(Flow.from_velocity(velocity, 2, num_steps=200), width=path.width)
        target = MixtureOnPath(path, means=tuple(map(tuple, means)), widths=tuple(widths))
        x = target.sample(np.random.default_rng(0), 50)
        expected = jax.vmap(lambda x, target=target: target.log_prob(jnp.array(1.0), x))(jnp.asarray(x))
        np.testing.assert_allclose(flow.log_prob(x), expected, atol=tolerance)


@EVERY_PATH
@pytest.mark.parametrize("t", [0.05, 0.5, 0.95])
def test_velocity_follows_from_the_score(path, t):
    """The probability-flow velocity of a mixture's score is the mean of dx_t/dt, and its inverse the mean noise."""
    target, t = MixtureOnPath(path), jnp.array(t)
    for x in path.width * np.random.default_rng(1).normal(size=(5, 2)):
        x = jnp.asarray(x)
        velocity = path.velocity_from_noise(t, x, target.noise(t, x))
        np.testing.assert_allclose(velocity, target.velocity(t, x), rtol=1e-8, atol=1e-9)
        np.testing.assert_allclose(path.noise_from_velocity(t, x, velocity), target.noise(t, x), rtol=1e-6, atol=1e-9)


@EVERY_PATH
@pytest.mark.parametrize("t", [0.1, 0.5, 0.9])
def test_velocity_satisfies_the_continuity_equation(path, t):
    """d log p/dt + v . grad log p + div v = 0 along a path to a mixture."""
    target, t = MixtureOnPath(path), jnp.array(t)
    for x in path.width * np.random.default_rng(2).normal(size=(5, 2)):
        x = jnp.asarray(x)
        v = lambda x: path.velocity_from_noise(t, x, target.noise(t, x))  # noqa: E731
        terms = [jax.grad(target.log_prob, 0)(t, x), v(x) @ target.score(t, x), jnp.trace(jax.jacfwd(v)(x))]
        np.testing.assert_allclose(sum(terms), 0, atol=1e-8 * sum(map(abs, terms)))


def test_coefficients_stay_finite_where_a_path_holds_no_data():
    """Times below 0.01 take the coefficients of 0.01: alpha = 0 would divide zero by zero."""
    velocity = TrigonometricPath().velocity_from_noise(jnp.array(0.0), jnp.ones(2), jnp.ones(2))
    assert np.all(np.isfinite(velocity))


def test_abstract_processes_have_no_instances():
    for kind in (AbstractProcess, AbstractLinearProcess, AbstractSchedule):
        with pytest.raises(TypeError, match="abstract"):
            kind()
