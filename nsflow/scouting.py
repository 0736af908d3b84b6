"""Second phase: look among draws from the prior for modes that the ladder has lost."""

from dataclasses import replace

import numpy as np
from jaxtyping import Array

from nsflow.kernels import Kernels
from nsflow.modes import Mode, Target, ascend, isolation, local_maxima, measure
from nsflow.state import PRIOR, Phase, State, StepInfo, describe, draw, log_mixture

NUM_CLIMBERS = 5  # ascents between two looks at the components, whose densities are cheaper for many points at once
MIN_SHARE = 1e-3  # of the evidence, by Laplace's approximation, that makes a mode worth a component
MIN_COVERAGE = 20.0  # effective points without which a mode counts as lost: of the eggbox's, one with 8 stayed lost


def scout(key: Array, state: State) -> tuple[State, StepInfo]:
    """Climb from draws of the prior: put a component on every new mode, or draw scouts, or go on to the posterior.

    A contour that rises past the basin of a narrow mode leaves behind the few draws that hit it: of four Gaussians in
    5-d, the two narrow ones, 0.3 of the evidence, were lost in every run. Those draws are local maxima among the draws
    from the prior, and the maximum above each is a dozen gradients away. A find makes others likely: the search ends
    when four times the draws that led to the last find have led to no other.
    """
    starts = _starts(state)
    summits, modes, num_calls = _search(state, starts)
    state = replace(
        state,
        num_calls=state.num_calls + num_calls,
        climbed=(*state.climbed, *starts),
        summits=(*state.summits, *summits),
    )
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
    """Largest number of likelihood calls of one step: a search and a batch."""
    return 2 * _batch_size(state)


def _batch_size(state: State) -> int:
    """Calls that one search may spend on ascents, a quarter of them in vain; and draws of one batch."""
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


def _search(state: State, starts: list[int]) -> tuple[list[Mode], list[Mode], int]:
    """Climb from one start after the other; return the new maxima, those that are hardly covered, and the calls."""
    target = Target(state.problem.likelihood, state.problem.prior, max_calls=_batch_size(state))
    logZ = np.logaddexp.reduce(state.points.log_posterior_weights)
    summits: list[Mode] = []
    lost: list[Mode] = []
    calls_at_find = 0
    for i in range(0, len(starts), NUM_CLIMBERS):
        if target.num_calls - calls_at_find > _batch_size(state) // 4:
            break
        new: list[Mode] = []
        for start in starts[i : i + NUM_CLIMBERS]:
            centre, log_density = ascend(target, state.points.x[start])
            if any(_is_within(centre, mode) for mode in (*state.summits, *summits, *new)):
                continue
            mode = measure(target, centre, log_density)
            if target.is_exhausted:  # its values are no longer the likelihood's
                return summits, lost, target.num_calls
            new.append(mode)
        summits += new
        matter = [mode for mode in new if mode.log_evidence > logZ + np.log(MIN_SHARE)]
        found = [mode for mode, n in zip(matter, _coverage(state, matter), strict=True) if n < MIN_COVERAGE]
        if found:
            lost += found
            calls_at_find = target.num_calls
    return summits, lost, target.num_calls


def _coverage(state: State, modes: list[Mode]) -> np.ndarray:
    """Effective points that the draws so far should have in each mode: its evidence over the weight of one on top."""
    if not modes:
        return np.zeros(0)
    centres = np.stack([mode.centre for mode in modes])
    log_prior = np.asarray(state.problem.prior.latent_log_prob(centres))
    log_Q = np.logaddexp(log_mixture(state, centres), np.log(state.points.num_prior) + log_prior)
    return np.exp([mode.log_evidence - (mode.log_density - q) for mode, q in zip(modes, log_Q, strict=True)])


def _is_within(centre: np.ndarray, mode: Mode) -> bool:
    """Whether an ascent ended in a maximum that is known."""
    return bool(np.sum(np.linalg.solve(mode.scale, centre - mode.centre) ** 2) < 1)
