"""Likelihoods: one batch of parameters in, one log-likelihood for each point out."""

from collections.abc import Callable
from typing import Any, NamedTuple, final

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from nsflow.batch import (
    Params,
    as_numpy,
    describe,
    name_of,
    num_points,
    require_callable,
    rows,
    same_type,
    show,
    show_shapes,
)
from nsflow.host import HostLikelihood, evaluate_host
from nsflow.journal import Recorded, bare
from nsflow.precision import float64

VECTORIZED = 1024  # points that a run gives a vectorised host function at once: between two batches it can be stopped
# Rows of one JAX call: the largest keeps the processor busy and is small enough for models that need 10 MB a point.
CHUNKS = (256, 64, 16, 4, 1)


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
        function = require_callable("JaxLikelihood", function)
        object.__setattr__(self, "function", function)
        object.__setattr__(self, "_batched", jax.jit(jax.vmap(function)))

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"`JaxLikelihood` is immutable: cannot set {name!r}. Build a new one.")


Likelihood = JaxLikelihood | HostLikelihood | Recorded


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
    host = as_numpy(params)
    values = _recorded(likelihood, host) if isinstance(likelihood, Recorded) else _values(likelihood, host)
    if np.any(values == np.inf):
        point = rows(host, np.flatnonzero(values == np.inf)[:1])
        raise ValueError(
            f"The likelihood expected finite log-likelihoods, or -inf where the data are impossible; got +inf at "
            f"{show(point)}. Exclude that point from the prior, or return its true value."
        )
    nan = np.isnan(values)
    return Evaluation(np.where(nan, -np.inf, values), rows(host, np.flatnonzero(nan)))


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
    host, likelihood = as_numpy(params), bare(likelihood)
    if isinstance(likelihood, JaxLikelihood):
        _check_traced(likelihood.function, host)
        return 0
    return len(evaluate_host(likelihood, host))


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


def _values(likelihood: JaxLikelihood | HostLikelihood, host: dict[str, np.ndarray]) -> np.ndarray:
    return _jax(likelihood, host) if isinstance(likelihood, JaxLikelihood) else evaluate_host(likelihood, host)


def _recorded(recorded: Recorded, host: dict[str, np.ndarray]) -> np.ndarray:
    """Evaluate piece by piece, so that no bit depends on where an earlier run ended."""
    likelihood = recorded.likelihood
    flat = np.concatenate([array.reshape(num_points(host), -1) for array in host.values()], axis=1)
    if isinstance(likelihood, JaxLikelihood):
        unit, grows = CHUNKS[0], True
    elif likelihood.vectorized:
        unit, grows = VECTORIZED, False
    else:
        unit, grows = likelihood.num_chunks if likelihood.pool is not None else 1, True

    def compute(piece: slice) -> dict[str, np.ndarray]:
        return {"log_likelihood": _values(likelihood, rows(host, piece))}

    return recorded.journal.recall(flat, compute, unit=unit, grows=grows)["log_likelihood"]


# ---- JAX


def _jax(likelihood: JaxLikelihood, host: dict[str, np.ndarray]) -> np.ndarray:
    """Evaluate in chunks of few sizes, each of which compiles once."""
    # No padding: every row evaluated is one that was asked for, also when the function counts its calls.
    values, start = [np.zeros(0)], 0
    for size in CHUNKS:
        while num_points(host) - start >= size:
            piece = rows(host, slice(start, start + size))
            values.append(np.asarray(likelihood._batched(piece), np.float64))
            start += size
    return np.concatenate(values)


NOT_TRACEABLE = (
    jax.errors.ConcretizationTypeError,  # with it TracerBoolConversionError and TracerIntegerConversionError
    jax.errors.TracerArrayConversionError,
    jax.errors.NonConcreteBooleanIndexError,
)


def _check_traced(function: Callable[[Any], Any], host: dict[str, np.ndarray]) -> None:
    """Trace the function on the shapes of one point."""
    point = {name: jax.ShapeDtypeStruct(array.shape[1:], np.float64) for name, array in host.items()}
    wrap = f"Wrap a function that is not JAX as `nsflow.HostLikelihood({name_of(function)})`"
    try:
        output = jax.eval_shape(function, point)
    except NOT_TRACEABLE as error:
        raise TypeError(
            f"The likelihood {name_of(function)} expected values, where JAX traces it with symbols of its parameters: "
            f"it uses numpy, `float()`, `if` or a loop on them. {wrap}, or write it with `jax.numpy`."
        ) from error
    except Exception as error:
        raise same_type(
            error,
            f"The likelihood {name_of(function)} failed when JAX traced it with one dict of the parameters "
            f"{show_shapes(host)}: {describe(error)}. {wrap}, or mend it.",
        ) from error
    if not isinstance(output, jax.ShapeDtypeStruct):
        raise TypeError(
            f"The likelihood {name_of(function)} expected to return one real scalar; got {output!r}. "
            "Return the log-likelihood alone."
        )
    _check_output(name_of(function), output.shape, output.dtype)


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
