"""Few compiled shapes for batches of any size: JAX compiles for every number of points that it meets."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float

MIN_SIZE = 64


def by_chunks(
    function: Callable[[Any], Any], x: Float[np.ndarray, "n d"], size: int, *, fill: float | np.ndarray = 0.0
) -> Any:
    """Apply a function to chunks of one fixed size, the last of them filled up.

    Args:
        function: Of ``(size, d)`` points, to an array or a tree of arrays with that leading axis.
        x: Points, shape ``(n, d)``.
        size: Points of one chunk.
        fill: Point that fills up the last chunk.

    Returns:
        What the function returns, as numpy arrays of leading axis n.

    Example:
        >>> by_chunks(lambda x: x.sum(axis=1), np.ones((5, 3)), 4)
        array([3., 3., 3., 3., 3.])
    """
    num_rows, num_dims = x.shape
    padding = np.zeros((-num_rows % size if num_rows else size, num_dims), x.dtype) + np.asarray(fill, x.dtype)
    results = [function(chunk) for chunk in np.concatenate([x, padding]).reshape(-1, size, num_dims)]
    return jax.tree.map(lambda *parts: np.concatenate(parts)[:num_rows], *results)


def in_few_sizes(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Pad the leading axis of a tree of arrays to a power of two; for functions too cheap to be called in chunks."""

    def padded(batch: Any) -> Any:
        leaves = jax.tree.leaves(batch)
        if any(isinstance(x, Tracer) for x in leaves) or len(leaves[0]) == 0:
            return function(batch)
        num_rows = len(leaves[0])
        extra = _power_of_two(num_rows) - num_rows
        filled = jax.tree.map(lambda x: np.pad(x, [(0, extra)] + [(0, 0)] * (np.ndim(x) - 1), mode="edge"), batch)
        return jax.tree.map(lambda x: np.asarray(x)[:num_rows], function(filled))

    return padded


def first_of_many(function: Callable[[Array, int], Any]) -> Callable[[Array, int], Any]:
    """Let a compiled generator draw a power of two, and keep the first."""
    drawn = jax.jit(function, static_argnums=1)

    def draw(key: Array, num_samples: int) -> Any:
        if isinstance(key, Tracer):
            return function(key, num_samples)
        return jax.tree.map(lambda x: np.asarray(x)[:num_samples], drawn(key, _power_of_two(num_samples)))

    return draw


def _power_of_two(size: int) -> int:
    return max(MIN_SIZE, 1 << max(size - 1, 0).bit_length())
