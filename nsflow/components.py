"""Components of the mixture: how they are trained, and how a batch is shared among them."""

import jax
import numpy as np
from jaxtyping import Array, Float

from nsflow import flow, surrogate
from nsflow.flow import FlowInfo
from nsflow.kernels import Kernels
from nsflow.points import evidence_share, truncate
from nsflow.proposal import Proposal
from nsflow.state import PRIOR, Phase, State
from nsflow.thinning import Thinned, acceptance
from nsflow.train import Training


def num_trained(state: State) -> int:
    """Number of components trained together: kernels, where they help, and a flow."""
    return 2 if state.problem.prior.num_dims <= state.settings.kernel_dims else 1


def train(
    key: Array, state: State, x: Float[np.ndarray, "n d"], log_weights: Float[np.ndarray, " n"], training: Training
) -> tuple[list[Proposal], FlowInfo]:
    """Fit kernels, in few dimensions, and a flow."""
    key_kernels, key_flow = jax.random.split(key)
    log_weights = truncate(log_weights)
    new, info = flow.fit(key_flow, x, log_weights, training=training)
    kernels = [Kernels.fit(key_kernels, x, log_weights)] if num_trained(state) == 2 else []
    return [*kernels, new], info


def thin(key: Array, state: State, trained: list[Proposal]) -> list[Proposal]:
    """Let a surrogate of the likelihood decide which draws are worth a call."""
    key_fit, *keys = jax.random.split(key, 1 + len(trained))
    points = state.points.select(state.points.log_likelihood > -np.inf)
    fitted = surrogate.fit(key_fit, points.x, points.log_likelihood, truncate(points.log_posterior_weights))
    prior = state.problem.prior
    return [Thinned.fit(k, proposal, fitted, prior) for k, proposal in zip(keys, trained, strict=True)]


def num_candidates(state: State, calls: dict[int, int]) -> dict[int, int]:
    """Draws of each component that lead to so many likelihood calls."""
    return {k: round(n / acceptance(state.components[k])) for k, n in calls.items()}


def broad_level(state: State) -> int:
    """Highest level of the ladder that leaves out less than a thousandth of the evidence; the prior if none does."""
    levels = range(len(state.contours) - 1, 0, -1)
    return next((k for k in levels if evidence_share(state.points, state.contours[k]) > 0.999), PRIOR)


def allocate(state: State, size: int, num_newest: int) -> dict[int, int]:
    """Share a batch between the prior and the newest components, most of it to the flow at the end.

    Posterior rounds draw from a broad level and from the modes that scouting found as well.
    """
    last = len(state.components) - 1
    few = round(state.settings.prior_share * size)
    wide = (PRIOR, broad_level(state), *state.modes) if state.phase is Phase.POSTERIOR else (PRIOR,)
    shares = dict.fromkeys(wide, few)
    shares |= dict.fromkeys(range(last + 1 - num_newest, last), round(0.4 * size))
    shares[last] = shares.get(last, 0) + size - sum(shares.values())
    return shares
