"""Losses that teach a field, each for one point of the path."""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float

from nsflow.path import AbstractPath

Velocity = Callable[[Array, Array], Array]


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
        >>> from nsflow.path import LinearPath
        >>> at_rest = lambda t, x: jnp.zeros_like(x)
        >>> float(flow_matching(at_rest, LinearPath(), jnp.array(0.5), jnp.zeros(2), jnp.ones(2)))
        1.0

    References:
        Lipman et al. (2023), *Flow Matching for Generative Modeling*, Eq. 9 and Theorem 2.
    """
    x_t, u_t = path.sample(t, x0, x1)
    return jnp.mean((velocity(t, x_t) - u_t) ** 2)
