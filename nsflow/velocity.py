"""Velocity fields: networks of flax, and the callables that a flow integrates."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.tree_util import Partial
from jaxtyping import Array, Float

from nsflow.path import AbstractPath


class VelocityNetwork(nnx.Module):
    r"""Multilayer perceptron of one point and its time, zero at the start of training.

    Args:
        num_dims: Dimension d of the points.
        width: Units of each hidden layer.
        depth: Number of hidden layers.
        num_frequencies: Time enters as :math:`\cos, \sin(\pi k t)` for k up to this number.
        rngs: Source of the initial weights.

    Example:
        >>> network = VelocityNetwork(2, width=16, depth=2, num_frequencies=4, rngs=nnx.Rngs(0))
        >>> network(jnp.array(0.5), jnp.ones(2)).tolist()
        [0.0, 0.0]
    """

    def __init__(self, num_dims: int, *, width: int, depth: int, num_frequencies: int, rngs: nnx.Rngs):
        sizes = [num_dims + 2 * num_frequencies] + [width] * depth
        self.layers = nnx.List([nnx.Linear(m, n, rngs=rngs) for m, n in zip(sizes[:-1], sizes[1:], strict=True)])
        zeros = nnx.initializers.zeros_init()
        self.head = nnx.Linear(width, num_dims, kernel_init=zeros, rngs=rngs)
        self.num_frequencies = num_frequencies

    def __call__(self, t: Float[Array, ""], x: Float[Array, " d"]) -> Float[Array, " d"]:
        """Evaluate in float32, whatever the precision of the point."""
        angle = jnp.pi * jnp.arange(1, self.num_frequencies + 1, dtype=jnp.float32) * t.astype(jnp.float32)
        h = jnp.concatenate([x.astype(jnp.float32), jnp.cos(angle), jnp.sin(angle)])
        for layer in self.layers:
            h = nnx.silu(layer(h))
        return self.head(h).astype(x.dtype)


@dataclass(frozen=True)
class Architecture:
    """Size of a velocity network.

    Args:
        width: Units of each hidden layer.
        depth: Number of hidden layers.
        num_frequencies: Number of cosine and sine pairs that encode time.
    """

    width: int = 64
    depth: int = 3
    num_frequencies: int = 4

    def init(self, key: Array, num_dims: int, path: AbstractPath) -> Partial:
        """Untrained velocity field: the path's Gaussian part plus a network that is zero.

        Args:
            key: JAX random key.
            num_dims: Dimension d of the points.
            path: Path whose Gaussian velocity the network corrects.

        Returns:
            A callable pytree ``velocity(t, x)`` whose leaves are the network's weights.
        """
        network = VelocityNetwork(
            num_dims,
            width=self.width,
            depth=self.depth,
            num_frequencies=self.num_frequencies,
            rngs=nnx.Rngs(key),
        )
        graph, weights = nnx.split(network)
        return Partial(_gaussian_plus_network, graph, _Static(path), weights)


@jax.tree_util.register_static
@dataclass(frozen=True)
class _Static:
    """Hand an object without arrays through a pytree."""

    value: Any


def _gaussian_plus_network(graph: Any, path: _Static, weights: Any, t: Array, x: Array) -> Array:
    return path.value.gaussian_velocity(t, x) + nnx.merge(graph, weights)(t, x)


def as_velocity(field: Callable[[Array, Array], Array]) -> Partial:
    """Turn any callable ``velocity(t, x)`` of one point into a pytree that JAX can transform.

    Args:
        field: A function, a flax network or a pytree that is callable.

    Returns:
        The callable as a pytree; the weights of a network are its leaves.
    """
    if isinstance(field, Partial):
        return field
    if isinstance(field, nnx.Module):
        graph, weights = nnx.split(field)
        return Partial(_network, graph, weights)
    return Partial(field)


def _network(graph: Any, weights: Any, t: Array, x: Array) -> Array:
    return nnx.merge(graph, weights)(t, x)
