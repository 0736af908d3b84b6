"""Thinned proposals: exact whatever the surrogate, and worth it where the surrogate is good."""

from dataclasses import dataclass

import jax
import numpy as np
import numpyro.distributions as dist
import pytest
from scipy import stats

from nsflow.densities.gaussian import Gaussian
from nsflow.prior.prior import Prior
from nsflow.proposals.meta_proposal import MetaProposal
from nsflow.proposals.rejection import MIN_CHANCE, Thinned, acceptance, at_most, expected_calls

PRIOR = Prior({"a": dist.Normal(0.0, 1.0)})
WIDTH = 0.3


def log_likelihood(x):
    """Evidence N(0; 1, 1 + 0.3^2) under the prior."""
    return stats.norm.logpdf(x[:, 0], 1.0, WIDTH)


LOG_Z = stats.norm.logpdf(0, 1.0, np.hypot(1, WIDTH))
POSTERIOR = (1 / (1 + WIDTH**2), WIDTH / np.hypot(1, WIDTH))


@dataclass(frozen=True)
class Normal:
    """A proposal that disowns its draws beyond `edge`, as a flow does where its map folds."""

    mean: float
    std: float
    edge: float = np.inf

    def sample_and_log_prob(self, key, num_samples):
        rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
        x = rng.normal(self.mean, self.std, (num_samples, 1))
        return x, self.log_prob(x)

    def log_prob(self, x):
        log_q = stats.norm.logpdf(x[:, 0], self.mean, self.std)
        return np.where(x[:, 0] > self.edge, np.nan, log_q)


SURROGATES = {
    "exact": log_likelihood,
    "shifted": lambda x: stats.norm.logpdf(x[:, 0], 1.4, WIDTH),
    "noisy": lambda x: log_likelihood(x) + np.sin(50 * x[:, 0]),
    "blind": lambda x: np.zeros(len(x)),
    "wild": lambda x: 1e4 * x[:, 0],
}


@pytest.mark.parametrize("name", SURROGATES)
def test_evidence_is_exact_whatever_the_surrogate(name):
    """Mean over 200 seeds within 4 standard errors: a false alarm in 16 000 for each."""
    wide = Normal(0.8, 0.6)
    thinned = Thinned.fit(jax.random.key(0), wide, SURROGATES[name], PRIOR)
    mixture = MetaProposal((thinned, Normal(0.0, 1.0)), (500, 50))
    estimates = []
    for seed in range(200):
        draws = mixture.sample(jax.random.key(seed))
        log_weights = log_likelihood(draws.x) + stats.norm.logpdf(draws.x[:, 0]) - draws.log_Q
        estimates.append(np.sum(np.exp(log_weights)) / 550 / np.exp(LOG_Z))
    assert np.std(estimates) / np.sqrt(200) < 0.02
    assert abs(np.mean(estimates) - 1) < 4 * np.std(estimates) / np.sqrt(200)


def test_density_is_that_of_the_proposal_times_the_chance_to_pass():
    proposal = Normal(1.0, 1.0)
    thinned = Thinned(proposal, log_likelihood, PRIOR, log_bound=-0.5, acceptance=0.5)
    x, log_q = thinned.sample_and_log_prob(jax.random.key(0), 4000)
    passed = ~np.isnan(log_q)
    np.testing.assert_allclose(log_q[passed], thinned.log_prob(x[passed]))
    chance = np.exp(thinned.log_prob(x) - proposal.log_prob(x))
    ratio = np.exp(log_likelihood(x) + stats.norm.logpdf(x[:, 0]) - proposal.log_prob(x) + 0.5)
    np.testing.assert_allclose(chance, np.clip(ratio, MIN_CHANCE, 1.0))
    # As many pass as should, in the tails and on top: 4.5 standard errors, a false alarm in 150 000.
    low = chance < 1.001 * MIN_CHANCE
    for region in (low, ~low):
        spread = np.sqrt(np.sum((chance * (1 - chance))[region]))
        assert abs(np.sum(passed[region]) - np.sum(chance[region])) < 4.5 * spread


def test_exact_surrogate_leaves_equal_weights():
    """A proposal twice as wide as the posterior has efficiency 0.66; what passes has more than 0.95."""
    thinned = Thinned.fit(jax.random.key(0), Normal(POSTERIOR[0], 2 * POSTERIOR[1]), log_likelihood, PRIOR)
    draws = MetaProposal((thinned,), (20_000,)).sample(jax.random.key(1))
    weights = np.exp(log_likelihood(draws.x) + stats.norm.logpdf(draws.x[:, 0]) - draws.log_Q)
    assert np.sum(weights) ** 2 / np.sum(weights**2) / len(weights) > 0.94
    assert len(weights) / 20_000 == pytest.approx(acceptance(thinned), abs=0.05)
    assert 0.2 < acceptance(thinned) < 0.8


def test_bound_may_lie_among_the_largest_weights():
    """N(0, I) from a normal 1.12 times as wide in 40-d: 0.97; without bounds beyond the quantile of 0.95 it is 0.94."""
    prior = Prior({"a": dist.Normal(0.0, 1.0).expand((40,)).to_event(1)})
    thinned = Thinned.fit(jax.random.key(0), Gaussian(np.zeros(40), 1.12 * np.eye(40)), lambda x: 0 * x[:, 0], prior)
    draws = MetaProposal((thinned,), (20_000,)).sample(jax.random.key(1))
    weights = np.exp(np.asarray(prior.latent_log_prob(draws.x)) - draws.log_Q)
    assert np.sum(weights) ** 2 / np.sum(weights**2) / len(weights) > 0.96


def test_perfect_proposal_is_not_thinned():
    thinned = Thinned.fit(jax.random.key(0), Normal(*POSTERIOR), log_likelihood, PRIOR)
    assert acceptance(thinned) == 1.0
    x, log_q = thinned.sample_and_log_prob(jax.random.key(1), 100)
    np.testing.assert_allclose(log_q, Normal(*POSTERIOR).log_prob(x))


def test_disowned_draws_stay_disowned():
    thinned = Thinned(Normal(0.0, 1.0, edge=0.0), log_likelihood, PRIOR, log_bound=-1e3, acceptance=1.0)
    x, log_q = thinned.sample_and_log_prob(jax.random.key(0), 1000)
    np.testing.assert_array_equal(np.isnan(log_q), x[:, 0] > 0)
    assert np.all(thinned.log_prob(x)[x[:, 0] > 0] == -np.inf)


def test_proposal_that_disowns_every_draw_is_left_alone():
    thinned = Thinned.fit(jax.random.key(0), Normal(5.0, 0.1, edge=0.0), log_likelihood, PRIOR)
    assert acceptance(thinned) == 1.0
    np.testing.assert_array_equal(thinned.log_prob(np.array([[-1.0]])), Normal(5.0, 0.1).log_prob(np.array([[-1.0]])))


def test_other_proposals_cost_a_call_a_draw():
    assert acceptance(Normal(0.0, 1.0)) == 1.0


def test_calls_of_a_batch_stay_below_their_bound():
    thinned = Thinned.fit(jax.random.key(0), Normal(POSTERIOR[0], 2 * POSTERIOR[1]), log_likelihood, PRIOR)
    mixture = MetaProposal((thinned, Normal(0.0, 1.0)), (1000, 50))
    calls = [len(mixture.sample(jax.random.key(seed)).x) for seed in range(50)]
    assert np.mean(calls) == pytest.approx(expected_calls(mixture), rel=0.1)
    assert max(calls) < at_most(expected_calls(mixture)) < 1.6 * np.mean(calls)
