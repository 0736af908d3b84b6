"""Mixtures: their density, their draws, what is disowned, and their best weights."""

from dataclasses import dataclass

import jax
import numpy as np
import numpyro.distributions as dist
import pytest
from scipy import optimize, stats

from nsflow.densities.density import Proposal, log_prob
from nsflow.densities.gaussian import Gaussian
from nsflow.densities.kernels import Kernels
from nsflow.densities.mixture import Mixture
from nsflow.flow.flow import Flow
from nsflow.prior.prior import Prior
from nsflow.proposals.meta_proposal import MetaProposal, PriorProposal, fewest, optimal_weights

FALSE_ALARM = 1e-5  # chance that a correct nsflow fails any one statistical test in this file


@dataclass(frozen=True)
class Normal:
    """N(mean, width^2) in one dimension."""

    mean: float
    width: float

    def sample_and_log_prob(self, key, num_samples):
        rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
        x = rng.normal(self.mean, self.width, (num_samples, 1))
        return x, self.log_prob(x)

    def log_prob(self, x):
        return stats.norm.logpdf(x[:, 0], self.mean, self.width)


@dataclass(frozen=True)
class Folded:
    """|z| of a standard normal z, by a density that knows the draws z > 0 alone and disowns the others."""

    def sample_and_log_prob(self, key, num_samples):
        z, log_q = Normal(0, 1).sample_and_log_prob(key, num_samples)
        return np.abs(z), np.where(z[:, 0] > 0, log_q, np.nan)

    def log_prob(self, x):
        return np.where(x[:, 0] > 0, stats.norm.logpdf(x[:, 0]), np.nan)


COMPONENTS = (Normal(0, 2), Normal(1, 0.5), Normal(-2, 0.3))
GRID, STEP = np.linspace(-20, 20, 40_001, retstep=True)
GRID = GRID[:, None]


def mean_pull(weights, truth):
    return (np.mean(weights) - truth) / (np.std(weights) / np.sqrt(len(weights)))


# ---- density and draws


def test_mixture_is_weighted_by_its_draws_and_normalised():
    """Q = sum_j n_j/N q_j, of integral 1."""
    mixture = MetaProposal(COMPONENTS, (10, 30, 60))
    log_q = mixture.log_prob_each(GRID)
    Q = np.exp(mixture.mix(log_q))
    np.testing.assert_allclose(Q, np.exp(log_q) @ [0.1, 0.3, 0.6], rtol=1e-10, atol=1e-300)
    assert np.sum(Q) * STEP == pytest.approx(1, abs=1e-6)


def test_each_component_draws_exactly_its_number():
    mixture = MetaProposal(COMPONENTS, (10, 0, 60))
    draws = mixture.sample(jax.random.key(0))
    np.testing.assert_array_equal(np.bincount(draws.component, minlength=3), (10, 0, 60))
    np.testing.assert_allclose(draws.log_q, mixture.log_prob_each(draws.x))
    np.testing.assert_allclose(draws.log_Q, mixture.mix(draws.log_q))
    for j, q in enumerate(COMPONENTS):
        assert np.all(np.abs(draws.x[draws.component == j] - q.mean) < 6 * q.width)


def test_draws_follow_the_key():
    first, again, other = (MetaProposal(COMPONENTS, (5, 5, 5)).sample(jax.random.key(seed)).x for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.any(first == other)


def test_components_draw_independently():
    """Two equal components must not draw the same points."""
    draws = MetaProposal((Normal(0, 1), Normal(0, 1)), (50, 50)).sample(jax.random.key(0))
    assert len(np.unique(draws.x)) == 100


def test_mixture_of_some_components_is_equal_unless_told():
    assert MetaProposal.of(COMPONENTS, [2, 0]) == MetaProposal((COMPONENTS[2], COMPONENTS[0]), (1, 1))
    assert MetaProposal.of(COMPONENTS, [1], [7]) == MetaProposal((COMPONENTS[1],), (7,))


def test_flows_kernels_and_priors_are_proposals():
    prior = PriorProposal(Prior({"a": dist.Uniform(0, 1)}))
    flow = Flow.from_velocity(lambda _, x: x, 1, num_steps=1)
    kernels = Kernels(np.zeros((1, 1)), np.ones((1, 1, 1)))
    for proposal in (prior, flow, kernels):
        assert isinstance(proposal, Proposal)
        x, log_q = proposal.sample_and_log_prob(jax.random.key(0), 20)
        assert np.asarray(x).shape == (20, 1)
        np.testing.assert_allclose(proposal.log_prob(np.asarray(x)), log_q, atol=1e-5)


def test_prior_proposal_is_the_latent_prior():
    """A uniform parameter is standard normal in latent space."""
    prior = PriorProposal(Prior({"a": dist.Uniform(2, 7)}))
    x, log_q = prior.sample_and_log_prob(jax.random.key(0), 2000)
    np.testing.assert_allclose(log_q, stats.norm.logpdf(x[:, 0]), atol=1e-9)
    assert stats.kstest(x[:, 0], "norm").pvalue > FALSE_ALARM


# ---- disowned draws


def test_disowned_draws_are_dropped_but_counted():
    """Half of the folded draws go; n_j stays, so Q keeps its factor n_j/N and the sum over kept draws is over N."""
    mixture = MetaProposal((Normal(0, 1.5), Folded()), (20_000, 20_000))
    draws = mixture.sample(jax.random.key(0))
    counts = np.bincount(draws.component)
    assert counts[0] == 20_000
    assert 2 * min(stats.binom(20_000, 0.5).cdf(counts[1]), stats.binom(20_000, 0.5).sf(counts[1])) > FALSE_ALARM
    assert np.all(np.isfinite(draws.log_Q))
    negative = draws.x[:, 0] < 0
    assert np.all(draws.log_q[negative, 1] == -np.inf)
    weights = np.zeros(40_000)
    weights[: len(draws.x)] = np.exp(stats.norm(0.5, 1).logpdf(draws.x[:, 0]) - draws.log_Q)
    assert 2 * stats.norm.sf(abs(mean_pull(weights, 1))) > FALSE_ALARM
    # Dividing by the kept draws instead is wrong by a quarter.
    assert abs(mean_pull(weights[: len(draws.x)], 1)) > 20


def test_disowned_points_have_density_zero():
    np.testing.assert_array_equal(log_prob(Folded(), np.array([[-1.0]])), [-np.inf])
    assert log_prob(Folded(), np.array([[1.0]]))[0] == stats.norm.logpdf(1)


# ---- weights


def moment(alpha, log_q, log_target, log_Q):
    """Second moment of the weights under the mixture alpha, up to a constant."""
    return np.sum(np.exp(2 * log_target - log_Q) / (np.exp(log_q) @ alpha))


def problem(target, num_draws=300):
    draws = MetaProposal(COMPONENTS, (num_draws,) * 3).sample(jax.random.key(0))
    return draws.log_q, np.log(np.exp(draws.log_q) @ target), draws.log_Q


@pytest.mark.parametrize("target", [[1, 0, 0], [0, 1, 0], [0.2, 0.5, 0.3]])
def test_target_in_the_mixture_is_its_own_optimum(target):
    """f = sum_j a_j q_j has constant weights under alpha = a, so no other mixture has a smaller variance."""
    alpha = optimal_weights(*problem(np.array(target)), floor=np.zeros(3), num_iterations=2000)
    assert alpha.sum() == pytest.approx(1)
    np.testing.assert_allclose(alpha, target, atol=0.02)


def test_weights_minimise_the_moment():
    """Against a general minimiser, for a target outside the mixture."""
    log_q, _, log_Q = problem(np.ones(3))
    x = MetaProposal(COMPONENTS, (300,) * 3).sample(jax.random.key(0)).x[:, 0]
    log_target = stats.norm.logpdf(x, -0.5, 1.2) + 1000.0
    alpha = optimal_weights(log_q, log_target, log_Q, floor=np.zeros(3), num_iterations=2000)
    simplex = {"type": "eq", "fun": lambda alpha: alpha.sum() - 1}
    best = optimize.minimize(
        lambda alpha: np.log(moment(alpha, log_q, log_target - 1000.0, log_Q)),
        np.full(3, 1 / 3),
        bounds=[(1e-9, 1)] * 3,
        constraints=simplex,
        tol=1e-12,
    )
    assert best.success
    np.testing.assert_allclose(alpha, best.x, atol=1e-3)


def test_floors_hold_and_the_rest_is_shared():
    """alpha = floor + (1 - sum floor) a, with a the optimum without floors."""
    arguments, floor = problem(np.array([0.2, 0.5, 0.3])), np.array([0.1, 0.0, 0.2])
    free, alpha = (optimal_weights(*arguments, floor=f) for f in (np.zeros(3), floor))
    assert np.all(alpha >= floor)
    np.testing.assert_allclose(alpha, floor + 0.7 * free)


def test_draws_of_no_likelihood_and_components_of_no_density_do_no_harm():
    log_q, log_target, log_Q = problem(np.array([0.0, 1.0, 0.0]))
    log_target = np.where(np.arange(len(log_Q)) % 7 == 0, -np.inf, log_target)
    log_q = np.where(np.arange(3) == 2, -np.inf, log_q)
    alpha = optimal_weights(log_q, log_target, log_Q, floor=np.zeros(3))
    assert alpha[2] == pytest.approx(0, abs=1e-9)
    assert alpha.sum() == pytest.approx(1)


def test_weights_without_any_target_are_equal_beyond_their_floor():
    log_q, nothing = np.zeros((5, 2)), np.full(5, -np.inf)
    weights = optimal_weights(log_q, nothing, np.zeros(5), floor=np.array([0.2, 0.0]))
    np.testing.assert_allclose(weights, [0.6, 0.4])


def test_small_weights_are_kept_where_they_are_all_there_is():
    """A tenth of the target in a hundred parts of 0.001; a component that none of it needs goes."""
    target = np.array([0.9, *np.full(100, 0.001), 0.0])
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(0, 1, 900), np.repeat(np.arange(10, 110), 1) + rng.normal(0, 0.1, 100)])
    log_q = stats.norm.logpdf(x[:, None], [0, *range(10, 110), 0.5], [1, *np.full(100, 0.1), 1])
    log_target = np.log(np.exp(log_q) @ target)
    weights = optimal_weights(log_q, log_target, log_target, floor=np.zeros(102))
    is_kept = fewest(log_q, log_target, log_target, weights)
    assert is_kept.tolist() == [True] * 101 + [False]


def test_mixture_draws_what_its_density_says():
    """Weights of N(0, 1) under 0.3 N(-1, 1) + 0.7 N(1, 2) average to one; false alarm 1e-5."""
    parts = Gaussian(np.array([-1.0]), np.eye(1)), Gaussian(np.array([1.0]), 2 * np.eye(1))
    mixture = Mixture(parts, (0.3, 0.7))
    x, log_q = mixture.sample_and_log_prob(jax.random.key(0), 20_000)
    exact = np.log(0.3 * stats.norm.pdf(x[:, 0], -1, 1) + 0.7 * stats.norm.pdf(x[:, 0], 1, 2))
    np.testing.assert_allclose(log_q, exact, atol=1e-12)
    weights = np.exp(stats.norm.logpdf(x[:, 0]) - log_q)
    pull = (np.mean(weights) - 1) / (np.std(weights) / np.sqrt(len(weights)))
    assert np.std(weights) < 2
    assert abs(pull) < stats.norm.isf(5e-6)
    # The order of the draws says nothing about the component that drew them.
    assert abs(np.mean(x[:10_000]) - np.mean(x[10_000:])) < stats.norm.isf(5e-6) * np.std(x) * np.sqrt(2e-4)
