"""Mixtures of the prior and the flows: their draw counts, their draws, the mixture density Q."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from nsflow.densities.density import Proposal, log_prob
from nsflow.numerics.storable import storable
from nsflow.prior.prior import Prior


@storable("prior-proposal")
@dataclass(frozen=True)
class PriorProposal:
    """The prior as a component of the mixture: it bounds every weight.

    Args:
        prior: The prior.
    """

    prior: Prior

    def sample_and_log_prob(self, key: Array, num_samples: int) -> tuple[np.ndarray, np.ndarray]:
        """Draw latent points of the prior, with their log-density in nats."""
        x = np.asarray(self.prior.latent_sample(key, num_samples))
        return x, self.log_prob(x)

    def log_prob(self, x: Float[np.ndarray, "n d"]) -> np.ndarray:
        """Log-density of the prior in latent space, in nats."""
        return np.asarray(self.prior.latent_log_prob(x))


@storable("draws")
class Draws(NamedTuple):
    """Stratified draws of a mixture; the draws that their own density disowns are left out."""

    x: Float[np.ndarray, "n d"]
    component: Int[np.ndarray, " n"]  # index of the component that drew the point
    log_Q: Float[np.ndarray, " n"]  # log-density of the mixture, nats
    log_q: Float[np.ndarray, "n j"]  # log-density of each component, nats


@storable("meta-proposal")
@dataclass(frozen=True)
class MetaProposal:
    r"""Mixture :math:`Q = \sum_j \frac{n_j}{N} q_j` from which component j is drawn exactly :math:`n_j` times.

    A draw whose density its own component disowns (the discrete map of a flow folds there) is dropped but still counts
    in :math:`n_j`, and elsewhere such a component has density zero. Then Q is the density of what is kept, and
    importance estimates with 1/N in front stay exact.

    Args:
        components: The proposals q_j.
        num_draws: Draws n_j of each component in one batch; the weights of the mixture are these over their sum, and
            nothing else: booking a draw on another component biased logZ by 5 % in a test.

    References:
        Elvira et al. (2019), *Generalized Multiple Importance Sampling*, Section 4 (deterministic mixture).
    """

    components: tuple[Proposal, ...]
    num_draws: tuple[int, ...]

    @classmethod
    def of(
        cls, components: Sequence[Proposal], indices: Sequence[int], num_draws: Sequence[int] | np.ndarray | None = None
    ) -> "MetaProposal":
        """Mixture of some of the components, in equal parts unless the draws of each are given."""
        return cls(
            tuple(components[k] for k in indices),
            tuple([1] * len(indices) if num_draws is None else (int(n) for n in num_draws)),
        )

    def sample(self, key: Array) -> Draws:
        """Draw one batch.

        Args:
            key: JAX random key.

        Returns:
            The draws with the densities of all components.
        """
        keys = jax.random.split(key, len(self.components))
        draws = [q.sample_and_log_prob(k, n) for q, k, n in zip(self.components, keys, self.num_draws, strict=True)]
        own = [np.asarray(log_q, np.float64) for _, log_q in draws]
        kept = [~np.isnan(log_q) for log_q in own]
        x = np.concatenate([np.asarray(x)[keep] for (x, _), keep in zip(draws, kept, strict=True)])
        component = np.repeat(np.arange(len(draws)), [keep.sum() for keep in kept])
        log_q = np.empty((len(x), len(draws)))
        for j, q in enumerate(self.components):
            log_q[component == j, j] = own[j][kept[j]]
            log_q[component != j, j] = log_prob(q, x[component != j])
        return Draws(x, component, self.mix(log_q), log_q)

    def log_prob_each(self, x: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n j"]:
        """Log-density of each component in nats; -inf where a component disowns the point."""
        return np.stack([log_prob(component, x) for component in self.components], axis=1)

    def log_prob(self, x: Float[np.ndarray, "n d"]) -> Float[np.ndarray, " n"]:
        """Log-density of the mixture in nats."""
        return self.mix(self.log_prob_each(x))

    def mix(self, log_q: Float[np.ndarray, "n j"]) -> Float[np.ndarray, " n"]:
        """Log-density of the mixture from those of its components, in nats."""
        with np.errstate(divide="ignore"):  # a component without draws
            return np.logaddexp.reduce(log_q + np.log(np.asarray(self.num_draws) / sum(self.num_draws)), axis=1)


def optimal_weights(
    log_q: Float[np.ndarray, "n j"],
    log_target: Float[np.ndarray, " n"],
    log_Q: Float[np.ndarray, " n"],
    *,
    floor: Float[np.ndarray, " j"],
    num_iterations: int = 500,
) -> Float[np.ndarray, " j"]:
    r"""Mixture weights that minimise the variance of the evidence.

    Minimises the convex second moment, estimated from draws of another mixture Q,

    .. math::
        \min_{\alpha} \; \sum_i \frac{f_i^2}{Q_i \sum_j \alpha_j q_{ij}}, \qquad
        f = L\pi,\quad \alpha_j \ge \mathrm{floor}_j,\quad \sum_j \alpha_j = 1,

    by the multiplicative update :math:`\alpha_j \propto \alpha_j g_j^{1/2}` with the negative gradient g.

    Args:
        log_q: Log-density of each component at each draw, nats.
        log_target: Log of likelihood times prior at each draw, nats.
        log_Q: Log-density of the mixture that the draws came from, nats.
        floor: Smallest weight of each component. The prior's and a broad level's floor bound the importance weights
            where the training points were too few to show that a flow is too narrow.
        num_iterations: Number of updates.

    Returns:
        The weights, shape ``(j,)``.

    References:
        He & Owen (2014), *Optimal mixture weights in multiple importance sampling*, Section 4 (the objective).
    """
    matters = log_target > -np.inf
    log_q, log_moment = log_q[matters], (2 * log_target - log_Q)[matters]
    largest = np.max(log_q, axis=1)
    q = np.exp(log_q - largest[:, None])
    alpha = np.full(q.shape[1], 1 / q.shape[1])
    for _ in range(num_iterations if np.any(matters) else 0):
        log_ratio = log_moment - largest - 2 * np.log(q @ alpha)
        alpha = alpha * np.sqrt(q.T @ np.exp(log_ratio - np.max(log_ratio, initial=-np.inf)))
        alpha = np.maximum(alpha / np.sum(alpha), 1e-20)  # a component at zero could never return
    return floor + (1 - np.sum(floor)) * alpha


def fewest(
    log_q: Float[np.ndarray, "n j"],
    log_target: Float[np.ndarray, " n"],
    log_Q: Float[np.ndarray, " n"],
    weights: Float[np.ndarray, " j"],
) -> np.ndarray:
    r"""Which components suffice: the heaviest ones whose second moment is within one per cent of all components'.

    To leave out each component of a small weight is wrong where many of them share a region: without the levels of less
    than 0.01, a funnel's neck with 0.04 of its evidence lay where the mixture's density was too low by :math:`e^{17}`.

    Args:
        log_q: Log-density of each component at each draw, nats.
        log_target: Log of likelihood times prior at each draw, nats.
        log_Q: Log-density of the mixture that the draws came from, nats.
        weights: From :func:`optimal_weights`.

    Returns:
        Whether each component is kept, shape ``(j,)``.
    """
    order = np.argsort(-weights)
    with np.errstate(divide="ignore"):
        log_mixture = np.logaddexp.accumulate(log_q[:, order] + np.log(weights[order]), axis=1)
    matters = (log_target > -np.inf) & (log_mixture[:, -1] > -np.inf)
    log_moment = np.logaddexp.reduce((2 * log_target - log_Q)[matters, None] - log_mixture[matters], axis=0)
    num_kept = np.argmax(log_moment <= log_moment[-1] + 0.01) + 1
    is_kept = np.zeros(len(weights), bool)
    is_kept[order[:num_kept]] = True
    return is_kept
