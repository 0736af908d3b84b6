"""Quantile functions kept accurate in both tails, and the probit map that carries them to a standard normal."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.scipy.special import erf, erfc, expit, ndtr, ndtri
from jax.scipy.stats import norm
from jaxtyping import Array, Float

# Phi(-37.5), the smallest normal double: a tail probability clipped here never reaches 0, whose quantile is infinite.
SMALLEST_TAIL = float(np.finfo(np.float64).tiny)
# 1 - 2^-53 is the largest double below 1: `icdf(1 - p)` cannot tell smaller p apart (reached at z = 8.2).
SMALLEST_COMPLEMENT = 2.0**-53


class Quantile(NamedTuple):
    """The four functions of a scalar distribution, each tail with its own, so that neither is computed as 1 - (1 - p).

    `lower(p)` and `upper(p)` are the points with probability p <= 1/2 below and above them; `cdf(x)` and `sf(x)` are
    the probabilities below and above x.
    """

    lower: Callable[[Any], Any]
    upper: Callable[[Any], Any]
    cdf: Callable[[Any], Any]
    sf: Callable[[Any], Any]


def from_normal(quantile: Quantile, z: Float[Array, "*shape"]) -> Any:
    r"""Carry a standard normal variable to the distribution: :math:`x = F^{-1}(\Phi(z))`.

    Args:
        quantile: The distribution.
        z: Points, any shape.

    Returns:
        The points x, same shape; finite for every finite z.

    Example:
        >>> x = from_normal(numpyro_quantile(dist.Exponential(1.0)), jnp.array(0.0))
        >>> print(f"{x:.3f}")
        0.693
    """
    tail = jnp.clip(ndtr(-jnp.abs(z)), SMALLEST_TAIL, 0.5)
    return jnp.where(z < 0, quantile.lower(tail), quantile.upper(tail))


def to_normal(quantile: Quantile, x: Any) -> Float[Array, "*shape"]:
    r"""Carry the distribution to a standard normal variable: :math:`z = \Phi^{-1}(F(x))`.

    Args:
        quantile: The distribution.
        x: Points, any shape.

    Returns:
        The points z, same shape; finite up to the edges of the support, where it is about 37.5.

    Example:
        >>> z = to_normal(numpyro_quantile(dist.Exponential(1.0)), jnp.log(2.0))
        >>> print(f"{abs(z):.3f}")
        0.000
    """
    below, above = jnp.asarray(quantile.cdf(x)), jnp.asarray(quantile.sf(x))
    z = ndtri(jnp.clip(jnp.minimum(below, above), SMALLEST_TAIL, 0.5))
    return jnp.where(below < above, z, -z)


def numpyro_quantile(distribution: Any) -> Quantile | None:
    """Return the quantile functions of a scalar numpyro distribution, accurate in both tails.

    Args:
        distribution: A distribution of scalars; its batch shape, if any, broadcasts.

    Returns:
        Closed forms, or None where this module has none.

    Example:
        >>> quantile = numpyro_quantile(dist.Uniform(2.0, 4.0))
        >>> print(float(quantile.lower(0.25)), float(quantile.upper(0.25)))
        2.5 3.5
    """
    form = CLOSED_FORMS.get(type(distribution))
    return None if form is None else form(distribution)


def _symmetric(distance: Callable[[Any], Any], tail: Callable[[Any], Any]) -> Callable[[Any], Quantile]:
    """Build a location-scale family from |x - loc| / scale as a function of the tail probability, and back."""

    def quantile(d: Any) -> Quantile:
        def below(y: Any) -> Any:
            far = tail(jnp.abs(y))
            return jnp.where(y < 0, far, 1 - far)

        return Quantile(
            lambda p: d.loc - d.scale * distance(p),
            lambda p: d.loc + d.scale * distance(p),
            lambda x: below((x - d.loc) / d.scale),
            lambda x: below((d.loc - x) / d.scale),
        )

    return quantile


def _uniform(d: Any) -> Quantile:
    width = d.high - d.low
    # From z = 8.2 on rounding reaches the bounds, where a likelihood may have a pole that its author never meant.
    return Quantile(
        lambda p: jnp.maximum(d.low + width * p, jnp.nextafter(d.low, d.high)),
        lambda p: jnp.minimum(d.high - width * p, jnp.nextafter(d.high, d.low)),
        lambda x: (x - d.low) / width,
        lambda x: (d.high - x) / width,
    )


def _log_uniform(d: Any) -> Quantile:
    width = jnp.log(d.high) - jnp.log(d.low)
    return Quantile(
        lambda p: d.low * jnp.exp(width * p),
        lambda p: d.high * jnp.exp(-width * p),
        lambda x: jnp.log(x / d.low) / width,
        lambda x: jnp.log(d.high / x) / width,
    )


def _exponential(d: Any) -> Quantile:
    return Quantile(
        lambda p: -jnp.log1p(-p) / d.rate,
        lambda p: -jnp.log(p) / d.rate,
        lambda x: -jnp.expm1(-d.rate * x),
        lambda x: jnp.exp(-d.rate * x),
    )


def _half_normal(d: Any) -> Quantile:
    width = jnp.sqrt(2.0) * d.scale
    return Quantile(
        # Phi(1/2 + p/2) keeps no digit of p < 1e-16; erfinv does.
        lambda p: width * _erfinv(p),
        lambda p: -d.scale * ndtri(p / 2),
        lambda x: erf(x / width),
        lambda x: erfc(x / width),
    )


def _erfinv(p: Any) -> Any:
    # Below 1e-8 the next term of the series, pi p^3 / 12 relative to p, is under 1e-16.
    small = p < 1e-8
    return jnp.where(small, p * (jnp.sqrt(jnp.pi) / 2), ndtri(0.5 + jnp.where(small, 0.25, p) / 2) / jnp.sqrt(2.0))


def _half_cauchy(d: Any) -> Quantile:
    return Quantile(
        lambda p: d.scale * jnp.tan(jnp.pi / 2 * p),
        lambda p: d.scale / jnp.tan(jnp.pi / 2 * p),
        lambda x: 2 / jnp.pi * jnp.arctan2(x, d.scale),
        lambda x: 2 / jnp.pi * jnp.arctan2(d.scale, x),
    )


def _gumbel(d: Any) -> Quantile:
    return Quantile(
        lambda p: d.loc - d.scale * jnp.log(-jnp.log(p)),
        lambda p: d.loc - d.scale * jnp.log(-jnp.log1p(-p)),
        lambda x: jnp.exp(-jnp.exp((d.loc - x) / d.scale)),
        lambda x: -jnp.expm1(-jnp.exp((d.loc - x) / d.scale)),
    )


def _weibull(d: Any) -> Quantile:
    return Quantile(
        lambda p: d.scale * (-jnp.log1p(-p)) ** (1 / d.concentration),
        lambda p: d.scale * (-jnp.log(p)) ** (1 / d.concentration),
        lambda x: -jnp.expm1(-((x / d.scale) ** d.concentration)),
        lambda x: jnp.exp(-((x / d.scale) ** d.concentration)),
    )


def _pareto(d: Any) -> Quantile:
    return Quantile(
        lambda p: d.scale * jnp.exp(-jnp.log1p(-p) / d.alpha),
        lambda p: d.scale * jnp.exp(-jnp.log(p) / d.alpha),
        lambda x: -jnp.expm1(d.alpha * jnp.log(d.scale / x)),
        lambda x: jnp.exp(d.alpha * jnp.log(d.scale / x)),
    )


CLOSED_FORMS: dict[type, Callable[[Any], Quantile]] = {
    dist.Uniform: _uniform,
    dist.LogUniform: _log_uniform,
    dist.Exponential: _exponential,
    dist.HalfNormal: _half_normal,
    dist.HalfCauchy: _half_cauchy,
    dist.Gumbel: _gumbel,
    dist.Weibull: _weibull,
    dist.Pareto: _pareto,
    dist.Cauchy: _symmetric(lambda p: 1 / jnp.tan(jnp.pi * p), lambda y: jnp.arctan2(1.0, y) / jnp.pi),
    dist.Laplace: _symmetric(lambda p: -jnp.log(2 * p), lambda y: jnp.exp(-y) / 2),
    dist.Logistic: _symmetric(lambda p: jnp.log1p(-p) - jnp.log(p), lambda y: expit(-y)),
}


def standard_normal_log_prob(z: Float[Array, "n d"]) -> Float[Array, " n"]:
    r"""Log density of N(0, I), in nats.

    Args:
        z: Points, shape ``(n, d)``.

    Returns:
        ``-|z|^2 / 2 - d log(2 pi) / 2``, shape ``(n,)``.

    Example:
        >>> print(standard_normal_log_prob(jnp.zeros((1, 2))).round(3))
        [-1.838]
    """
    return norm.logpdf(z).sum(-1)
