"""First phase: a ladder of contours, from the prior to where most of the evidence lies."""

from dataclasses import replace

import jax
import numpy as np
from jaxtyping import Array

from nsflow.importance.weights import effective_sample_size, truncate
from nsflow.nested.components import allocate, fit_cheap, has_kernels
from nsflow.nested.conflict import enough, is_conflict, num_copies, surround
from nsflow.nested.mode_search import batch_size
from nsflow.nested.points import HARDLY, Points, evidence_share, highest_share, next_contour, share_of_excess
from nsflow.nested.scouting import chase, first_climb, largest_search, look_ahead, unexplained
from nsflow.nested.state import Phase, State, StepInfo, describe, draw

TOP = 0.3  # nats below the highest likelihood met at which a ladder ends: what is narrower lies within
FINE_TOP = 0.01  # the same for each dimension beyond those of kernels: a seventh of a Gaussian's width
MIN_ABOVE = 0.02  # share of the evidence that may lie above the next contour at its end; a funnel lost 0.2 at 0.5
NEGLIGIBLE = 1e-15  # the same share, at which a ladder ends anywhere: a hundred Gaussian dimensions have a far top
RARE = 1e-4  # the same share, as the points see it, at which a ladder ends on a likelihood that gets ever steeper
STEEP = 0.2  # range of log L above the next contour, nats a dimension, of such a one: twice that of a Gaussian's top
RESOLUTION = 1e-9  # latent size of the points above at which it does: an integrable pole of the likelihood has no top
MAX_WAITS = 20  # batches without enough points above a plateau after which a ladder ends
MIN_YIELD = 0.05  # share of a level's draws above its contour below which levels beyond the posterior are given up


def climb(key: Array, state: State) -> tuple[State, StepInfo]:
    """Raise the contour, train on the points above it, draw; or leave the ladder at its end."""
    if _looks_ahead(state):
        state = look_ahead(key, state, *outlook(state))
        return state, describe(Phase.LADDER, state)
    if unexplained(state):
        state = chase(key, state)
        return state, describe(Phase.LADDER, state)
    if is_conflict(state):
        state = surround(key, state)
        return state, describe(Phase.LADDER, state)
    settings, points = state.settings, state.points
    num_dims = state.problem.prior.num_dims
    contour = next_contour(points, state.contours[-1], compression=settings.compression, min_ess=_min_ess(state))
    above = points.log_likelihood >= contour.log_likelihood
    few = np.sum(above) <= 2 * num_dims
    if (few and state.num_waits < MAX_WAITS) or (contour.ess < 0.25 * _min_ess(state) and state.num_waits < 2):
        return _wait(key, state)
    potential, share = highest_share(points, above), evidence_share(points, contour.log_likelihood)
    if few or contour.log_mass > HARDLY or _is_top(state, points.select(above), potential):
        # On a plateau at the top nothing is higher than what was seen.
        unseen = share_of_excess(potential - share)
        return replace(state, phase=Phase.SCOUTING, unseen=unseen), describe(Phase.LADDER, state)
    is_beyond = state.num_given == 0 or evidence_share(points, state.contours[-1]) < 0.5
    # The neck of a funnel goes on for ever: of 79 000 calls for 12 group means, their mean and spread 35 000 led there.
    is_steep = share < RARE and np.ptp(points.log_likelihood[above]) > STEEP * num_dims
    if _has_posterior(state) and is_beyond and (state.level_yield < MIN_YIELD or is_steep):
        # A shell gets thinner towards its top: the posterior rounds are better at it than more levels.
        return replace(state, phase=Phase.SCOUTING), describe(Phase.LADDER, state)
    chosen = points.select(above)
    key_fit, key_draw = jax.random.split(key)
    trained = fit_cheap(key_fit, state, chosen.x, truncate(chosen.log_prior_weights))
    state = replace(state, contours=(*state.contours, contour.log_likelihood), num_waits=0).add_trained(trained)
    num_before = len(points.x)
    state = draw(key_draw, state, allocate(state, level_size(state)), np.ones(num_before, bool))
    level_yield = float(np.mean(state.points.log_likelihood[num_before:] >= contour.log_likelihood))
    return replace(state, level_yield=level_yield), describe(Phase.LADDER, state)


def _looks_ahead(state: State) -> bool:
    """Whether to climb before the first level: a warm start may have the posterior."""
    return not (state.has_looked_ahead or state.num_given)


def outlook(state: State) -> tuple[int, int]:
    """Draws and calls of climbs before the ladder; fewer where kernels have few levels, and thus less to save."""
    num_draws, num_calls = level_size(state), batch_size(state)
    return (num_draws // 2, num_calls // 3) if has_kernels(state) else (num_draws, num_calls)


def largest_level(state: State) -> int:
    """Likelihood calls that the next level will not exceed."""
    if unexplained(state):
        return largest_search(state)
    if is_conflict(state):
        return num_copies(state)
    if _looks_ahead(state):
        num_draws, num_calls = outlook(state)
        return num_draws + first_climb(state, num_calls)
    return level_size(state)


def _is_top(state: State, above: Points, potential: float) -> bool:
    """Whether hardly any evidence can lie above a contour, and nothing much higher or smaller within it."""
    top = TOP if has_kernels(state) else FINE_TOP * state.problem.prior.num_dims
    is_flat = np.ptp(above.log_likelihood) < top or potential < NEGLIGIBLE
    is_point = np.min(np.ptp(above.x, axis=0)) < RESOLUTION
    return bool((is_flat and potential < MIN_ABOVE) or is_point)


def _wait(key: Array, state: State) -> tuple[State, StepInfo]:
    """Draw once more from the newest component: too few effective points lie above the contour."""
    state = replace(state, num_waits=state.num_waits + 1)
    state = draw(key, state, allocate(state, level_size(state)), np.ones(len(state.points.x), bool))
    return state, describe(Phase.LADDER, state)


def level_size(state: State) -> int:
    """Draws of one level; a third or half of them where levels only look for a spike."""
    num_live = 600 if has_kernels(state) else 200 + 20 * max(10, state.problem.prior.num_dims)
    size = state.settings.num_live or num_live
    return size // (3 if has_kernels(state) else 2) if _has_posterior(state) else size


def _min_ess(state: State) -> float:
    """Effective number of points to train a level on.

    Kernels want a third of a level's draws. A Gaussian makes do with a fifth, eight a dimension in ten and five in 32,
    of which its shrinkage leaves a usable covariance, and beyond the posterior with a quarter of that.
    """
    if has_kernels(state):
        return level_size(state) / 3
    return level_size(state) / (10 if _has_posterior(state) else 5)


def _has_posterior(state: State) -> bool:
    """Whether points enough for the posterior rounds have been drawn."""
    return effective_sample_size(state.points.log_posterior_weights) > enough(state.problem.prior.num_dims)
