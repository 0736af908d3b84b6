"""Runge-Kutta steps of a velocity field over the unit of time."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def integrate(
    velocity: Callable[[Array, Array], Array], x: Float[Array, " d"], num_steps: Any, *, backwards: Any
) -> Float[Array, " d"]:
    """Carry one point along a field by classical Runge-Kutta steps.

    Args:
        velocity: The field, called as ``velocity(t, x)``.
        x: Where to start.
        num_steps: Number of equal steps, which may be traced.
        backwards: From t = 1 to 0 instead of 0 to 1; may be traced.

    Returns:
        Where it ends.

    Example:
        >>> print(f"{integrate(lambda t, x: x, jnp.ones(1), 8, backwards=False)[0]:.4f}")
        2.7183
    """
    start = jnp.asarray(backwards).astype(x.dtype)
    h = (1 - 2 * start) / jnp.asarray(num_steps, x.dtype)

    nodes, weights = jnp.array([0, 0.5, 0.5, 1], x.dtype), jnp.array([1, 2, 2, 1], x.dtype) / 6

    def step(i: Array, x: Array) -> Array:
        t = start + i.astype(x.dtype) * h

        def stage(j: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
            k, mean = state
            k = velocity(t + nodes[j] * h, x + nodes[j] * h * k)
            return k, mean + weights[j] * k

        # A loop over the stages, for which the field is compiled once.
        return x + h * jax.lax.fori_loop(0, 4, stage, (jnp.zeros_like(x), jnp.zeros_like(x)))[1]

    return jax.lax.fori_loop(0, num_steps, step, x)
