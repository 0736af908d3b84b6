"""Posteriors hundreds of nats from the prior, likelihoods that draws cannot tell apart, and alarms on right runs."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from scipy import stats

import nsflow
from nsflow.densities.kernels import Kernels
from nsflow.importance.evidence import is_heavy
from nsflow.likelihood.likelihood import as_likelihood
from nsflow.modes.modes import Mode, Target, ascend, measure, sharpen
from nsflow.nested import conflict, summary
from nsflow.nested.draws import Batches
from nsflow.nested.levels import climb
from nsflow.nested.points import share_of_excess
from nsflow.nested.state import Phase, Problem
from nsflow.numerics.precision import float64
from nsflow.proposals.meta_proposal import Draws, MetaProposal, PriorProposal
from nsflow.sampler import next_batch

FALSE_ALARM = 1e-4  # chance that a correct nsflow fails any one statistical test of this file; the seeds are fixed
SIGMAS = stats.norm.isf(FALSE_ALARM / 2)
MAX_CALLS = 10_000
NORMAL = nsflow.Prior({"x": dist.Normal(0, 1)})
BOX = nsflow.Prior({"x": dist.Uniform(0, 1).expand([4]).to_event(1)})
CENTRE, WIDTH = 0.3 + 0.1 * np.arange(4), 1e-10
BOX_EVIDENCE = 4 * np.log(WIDTH * np.sqrt(2 * np.pi))


def datum(p):
    """One datum at 40 +- 0.1."""
    return -0.5 * ((p["x"] - 40.0) / 0.1) ** 2 - np.log(0.1 * np.sqrt(2 * np.pi))


def needle(p, xp=jnp):
    return -0.5 * xp.sum(((p["x"] - CENTRE) / WIDTH) ** 2, axis=-1)


CONFLICTS = {
    "datum": (datum, NORMAL, -793.003),
    "datum, host": (nsflow.HostLikelihood(datum, vectorized=True), NORMAL, -793.003),
    "needle": (needle, BOX, BOX_EVIDENCE),
    "needle, host": (nsflow.HostLikelihood(lambda p: needle(p, np), vectorized=True), BOX, BOX_EVIDENCE),
}


def check(log_likelihood, prior, logZ, seed, **options):
    result = nsflow.run(log_likelihood, prior, seed=seed, **options)
    assert result.finished
    assert result.alarms == ()
    assert result.logZ_err < 0.05
    assert abs(result.logZ - logZ) < SIGMAS * result.logZ_err
    assert not is_heavy(result)
    return result


@pytest.mark.parametrize(("log_likelihood", "prior", "logZ"), CONFLICTS.values(), ids=CONFLICTS)
def test_a_posterior_far_from_the_prior_takes_few_calls(log_likelihood, prior, logZ):
    assert check(log_likelihood, prior, logZ, seed=0, ess=1000).num_calls < MAX_CALLS


@pytest.mark.slow
@pytest.mark.parametrize("ess", [1000, 10_000])
@pytest.mark.parametrize(("log_likelihood", "prior", "logZ"), CONFLICTS.values(), ids=CONFLICTS)
def test_a_posterior_far_from_the_prior_takes_few_calls_with_any_seed(log_likelihood, prior, logZ, ess):
    """Beside the effective samples asked for; pulls of eight seeds have variance one."""
    results = [check(log_likelihood, prior, logZ, seed, ess=ess) for seed in range(8)]
    pulls = [(result.logZ - logZ) / result.logZ_err for result in results]
    assert stats.chi2.sf(np.sum(np.square(pulls)), len(pulls)) > FALSE_ALARM
    assert max(result.num_calls for result in results) < MAX_CALLS + (ess if ess > 1000 else 0)


@float64
def ahead(log_likelihood, prior, seed=0):
    """A run that has climbed from draws of the prior."""
    state = nsflow.init(jax.random.key(seed), Problem(as_likelihood(log_likelihood), prior), nsflow.Settings(ess=1000))
    return climb(jax.random.key(seed + 1), state)[0]


def test_copies_stand_for_the_levels_only_where_they_find_nothing_else():
    """A second Gaussian below the needle, a thousand times as wide of nine tenths of the evidence, is met by a copy."""
    state = ahead(needle, BOX)
    assert conflict.is_conflict(state)
    allowed = next_batch(state)
    after, _ = nsflow.step(jax.random.key(3), state)
    assert (after.phase, len(after.contours), after.num_calls - state.num_calls) == (Phase.SCOUTING, 2, allowed)
    assert not conflict.is_conflict(after)

    def on_a_slab(p):
        x = (p["x"] - CENTRE) / WIDTH
        return jnp.logaddexp(-0.5 * jnp.sum(x**2), np.log(9.0) - 4 * np.log(1e3) - 0.5 * jnp.sum((x / 1e3) ** 2))

    slab = replace(state, problem=Problem(as_likelihood(on_a_slab), BOX))
    going_on, _ = nsflow.step(jax.random.key(3), slab)
    assert (going_on.phase, len(going_on.contours), going_on.trainings) == (Phase.LADDER, 1, ())
    assert not conflict.is_conflict(going_on)
    assert len(going_on.modes) == 2
    log_ratio = np.logaddexp.reduce(going_on.points.log_posterior_weights) - BOX_EVIDENCE
    assert log_ratio == pytest.approx(np.log(10.0), abs=1.0)  # a few dozen draws are on the slab


def test_a_posterior_near_the_prior_is_no_conflict():
    """Width 0.01 in the box: three nats a dimension."""
    state = ahead(lambda p: -0.5 * jnp.sum(((p["x"] - CENTRE) / 0.01) ** 2), BOX)
    assert len(state.modes) == 1
    assert not conflict.is_conflict(state)


@pytest.mark.parametrize("name", ["needle", "needle, host"])
@float64
def test_a_needle_has_its_place_and_widths(name):
    """The probit map's slope at the centre takes the width to latent space; Laplace's evidence is exact."""
    log_likelihood, prior, logZ = CONFLICTS[name]
    target = Target(as_likelihood(log_likelihood), prior, max_calls=2000)
    centre, log_density = ascend(target, np.zeros(4), 0.2, patience=10)
    mode = sharpen(target, measure(target, centre, log_density))
    assert mode.is_settled
    slope = stats.norm.pdf(stats.norm.ppf(CENTRE))
    np.testing.assert_allclose(mode.scale, np.diag(WIDTH / slope), rtol=1e-3, atol=1e-14)
    assert mode.log_evidence == pytest.approx(logZ, abs=1e-3)


@float64
def test_what_is_no_maximum_is_not_sharpened():
    """A slope of 1e9 nats up to a cliff: no place in it is flat."""
    target = Target(as_likelihood(lambda p: jnp.where(p["x"] < 1, 1e9 * p["x"], -jnp.inf)), NORMAL, max_calls=1000)
    mode = Mode(np.array([1.0 - 1e-9]), 1e9, np.array([[1e-8]]))
    assert sharpen(target, mode) is mode


@pytest.mark.parametrize("centre", [40.0, -40.0])
@float64
def test_kernels_in_a_far_tail_have_a_density_wherever_they_draw(centre):
    """One over the prior's mass beyond 37 sigma overflows; a kernel at the centre beside it is none the worse."""
    kernels = Kernels(np.array([[0.0], [centre]]), np.array([[[0.1]], [[0.1]]]))
    x, log_q = kernels.sample_and_log_prob(jax.random.key(0), 2000)
    assert np.all(np.isfinite(log_q))
    beyond = np.sign(centre) * (abs(centre) + np.array([0.01, 0.05]))
    local = stats.t(5, centre, 0.1).pdf(beyond)
    tail = np.exp(stats.norm.logpdf(beyond) - stats.norm.logsf(40.0))
    expected = np.log((0.9 * local + 0.1 * tail) / 2)
    np.testing.assert_allclose(kernels.log_prob(beyond[:, None]), expected, atol=1e-3)


# ---- one value at all draws


@pytest.mark.parametrize("value", [0.0, -1e5, -1e10])
def test_a_likelihood_of_one_value_is_an_alarm(value):
    """Such as a code's floor; the evidence is the value, as it must be of a constant."""
    result = nsflow.run(lambda p: 0.0 * p["x"] + value, NORMAL, ess=300, settings=nsflow.Settings(num_prior=300))
    assert result.logZ == pytest.approx(value, abs=5 * result.logZ_err)
    (alarm,) = result.alarms
    assert alarm == f"the likelihood had the same value, log L = {value:.10g}, at every draw that it did not exclude"


def test_two_values_are_no_alarm_of_one():
    result = nsflow.run(
        lambda p: jnp.where(p["x"] > 0, 0.0, -1e5), NORMAL, ess=300, settings=nsflow.Settings(num_prior=300)
    )
    assert not [alarm for alarm in result.alarms if "same value" in alarm]


# ---- shares


@pytest.mark.parametrize(("excess", "share"), [(391.18, 0.997), (6.23, 0.862), (0.0, 0.0), (-1e-16, 0.0), (1e304, 1.0)])
def test_what_may_lie_above_is_a_share(excess, share):
    assert share_of_excess(excess) == pytest.approx(share, abs=5e-4)


def finished(log_likelihood, log_mass):
    """A run whose ladder ended far below what may lie above it, with final draws."""
    state = nsflow.init(jax.random.key(0), Problem(as_likelihood(datum), NORMAL), nsflow.Settings(num_prior=100))
    x = np.zeros((len(log_likelihood), 1))
    draws = Draws(x, np.zeros(len(x), int), -log_mass, -log_mass[:, None])
    mixture = MetaProposal((PriorProposal(NORMAL),), (len(x),))
    frozen = Batches(mixture, (0,), 1, draws, log_likelihood, np.zeros(len(x)))
    return replace(state, phase=Phase.FINISHED, frozen=frozen, unseen=0.99)


def test_final_draws_may_have_seen_what_the_ladder_ended_below():
    """A Gaussian drawn from itself has its highest draws at its top; an exponential rise by ten nats has not."""
    radius = stats.chi2(1).ppf((np.arange(1000) + 0.5) / 1000)
    seen = finished(-0.5 * radius, 0.5 * radius)
    assert not [alarm for alarm in summary._alarms(seen, seen.fresh.estimate()) if "lie above" in alarm]
    rising = np.zeros(1000)
    rising[:3] = 10.0
    unseen = finished(rising, np.zeros(1000))
    (alarm,) = [alarm for alarm in summary._alarms(unseen, unseen.fresh.estimate()) if "lie above" in alarm]
    excess = 97 * (np.exp(10.0) - 1) / (3 * np.exp(10.0) + 997)  # of the hundred highest draws
    assert f"{excess / (1 + excess):.0%} of the evidence may lie above" in alarm


# ---- half Gaussians


def half(width):
    return lambda p: jnp.where(p["x"] > 0, -0.5 * (p["x"] / width) ** 2, -jnp.inf)


HALVES = {
    "prior": (half(1.0), NORMAL, np.log(0.5 / np.sqrt(2))),
    "tenth": (half(0.1), nsflow.Prior({"x": dist.Uniform(-1, 1)}), np.log(0.1 * np.sqrt(2 * np.pi) / 4)),
    "narrow": (half(1e-4), nsflow.Prior({"x": dist.Uniform(-1, 1)}), np.log(1e-4 * np.sqrt(2 * np.pi) / 4)),
}


@pytest.mark.parametrize("seed", [0, 1])
def test_half_a_gaussian_is_no_alarm(seed):
    check(*HALVES["narrow"], seed=seed, ess=500)


@pytest.mark.slow
@pytest.mark.parametrize(("log_likelihood", "prior", "logZ"), HALVES.values(), ids=HALVES)
def test_half_a_gaussian_hardly_ever_is_an_alarm(log_likelihood, prior, logZ):
    """One run in forty has one; two of eight have one with a chance of 0.02."""
    results = [nsflow.run(log_likelihood, prior, seed=seed, ess=1000) for seed in range(8)]
    assert sum(result.alarms != () for result in results) <= 2
    for result in results:
        assert abs(result.logZ - logZ) < SIGMAS * result.logZ_err
        assert result.logZ_err < 0.05
