"""Third phase: rounds that train on the posterior, until another one would cost more than it saves."""

from dataclasses import replace

import jax
import numpy as np
from jaxtyping import Array

from nsflow.components import allocate, broad_level, num_candidates, num_trained, thin, train
from nsflow.points import Points
from nsflow.proposal import Draws, MetaProposal, optimal_weights
from nsflow.state import PRIOR, Frozen, Phase, State, StepInfo, describe, draw
from nsflow.thinning import acceptance, at_most

PRIOR_FLOOR = 0.01  # least share of the prior in the frozen mixture: it bounds every weight
BROAD_FLOOR = 0.03  # and of the broad level, which bounds them where the posterior has tails


def refine(key: Array, state: State) -> tuple[State, StepInfo]:
    """Train on all points with posterior weights, draw; freeze when that was good enough."""
    settings = state.settings
    log_weights = state.points.log_posterior_weights
    # Points of a weight below 1 % of the average are most of the ladder and none of the posterior.
    chosen = log_weights > np.logaddexp.reduce(log_weights) - np.log(100 * len(log_weights))
    key_fit, key_thin, key_draw = jax.random.split(key, 3)
    trained, info = train(key_fit, state, state.points.x[chosen], log_weights[chosen], settings.posterior)
    trained = thin(key_thin, state, trained)
    num_before = len(log_weights)
    state = state.add(*trained)
    num_draws = num_candidates(state, allocate(state, round_size(state), len(trained)))
    state = draw(key_draw, state, num_draws, chosen)
    state = replace(state, num_rounds=state.num_rounds + 1)
    fresh = np.arange(len(state.points.x)) >= num_before
    efficiency, frozen = _freeze(state, state.points.select(fresh), num_draws)
    # A further round wins back about a quarter of the draws that are lost to unequal weights.
    savings = 0.25 * settings.ess * (1 / efficiency - 1)
    if savings < round_size(state) or state.num_rounds >= settings.max_rounds:
        state = replace(state, phase=Phase.FROZEN, frozen=frozen)
    return state, describe(Phase.POSTERIOR, state, info)


def round_size(state: State) -> int:
    """Draws of the next round."""
    rounds = state.settings.rounds
    return max(500, round(rounds[min(state.num_rounds, len(rounds) - 1)] * state.settings.ess))


def largest_round(state: State) -> int:
    """Likelihood calls that the next round will not exceed."""
    return at_most(round_size(state))


def _freeze(state: State, pilot: Points, num_draws: dict[int, int]) -> tuple[float, Frozen]:
    """Weigh the frozen mixture on fresh points that trained none of its components; predict its ESS per draw."""
    newest, broad = len(state.components), broad_level(state)
    candidates = sorted({PRIOR, broad, *num_draws, *range(max(newest - 2 * num_trained(state), 0), newest)})
    floor = [PRIOR_FLOOR if k == PRIOR else BROAD_FLOOR if k == broad else 0.0 for k in candidates]
    log_q = MetaProposal.of(state.components, candidates).log_prob_each(pilot.x)
    log_target = pilot.log_likelihood + pilot.log_prior
    drawn = np.array([num_draws.get(k, 0) for k in candidates])
    log_Q = MetaProposal.of(state.components, candidates, drawn).mix(log_q)
    # From here on per likelihood call, not per draw: thinned components have densities that sum to less than one.
    log_q = log_q - np.log([acceptance(state.components[k]) for k in candidates])
    weights = optimal_weights(log_q, log_target, log_Q, floor=np.array(floor))
    log_moment = 2 * log_target - log_Q - np.logaddexp.reduce(log_q + np.log(weights), axis=1)
    efficiency = np.exp(
        2 * np.logaddexp.reduce(log_target - log_Q) - np.logaddexp.reduce(log_moment) - np.log(np.sum(drawn))
    )
    # A component of less than 5 % beyond its floor gains less than the evaluation of its density costs.
    kept = [(k, w) for k, w, f in zip(candidates, weights, floor, strict=True) if f > 0 or w > 0.05]
    size = np.clip(state.settings.ess / 20, 200, 2000) / sum(w for _, w in kept)
    calls = num_candidates(state, {k: max(2, round(size * w)) for k, w in kept})
    indices = tuple(calls)
    proposal = MetaProposal.of(state.components, indices, tuple(calls.values()))
    nothing = np.zeros(0)
    draws = Draws(np.zeros((0, pilot.x.shape[1])), np.zeros(0, int), nothing, np.zeros((0, len(kept))))
    return max(float(np.nan_to_num(efficiency)), 1e-6), Frozen(proposal, indices, 0, 1, draws, nothing, nothing)
