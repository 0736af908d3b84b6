"""Prior and data in conflict: where climbs have found a posterior that hundreds of levels would lead to."""

from dataclasses import replace

import numpy as np
from jaxtyping import Array

from nsflow.densities.density import Proposal
from nsflow.densities.gaussian import Gaussian, lower_root
from nsflow.densities.mixture import Mixture
from nsflow.densities.wide import Wide, widest
from nsflow.importance.weights import effective_sample_size
from nsflow.modes.modes import Mode
from nsflow.nested.mode_search import log_evidence
from nsflow.nested.state import Phase, State, draw

FAR = 10.0  # nats a dimension between prior and posterior: a Gaussian of 1e-5 of the prior's width
DRAWS = 50  # of each copy of the Gaussians on the maxima
AGREED = 0.2  # nats that these may change the evidence by, three times the error of what was drawn before
BROAD = 0.9995  # share of the evidence above the contour that stands for the levels left out


def is_conflict(state: State) -> bool:
    r"""Whether climbs ahead of the ladder have found a posterior so far from the prior that levels to it are a waste.

    The distance is the information :math:`H = \int P \log (P / \pi)\,dx`, of which a level makes up one or two nats.
    Between N(0, 1) and a datum at 40 +- 0.1 there are 786: after 29 000 calls the ladder was still on its way.

    Args:
        state: A run.

    Returns:
        Whether they have.
    """
    num_dims, log_weights = state.problem.prior.num_dims, state.points.log_posterior_weights
    is_ahead = state.has_looked_ahead and len(state.contours) == 1 and state.modes == (state.num_given,)
    if not is_ahead or effective_sample_size(log_weights) < enough(num_dims):
        return False
    weights = np.exp(log_weights - np.max(log_weights))
    log_likelihood = weights[weights > 0] @ state.points.log_likelihood[weights > 0] / np.sum(weights)
    return bool(log_likelihood - log_evidence(state) > FAR * num_dims)


def surround(key: Array, state: State) -> State:
    """Draw from ever wider copies of the Gaussians on the maxima, out to the prior, in the place of the ladder.

    What else lies around the maxima on any scale between theirs and the prior's, such as a slab below a spike, is met
    by the copy of that scale; modes elsewhere are the business of scouting. Where the evidence stays what it was, the
    copies stand for all levels; else the ladder begins, with the copies among its modes.

    Args:
        key: JAX random key.
        state: A run of which `is_conflict` is true.

    Returns:
        The run.
    """
    before = log_evidence(state)
    component, num_draws = _copies(state.summits)
    index = len(state.components)
    drawn = draw(key, state.add_trained(component), {index: num_draws}, np.ones(len(state.points.x), bool))
    ess = effective_sample_size(drawn.points.log_posterior_weights)
    if ess >= enough(state.problem.prior.num_dims) and abs(log_evidence(drawn) - before) < AGREED:
        return replace(drawn, contours=(*state.contours, _broad_contour(drawn)), phase=Phase.SCOUTING)
    modes, num_given = (*state.modes, index), state.num_given + 1
    return replace(drawn, trainings=state.trainings, modes=modes, num_given=num_given)


def num_copies(state: State) -> int:
    """Draws that `surround` makes."""
    return _copies(state.summits)[1]


def enough(num_dims: int) -> int:
    """Effective number of points that the posterior rounds begin with."""
    return max(100, 8 * num_dims)


def _copies(modes: tuple[Mode, ...]) -> tuple[Proposal, int]:
    """Copies of modes whose widths grow in equal ratios to where each reaches the prior, and draws of them all."""
    copies, num_scales = list[Proposal](), 0
    for mode in modes:
        num_dims = len(mode.centre)
        axes, widths, _ = np.linalg.svd(mode.scale)
        reach = np.sqrt(1.0 + mode.centre @ mode.centre / num_dims)
        ratios = reach / widths
        num = int(np.ceil(np.log(np.max(ratios)) / np.log(widest(num_dims))))
        num_scales = max(num_scales, num)
        for k in range(1, num + 1):
            scale = lower_root(axes * (widths * ratios ** (k / num)))
            copies.append(Wide(Gaussian(mode.centre, scale)))
    return Mixture(tuple(copies), (1 / len(copies),) * len(copies)), DRAWS * num_scales


def _broad_contour(state: State) -> float:
    """Highest contour with nearly all of the evidence above it, nats."""
    order = np.argsort(-state.points.log_likelihood, kind="stable")
    log_weights = state.points.log_posterior_weights[order]
    share = np.cumsum(np.exp(log_weights - np.logaddexp.reduce(log_weights)))
    return float(state.points.log_likelihood[order][min(np.searchsorted(share, BROAD), len(order) - 1)])
