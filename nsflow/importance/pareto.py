"""The tail of importance weights: a generalised Pareto distribution and its shape, k-hat."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float


class ParetoTail(NamedTuple):
    r"""Generalised Pareto distribution of the largest weights.

    .. math::
        P(w > t + e) = \frac{m}{S} \Bigl(1 + \frac{k\,e}{\sigma}\Bigr)^{-1/k}, \qquad e > 0,

    for the m largest of S weights, those above t.
    """

    khat: float  # k, regularised towards 0.5
    shape: float  # k as fitted
    log_scale: float  # log sigma, nats
    log_threshold: float  # log t, nats
    size: int  # m


def pareto_khat(log_weights: Float[np.ndarray, " n"], num_draws: int | None = None) -> float:
    r"""Shape k of the generalised Pareto distribution of the largest weights.

    The weights have finite moments up to order 1/k: above 0.5 their variance is infinite, above 0.7 the estimate and
    its error are useless at any practical sample size.

    Args:
        log_weights: Log-weights in nats, shape ``(n,)``.
        num_draws: Number of draws S, if draws of weight zero were left out.

    Returns:
        k-hat, regularised towards 0.5 as in the reference; +inf if there are fewer than 5 weights in the tail.

    Example:
        >>> draws = np.random.default_rng(0).pareto(4.0, 100_000)  # k = 1/4
        >>> print(f"{pareto_khat(np.log(draws)):.1f}")
        0.3

    References:
        Vehtari et al. (2024), *Pareto Smoothed Importance Sampling*, JMLR 25(72), Section 2 and Appendix F;
        the fit is that of Zhang & Stephens (2009), *A New and Efficient Estimation Method for the GPD*, Section 4.
    """
    tail = pareto_tail(log_weights, num_draws)
    return np.inf if tail is None else tail.khat


def pareto_tail(log_weights: Float[np.ndarray, " n"], num_draws: int | None = None) -> ParetoTail | None:
    """Fit the generalised Pareto distribution whose shape is :func:`pareto_khat`.

    Args:
        log_weights: Log-weights in nats, shape ``(n,)``.
        num_draws: Number of draws S, if draws of weight zero were left out.

    Returns:
        The fit, of shape -inf if the weights of the tail are equal; None if there are fewer than 5 of them.

    Example:
        >>> tail = pareto_tail(np.log(1 + np.random.default_rng(0).pareto(4.0, 100_000)))
        >>> tail.size, f"{tail.shape:.1f}"
        (949, '0.3')
    """
    size = len(log_weights) if num_draws is None else num_draws
    tail = int(np.ceil(min(0.2 * size, 3 * np.sqrt(size))))
    log_weights = log_weights[log_weights > -np.inf]
    if len(log_weights) <= tail or tail < 5:
        return None
    # A run asks after every batch: sorting all weights took a fifth of the time of a long one.
    threshold, *largest = np.sort(np.partition(log_weights, -tail - 1)[-tail - 1 :])
    excess = np.exp(np.array(largest) - largest[-1]) - np.exp(threshold - largest[-1])
    if excess[-1] <= 1e-12:
        return ParetoTail(-np.inf, -np.inf, -np.inf, float(threshold), tail)
    k, scale = _generalised_pareto(np.maximum(excess, 1e-300))
    khat = (k * tail + 0.5 * 10) / (tail + 10)
    return ParetoTail(float(khat), k, float(np.log(scale) + largest[-1]), float(threshold), tail)


def _generalised_pareto(x: np.ndarray) -> tuple[float, float]:
    """Posterior means of shape and scale over a grid, for sorted positive excesses."""
    n = len(x)
    num_grid = 30 + int(np.sqrt(n))
    quartile = x[int(n / 4 + 0.5) - 1]
    theta = 1 / x[-1] + (1 - np.sqrt(num_grid / (np.arange(1, num_grid + 1) - 0.5))) / (
        3 * max(quartile, 1e-12 * x[-1])
    )
    k = np.mean(np.log1p(-theta[:, None] * x), axis=1)
    log_likelihood = n * (np.log(-theta / k) - k - 1)
    weights = np.exp(log_likelihood - np.max(log_likelihood))
    theta_mean = np.sum(theta * weights) / np.sum(weights)
    shape = float(np.mean(np.log1p(-theta_mean * x)))
    return shape, -shape / theta_mean
