"""Parameters that take integer values: their place in the latent space, exact to the last bit of the evidence."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from scipy import special

from nsflow.prior.parameter import NormalLatent
from nsflow.prior.quantile import SMALLEST_TAIL

MAX_VALUES = 1_000_000  # of a table of probabilities: 8 MB
NEGLIGIBLE = 1e-20  # probability of the values beyond the table's end; of 1e20 draws from the prior one would be there


@final
@dataclass(frozen=True, eq=False)
class Discrete(NormalLatent):
    r"""Parameter of integer values k with probabilities p_k, each an interval of the latent N(0, 1).

    .. math::
        x(z) = k \iff z_{k - 1} < z \le z_k, \qquad z_k = \Phi^{-1}\Bigl(\sum_{j \le k} p_j\Bigr).

    The likelihood is then a step function of the latent vector, and evidence and posterior are exactly those of the
    discrete prior. It has no gradient along these coordinates.

    Args:
        shape: Shape of the parameter's value.
        lowest: Smallest value of the table.
        log_probs: Log of p_k for each element of the value, shape ``(num_elements, num_values)``.

    Example:
        >>> from nsflow.numerics.precision import float64
        >>> coin = Discrete((), 0, np.log([[0.5, 0.5]]))
        >>> float64(lambda: coin.forward(jnp.array([[-0.1], [0.1]])).tolist())()
        [0.0, 1.0]
    """

    shape: tuple[int, ...]
    lowest: int
    log_probs: Float[np.ndarray, "d k"]
    traceable: bool = True

    @property
    def edges(self) -> Float[np.ndarray, "d k_minus_1"]:
        """Latent places where one value passes to the next, each tail summed from its own end."""
        probs = np.exp(self.log_probs)
        below = np.cumsum(probs, axis=1)[:, :-1]
        above = np.cumsum(probs[:, ::-1], axis=1)[:, ::-1][:, 1:]
        tail = np.clip(np.minimum(below, above), SMALLEST_TAIL, 0.5)
        return np.where(below < above, 1.0, -1.0) * special.ndtri(tail)

    def forward(self, z: Float[Array, "n d"]) -> Float[Array, "n *shape"]:
        """Map latent vectors to values."""
        columns = [jnp.searchsorted(jnp.asarray(edges), z[:, i]) for i, edges in enumerate(self.edges)]
        return (self.lowest + jnp.stack(columns, axis=1)).astype(jnp.float64).reshape((-1, *self.shape))

    def inverse(self, x: Float[Array, "n *shape"]) -> Float[Array, "n d"]:
        """Map values to latent vectors, each to the middle of its interval."""
        index = self._index(x)
        probs = np.exp(self.log_probs)
        below = np.cumsum(probs, axis=1) - probs / 2
        above = np.cumsum(probs[:, ::-1], axis=1)[:, ::-1] - probs / 2
        tail = np.clip(np.minimum(below, above), SMALLEST_TAIL, 0.5)
        middles = jnp.asarray(np.where(below < above, 1.0, -1.0) * special.ndtri(tail))
        return jnp.stack([jnp.take(middle, index[:, i], mode="clip") for i, middle in enumerate(middles)], axis=1)

    def log_prob(self, x: Float[Array, "n *shape"]) -> Float[Array, " n"]:
        """Log of the probability of the values, in nats."""
        index, flat = self._index(x), x.reshape((-1, self.num_dims))
        size = self.log_probs.shape[1]
        log_prob = jnp.stack(
            [jnp.take(jnp.asarray(p), index[:, i], mode="clip") for i, p in enumerate(self.log_probs)], axis=1
        )
        is_value = (index >= 0) & (index < size) & (flat == jnp.round(flat))
        return jnp.sum(jnp.where(is_value, log_prob, -jnp.inf), axis=1)

    def step_widths(self, z: Float[np.ndarray, " d"]) -> Float[np.ndarray, " d"]:
        """Widths of Gaussians around a latent point that hold as much as the prior does of its values."""
        index = [np.searchsorted(edges, place) for edges, place in zip(self.edges, z, strict=True)]
        return np.exp(self.log_probs[np.arange(len(z)), index] + 0.5 * z**2)

    def _index(self, x: Array) -> Array:
        return jnp.round(x.reshape((-1, self.num_dims)) - self.lowest).astype(jnp.int64)


def table(
    log_prob: Callable[[np.ndarray], np.ndarray], lowest: int, highest: float
) -> tuple[int, Float[np.ndarray, "d k"]]:
    """Tabulate the probabilities of integer values, until hardly any is left beyond.

    Args:
        log_prob: Function of values, shape ``(k,)``, to their log-probabilities in nats, shape ``(k, d)``.
        lowest: Smallest value.
        highest: Largest value, maybe infinite.

    Returns:
        ``(lowest, log_probs)``, of shape ``(d, k)``, normalised.

    Raises:
        ValueError: If it takes too many values, or the probabilities do not sum to one.
    """
    num = 64
    while True:
        num = int(min(num, highest - lowest + 1))
        log_probs = np.asarray(log_prob(lowest + np.arange(num)), np.float64).T
        total = np.logaddexp.reduce(log_probs, axis=1)
        is_falling = np.all(log_probs[:, -1] + np.log(num) < np.log(NEGLIGIBLE)) and np.all(total > np.log(0.999))
        if lowest + num > highest or is_falling:
            break
        if num >= MAX_VALUES:
            raise ValueError(f"more than {MAX_VALUES} values")
        num *= 2
    if not np.allclose(total, 0.0, atol=1e-6):
        raise ValueError(f"probabilities that sum to {np.exp(total).tolist()}")
    return lowest, log_probs - total[:, None]
