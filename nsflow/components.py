"""Components of the mixture: how they are trained, and how a batch is shared among them."""

import jax
import numpy as np
from jaxtyping import Array, Float

from nsflow import flow, surrogate
from nsflow.flow import FlowInfo
from nsflow.gaussian import Gaussian
from nsflow.kernels import Kernels
from nsflow.points import evidence_share, truncate
from nsflow.proposal import Proposal
from nsflow.state import PRIOR, Phase, State
from nsflow.thinning import Thinned, acceptance, efficiency

KERNELS_SUFFICE = 0.7  # efficiency of thinned kernels, as the surrogate sees it, beyond which no flow is trained
GAUSSIAN_SUFFICES = 0.9  # the same of a thinned Gaussian


def has_kernels(state: State) -> bool:
    """Whether the dimensions are few enough for kernels."""
    return state.problem.prior.num_dims <= state.settings.kernel_dims


def fit_cheap(key: Array, state: State, x: Float[np.ndarray, "n d"], log_weights: Float[np.ndarray, " n"]) -> Proposal:
    """Kernels or, in many dimensions, one Gaussian: they cost no training."""
    return Kernels.fit(key, x, log_weights) if has_kernels(state) else Gaussian.fit(x, log_weights)


def train_level(
    key: Array, state: State, x: Float[np.ndarray, "n d"], log_weights: Float[np.ndarray, " n"]
) -> tuple[list[Proposal], FlowInfo | None]:
    """Fit kernels or a Gaussian; and a flow once these have wasted most draws of a level."""
    key_cheap, key_flow = jax.random.split(key)
    log_weights = truncate(log_weights)
    if not state.needs_networks:
        return [fit_cheap(key_cheap, state, x, log_weights)], None
    new, info = flow.fit(key_flow, x, log_weights, training=state.settings.ladder)
    return [*([fit_cheap(key_cheap, state, x, log_weights)] if has_kernels(state) else []), new], info


def train_posterior(
    key: Array, state: State, x: Float[np.ndarray, "n d"], log_weights: Float[np.ndarray, " n"]
) -> tuple[list[Proposal], FlowInfo | None]:
    """Fit kernels or a Gaussian, thinned by a surrogate of the likelihood; and a flow unless that is enough."""
    key_cheap, key_flow, key_thin, key_thin_flow = jax.random.split(key, 4)
    log_weights = truncate(log_weights)
    cheap = thin(key_thin, state, [fit_cheap(key_cheap, state, x, log_weights)])
    if efficiency(cheap[0]) > (KERNELS_SUFFICE if has_kernels(state) else GAUSSIAN_SUFFICES):
        return cheap, None
    new, info = flow.fit(key_flow, x, log_weights, training=state.settings.posterior)
    return [*(cheap if has_kernels(state) else []), *thin(key_thin_flow, state, [new])], info


def thin(key: Array, state: State, proposals: list[Proposal]) -> list[Proposal]:
    """Let a surrogate of the likelihood, regressed on all points, decide which draws are worth a call."""
    key_fit, *keys = jax.random.split(key, 1 + len(proposals))
    points = state.points.select(state.points.log_likelihood > -np.inf)
    fitted = surrogate.fit(key_fit, points.x, points.log_likelihood, truncate(points.log_posterior_weights))
    return [
        Thinned.fit(k, q.proposal if isinstance(q, Thinned) else q, fitted, state.problem.prior)
        for k, q in zip(keys, proposals, strict=True)
    ]


def num_candidates(state: State, calls: dict[int, int]) -> dict[int, int]:
    """Draws of each component that lead to so many likelihood calls."""
    return {k: round(n / acceptance(state.components[k])) for k, n in calls.items()}


def broad_level(state: State) -> int:
    """Highest level of the ladder that leaves out less than a thousandth of the evidence; the prior if none does."""
    levels = range(len(state.contours) - 1, 0, -1)
    return next((k for k in levels if evidence_share(state.points, state.contours[k]) > 0.999), PRIOR)


def allocate(state: State, size: int) -> dict[int, int]:
    """Share a batch between the prior and the newest components, most of it to the last of them.

    Posterior rounds draw from a broad level and from the modes that scouting found as well.
    """
    *others, last = state.newest
    few = round(state.settings.prior_share * size)
    wide = (PRIOR, broad_level(state), *state.modes) if state.phase is Phase.POSTERIOR else (PRIOR,)
    shares = dict.fromkeys(wide, few) | dict.fromkeys(others, round(0.4 * size))
    shares[last] = shares.get(last, 0) + size - sum(shares.values())
    return shares
