"""Likelihoods in plain Python: one point or many at once, here or through a pool."""

import os
from collections.abc import Callable
from typing import Any, final

import numpy as np

from nsflow.batch import describe, name_of, num_points, require_callable, rows, same_type, show, show_shapes


@final
class HostLikelihood:
    """A log-likelihood in plain Python, numpy or any other language Python can call.

    Args:
        function: Takes a dict of numpy arrays (scalars as ``np.float64``) as the prior names and shapes them, and
            returns the log-likelihood in nats. It must not depend on how points are grouped.
        vectorized: Whether `function` takes many points at once: every array has a leading axis of length n, and
            n values come back.
        pool: Anything with `map` (multiprocessing, concurrent.futures, schwimmbad, mpi4py, a dask Client), or None
            to work in this process. `function` must then be picklable where the pool needs that.
        num_chunks: Number of pieces into which a batch is cut for the pool; default: the number of processors here.

    Raises:
        TypeError: If `function` cannot be called, or `pool` has no `map`.
        ValueError: If `num_chunks` is not a positive integer.

    Example:
        >>> likelihood = HostLikelihood(lambda params: -0.5 * np.sum(params["x"] ** 2, axis=-1), vectorized=True)
        >>> evaluate_host(likelihood, {"x": np.ones((3, 2))})
        array([-1., -1., -1.])
    """

    __slots__ = ("function", "num_chunks", "pool", "vectorized")
    function: Callable[[Any], Any]
    vectorized: bool
    pool: Any
    num_chunks: int

    def __init__(
        self, function: object, *, vectorized: bool = False, pool: Any = None, num_chunks: int | None = None
    ) -> None:
        function = require_callable("HostLikelihood", function)
        if pool is not None and not callable(getattr(pool, "map", None)):
            raise TypeError(
                f"`HostLikelihood` expected a `pool` with a `map` method; got {pool!r}. Give for instance "
                "`multiprocessing.Pool()` or `concurrent.futures.ProcessPoolExecutor()`."
            )
        num_chunks = (os.cpu_count() or 1) if num_chunks is None else num_chunks
        if num_chunks != int(num_chunks) or num_chunks < 1:
            raise ValueError(
                f"`HostLikelihood` expected a positive integer `num_chunks`; got {num_chunks!r}. "
                "Give the number of workers of the pool."
            )
        for name, value in zip(self.__slots__, (function, int(num_chunks), pool, bool(vectorized)), strict=True):
            object.__setattr__(self, name, value)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"`HostLikelihood` is immutable: cannot set {name!r}. Build a new one.")


def evaluate_host(likelihood: HostLikelihood, host: dict[str, np.ndarray]) -> np.ndarray:
    """Evaluate in chunks, through the pool where there is one, and check what comes back."""
    size = num_points(host)
    if size == 0:
        return np.zeros(0)
    task = _Task(likelihood.function, likelihood.vectorized)
    if likelihood.pool is None:
        return task(rows(host, slice(None)))
    bounds = np.linspace(0, size, min(likelihood.num_chunks, size) + 1).astype(int)
    chunks = [rows(host, slice(start, stop)) for start, stop in zip(bounds[:-1], bounds[1:], strict=True)]
    results = likelihood.pool.map(task, chunks)
    if hasattr(likelihood.pool, "gather"):  # a dask Client, whose `map` returns futures
        results = likelihood.pool.gather(results)
    return np.concatenate(list(results))


class _Task:
    """What a worker runs: one chunk of points to its values. A class of this module, so that it can be pickled."""

    def __init__(self, function: Callable[[Any], Any], vectorized: bool) -> None:
        self.function = function
        self.vectorized = vectorized

    def __call__(self, chunk: dict[str, np.ndarray]) -> np.ndarray:
        """Return the values of the chunk, shape (n,)."""
        return self._at_once(chunk) if self.vectorized else self._one_by_one(chunk)

    def _at_once(self, chunk: dict[str, np.ndarray]) -> np.ndarray:
        size = num_points(chunk)
        name = name_of(self.function)
        try:
            output = self.function(chunk)
        except Exception as error:
            where = f"with {size} points of the parameters {show_shapes(chunk)}"
            raise same_type(error, f"{describe(error)} (raised by the vectorized likelihood {name} {where})") from error
        values = _real(name, output, chunk)
        if values.shape != (size,):
            raise ValueError(
                f"The vectorized likelihood {name} expected to return shape ({size},), one value a "
                f"point; got {values.shape}. Sum over the data axis only, or leave out `vectorized=True`."
            )
        return values

    def _one_by_one(self, chunk: dict[str, np.ndarray]) -> np.ndarray:
        values = np.empty(num_points(chunk))
        for row in range(len(values)):
            point = {name: array[row] for name, array in chunk.items()}
            try:
                output = self.function(point)
            except Exception as error:
                raise same_type(
                    error, f"{describe(error)} (raised by the likelihood {name_of(self.function)} at {show(point)})"
                ) from error
            value = _real(name_of(self.function), output, point)
            if value.size != 1:
                raise ValueError(
                    f"The likelihood {name_of(self.function)} expected to return one number; got shape {value.shape} "
                    f"at {show(point)}. Sum over the data, or give `vectorized=True` if it takes many points at once."
                )
            values[row] = value.item()
        return values


def _real(name: str, output: Any, where: Any) -> np.ndarray:
    array = np.asarray(output)
    if array.dtype.kind not in "fiu":
        kind = type(output).__name__ if array.dtype == object else array.dtype
        raise TypeError(
            f"The likelihood {name} expected to return real numbers; got {kind} at {show(where)}. "
            "Return the log-likelihood in nats."
        )
    return array.astype(np.float64)
