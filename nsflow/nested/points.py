r"""Every point of the training phases, its density under all that was drawn, contours and training weights.

The weights here steer training only. They re-use densities that the points themselves trained, which biases an
evidence low (by 0.08 nats at a quoted 0.009 on a 10-d LogGamma), so no headline rests on them.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from nsflow.importance.weights import truncate
from nsflow.numerics.storable import storable


@storable("points")
class Points(NamedTuple):
    """Evaluated latent points."""

    x: Float[np.ndarray, "n d"]
    log_likelihood: Float[np.ndarray, " n"]  # nats
    log_prior: Float[np.ndarray, " n"]  # log-density of the prior in latent space, nats
    log_flows: Float[np.ndarray, " n"]  # log sum_k n_k q_k(x) over the flows drawn from so far, nats
    is_prior: Bool[np.ndarray, " n"]  # whether the prior drew the point
    num_prior: int  # draws from the prior so far

    @property
    def log_prior_weights(self) -> Float[np.ndarray, " n"]:
        r"""Prior volume of each point, :math:`\log \pi / \sum_k n_k q_k` with the prior among the :math:`q_k`."""
        return self.log_prior - np.logaddexp(self.log_flows, np.log(self.num_prior) + self.log_prior)

    @property
    def log_posterior_weights(self) -> Float[np.ndarray, " n"]:
        """Log of likelihood times prior volume; their sum estimates the evidence."""
        return self.log_likelihood + self.log_prior_weights

    @property
    def matters(self) -> Bool[np.ndarray, " n"]:
        """Which points have 1 % of the average posterior weight, or are among the 20 d heaviest.

        These are few of the ladder, and nearly all of the posterior.
        """
        log_weights = self.log_posterior_weights
        heaviest = np.sort(log_weights)[-20 * self.x.shape[1] :]
        threshold = np.logaddexp.reduce(log_weights) - np.log(100 * len(log_weights))
        return (log_weights >= min(threshold, heaviest[0])) & (log_weights > -np.inf)

    def select(self, chosen: Bool[np.ndarray, " n"]) -> "Points":
        """Keep some of the points."""
        x, log_likelihood, log_prior, log_flows, is_prior = (column[chosen] for column in self[:5])
        return Points(x, log_likelihood, log_prior, log_flows, is_prior, self.num_prior)


def join(first: Points, second: Points) -> Points:
    """Append points; the prior's draws are those of `first`."""
    x, log_likelihood, log_prior, log_flows, is_prior = (
        np.concatenate(pair) for pair in zip(first[:5], second[:5], strict=True)
    )
    return Points(x, log_likelihood, log_prior, log_flows, is_prior, first.num_prior)


SMALLEST = float(np.finfo(np.float64).tiny)
LARGEST = 700.0  # nats; the exponential of more overflows
HARDLY = -0.1  # log of the share of the prior mass beyond which a contour has hardly moved


class Contour(NamedTuple):
    """A likelihood contour and what lies on or above it."""

    log_likelihood: float  # nats
    log_mass: float  # log of the prior mass above, relative to the contour before, nats
    ess: float  # effective number of points above


def next_contour(points: Points, contour: float, *, compression: tuple[float, float], min_ess: float) -> Contour:
    """Find the highest contour that still leaves enough points to train on.

    Args:
        points: All points.
        contour: The contour now, in nats; points below it are ignored.
        compression: Largest and smallest wanted log of the ratio of prior masses, e.g. ``(-2, -0.7)``.
        min_ess: Effective number of points wanted above the contour.

    Returns:
        The highest contour with at least `min_ess` effective points above it and a log mass ratio within
        `compression`; where points are too few, the lowest in that range. Points of equal likelihood stay together,
        so a plateau can make the ratio larger.
    """
    above = (points.log_likelihood >= contour) & (points.log_likelihood > -np.inf)
    order = np.argsort(-points.log_likelihood[above], kind="stable")
    log_likelihood = points.log_likelihood[above][order]
    # One point that all proposals under-cover may weigh more than the rest, and would hold the contour down for ever.
    log_weights = truncate(points.log_prior_weights[above][order])
    weights = np.exp(log_weights - np.max(log_weights))
    mass = np.cumsum(weights)
    ess = mass**2 / np.maximum(np.cumsum(weights**2), SMALLEST)
    last_of_plateau = np.append(log_likelihood[1:] < log_likelihood[:-1], True)
    log_mass = np.log(np.maximum(mass / mass[-1], SMALLEST))
    wanted = last_of_plateau & (log_mass >= compression[0]) & (ess >= min_ess)
    allowed = last_of_plateau & (log_mass >= compression[1])
    i = min(int(np.argmax(wanted)) if np.any(wanted) else len(mass) - 1, int(np.argmax(allowed)))
    higher = np.flatnonzero(last_of_plateau[:i])
    if log_mass[i] > HARDLY and len(higher) > 0 and log_mass[higher[-1]] < np.log(0.5):
        i = int(higher[-1])
    return Contour(float(log_likelihood[i]), float(log_mass[i]), float(ess[i]))


def evidence_share(points: Points, contour: float) -> float:
    """Share of the evidence above a contour, as the points see it."""
    log_weights = points.log_posterior_weights
    above = points.log_likelihood >= contour
    return float(np.exp(np.logaddexp.reduce(log_weights[above]) - np.logaddexp.reduce(log_weights)))


def highest_share(points: Points, above: Bool[np.ndarray, " n"]) -> float:
    """Share of the evidence that some points would hold if all the prior mass there had the highest likelihood."""
    highest = np.max(points.log_likelihood) + np.logaddexp.reduce(points.log_prior_weights[above])
    log_share = highest - np.logaddexp.reduce(points.log_posterior_weights)
    return float(np.exp(np.minimum(log_share, LARGEST)))


def share_of_excess(excess: float) -> float:
    """Share of all evidence that lies in so many times what was found; none if that is negative by rounding.

    Example:
        >>> share_of_excess(3.0), share_of_excess(-1e-17)
        (0.75, 0.0)
    """
    return 1 - 1 / (1 + max(float(excess), 0.0))
