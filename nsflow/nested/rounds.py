"""Third phase: rounds that train on the posterior, until another one would cost more than it saves."""

from dataclasses import replace

import jax
import numpy as np
from jaxtyping import Array

from nsflow.nested.components import (
    MOST,
    allocate,
    broad_level,
    fit_surrogate,
    has_kernels,
    num_candidates,
    straightener_of,
    thin,
    train_posterior,
)
from nsflow.nested.draws import Batches
from nsflow.nested.ridges import follow, largest_search
from nsflow.nested.scouting import unexplained
from nsflow.nested.state import PRIOR, Phase, State, StepInfo, describe, extend, learn, no_batches
from nsflow.proposals import surrogate
from nsflow.proposals.meta_proposal import MetaProposal, optimal_weights
from nsflow.proposals.rejection import acceptance, at_most

WORTHWHILE = 0.05  # share of the effective sample size that a further round must promise to save
POOR = 0.5  # efficiency of a round below which more of them follow than planned, and networks are trained for longer
LONGER = 10  # times the gradient steps then
SETTLED = 3  # times the gradient steps of the last surrogate, by which most draws are thinned
PROGRESS = 1.1  # times the best efficiency of the rounds before, without which of two rounds in a row no more follow
FAIR = 0.2  # efficiency below which they do: it rests on few draws that count, and says little
LEAST = 0.1  # share of a round for a component that proposed hardly any evidence in the last one
# Draws over the wanted effective samples that judge the rounds. By a fortieth of them, a round of rosenbrock-10 with an
# efficiency of 0.001 had so much credit that 30 000 draws had an effective sample size of 17.
FIRST_LOOK = 0.2
PRIOR_FLOOR = 0.005  # least share of the prior in the frozen mixture: it bounds every weight
BROAD_FLOOR = 0.02  # and of the broad level, which bounds them where the posterior has tails; and of mixed levels


def refine(key: Array, state: State) -> tuple[State, StepInfo]:
    """Train on all points with posterior weights, draw; freeze when that was good enough."""
    settings = state.settings
    matters = state.points.matters
    chosen = state.points.select(matters)
    key_fit, key_draw, key_ridges, key_freeze = jax.random.split(key, 4)
    training = settings.training
    if state.rounds and state.rounds[-1].efficiency < POOR:
        training = replace(training, num_steps=LONGER * training.num_steps, patience=2 * training.patience)
    trained, info = train_posterior(key_fit, state, chosen.x, chosen.log_posterior_weights, training)
    others_share = _others_share(state)
    state = state.add_trained(*trained)
    num_draws = num_candidates(state, allocate(state, round_size(state), others_share))
    state, pilot = extend(key_draw, state, no_batches(state, num_draws))
    state = learn(state, pilot, matters)
    state = replace(state, rounds=(*state.rounds, pilot), num_rounds=state.num_rounds + 1)
    if unexplained(state):
        return replace(state, phase=Phase.SCOUTING), describe(Phase.POSTERIOR, state, info)
    efficiency = pilot.efficiency
    # A further round wins back about a quarter of the draws that are lost to unequal weights.
    is_enough = 0.25 * (1 / max(efficiency, 1e-6) - 1) < WORTHWHILE
    max_rounds = settings.max_rounds if efficiency < POOR else len(settings.rounds)
    if is_enough or state.num_rounds >= max_rounds or _is_stuck([r.efficiency for r in state.rounds]):
        state, has_found = follow(key_ridges, state, pilot.proposal)
        state = replace(state, num_rounds=max(0, max_rounds - 2)) if has_found else _freeze(key_freeze, state, pilot)
    return state, describe(Phase.POSTERIOR, state, info)


def _is_stuck(efficiencies: list[float]) -> bool:
    """Whether two rounds in a row were no better than those before: a flow has no more to learn from as many points.

    The efficiency of a Cauchy posterior stayed at 0.35 to 0.43 for ten rounds, 200 seconds of training.
    """
    if len(efficiencies) < 4:
        return False
    *before, last, newest = efficiencies
    return newest > FAIR and max(last, newest) < PROGRESS * max(before)


def _others_share(state: State) -> float:
    """Share of a batch for what needs no training, by what it proposed of the evidence in the last round."""
    if not state.rounds:
        return MOST
    last, (*others, _) = state.rounds[-1], state.newest
    share = sum(s for k, s in zip(last.components, last.shares, strict=True) if k in others)
    return float(np.clip(share, LEAST, MOST))


def round_size(state: State) -> int:
    """Draws of the next round."""
    rounds = state.settings.rounds
    return max(500, round(rounds[min(state.num_rounds, len(rounds) - 1)] * state.settings.ess))


def largest_round(state: State) -> int:
    """Likelihood calls that the next round will not exceed."""
    num_calls = at_most(round_size(state))
    return num_calls + 2 * largest_search(replace(state, num_calls=state.num_calls + num_calls))


def _freeze(key: Array, state: State, pilot: Batches) -> State:
    """Thin the newest components by all that is known now, and weigh their mixture on draws that trained none."""
    newest = [state.components[k] for k in state.newest]
    key_surrogate, *keys = jax.random.split(key, 1 + len(newest))
    training = replace(surrogate.TRAINING, num_steps=SETTLED * surrogate.TRAINING.num_steps)
    fitted = fit_surrogate(key_surrogate, state, straightener_of(newest[-1]), training)
    state = state.add_trained(*(thin(k, state, fitted, q) for k, q in zip(keys, newest, strict=True)))
    broad = broad_level(state)
    candidates = sorted({PRIOR, broad, *state.modes, *state.newest})
    wide = {broad} if has_kernels(state) else {broad, *state.newest}
    floor = [PRIOR_FLOOR if k == PRIOR else BROAD_FLOOR if k in wide else 0.0 for k in candidates]
    log_q = MetaProposal.of(state.components, candidates).log_prob_each(pilot.draws.x)
    # Per likelihood call, not per draw: thinned components have densities that sum to less than one.
    log_q = log_q - np.log([acceptance(state.components[k]) for k in candidates])
    log_target = pilot.log_likelihood + pilot.log_prior
    weights = optimal_weights(log_q, log_target, pilot.draws.log_Q, floor=np.array(floor))
    # A component of less than 5 % beyond its floor gains less than the evaluation of its density costs.
    kept = [(k, w) for k, w, f in zip(candidates, weights, floor, strict=True) if f > 0 or w > 0.05]
    size = np.clip(state.settings.ess / 40, 200, 2000)
    total = sum(w for _, w in kept)
    num_draws = num_candidates(state, {k: max(2, round(size * w / total)) for k, w in kept})
    frozen = no_batches(state, num_draws)
    num_planned = int(np.ceil(FIRST_LOOK * state.settings.ess / size))
    return replace(state, phase=Phase.FROZEN, frozen=frozen, num_planned=num_planned, credits=())
