"""Ridges: where the posterior goes on beyond the outermost draws, too narrow for any proposal to meet."""

from dataclasses import replace
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Float

from nsflow.densities.gaussian import Gaussian, lower_root
from nsflow.densities.kernels import Kernels
from nsflow.importance.weights import temper, truncate
from nsflow.modes.modes import Function, Target, ascend, measure
from nsflow.nested.points import Points
from nsflow.nested.state import State, draw_mode
from nsflow.proposals.meta_proposal import MetaProposal

BEYOND = 0.005  # of the evidence along an axis beyond which a ridge is followed
STEP = 0.5  # deviations of the posterior between two points of a ridge
MAX_STEPS = 8
REACH = 0.1  # deviations of the first step of an ascent
TOLERANCE = 1e-3  # gain of a step of an ascent with which it ends, over the height gained: a tenth of a nat is enough
RARE = 4.0  # nats of a weight over the average, from which draws there are too few
RISE = 1.0  # nats a step of the weight with which a ridge is followed to where they are
MIN_SHARE = 1e-3  # of the evidence that makes a ridge worth a component
BUDGET = 0.05  # calls of a search over all so far
GRADIENTS = 20  # that an axis takes where nothing is found
MAX_SEARCHES = 3
DRAWS = 20  # around each place and for each dimension


class Axes(NamedTuple):
    """Principal axes of the posterior, in its deviations along each."""

    centre: Float[np.ndarray, " d"]
    scale: Float[np.ndarray, "d d"]  # its columns are the axes, the longest first
    logZ: float  # evidence, nats

    def place(self, y: Float[np.ndarray, "*n d"]) -> Float[np.ndarray, "*n d"]:
        """Latent points of coordinates along the axes."""
        return self.centre + y @ self.scale.T


class Front(NamedTuple):
    """Outermost point of a ridge so far."""

    axis: int
    y: Float[np.ndarray, " d"]  # coordinates along the principal axes
    step: Float[np.ndarray, " d"]  # to where the next point is looked for; its sign along the axis tells the way
    log_density: float  # of the posterior, nats
    log_weight: float  # of a draw there over the average, nats

    @property
    def others(self) -> np.ndarray:
        """Which coordinates are free."""
        return np.arange(len(self.y)) != self.axis


class Ridges(NamedTuple):
    """Places on ridges that hardly any draw meets."""

    centres: Float[np.ndarray, "n d"]
    scales: Float[np.ndarray, "n d d"]
    share: float  # of the evidence, on the ridge that has the most


def follow(key: Array, state: State, proposal: MetaProposal) -> tuple[State, bool]:
    """Search for ridges that a proposal misses, put kernels on them, and draw from these.

    A proposal that has lost the end of a ridge draws around it, never on it, and no weight tells: rosenbrock-10 came
    out 0.02 to 0.04 low with a k-hat of 0.5, for the end of its ridge had a chance of exp(-40).

    Args:
        key: JAX random key.
        state: A run after a posterior round.
        proposal: What that round drew from.

    Returns:
        The run, and whether there are such ridges: then it has one component more among its modes.
    """
    problem, searches = state.problem, state.num_searches + 1
    if problem.prior.num_dims == 1:  # no ridge, but an interval that the prior's tail covers
        return state, False
    max_calls = largest_search(state)
    target = Target(problem.likelihood, problem.prior, max_calls=max_calls)
    found = find(target, state.points.select(state.points.matters), proposal)
    state = replace(state, num_calls=state.num_calls + target.num_calls, num_searches=searches, beyond=found.share)
    if found.share < MIN_SHARE or searches > MAX_SEARCHES:
        return state, False
    num_draws = min(DRAWS * found.centres.size, max_calls)
    drawn = draw_mode(key, state, Kernels(found.centres, found.scales, tails=0.0), num_draws)
    met = _share_met(drawn, len(state.points.x), proposal)
    if met < MIN_SHARE:
        return replace(drawn, beyond=min(found.share, met)), False
    return replace(drawn, num_outdated=len(state.rounds)), True


def _share_met(state: State, num_before: int, proposal: MetaProposal) -> float:
    """Share of the evidence that the newest points show to lie where hardly any draw of a proposal is made.

    Laplace's approximation is none where a likelihood has kinks: along every axis of ten exponentials |x| it saw ridges
    with 0.4 to 0.7 of the evidence, and draws there 0.0002. Of the ridges of rosenbrock-10 draws met 0.24 and 0.005.
    """
    logZ = np.logaddexp.reduce(state.points.log_posterior_weights)
    new = state.points.select(np.arange(len(state.points.x)) >= num_before)
    is_rare = new.log_likelihood + new.log_prior - proposal.log_prob(new.x) > logZ + RARE
    return float(np.sum(np.exp(new.log_posterior_weights[is_rare] - logZ)))


def largest_search(state: State) -> int:
    """Likelihood calls that neither a search nor the draws on what it finds will exceed."""
    return max(500, round(BUDGET * state.num_calls))


def find(target: Target, points: Points, proposal: MetaProposal) -> Ridges:
    r"""Follow the posterior outwards along each of its principal axes, and look how well a proposal covers it there.

    At steps along one axis the others are free: the maximum over them is the profile of :math:`f = L \pi`, and with the
    covariance :math:`\Sigma` across a ridge at such a maximum the evidence of a step of length s on it is

    .. math:: Z_s = s\, f \sqrt{\det 2 \pi \Sigma}.

    Args:
        target: Value and gradient of f; it counts calls.
        points: Points with posterior weights.
        proposal: The proposal.

    Returns:
        The places where a draw of the proposal would weigh 55 times the average.
    """
    log_weights = truncate(points.log_posterior_weights)
    axes = _principal_axes(points.x, log_weights)
    num_axes = int(np.clip(target.max_calls // (GRADIENTS * target.price), 1, len(axes.centre)))
    fronts = _fronts(axes, points, np.exp(log_weights - axes.logZ), num_axes)
    places: list[tuple[np.ndarray, np.ndarray]] = []
    share: dict[tuple[int, bool], float] = {}
    for i in range(1 + MAX_STEPS):
        advanced = [_advance(target, axes, front, is_first=i == 0) for front in fronts]
        advanced = [front for front in advanced if front.log_density > -np.inf]
        if not advanced or target.is_exhausted:  # its values are no longer the likelihood's
            break
        fronts = []
        log_Q = proposal.log_prob(axes.place(np.stack([front.y for front in advanced])))
        for front, log_q in zip(advanced, log_Q, strict=True):
            log_weight = front.log_density - log_q
            is_going = i == 0 or log_weight > front.log_weight + RISE
            if log_weight > RARE:
                scale, log_share = _across(target, axes, front)
                if target.is_exhausted:
                    break
                places.append((axes.place(front.y), scale))
                ridge = front.axis, bool(front.step[front.axis] > 0)
                share[ridge] = share.get(ridge, 0.0) + float(np.exp(min(log_share, 0.0)))
                is_going = log_share > np.log(MIN_SHARE / MAX_STEPS)
            if is_going:
                fronts.append(front._replace(log_weight=float(log_weight)))
    num_dims = points.x.shape[1]
    return Ridges(
        np.reshape([centre for centre, _ in places], (-1, num_dims)),
        np.reshape([scale for _, scale in places], (-1, num_dims, num_dims)),
        max(share.values(), default=0.0),
    )


def _principal_axes(x: np.ndarray, log_weights: np.ndarray) -> Axes:
    # Where one point holds all of the evidence a covariance would be zero.
    gaussian = Gaussian.fit(x, temper(log_weights, 2.0 * x.shape[1]))
    axes, deviations, _ = np.linalg.svd(gaussian.scale)
    return Axes(gaussian.mean, axes * deviations, float(np.logaddexp.reduce(log_weights)))


def _fronts(axes: Axes, points: Points, weights: np.ndarray, num_axes: int) -> list[Front]:
    """Start in both directions of the longest axes from the highest of the outermost points."""
    log_density = points.log_likelihood + points.log_prior
    fronts = []
    for i, column in enumerate(np.linalg.solve(axes.scale, (points.x - axes.centre).T)[:num_axes]):
        for sign in (1.0, -1.0):
            outwards = np.argsort(-sign * column)
            outermost = outwards[: 1 + np.searchsorted(np.cumsum(weights[outwards]), BEYOND)]
            y = np.linalg.solve(axes.scale, points.x[outermost[np.argmax(log_density[outermost])]] - axes.centre)
            fronts.append(Front(i, y, sign * STEP * np.eye(len(y))[i], -np.inf, np.inf))
    return fronts


def _slice(target: Target, axes: Axes, front: Front) -> Function:
    """Density of the posterior, nats, as a function of the coordinates but one."""

    def function(others: np.ndarray) -> tuple[float, np.ndarray]:
        y = front.y.copy()
        y[front.others] = others
        value, gradient = target(axes.place(y))
        return value - axes.logZ, (axes.scale.T @ gradient)[front.others]

    return function


def _advance(target: Target, axes: Axes, front: Front, *, is_first: bool) -> Front:
    """Make a step, none at first, and climb to the maximum over the other coordinates."""
    start = front if is_first else front._replace(y=front.y + front.step)
    others, log_density = ascend(_slice(target, axes, start), start.y[start.others], REACH, TOLERANCE)
    y = start.y.copy()
    y[start.others] = others
    return front._replace(y=y, step=front.step if is_first else y - front.y, log_density=log_density)


def _across(target: Target, axes: Axes, front: Front) -> tuple[Float[np.ndarray, "d d"], float]:
    """Scale of a kernel as wide as the ridge and as long as a step, and the log of a step's share of the evidence."""
    across = measure(_slice(target, axes, front), front.y[front.others], front.log_density)
    root = np.zeros((len(front.y), len(front.y)))
    root[np.ix_(front.others, np.arange(len(front.y) - 1))] = across.scale
    root[:, -1] = front.step
    log_volume = np.linalg.slogdet(axes.scale)[1]
    return lower_root(axes.scale @ root), across.log_evidence + np.log(STEP) + log_volume
