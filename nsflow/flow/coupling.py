"""Couplings: which draw of the base is paired with which data point of a minibatch."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from nsflow.numerics.arguments import POSITIVE, integer, settle


class AbstractCoupling(ABC):
    """A joint distribution of base and data whose marginals are theirs."""

    @abstractmethod
    def pair(self, key: Array, x0: Float[Array, "n d"], x1: Float[Array, "n d"]) -> Float[Array, "n d"]:
        """Choose a base point for each data point.

        Args:
            key: JAX random key.
            x0: Draws of the base.
            x1: Data points.

        Returns:
            Rows of `x0`, one for each row of `x1`.
        """


@final
@dataclass(frozen=True)
class Independent(AbstractCoupling):
    """Base and data know nothing of each other."""

    def pair(self, key: Array, x0: Float[Array, "n d"], x1: Float[Array, "n d"]) -> Float[Array, "n d"]:  # noqa: ARG002
        """Leave the draws as they are."""
        return x0


@final
@dataclass(frozen=True)
class Sinkhorn(AbstractCoupling):
    r"""Optimal transport between the minibatches, with an entropic penalty.

    .. math::
        P = \arg\min_P \sum_{ij} P_{ij} \lVert x_0^i - x_1^j \rVert^2 - \lambda H(P), \qquad
        \sum_i P_{ij} = \sum_j P_{ij} = \tfrac1n .

    Each data point draws its partner from its column of P. Paths cross less, so that fewer integration steps do.

    Args:
        regularisation: lambda, in units of the mean squared distance.
        num_iterations: Alternating normalisations of rows and columns.

    Example:
        >>> x0, x1 = jnp.array([[0.0], [5.0]]), jnp.array([[5.1], [0.1]])
        >>> Sinkhorn().pair(jax.random.key(0), x0, x1).tolist()
        [[5.0], [0.0]]

    References:
        Cuturi (2013), *Sinkhorn Distances*, Algorithm 1, in logarithms; Tong et al. (2024), *Improving and Generalizing
        Flow-Based Generative Models with Minibatch Optimal Transport*, Algorithm 3.
    """

    regularisation: float = 0.02
    num_iterations: int = 100

    def __post_init__(self) -> None:
        """Refuse values of another kind, or out of range."""
        settle(self, {"regularisation": POSITIVE, "num_iterations": integer(1, 10**8)}, "Sinkhorn.")

    def pair(self, key: Array, x0: Float[Array, "n d"], x1: Float[Array, "n d"]) -> Float[Array, "n d"]:
        """Draw a partner for each data point."""
        return x0[jax.random.categorical(key, self.log_plan(x0, x1), axis=0)]

    def log_plan(self, x0: Float[Array, "n d"], x1: Float[Array, "n d"]) -> Float[Array, "n n"]:
        """Log of P, one row for each row of `x0`."""
        cost = jnp.sum((x0[:, None, :] - x1[None, :, :]) ** 2, axis=2)
        log_kernel = -cost / (self.regularisation * jnp.mean(cost))
        log_share = -jnp.log(jnp.asarray(len(x0), cost.dtype))

        def normalise(_: Array, log_plan: Array) -> Array:
            log_plan = log_plan + log_share - jax.nn.logsumexp(log_plan, axis=1, keepdims=True)
            return log_plan + log_share - jax.nn.logsumexp(log_plan, axis=0, keepdims=True)

        return jax.lax.fori_loop(0, self.num_iterations, normalise, log_kernel)
