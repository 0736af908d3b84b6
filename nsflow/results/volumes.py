"""Prior volumes of weighted draws. All as logarithms."""

import math

import numpy as np
from jaxtyping import Float


def num_live(
    log_likelihood: Float[np.ndarray, " n"], log_weights: Float[np.ndarray, " n"], num_draws: int
) -> Float[np.ndarray, " n"]:
    r"""Live points that present weighted draws as a nested-sampling run.

    With :math:`v = w / L` and the draws sorted by log L, the prior mass above draw i and the number of live points
    whose mean shrinkage n / (n + 1) reproduces it are

    .. math::
        X_i = \frac1N \Bigl(\tfrac12 v_i + \sum_{j > i} v_j\Bigr), \qquad
        n_i = \frac{X_i}{X_{i-1} - X_i}, \qquad X_{-1} = 1 .

    Args:
        log_likelihood: Nats, shape ``(n,)``, in rising order.
        log_weights: Log of w in nats, shape ``(n,)``.
        num_draws: Draws N behind the weights.

    Returns:
        Live points, shape ``(n,)``.

    Raises:
        ValueError: If the draws do not cover the prior, so that no volume is known.

    Example:
        >>> num_live(np.array([-1.0, 0.0]), np.array([-1.0, 0.0]), 2)
        array([3. , 0.5])
    """
    num_zero = int(np.isneginf(log_likelihood).sum())
    log_mass = log_weights[num_zero:] - log_likelihood[num_zero:] - math.log(num_draws)
    log_above = _log_mass_above(log_mass)
    _check_coverage(log_mass, log_above[0], num_zero)
    if not num_zero or log_above[0] > 0:
        log_mass = _fill_prior(log_mass, log_above)
        log_above = _log_mass_above(log_mass)

    # The middle of each draw's own shell. Anesthetic's trapezium (X[i-1] - X[i+1]) / 2 then shares a draw's mass in
    # parts 1 : 2 : 1 among itself and its two neighbours; the ends of the shells would shift it by half a draw.
    half = log_mass - math.log(2)
    log_volume = np.logaddexp(log_above[1:], half)
    log_step = np.logaddexp(half, np.append(-np.inf, half[:-1]))
    if num_zero:
        # Evenly from 1 down to the volume of L > 0, which the last of them reaches: none of it leaks to L > 0.
        log_zero = math.log(max(-math.expm1(log_above[0]), 0.0) or 1e-300)
        left = np.arange(num_zero)[::-1] / num_zero
        with np.errstate(divide="ignore"):
            log_volume = np.append(np.logaddexp(log_above[0], log_zero + np.log(left)), log_volume)
        log_step = np.append(np.full(num_zero, log_zero - math.log(num_zero)), log_step)
    # Beyond 1e12 anesthetic's volumes cease to fall in double precision, and their differences have no logarithm. Such
    # a draw carries less than 1e-12 of the evidence: the volume above it, all at higher likelihood, is 1e12 times more.
    return np.exp(np.minimum(log_volume - log_step, math.log(1e12)))


def _log_mass_above(log_mass: np.ndarray) -> np.ndarray:
    """Log of sum_{j >= i} mass_j for i = 0 ... m, shape (m + 1,); the last is -inf."""
    return np.append(np.logaddexp.accumulate(log_mass[::-1])[::-1], -np.inf)


def _log_sum(log_mass: np.ndarray) -> float:
    return float(np.logaddexp.reduce(log_mass))


def _fill_prior(log_mass: np.ndarray, log_above: np.ndarray) -> np.ndarray:
    """Scale the lower half of the prior mass so that the whole is one.

    Its few draws from the prior and the broadest levels dominate the noise of the sum; the evidence lies above, unless
    the likelihood hardly constrains. All on the lowest draw instead would give it several per cent of the prior.
    """
    half = min(log_above[0], 0.0) - math.log(2)
    cut = int(np.argmax(log_above <= half))
    wanted = math.log(-math.expm1(log_above[cut]))
    scaled = log_mass.copy()
    scaled[:cut] += wanted - _log_sum(log_mass[:cut])
    return scaled


def _check_coverage(log_mass: np.ndarray, log_total: float, num_zero: int) -> None:
    """Refuse draws whose prior mass is not one within a factor two and five standard errors."""
    total = math.exp(min(log_total, 700.0))
    margin = 5 * math.exp(min(_log_sum(2 * log_mass) / 2, 700.0))
    if total - margin > 2 or (total + margin < 0.5 and not num_zero):
        raise ValueError(
            f"`to_nested_samples` expected draws whose prior mass, the mean of prior / proposal density, is 1; got "
            f"{total:.3g}. The proposal does not cover the prior, so no volumes are known: use `to_anesthetic`."
        )
