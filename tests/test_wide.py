"""A wider base: its density is that of its draws, and bounds the weights of what a map alone would cut off."""

import jax
import numpy as np
from scipy import stats

from nsflow import Flow
from nsflow.densities.gaussian import Gaussian
from nsflow.densities.wide import Wide

PLANE = Gaussian(np.array([1.0, -2.0]), np.linalg.cholesky([[2.0, 1.2], [1.2, 1.0]]))


def test_density_is_that_of_three_normals():
    """In the plane their widths are 1, 1.5 and 2.5."""
    x, log_q = Wide(PLANE).sample_and_log_prob(jax.random.key(0), 100)
    covariance = PLANE.scale @ PLANE.scale.T
    normals = [stats.multivariate_normal(PLANE.mean, s**2 * covariance) for s in (1.0, 1.5, 2.5)]
    exact = np.log(sum(p * normal.pdf(x) for p, normal in zip((0.5, 0.3, 0.2), normals, strict=True)))
    np.testing.assert_allclose(log_q, exact, atol=1e-12)
    np.testing.assert_array_equal(log_q, Wide(PLANE).log_prob(x))


def test_draws_have_that_density():
    """Radii in the base by a Kolmogorov test against a mixture of Rayleigh distributions; false alarm 1e-5."""
    x, _ = Wide(PLANE).sample_and_log_prob(jax.random.key(1), 20_000)
    radius = np.linalg.norm(PLANE.whiten(x), axis=1)
    mixture = lambda r: sum(p * stats.rayleigh.cdf(r, scale=s) for p, s in ((0.5, 1.0), (0.3, 1.5), (0.2, 2.5)))  # noqa: E731
    assert stats.kstest(radius, mixture).pvalue > 1e-5


def test_flow_and_gaussian_of_one_map_agree():
    """The flow of v = x is the Gaussian of width e."""
    flow = Flow.from_velocity(lambda t, x: x, num_dims=2, num_steps=16)
    gaussian = Gaussian(np.zeros(2), np.e * np.eye(2))
    x, log_q = Wide(flow).sample_and_log_prob(jax.random.key(2), 50)
    np.testing.assert_allclose(log_q, Wide(gaussian).log_prob(x), atol=1e-4)


def test_no_density_is_less_than_half_of_the_map_alone():
    x, log_q = PLANE.sample_and_log_prob(jax.random.key(3), 1000)
    assert np.all(Wide(PLANE).log_prob(x) >= log_q - np.log(2) - 1e-12)


def test_folded_draws_have_no_density():
    """One Runge-Kutta step of a stiff field folds the line; what its inverse does not find again is disowned."""
    flow = Flow.from_velocity(lambda t, x: -3 * jax.numpy.sin(3 * x), num_dims=1, num_steps=1)
    _, log_q = Wide(flow).sample_and_log_prob(jax.random.key(4), 500)
    assert 0 < np.sum(np.isnan(log_q)) < 500
