"""Every inner kernel leaves the prior above a contour as it is, however bad the flow."""

from dataclasses import replace

import blackjax  # noqa: F401  its import is slow; not within a test
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from blackjax.ns.base import StateWithLogLikelihood

from nsflow.flow.flow import Flow
from nsflow.flow.velocity import Architecture
from nsflow.modes.modes import Mode
from nsflow.moves import inner_kernel
from nsflow.moves.ellipsoids import around
from nsflow.moves.inner_kernel import Health, IndependenceMH, LatentSlice, Mixture, Problem, Rejection
from nsflow.moves.learner import Learner
from nsflow.moves.memory import Draws
from nsflow.numerics.precision import standard_promotion

SMALL = Learner(architecture=Architecture(16, 1, (), (1.0,)), pool_size=1)
NUM_LIVE, NUM_DELETE, NUM_STEPS = 6000, 3000, 6
NUM_TRAINING = 2  # of six draws, at a share of 0.3
CENTRES, RADII = np.array([[-0.5, 0.0], [0.5, 0.2]]), np.array([0.3, 0.2])
SMALLER = 4 / 13  # share of the smaller disc
MAX_Z = 4.4  # false-alarm rate 1e-5 a number, 1e-3 for the file


def log_likelihood(x):
    """Cones over two discs; positive inside."""
    distance = jnp.sqrt(jnp.sum((x[None] - jnp.asarray(CENTRES, x.dtype)) ** 2, axis=1))
    return jnp.max(1 - distance / jnp.asarray(RADII, x.dtype))


def init_state(x, loglikelihood_birth):
    log_prior = jnp.where(jnp.all(jnp.abs(x) < 1), -np.log(4.0), -jnp.inf).astype(x.dtype)
    value = log_likelihood(x)
    return StateWithLogLikelihood(x, log_prior, value, jnp.full_like(value, loglikelihood_birth))


PROBLEM = Problem(SMALL, init_state, NUM_STEPS, NUM_DELETE)


def exact_draws(rng, num):
    """Uniform points of the two discs."""
    which = (rng.random(num) < SMALLER).astype(int)
    angle, radius = 2 * np.pi * rng.random(num), RADII[which] * np.sqrt(rng.random(num))
    return CENTRES[which] + radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)


STRAIGHT = Flow.from_velocity(lambda t, x: jnp.zeros_like(x), 2, num_steps=1)
CURVED = Flow.from_velocity(lambda t, x: 3 * jnp.stack([-x[1], x[0]]) * jnp.exp(-jnp.sum(x**2)), 2, num_steps=4)


def flow(mean, scale, base=STRAIGHT):
    """An affine map after one of the two fields: few compilations."""
    as_float32 = lambda a: jnp.asarray(a, jnp.float32)  # noqa: E731
    return replace(base, mean=as_float32(mean), scale=as_float32(scale * np.eye(2)))


FLOWS = {
    "fitting": flow([0, 0.1], 0.5),
    "curved": flow([0, 0.1], 0.5, CURVED),
    "narrow": flow([0, 0.1], 0.2),
    "wide": flow([0, 0.1], 2.0),
    "shifted": flow([0.5, 0.5], 0.5),
    "without a mode": flow(CENTRES[0], 0.15),
}
KERNELS = {
    "independent": IndependenceMH(),
    "slice": LatentSlice(),
    "mixture": Mixture(num_slices=2),
    "rejection": Rejection(),
}


def z_scores(x, x_live, num_chains):
    """Share of the smaller disc, mean offset and mean square radius within the discs, in their standard errors."""
    which = np.argmin(np.linalg.norm(x[:, None] - CENTRES, axis=2) / RADII, axis=1)
    offset = (x - CENTRES[which]) / RADII[which][:, None]
    square = np.sum(offset**2, axis=1)
    # The live points are a sample themselves, and the chains start from them with replacement.
    error = np.sqrt(1 / num_chains + 1 / len(x_live))
    numbers = [np.mean(which) - SMALLER, *np.mean(offset, axis=0), np.mean(square) - 0.5, np.mean(square**2) - 1 / 3]
    deviations = [np.sqrt(SMALLER * (1 - SMALLER)), 0.5, 0.5, np.sqrt(1 / 12), np.sqrt(4 / 45)]
    return np.array(numbers) / np.array(deviations) / error


def apply(kernel, proposal_flow, seed, acceptance=1.0, ellipsoids=None):
    """Start from the exact distribution and apply a kernel once."""
    x_live = exact_draws(np.random.default_rng(seed), NUM_LIVE).astype(np.float32)
    live = jax.vmap(lambda x: init_state(x, 0.0))(x_live)
    zeros = jnp.zeros(NUM_LIVE, jnp.float32)
    proposal = SMALL.init(jax.random.key(0), Draws(jnp.asarray(x_live), zeros, zeros))._replace(flow=proposal_flow)
    proposal = proposal if ellipsoids is None else proposal._replace(ellipsoids=ellipsoids)
    one = jnp.ones((), jnp.float32)
    health = Health(acceptance * one, one, -jnp.inf * one, jnp.int32(1))
    call = standard_promotion(jax.jit(kernel, static_argnums=0))
    particles, moves = call(PROBLEM, jax.random.key(seed), live, jnp.zeros((), jnp.float32), proposal, health)
    return x_live, particles, moves


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name == "curved" else name for name in FLOWS]
)
def test_inner_kernel_prior_is_invariant(kernel, name):
    # A kernel that thinks itself poor makes the slice moves of a mixture.
    x_live, particles, moves = apply(KERNELS[kernel], FLOWS[name], seed=len(name), acceptance=0.01)
    x = np.asarray(particles.position, np.float64)
    assert np.all(np.asarray(particles.loglikelihood) > 0)
    assert np.asarray(jax.vmap(log_likelihood)(particles.position)) == pytest.approx(
        np.asarray(particles.loglikelihood), abs=1e-5
    )
    assert np.max(np.abs(z_scores(x, x_live, NUM_DELETE))) < MAX_Z
    assert np.all(np.asarray(moves.num_calls) >= 1)


MODES = [Mode(CENTRES[0] + 0.1, 0.0, 0.2 * np.eye(2)), Mode(CENTRES[1], 0.0, 0.2 * np.eye(2))]
ELLIPSOIDS = around(MODES, np.ones(2), 0, jnp.dtype(jnp.float32)).at_contour(jnp.zeros((), jnp.float32))


@pytest.mark.parametrize("kernel", ["independent", "mixture", "rejection"])
def test_inner_kernel_prior_is_invariant_under_ellipsoids_beside_the_flow(kernel):
    """One of them displaced and one too large; false-alarm rate of the mass in the discs 1e-4."""
    x_live, particles, moves = apply(
        KERNELS[kernel], FLOWS["without a mode"], 7, acceptance=0.01, ellipsoids=ELLIPSOIDS
    )
    assert np.max(np.abs(z_scores(np.asarray(particles.position, np.float64), x_live, NUM_DELETE))) < MAX_Z
    log_weight = np.asarray(moves.draws.log_weight, np.float64)
    is_drawn = ~np.isnan(log_weight)
    weights = (np.exp(log_weight) * (np.asarray(moves.draws.log_likelihood) > 0))[is_drawn]
    assert abs(np.mean(weights) - np.pi * np.sum(RADII**2) / 4) < 3.9 * np.std(weights) / np.sqrt(len(weights)) < 0.01


def test_an_ellipsoid_reaches_a_mode_that_the_flow_does_not_know():
    x_live, particles, _ = apply(IndependenceMH(), FLOWS["without a mode"], seed=7, ellipsoids=ELLIPSOIDS)
    moved = ~np.isin(np.asarray(particles.position)[:, 0], x_live[:, 0])
    assert np.mean(moved & (np.asarray(particles.position)[:, 0] > 0.3)) > 0.05


@pytest.mark.parametrize("kernel", ["independent", "mixture", "rejection"])
@pytest.mark.parametrize("name", ["narrow", pytest.param("shifted", marks=pytest.mark.slow)])
def test_a_density_left_out_is_seen(kernel, name, monkeypatch):
    """The test above can fail: without the flow's density the proposals would be taken as they come."""
    propose = inner_kernel._propose

    def without_density(*args):
        draws, (proposed, chains, log_weight) = propose(*args)
        draws = draws._replace(log_weight=jnp.where(draws.log_weight > -jnp.inf, 0.0, -jnp.inf))
        return draws, (proposed, chains, jnp.zeros_like(log_weight))

    jax.clear_caches()
    monkeypatch.setattr(inner_kernel, "_propose", without_density)
    monkeypatch.setattr(inner_kernel, "_log_weight", lambda log_q, state, contour: jnp.zeros(len(state[0])))
    x_live, particles, _ = apply(KERNELS[kernel], FLOWS[name], seed=1)
    jax.clear_caches()
    assert np.max(np.abs(z_scores(np.asarray(particles.position, np.float64), x_live, NUM_DELETE))) > 2 * MAX_Z


def test_independent_proposals_of_a_good_flow_leave_the_start_behind():
    x_live, particles, moves = apply(IndependenceMH(), FLOWS["fitting"], seed=3)
    moved = ~np.isin(np.asarray(particles.position)[:, 0], x_live[:, 0])
    # 0.16 of the flow's mass is in the discs, 1 - (1 - 0.16)^4 = 0.5 is the most that four proposals can replace.
    assert 0.35 < np.mean(moved) < 0.5
    assert 0.1 < np.mean(np.asarray(moves.acceptance)) < 0.16
    assert np.all(np.asarray(moves.num_calls) == NUM_STEPS)
    assert len(moves.draws.log_weight) == NUM_STEPS * NUM_DELETE
    assert len(moves.training_draws.log_weight) == NUM_TRAINING * NUM_DELETE


def test_the_flow_learns_from_nothing_that_it_moved():
    _, particles, moves = apply(IndependenceMH(), FLOWS["fitting"], seed=3)
    both = np.concatenate([np.unique(np.asarray(a), axis=0) for a in (particles.position, moves.training_draws.x)])
    assert len(np.unique(both, axis=0)) == len(both)


def test_draws_estimate_the_mass_above_the_contour():
    """Prior mass of the discs from the weights of all draws of four steps; false-alarm rate 1e-4."""
    draws = [apply(IndependenceMH(), FLOWS["wide"], seed=seed)[2].draws for seed in range(4, 8)]
    log_likelihoods, log_weights = (np.concatenate([np.asarray(one[i], np.float64) for one in draws]) for i in (1, 2))
    weights = np.exp(log_weights) * (log_likelihoods > 0)
    truth = np.pi * np.sum(RADII**2) / 4
    assert abs(np.mean(weights) - truth) < 3.9 * np.std(weights) / np.sqrt(len(weights)) < 0.02


@pytest.mark.parametrize(("name", "is_scarce"), [("fitting", False), ("wide", True)])
def test_draws_below_the_contour_are_weighed_where_few_lie_above(name, is_scarce):
    """No flow learns from them else, and the evidence of the draws has no use for them."""
    _, _, moves = apply(IndependenceMH(), FLOWS[name], seed=9)
    inside = np.all(np.abs(np.asarray(moves.training_draws.x)) < 1, axis=1)
    below = inside & (np.asarray(moves.training_draws.log_likelihood) <= 0)
    assert np.sum(below) > 50
    assert np.all(np.isfinite(np.asarray(moves.training_draws.log_weight)[below]) == is_scarce)


def test_draws_outside_the_prior_do_not_lie_above_the_contour(monkeypatch):
    """Where the likelihood is high they made the others look plentiful."""

    def unbounded(x, loglikelihood_birth):
        state = init_state(x, loglikelihood_birth)
        return state._replace(loglikelihood=jnp.where(state.logdensity > -jnp.inf, state.loglikelihood, 5))

    monkeypatch.setitem(globals(), "PROBLEM", PROBLEM._replace(init_state=unbounded))
    _, _, moves = apply(IndependenceMH(), FLOWS["wide"], seed=9)
    log_likelihood, log_weight = np.asarray(moves.training_draws[1]), np.asarray(moves.training_draws[2])
    assert np.sum(np.isfinite(log_weight[log_likelihood <= 0])) > 50


def test_mixture_adds_slices_only_while_it_is_poor():
    _, _, good = apply(Mixture(num_slices=2), FLOWS["fitting"], seed=5, acceptance=0.9)
    _, _, poor = apply(Mixture(num_slices=2), FLOWS["fitting"], seed=5, acceptance=0.01)
    assert np.all(np.asarray(good.num_calls) == NUM_STEPS)
    assert np.mean(np.asarray(poor.num_calls)) > NUM_STEPS + 4


def test_rejection_counts_only_what_it_drew():
    _, particles, moves = apply(Rejection(), FLOWS["fitting"], seed=6)
    drawn = np.sum(~np.isnan(np.asarray(moves.draws.log_weight)))
    assert drawn == np.sum(np.asarray(moves.num_calls))
    assert drawn <= NUM_STEPS * NUM_DELETE


def test_points_on_a_plateau_at_the_contour_are_left():
    live = jax.vmap(lambda x: init_state(x, 0.0))(
        jnp.asarray(exact_draws(np.random.default_rng(0), NUM_LIVE), jnp.float32)
    )
    live = live._replace(loglikelihood=jnp.zeros(NUM_LIVE, jnp.float32))
    zeros = jnp.zeros(NUM_LIVE, jnp.float32)
    proposal = SMALL.init(jax.random.key(0), Draws(live.position, zeros, zeros))._replace(flow=FLOWS["fitting"])
    one = jnp.ones((), jnp.float32)
    health = Health(one, one, -jnp.inf * one, jnp.int32(1))
    call = standard_promotion(jax.jit(IndependenceMH(), static_argnums=0))
    particles, _ = call(PROBLEM, jax.random.key(0), live, jnp.zeros((), jnp.float32), proposal, health)
    assert 0.35 < np.mean(np.asarray(particles.loglikelihood) > 0) < 0.5
