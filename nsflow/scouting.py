"""Second phase: look among draws from the prior for modes that the ladder has lost."""

from dataclasses import replace

import numpy as np
from jaxtyping import Array

from nsflow.kernels import Kernels
from nsflow.modes import Mode, Target, ascend, isolation, local_maxima, measure
from nsflow.state import PRIOR, Phase, State, StepInfo, describe, draw, log_mixture

MIN_SHARE = 1e-3  # of the evidence, by Laplace's approximation, that makes a mode worth a component


def scout(key: Array, state: State) -> tuple[State, StepInfo]:
    """Climb from draws of the prior: put a component on every new mode, or draw scouts, or go on to the posterior.

    A contour that rises past the basin of a narrow mode leaves behind the few draws that hit it: of four Gaussians in
    5-d, the two narrow ones, 0.3 of the evidence, were lost in every run. Those draws are local maxima among the draws
    from the prior, and the maximum above each is a dozen gradients away. A find makes others likely: the search ends
    when four times the draws that led to the last find have led to no other.
    """
    starts = _starts(state)
    modes, num_calls = _search(state, starts)
    state = replace(state, num_calls=state.num_calls + num_calls, climbed=(*state.climbed, *starts))
    everywhere = np.ones(len(state.points.x), bool)
    if modes:
        component = Kernels(np.stack([mode.centre for mode in modes]), np.stack([mode.scale for mode in modes]))
        num_scouts = min(4 * state.points.num_prior, state.settings.max_scouts)
        index = len(state.components)
        state = replace(state.add(component), modes=(*state.modes, index), num_scouts=num_scouts)
        state = draw(key, state, {index: min(len(modes) * _mode_size(state), _batch_size(state))}, everywhere)
    elif state.points.num_prior < state.num_scouts:
        num_draws = min(state.num_scouts - state.points.num_prior, _batch_size(state))
        state = draw(key, state, {PRIOR: num_draws}, ~everywhere)
    else:
        state = replace(state, phase=Phase.POSTERIOR)
    return state, describe(Phase.SCOUTING, state)


def largest_search(state: State) -> int:
    """Largest number of likelihood calls of one step."""
    return _max_calls(state) + _batch_size(state)


def _max_calls(state: State) -> int:
    """Calls that one search may spend on ascents; a quarter of them in vain."""
    return max(1000, round(0.2 * state.settings.ess))


def _batch_size(state: State) -> int:
    return max(1000, round(0.2 * state.settings.ess))


def _mode_size(state: State) -> int:
    """Draws around one mode: enough to train on."""
    return 50 * max(5, state.problem.prior.num_dims)


def _starts(state: State) -> list[int]:
    """Draws from the prior to climb from: local maxima below the contour, the most isolated ones first."""
    points = state.points
    log_density = points.log_likelihood + points.log_prior
    prior = np.flatnonzero(points.is_prior)
    maxima = prior[local_maxima(points.x[prior], log_density[prior])]
    maxima = np.setdiff1d(maxima[points.log_likelihood[maxima] < state.contours[-1]], state.climbed)
    return maxima[np.argsort(-isolation(points.x, log_density, maxima), kind="stable")].tolist()


def _search(state: State, starts: list[int]) -> tuple[list[Mode], int]:
    """Climb from one start after the other; return the modes that no component covers, and the calls made."""
    target = Target(state.problem.likelihood, state.problem.prior, max_calls=_max_calls(state))
    logZ = np.logaddexp.reduce(state.points.log_posterior_weights)
    modes: list[Mode] = []
    calls_at_find = 0
    for start in starts:
        if target.is_exhausted or target.num_calls - calls_at_find > _max_calls(state) // 4:
            break
        centre, log_density = ascend(target, state.points.x[start])
        if _is_covered(state, centre, log_density, logZ):
            continue
        mode = measure(target, centre, log_density)
        if mode.log_evidence > logZ + np.log(MIN_SHARE) and not any(_is_within(mode, other) for other in modes):
            modes.append(mode)
            calls_at_find = target.num_calls
    return modes, target.num_calls


def _is_covered(state: State, centre: np.ndarray, log_density: float, logZ: float) -> bool:
    """Whether a draw on top of the mode would weigh less than all points so far together."""
    log_prior = np.asarray(state.problem.prior.latent_log_prob(centre[None]))
    log_Q = np.logaddexp(log_mixture(state, centre[None]), np.log(state.points.num_prior) + log_prior)[0]
    return bool(log_density - log_Q < logZ)


def _is_within(mode: Mode, other: Mode) -> bool:
    """Whether two ascents ended in one maximum."""
    return bool(np.sum(np.linalg.solve(other.scale, mode.centre - other.centre) ** 2) < 1)
