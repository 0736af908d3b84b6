"""Few compiled shapes for batches of any size: JAX compiles for every number of points that it meets."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array

BLOCK = 32  # points of a flow that a CPU's cache holds with their tangents
WIDTH = 8  # chunks of a CPU that make one of an accelerator, which takes as long for many points as for few


# A number beyond float32 becomes infinite on its way into JAX. Where numpy is told to raise, that ends the process.
@np.errstate(over="ignore", under="ignore", invalid="ignore")
def by_chunks(function: Callable[[Any], Any], batch: Any, size: int) -> Any:
    """Apply a function to chunks of one fixed size, the last of them filled up with its last row.

    Args:
        function: Of a tree of arrays with a leading axis of `size`, to another such tree.
        batch: Tree of arrays that share the length n of their leading axis.
        size: Rows of one chunk on a CPU.

    Returns:
        What the function returns, as numpy arrays of leading axis n.

    Example:
        >>> by_chunks(lambda x: x.sum(axis=1), np.ones((5, 3)), 4)
        array([3., 3., 3., 3., 3.])
    """
    size = size if jax.default_backend() == "cpu" else WIDTH * size
    num_rows = len(jax.tree.leaves(batch)[0])
    if num_rows == 0:  # one chunk of anything tells the shapes
        batch = jax.tree.map(lambda x: np.zeros((1, *np.shape(x)[1:]), np.asarray(x).dtype), batch)
    extra = -max(num_rows, 1) % size
    padded = jax.tree.map(lambda x: np.pad(x, [(0, extra)] + [(0, 0)] * (np.ndim(x) - 1), "edge"), batch)
    starts = range(0, max(num_rows, 1), size)
    chunks = [jax.tree.map(lambda x, i=i: x[i : i + size], padded) for i in starts]
    with jax.transfer_guard("allow"):  # weights move, whatever the user forbids elsewhere
        return jax.tree.map(lambda *parts: np.concatenate(parts)[:num_rows], *[function(chunk) for chunk in chunks])


def map_points(function: Callable[[Any], Any], points: Any, block: int = BLOCK) -> Any:
    """Apply a function of one point to an array of them, as `jax.vmap` does, in blocks that a CPU's cache holds.

    The inverse of a flow, with its d tangents of every hidden layer, takes half the time in 5-d and 10-d.

    Args:
        function: Of one point, shape ``(d,)``, to a tree of arrays.
        points: Points, shape ``(n, d)``.
        block: Points of one block.

    Returns:
        The tree with a leading axis of n.

    Example:
        >>> map_points(lambda x: x.sum(), jnp.ones((70, 2))).shape
        (70,)
    """
    num_points = len(points)
    if num_points <= block or not _has_cache():
        return jax.vmap(function)(points)
    padded = jnp.pad(points, ((0, -num_points % block), (0, 0)), "edge")
    values = jax.lax.map(jax.vmap(function), padded.reshape(-1, block, points.shape[1]))
    return jax.tree.map(lambda value: value.reshape(-1, *value.shape[2:])[:num_points], values)


def map_some(function: Callable[[Any], Any], rows: Any, is_needed: Array, block: int = BLOCK) -> Any:
    """Put what a function makes of some rows in their place, block by block.

    In a block of 32 one point or another needs a second step of Newton's method, of all points one in five: inverses
    took 77 ms where each block waited for its slowest point, and take 55.

    Args:
        function: Of one row to another such row.
        rows: Tree of arrays that share the length n of their leading axis.
        is_needed: Which rows, shape ``(n,)``.
        block: Rows of one block.

    Returns:
        The tree with these rows replaced.

    Example:
        >>> map_some(lambda x: 2 * x, jnp.arange(4), jnp.array([True, False, False, True])).tolist()
        [0, 1, 2, 6]
    """
    num_rows = len(is_needed)
    if num_rows == 0:
        return rows
    block = min(block, num_rows) if _has_cache() else num_rows
    # Rows beyond the last are read from the last one and written nowhere.
    order = jnp.pad(jnp.argsort(~is_needed), (0, -num_rows % block), constant_values=num_rows)

    def replace_block(i: Array, rows: Any) -> Any:
        index = jax.lax.dynamic_slice(order, (i * block,), (block,))
        index = jnp.where(is_needed.at[index].get(mode="clip"), index, num_rows)
        new = jax.vmap(function)(jax.tree.map(lambda a: a.at[index].get(mode="clip"), rows))
        return jax.tree.map(lambda a, b: a.at[index].set(b, mode="drop"), rows, new)

    num_blocks = (jnp.sum(is_needed, dtype=jnp.int32) + block - 1) // block
    return jax.lax.fori_loop(0, num_blocks, replace_block, rows)


def _has_cache() -> bool:
    return jax.default_backend() == "cpu" and jax.device_count() == 1


def in_chunks(function: Callable[[Any], Any], size: int) -> Callable[[Any], Any]:
    """Let a compiled function take batches of any size, by chunks, or tracers."""

    def chunked(batch: Any) -> Any:
        traced = any(isinstance(x, Tracer) for x in jax.tree.leaves(batch))
        return function(batch) if traced else by_chunks(function, batch, size)

    return chunked


def draw_in_chunks(function: Callable[[Array, int], Any], size: int) -> Callable[[Array, int], Any]:
    """Let a compiled generator draw chunks of one size, each with a key of its own; few draws are the first of more."""
    drawn = jax.jit(lambda key, i: function(jax.random.fold_in(key, i), size))

    def draw(key: Array, num_samples: int) -> Any:
        if isinstance(key, Tracer):
            return function(key, num_samples)
        chunks = [drawn(key, i) for i in range(max(1, -(-num_samples // size)))]
        return jax.tree.map(lambda *parts: np.concatenate(parts)[:num_samples], *chunks)

    return draw
