"""Likelihoods in plain Python: one point or many at once, here or through a pool."""

import os
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, final

import numpy as np

from nsflow.likelihood.batch import (
    Values,
    join_values,
    name_of,
    num_points,
    require_callable,
    rows,
    show,
    show_shapes,
    split,
)
from nsflow.likelihood.signals import leave_to_parent
from nsflow.likelihood.workers import Workers
from nsflow.numerics.arguments import integer, optional, real, truth
from nsflow.numerics.arithmetic import callers_arithmetic
from nsflow.numerics.errors import Failure, LikelihoodError, Lost, describe, explain, portable

NUM_CHUNKS = optional(integer(1, advice="Give the number of workers of the pool."))
RETRIES = integer(0, advice="Give how often a failing call is made again; 0 for never.")
SECONDS = optional(real(lambda seconds: 0 < seconds < np.inf, "a positive number of seconds"))


@final
class HostLikelihood:
    """A log-likelihood in plain Python, numpy or any other language Python can call.

    Args:
        function: Takes a dict of numpy arrays (scalars as ``np.float64``) as the prior names and shapes them, and
            returns the log-likelihood in nats, or ``(log_likelihood, {"name": number})`` with derived parameters. It
            must not depend on how points are grouped.
        vectorized: Whether `function` takes many points at once: every array has a leading axis of length n, and
            n values come back.
        pool: Anything with `map` (multiprocessing, concurrent.futures, schwimmbad, mpi4py.futures, a dask Client,
            `ray.util.multiprocessing`), a function or class without arguments that makes one, or None to work in this
            process. `function` must then be picklable where the pool needs that.
        num_chunks: Number of pieces into which a batch is cut for the pool. If left out one a worker of a vectorized
            function, four of another one, and one a point where there is a `timeout`.
        timeout: Seconds that one call of `function` may take: if no worker has answered for so long, what they are at
            is given up. It needs a `pool`. None waits for ever.
        retries: How often a call that raised, or whose worker died or hung, is made again before it is reported.

    Raises:
        TypeError: If `function` is none that returns a number, `vectorized` not a truth value, or `pool` no pool.
        ValueError: If `num_chunks` is not a positive integer, `retries` not a natural number, or `timeout` not a
            positive number or set without a pool that can give up a call.

    Example:
        >>> likelihood = HostLikelihood(lambda params: -0.5 * np.sum(params["x"] ** 2, axis=-1), vectorized=True)
        >>> evaluate_host(likelihood, {"x": np.ones((3, 2))}).log_likelihood
        array([-1., -1., -1.])
    """

    __slots__ = ("function", "num_chunks", "pool", "retries", "timeout", "vectorized", "workers")
    function: Callable[[Any], Any]
    vectorized: bool
    pool: Any
    num_chunks: int | None
    timeout: int | float | None
    retries: int
    workers: Workers | None

    def __init__(
        self,
        function: object,
        *,
        vectorized: Any = False,
        pool: Any = None,
        num_chunks: Any = None,
        timeout: Any = None,
        retries: Any = 2,
    ) -> None:
        function = require_callable("HostLikelihood", function)
        vectorized = truth("`HostLikelihood` for its `vectorized`", vectorized)
        num_chunks = NUM_CHUNKS("`HostLikelihood` for its `num_chunks`", num_chunks)
        retries = RETRIES("`HostLikelihood` for its `retries`", retries)
        timeout = SECONDS("`HostLikelihood` for its `timeout`", timeout)
        if timeout is not None and pool is None:
            raise ValueError(
                f"`HostLikelihood` expected a `pool` beside `timeout`={timeout}: a call in this process cannot be "
                "given up. Give for instance `pool=multiprocessing.Pool`."
            )
        workers = None if pool is None else Workers(pool, timeout)
        values = function, num_chunks, pool, retries, timeout, vectorized, workers
        for name, value in zip(self.__slots__, values, strict=True):
            object.__setattr__(self, name, value)

    def __copy__(self) -> "HostLikelihood":
        """The likelihood itself, which is immutable."""
        return self

    def __deepcopy__(self, memo: Any) -> "HostLikelihood":
        """The likelihood itself, which is immutable."""
        return self

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        """Pickle what it was made from; a pool that is at work belongs to one process."""
        if self.workers is not None and not self.workers.is_made_here:
            raise TypeError(
                f"`HostLikelihood` expected a function that makes a pool when it is pickled; its `pool` is "
                f"{self.pool!r}, whose workers belong to this process. Give for instance `pool=multiprocessing.Pool`."
            )
        options = ("vectorized", "pool", "num_chunks", "timeout", "retries")
        return partial(HostLikelihood, **{name: getattr(self, name) for name in options}), (self.function,)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"`HostLikelihood` is immutable: cannot set {name!r}. Build a new one.")


def evaluate_host(likelihood: HostLikelihood, host: dict[str, np.ndarray], *, retries: int | None = None) -> Values:
    """Evaluate in chunks, through the pool where there is one, and check what comes back.

    Args:
        likelihood: The likelihood.
        host: Parameters, each of shape ``(n, *shape)``.
        retries: How often what fails is tried again; the likelihood's own number if left out.

    Returns:
        The values.

    Raises:
        LikelihoodError: If a worker died or hung, as often as it was tried.
        Exception: What the function raised, of the same type where that can be, with the point in the message.
    """
    retries = likelihood.retries if retries is None else retries
    task = _Task(likelihood.function, likelihood.vectorized, retries, is_sent=likelihood.workers is not None)
    if num_points(host) == 0:
        return Values(np.zeros(0), {})
    if likelihood.workers is None:
        return _require(task(rows(host, slice(None))), task)
    return join_values([_require(result, task) for result in _through(likelihood, likelihood.workers, task, host)])


def _through(likelihood: HostLikelihood, workers: Workers, task: "_Task", host: dict[str, np.ndarray]) -> list[Any]:
    """Send chunks through the pool, and those whose worker died or hung once more."""
    chunks = _cut(host, likelihood.num_chunks or _num_chunks(likelihood, workers, num_points(host)))
    results = workers.map(task, chunks)
    for _ in range(task.retries - 1):
        lost = [i for i, result in enumerate(results) if isinstance(result, Lost)]
        if lost:
            workers.renew()
            for i, result in zip(lost, workers.map(task, [chunks[i] for i in lost]), strict=True):
                results[i] = result
    if task.retries > 0 and any(isinstance(result, Lost) for result in results):
        workers.renew()
        # The death of one worker takes the work of others along. Alone, each point answers for itself.
        for i, chunk in enumerate(chunks):
            if isinstance(results[i], Lost):
                points = _cut(chunk, num_points(chunk))
                results[i] = join_values([_require(workers.map(task, [point])[0], task) for point in points])
    return results


def _num_chunks(likelihood: HostLikelihood, workers: Workers, size: int) -> int:
    """One for each worker, or more of them that their ends fall together; or so many that a hanging point is known."""
    if likelihood.timeout is not None and not likelihood.vectorized:
        return size
    return workers.number * (1 if likelihood.vectorized else 4)


def _cut(host: dict[str, np.ndarray], num_chunks: int) -> list[dict[str, np.ndarray]]:
    size = num_points(host)
    bounds = np.linspace(0, size, min(num_chunks, size) + 1).astype(int)
    return [rows(host, slice(start, stop)) for start, stop in zip(bounds[:-1], bounds[1:], strict=True)]


def _require(result: Values | Failure | Lost, task: "_Task") -> Values:
    """Return the values, or raise what came in their place."""
    if isinstance(result, Lost):
        times = "once" if task.retries == 0 else f"{1 + task.retries} times"
        raise LikelihoodError(
            f"The likelihood {name_of(task.function)} expected its worker to answer; tried {times}: {result.reason}, "
            f"at {show(result.params)}. Mend the likelihood there, or raise `timeout` or `retries`."
        )
    if isinstance(result, Failure):
        raise result.error
    return result


@dataclass(frozen=True)
class _Task:
    """What a worker runs: one chunk of points to its values. A class of this module, so that it can be pickled."""

    function: Callable[[Any], Any]
    vectorized: bool
    retries: int = 0
    is_sent: bool = False  # to another process, perhaps

    def __call__(self, chunk: dict[str, np.ndarray]) -> Values | Failure:
        """Return the values of the chunk, shape (n,), or what was raised instead."""
        if self.is_sent:
            leave_to_parent()
        try:
            return self._at_once(chunk) if self.vectorized else self._one_by_one(chunk)
        except Exception as error:
            return portable(Failure(error)) if self.is_sent else Failure(error)

    def _at_once(self, chunk: dict[str, np.ndarray]) -> Values:
        size = num_points(chunk)
        name = name_of(self.function)
        where = f"the vectorized likelihood {name} with {size} points of the parameters {show_shapes(chunk)}"
        output, derived = split(self._call(chunk, lambda: where))
        values = _real(name, output, chunk)
        if values.shape != (size,):
            raise ValueError(
                f"The vectorized likelihood {name} expected to return shape ({size},), one value a "
                f"point; got {values.shape}. Sum over the data axis only, or leave out `vectorized=True`."
            )
        columns = {column: _real(f"{name}'s {column!r}", value, chunk) for column, value in derived.items()}
        for column, value in columns.items():
            if value.shape != (size,):
                raise ValueError(
                    f"The vectorized likelihood {name} expected to return shape ({size},) of the derived parameter "
                    f"{column!r}; got {value.shape}. Return one number a point."
                )
        return Values(values, columns)

    def _one_by_one(self, chunk: dict[str, np.ndarray]) -> Values:
        return join_values([self._one(chunk, row) for row in range(num_points(chunk))])

    def _one(self, chunk: dict[str, np.ndarray], row: int) -> Values:
        point = {name: array[row] for name, array in chunk.items()}
        name = name_of(self.function)
        output, derived = split(self._call(point, lambda: f"the likelihood {name} at {show(point)}"))
        value = _real(name, output, point)
        if value.size != 1:
            raise ValueError(
                f"The likelihood {name} expected to return one number; got shape {value.shape} "
                f"at {show(point)}. Sum over the data, or give `vectorized=True` if it takes many points at once."
            )
        columns = {column: _real(f"{name}'s {column!r}", number, point) for column, number in derived.items()}
        for column, number in columns.items():
            if number.size != 1:
                raise ValueError(
                    f"The likelihood {name} expected to return one number for the derived parameter {column!r}; got "
                    f"shape {number.shape} at {show(point)}. Return each number under a name of its own."
                )
        return Values(value.reshape(1), {column: number.reshape(1) for column, number in columns.items()})

    def _call(self, params: dict[str, Any], where: Callable[[], str]) -> Any:
        """Call the function, and again where it raises."""
        process = os.getpid()
        for attempt in range(1 + self.retries):
            try:
                with callers_arithmetic():
                    return self.function({name: np.array(value)[()] for name, value in params.items()})
            except (Exception, SystemExit) as error:
                # A program leaves by `sys.exit` in a handler of signals, which may run within the function. A worker
                # that left would take the work of others along, and be replaced without a word.
                if isinstance(error, SystemExit) and not self.is_sent:
                    raise
                if attempt == self.retries:
                    raise explain(error, where()) from error
            finally:
                _end_fork(process)
        return None


def _end_fork(process: int) -> None:
    """End a process that the function forked and did not end: it would go on as a second worker, or a second run."""
    if os.getpid() != process:
        error = sys.exc_info()[1]
        code = (error.code or 0) if isinstance(error, SystemExit) else int(error is not None)
        os._exit(code if isinstance(code, int) else 1)


def _real(name: str, output: Any, where: Any) -> np.ndarray:
    try:
        array = _read(output)
    except Exception as error:  # lists of unequal lengths, tensors of a graph, quantities with a unit, ...
        raise TypeError(
            f"The likelihood {name} expected to return real numbers; got {type(output).__name__}, which numpy cannot "
            f"read ({describe(error)}) at {show(where)}. Return the log-likelihood in nats, as floats or a numpy array."
        ) from error
    if array.dtype.kind not in "fiu":
        kind = type(output).__name__ if array.dtype == object else array.dtype
        raise TypeError(
            f"The likelihood {name} expected to return real numbers; got {kind} at {show(where)}. "
            "Return the log-likelihood in nats."
        )
    return array


def _read(output: Any) -> np.ndarray:
    """Return an array of float64 where the output has real numbers: NaN where it says that there is none.

    `np.asarray` alone reads what lies under a mask, zero for `np.ma.masked`, and takes 3 per cent for 3.
    """
    if hasattr(output, "unit") and hasattr(output, "to_value"):  # of astropy: a number only where the unit cancels
        output = output.to_value("")
    if isinstance(output, list | tuple):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that masked elements become NaN
            array = np.ma.asanyarray(output)
    else:
        array = np.asanyarray(output)
    is_masked = np.asarray(getattr(array, "mask", False), bool)
    array = np.asarray(getattr(array, "unmasked", array))
    pandas = sys.modules.get("pandas")  # whoever returns its `NA` has imported it
    if array.dtype == object and pandas is not None:
        is_missing = np.asarray(np.frompyfunc(lambda value: value is pandas.NA, 1, 1)(array), bool)
        if np.any(is_missing):
            array = np.asarray(np.where(is_missing, np.nan, array).tolist())
    if array.dtype.kind not in "fiu":
        return array
    return np.where(is_masked, np.nan, array.astype(np.float64))
