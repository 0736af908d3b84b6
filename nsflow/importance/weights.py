"""Importance weights: how many points they are worth, and how to bound them."""

import numpy as np
from jaxtyping import Float


def effective_sample_size(log_weights: Float[np.ndarray, " n"]) -> float:
    r"""Kish's effective sample size :math:`(\sum w)^2 / \sum w^2`.

    Args:
        log_weights: Log-weights in nats, shape ``(n,)``.

    Returns:
        The effective number of equally weighted points, between 0 and n.

    Example:
        >>> effective_sample_size(np.zeros(7))
        7.0
    """
    top = np.max(log_weights, initial=-np.inf)
    if top == -np.inf:
        return 0.0
    weights = np.exp(log_weights - top)
    return float(np.sum(weights) ** 2 / np.sum(weights**2))


def truncate(log_weights: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    r"""Cap weights at :math:`\sqrt n` times their mean, so that no point can be most of a training set.

    Args:
        log_weights: Log-weights in nats, shape ``(n,)``.

    Returns:
        The capped log-weights.

    Example:
        >>> truncate(np.array([0.0, 0.0, 0.0, 9.0])).round(1).tolist()
        [0.0, 0.0, 0.0, 8.3]

    References:
        Ionides (2008), *Truncated Importance Sampling*, Eq. 2.
    """
    n = np.sum(log_weights > -np.inf)
    return np.minimum(log_weights, np.logaddexp.reduce(log_weights) - 0.5 * np.log(n))


def temper(log_weights: Float[np.ndarray, " n"], min_ess: float) -> Float[np.ndarray, " n"]:
    r"""Raise weights to the power, at most one, at which enough effective points are left to train on.

    Args:
        log_weights: Finite log-weights in nats, shape ``(n,)``.
        min_ess: Wanted effective number of points.

    Returns:
        The tempered log-weights.

    Example:
        >>> temper(np.array([0.0, 0.0, -9.0, -9.0]), 3.0).round(1).tolist()
        [0.0, 0.0, -1.3, -1.3]
    """
    powers = np.linspace(1.0, 0.0, 101)
    return next((p * log_weights for p in powers if effective_sample_size(p * log_weights) >= min_ess), 0 * log_weights)
