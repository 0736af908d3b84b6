"""Ridges: what a proposal misses of one with a known density, and what a run does about it."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from scipy import stats

import nsflow
from nsflow.likelihood.host import HostLikelihood
from nsflow.likelihood.likelihood import JaxLikelihood
from nsflow.modes.modes import Target
from nsflow.nested import ridges, summary
from nsflow.nested import rounds as posterior
from nsflow.nested.points import Points
from nsflow.nested.state import Phase, extend, no_batches
from nsflow.proposals.meta_proposal import MetaProposal

WIDTH = 0.05
PRIOR = nsflow.Prior({"a": dist.Normal(0, 1), "b": dist.Uniform(-40, 40), "c": dist.Normal(0, 1)})


def log_likelihood(p, xp=jnp):
    """The posterior of a is its prior N(0, 1), and b is 2 a^2 +- 0.05."""
    return -0.5 * ((p["b"] - 2 * p["a"] ** 2) / WIDTH) ** 2 - np.log(WIDTH * np.sqrt(2 * np.pi)) + 0.0 * xp.sin(p["c"])


class Posterior:
    """The exact posterior, where a is less than some bound; beyond, exp(-40) of it."""

    def __init__(self, largest):
        self.largest = largest

    def log_prob(self, x):
        p = {name: np.asarray(value) for name, value in PRIOR.forward(x).items()}
        density = log_likelihood(p, np) + np.asarray(PRIOR.latent_log_prob(x)) + np.log(80)
        return density - 40 * (p["a"] > self.largest) - stats.norm.logcdf(self.largest)

    def sample_and_log_prob(self, key, num_samples):
        rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
        a = rng.normal(size=10 * num_samples)
        a = a[a < self.largest][:num_samples]
        b = 2 * a**2 + WIDTH * rng.normal(size=num_samples)
        x = np.stack([a, stats.norm.ppf((b + 40) / 80), rng.normal(size=num_samples)], axis=1)
        return x, self.log_prob(x)

    @property
    def alone(self):
        return MetaProposal((self,), (1,))

    def points(self, num_points):
        """Draws of it as points of equal weight."""
        x, log_q = self.sample_and_log_prob(jax.random.key(0), num_points)
        params = {name: np.asarray(value) for name, value in PRIOR.forward(x).items()}
        log_prior = np.asarray(PRIOR.latent_log_prob(x))
        is_prior = np.zeros(num_points, bool)
        return Points(x, log_likelihood(params, np), log_prior, np.log(num_points) + log_q, is_prior, 1)


def target(max_calls=4000, *, host=False):
    likelihood = (
        HostLikelihood(lambda p: log_likelihood(p, np), vectorized=True) if host else JaxLikelihood(log_likelihood)
    )
    return Target(likelihood, PRIOR, max_calls=max_calls)


@pytest.mark.parametrize("largest", [0.8, 1.3])
def test_the_lost_end_of_a_ridge_is_found_with_its_share_of_the_evidence(largest):
    """The first place is within a step of where the draws end, and half of its step may lie on either side."""
    posterior = Posterior(largest)
    found = ridges.find(target(), posterior.points(2000), posterior.alone)
    a, b = (np.asarray(PRIOR.forward(found.centres)[name]) for name in "ab")
    assert np.all(a > largest)
    assert np.max(a) > largest + 1
    assert np.max(np.abs(b - 2 * a**2)) < WIDTH
    lost = stats.norm.sf([largest, largest + 0.5]) / stats.norm.cdf(largest)
    assert lost[1] < found.share < 1.25 * lost[0]


def test_kernels_lie_along_the_ridge():
    """As narrow as the ridge across it, and with the slope db/da = 4 a."""
    posterior = Posterior(0.8)
    found = ridges.find(target(), posterior.points(2000), posterior.alone)
    for centre, scale in zip(found.centres, found.scales, strict=True):
        covariance = scale @ scale.T
        assert np.all(np.diag(scale) > 0)
        assert np.allclose(np.triu(scale, 1), 0)
        a = centre[0]
        slope = 4 * a / 80 / stats.norm.pdf(centre[1])  # in latent space
        across = np.array([-slope, 1, 0]) / np.hypot(1, slope)
        along = np.array([1, slope, 0]) / np.hypot(1, slope)
        assert np.sqrt(across @ covariance @ across) < 0.3 * np.sqrt(along @ covariance @ along)


@pytest.mark.parametrize("host", [False, True])
def test_a_proposal_that_covers_the_posterior_has_no_ridges(host):
    posterior = Posterior(np.inf)
    search = target(host=host)
    found = ridges.find(search, posterior.points(2000), posterior.alone)
    assert (len(found.centres), found.share) == (0, 0.0)
    assert search.num_calls < 700 if host else search.num_calls < 200


def test_a_search_keeps_to_its_calls_and_to_what_it_has_measured():
    """One that ends early has found a part of what a whole one finds, with the same scales."""
    posterior = Posterior(0.8)
    points = posterior.points(2000)
    whole = ridges.find(target(), points, posterior.alone)
    num_found, search = set(), target()  # one for all, as each compiles its gradient
    for max_calls in (1, 40, *range(120, 360, 16)):
        search.max_calls, search.num_calls = max_calls, 0
        found = ridges.find(search, points, posterior.alone)
        assert search.num_calls <= max_calls
        assert 0 <= found.share <= whole.share
        assert all(np.any(np.all(whole.scales == scale, axis=(1, 2))) for scale in found.scales)
        assert all(np.any(np.all(whole.centres == centre, axis=1)) for centre in found.centres)
        num_found.add(len(found.centres))
    assert len(num_found) > 3


def state_of(largest):
    problem = nsflow.Problem(JaxLikelihood(log_likelihood), PRIOR)
    state = nsflow.init(jax.random.key(0), problem, nsflow.Settings(ess=1000, num_prior=200))
    return replace(state, points=Posterior(largest).points(2000))


def test_a_lost_ridge_gets_a_component_and_draws():
    before = state_of(0.8)
    before = replace(before, rounds=(no_batches(before, {0: 2}),) * 2)
    after, has_found = ridges.follow(jax.random.key(1), before, Posterior(0.8).alone)
    assert has_found
    assert after.num_outdated == 2
    (index,) = after.modes
    assert after.num_draws[index] > 0
    new = after.points.x[len(before.points.x) :]
    assert np.mean(PRIOR.forward(new)["a"] > 0.8) > 0.9
    assert after.num_calls - before.num_calls <= 2 * ridges.largest_search(before)
    # Enough of them are on the ridge to train on.
    gained = np.exp(after.points.log_posterior_weights[len(before.points.x) :])
    assert np.sum(gained) ** 2 / np.sum(gained**2) > 20


def test_a_round_and_a_search_keep_to_what_was_announced(monkeypatch):
    """A twentieth of the calls so far is more after the round than before it: 1050 calls where 1000 were allowed."""
    before = replace(state_of(0.8), phase=Phase.POSTERIOR, num_calls=20_000)
    calls = []
    monkeypatch.setattr(
        posterior, "follow", lambda _, state, __: calls.append(ridges.largest_search(state)) or (state, True)
    )
    monkeypatch.setattr(posterior, "at_most", round)  # without the slack for thinned draws
    monkeypatch.setattr(posterior, "_is_stuck", lambda _: True)
    monkeypatch.setattr(posterior, "train_posterior", lambda *_: ([before.components[0]], None))
    after, _ = posterior.refine(jax.random.key(1), before)
    assert after.num_calls - before.num_calls + 2 * calls[0] <= posterior.largest_round(before)


def test_searches_come_to_an_end_with_an_alarm():
    state = replace(state_of(0.8), num_searches=ridges.MAX_SEARCHES)
    last, has_found = ridges.follow(jax.random.key(1), state, Posterior(0.8).alone)
    assert not has_found
    assert last.modes == ()
    _, batches = extend(jax.random.key(2), last, no_batches(last, {0: 100}))
    last = replace(last, frozen=batches)
    assert "a ridge with" in " ".join(summary._alarms(last, batches.estimate()))
    assert "a ridge with" not in " ".join(summary._alarms(replace(last, beyond=0.004), batches.estimate()))


def test_a_covered_posterior_costs_a_search():
    before = state_of(np.inf)
    after, has_found = ridges.follow(jax.random.key(1), before, Posterior(np.inf).alone)
    assert not has_found
    assert 0 < after.num_calls - before.num_calls < 200
    assert after.beyond == 0


def test_a_ridge_that_its_draws_do_not_show_is_none(monkeypatch):
    """Laplace's approximation sees half of the evidence at a kink; what draws there weigh is known."""
    place = np.array([0.5, stats.norm.ppf((0.5 + 40) / 80), 0.0])
    kink = ridges.Ridges(place[None], 0.01 * np.eye(3)[None], 0.5)
    monkeypatch.setattr(ridges, "find", lambda *_: kink)
    before = state_of(np.inf)
    after, has_found = ridges.follow(jax.random.key(1), before, Posterior(np.inf).alone)
    assert (has_found, after.num_outdated) == (False, 0)
    assert after.num_calls == before.num_calls + 60
    assert after.beyond < ridges.MIN_SHARE
    lost, has_found = ridges.follow(jax.random.key(1), before, Posterior(0.3).alone)
    assert has_found
    assert lost.beyond == 0.5


def test_a_point_with_all_of_the_evidence_is_no_ridge_and_no_failure():
    """As where a ladder got stuck: the covariance of the weighted points would be zero."""
    posterior = Posterior(np.inf)
    points = posterior.points(200)
    heavy = np.where(np.arange(200) == 0, 2000.0, 0.0)
    search = target()
    found = ridges.find(search, points._replace(log_likelihood=points.log_likelihood + heavy), posterior.alone)
    assert np.all(np.isfinite(found.scales))
    assert 0 < search.num_calls <= 4000


def test_one_dimension_has_no_ridges():
    problem = nsflow.Problem(JaxLikelihood(lambda p: -(p["a"] ** 2)), nsflow.Prior({"a": dist.Normal(0, 1)}))
    state = nsflow.init(jax.random.key(0), problem, nsflow.Settings(ess=1000, num_prior=200))
    mixture = MetaProposal(state.components, (1,))
    assert ridges.follow(jax.random.key(1), state, mixture) == (state, False)


def test_an_integer_keeps_to_its_values():
    """A slice in which an integer is free climbs along the others."""
    prior = nsflow.Prior({"k": dist.Poisson(3.0), "a": dist.Normal(0, 1)})
    problem = nsflow.Problem(JaxLikelihood(lambda p: -0.5 * (p["a"] - p["k"]) ** 2), prior)
    state = nsflow.init(jax.random.key(0), problem, nsflow.Settings(ess=1000, num_prior=500))
    after, _ = ridges.follow(jax.random.key(1), state, MetaProposal(state.components, (1,)))
    assert after.beyond == 0
