"""Parameters whose ends meet: where their circle is cut open."""

from dataclasses import dataclass, field
from typing import Any, final

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float
from scipy import special

from nsflow.prior.parameter import NormalLatent
from nsflow.prior.quantile import SMALLEST_COMPLEMENT

BANDWIDTH = 0.05  # of the circle
NUM_PLACES = 256  # of the circle that are tried
TOP = 0.2  # share of the draws that are looked at
# Where a step of a double next to 1 is an eighth of the probability beyond it: places on the unit interval farther up
# are told apart by hundredths of z, and from z = 8.3 on not at all.
LATENT_LIMIT = -float(special.ndtri(8 * SMALLEST_COMPLEMENT))


@final
@dataclass(frozen=True)
class Periodic:
    r"""A distribution on a circle: its two ends are the same place, as for an angle or a phase.

    A posterior that lies across the ends would be two, at opposite sides of the latent space. The first draws from the
    prior tell where it lies, and the unit interval is turned by a phase :math:`\phi` before it is mapped,

    .. math::
        x = F^{-1}\bigl((\Phi(z) + \phi) \bmod 1\bigr), \qquad z \sim N(0, 1),

    so that the ends are where the likelihood is low. Prior and evidence are the same for every phase.

    Args:
        distribution: A continuous numpyro or frozen scipy distribution of single numbers, such as
            ``numpyro.distributions.Uniform(0, 2 * jnp.pi)`` or ``numpyro.distributions.VonMises(0.0, 2.0)``.

    Example:
        >>> import numpyro.distributions as dist
        >>> import nsflow
        >>> nsflow.Prior({"phi": nsflow.Periodic(dist.Uniform(0, 6.283))}).names
        ('phi',)
    """

    distribution: Any


@final
@dataclass(frozen=True, eq=False)
class Turned(NormalLatent):
    """A parameter on a circle.

    Args:
        base: The parameter as it is on an interval; its latent vector is N(0, I).
        phases: Turn of each of its numbers, in [0, 1), shape ``(d,)``.
    """

    base: Any
    phases: Float[np.ndarray, " d"] = field(default_factory=lambda: np.zeros(1))

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        """Shape of the parameter's value."""
        return self.base.shape

    @property
    def traceable(self) -> bool:
        """Whether JAX can trace the maps."""
        return self.base.traceable

    def forward(self, z: Float[Array | np.ndarray, "n d"]) -> Any:
        """Map latent vectors to values."""
        return self.base.forward(self._turn(z, self.phases))

    def inverse(self, x: Float[Array | np.ndarray, "n *shape"]) -> Any:
        """Map values to latent vectors."""
        return self._turn(self.base.inverse(x), -self.phases)

    def log_prob(self, x: Float[Array | np.ndarray, "n *shape"]) -> Any:
        """Density of the values, in nats."""
        return self.base.log_prob(x)

    @property
    def is_periodic(self) -> Bool[np.ndarray, " d"]:
        """Which of its numbers are on a circle: all."""
        return np.full(self.num_dims, True)

    @property
    def latent_limits(self) -> tuple[np.ndarray, np.ndarray]:
        """Where places on the circle can be told from its cut."""
        upper = np.full(self.num_dims, LATENT_LIMIT)
        return -upper, upper

    def turned(self, phases: Float[np.ndarray, " d"]) -> "Turned":
        """The same parameter with other phases."""
        return Turned(self.base, np.asarray(phases) % 1.0)

    def _turn(self, z: Any, phases: Float[np.ndarray, " d"]) -> Any:
        # JAX compiles for each number of points that it is given outside of compiled functions.
        return turn(z, phases) if self.traceable else turn(z, phases, np, special)


def turn(z: Any, phases: Float[np.ndarray, " d"], xp: Any = jnp, special: Any = jax.scipy.special) -> Any:
    """Move latent points along their circles, by phases of whole turns; by JAX, or by numpy and scipy."""
    u = xp.mod(special.ndtr(z) + phases, 1.0)
    return special.ndtri(xp.clip(u, SMALLEST_COMPLEMENT, 1 - SMALLEST_COMPLEMENT))


def emptiest(u: Float[np.ndarray, " n"], log_likelihood: Float[np.ndarray, " n"]) -> float:
    """Find where on the unit circle the best of some draws from the prior are not.

    Args:
        u: Places of the draws on the circle, in [0, 1).
        log_likelihood: Their log L in nats.

    Returns:
        The place farthest from them, each weighted by the inverse of its rank: of a narrow posterior hardly any draw
        is there, but the best ones point at it.

    Example:
        >>> u = np.linspace(0, 1, 101)[:-1]
        >>> print(emptiest(u, np.cos(2 * np.pi * (u - 0.1))))
        0.59375
    """
    order = np.argsort(-log_likelihood, kind="stable")[: max(20, int(TOP * len(u)))]
    order = order[log_likelihood[order] > -np.inf]
    places = np.arange(NUM_PLACES) / NUM_PLACES
    distance = np.abs(places[:, None] - u[order])
    distance = np.minimum(distance, 1 - distance)
    log_kernel = -0.5 * (distance / BANDWIDTH) ** 2 - np.log(1 + np.arange(len(order)))
    return float(places[np.argmin(np.logaddexp.reduce(log_kernel, axis=1))])
