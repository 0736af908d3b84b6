"""Mixtures of kernels: their density, their draws, and where they stand."""

import dataclasses
from itertools import pairwise

import jax
import numpy as np
import pytest
from scipy import integrate, special, stats

from nsflow.densities.gaussian import lower_root
from nsflow.densities.kernels import Kernels

FALSE_ALARM = 1e-5  # chance that a correct nsflow fails any one statistical test in this file


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def random_kernels(num_kernels, num_dims, dof=5, tails=0.1):
    rng = np.random.default_rng(num_kernels)
    scales = np.tril(0.5 * rng.normal(size=(num_kernels, num_dims, num_dims)), -1)
    scales[:, range(num_dims), range(num_dims)] = rng.uniform(0.3, 1.5, (num_kernels, num_dims))
    return Kernels(2 * rng.normal(size=(num_kernels, num_dims)), scales, dof, tails)


@pytest.mark.parametrize(("num_dims", "dof"), [(1, 5), (3, 5), (3, 2)])
def test_one_kernel_without_tails_is_the_multivariate_t(num_dims, dof):
    kernels = random_kernels(1, num_dims, dof, tails=0.0)
    (centre,), (scale,) = kernels.centres, kernels.scales
    x = 3 * np.random.default_rng(0).normal(size=(300, num_dims))
    expected = stats.multivariate_t(centre, scale @ scale.T, df=dof).logpdf(x)
    np.testing.assert_allclose(kernels.log_prob(x), expected, rtol=1e-10)


def test_kernels_with_tails_add_marginals_times_prior_tails():
    """Kernel k has its tail along coordinate k mod d."""
    kernels = random_kernels(4, 3, tails=0.3)
    x = kernels.centres[0] + 2 * np.random.default_rng(0).normal(size=(300, 3))
    expected = np.zeros(300)
    for k, (centre, scale) in enumerate(zip(kernels.centres, kernels.scales, strict=True)):
        covariance, i = scale @ scale.T, k % 3
        others = [j for j in range(3) if j != i]
        marginal = stats.multivariate_t(centre[others], covariance[np.ix_(others, others)], df=5).pdf(x[:, others])
        beyond = np.sign(centre[i]) * x[:, i] > abs(centre[i])
        tail = beyond * stats.norm.pdf(x[:, i]) / stats.norm.sf(abs(centre[i]))
        expected += (0.7 * stats.multivariate_t(centre, covariance, df=5).pdf(x) + 0.3 * marginal * tail) / 4
    np.testing.assert_allclose(kernels.log_prob(x), np.log(expected), rtol=1e-10)


def test_tail_keeps_its_density_far_from_a_tiny_kernel():
    """A kernel 1e-9 wide: across its tail the density is known where the distance along it is 5e9 widths."""
    kernels = Kernels(np.array([[0.5, 0.3]]), 1e-9 * np.eye(2)[None], tails=0.5)
    tail = stats.t(5).pdf(2.0) / 1e-9 * stats.norm.pdf(5.5) / stats.norm.sf(0.5)
    assert kernels.log_prob(np.array([[5.5, 0.3 + 2e-9]]))[0] == pytest.approx(np.log(0.5 * tail), abs=1e-6)


def test_density_without_tails_integrates_to_one():
    """On a grid of x = sinh u, which reaches the heavy tails."""
    axis, step = np.linspace(-6, 6, 201, retstep=True)
    u = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
    q = np.exp(random_kernels(7, 2, tails=0.0).log_prob(np.sinh(u)))
    assert np.sum(q * np.prod(np.cosh(u), axis=1)) * step**2 == pytest.approx(1, abs=1e-4)


def test_density_with_tails_integrates_to_one():
    """In one dimension, cut at the centres, where the tails begin."""
    kernels = random_kernels(7, 1)
    cuts = np.concatenate([[-np.inf], np.sort(kernels.centres[:, 0]), [np.inf]])
    parts = [
        integrate.quad(lambda x: np.exp(kernels.log_prob(np.array([[x]]))[0]), *ends)[0] for ends in pairwise(cuts)
    ]
    assert sum(parts) == pytest.approx(1, abs=1e-6)


def test_tails_reach_where_the_prior_does():
    """A posterior on the edge of a uniform prior has the normal's tail in latent space, far beyond its points."""
    rng = np.random.default_rng(0)
    x = np.stack([0.02 * rng.normal(size=200), -special.ndtri(0.03 * rng.random(200))], axis=1)
    far = np.stack([np.zeros(4), np.linspace(3, 4.5, 4)], axis=1)
    log_target = stats.norm.logpdf(far[:, 0], 0, 0.02) + stats.norm.logpdf(far[:, 1]) - np.log(0.03)
    kernels = Kernels.fit(jax.random.key(0), x, np.zeros(200))
    local = dataclasses.replace(kernels, tails=0.0)
    assert np.max(log_target - kernels.log_prob(far)) < np.log(5)
    assert np.max(log_target - local.log_prob(far)) > np.log(10)


def test_draws_follow_the_density():
    """E_q[p/q] = 1 for a normal p in reach of the kernels, in the mean and away from it."""
    kernels = random_kernels(7, 2)
    x, log_q = kernels.sample_and_log_prob(jax.random.key(0), 20_000)
    np.testing.assert_array_equal(log_q, kernels.log_prob(x))
    for mean in ([0.0, 0.0], [2.0, -2.0]):
        weights = np.exp(stats.multivariate_normal(mean, np.eye(2)).logpdf(x) - log_q)
        error = np.std(weights) / np.sqrt(len(weights))
        assert error < 0.05
        assert 2 * stats.norm.sf(abs(np.mean(weights) - 1) / error) > FALSE_ALARM


def test_draws_follow_the_key_and_their_number():
    kernels = random_kernels(3, 2)
    first, again, other = (kernels.sample_and_log_prob(jax.random.key(seed), 10)[0] for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.any(first == other)
    assert [len(kernels.sample_and_log_prob(jax.random.key(0), n)[1]) for n in (0, 1, 300)] == [0, 1, 300]


def test_kernels_stand_on_points_in_proportion_to_their_weight():
    """A systematic resample: each point gets floor(m w) or ceil(m w) kernels, a point of weight zero none."""
    rng = np.random.default_rng(0)
    points, log_weights = rng.normal(size=(200, 2)), rng.normal(size=200)
    log_weights[:50] = -np.inf
    kernels = Kernels.fit(jax.random.key(0), points, log_weights + 1e6, num_kernels=1000)
    expected = 1000 * np.exp(log_weights) / np.exp(log_weights).sum()
    counts = np.sum(np.all(kernels.centres[:, None] == points, axis=2), axis=0)
    assert kernels.centres.shape == (1000, 2)
    assert np.all(np.abs(counts - expected) < 1)


def test_kernels_do_not_span_two_modes():
    """Two modes of width 0.01 at distance 10: every kernel is as narrow as its own."""
    points = 0.01 * np.random.default_rng(0).normal(size=(2000, 2)) + np.repeat([[-5.0, 0.0], [5.0, 0.0]], 1000, axis=0)
    kernels = Kernels.fit(jax.random.key(0), points, np.zeros(2000))
    assert np.linalg.norm(kernels.scales, axis=(1, 2)).max() < 0.1


def test_kernels_follow_the_shape_of_their_points():
    """The mixture on draws of a correlated normal is an efficient proposal for it."""
    normal = stats.multivariate_normal([1.0, -2.0], [[1.0, 0.9], [0.9, 1.0]])
    kernels = Kernels.fit(jax.random.key(0), normal.rvs(2000, random_state=0), np.zeros(2000))
    x, log_q = kernels.sample_and_log_prob(jax.random.key(1), 4000)
    weights = np.exp(normal.logpdf(x) - log_q)
    assert np.mean(weights) ** 2 / np.mean(weights**2) > 0.5


def test_points_on_a_line_give_kernels_of_full_rank():
    points = np.linspace(0, 1, 100)[:, None] * np.array([1.0, 2.0])
    kernels = Kernels.fit(jax.random.key(0), points, np.zeros(100), num_kernels=50)
    assert np.all(np.isfinite(kernels.log_prob(points)))


@pytest.mark.parametrize("num_dims", [2, 5])
def test_kernels_of_many_points_are_as_wide_as_those_of_few(num_dims):
    """A cloud holds its share of the weight whatever their number."""
    rng, widths = np.random.default_rng(0), []
    for num_points in (4000, 50_000):
        kernels = Kernels.fit(jax.random.key(0), rng.normal(size=(num_points, num_dims)), np.zeros(num_points))
        widths.append(np.median(np.linalg.det(kernels.scales)) ** (1 / num_dims))
    assert widths[1] == pytest.approx(widths[0], rel=0.1)


def test_a_kernel_on_a_cliff_has_a_density():
    """Of widths from 1 to 1e-9, turned: a covariance would have lost the narrow one to rounding."""
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    scale = lower_root(turn * np.array([1.0, 1e-4, 1e-9]))
    kernels = Kernels(np.zeros((1, 3)), scale[None], tails=0.0)
    x, log_q = kernels.sample_and_log_prob(jax.random.key(0), 100)
    white = turn.T @ x.T / np.array([1.0, 1e-4, 1e-9])[:, None]
    expected = stats.multivariate_t(np.zeros(3), np.eye(3), df=5).logpdf(white.T) - np.log(1e-13)
    np.testing.assert_allclose(log_q, expected, atol=1e-4)
