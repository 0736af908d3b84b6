"""First phase: a ladder of contours, from the prior to where most of the evidence lies."""

from dataclasses import replace

import jax
import numpy as np
from jaxtyping import Array, Bool

from nsflow.components import allocate, has_kernels, train_level
from nsflow.evidence import effective_sample_size
from nsflow.points import evidence_share, next_contour
from nsflow.state import Phase, State, StepInfo, describe, draw

MIN_YIELD = 0.25  # share of a level's draws above its contour; where kernels or a Gaussian have less, flows are trained


def climb(key: Array, state: State) -> tuple[State, StepInfo]:
    """Raise the contour, train on the points above it, draw; or leave the ladder at its end."""
    settings, points = state.settings, state.points
    num_dims = state.problem.prior.num_dims
    contour = next_contour(points, state.contours[-1], compression=settings.compression, min_ess=_min_ess(state))
    above = points.log_likelihood >= contour.log_likelihood
    if np.sum(above) <= 2 * num_dims or (contour.ess < 0.25 * _min_ess(state) and state.num_waits < 2):
        return _wait(key, state, above)
    enough = effective_sample_size(points.log_posterior_weights) > max(100, 12 * num_dims)
    if enough or evidence_share(points, contour.log_likelihood) < 0.5 or contour.log_mass > -0.1:
        return replace(state, phase=Phase.SCOUTING), describe(Phase.LADDER, state)
    chosen = points.select(above)
    key_fit, key_draw = jax.random.split(key)
    trained, info = train_level(key_fit, state, chosen.x, chosen.log_prior_weights)
    state = replace(
        state,
        contours=state.contours + (contour.log_likelihood,) * len(trained),
        # The level before adds about a fifth to the density of new points; those before it less than a twentieth.
        overlap=max(1, min(state.newest)),
        num_waits=0,
    ).add_trained(*trained)
    num_before = len(points.x)
    state = draw(key_draw, state, allocate(state, level_size(state)), above)
    above_now = state.points.log_likelihood[num_before:] >= contour.log_likelihood
    state = replace(state, needs_networks=state.needs_networks or bool(np.mean(above_now) < MIN_YIELD))
    return state, describe(Phase.LADDER, state, info)


def _wait(key: Array, state: State, active: Bool[np.ndarray, " n"]) -> tuple[State, StepInfo]:
    """Draw once more from the newest component: too few effective points lie above the contour."""
    state = replace(state, num_waits=state.num_waits + 1)
    state = draw(key, state, allocate(state, level_size(state)), active)
    return state, describe(Phase.LADDER, state)


def level_size(state: State) -> int:
    """Draws of one level."""
    default = 600 if has_kernels(state) else 50 * max(10, state.problem.prior.num_dims)
    return state.settings.num_live or default


def _min_ess(state: State) -> float:
    """Effective number of points to train a level on.

    Kernels want many; a flow that starts from a Gaussian wants a dozen a dimension, which leaves a quarter of its
    draws above a contour that holds a seventh of the prior mass.
    """
    return 200.0 if has_kernels(state) else 12.0 * max(10, state.problem.prior.num_dims)
