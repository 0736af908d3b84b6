"""Forward processes, which turn data into noise, and the paths that lead back."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from nsflow.diffusion.schedule import AbstractSchedule, LinearSchedule, integral
from nsflow.flow.path import AbstractPath
from nsflow.numerics.storable import storable


class AbstractProcess(ABC):
    r"""A diffusion from the data at time 0 to noise at time 1, :math:`dX = \mu(t, X)\,dt + g(t)\,dW`.

    References:
        Song et al. (2021), *Score-Based Generative Modeling through Stochastic Differential Equations*, Eq. 5.
    """

    @abstractmethod
    def drift(self, t: Float[Array, ""], x: Float[Array, " d"]) -> Float[Array, " d"]:
        """Drift of one point."""

    @abstractmethod
    def diffusion(self, t: Float[Array, ""]) -> Float[Array, ""]:
        """Diffusion coefficient."""


class AbstractLinearProcess(AbstractProcess):
    r"""A process with the Gaussian kernel :math:`X_t \mid X_0 \sim N(s(t)\,X_0, \nu(t)\,I)`.

    Subclasses give the scale s and the variance :math:`\nu`, with s(0) = 1 and :math:`\nu(0) = 0`; drift, diffusion and
    the kernel between any two times follow:

    .. math::
        \mu(t, x) = \frac{\dot s}{s}\,x, \qquad g^2 = \dot\nu - 2\,\frac{\dot s}{s}\,\nu .

    Example:
        Brownian motion of width 3 at the end:

        >>> class Brownian(AbstractLinearProcess):
        ...     def scale(self, t):
        ...         return jnp.ones_like(t)
        ...
        ...     def variance(self, t):
        ...         return 9 * t
        >>> float(Brownian().diffusion(jnp.array(0.5)))
        3.0

    References:
        Karras et al. (2022), *Elucidating the Design Space of Diffusion-Based Generative Models*, Appendix B.1.
    """

    @abstractmethod
    def scale(self, t: Float[Array, ""]) -> Float[Array, ""]:
        """What is left of the data at a time."""

    @abstractmethod
    def variance(self, t: Float[Array, ""]) -> Float[Array, ""]:
        """Variance of the noise at a time."""

    @final
    def drift(self, t: Float[Array, ""], x: Float[Array, " d"]) -> Float[Array, " d"]:
        """Drift of one point, linear in it."""
        return self._decay(t) * x

    @final
    def diffusion(self, t: Float[Array, ""]) -> Float[Array, ""]:
        """Diffusion coefficient."""
        variance, rate = jax.jvp(self.variance, (t,), (jnp.ones_like(t),))
        return jnp.sqrt(rate - 2 * self._decay(t) * variance)

    @final
    def transition(self, s: Float[Array, ""], t: Float[Array, ""]) -> tuple[Float[Array, ""], Float[Array, ""]]:
        r"""Kernel from time s to a later time t, :math:`X_t \mid X_s \sim N(m X_s, \nu_{ts} I)`.

        .. math:: m = s(t) / s(s), \qquad \nu_{ts} = \nu(t) - m^2\,\nu(s) .

        Args:
            s: Earlier time.
            t: Later time.

        Returns:
            ``(m, std)``: the factor of the mean, and the square root of the variance.
        """
        factor = self.scale(t) / self.scale(s)
        return factor, jnp.sqrt(self.variance(t) - factor**2 * self.variance(s))

    def _decay(self, t: Array) -> Array:
        scale, rate = jax.jvp(self.scale, (t,), (jnp.ones_like(t),))
        return rate / scale


@storable("variance-preserving")
@final
@dataclass(frozen=True)
class VariancePreserving(AbstractLinearProcess):
    r"""Ornstein-Uhlenbeck process with a schedule, :math:`dX = -\tfrac12 \beta X\,dt + \sqrt\beta\,dW`.

    With a constant schedule it is the Ornstein-Uhlenbeck process itself, whose stationary density is N(0, I).

    Args:
        schedule: beta(t).

    Example:
        >>> from nsflow.diffusion.schedule import ConstantSchedule
        >>> factor, std = VariancePreserving(ConstantSchedule(2.0)).transition(jnp.array(0.0), jnp.array(0.5))
        >>> print(f"{factor:.3f} {std:.3f}")
        0.607 0.795

    References:
        Song et al. (2021), Eqs. 11 and 29.
    """

    schedule: AbstractSchedule = LinearSchedule()

    def scale(self, t: Float[Array, ""]) -> Float[Array, ""]:
        """Decay by half of the integrated rate."""
        return jnp.exp(-0.5 * self.schedule.integral(t))

    def variance(self, t: Float[Array, ""]) -> Float[Array, ""]:
        """Make up for what is lost."""
        return -jnp.expm1(-self.schedule.integral(t))


@storable("sub-variance-preserving")
@final
@dataclass(frozen=True)
class SubVariancePreserving(AbstractLinearProcess):
    r"""The mean of :class:`VariancePreserving` with a smaller variance, :math:`\nu = (1 - e^{-\int\beta})^2`.

    Args:
        schedule: beta(t).

    References:
        Song et al. (2021), Eqs. 14 and 29.
    """

    schedule: AbstractSchedule = LinearSchedule()

    def scale(self, t: Float[Array, ""]) -> Float[Array, ""]:
        """Decay by half of the integrated rate."""
        return jnp.exp(-0.5 * self.schedule.integral(t))

    def variance(self, t: Float[Array, ""]) -> Float[Array, ""]:
        """The square of what the other has."""
        return jnp.expm1(-self.schedule.integral(t)) ** 2


@storable("variance-exploding")
@final
@dataclass(frozen=True)
class VarianceExploding(AbstractLinearProcess):
    r"""Noise that only adds, :math:`\nu(t) = \sigma_{min}^2 \bigl((\sigma_{max} / \sigma_{min})^{2t} - 1\bigr)`.

    Args:
        smallest: sigma_min, in units of the whitened data.
        largest: sigma_max.

    References:
        Song et al. (2021), Eqs. 9 and 30.
    """

    smallest: float = 0.01
    largest: float = 10.0

    def scale(self, t: Float[Array, ""]) -> Float[Array, ""]:
        """Keep the data."""
        return jnp.ones_like(t)

    def variance(self, t: Float[Array, ""]) -> Float[Array, ""]:
        """Grow geometrically."""
        return self.smallest**2 * jnp.expm1(2 * t * jnp.log(jnp.asarray(self.largest / self.smallest, t.dtype)))


@final
@dataclass(frozen=True)
class LinearProcess(AbstractLinearProcess):
    r"""A process given by its coefficients, :math:`dX = f(t)\,X\,dt + g(t)\,dW`; its kernel is found by quadrature.

    .. math::
        s(t) = e^{\int_0^t f}, \qquad \nu(t) = s(t)^2 \int_0^t \frac{g(u)^2}{s(u)^2}\,du .

    Args:
        rate: f, called on a time.
        noise: g, called on a time.

    Example:
        >>> process = LinearProcess(lambda t: -jnp.ones_like(t), lambda t: jnp.sqrt(2 * jnp.ones_like(t)))
        >>> factor, std = process.transition(jnp.array(0.0), jnp.array(0.5))
        >>> print(f"{factor:.3f} {std:.3f}")
        0.607 0.795

    References:
        Karras et al. (2022), Appendix B.1, for s and for the integral.
    """

    rate: Callable[[Array], Array]
    noise: Callable[[Array], Array]

    def scale(self, t: Float[Array, ""]) -> Float[Array, ""]:
        """Exponential of the integrated rate."""
        return jnp.exp(integral(self.rate, t))

    def variance(self, t: Float[Array, ""]) -> Float[Array, ""]:
        """Noise since the start, each part carried along by the drift."""
        return self.scale(t) ** 2 * integral(lambda u: (self.noise(u) / self.scale(u)) ** 2, t)


@storable("process-path")
@final
@dataclass(frozen=True)
class ProcessPath(AbstractPath):
    r"""Path back from the noise of a linear process to the data, :math:`x_t = s(\tau)\,x_1 + \nu(\tau)^{1/2}\,x_0`.

    The process's time is :math:`\tau = 1 - (1 - \epsilon)\,t`. It ends at epsilon, for at 0 the width of the noise has
    an infinite rate.

    Args:
        process: The forward process.
        end: epsilon.

    Example:
        >>> print(f"{ProcessPath(VarianceExploding()).width:.2f}")
        10.05

    References:
        Song et al. (2021), Appendix C, for the end at a small time.
    """

    process: AbstractLinearProcess
    end: float = 1e-3

    def alpha(self, t: Float[Array, ""]) -> Float[Array, ""]:
        """What is left of the data."""
        return self.process.scale(1 - (1 - self.end) * t)

    def sigma(self, t: Float[Array, ""]) -> Float[Array, ""]:
        """Width of the noise."""
        return jnp.sqrt(self.process.variance(1 - (1 - self.end) * t))
