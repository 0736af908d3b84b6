"""Base distributions, where a flow starts from at t = 0."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, ClassVar, final

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float

from nsflow.numerics.arguments import POSITIVE, real, settle
from nsflow.numerics.precision import standard_promotion
from nsflow.numerics.storable import storable

LOG_2PI = math.log(2 * math.pi)


class AbstractBase(ABC):
    """A distribution on R^d with zero mean, unit covariance or about that, in any dimension."""

    is_white: ClassVar[bool] = True  # False for a base in the coordinates of the data, which are then not whitened

    @abstractmethod
    def sample(self, key: Array, num_samples: int, num_dims: int) -> Float[Array, "n d"]:
        """Draw points in float32.

        Args:
            key: JAX random key.
            num_samples: Number n of draws.
            num_dims: Dimension d.

        Returns:
            The points, shape ``(n, d)``.
        """

    @abstractmethod
    def log_prob(self, z: Float[Array, " d"]) -> Float[Array, ""]:
        """Log-density of one point, nats.

        Args:
            z: The point, shape ``(d,)``.

        Returns:
            The log-density, a scalar.
        """

    def log_prob_each(self, z: Float[Array, "n d"]) -> Float[Array, " n"]:
        """Log-densities of points, nats, shape ``(n,)``."""
        return jax.vmap(self.log_prob)(z)


def normal_rows(key: Array, num_rows: int, num_columns: int, dtype: Any) -> Float[Array, "n d"]:
    """Standard normal numbers, those of `jax.random.normal` with this shape.

    Drawn in one row: XLA's CPU compiler takes 0.8 s for threefry on a matrix of ten columns, 0.2 s on a vector.

    Args:
        key: JAX random key.
        num_rows: Number n of rows.
        num_columns: Number d of columns.
        dtype: Of the numbers.

    Returns:
        The numbers, shape ``(n, d)``.

    Example:
        >>> key = jax.random.key(0)
        >>> bool(jnp.all(normal_rows(key, 3, 2, jnp.float32) == jax.random.normal(key, (3, 2), jnp.float32)))
        True
    """
    return jax.random.normal(key, (num_rows * num_columns,), dtype).reshape(num_rows, num_columns)


@storable("normal")
@final
@dataclass(frozen=True)
class Normal(AbstractBase):
    """Standard normal.

    Example:
        >>> round(float(Normal().log_prob(jnp.zeros(2))), 3)
        -1.838
    """

    def sample(self, key: Array, num_samples: int, num_dims: int) -> Float[Array, "n d"]:
        """Draw points in float32, shape ``(n, d)``."""
        return normal_rows(key, num_samples, num_dims, jnp.float32)

    def log_prob(self, z: Float[Array, " d"]) -> Float[Array, ""]:
        """Log-density of one point, nats."""
        return -0.5 * jnp.sum(z**2) - 0.5 * z.shape[0] * LOG_2PI


@storable("edged-ball")
@final
@dataclass(frozen=True)
class EdgedBall(AbstractBase):
    r"""Nearly uniform ball with a soft edge, and a normal under it.

    .. math::
        p(z) = s\, C \exp\bigl(-(|z|/r)^{\beta}\bigr) + (1 - s)\, N(z; 0, \sigma^2 I), \qquad \beta = 2d.

    The points within a likelihood contour have an edge, which a normal does not: an ellipsoid of ten dimensions took
    0.43 of the draws of a flow from a normal and 0.55 of those from here. The first part, an exponential power
    distribution, has covariance `inflation` squared; the normal bounds the weights of what lies outside.

    Args:
        share: Share s of the ball.
        inflation: By how much the ball exceeds unit covariance.
        deviation: Standard deviation of the normal.

    Example:
        >>> z = EdgedBall().sample(jax.random.key(0), 10_000, 3)
        >>> bool(jnp.all(jnp.abs(jnp.std(z, axis=0) - 1.05) < 0.03))
        True

    References:
        Gomez et al. (1998), *A multivariate generalization of the power exponential family of distributions*,
        Definition 1 and Proposition 3.2; Hesterberg (1995), Section 3, for the normal.
    """

    share: float = 0.7
    inflation: float = 1.03
    deviation: float = 1.1

    def __post_init__(self) -> None:
        """Refuse values of another kind, or out of range."""
        settle(
            self,
            {
                "share": real(lambda x: 0 < x < 1, "a share between 0 and 1"),
                "inflation": POSITIVE,
                "deviation": POSITIVE,
            },
            "EdgedBall.",
        )

    def sample(self, key: Array, num_samples: int, num_dims: int) -> Float[Array, "n d"]:
        """Draw points in float32, shape ``(n, d)``."""
        # All from one call: each takes a fifth of a second to compile.
        numbers = normal_rows(key, num_dims + 2, num_samples, jnp.float32)
        normal, radial, part = numbers[:-2].T, numbers[-2, :, None], numbers[-1, :, None]
        # (|z|/r)^(2d) has a gamma distribution of shape 1/2, half the square of a normal variable.
        gamma = 0.5 * radial**2
        radius = self._radius(num_dims) * gamma ** (0.5 / num_dims)
        ball = normal * (radius / jnp.linalg.norm(normal, axis=1, keepdims=True)).astype(jnp.float32)
        is_ball = part < NormalDist().inv_cdf(self.share)
        return jnp.where(is_ball, ball, jnp.float32(self.deviation) * normal)

    def log_prob(self, z: Float[Array, " d"]) -> Float[Array, ""]:
        """Log-density of one point, nats."""
        num_dims, square = z.shape[0], jnp.sum(z**2)
        radius = self._radius(num_dims)
        ball = _log_normaliser(num_dims) - num_dims * math.log(radius) - (square / radius**2) ** num_dims
        normal = -0.5 * square / self.deviation**2 - num_dims * (0.5 * LOG_2PI + math.log(self.deviation))
        return jnp.logaddexp(math.log(self.share) + ball, math.log1p(-self.share) + normal)

    def _radius(self, num_dims: int) -> float:
        """Scale r at which each coordinate of the ball has a variance of `inflation` squared."""
        log_mean_square = math.lgamma(0.5 + 1 / num_dims) - math.lgamma(0.5)
        return self.inflation * math.sqrt(num_dims * math.exp(-log_mean_square))


@final
@dataclass(frozen=True)
class Given(AbstractBase):
    """A distribution that exists already, in the coordinates of the data: the prior, another flow, anything.

    Args:
        draw: Called as ``draw(key, n)``, returns points of shape ``(n, d)``.
        density: Called on points of shape ``(n, d)`` inside JAX transformations, returns log-densities of shape
            ``(n,)`` in nats.

    Example:
        >>> import numpyro.distributions as dist
        >>> from nsflow.prior.prior import Prior
        >>> prior = Prior({"a": dist.Uniform(-1, 1), "b": dist.Normal(0, 3)})
        >>> base = Given(prior.latent_sample, prior.latent_log_prob)
        >>> base.sample(jax.random.key(0), 5, 2).shape
        (5, 2)
    """

    is_white: ClassVar[bool] = False
    draw: Callable[[Array, int], Any]
    density: Callable[[Any], Any]

    def sample(self, key: Array, num_samples: int, num_dims: int) -> Float[Array, "n d"]:
        """Draw points in float32, shape ``(n, d)``."""
        return jnp.asarray(self.draw(key, num_samples), jnp.float32).reshape(num_samples, num_dims)

    @standard_promotion
    def log_prob(self, z: Float[Array, " d"]) -> Float[Array, ""]:
        """Log-density of one point, nats."""
        return jnp.asarray(self.density(z[None]))[0].astype(z.dtype)


@final
@dataclass(frozen=True, eq=False)
class AnyDistribution(AbstractBase):
    """Any object with ``sample(key, n)`` and ``log_prob(points)``, in the coordinates of the data: another flow, say.

    Neither need be traceable by JAX. Training then takes its draws from a pool; draws of the fitted flow are fresh.

    Args:
        distribution: The object.
        num_pooled: Draws in the pool.

    Example:
        >>> from nsflow.densities.gaussian import Gaussian
        >>> base = AnyDistribution(Gaussian(np.ones(2), np.eye(2)))
        >>> jax.jit(lambda key: base.sample(key, 5, 2))(jax.random.key(0)).shape
        (5, 2)
    """

    is_white: ClassVar[bool] = False
    distribution: Any
    num_pooled: int = 65_536

    def __post_init__(self) -> None:
        """Draw the pool, outside of any compilation."""
        pool = np.asarray(self.distribution.sample(jax.random.key(0), self.num_pooled), np.float32)
        object.__setattr__(self, "_pool", pool)

    def sample(self, key: Array, num_samples: int, num_dims: int) -> Float[Array, "n d"]:
        """Draw points in float32, shape ``(n, d)``: from the pool inside a compiled function, else fresh ones."""
        if isinstance(key, Tracer):
            pool = jnp.asarray(getattr(self, "_pool"))  # noqa: B009
            return pool[jax.random.randint(key, (num_samples,), 0, self.num_pooled)].reshape(num_samples, num_dims)
        points = np.asarray(self.distribution.sample(key, num_samples), np.float32)
        return jnp.asarray(points.reshape(num_samples, num_dims))

    def log_prob(self, z: Float[Array, " d"]) -> Float[Array, ""]:
        """Log-density of one point, nats."""
        return self.log_prob_each(z[None])[0]

    def log_prob_each(self, z: Float[Array, "n d"]) -> Float[Array, " n"]:
        """Log-densities of points, nats, shape ``(n,)``."""
        return jnp.asarray(np.asarray(self.distribution.log_prob(np.asarray(z))))


def _log_normaliser(num_dims: int) -> float:
    """Log of C at r = 1: (|z|/r)^(2d) has a gamma distribution of shape 1/2."""
    d = num_dims
    return math.log(2 * d) + math.lgamma(d / 2) - math.log(2) - d / 2 * math.log(math.pi) - math.lgamma(0.5)
