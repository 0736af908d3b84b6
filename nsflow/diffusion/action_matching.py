"""Action matching: a potential whose gradient carries one marginal to the next."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Float

from nsflow.densities.bases import AbstractBase, Normal
from nsflow.flow.objective import AbstractFlowObjective, stratified
from nsflow.flow.path import AbstractPath
from nsflow.numerics.arguments import part, settle
from nsflow.numerics.storable import storable

Action = Callable[[Array, Array], Array]


def action_matching(
    action: Action,
    t: Float[Array, ""],
    x0: Float[Array, " d"],
    x_t: Float[Array, " d"],
    x1: Float[Array, " d"],
) -> Float[Array, ""]:
    r"""Action matching loss of one sample from each of three marginals: at 0, at t and at 1.

    .. math::
        \ell = s(0, x_0) - s(1, x_1)
        + \tfrac12 \lVert \nabla s(t, x_t) \rVert^2 + \frac{\partial s}{\partial t}(t, x_t) .

    Its mean is half the squared distance of :math:`\nabla s` to the velocity of least action, plus a constant. Samples
    of the marginals suffice: which point goes where need not be known.

    Args:
        action: The potential s, called as ``action(t, x)``.
        t: Time in [0, 1].
        x0: Sample of the marginal at 0.
        x_t: Sample of the marginal at t.
        x1: Sample of the marginal at 1.

    Returns:
        The loss, a scalar.

    Example:
        >>> move = lambda t, x: x[0] - 0.5 * t  # carries everything along at unit speed
        >>> one = jnp.ones(1)
        >>> float(action_matching(move, jnp.array(0.3), 0 * one, 0.3 * one, one))
        -0.5

    References:
        Neklyudov et al. (2023), *Action Matching*, Eq. 6.
    """
    rate, slope = jax.grad(action, (0, 1))(t, x_t)
    return action(jnp.zeros_like(t), x0) - action(jnp.ones_like(t), x1) + 0.5 * jnp.sum(slope**2) + rate


@final
@dataclass(frozen=True)
class ActionMatching(AbstractFlowObjective):
    """Action matching along a path; rows are data points.

    The marginals are sampled by :attr:`path`; for a path of which only samples exist use :func:`action_matching`.

    Args:
        path: The path between base and data.
        base: Where it starts.
    """

    path: AbstractPath
    base: AbstractBase = Normal()

    def __post_init__(self) -> None:
        """Refuse values of another kind, or out of range."""
        settle(self, {"path": part(AbstractPath), "base": part(AbstractBase)}, "ActionMatching.")

    def __call__(self, key: Array, field: Action, rows: Float[Array, "n d"]) -> Float[Array, ""]:
        """Mean of `action_matching` over the minibatch."""
        key_t, key_order, key_x0 = jax.random.split(key, 3)
        t, noise = stratified(key_t, key_order, len(rows)), self.base.sample(key_x0, *rows.shape)
        place = jax.vmap(lambda t, x0, x1: self.path.sample(t, x0, x1)[0])
        first, last = place(jnp.zeros_like(t), noise, rows), place(jnp.ones_like(t), noise, rows)
        return jnp.mean(jax.vmap(action_matching, (None, 0, 0, 0, 0))(field, t, first, place(t, noise, rows), last))

    def init(self, key: Array, num_dims: int, architecture: Any) -> Any:
        """Untrained potential."""
        return architecture.init_action(key, num_dims, self.path)

    def velocity(self, field: Any) -> Any:
        """Gradient of the potential."""
        return Partial(_slope, field)


@storable("action-slope")
def _slope(action: Action, t: Array, x: Array) -> Array:
    return jax.grad(action, 1)(t, x)
