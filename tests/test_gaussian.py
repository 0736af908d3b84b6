"""One Gaussian: moments, density and draws."""

import jax
import numpy as np
from scipy import stats

from nsflow.densities.gaussian import Gaussian

CORRELATED = Gaussian(np.array([1.0, -2.0]), np.linalg.cholesky([[2.0, 1.2], [1.2, 1.0]]))


def test_log_prob_is_that_of_the_normal_distribution():
    x, log_q = CORRELATED.sample_and_log_prob(jax.random.key(0), 200)
    exact = stats.multivariate_normal(CORRELATED.mean, CORRELATED.scale @ CORRELATED.scale.T)
    np.testing.assert_allclose(log_q, exact.logpdf(x), atol=1e-12)
    np.testing.assert_array_equal(log_q, CORRELATED.log_prob(x))


def test_draws_have_its_moments():
    """Whitened draws are standard normal by a Kolmogorov test; false alarm 1e-5."""
    x, _ = CORRELATED.sample_and_log_prob(jax.random.key(0), 20_000)
    white = CORRELATED.whiten(x)
    assert min(stats.kstest(column, "norm").pvalue for column in white.T) > 5e-6
    assert abs(np.mean(white[:, 0] * white[:, 1])) < 4.5 / np.sqrt(20_000)


def test_whitening_is_the_weighted_mean_and_covariance():
    """Many equal weights: no shrinkage to speak of. A hundred points in 10-d: 1 % of a correlation; two: all of it."""
    rng = np.random.default_rng(0)
    x = rng.multivariate_normal([1.0, -2.0], [[2.0, 1.2], [1.2, 1.0]], 10_000)
    mean, scale = (whole := Gaussian.fit(x)).mean, whole.scale
    np.testing.assert_allclose(mean, x.mean(0))
    np.testing.assert_allclose(scale @ scale.T, np.cov(x.T, bias=True), rtol=1e-6)
    x = rng.normal(size=(100, 10)) + rng.normal(size=(100, 1))
    scale = Gaussian.fit(x, np.zeros(100)).scale
    covariance = np.cov(x.T, bias=True)
    one = np.eye(10)
    np.testing.assert_allclose(scale @ scale.T, covariance * (one + 0.99 * (1 - one)))
    scale = Gaussian.fit(np.array([[0.0, 0.0], [1.0, 2.0], [9.0, 9.0]]), np.array([0.0, 0.0, -50.0])).scale
    np.testing.assert_allclose(scale, [[0.5, 0.0], [0.0, 1.0]], atol=1e-6)


def test_few_points_keep_the_correlations_of_their_frame():
    """Forty points in 10-d, correlated by 0.999: shrunk to none they would be many times too wide across."""
    rng = np.random.default_rng(0)
    scale = np.linalg.cholesky(0.999 + 0.001 * np.eye(10))
    x = rng.normal(size=(40, 10)) @ scale.T
    across = np.array([1.0, -1.0, *np.zeros(8)]) / np.sqrt(2)  # variance 0.001
    shrunk, framed = (Gaussian.fit(x, frame=frame).scale for frame in (None, 5 * scale))
    assert np.sum((across @ shrunk) ** 2) > 0.02
    assert 0.0004 < np.sum((across @ framed) ** 2) < 0.002


def test_preimage_undoes_the_map():
    z = np.random.default_rng(0).normal(size=(5, 2))
    preimage = CORRELATED.inverse(CORRELATED.forward(z))
    np.testing.assert_allclose(preimage.z, z)
    np.testing.assert_allclose(preimage.log_det, 0.5 * np.log(np.linalg.det([[2.0, 1.2], [1.2, 1.0]])))
