"""Components of the mixture: how they are trained, and how a batch is shared among them."""

from collections.abc import Callable
from functools import partial

import jax
import numpy as np
from jaxtyping import Array, Float

from nsflow.densities.density import Proposal
from nsflow.densities.gaussian import Gaussian
from nsflow.densities.kernels import Kernels
from nsflow.densities.mixture import Mixture
from nsflow.densities.triangular import Bent, TriangularMap
from nsflow.densities.wide import Wide
from nsflow.flow import flow
from nsflow.flow.flow import Flow, FlowInfo
from nsflow.flow.training import Training
from nsflow.importance.weights import temper, truncate
from nsflow.nested.points import evidence_share
from nsflow.nested.state import PRIOR, Phase, State
from nsflow.proposals import surrogate, triangular_fit
from nsflow.proposals.meta_proposal import fewest, optimal_weights
from nsflow.proposals.rejection import MIN_CHANCE, Thinned, acceptance
from nsflow.proposals.surrogate import Surrogate

KERNELS_GAIN = 0.2  # nats of held-out density for which points are straightened; kernels can bend by themselves
GAUSSIAN_GAINS = 0.5  # the same of a Gaussian
MOST = 0.4  # share of a batch that a component beside the newest flow gets
KERNELS_SUFFICE = 0.7  # efficiency of thinned kernels, as the surrogate sees it, beyond which no flow is trained
GAUSSIAN_SUFFICES = 0.9  # the same of a thinned Gaussian


def has_kernels(state: State) -> bool:
    """Whether the dimensions are few enough for kernels."""
    return state.problem.prior.num_dims <= state.settings.kernel_dims


def fit_cheap(key: Array, state: State, x: Float[np.ndarray, "n d"], log_weights: Float[np.ndarray, " n"]) -> Proposal:
    """Kernels or, in many dimensions, one Gaussian: they cost no training. Of straightened points, where that gains.

    The map is fitted to all points and judged on halves. With one fitted to each half, ladders of bend-12 lost the
    posterior; heavy tails are sometimes straightened for nothing so.

    Of a ridge b = 2 a^2 +- 0.05 in 6-d kernels lost the ends, 0.09 nats, and after 124 000 calls said nothing of it.
    """
    kernels, gaussian = partial(Kernels.fit, key), partial(_fit_gaussian, state)
    fit, enough = (kernels, KERNELS_GAIN) if has_kernels(state) else (gaussian, GAUSSIAN_GAINS)
    straightener = triangular_fit.fit(x, log_weights)
    if straightener.steps:
        bent = partial(_fit_bent, fit, straightener)
        if _held_out(bent, x, log_weights) - _held_out(fit, x, log_weights) > enough:
            return bent(x, log_weights)
    return fit(x, log_weights)


def _fit_bent(
    fit: Callable[..., Proposal], straightener: TriangularMap, x: np.ndarray, log_weights: np.ndarray
) -> Bent:
    return Bent(fit(straightener.straighten(x), log_weights), straightener)


def _fit_gaussian(state: State, x: np.ndarray, log_weights: np.ndarray) -> Wide:
    """One Gaussian whose correlations are shrunk to none or, if that is better, to those of the level before."""
    previous = [gaussian.scale for q in state.components if (gaussian := _gaussian(q)) is not None]
    frames = [np.eye(x.shape[1]), *previous[-1:]]
    fits = [partial(Gaussian.fit, frame=frame) for frame in frames]
    return Wide(max(fits, key=lambda fit: _held_out(fit, x, log_weights))(x, log_weights))


def _gaussian(proposal: Proposal) -> Gaussian | None:
    """The Gaussian of a level that is one."""
    bare = proposal.proposal if isinstance(proposal, Bent) else proposal
    return bare.map if isinstance(bare, Wide) and isinstance(bare.map, Gaussian) else None


def straightener_of(proposal: Proposal) -> TriangularMap | None:
    """The map of a proposal, thinned or not, or of the first part of a mixture that has one."""
    bare = proposal.proposal if isinstance(proposal, Thinned) else proposal
    if isinstance(bare, Mixture):
        return next((found for part in bare.components if (found := straightener_of(part)) is not None), None)
    return bare.map if isinstance(bare, Bent) else None


def _held_out(fit: Callable[..., Proposal], x: np.ndarray, log_weights: np.ndarray) -> float:
    """Mean log-density of each half of the points under what is fitted to the other half, nats."""
    weights = np.exp(log_weights - np.max(log_weights))
    even = np.arange(len(x)) % 2 == 0
    halves = [fit(x[half], log_weights[half]).log_prob(x[~half]) for half in (even, ~even)]
    total = sum(weights[~half] @ log_q for half, log_q in zip((even, ~even), halves, strict=True))
    return float(total / np.sum(weights))


def mix_levels(state: State, newest: Proposal) -> Proposal:
    """Mixture of a new Gaussian and those of all levels: a posterior of many scales has a level for each.

    Neal's funnel in 10-d spans fifty levels, of which one Gaussian or flow covers a few.
    """
    points = state.points.select(state.points.matters)
    gaussians = [newest, *(q for q in state.components if _gaussian(q) is not None)]
    log_q = np.stack([q.log_prob(points.x) for q in gaussians], axis=1)
    log_target = points.log_likelihood + points.log_prior
    log_Q = log_target - truncate(points.log_posterior_weights)
    weights = optimal_weights(log_q, log_target, log_Q, floor=np.zeros(len(gaussians)))
    kept = fewest(log_q, log_target, log_Q, weights)
    return Mixture(
        tuple(q for q, is_kept in zip(gaussians, kept, strict=True) if is_kept),
        tuple((weights[kept] / np.sum(weights[kept])).tolist()),
    )


def train_posterior(
    key: Array, state: State, x: Float[np.ndarray, "n d"], log_weights: Float[np.ndarray, " n"], training: Training
) -> tuple[list[Proposal], FlowInfo | None]:
    """Fit kernels or a Gaussian, thinned by a surrogate of the likelihood; and a flow unless that is enough.

    A proposal that the settings name stands in for all of them.
    """
    key_surrogate, key_cheap, key_flow, key_thin, key_thin_flow = jax.random.split(key, 5)
    log_weights = temper(truncate(log_weights), 2.0 * x.shape[1])
    if state.settings.proposal is not None:
        fitted = fit_surrogate(key_surrogate, state)
        return [thin(key_thin, state, fitted, state.settings.proposal.fit(key_flow, x, log_weights))], None
    cheap = fit_cheap(key_cheap, state, x, log_weights)
    straightener = straightener_of(cheap)
    fitted = fit_surrogate(key_surrogate, state, straightener)
    thinned = thin(key_thin, state, fitted, cheap if _gaussian(cheap) is None else mix_levels(state, cheap))
    if thinned.efficiency > (KERNELS_SUFFICE if has_kernels(state) else GAUSSIAN_SUFFICES):
        return [thinned], None
    straight = straightener.straighten(x) if straightener else x
    new, info = flow.fit(key_flow, straight, log_weights, training=training)
    proposal = Wide(new) if isinstance(new, Flow) else new
    bent = Bent(proposal, straightener) if straightener else proposal
    return [thinned, thin(key_thin_flow, state, fitted, bent)], info


def fit_surrogate(
    key: Array, state: State, straightener: TriangularMap | None = None, training: Training = surrogate.TRAINING
) -> Surrogate:
    """Regress log L on all points so far, straightened or as they are: what held-out points prefer.

    A ridge b = 2 a^2 in 12-d is known to 0.1 nats by the one and 0.7 by the other, rosenbrock-10 to 0.7 and 0.2.
    """
    points = state.points.select(state.points.log_likelihood > -np.inf)
    # Where a ladder got stuck one point may hold all of the evidence, and a covariance would be zero.
    log_weights = temper(truncate(points.log_posterior_weights), 2.0 * points.x.shape[1])
    fit = partial(surrogate.fit, key, points.x, points.log_likelihood, log_weights, training=training)
    if straightener is None:
        return fit()
    return min(fit(), fit(straightener=straightener), key=lambda fitted: fitted.error)


def thin(key: Array, state: State, fitted: Surrogate, proposal: Proposal) -> Thinned:
    """Let a surrogate of the likelihood decide which draws are worth a call."""
    bare = proposal.proposal if isinstance(proposal, Thinned) else proposal
    return Thinned.fit(key, bare, fitted, state.problem.prior, min_chance=max(MIN_CHANCE, fitted.error))


def num_candidates(state: State, calls: dict[int, int]) -> dict[int, int]:
    """Draws of each component that lead to so many likelihood calls."""
    return {k: round(n / acceptance(state.components[k])) for k, n in calls.items()}


def broad_level(state: State) -> int:
    """Highest level of the ladder that leaves out less than a thousandth of the evidence; the prior if none does."""
    levels = range(len(state.contours) - 1, 0, -1)
    level = next((k for k in levels if evidence_share(state.points, state.contours[k]) > 0.999), PRIOR)
    return level + state.num_given if level else PRIOR


def allocate(state: State, size: int, others_share: float = MOST) -> dict[int, int]:
    """Share a batch between the prior and the newest components, most of it to the last of them.

    Posterior rounds draw from a broad level and from the modes that scouting found as well.
    """
    *others, last = state.newest
    wide = (PRIOR, broad_level(state), *state.modes) if state.phase is Phase.POSTERIOR else (PRIOR,)
    few = min(round(state.settings.prior_share * size), size // (2 * len(set(wide))))  # half of it is left in any case
    shares = dict.fromkeys(wide, few) | dict.fromkeys(others, round(others_share * size))
    shares[last] = shares.get(last, 0) + size - sum(shares.values())
    return shares
