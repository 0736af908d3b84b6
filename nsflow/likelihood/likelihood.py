"""Likelihoods: one batch of parameters in, one log-likelihood for each point out."""

from collections.abc import Callable
from typing import Any, NamedTuple, final

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Float

from nsflow.likelihood.batch import (
    Params,
    Values,
    as_numpy,
    join_values,
    name_of,
    num_points,
    require_callable,
    rows,
    show,
    show_shapes,
    split,
)
from nsflow.likelihood.host import HostLikelihood, evaluate_host
from nsflow.likelihood.journal import Recorded, Stopped, bare
from nsflow.numerics.arguments import shown
from nsflow.numerics.errors import LikelihoodError, describe, same_type
from nsflow.numerics.precision import float64
from nsflow.prior.prior import RESERVED, Prior

LOG_LIKELIHOOD = "log_likelihood"  # column of a journal, beside the derived parameters
VECTORIZED = 1024  # points that a run gives a vectorised host function at once: between two batches it can be stopped
LARGEST = 1e100  # nats; sums of squares of more would overflow, and -1e300 is how some codes write -inf
# Rows of one JAX call: the largest keeps the processor busy and is small enough for models that need 10 MB a point.
CHUNKS = (256, 64, 16, 4, 1)


@final
class JaxLikelihood:
    """A log-likelihood that JAX can trace; it is vectorised, compiled, and run in float64.

    Args:
        function: Takes one point, a dict of parameters as the prior names and shapes them, and returns its
            log-likelihood in nats, a scalar; or ``(log_likelihood, {"name": scalar})`` with derived parameters.

        mesh: Devices over which the points of a batch are shared, such as ``jax.make_mesh((4,), ("points",))``. Every
            device computes whole points by itself. JAX's default device alone if left out.

    Raises:
        TypeError: If `function` cannot be called, or `mesh` is no `jax.sharding.Mesh`.

    Example:
        >>> likelihood = JaxLikelihood(lambda params: -0.5 * params["a"] ** 2)
        >>> evaluate(likelihood, {"a": np.array([0.0, 2.0])}).log_likelihood
        array([-0., -2.])
    """

    __slots__ = ("_batched", "_gradients", "function", "mesh")
    function: Callable[[Any], Any]
    mesh: Mesh | None
    _batched: Callable[[Any], Any]
    _gradients: "dict[Prior, Gradient | None]"

    def __init__(self, function: object, *, mesh: Any = None) -> None:
        function = require_callable("JaxLikelihood", function)
        if mesh is not None and not isinstance(mesh, Mesh):
            raise TypeError(
                f"`JaxLikelihood` expected a `mesh` of devices; got {shown(mesh)}. Write for instance "
                '`jax.make_mesh((jax.local_device_count(),), ("points",))`.'
            )
        object.__setattr__(self, "function", function)
        object.__setattr__(self, "mesh", mesh)
        object.__setattr__(self, "_batched", _batched(function, mesh))
        object.__setattr__(self, "_gradients", {})

    @property
    def num_devices(self) -> int:
        """Devices among which a batch is shared."""
        return 1 if self.mesh is None else self.mesh.size

    @float64
    def latent_value_and_grad(self, prior: Prior) -> "Gradient | None":
        """Log of likelihood times prior of a latent point, nats, with its gradient; compiled once for all searches.

        In reverse mode; or in forward mode, in which loops of traced length have a gradient; or None where JAX has
        none, such as of callbacks and of some special functions. Tracing tells.
        """
        if prior not in self._gradients:
            self._gradients[prior] = _gradient(self.function, prior)
        return self._gradients[prior]

    def __copy__(self) -> "JaxLikelihood":
        """The likelihood itself, which is immutable."""
        return self

    def __deepcopy__(self, memo: Any) -> "JaxLikelihood":
        """The likelihood itself, which is immutable."""
        return self

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        """Pickle the function: what is compiled is compiled anew."""
        if self.mesh is not None:
            raise TypeError(
                f"`JaxLikelihood` expected no `mesh` when it is pickled, since devices belong to one process; got "
                f"{self.mesh!r}. Send the function, and build the likelihood where it is used."
            )
        return JaxLikelihood, (self.function,)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"`JaxLikelihood` is immutable: cannot set {name!r}. Build a new one.")


class Gradient(NamedTuple):
    """Value and gradient of a function of one latent point."""

    function: Callable[[Any], Any]
    price: int  # likelihood calls of one evaluation


def _gradient(function: Callable[[Any], Any], prior: Prior) -> Gradient | None:
    def log_density(x: Any) -> Any:
        return split(function(prior.forward(x)))[0] + prior.latent_log_prob(x)

    def forward(x: Any) -> Any:
        value, push = jax.linearize(log_density, x)
        return value, jax.vmap(push)(jnp.eye(len(x), dtype=x.dtype))

    point = jax.ShapeDtypeStruct((prior.num_dims,), np.float64)
    for differentiated, price in ((jax.value_and_grad(log_density), 2), (forward, 1 + prior.num_dims)):
        compiled = jax.jit(differentiated)
        try:
            jax.eval_shape(compiled, point)
        except Exception:  # of any kind: each primitive has its own words
            continue
        return Gradient(compiled, price)
    return None


def _batched(function: Callable[[Any], Any], mesh: Mesh | None) -> Callable[[Any], Any]:
    """Vectorise and compile a function; the devices of a mesh share its points, and none waits for another."""
    if mesh is None:
        return jax.jit(jax.vmap(function))
    points = PartitionSpec(mesh.axis_names)
    # Nothing is sent between devices, so there is nothing to check, and user functions may hold any operation.
    shared = jax.jit(jax.shard_map(jax.vmap(function), mesh=mesh, in_specs=points, out_specs=points, check_vma=False))
    return lambda batch: shared(jax.device_put(batch, NamedSharding(mesh, points)))


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
    derived: dict[Any, np.ndarray]  # what the function returned beside log L, (n,) each


@float64
def evaluate(likelihood: Likelihood, params: Params) -> Evaluation:
    """Evaluate the log-likelihood of every point of a batch, each exactly once.

    NaN becomes -inf, and the points are returned: one bad corner of the prior does not end a run. What is below -1e100
    nats becomes -inf as well.

    Args:
        likelihood: The likelihood.
        params: Parameters, each of shape ``(n, *shape)``.

    Returns:
        The values, in nats, the points where they were NaN, and the derived parameters.

    Raises:
        LikelihoodError: If a value is +inf or above 1e100 nats; if the function raises or returns something else than
            one number a point, or its worker dies or hangs, as often as it is tried. The message names the point.

    Example:
        >>> evaluation = evaluate(JaxLikelihood(lambda params: jnp.log(params["a"])), {"a": np.array([1.0, -1.0])})
        >>> evaluation.log_likelihood
        array([  0., -inf])
        >>> evaluation.nan_params
        {'a': array([-1.])}
    """
    host = as_numpy(params)
    return _judge(host, _recorded(likelihood, host) if isinstance(likelihood, Recorded) else _values(likelihood, host))


@float64
def evaluate_until(likelihood: Likelihood, params: Params) -> tuple[Evaluation, str]:
    """Evaluate the points of a batch in order, until the journal has a reason to stop.

    Args:
        likelihood: The likelihood.
        params: Parameters, each of shape ``(n, *shape)``.

    Returns:
        ``(evaluation, reason)``: all points and the empty string, or those evaluated by then and the reason.

    Raises:
        LikelihoodError: As :func:`evaluate` does.
    """
    try:
        return evaluate(likelihood, params), ""
    except Stopped as stopped:
        derived = dict(stopped.columns)
        values = derived.pop(LOG_LIKELIHOOD, np.zeros(0))
        return _judge(rows(as_numpy(params), slice(len(values))), Values(values, derived)), str(stopped)


def _judge(host: dict[str, np.ndarray], result: Values) -> Evaluation:
    """Refuse what is too large, and set NaN and what is too small to -inf."""
    values, derived = result
    if np.any(values > LARGEST):
        first = np.flatnonzero(values > LARGEST)[:1]
        point = rows(host, first)
        raise LikelihoodError(
            f"The likelihood expected finite log-likelihoods, or -inf where the data are impossible; got "
            f"{values[first[0]]:+} at "
            f"{show(point)}. Exclude that point from the prior, or return its true value."
        )
    nan = np.isnan(values)
    return Evaluation(np.where(nan | (values < -LARGEST), -np.inf, values), rows(host, np.flatnonzero(nan)), derived)


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
    host, inner = as_numpy(params), bare(likelihood)
    if isinstance(inner, JaxLikelihood):
        _check_traced(inner.function, host)
        return 0
    return len(evaluate_host(inner, host, retries=0).log_likelihood)


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


def require_free(derived: tuple[Any, ...], names: tuple[str, ...]) -> None:
    """Refuse derived parameters whose names a column of the result has already.

    Args:
        derived: Names of the derived parameters.
        names: Columns of the prior.

    Raises:
        TypeError: If a name is no string.
        ValueError: If one is taken.

    Example:
        >>> require_free(("h",), ("a", "b[0]"))
    """
    for name in derived:
        if not isinstance(name, str):
            raise TypeError(f"The likelihood expected strings as names of derived parameters; got {name!r}.")
        if name in names or name in RESERVED:
            raise ValueError(
                f"The likelihood expected names of derived parameters that are no columns of the result yet; got "
                f"{name!r} beside {(*names, *RESERVED)}. Rename it."
            )


def _values(likelihood: JaxLikelihood | HostLikelihood, host: dict[str, np.ndarray]) -> Values:
    try:
        return _jax(likelihood, host) if isinstance(likelihood, JaxLikelihood) else evaluate_host(likelihood, host)
    except LikelihoodError:
        raise
    except Exception as error:
        raise LikelihoodError(str(error)) from error.__cause__ or error


def _recorded(recorded: Recorded, host: dict[str, np.ndarray]) -> Values:
    """Evaluate piece by piece, so that no bit depends on where an earlier run ended."""
    likelihood = recorded.likelihood
    flat = np.concatenate([array.reshape(num_points(host), -1) for array in host.values()], axis=1)
    if isinstance(likelihood, JaxLikelihood):
        unit, grows = CHUNKS[0] * likelihood.num_devices, True
    elif likelihood.vectorized:
        unit, grows = VECTORIZED, False
    else:
        unit, grows = likelihood.num_chunks or (likelihood.workers.number if likelihood.workers else 1), True

    def compute(piece: slice) -> dict[str, np.ndarray]:
        values, derived = _values(likelihood, rows(host, piece))
        require_free(tuple(derived), (LOG_LIKELIHOOD,))  # before they are written down
        return {LOG_LIKELIHOOD: values, **derived}

    columns = recorded.journal.recall(flat, compute, unit=unit, grows=grows)
    return Values(columns.pop(LOG_LIKELIHOOD), columns)


# ---- JAX


def _jax(likelihood: JaxLikelihood, host: dict[str, np.ndarray]) -> Values:
    """Evaluate in chunks of few sizes, each of which compiles once."""
    # No padding on one device: every row evaluated is one that was asked for, also when the function counts its calls.
    values, start, size = [Values(np.zeros(0), {})], 0, num_points(host)
    padded = rows(host, np.minimum(np.arange(size + -size % likelihood.num_devices), size - 1))
    for chunk in CHUNKS:
        chunk *= likelihood.num_devices
        while num_points(padded) - start >= chunk:
            log_likelihood, derived = split(likelihood._batched(rows(padded, slice(start, start + chunk))))
            values.append(Values(_float64(log_likelihood), {name: _float64(value) for name, value in derived.items()}))
            start += chunk
    log_likelihood, derived = join_values(values)
    return Values(log_likelihood[:size], {name: value[:size] for name, value in derived.items()})


def _float64(value: Any) -> np.ndarray:
    return np.asarray(value, np.float64)


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
    output, derived = split(output)
    for what, value in (
        (name_of(function), output),
        *((f"{name_of(function)}'s {n!r}", v) for n, v in derived.items()),
    ):
        if not isinstance(value, jax.ShapeDtypeStruct):
            raise TypeError(
                f"The likelihood {what} expected to return one real scalar; got {value!r}. Return the log-likelihood "
                "alone, or with a dict of derived parameters, `(log_likelihood, {'name': number})`."
            )
        _check_output(what, value.shape, value.dtype)


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
