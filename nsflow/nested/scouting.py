"""Climbs from draws of the prior: to where the ladder leads, and to modes that it has lost, the second phase."""

from collections.abc import Iterable
from dataclasses import replace

import jax
import numpy as np
from jaxtyping import Array
from scipy import special
from scipy.spatial import KDTree

from nsflow.densities.gaussian import Gaussian
from nsflow.densities.kernels import Kernels
from nsflow.densities.mixture import Mixture
from nsflow.densities.wide import Wide
from nsflow.importance.weights import effective_sample_size
from nsflow.modes.modes import (
    HIGHER,
    Mode,
    Target,
    basins,
    highest_mode,
    isolation,
    share_of_evidence,
)
from nsflow.nested.components import has_kernels
from nsflow.nested.mode_search import MIN_SHARE, PATIENCE, Search, batch_size, log_evidence, search, unmet_share
from nsflow.nested.points import Points
from nsflow.nested.state import PRIOR, Phase, State, StepInfo, describe, draw, draw_mode

LIKE = 0.4  # share of a Gaussian on a maximum that lies where Laplace says, below which it is on a curved ridge
WORTHY = 0.1  # effective samples a draw that Gaussians on all maxima must add, not to be left alone
USUAL = 2.0  # share of the evidence over share of the prior that says nothing about other modes
NEEDED = 60  # values with their gradients for one climb and the widths of its maximum, in the dimensions of kernels
CHEAP = 2  # price of a gradient, in likelihood calls, above which no climb takes the place of draws


def scout(key: Array, state: State) -> tuple[State, StepInfo]:
    """Climb from draws of the prior: put a component on every new mode, or draw scouts, or go on to the posterior.

    A contour that rises past the basin of a narrow mode leaves behind the few draws that hit it: of four Gaussians in
    5-d, the two narrow ones, 0.3 of the evidence, were lost in every run. Those draws are local maxima among the draws
    from the prior, and the maximum above each is a dozen gradients away. A mode that no point covers, or
    that has much more of the evidence than of the prior, makes others likely that no draw has hit yet: the prior is
    then drawn from for long. Where one in 200 draws led to a mode with 0.3 of the evidence, another with 0.1 of it took
    ten thousand. A mode that few of many climbs met has others like it: climbs from any draw then take the place of
    draws. Two frequencies of a time series in 7-d can be swapped, and a climb leads to either order with a chance of
    0.01: twenty thousand draws met one of them in half of the runs.
    """
    if unexplained(state):
        return chase(key, state), describe(Phase.SCOUTING, state)
    starts = _starts(state, state.contours[-1])
    if not starts and (anywhere := _anywhere(state)):
        return explore(key, state, anywhere), describe(Phase.SCOUTING, state)
    found = search(state, starts)
    asked = round(min(_num_scouts(state, found), state.settings.max_scouts))
    state = replace(_book(state, starts, found), num_scouts=max(state.num_scouts, asked))
    num_missing = state.num_scouts - state.points.num_prior - state.num_explored
    if found.lost:
        state = _cover(key, state, found.lost)
    elif num_missing > 0:
        num_draws = min(num_missing, batch_size(state))
        state = draw(key, state, {PRIOR: num_draws}, np.zeros(len(state.points.x), bool))
    elif not unexplained(state) and not _anywhere(state):
        state = replace(state, phase=Phase.POSTERIOR)
    return state, describe(Phase.SCOUTING, state)


def explore(key: Array, state: State, starts: tuple[int, ...]) -> State:
    """Climb from any draws of the prior, and draw around the modes that no point covers.

    Args:
        key: JAX random key.
        state: A run with a mode that few of many climbs met.
        starts: The draws, as indices of points.

    Returns:
        The run, with the calls of the climbs booked in the place of scouts.
    """
    found = search(state, dict.fromkeys(starts, 0.0), is_exploring=True)
    state = replace(_book(state, found.climbed, found), num_explored=state.num_explored + found.num_calls)
    return _cover(key, state, found.lost) if found.lost else state


def _anywhere(state: State) -> tuple[int, ...]:
    """Draws of the prior to climb from wherever they lie, if modes may be unmet and gradients are cheap."""
    price = Target(state.problem.likelihood, state.problem.prior, max_calls=0).price
    if price > CHEAP or state.num_explored >= state.settings.max_scouts or unmet_share(state) == 0:
        return ()
    rest = np.flatnonzero(state.points.is_prior & (state.points.log_likelihood > -np.inf))
    return tuple(rest[~np.isin(rest, state.climbed)][: batch_size(state) // CHEAP].tolist())


def unexplained(state: State) -> tuple[int, ...]:
    """The highest point, if it is higher than every known maximum and has not been climbed from."""
    log_density = state.points.log_likelihood + state.points.log_prior
    top = int(np.argmax(log_density))
    known = max((mode.log_density for mode in state.summits), default=np.inf)
    return (top,) if log_density[top] > known + HIGHER and top not in state.climbed else ()


def chase(key: Array, state: State) -> State:
    """Climb from a point that is higher than every known maximum, and draw around the mode on whose slope it lies.

    Of ladders that met Skilling's spike in 20-d with a draw or two, levels through those took 20 000 calls to its top,
    and one ladder in five waited for more draws there until it gave up, and lost it.

    Args:
        key: JAX random key.
        state: A run with such a point.

    Returns:
        The run, with one component more among its modes if the climb found one.
    """
    start = unexplained(state)
    found = search(state, dict.fromkeys(start, float(state.points.num_prior)))
    num_known = len(state.summits)
    strays = (mode._replace(is_stray=mode.is_settled) for mode in found.modes[num_known:])
    state = _book(state, start, found._replace(modes=(*found.modes[:num_known], *strays)))
    return _cover(key, state, found.lost) if found.lost else state


def _book(state: State, starts: Iterable[int], found: Search) -> State:
    """The run after a search."""
    return replace(
        state,
        num_calls=state.num_calls + found.num_calls,
        climbed=(*state.climbed, *starts),
        summits=found.modes,
    )


def _cover(key: Array, state: State, lost: tuple[Mode, ...]) -> State:
    """Put kernels on lost modes and draw from them."""
    modes = [mode for mode in lost for _ in mode.centre]  # a kernel of each for a tail along each coordinate
    component = Kernels(np.stack([m.centre for m in modes]), np.stack([m.scale for m in modes]))
    return draw_mode(key, state, component, min(len(lost) * _mode_size(state), batch_size(state)))


def look_ahead(key: Array, state: State, num_draws: int, max_calls: int) -> State:
    """Climb from a few draws before the ladder does: Gaussians on their maxima may have the posterior already.

    The levels of the ladder are half as large then, as they are beyond the posterior: gauss-32 took 48 000 calls
    instead of 76 000. The first maximum tells whether to climb to others: on the shells of shells-10 a Gaussian is off,
    and 2000 calls were in vain.

    Args:
        key: JAX random key.
        state: A run with draws of the prior.
        num_draws: Draws of the Gaussians.
        max_calls: Likelihood calls that the climbs will not exceed.

    Returns:
        The run, with the Gaussians among its modes if they propose the posterior.
    """
    key_first, key_all = jax.random.split(key)
    num_first = num_draws // 4
    starts = _starts(state, np.inf)
    first = search(state, dict(list(starts.items())[:1]), max_calls=first_climb(state, max_calls))
    state = replace(state, num_calls=state.num_calls + first.num_calls, has_looked_ahead=True)
    if not first.lost:
        return state
    num_before = len(state.points.x)
    state = _draw_around(key_first, state, first.lost, num_first)
    if _likeness(state, first.lost[0], num_before) < LIKE:
        return state
    return _look_further(key_all, state, starts, first, num_draws - num_first, max(1, max_calls - first.num_calls))


def first_climb(state: State, max_calls: int) -> int:
    """Likelihood calls of the first of these climbs: one that ended before its maximum would be in vain."""
    price = Target(state.problem.likelihood, state.problem.prior, max_calls=0).price
    return max(max_calls, min(NEEDED * price, batch_size(state)))


def _look_further(
    key: Array, state: State, starts: dict[int, float], first: Search, num_draws: int, max_calls: int
) -> State:
    """Climb from the other draws, draw from Gaussians on all maxima, and keep these if they propose the posterior."""
    rest = {start: size for start, size in starts.items() if start not in first.climbed}
    found = search(replace(state, summits=first.modes), rest, max_calls=max_calls)
    ess = effective_sample_size(state.points.log_posterior_weights)
    share = share_of_evidence(found.modes, -np.inf)
    kept = tuple(mode for mode, s in zip(found.modes, share, strict=True) if s > MIN_SHARE)
    state = _draw_around(key, state, kept, num_draws)
    state = replace(state, num_calls=state.num_calls + found.num_calls)
    if effective_sample_size(state.points.log_posterior_weights) < ess + WORTHY * num_draws:
        return state
    # What modes ask for is known only now, with an evidence to which theirs compare.
    asked = _num_scouts(state, found._replace(num_scouts=0.0))
    if has_kernels(state):
        asked = max(asked, _num_rare(state, kept))
    asked = min(asked, state.settings.max_scouts)
    climbed = tuple(starts) if len(kept) == len(found.modes) else ()  # what was left out is looked at again
    index = len(state.components) - 1
    return replace(state, modes=(index,), summits=kept, climbed=climbed, num_scouts=round(asked))


def _draw_around(key: Array, state: State, modes: tuple[Mode, ...], num_draws: int) -> State:
    """Draw from Gaussians on modes before the ladder."""
    gaussians = tuple(Wide(Gaussian(mode.centre, mode.scale)) for mode in modes)
    component = Mixture(gaussians, (1 / len(modes),) * len(modes)) if len(modes) > 1 else gaussians[0]
    index = len(state.components)
    state = replace(state.add(component), num_given=state.num_given + 1)
    return draw(key, state, {index: num_draws}, np.ones(len(state.points.x), bool))


def _likeness(state: State, mode: Mode, num_before: int) -> float:
    r"""Share of a mode's Gaussian that lies where the likelihood is as high as Laplace's approximation has it.

    .. math:: \int \min\Bigl(\frac{L \pi}{Z_k}, N_k\Bigr) dx

    by what was drawn of the wide Gaussian since: 1 in a Gaussian problem, 0.57 to 0.9 on LogGammas, 0 to 0.3 on shells
    and ridges b = 2 a^2. Other modes that a draw hits do not count.
    """
    points = state.points.select(np.arange(len(state.points.x)) >= num_before)
    if len(points.x) == 0:  # a Gaussian too narrow for its own inverse
        return 0.0
    log_laplace = mode.log_evidence + Gaussian(mode.centre, mode.scale).log_prob(points.x)
    log_q = state.components[-1].log_prob(points.x)
    log_target = np.minimum(points.log_likelihood + points.log_prior, log_laplace)
    return float(np.exp(np.logaddexp.reduce(log_target - log_q) - np.logaddexp.reduce(log_laplace - log_q)))


def largest_search(state: State) -> int:
    """Largest number of likelihood calls of one step: a search and a batch."""
    return 2 * batch_size(state)


def _mode_size(state: State) -> int:
    """Draws around one mode: enough to train on."""
    return 50 * max(2, state.problem.prior.num_dims)


def _starts(state: State, contour: float) -> dict[int, float]:
    """Draws from the prior to climb from, the most isolated ones first, each with the number of draws in its basin.

    They are the local maxima below a contour.
    """
    points = state.points
    tops, sizes = np.unique(_maxima(points), return_counts=True)
    level = points.log_likelihood[tops]
    fresh = (level > -np.inf) & (level < contour) & ~np.isin(tops, state.climbed)
    tops, sizes = tops[fresh], sizes[fresh]
    order = np.argsort(-isolation(_even(points.x), points.log_likelihood + points.log_prior, tops), kind="stable")
    return dict(zip(tops[order].tolist(), sizes[order].astype(float).tolist(), strict=True))


def _maxima(points: Points) -> np.ndarray:
    """The local maximum above each draw from the prior, as the index of a point."""
    prior = np.flatnonzero(points.is_prior)
    return prior[basins(_even(points.x[prior]), (points.log_likelihood + points.log_prior)[prior])]


def _even(x: np.ndarray) -> np.ndarray:
    """Latent points where the prior's draws lie evenly, up to its corners."""
    return np.asarray(special.ndtr(x))


def _num_scouts(state: State, found: Search) -> float:
    """Draws from the prior that new modes ask for: the more evidence one has beside its share of the prior, the more.

    A ladder that kept a mode by luck says no more of the others than one that missed it: 0.3 of mixture-5 was lost so.
    Two counts of the draws in its share, of which the larger holds: those whose own maxima are nearest to it, and those
    where its Gaussian is the highest. Of loggamma-10 the first is coarse, with ten maxima in all, and of an eggbox the
    second, where the prior cuts modes in half; either alone would ask for 4000 draws too many.
    """
    num_known, modes = len(state.summits), found.modes
    if len(modes) == num_known:
        return 0.0
    x = state.points.x[state.points.is_prior]
    summits = KDTree(_even(np.stack([mode.centre for mode in modes])))
    nearest = np.asarray(summits.query(_even(state.points.x[_maxima(state.points)]))[1])
    hits = np.maximum(*(np.bincount(mode, minlength=len(modes)) for mode in (nearest, highest_mode(modes, x))))
    share = share_of_evidence(modes, log_evidence(state))
    excess = share * len(x) / np.maximum(hits, 1)
    is_asking = (np.arange(len(modes)) >= num_known) & (share > MIN_SHARE) & _is_rare(share * len(x), hits)
    return float(np.max(PATIENCE * excess, initial=found.num_scouts, where=is_asking))


def _num_rare(state: State, modes: tuple[Mode, ...]) -> float:
    """Draws that modes ask for whose share of the evidence is more than that of the draws which led to them.

    Without, mixture-5 lost its smallest mode in two runs of eight. Beyond six dimensions basins among draws are too
    coarse for it: loggamma-10 would have asked for up to 7000 draws.
    """
    draws = np.array([mode.basin for mode in modes])
    expected = share_of_evidence(modes, log_evidence(state)) * np.sum(draws)
    return float(np.max(PATIENCE * expected / draws, initial=0.0, where=_is_rare(expected, draws)))


def _is_rare(expected: np.ndarray, hits: np.ndarray) -> np.ndarray:
    """Whether a mode has been hit by chance less often than it should, by two deviations and a factor.

    The corners of an eggbox have 0.8 % of the evidence each, and one of them 3 hits of 1000 draws in every second run.

    References:
        Gehrels (1986), *Confidence Limits for Small Numbers of Events in Astrophysical Data*, Eq. 10.
    """
    return expected > USUAL * (hits + 2 * np.sqrt(hits + 0.75) + 1.75)
