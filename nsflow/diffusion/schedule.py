"""Schedules: how fast a forward process adds noise."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from nsflow.numerics.storable import storable

NODES, WEIGHTS = np.polynomial.legendre.leggauss(16)


class AbstractSchedule(ABC):
    """Rate of the noise, beta(t). A subclass may give its integral in closed form."""

    @abstractmethod
    def beta(self, t: Float[Array, ""]) -> Float[Array, ""]:
        """The rate at a time."""

    def integral(self, t: Float[Array, ""]) -> Float[Array, ""]:
        """Integral of beta from 0 to t, by quadrature if a subclass does not know better."""
        return integral(self.beta, t)


def integral(rate: Callable[[Array], Array], t: Float[Array, ""]) -> Float[Array, ""]:
    """Integral of a function of time from 0 to t, by 16 Gauss-Legendre nodes.

    Args:
        rate: A smooth function of one time.
        t: Where to end.

    Returns:
        The integral, a scalar.

    Example:
        >>> print(f"{integral(jnp.exp, jnp.array(1.0)):.4f}")
        1.7183
    """
    nodes, weights = jnp.asarray(NODES, t.dtype), jnp.asarray(WEIGHTS, t.dtype)
    return 0.5 * t * jnp.sum(weights * jax.vmap(rate)(0.5 * t * (nodes + 1)))


@storable("constant-schedule")
@final
@dataclass(frozen=True)
class ConstantSchedule(AbstractSchedule):
    """The same rate at all times.

    Args:
        rate: beta.
    """

    rate: float = 10.0

    def beta(self, t: Float[Array, ""]) -> Float[Array, ""]:
        """Stay."""
        return self.rate * jnp.ones_like(t)

    def integral(self, t: Float[Array, ""]) -> Float[Array, ""]:
        """Grow linearly."""
        return self.rate * t


@storable("linear-schedule")
@final
@dataclass(frozen=True)
class LinearSchedule(AbstractSchedule):
    """A rate that grows linearly.

    Args:
        first: beta(0).
        last: beta(1).

    References:
        Song et al. (2021), Appendix C, with their values of 0.1 and 20.
    """

    first: float = 0.1
    last: float = 20.0

    def beta(self, t: Float[Array, ""]) -> Float[Array, ""]:
        """Grow linearly."""
        return self.first + (self.last - self.first) * t

    def integral(self, t: Float[Array, ""]) -> Float[Array, ""]:
        """Grow quadratically."""
        return self.first * t + 0.5 * (self.last - self.first) * t**2


@storable("cosine-schedule")
@final
@dataclass(frozen=True)
class CosineSchedule(AbstractSchedule):
    r"""A signal that falls as a cosine, :math:`\int_0^t \beta = -2 \log\bigl(c(t)/c(0)\bigr)`.

    .. math:: c(t) = \cos\Bigl(\frac{\pi}{2}\,\frac{0.99\,t + s}{1 + s}\Bigr) .

    The 0.99 keeps beta finite at t = 1, where the reference clips it.

    Args:
        offset: s, which keeps the noise from being too small at the start.

    References:
        Nichol & Dhariwal (2021), *Improved Denoising Diffusion Probabilistic Models*, Eq. 17.
    """

    offset: float = 0.008

    def beta(self, t: Float[Array, ""]) -> Float[Array, ""]:
        """Rate of the integral."""
        return jax.jvp(self.integral, (t,), (jnp.ones_like(t),))[1]

    def integral(self, t: Float[Array, ""]) -> Float[Array, ""]:
        """Grow with the logarithm of the cosine."""
        angle = lambda t: jnp.pi / 2 * (0.99 * t + self.offset) / (1 + self.offset)  # noqa: E731
        return 2 * jnp.log(jnp.cos(angle(jnp.zeros_like(t)))) - 2 * jnp.log(jnp.cos(angle(t)))
