"""Decisions of the phases, on states made by hand."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import nsflow
from nsflow.densities.gaussian import Gaussian
from nsflow.densities.triangular import TriangularMap
from nsflow.flow.flow import Flow
from nsflow.importance.evidence import Evidence
from nsflow.modes.modes import Mode
from nsflow.nested import components, levels, mode_search, scouting, summary
from nsflow.nested import final as frozen_phase
from nsflow.nested import rounds as posterior_phase
from nsflow.nested.points import evidence_share
from nsflow.nested.state import Phase, draw, extend, learn, no_batches
from nsflow.numerics.precision import float64
from nsflow.proposals import surrogate
from nsflow.proposals.meta_proposal import Draws
from nsflow.proposals.rejection import Thinned
from nsflow.sampler import next_batch
from tests.test_sampler import QUICK

PRIOR = nsflow.Prior({"a": dist.Normal(0, 1)})
FLOW = Flow.from_velocity(lambda _, x: x, 1, num_steps=0)  # N(0, 1)


def state_of(log_likelihood, *flows, **settings):
    """100 points of the prior N(0, 1), and some flows."""
    problem = nsflow.Problem(nsflow.JaxLikelihood(log_likelihood), PRIOR)
    return nsflow.init(jax.random.key(0), problem, replace(QUICK, **{"num_prior": 100, **settings})).add(*flows)


def freeze(state, *num_draws, num_batches=0, num_planned=1):
    """Freeze the first components of a state, so many draws of each in a batch."""
    frozen = no_batches(state, dict(enumerate(num_draws)))._replace(num_batches=num_batches)
    return replace(state, phase=Phase.FROZEN, frozen=frozen, num_planned=num_planned)


def flat(p):
    return 0.0 * p["a"]


@pytest.mark.parametrize(
    ("phase", "trainings", "expected"),
    [
        (Phase.LADDER, (), {0: 1000}),
        (Phase.LADDER, (1,), {0: 50, 1: 950}),
        (Phase.LADDER, (2, 2), {0: 50, 3: 400, 4: 550}),
        (Phase.POSTERIOR, (2, 2), {0: 50, 1: 50, 3: 400, 4: 500}),
    ],
    ids=["prior alone", "first flow", "kernels and flow", "posterior"],
)
def test_batch_is_shared_between_prior_broad_level_and_newest(phase, trainings, expected):
    """A twentieth from the prior always, and in the posterior rounds as much from the highest level that holds it."""
    state = state_of(flat, prior_share=0.05)
    for num_trained in trainings:
        state = state.add_trained(*[FLOW] * num_trained)
    # Every point has likelihood 1: level 1 holds all of the evidence, the levels above it none.
    state = replace(state, phase=phase, contours=(-np.inf, 0.0, 1.0, 2.0, 3.0)[: 1 + sum(trainings)])
    assert components.allocate(state, 1000) == expected


@pytest.mark.parametrize("prior_share", [0.3, 0.5])
def test_a_large_share_of_the_prior_leaves_the_newest_component_its_draws(prior_share):
    """The prior, a broad level, a mode and kernels would take 1.3 and 1.9 of a batch."""
    state = state_of(flat, prior_share=prior_share).add_trained(FLOW, FLOW).add(FLOW).add_trained(FLOW, FLOW)
    state = replace(state, phase=Phase.POSTERIOR, contours=(-np.inf, 0.0, 1.0), modes=(3,))
    shares = components.allocate(state, 1000)
    assert min(shares.values()) >= 100
    assert sum(shares.values()) == 1000


@pytest.mark.parametrize(
    ("num_batches", "ess", "missing", "expected"),
    [
        (4, 500.0, 250, 7),  # 4 + 1.02 * 2, rounded up: 2 % more than it seems to need
        (10, 999.9, 1, 11),
        (10, 990.0, -5, 11),  # at least one
        (2, 10.0, 9990, 4),  # at most twice as many
        (1, 0.0, 10_000, 2),
    ],
)
def test_plan_leads_to_the_target_in_few_looks(num_batches, ess, missing, expected):
    assert frozen_phase._plan(num_batches, ess, missing) == expected


def evidence(ess=500.0, khat=0.3, max_weight_share=0.001):
    return Evidence(0.0, 0.1, ess, khat, max_weight_share)


@pytest.mark.parametrize(
    ("estimate", "expected"),
    [
        (evidence(), False),
        (evidence(khat=0.8, max_weight_share=0.03), True),
        (evidence(khat=0.8, max_weight_share=0.005), False),
        (evidence(khat=0.6, max_weight_share=0.03), False),  # a thousand draws are too few to be sure of it
        (evidence(ess=99.0), True),
        (evidence(ess=101.0), False),
    ],
)
def test_heavy_tail_or_low_efficiency_asks_for_training(estimate, expected):
    """Of 1000 draws: k-hat above 0.7 with a draw above 2 %, or fewer than 100 effective."""
    frozen = freeze(state_of(flat), 500, num_batches=2).frozen
    assert frozen_phase._needs_training(frozen, estimate) is expected


def test_frozen_phase_finishes_at_its_target_and_not_before():
    """With equal weights the effective number is that of the draws: 100 a batch, target 150."""
    state, after = freeze(state_of(flat, ess=150), 100), []
    for seed in range(2):
        state, info = nsflow.step(jax.random.key(seed), state)
        after.append((state.phase, state.num_planned, round(info.ess), info.num_calls))
    assert after == [(Phase.FROZEN, 2, 100, 200), (Phase.FINISHED, 2, 200, 300)]


def test_frozen_phase_looks_only_when_the_plan_is_drawn():
    state = freeze(state_of(flat, ess=150), 100, num_planned=4)
    for seed in range(4):
        assert state.phase is Phase.FROZEN
        state, _ = nsflow.step(jax.random.key(seed), state)
    assert state.phase is Phase.FINISHED


def test_alarm_leads_back_to_training_until_the_restarts_are_spent():
    """A posterior 1000 times narrower than the prior, all that was frozen: its draws become training points."""
    state = freeze(state_of(lambda p: -0.5 * (p["a"] / 1e-3) ** 2, max_restarts=1), 400)
    restarted, _ = nsflow.step(jax.random.key(0), state)
    assert (restarted.phase, restarted.num_restarts, restarted.num_rounds) == (Phase.POSTERIOR, 1, 0)
    assert restarted.frozen is None
    assert [len(batch.log_prior) for batch in restarted.rounds] == [400]  # they may count once others say for how much
    assert (len(restarted.points.x), restarted.num_draws, restarted.num_calls) == (500, (500,), 500)
    spent, _ = nsflow.step(jax.random.key(0), replace(state, num_restarts=1))
    assert (spent.phase, spent.frozen.num_batches, spent.num_planned) == (Phase.FROZEN, 1, 2)


@float64
def test_frozen_mixture_begins_without_draws_and_favours_the_posterior():
    """Pilot draws weigh the mixture and are not counted again; the exact posterior is nearly all of it."""
    width = 0.1
    posterior = replace(FLOW, scale=np.array([[width]]))
    variance = 1 / (1 / width**2 - 1)  # of the likelihood whose product with the prior has this width
    state = state_of(lambda p: -0.5 * p["a"] ** 2 / variance, ess=2000).add_trained(posterior)
    state, pilot = extend(jax.random.key(1), state, no_batches(state, {0: 100, 1: 900}))
    state = posterior_phase._freeze(jax.random.key(3), learn(state, pilot, np.ones(100, bool)), pilot)
    prior, thinned = state.frozen.components
    assert (state.phase, prior, state.frozen.num_batches, state.num_planned) == (Phase.FROZEN, 0, 0, 2)
    assert len(state.frozen.draws.x) == len(state.frozen.log_likelihood) == len(state.frozen.log_prior) == 0
    # The prior has half a per cent of the calls, at least two; w = Z / Q is constant where its part is small.
    num_prior, num_thinned = state.frozen.proposal.num_draws
    assert num_prior == 2
    assert num_thinned * state.components[thinned].acceptance == pytest.approx(199, abs=1)
    after, _ = nsflow.step(jax.random.key(2), state)
    assert np.bincount(after.frozen.draws.component)[0] == 2
    np.testing.assert_array_equal(after.frozen.num_draws, state.frozen.proposal.num_draws)
    assert after.frozen.estimate().ess > 0.97 * len(after.frozen.log_prior)


@float64
def test_credit_is_the_ratio_of_the_second_moments():
    """Weights of N(0, 1) under N(0, 2): 4 / (2 sqrt(7)) by quadrature; of an exact proposal 1."""
    state = state_of(lambda p: 0.0 * p["a"]).add(replace(FLOW, scale=np.array([[2.0]])), FLOW)
    wide = no_batches(state, {1: 100})
    state, frozen = extend(jax.random.key(0), state, no_batches(state, {2: 20_000}))
    worth = frozen_phase._credits((wide, no_batches(state, {2: 7})), frozen)
    assert worth[0] == pytest.approx(np.sqrt(7) / 4, abs=0.005)  # rms over 20 000 draws: 0.002
    assert worth[1] == pytest.approx(1)


def sloped(p):
    """Flat but for rounding: a likelihood of one value only is an alarm."""
    return 1e-12 * p["a"]


def uneven(heaviest, num_draws=(1, 4)):
    """Five draws of a mixture of prior and flow where both are equal; the first is the prior's, of another weight."""
    state = freeze(state_of(sloped, FLOW), *num_draws, num_batches=1)
    equal = np.zeros((5, 2))
    draws = Draws(np.zeros((5, 1)), np.array([0, 1, 1, 1, 1]), equal[:, 0], equal)
    log_likelihood = np.log([heaviest, 1.0, 1.0, 1.0, 1.0])
    return replace(
        state, frozen=state.frozen._replace(draws=draws, log_likelihood=log_likelihood, log_prior=np.zeros(5))
    )


@pytest.mark.parametrize(("missed", "expected"), [(False, 0.01), (True, 6 / 10)])
def test_evidence_that_only_the_prior_proposes_is_an_alarm(missed, expected):
    """Five draws of Q = 1/100 prior + 99/100 flow; one of weight 6 among 4 of weight 1 lies where the flow is not."""
    state = uneven(6.0, num_draws=(1, 99))
    log_q = state.frozen.draws.log_q.copy()
    log_Q = np.zeros(5)
    if missed:
        log_q[0, 1], log_Q[0] = -np.inf, np.log(0.01)
    log_likelihood = state.frozen.log_likelihood + log_Q  # the weights stay
    draws = state.frozen.draws._replace(log_q=log_q, log_Q=log_Q)
    state = replace(state, frozen=state.frozen._replace(draws=draws, log_likelihood=log_likelihood))
    assert state.frozen.shares[0] == pytest.approx(expected, rel=0.25)
    alarms = summary._alarms(state, evidence())
    assert alarms == (("only the prior proposes 60% of the evidence: the flows miss it",) if missed else ())


def test_prior_as_the_best_proposal_is_no_alarm():
    """Where the likelihood says nothing, the mixture is mostly prior, and so is the evidence."""
    assert summary._alarms(uneven(1.0), evidence()) == ()


def test_final_draws_of_which_few_count_are_an_alarm():
    """Five in a hundred have a hundred times the weight of the others; of equal ones all count."""
    state = uneven(1.0)
    ones = np.zeros(100)
    draws = Draws(ones[:, None], np.repeat([0, 1], [20, 80]), ones, np.zeros((100, 2)))
    for weights, expected in ((np.where(np.arange(100) % 20, 1 / 100, 1.0), "only 7.1%"), (np.ones(100), None)):
        frozen = state.frozen._replace(draws=draws, num_batches=20, log_likelihood=np.log(weights), log_prior=ones)
        alarms = summary._alarms(replace(state, frozen=frozen), evidence())
        assert [alarm[: len("only 7.1%")] for alarm in alarms] == ([expected] if expected else [])


@pytest.mark.parametrize(
    ("estimate", "message"),
    [
        (evidence(khat=0.71, max_weight_share=0.021), "k-hat = 0.71"),
        (evidence(ess=10_000.0, khat=0.6, max_weight_share=0.006), "the heaviest draw counts for 60"),
        (evidence(max_weight_share=0.06), "one draw carries 6%"),
    ],
)
def test_alarms_name_what_the_error_bar_hides(estimate, message):
    (alarm,) = summary._alarms(uneven(1.0), estimate)
    assert message in alarm
    assert summary._alarms(uneven(1.0), evidence(khat=0.69, max_weight_share=0.04)) == ()
    assert summary._alarms(uneven(1.0), evidence(khat=0.8, max_weight_share=0.019)) == ()
    assert summary._alarms(uneven(1.0), evidence(ess=10_000.0, khat=5.0, max_weight_share=0.0029)) == ()
    assert len(summary._alarms(uneven(1.0), evidence(ess=10_000.0, khat=5.0, max_weight_share=0.0031))) == 1


def test_estimate_without_fresh_draws_says_so():
    state = state_of(flat, FLOW)
    for unfinished in (state, freeze(state, 1, 4)):
        assert "no fresh draws" in summary._alarms(unfinished, evidence())[0]


def test_last_round_is_fresh_before_the_frozen_phase():
    """Its draws did not train what proposed them; those of the rounds before it wait for their credit."""
    first, last = (uneven(heaviest).frozen for heaviest in (9.0, 6.0))
    state = replace(state_of(flat, FLOW), rounds=(first, last))
    np.testing.assert_allclose(np.exp(state.fresh.log_weights), [6, 1, 1, 1, 1])
    assert summary._alarms(state, evidence()) == ()
    frozen = uneven(2.0).frozen
    assert state.fresh.estimate().logZ == pytest.approx(np.log(10 / 5))
    state = replace(state, frozen=frozen)
    assert state.fresh.estimate().logZ == pytest.approx(np.log(6 / 5))
    state = replace(state, credits=(0.0, 1.0))
    assert state.fresh.estimate().logZ == pytest.approx(np.log(16 / 10))


def test_ladder_that_stops_below_a_spike_is_an_alarm():
    """A plateau ends the ladder and hides nothing."""
    flat_end, _ = nsflow.step(jax.random.key(0), replace(state_of(flat), has_looked_ahead=True))
    assert (flat_end.phase, flat_end.unseen) == (Phase.SCOUTING, 0.0)
    _, alarm = summary._alarms(replace(state_of(sloped), unseen=0.3), evidence())
    assert "30% of the evidence may lie above" in alarm


@pytest.mark.parametrize("width", [0.2, 1.0])
def test_training_points_that_no_draw_can_meet_are_an_alarm(width):
    """N(0, 1) by draws of N(0, 0.2^2): weights above a hundred lie beyond 0.72."""
    log_ratio = lambda x: np.log(width) + 0.5 * x**2 * (width**-2 - 1)  # noqa: E731
    narrow = replace(FLOW, scale=np.array([[width]]))
    state = freeze(state_of(flat, narrow), 0, 1000, num_batches=1)
    expected = np.mean(log_ratio(state.points.x[:, 0]) > np.log(100))
    assert frozen_phase.unproposed(state, evidence()) == pytest.approx(expected, abs=1e-9)
    assert expected == (0 if width == 1 else pytest.approx(0.47, abs=0.15))  # 3 standard errors of 100 points


def test_calls_are_what_is_planned_not_draws():
    state = state_of(flat, Thinned(FLOW, lambda x: np.zeros(len(x)), PRIOR, log_bound=0.0, acceptance=0.25))
    assert components.num_candidates(state, {0: 10, 1: 100}) == {0: 10, 1: 400}


# ---- looking ahead

EIGHT = nsflow.Prior({"x": dist.Normal(0, 1).expand([8]).to_event(1)})


def eight(log_likelihood, **settings):
    """2000 points of an eight-dimensional standard normal prior."""
    problem = nsflow.Problem(nsflow.JaxLikelihood(log_likelihood), EIGHT)
    return nsflow.init(jax.random.key(0), problem, nsflow.Settings(**settings))


def narrow(centre, sigma):
    return lambda p: -0.5 * jnp.sum(((p["x"] - centre) / sigma) ** 2)


def test_the_first_step_of_a_ladder_has_a_gaussian_posterior():
    """Of precision 1 + sigma^-2 around its mean, exactly; and the levels are small from then on."""
    before = eight(narrow(1.0, 0.1))
    size, allowed = levels.level_size(before), next_batch(before)
    after, _ = nsflow.step(jax.random.key(1), before)
    assert 0 < after.num_calls - before.num_calls <= allowed
    gaussian = after.components[-1].map
    np.testing.assert_allclose(gaussian.mean, np.full(8, 100 / 101), atol=1e-4)
    np.testing.assert_allclose(gaussian.scale, np.eye(8) / np.sqrt(101), atol=1e-4)
    assert after.has_looked_ahead
    assert (after.modes, after.num_given, after.contours) == ((2,), 2, before.contours)
    assert levels.level_size(after) == size // 2
    exact = -4 * np.log(101) - 0.5 * 8 * 100 / 101
    assert np.logaddexp.reduce(after.points.log_posterior_weights) == pytest.approx(exact, abs=0.2)
    again, _ = nsflow.step(jax.random.key(2), after)
    assert len(again.contours) == 2


def test_two_summits_are_mixed():
    two = lambda p: jnp.logaddexp(narrow(1.0, 0.2)(p), narrow(-1.0, 0.2)(p))  # noqa: E731
    after, _ = nsflow.step(jax.random.key(1), eight(two))
    centres = sorted(float(np.mean(wide.map.mean)) for wide in after.components[-1].components)
    assert centres == pytest.approx([-25 / 26, 25 / 26], abs=1e-3)


def test_no_second_climb_is_made_where_the_first_ends_on_a_curved_ridge():
    """A ring of a twentieth of its radius: the Gaussian on a point of it is off, and others would be as well."""
    ring = lambda p: -0.5 * ((jnp.hypot(p["x"][0], p["x"][1]) - 1) / 0.05) ** 2 + narrow(0.0, 0.2)(p)  # noqa: E731
    before = eight(ring)
    after, _ = nsflow.step(jax.random.key(1), before)
    assert after.has_looked_ahead
    assert (after.modes, after.summits, after.climbed) == ((), (), ())
    assert after.num_calls - before.num_calls < 400


@pytest.mark.parametrize("kernel_dims", [8, 6])
def test_nothing_is_put_on_a_summit_that_the_prior_covers(kernel_dims):
    before = eight(lambda p: 0.0 * jnp.sum(p["x"]), kernel_dims=kernel_dims)
    after, _ = nsflow.step(jax.random.key(1), before)
    assert len(after.modes) == 0
    assert after.has_looked_ahead


def test_a_ladder_beyond_kernels_ends_close_to_the_top():
    """What is narrower than a tenth of a nat is met: at three tenths Skilling's spike was lost in one run of eight."""
    state = eight(narrow(1.0, 0.1))
    while state.phase is Phase.LADDER:
        state, _ = nsflow.step(jax.random.key(len(state.points.x)), state)
    above = state.points.log_likelihood[state.points.log_likelihood >= state.contours[-1]]
    assert len(above) > 16
    assert np.ptp(above) < 0.2  # 0.1 at the next contour, and twice that at the last one that was drawn above


def test_a_ladder_ends_where_a_likelihood_gets_ever_steeper():
    """The evidence within a radius r of a pole of r^-7 in 8-d is about as r: 1e-4 of it is left, not 1e-15."""
    state = eight(lambda p: -7 * jnp.log(jnp.linalg.norm(p["x"])))
    while state.phase is Phase.LADDER:
        state, _ = nsflow.step(jax.random.key(len(state.points.x)), state)
    assert 1e-6 < evidence_share(state.points, state.contours[-1]) < 1e-3
    assert state.unseen == 0


SPIKE = 28.0  # nats above the slab, 0.1 off in each coordinate


def slab_and_spike(p):
    return jnp.logaddexp(narrow(0.0, 0.3)(p), SPIKE + narrow(0.1, 0.01)(p))


def met(state, offset):
    """A state whose ladder has one draw on the spike, so many of its deviations off in each coordinate."""
    gaussian = Gaussian(np.full(8, 0.1 + 0.01 * offset), 1e-6 * np.eye(8))
    return draw(jax.random.key(2), state.add(gaussian), {len(state.components): 1}, np.ones(len(state.points.x), bool))


def test_a_draw_above_every_maximum_is_climbed_from():
    """One draw on the slope of a spike within a slab: the next step covers it, and the evidence is right."""
    slab, _ = nsflow.step(jax.random.key(1), eight(slab_and_spike))
    assert len(slab.summits) == 1
    assert not scouting.unexplained(slab)
    before = met(slab, offset=1.5)
    (start,) = scouting.unexplained(before)
    assert start == len(before.points.x) - 1
    allowed = next_batch(before)
    after, _ = nsflow.step(jax.random.key(3), before)
    assert 0 < after.num_calls - before.num_calls <= allowed
    assert len(after.contours) == len(before.contours)
    assert (len(after.modes), len(after.summits), after.summits[1].is_stray) == (2, 2, True)
    np.testing.assert_allclose(after.summits[1].centre, np.full(8, 0.1), atol=1e-3)
    spike = SPIKE - 4 * np.log(1e4 + 1) - 0.5 * 8 * 0.01 / (1 + 1e-4)
    exact = np.logaddexp(-4 * np.log(1 / 0.09 + 1), spike)
    assert np.logaddexp.reduce(after.points.log_posterior_weights) == pytest.approx(exact, abs=0.2)
    assert not scouting.unexplained(after)


def test_a_draw_is_climbed_from_once(monkeypatch):
    """A climb that its calls do not suffice for finds nothing, and is not repeated."""
    slab, _ = nsflow.step(jax.random.key(1), eight(slab_and_spike))
    before = met(slab, offset=1.5)
    monkeypatch.setattr("nsflow.nested.mode_search.batch_size", lambda state: 3)
    after = scouting.chase(jax.random.key(4), before)
    assert after.climbed == (*before.climbed, *scouting.unexplained(before))
    assert (after.modes, after.summits) == (before.modes, before.summits)
    assert len(scouting.unexplained(before)) == 1
    assert not scouting.unexplained(after)


@pytest.mark.parametrize("num_prior", [100, 2000])
def test_a_mode_that_no_climb_from_the_prior_met_is_a_stray(num_prior):
    """However many points cover it: they came from a ladder, which may have lost its twin."""
    state, mode = peak(num_prior)
    low = mode._replace(centre=np.array([9.0]), log_density=-50.0)
    (summit,) = scouting.chase(jax.random.key(0), replace(state, summits=(low,))).summits[1:]
    assert summit.is_stray


def test_where_noise_stops_a_climb_there_is_no_stray():
    """Whose twins 20 000 calls would look for, as they did with noise of 0.1 nats in 10-d in two runs of four."""
    noise = lambda x: 0.1 * jnp.sin(1e7 * jnp.sum(x * jnp.sqrt(jnp.arange(2.0, 10.0))))  # noqa: E731
    state = eight(lambda p: narrow(0.0, 0.1)(p) + noise(p["x"]))
    low = Mode(np.full(8, 9.0), -1e6, np.eye(8))
    (stuck,) = scouting.chase(jax.random.key(0), replace(state, summits=(low,))).summits[1:]
    assert not stuck.is_stray
    assert not stuck.is_settled


@pytest.mark.parametrize(("height", "expected"), [(-0.5, Phase.POSTERIOR), (-2.0, Phase.SCOUTING)])
def test_later_phases_lead_back_to_scouting_where_a_draw_is_above_every_maximum(height, expected):
    """By more than a nat: noise is no maximum. The likelihood has its top at 0."""
    known = Mode(np.zeros(1), float(height - 0.5 * np.log(2 * np.pi)), np.eye(1))
    state = replace(state_of(lambda p: -0.5 * (p["a"] / 1e-3) ** 2), summits=(known,))
    top = Gaussian(np.zeros(1), 1e-6 * np.eye(1))
    state = draw(jax.random.key(1), state.add(top), {1: 1}, np.ones(100, bool))
    restarted, _ = nsflow.step(jax.random.key(0), freeze(state, 400))
    assert restarted.phase is expected
    refined, _ = nsflow.step(jax.random.key(0), replace(state, phase=Phase.POSTERIOR))
    assert (refined.phase is Phase.SCOUTING) is (expected is Phase.SCOUTING)


# ---- scouting


@float64
def peak(num_prior, width=0.1):
    """A mode that only draws from the prior cover, and a contour above all of them."""
    variance = 1 / (1 / width**2 - 1)  # of the likelihood whose product with the prior has this width
    state = state_of(lambda p: -0.5 * p["a"] ** 2 / variance, num_prior=num_prior)
    mode = Mode(np.zeros(1), float(-0.5 * np.log(2 * np.pi)), np.array([[width]]))
    return replace(state, phase=Phase.SCOUTING, contours=(-np.inf, 1.0)), mode


def test_coverage_is_the_number_of_equal_points_in_a_mode():
    """Of n draws from N(0, 1), n s have the density of the prior's top within sqrt(2 pi) s of it."""
    state, mode = peak(num_prior=500, width=0.1)
    assert mode_search.coverage(state, [mode]) == pytest.approx([50])
    assert len(mode_search.coverage(state, [])) == 0


@pytest.mark.parametrize(("num_prior", "is_lost"), [(100, True), (500, False)])
def test_mode_with_few_points_gets_a_component(num_prior, is_lost):
    """Ten effective points are fewer than twenty, fifty are more."""
    state, mode = peak(num_prior)
    after, _ = nsflow.step(jax.random.key(0), state)
    assert (len(after.modes) == 1) is is_lost
    assert (after.phase is Phase.SCOUTING) is is_lost
    assert len(after.summits) == 1
    np.testing.assert_allclose(after.summits[0].scale, mode.scale, rtol=1e-3)
    if is_lost:
        again, _ = nsflow.step(jax.random.key(1), after)
        assert (again.modes, len(again.summits)) == (after.modes, 1)


def test_a_mode_asks_for_scouts_by_its_evidence_over_its_share_of_the_prior():
    """Of two halves of the evidence the narrow one has a fourteenth of the prior; the wide one has more than half."""
    halves = ((-1.0, 0.5), (2.0, 0.1))  # centres and widths of the posterior's
    density = lambda x, m, s: -0.5 * ((x - m) / s) ** 2 - np.log(2 * s)  # noqa: E731
    state = state_of(
        lambda p: jnp.logaddexp(*(density(p["a"], *half) for half in halves)) + 0.5 * p["a"] ** 2, num_prior=2000
    )
    wide, narrow = (Mode(np.array([m]), float(density(m, m, s)), np.array([[s]])) for m, s in halves)
    share = np.mean(density(state.points.x, *halves[1]) > density(state.points.x, *halves[0]))
    assert 0.05 < share < 0.1
    found = lambda *modes, missed=0: mode_search.Search(modes, (), missed, 0)  # noqa: E731
    assert scouting._num_scouts(state, found(wide, narrow)) == pytest.approx(1000 * 0.5 / share, rel=0.1)
    after_wide, after_narrow = (replace(state, summits=(mode,)) for mode in (wide, narrow))
    assert scouting._num_scouts(after_wide, found(wide, narrow)) == pytest.approx(500 / share, rel=0.1)
    assert scouting._num_scouts(after_narrow, found(narrow, wide)) == 0
    assert scouting._num_scouts(state, found()) == 0
    assert scouting._num_scouts(state, found(narrow, missed=20_000)) == 20_000


def twins(p):
    """Two equal modes, of which a draw of the prior leads to either as often."""
    return jnp.logaddexp(*(-0.5 * ((p["a"] - centre) / 0.05) ** 2 for centre in (-1.0, 1.0)))


def met_once(likelihood, **settings):
    """A state that has met the right twin only, by one of many climbs to as many maxima, and has none left to try."""
    state = replace(state_of(likelihood, num_prior=400, **settings), phase=Phase.SCOUTING)
    twin = Mode(np.array([1.0]), -1.4, np.array([[0.05]]), is_stray=True)
    return replace(state, summits=(twin, *(Mode(np.array([4.0 + k]), -1000.0, np.array([[0.05]])) for k in range(40))))


def test_a_mode_that_few_climbs_met_sends_them_out_for_its_twin():
    """Climbs go on until the chance that a twin of either was met by none is small, and the calls are booked."""
    before = met_once(twins)
    after, _ = nsflow.step(jax.random.key(0), before)
    assert mode_search.unmet_share(before) > 0.15
    assert 0 < after.num_explored == after.num_calls - before.num_calls - sum(after.num_draws[1:])
    right, *_, left = (float(mode.centre[0]) for mode in after.summits)
    assert (right, left) == pytest.approx((1.0, -1.0), abs=0.02)
    assert mode_search.unmet_share(after) == 0
    assert after.num_explored < mode_search.batch_size(after) / 4
    assert len(set(after.climbed)) == len(after.climbed) > 0
    last, _ = nsflow.step(jax.random.key(1), after)
    assert (after.phase, last.phase) == (Phase.SCOUTING, Phase.POSTERIOR)
    assert last.num_explored == after.num_explored


@pytest.mark.parametrize(("is_traced", "max_scouts"), [(True, 0), (False, 1000)])
def test_no_climb_is_made_for_twins_without_calls_for_it_or_where_gradients_are_dear(is_traced, max_scouts):
    """The run goes on, with an alarm."""
    state = met_once(twins, max_scouts=max_scouts)
    if not is_traced:
        state = replace(state, problem=state.problem._replace(likelihood=nsflow.HostLikelihood(twins)))
    after, _ = nsflow.step(jax.random.key(0), state)
    assert (after.phase, after.num_explored) == (Phase.POSTERIOR, 0)
    (alarm,) = (a for a in summary._alarms(after, evidence()) if "climbs" in a)
    share = mode_search.unmet_share(after)
    assert alarm == f"so few climbs met a mode that {share:.0%} of the evidence may lie in others like it"


@pytest.mark.parametrize(
    ("num_climbs", "others", "expected"), [(1, 1, 0.18), (2, 1, 0.063), (5, 1, 0.0), (1, 9, 0.0), (1, 0, 0.0)]
)
def test_modes_count_as_unmet_where_few_climbs_met_one_and_many_a_new_one(num_climbs, others, expected):
    """Half of (1 - h/n)^n for the twin that h of n climbs met; nothing where climbs meet what they met before."""
    state = met_once(twins)
    twin, *low = state.summits
    summits = (twin._replace(num_climbs=num_climbs), *(mode._replace(num_climbs=others) for mode in low if others))
    assert mode_search.unmet_share(replace(state, summits=summits)) == pytest.approx(expected, rel=0.25)


def test_round_that_missed_evidence_raises_an_alarm():
    """A round at log 0.7 with an error of 0.02 lacks 30 % of what was found; one within its error lacks nothing."""
    late = Evidence(0.0, 0.01, 1000.0, 0.1, 0.01)
    assert summary._lacks(Evidence(np.log(0.7), 0.02, 500.0, 0.1, 0.01), late) == pytest.approx(0.3)
    assert summary._lacks(Evidence(np.log(0.7), 0.2, 500.0, 0.1, 0.01), late) == 0.0
    assert summary._lacks(Evidence(np.log(1.3), 0.02, 500.0, 0.1, 0.01), late) == 0.0


@pytest.mark.parametrize("num_outdated", [0, 1])
def test_a_round_before_a_ridge_was_found_raises_none(num_outdated):
    """Its draws have weights of 1/2, without an error, and the evidence is 1."""
    state, ones = uneven(1.0), np.zeros(100)
    draws = Draws(ones[:, None], np.repeat([0, 1], [20, 80]), ones, np.zeros((100, 2)))
    batches = state.frozen._replace(draws=draws, num_batches=20, log_prior=ones)
    low, right = (batches._replace(log_likelihood=np.full(100, level)) for level in (np.log(0.5), 0.0))
    state = replace(state, frozen=right, rounds=(low, right), num_outdated=num_outdated)
    alarms = summary._alarms(state, evidence()._replace(logZ=0.0))
    expected = (
        () if num_outdated else ("a posterior round missed 50% of the evidence found later: more may be missing",)
    )
    assert alarms == expected


def test_surrogate_is_fitted_where_one_point_holds_all_of_the_evidence():
    """A ladder that got stuck far below the top of the likelihood leaves points thousands of nats apart."""
    state = state_of(lambda p: -1e8 * (p["a"] - 0.3) ** 2)
    fitted = float64(components.fit_surrogate)(jax.random.key(0), state)
    assert np.all(np.isfinite(fitted(state.points.x)))


@pytest.mark.parametrize(("error", "is_straightened"), [(0.1, True), (0.3, False)])
def test_surrogate_is_of_straightened_points_only_if_held_out_ones_prefer_it(monkeypatch, error, is_straightened):
    """Of a curved ridge, by 0.2 nats without; and where nothing is curved there is one training."""
    trainings = []
    whole = Gaussian(np.zeros(1), np.eye(1))

    def fit(*_, straightener=None, **__):
        trainings.append(straightener)
        found = 0.2 if straightener is None else error
        return surrogate.Surrogate(np.zeros(1, bool), whole, 0.0, np.zeros_like, found, straightener)

    monkeypatch.setattr(surrogate, "fit", fit)
    straight = TriangularMap()
    fitted = components.fit_surrogate(jax.random.key(0), state_of(flat), straight)
    assert (fitted.straightener is straight) is is_straightened
    assert trainings == [None, straight]
    assert components.fit_surrogate(jax.random.key(0), state_of(flat)).error == 0.2
    assert len(trainings) == 3


def test_a_long_frozen_phase_takes_several_batches_at_once():
    """A twentieth of those drawn, never beyond the plan, and no call twice or uncounted."""
    state = freeze(state_of(flat, ess=1e9, max_restarts=0), 50, num_batches=100, num_planned=200)
    assert next_batch(state) >= 250
    for planned, expected in ((200, 105), (103, 103)):
        after, info = nsflow.step(jax.random.key(0), replace(state, num_planned=planned))
        assert after.frozen.num_batches == expected
        assert len(after.frozen.draws.x) == info.num_calls - state.num_calls == 50 * (expected - 100)
        assert len(np.unique(after.frozen.draws.x, axis=0)) == len(after.frozen.draws.x)


def test_a_climb_that_meets_no_likelihood_finds_no_mode():
    """As where a likelihood with noise was finite once: infinities would leave a coverage of NaN."""
    state = state_of(flat)
    gone = state.problem._replace(likelihood=nsflow.HostLikelihood(lambda p: -np.inf))
    found = mode_search.search(replace(state, problem=gone), {0: 1.0, 1: 1.0})
    assert (found.modes, found.lost) == ((), ())
    assert found.num_calls > 0


def test_a_search_that_has_used_its_calls_leaves_the_other_starts_alone():
    state = state_of(lambda p: -0.5 * (p["a"] / 0.1) ** 2)
    found = mode_search.search(state, dict.fromkeys(range(20), 1.0), max_calls=30)
    assert found.num_calls <= 30
    assert 0 < len(found.climbed) < 20
    assert found.climbed == tuple(range(len(found.climbed)))


def test_frozen_draws_without_evidence_leave_the_rounds_their_credit():
    """The ratio of the second moments is 0 / 0 then, and would make the evidence NaN."""
    state = state_of(flat).add(FLOW)
    gone = state.problem._replace(likelihood=nsflow.HostLikelihood(lambda p: -np.inf))
    rounds = (no_batches(state, {1: 100}),)
    _, frozen = extend(jax.random.key(0), replace(state, problem=gone), no_batches(state, {1: 50}))
    assert frozen_phase._credits(rounds, frozen) == (1.0,)
