"""Ellipsoids around maxima: what lies above a contour where the likelihood is a Gaussian there."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import solve_triangular
from jax.scipy.special import gammaln, logsumexp
from jaxtyping import Array, Float

from nsflow.densities.bases import normal_rows
from nsflow.modes.modes import Mode
from nsflow.numerics.precision import full_precision

EQUAL = 0.25  # share of the draws that all modes have equal parts in


class Ellipsoids(NamedTuple):
    r"""Uniform distributions within the contours of Gaussian modes.

    .. math::
        E_k(L^*) = \{c_k + \rho\, S_k u : |u| \le 1\}, \qquad \rho^2 = 2 (\log L(c_k) - \log L^*) .

    c is a maximum of likelihood times prior and S its width; where the prior is not flat across a mode the ellipsoid is
    not the region above the contour, and there is none above L(c). None holds more than the prior does. A quarter of
    the draws falls on all in equal parts, the rest by the mass of the prior within each: in equal parts alone, most
    draws were made in narrow modes, where they are hardly ever accepted.

    Args:
        centre: The maxima c.
        scale: Lower triangular S, whose square is the inverse of the negative Hessian.
        log_likelihood: At the maxima, nats.
        log_prior: There, nats.
        log_radius: Logarithm of rho; -inf for none.
        num_calls: Likelihood calls that finding them took.

    References:
        Feroz, Hobson & Bridges (2009), *MultiNest*, Section 5.2, for ellipsoids; theirs are fitted to live points.
    """

    centre: Float[Array, "k d"]
    scale: Float[Array, "k d d"]
    log_likelihood: Float[Array, " k"]
    log_prior: Float[Array, " k"]
    log_radius: Float[Array, " k"]
    num_calls: Array

    @property
    def num_dims(self) -> int:
        """Dimension d of the points."""
        return self.centre.shape[1]

    @property
    def modes(self) -> list[Mode]:
        """The modes that they were built around."""
        as_float64 = lambda a: np.asarray(a, np.float64)  # noqa: E731
        log_density = as_float64(self.log_likelihood) + as_float64(self.log_prior)
        return [Mode(*one) for one in zip(as_float64(self.centre), log_density, as_float64(self.scale), strict=True)]

    def at_contour(self, contour: Array) -> "Ellipsoids":
        """Let them reach to a contour, nats.

        Example:
            >>> one = around([Mode(np.zeros(2), -3.0, np.eye(2))], np.array([0.0]), 0, jnp.float32)
            >>> round(float(jnp.exp(one.at_contour(jnp.float32(-2.0)).log_radius[0])), 4)
            2.0
        """
        depth = 2 * (self.log_likelihood - contour)
        log_radius = jnp.where(depth > 0, 0.5 * jnp.log(jnp.maximum(depth, jnp.finfo(depth.dtype).tiny)), -jnp.inf)
        # The mass of the prior within it, were the prior flat: one at most.
        largest = -(self.log_prior + self._log_volume()) / self.num_dims
        return self._replace(log_radius=jnp.minimum(log_radius, largest))

    @property
    def is_any(self) -> bool:
        """Whether there are any modes, above the contour or below."""
        return len(self.centre) > 0

    @property
    def is_there(self) -> Array:
        """Whether any mode lies above the contour."""
        return jnp.any(self.log_radius > -jnp.inf)

    @full_precision
    def sample(self, key: Array, num_samples: int) -> Float[Array, "n d"]:
        """Draw points; at a maximum where there is no ellipsoid."""
        key_which, key_normal, key_radius = jax.random.split(key, 3)
        dtype, num_dims = self.centre.dtype, self.num_dims
        which = jax.random.categorical(key_which, self._log_share(), shape=(num_samples,))
        normal = normal_rows(key_normal, num_samples, num_dims, dtype)
        uniform = jax.random.uniform(key_radius, (num_samples, 1), dtype)
        unit = normal / jnp.linalg.norm(normal, axis=1, keepdims=True) * uniform ** (1 / num_dims)
        offset = jnp.einsum("kij,nj->kni", self.scale, unit)[which, jnp.arange(num_samples)]
        return self.centre[which] + jnp.exp(self.log_radius[which])[:, None] * offset

    @full_precision
    def log_prob(self, x: Float[Array, " d"]) -> Float[Array, ""]:
        """Log-density of one point, nats; -inf outside of all."""
        white = jax.vmap(lambda scale, centre: solve_triangular(scale, x - centre, lower=True))(self.scale, self.centre)
        is_within = jnp.sum(white**2, axis=1) <= jnp.exp(2 * self.log_radius)
        log_density = self._log_share() - self._log_volume() - self.num_dims * self.log_radius
        return logsumexp(jnp.where(is_within & (self.log_radius > -jnp.inf), log_density, -jnp.inf))

    def _log_share(self) -> Array:
        """Logarithm of the share of the draws that each has."""
        log_mass = self.log_prior + self._log_volume() + self.num_dims * self.log_radius
        is_there = self.log_radius > -jnp.inf
        by_mass = jax.nn.softmax(jnp.where(is_there, log_mass, jnp.finfo(log_mass.dtype).min))
        equal = is_there.astype(by_mass.dtype) / jnp.maximum(jnp.sum(is_there), 1).astype(by_mass.dtype)
        return jnp.where(is_there, jnp.log(EQUAL * equal + (1 - EQUAL) * by_mass), -jnp.inf)

    def _log_volume(self) -> Array:
        """Log volume at a radius of one."""
        half = jnp.asarray(self.num_dims / 2, self.centre.dtype)
        ball = half * jnp.log(jnp.asarray(np.pi, half.dtype)) - gammaln(half + 1)
        return ball + jnp.sum(jnp.log(jnp.diagonal(self.scale, axis1=1, axis2=2)), axis=1)


def around(
    modes: list[Mode], log_likelihood: Float[np.ndarray, " k"], num_calls: int, dtype: Any, num_dims: int = 0
) -> Ellipsoids:
    """Ellipsoids around modes, reaching nowhere yet.

    Args:
        modes: The modes; there may be none.
        log_likelihood: At their maxima, nats.
        num_calls: Likelihood calls that finding them took.
        dtype: Of the arrays.
        num_dims: Dimension d, if there are no modes.

    Returns:
        The ellipsoids.
    """
    num_dims = len(modes[0].centre) if modes else num_dims
    return Ellipsoids(
        centre=jnp.asarray(np.reshape([mode.centre for mode in modes], (-1, num_dims)).astype(dtype)),
        scale=jnp.asarray(np.reshape([mode.scale for mode in modes], (-1, num_dims, num_dims)).astype(dtype)),
        log_likelihood=jnp.asarray(np.asarray(log_likelihood, dtype)),
        log_prior=jnp.asarray(np.asarray([mode.log_density for mode in modes] - log_likelihood, dtype)),
        log_radius=jnp.asarray(np.full(len(modes), -np.inf, dtype)),
        num_calls=jnp.asarray(np.int32(num_calls)),
    )
