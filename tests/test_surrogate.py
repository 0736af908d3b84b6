"""Regression of log L: exact where it can be, good where it must be."""

import jax
import numpy as np
from scipy import special, stats

from nsflow.proposals import surrogate


def gaussian_points(num_points, num_dims, seed=0):
    return np.random.default_rng(seed).normal(size=(num_points, num_dims))


def rms(fitted, log_likelihood, x):
    return np.sqrt(np.mean((fitted(x) - log_likelihood(x)) ** 2))


def test_interpolation_reproduces_quadratics_of_the_cube():
    """Cubic radial functions with a quadratic tail are exact for every quadratic."""

    def log_likelihood(x):
        u = special.ndtr(x)
        return 3.0 - 40 * (u[:, 0] - 0.4) ** 2 + 10 * u[:, 0] * u[:, 1]

    x = gaussian_points(300, 2)
    fitted = surrogate.fit(jax.random.key(0), x, log_likelihood(x), log_likelihood(x))
    assert rms(fitted, log_likelihood, gaussian_points(100, 2, seed=1)) < 1e-5


def test_interpolation_knows_a_smooth_function_and_the_edges_of_a_uniform_prior():
    def log_likelihood(x):
        u = special.ndtr(x)
        return 3 * np.cos(6 * u[:, 0]) * np.cos(6 * u[:, 1])

    x, edge = gaussian_points(2000, 2), np.array([[-3.5, 0.0], [3.5, 3.5]])
    fitted = surrogate.fit(jax.random.key(0), x, log_likelihood(x), np.zeros(2000))
    assert rms(fitted, log_likelihood, gaussian_points(500, 2, seed=1)) < 0.003
    assert rms(fitted, log_likelihood, edge) < 0.05


def test_posterior_far_out_in_the_prior_is_not_squeezed_to_nothing():
    """At 9 sigma the normal distribution function is 1 to double precision."""

    def log_likelihood(x):
        return stats.norm.logpdf(x[:, 0], 9.0, 0.1)

    x = 9 + 0.2 * gaussian_points(400, 1)
    fitted = surrogate.fit(jax.random.key(0), x, log_likelihood(x), log_likelihood(x))
    assert rms(fitted, log_likelihood, 9 + 0.1 * gaussian_points(100, 1, seed=1)) < 1e-4


def test_points_on_top_of_each_other_are_no_singular_system():
    x = np.repeat(gaussian_points(50, 1), 20, axis=0)
    fitted = surrogate.fit(jax.random.key(0), x, -(x[:, 0] ** 2), np.zeros(1000))
    np.testing.assert_allclose(fitted(x), -(x[:, 0] ** 2), atol=1e-6)


def test_too_few_points_give_a_constant():
    x = gaussian_points(11, 1)
    fitted = surrogate.fit(jax.random.key(0), x, np.full(11, 3.0), np.zeros(11))
    np.testing.assert_allclose(fitted(x), 3.0)


def test_network_learns_a_skewed_likelihood():
    """A LogGamma in each of 8 dimensions: a Gaussian of the same moments is off by 1.5 nats, rms over the posterior."""
    rng = np.random.default_rng(0)

    def log_likelihood(x):
        z = x / 0.3
        return np.sum(z - np.exp(z), axis=1)

    def draws(num):
        return 0.3 * np.log(rng.exponential(size=(num, 8)))

    # Half from the posterior, half from a wider Gaussian around it, as a run would leave them.
    x = np.concatenate([draws(3000), gaussian_points(3000, 8) * 0.5])
    log_weights = log_likelihood(x) - log_likelihood(x).max()
    fitted = surrogate.fit(jax.random.key(0), x, log_likelihood(x), np.maximum(log_weights, -20))
    fresh = draws(1000)
    assert rms(fitted, log_likelihood, fresh) < 0.4


def test_network_learns_a_thin_shell():
    """Of radius 2 and width 0.1 in 8-d: a network of silu layers knows it to 0.6 nats, no better than a constant."""
    rng = np.random.default_rng(0)

    def log_likelihood(x):
        return -0.5 * ((np.linalg.norm(x, axis=1) - 2) / 0.1) ** 2

    def draws(num, width):
        x = rng.normal(size=(num, 8))
        return (2 + width * rng.normal(size=(num, 1))) * x / np.linalg.norm(x, axis=1, keepdims=True)

    x = np.concatenate([draws(4000, 0.1), draws(4000, 0.4)])
    fitted = surrogate.fit(jax.random.key(0), x, log_likelihood(x), np.maximum(log_likelihood(x), -20))
    assert fitted.error < 0.35
    assert rms(fitted, log_likelihood, draws(1000, 0.1)) < 0.35


def test_same_key_gives_the_same_surrogate():
    x = gaussian_points(500, 7)
    training = surrogate.Training(num_steps=100, steps_per_score=50, architecture=surrogate.Architecture(8, 1))
    value = np.sum(x, axis=1) - 0.5 * np.sum(x**2, axis=1)
    first, second, other = (
        surrogate.fit(jax.random.key(seed), x, value, np.zeros(500), training=training)(x) for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, second)
    assert not np.array_equal(first, other)


def test_few_points_make_a_surrogate_that_lets_every_draw_pass():
    """As where the likelihood is zero at all but some draws of a round, in few dimensions and in many."""
    for num_dims in (2, 8):
        x = gaussian_points(4, num_dims)
        fitted = surrogate.fit(jax.random.key(0), x, np.full(4, 3.0), np.zeros(4))
        assert fitted.error == 1.0
        np.testing.assert_array_equal(fitted(gaussian_points(5, num_dims)), 3.0)
