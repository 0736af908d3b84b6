"""Probability paths that carry the base distribution at t = 0 to the data at t = 1."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from nsflow.numerics.arguments import real, settle
from nsflow.numerics.storable import storable


class AbstractPath(ABC):
    r"""An affine path between independent ends, :math:`x_t = \alpha(t)\,x_1 + \sigma(t)\,x_0`.

    Subclasses give the two coefficients; everything else follows from them. Interpolants have
    :math:`\alpha(0) = \sigma(1) = 0` and :math:`\alpha(1) = \sigma(0) = 1`. Those of a diffusion only come near: their
    :attr:`width` says how wide the base must be, and what is left of :math:`\sigma(1)` blurs the data.

    With standard normal :math:`x_0` the means of the two ends given :math:`x_t` hold all that can be learned, and

    .. math::
        v = \dot\alpha\, E[x_1 \mid x_t] + \dot\sigma\, E[x_0 \mid x_t], \qquad
        \nabla \log p_t = -E[x_0 \mid x_t] / \sigma .

    References:
        Lipman et al. (2023), *Flow Matching for Generative Modeling*, Eq. 10 and Theorem 3; Albergo et al. (2023),
        *Stochastic Interpolants*, Eq. 2.13, for the score.
    """

    @abstractmethod
    def alpha(self, t: Float[Array, ""]) -> Float[Array, ""]:
        """Coefficient of the data."""

    @abstractmethod
    def sigma(self, t: Float[Array, ""]) -> Float[Array, ""]:
        """Coefficient of the base."""

    def sample(
        self, t: Float[Array, ""], x0: Float[Array, " d"], x1: Float[Array, " d"]
    ) -> tuple[Float[Array, " d"], Float[Array, " d"]]:
        r"""Point on the path and the velocity of the particle that passes there.

        .. math:: x_t = \alpha x_1 + \sigma x_0, \qquad u_t = \dot\alpha x_1 + \dot\sigma x_0.

        Args:
            t: Time in [0, 1].
            x0: Point of the base.
            x1: Point of the data.

        Returns:
            ``(x_t, u_t)``, each of shape ``(d,)``.
        """
        (alpha, d_alpha), (sigma, d_sigma) = self._with_rates(t)
        return alpha * x1 + sigma * x0, d_alpha * x1 + d_sigma * x0

    def gaussian_velocity(self, t: Float[Array, ""], x: Float[Array, " d"]) -> Float[Array, " d"]:
        r"""Velocity :math:`E[u_t \mid x_t = x]` when base and data are both standard normal.

        .. math:: v(t, x) = \frac{\alpha\dot\alpha + \sigma\dot\sigma}{\alpha^2 + \sigma^2}\,x.

        Its flow is the identity map. A network added to it learns only what whitened data have beyond a Gaussian.

        Args:
            t: Time in [0, 1].
            x: Point on the path.

        Returns:
            The velocity, shape ``(d,)``.
        """
        (alpha, d_alpha), (sigma, d_sigma) = self._with_rates(t)
        return (alpha * d_alpha + sigma * d_sigma) / (alpha**2 + sigma**2) * x

    @property
    def width(self) -> float:
        r"""Standard deviation of :math:`x_t` at t = 0 for whitened data, :math:`(\alpha^2 + \sigma^2)^{1/2}`."""
        with jax.ensure_compile_time_eval():
            start = jnp.zeros(())
            return float(jnp.sqrt(self.alpha(start) ** 2 + self.sigma(start) ** 2))

    def velocity_from_noise(
        self, t: Float[Array, ""], x: Float[Array, " d"], noise: Float[Array, " d"]
    ) -> Float[Array, " d"]:
        r"""Velocity from the mean noise.

        .. math:: v = \frac{\dot\alpha}{\alpha}\,x + \Bigl(\dot\sigma - \frac{\dot\alpha\sigma}{\alpha}\Bigr)
            E[x_0 \mid x_t] .

        Where the path holds no data yet, :math:`\alpha = 0`, the mean noise says nothing about the velocity: times
        below 0.01 take the coefficients of 0.01.

        Args:
            t: Time in [0, 1].
            x: Point on the path.
            noise: Mean of :math:`x_0` there.

        Returns:
            The velocity, shape ``(d,)``.
        """
        (alpha, d_alpha), (sigma, d_sigma) = self._with_rates(jnp.maximum(t, jnp.asarray(0.01, t.dtype)))
        return d_alpha / alpha * x + (d_sigma - d_alpha * sigma / alpha) * noise

    def noise_from_velocity(
        self, t: Float[Array, ""], x: Float[Array, " d"], velocity: Float[Array, " d"]
    ) -> Float[Array, " d"]:
        r"""Mean noise from the velocity, the inverse of :meth:`velocity_from_noise`.

        .. math:: E[x_0 \mid x_t] = \frac{\alpha v - \dot\alpha x}{\alpha\dot\sigma - \dot\alpha\sigma} .

        Args:
            t: Time in [0, 1].
            x: Point on the path.
            velocity: Velocity there.

        Returns:
            The mean of :math:`x_0`, shape ``(d,)``.
        """
        (alpha, d_alpha), (sigma, d_sigma) = self._with_rates(t)
        return (alpha * velocity - d_alpha * x) / (alpha * d_sigma - d_alpha * sigma)

    def diffusion(self, t: Float[Array, ""]) -> Float[Array, ""]:
        r"""Diffusion coefficient g of the forward process that has these marginals.

        .. math:: g^2 = 2 \sigma \Bigl(\frac{\dot\alpha}{\alpha}\,\sigma - \dot\sigma\Bigr)
            = -\,\sigma^2\,\frac{d}{dt} \log\frac{\sigma^2}{\alpha^2} .

        Args:
            t: Time in [0, 1]; infinite where :math:`\alpha = 0`.

        Returns:
            The coefficient, a scalar.

        References:
            Kingma et al. (2021), *Variational Diffusion Models*, whose time runs from data to noise.
        """
        (alpha, d_alpha), (sigma, d_sigma) = self._with_rates(t)
        return jnp.sqrt(2 * sigma * (d_alpha / alpha * sigma - d_sigma))

    def _with_rates(self, t: Float[Array, ""]) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
        one = jnp.ones_like(t)
        return jax.jvp(self.alpha, (t,), (one,)), jax.jvp(self.sigma, (t,), (one,))


@storable("linear-path")
@final
@dataclass(frozen=True)
class LinearPath(AbstractPath):
    r"""Straight lines at constant speed, :math:`x_t = t\,x_1 + (1 - (1 - \sigma_{min})\,t)\,x_0`.

    Args:
        noise: Width :math:`\sigma_{min}` of the normal that blurs the data at t = 1.

    Example:
        >>> x_t, u_t = LinearPath().sample(jnp.array(0.25), jnp.zeros(2), jnp.ones(2))
        >>> x_t.tolist(), u_t.tolist()
        ([0.25, 0.25], [1.0, 1.0])

    References:
        Lipman et al. (2023), Eq. 20; Liu et al. (2023), *Flow Straight and Fast*, Eq. 1.
    """

    noise: float = 0.0

    def __post_init__(self) -> None:
        """Refuse a noise that no path could have."""
        settle(self, {"noise": real(lambda x: 0 <= x < 1, "a number from 0 to below 1")}, "LinearPath.")

    def alpha(self, t: Float[Array, ""]) -> Float[Array, ""]:
        """Grow linearly."""
        return t

    def sigma(self, t: Float[Array, ""]) -> Float[Array, ""]:
        """Fall linearly."""
        return 1 - (1 - self.noise) * t


@storable("trigonometric-path")
@final
@dataclass(frozen=True)
class TrigonometricPath(AbstractPath):
    r"""Variance-preserving path, :math:`x_t = \sin(\pi t/2)\,x_1 + \cos(\pi t/2)\,x_0`.

    Whitened data keep unit variance at every t, so the Gaussian part of the velocity vanishes identically.

    Example:
        >>> bool(jnp.abs(TrigonometricPath().gaussian_velocity(jnp.array(0.3), jnp.ones(2))).max() < 1e-6)
        True

    References:
        Albergo & Vanden-Eijnden (2023), *Building Normalizing Flows with Stochastic Interpolants*, Eq. 5.
    """

    def alpha(self, t: Float[Array, ""]) -> Float[Array, ""]:
        """Grow as a sine."""
        return jnp.sin(jnp.pi / 2 * t)

    def sigma(self, t: Float[Array, ""]) -> Float[Array, ""]:
        """Fall as a cosine."""
        return jnp.cos(jnp.pi / 2 * t)
