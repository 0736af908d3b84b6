"""Losses that teach a field: for one point as on paper, and as objectives over a minibatch."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from nsflow.densities.bases import AbstractBase, Normal
from nsflow.flow.coupling import AbstractCoupling, Independent
from nsflow.flow.path import AbstractPath
from nsflow.numerics.arguments import part, settle

Velocity = Callable[[Array, Array], Array]


class AbstractObjective(ABC):
    """What a field is taught by: the mean loss over a minibatch of rows of the training set."""

    @abstractmethod
    def __call__(self, key: Array, field: Any, rows: Float[Array, "n k"]) -> Float[Array, ""]:
        """Mean loss.

        Args:
            key: JAX random key.
            field: What is trained, a callable pytree.
            rows: Minibatch of the training set, in its order, shape ``(n, k)``.

        Returns:
            The loss, a scalar.
        """


class AbstractFlowObjective(AbstractObjective):
    """An objective whose field, of whatever kind, is in the end a velocity: what a flow can be taught by."""

    path: AbstractPath

    def init(self, key: Array, num_dims: int, architecture: Any) -> Any:
        """Untrained field; a velocity unless a subclass says otherwise.

        Args:
            key: JAX random key.
            num_dims: Dimension d of the points.
            architecture: Size of the network, a :class:`nsflow.flow.Architecture`.

        Returns:
            A callable pytree.
        """
        return architecture.init(key, num_dims, self.path)

    def velocity(self, field: Any) -> Any:
        """The velocity of a field, a callable pytree; the field itself unless a subclass says otherwise."""
        return field


def stratified(key_t: Array, key_order: Array, size: int) -> Float[Array, " n"]:
    """Times in [0, 1], one in each of `size` equal parts, in random order: the rows of a resample are in order."""
    strata = (jnp.arange(size, dtype=jnp.float32) + jax.random.uniform(key_t, (size,), jnp.float32)) / size
    return jax.random.permutation(key_order, strata)


def flow_matching(
    velocity: Velocity,
    path: AbstractPath,
    t: Float[Array, ""],
    x0: Float[Array, " d"],
    x1: Float[Array, " d"],
) -> Float[Array, ""]:
    r"""Conditional flow matching loss of one pair and one time.

    .. math:: \ell = \frac1d \lVert v(t, x_t) - u_t \rVert^2.

    Its expectation over independent :math:`x_0, x_1` and t has the same gradient as the distance to the marginal
    velocity :math:`E[u_t \mid x_t]`, which carries the base to the data.

    Args:
        velocity: The field, called as ``velocity(t, x)`` on one point.
        path: The path between base and data.
        t: Time in [0, 1].
        x0: Draw from the base.
        x1: Draw from the data.

    Returns:
        The loss, a scalar.

    Example:
        >>> from nsflow.flow.path import LinearPath
        >>> at_rest = lambda t, x: jnp.zeros_like(x)
        >>> float(flow_matching(at_rest, LinearPath(), jnp.array(0.5), jnp.zeros(2), jnp.ones(2)))
        1.0

    References:
        Lipman et al. (2023), *Flow Matching for Generative Modeling*, Eq. 9 and Theorem 2.
    """
    x_t, u_t = path.sample(t, x0, x1)
    return jnp.mean((velocity(t, x_t) - u_t) ** 2)


@final
@dataclass(frozen=True)
class FlowMatching(AbstractFlowObjective):
    """Conditional flow matching with stratified times; rows are data points.

    Args:
        path: The path between base and data.
        base: Where the path starts.
        coupling: How data points are paired with draws of the base.
    """

    path: AbstractPath
    base: AbstractBase = Normal()
    coupling: AbstractCoupling = Independent()

    def __post_init__(self) -> None:
        """Refuse parts of another kind."""
        settle(
            self,
            {"path": part(AbstractPath), "base": part(AbstractBase), "coupling": part(AbstractCoupling)},
            "FlowMatching.",
        )

    def __call__(self, key: Array, field: Velocity, rows: Float[Array, "n d"]) -> Float[Array, ""]:
        """Mean of `flow_matching` over the minibatch."""
        t, x0 = self.pair(key, rows)
        x0 = self.coupling.pair(jax.random.fold_in(key, 1), x0, rows)
        return jnp.mean(jax.vmap(flow_matching, (None, None, 0, 0, 0))(field, self.path, t, x0, rows))

    def pair(self, key: Array, rows: Float[Array, "n d"]) -> tuple[Float[Array, " n"], Float[Array, "n d"]]:
        """Times and base draws for a minibatch."""
        key_t, key_order, key_x0 = jax.random.split(key, 3)
        return stratified(key_t, key_order, len(rows)), self.base.sample(key_x0, *rows.shape)


@final
@dataclass(frozen=True)
class Regression(AbstractObjective):
    r"""Huber loss of a scalar field; the last column of a row is the value wanted, in nats.

    A value at or below the floor only says "low": a field that is lower still is not punished.

    Args:
        floor: Smallest value that is meant literally.

    References:
        Huber (1964), *Robust Estimation of a Location Parameter*, with the corner at one nat.
    """

    floor: float

    def __call__(self, key: Array, field: Callable[[Array], Array], rows: Float[Array, "n k"]) -> Float[Array, ""]:  # noqa: ARG002
        """Mean loss over the minibatch."""
        wanted = rows[:, -1]
        error = jax.vmap(field)(rows[:, :-1]) - wanted
        error = jnp.abs(jnp.where((wanted <= self.floor) & (error < 0), 0.0, error))
        return jnp.mean(jnp.where(error < 1, 0.5 * error**2, error - 0.5))
