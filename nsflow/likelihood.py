"""Likelihoods: one batch of parameters in, one log-likelihood for each point out."""

import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, final

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from nsflow.precision import float64

# Rows of one JAX call: large enough to keep the processor busy, small enough for models that need 10 MB a point.
CHUNK = 500

Params = Mapping[str, Any]


@final
class JaxLikelihood:
    """A log-likelihood that JAX can trace; it is vectorised, compiled, and run in float64.

    Args:
        function: Takes one point, a dict of parameters as the prior names and shapes them, and returns its
            log-likelihood in nats, a scalar.

    Raises:
        TypeError: If `function` cannot be called.

    Example:
        >>> likelihood = JaxLikelihood(lambda params: -0.5 * params["a"] ** 2)
        >>> evaluate(likelihood, {"a": np.array([0.0, 2.0])}).log_likelihood
        array([-0., -2.])
    """

    __slots__ = ("_batched", "function")
    function: Callable[[Any], Any]
    _batched: Callable[[Any], Any]

    def __init__(self, function: object) -> None:
        function = _require_callable("JaxLikelihood", function)
        object.__setattr__(self, "function", function)
        object.__setattr__(self, "_batched", jax.jit(jax.vmap(function)))

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"`JaxLikelihood` is immutable: cannot set {name!r}. Build a new one.")


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
        >>> evaluate(likelihood, {"x": np.ones((3, 2))}).log_likelihood
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
        function = _require_callable("HostLikelihood", function)
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


Likelihood = JaxLikelihood | HostLikelihood


def as_likelihood(obj: object) -> Likelihood:
    """Return a likelihood: itself, or a function as a `JaxLikelihood`.

    Args:
        obj: A likelihood or a function of one point.

    Returns:
        The likelihood.

    Raises:
        TypeError: If `obj` is neither.

    Example:
        >>> type(as_likelihood(lambda params: params["a"])).__name__
        'JaxLikelihood'
    """
    return obj if isinstance(obj, (JaxLikelihood, HostLikelihood)) else JaxLikelihood(obj)


class Evaluation(NamedTuple):
    """Log-likelihoods of a batch."""

    log_likelihood: np.ndarray  # (n,), nats, float64; -inf where the function gave NaN
    nan_params: dict[str, np.ndarray]  # the points where it gave NaN, each array with a leading axis, maybe of length 0


@float64
def evaluate(likelihood: Likelihood, params: Params) -> Evaluation:
    """Evaluate the log-likelihood of every point of a batch, each exactly once.

    NaN becomes -inf, and the points are returned: one bad corner of the prior does not end a run.

    Args:
        likelihood: The likelihood.
        params: Parameters, each of shape ``(n, *shape)``.

    Returns:
        The values, in nats, and the points where they were NaN.

    Raises:
        ValueError: If a value is +inf, or a host function returns something else than one number a point.
        Exception: What a host function raises, of the same type where that can be, with the point in the message.

    Example:
        >>> evaluation = evaluate(JaxLikelihood(lambda params: jnp.log(params["a"])), {"a": np.array([1.0, -1.0])})
        >>> evaluation.log_likelihood
        array([  0., -inf])
        >>> evaluation.nan_params
        {'a': array([-1.])}
    """
    host = _as_numpy(params)
    values = _jax(likelihood, host) if isinstance(likelihood, JaxLikelihood) else _host(likelihood, host)
    if np.any(values == np.inf):
        point = _rows(host, np.flatnonzero(values == np.inf)[:1])
        raise ValueError(
            f"The likelihood expected finite log-likelihoods, or -inf where the data are impossible; got +inf at "
            f"{_show(point)}. Exclude that point from the prior, or return its true value."
        )
    nan = np.isnan(values)
    return Evaluation(np.where(nan, -np.inf, values), _rows(host, np.flatnonzero(nan)))


@float64
def check(likelihood: Likelihood, params: Params) -> int:
    """Try the likelihood on a few points, so that its mistakes cost no work.

    Args:
        likelihood: The likelihood.
        params: A few points of the prior, each parameter of shape ``(n, *shape)``.

    Returns:
        The number of points that were evaluated: 0 for a JAX function, which is only traced; n for a host function.

    Raises:
        TypeError: If the function does not take one dict of parameters, JAX cannot trace it, or it returns something
            else than real numbers.
        LookupError: If it asks for a parameter that the prior does not have.
        ValueError: If it returns the wrong shape.
        Exception: What the function itself raises, with the parameters in the message.

    Example:
        >>> check(JaxLikelihood(lambda params: -(params["a"] ** 2)), {"a": np.zeros(4)})
        0
    """
    host = _as_numpy(params)
    if isinstance(likelihood, JaxLikelihood):
        _check_traced(likelihood.function, host)
        return 0
    return len(_host(likelihood, host))


def require_finite(log_likelihood: Float[np.ndarray, " n"]) -> None:
    """Refuse a likelihood that is zero at every draw from the prior.

    Args:
        log_likelihood: Log-likelihoods of prior draws, in nats, shape ``(n,)``.

    Raises:
        ValueError: If all are -inf.

    Example:
        >>> require_finite(np.array([-np.inf, -3.0]))
    """
    if not np.any(np.isfinite(log_likelihood)):
        raise ValueError(
            f"The likelihood expected a finite log-likelihood somewhere in the prior; got -inf or NaN at all "
            f"{len(log_likelihood)} draws. Check the units of the data, narrow the prior to where the likelihood is "
            "defined, or return large negative numbers that still tell better from worse."
        )


# ---- JAX


def _jax(likelihood: JaxLikelihood, host: dict[str, np.ndarray]) -> np.ndarray:
    """Evaluate in chunks of one size and a remainder of its own size, so that few shapes compile."""
    # No padding: every row evaluated is one that was asked for, also when the function counts its calls.
    pieces = [_rows(host, slice(start, start + CHUNK)) for start in range(0, _size(host), CHUNK)]
    values = [np.asarray(likelihood._batched(piece), np.float64) for piece in pieces]
    return np.concatenate([np.zeros(0), *values])


NOT_TRACEABLE = (
    jax.errors.ConcretizationTypeError,  # with it TracerBoolConversionError and TracerIntegerConversionError
    jax.errors.TracerArrayConversionError,
    jax.errors.NonConcreteBooleanIndexError,
)


def _check_traced(function: Callable[[Any], Any], host: dict[str, np.ndarray]) -> None:
    """Trace the function on the shapes of one point."""
    point = {name: jax.ShapeDtypeStruct(array.shape[1:], np.float64) for name, array in host.items()}
    wrap = f"Wrap a function that is not JAX as `nsflow.HostLikelihood({_name(function)})`"
    try:
        output = jax.eval_shape(function, point)
    except NOT_TRACEABLE as error:
        raise TypeError(
            f"The likelihood {_name(function)} expected values, where JAX traces it with symbols of its parameters: "
            f"it uses numpy, `float()`, `if` or a loop on them. {wrap}, or write it with `jax.numpy`."
        ) from error
    except Exception as error:
        raise _like(
            error,
            f"The likelihood {_name(function)} failed when JAX traced it with one dict of the parameters "
            f"{_shapes(host)}: {_what(error)}. {wrap}, or mend it.",
        ) from error
    if not isinstance(output, jax.ShapeDtypeStruct):
        raise TypeError(
            f"The likelihood {_name(function)} expected to return one real scalar; got {output!r}. "
            "Return the log-likelihood alone."
        )
    _check_output(_name(function), output.shape, output.dtype)


def _check_output(name: str, shape: tuple[int, ...], dtype: Any) -> None:
    if shape != ():
        raise ValueError(
            f"The likelihood {name} expected to return a scalar for one point; got an array of shape {shape}. "
            "Sum over the data, as in `jnp.sum(...)`."
        )
    if not (jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(dtype, jnp.integer)):
        raise TypeError(
            f"The likelihood {name} expected to return a real number; got {dtype}. Return the log-likelihood in nats, "
            "as in `jnp.real(...)`."
        )


# ---- host


def _host(likelihood: HostLikelihood, host: dict[str, np.ndarray]) -> np.ndarray:
    """Evaluate in chunks, through the pool where there is one, and check what comes back."""
    size = _size(host)
    if size == 0:
        return np.zeros(0)
    task = _Task(likelihood.function, likelihood.vectorized)
    if likelihood.pool is None:
        return task(_rows(host, slice(None)))
    bounds = np.linspace(0, size, min(likelihood.num_chunks, size) + 1).astype(int)
    chunks = [_rows(host, slice(start, stop)) for start, stop in zip(bounds[:-1], bounds[1:], strict=True)]
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
        size = _size(chunk)
        name = _name(self.function)
        try:
            output = self.function(chunk)
        except Exception as error:
            shapes = (
                f"(raised by the vectorized likelihood {name} with {size} points of the parameters {_shapes(chunk)})"
            )
            raise _like(error, f"{_what(error)} {shapes}") from error
        values = _real(name, output, chunk)
        if values.shape != (size,):
            raise ValueError(
                f"The vectorized likelihood {name} expected to return shape ({size},), one value a "
                f"point; got {values.shape}. Sum over the data axis only, or leave out `vectorized=True`."
            )
        return values

    def _one_by_one(self, chunk: dict[str, np.ndarray]) -> np.ndarray:
        values = np.empty(_size(chunk))
        for row in range(len(values)):
            point = {name: array[row] for name, array in chunk.items()}
            try:
                output = self.function(point)
            except Exception as error:
                raise _like(
                    error, f"{_what(error)} (raised by the likelihood {_name(self.function)} at {_show(point)})"
                ) from error
            value = _real(_name(self.function), output, point)
            if value.size != 1:
                raise ValueError(
                    f"The likelihood {_name(self.function)} expected to return one number; got shape {value.shape} at "
                    f"{_show(point)}. Sum over the data, or give `vectorized=True` if it takes many points at once."
                )
            values[row] = value.item()
        return values


def _real(name: str, output: Any, where: Any) -> np.ndarray:
    array = np.asarray(output)
    if array.dtype.kind not in "fiu":
        kind = type(output).__name__ if array.dtype == object else array.dtype
        raise TypeError(
            f"The likelihood {name} expected to return real numbers; got {kind} at {_show(where)}. "
            "Return the log-likelihood in nats."
        )
    return array.astype(np.float64)


# ---- batches and messages


def _as_numpy(params: Params) -> dict[str, np.ndarray]:
    return {name: np.asarray(value, np.float64) for name, value in params.items()}


def _size(batch: dict[str, np.ndarray]) -> int:
    return len(next(iter(batch.values())))


def _rows(batch: dict[str, np.ndarray], index: slice | np.ndarray) -> dict[str, np.ndarray]:
    """Copy these rows: functions that change their arguments in place must not change the sampler's points."""
    return {name: np.array(array[index]) for name, array in batch.items()}


def _require_callable(owner: str, function: object) -> Callable[[Any], Any]:
    if not callable(function):
        raise TypeError(
            f"`{owner}` expected a function of one dict of parameters; got {function!r}. "
            "Give the function itself, not its value."
        )
    return function


def _like(error: Exception, message: str) -> Exception:
    """Return an exception of the same type with this message, or the nearest type that can show one."""
    kind = type(error)
    if kind is KeyError:  # prints its message quoted and escaped
        return LookupError(message)
    if kind.__module__ == "builtins":
        try:
            return kind(message)
        except TypeError:
            pass
    return RuntimeError(message)


def _what(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _name(function: Any) -> str:
    return getattr(function, "__name__", type(function).__name__)


def _shapes(host: dict[str, np.ndarray]) -> str:
    return ", ".join(f"{name}: {array.shape[1:]}" for name, array in host.items())


def _show(params: Mapping[str, Any]) -> str:
    """Write parameters so that they can be pasted back; of a batch, no more than fits a line or two."""
    text = str({name: np.asarray(value).tolist() for name, value in params.items()})
    return text if len(text) < 500 else text[:500] + "..."
