"""Modes: gradients and their price, maxima of a cloud, and the Gaussian around a maximum."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from jax import lax
from scipy import stats

from nsflow.likelihood.host import HostLikelihood
from nsflow.likelihood.likelihood import JaxLikelihood
from nsflow.modes.modes import Target, ascend, basins, isolation, measure
from nsflow.nested.state import Settings
from nsflow.prior.prior import Prior
from nsflow.proposals.estimators import KernelEstimator
from nsflow.sampler import run

PRIOR = Prior({"a": dist.Normal(1.0, 2.0), "b": dist.Uniform(-3.0, 3.0)})


def log_likelihood(p, xp=np):
    return -((p["a"] - 2) ** 2) + xp.sin(p["b"])


def jax_target(max_calls=1000):
    return Target(JaxLikelihood(lambda p: log_likelihood(p, jnp)), PRIOR, max_calls=max_calls)


def host_target(max_calls=1000):
    return Target(HostLikelihood(log_likelihood, vectorized=True), PRIOR, max_calls=max_calls)


@pytest.mark.parametrize(("make", "price"), [(jax_target, 2), (host_target, 5)])
def test_value_gradient_and_price_of_a_target(make, price):
    """Likelihood times the standard normal of latent space, by the chain rule of the probit map."""
    z = np.array([0.3, -0.7])
    a, b = 1 + 2 * z[0], 6 * stats.norm.cdf(z[1]) - 3
    expected = -((a - 2) ** 2) + np.sin(b) + stats.norm.logpdf(z).sum()
    slope = np.array([-2 * (a - 2) * 2, np.cos(b) * 6 * stats.norm.pdf(z[1])]) - z
    target = make()
    value, gradient = target(z)
    assert value == pytest.approx(expected, rel=1e-10)
    np.testing.assert_allclose(gradient, slope, rtol=1e-5)
    assert target.num_calls == price


def by_while_loop(value):
    """The value, as a third of it three times."""
    return lax.while_loop(lambda c: c[0] < 3, lambda c: (c[0] + 1, c[1] + value / 3), (0, 0.0 * value))[1]


def by_traced_length(value):
    return lax.fori_loop(0, 3 + jnp.int64(jnp.floor(0.0 * value)), lambda _, total: total + value / 3, 0.0 * value)


def by_callback(value):
    return jax.pure_callback(np.asarray, jax.ShapeDtypeStruct((), np.float64), value, vmap_method="expand_dims")


def by_incomplete_beta(value):
    """Of which JAX has no gradient in its first two arguments: that of Student's distribution in nu."""
    return value + 1e-9 * jax.scipy.special.betainc(2.0 + jnp.tanh(value), 0.5, 0.3)


def by_eigenvectors(value):
    matrix = jnp.zeros((2, 2)).at[0, 1].set(1.0).at[1, 1].set(-1.0 + jnp.tanh(value) / 2)
    return value + 0.0 * jnp.real(jnp.linalg.eig(matrix)[1][0, 0])


def by_nan(value):
    """The gradient of a root at zero is infinite, and zero times that is NaN: no slope at all."""
    return value + jnp.sqrt(0.0 * value)


WITHOUT_REVERSE = {
    by_while_loop: 3, by_traced_length: 3, by_callback: 5, by_incomplete_beta: 5, by_eigenvectors: 5,
}  # fmt: skip


@pytest.mark.parametrize("by", WITHOUT_REVERSE)
def test_gradients_that_reverse_mode_lacks_are_those_of_forward_mode_or_differences(by):
    """With the price of what was done."""
    likelihood = JaxLikelihood(lambda p: by(log_likelihood(p, jnp)))
    target = Target(likelihood, PRIOR, max_calls=100)
    value, gradient = target(np.array([0.3, -0.7]))
    expected_value, expected_gradient = jax_target()(np.array([0.3, -0.7]))
    assert value == pytest.approx(expected_value, rel=1e-8)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-5)
    assert target.num_calls == target.price == WITHOUT_REVERSE[by]


SLOW = [pytest.param(by, marks=pytest.mark.slow) for by in (by_traced_length, by_incomplete_beta, by_eigenvectors)]


@pytest.mark.parametrize("by", [by_while_loop, by_callback, by_nan, *SLOW])
def test_evidence_without_a_reverse_gradient(by):
    """Runs ended at their first climb, after a thousand calls."""
    prior = Prior({"a": dist.Uniform(-5.0, 5.0), "b": dist.Uniform(0.0, 1.0)})
    settings = Settings(ess=200, num_prior=200, num_live=100, proposal=KernelEstimator())
    result = run(lambda p: by(-0.5 * ((p["a"] - 0.3) / 0.1) ** 2), prior, settings=settings)
    assert result.finished
    assert abs(result.logZ - np.log(np.sqrt(2 * np.pi) * 0.1 / 10)) < 5 * result.logZ_err < 0.5


@pytest.mark.parametrize("make", [jax_target, host_target])
def test_target_never_exceeds_its_calls(make):
    target = make(max_calls=24)
    for _ in range(24):
        ascend(target, np.array([2.0, 2.0]))
    assert 24 - 5 < target.num_calls <= 24
    assert target.is_exhausted
    assert target(np.zeros(2))[0] == -np.inf


def test_target_is_minus_infinity_where_the_likelihood_is_zero_or_nan():
    target = Target(JaxLikelihood(lambda p: jnp.log(p["a"])), PRIOR, max_calls=100)
    value, gradient = target(np.array([-3.0, 0.0]))
    assert value == -np.inf
    np.testing.assert_array_equal(gradient, [0, 0])


def test_gradient_is_compiled_once_for_a_likelihood_and_a_prior():
    """Every search makes a target of its own; each cost 1.2 seconds of loggamma-10."""
    traced = []

    def function(p):
        traced.append(None)
        return -((p["a"] - 2) ** 2)

    likelihood = JaxLikelihood(function)
    for _ in range(2):
        Target(likelihood, PRIOR, max_calls=100)(np.zeros(2))
    assert len(traced) == 1
    half = Prior({"a": dist.Normal(1.0, 1.0), "b": dist.Uniform(-3.0, 3.0)})
    _, gradient = Target(likelihood, half, max_calls=100)(np.zeros(2))
    np.testing.assert_allclose(gradient, [2.0, 0.0])
    assert len(traced) == 2


def test_ascent_stays_in_the_basin_within_reach():
    """A narrow core within a higher shell: a first step of one unit leads from the core's slope to the shell."""

    def target(x):
        r = np.linalg.norm(x) + 1e-12
        core, shell = -50 * r**2 - 3, -200 * (r - 1) ** 2
        value, slope = max((core, -100 * r), (shell, -400 * (r - 1)))
        return value, slope * x / r

    start = np.array([0.04, 0.03])
    assert np.linalg.norm(ascend(target, start, 0.1)[0]) < 1e-3
    assert np.linalg.norm(ascend(target, start)[0]) == pytest.approx(1, abs=1e-3)


def test_ascent_finds_a_normal_exactly():
    """The maximum of a normal density, its covariance, and by Laplace its normalisation, which is one."""
    covariance = np.array([[0.04, 0.03], [0.03, 0.09]])
    normal = stats.multivariate_normal([3.0, -1.0], covariance)
    precision = np.linalg.inv(covariance)

    def target(x):
        return normal.logpdf(x), -precision @ (x - normal.mean)

    mode = measure(target, *ascend(target, np.array([-5.0, 4.0])))
    np.testing.assert_allclose(mode.centre, normal.mean, atol=1e-4)
    np.testing.assert_allclose(mode.scale @ mode.scale.T, covariance, rtol=1e-4)
    assert mode.log_evidence == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize(("deviations", "is_settled"), [(0.0, True), (1.0, True), (2.0, False)])
def test_a_maximum_has_no_slope(deviations, is_settled):
    """Beside the top of a normal a Newton step gains half the square of the distance, in deviations."""
    mode = measure(lambda x: (-50 * x[0] ** 2, -100 * x), np.array([0.1 * deviations]), 0.0)
    assert mode.slope == pytest.approx(0.5 * deviations**2, abs=1e-9)
    assert mode.is_settled is is_settled


def test_ascent_keeps_a_ridge_within_the_prior():
    """No curvature along the second axis: the mode is as wide as the prior there, one."""

    def target(x):
        return -50 * x[0] ** 2, np.array([-100 * x[0], 0.0])

    mode = measure(target, *ascend(target, np.array([1.0, 2.0])))
    np.testing.assert_allclose(mode.scale @ mode.scale.T, np.diag([0.01, 1.0]), atol=1e-4)


def test_a_cliff_beside_a_ridge_has_a_width():
    """Curvatures of 1e20 and 1 along slanted axes: rounding leaves no positive definite covariance, and hides the 1."""
    axes = np.array([[0.6, 0.8], [-0.8, 0.6]])
    curvatures = np.array([1e20, 1.0])

    def target(x):
        along = axes @ x
        return float(-0.5 * along**2 @ curvatures), -axes.T @ (curvatures * along)

    scale = measure(target, np.zeros(2), 0.0).scale
    assert scale[0, 1] == 0
    assert np.all(np.diag(scale) > 0)
    assert np.linalg.norm(axes[0] @ scale) < 1e-7  # the cliff's, as far as a mode may be narrow
    assert np.linalg.norm(axes[1] @ scale) < 1.001  # the prior's at most


def test_ascent_survives_an_edge_of_zero_likelihood():
    def half(x):
        return (-np.inf, np.zeros(1)) if x[0] < 0 else (-x[0], -np.ones(1))

    centre, value = ascend(half, np.array([1.0]))
    assert 0 <= centre[0] <= 1
    assert value == -centre[0]


def test_basins_of_two_peaks_and_hardly_more():
    """Two normal peaks in three dimensions, 2000 points: both tops are found, few false ones, and the nearer top."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2000, 3))
    tops = np.array([[1.5, 0.0, 0.0], [-1.5, 0.0, 0.0]])
    log_density = np.logaddexp.reduce([-50 * np.sum((x - top) ** 2, axis=1) for top in tops])
    above = basins(x, log_density)
    maxima = np.unique(above)
    assert len(maxima) < 10
    np.testing.assert_array_equal(above[maxima], maxima)
    assert np.all(log_density[above] >= log_density)
    for top in tops:
        assert np.min(np.linalg.norm(x[maxima] - top, axis=1)) < 0.3
    is_right = np.sign(x[above, 0]) == np.sign(x[:, 0])
    assert np.mean(is_right) > 0.95


def test_points_of_equal_density_are_all_their_own_maxima():
    x = np.random.default_rng(0).normal(size=(50, 2))
    np.testing.assert_array_equal(basins(x, np.zeros(50)), np.arange(50))


def test_isolation_is_the_distance_to_the_nearest_higher_point():
    rng = np.random.default_rng(0)
    x, log_density = rng.normal(size=(30, 2)), rng.normal(size=30)
    for i, distance in enumerate(isolation(x, log_density, np.arange(30))):
        others = [np.linalg.norm(x[j] - x[i]) for j in range(30) if log_density[j] > log_density[i]]
        assert distance == pytest.approx(min(others) if others else np.inf)
