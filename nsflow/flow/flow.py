"""The flow: base, ODE and points, with the exact density of the discrete map."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple, no_type_check

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.scipy.linalg import lu_factor, lu_solve, solve_triangular
from jax.tree_util import Partial
from jaxtyping import Array, Float

from nsflow.densities.bases import Normal
from nsflow.densities.gaussian import Gaussian, Preimage
from nsflow.densities.pushforward import Pushforward
from nsflow.flow.objective import FlowMatching
from nsflow.flow.ode import integrate
from nsflow.flow.training import Training, TrainingInfo, train
from nsflow.flow.velocity import Architecture, as_velocity
from nsflow.numerics.arguments import (
    POSITIVE,
    instance,
    integer,
    require_array,
    require_cloud,
    require_count,
    require_key,
    shown,
)
from nsflow.numerics.batching import by_chunks, map_points, map_some
from nsflow.numerics.precision import float64, full_precision
from nsflow.numerics.storable import storable

CHUNK = 256  # points evaluated at once, so that one compiled shape serves every batch
NUM_CORRECTIONS = 2  # of the way back, before the Jacobian
MAX_NEWTON = 10  # steps after which a point counts as having no inverse


@storable("flow")
@partial(
    jax.tree_util.register_dataclass, data_fields=("velocity", "mean", "scale", "num_steps"), meta_fields=("width",)
)
@dataclass(frozen=True)
class Flow:
    r"""Distribution of :math:`x = \mu + L\,T(z)`, where z is standard normal and T solves an ODE in K steps.

    T is K classical Runge-Kutta steps of :math:`\dot x = v(t, x)` from t = 0 to 1, and the density is that of this
    discrete map, not of the ODE that it approximates:

    .. math::
        \log q(x) = \log N(z; 0, I) - \log\left|\det \frac{\partial T}{\partial z}\right| - \log\det L,
        \qquad z = T^{-1}\bigl(L^{-1}(x - \mu)\bigr).

    It is exact for what :meth:`sample` draws at any K; an adaptive solver leaves 1e-3 to 1e-2 nats. The inverse
    integrates backwards and then solves T(z) = x by Newton's method. With K = 0 the flow is the Gaussian N(mu, LL').

    Precision is the caller's: float64 points in 64-bit mode, float32 otherwise.

    Args:
        velocity: Any callable ``velocity(t, x)`` of one whitened point: a function, a flax network, a pytree.
        mean: Centre mu, shape ``(d,)``.
        scale: Lower triangular L, shape ``(d, d)``.
        num_steps: Number K of Runge-Kutta steps.
        width: By how much T stretches z before the first step: the base of a path that does not start at unit width.

    Example:
        >>> flow = Flow.from_velocity(lambda t, x: -x, num_dims=2)
        >>> x = flow.sample(jax.random.key(0), 1000)
        >>> bool(abs(x.std() - np.exp(-1)) < 0.02)
        True

    References:
        Chen et al. (2018), *Neural Ordinary Differential Equations*, for the flow; the density here is the change of
        variables of the discretised map instead of their Eq. 8.
    """

    velocity: Partial
    mean: Any
    scale: Any
    num_steps: Any
    width: float = 1.0

    @no_type_check  # its own messages come before a run-time checker's
    @classmethod
    def from_velocity(cls, velocity: Callable[[Array, Array], Array], num_dims: int, *, num_steps: int = 8) -> "Flow":
        """Flow of a given field from the standard normal, without whitening.

        Args:
            velocity: Callable ``velocity(t, x)`` of one point.
            num_dims: Dimension d.
            num_steps: Number of Runge-Kutta steps.

        Returns:
            The flow.

        Raises:
            TypeError: If `velocity` cannot be called.
            ValueError: If `num_dims` or `num_steps` is no such number.
        """
        if not callable(velocity):
            raise TypeError(f"`Flow.from_velocity` expected a function of time and point; got {shown(velocity)}.")
        num_dims = integer(1, 10**5)("`Flow.from_velocity` for its `num_dims`", num_dims)
        num_steps = integer(0, 10**6)("`Flow.from_velocity` for its `num_steps`", num_steps)
        return cls(as_velocity(velocity), np.zeros(num_dims), np.eye(num_dims), np.int32(num_steps))

    @property
    def num_dims(self) -> int:
        """Dimension d of the points."""
        if np.ndim(self.mean) != 1:
            raise ValueError(f"`Flow` expected `mean` to be an array of shape (d,); got {shown(self.mean)}.")
        return np.shape(self.mean)[0]

    @no_type_check  # its own messages come before a run-time checker's
    def sample(self, key: Array, num_samples: int) -> Float[Array | np.ndarray, "n d"]:
        """Draw points.

        Args:
            key: JAX random key.
            num_samples: Number n of draws.

        Returns:
            The points, shape ``(n, d)``.

        Raises:
            TypeError: If `key` is no JAX random key.
            ValueError: If `num_samples` is not a natural number, or so many do not fit in memory.
        """
        return self.forward(_base(key, num_samples, self.num_dims))

    @no_type_check
    def log_prob(self, x: Float[Any, "n d"]) -> Float[Array | np.ndarray, " n"]:
        """Exact log-density of the map that `sample` applies.

        Args:
            x: Points, shape ``(n, d)``.

        Returns:
            Log-densities in nats, shape ``(n,)``; NaN where the inverse was not found, never a guess.

        Raises:
            TypeError: If `x` is no array of real numbers.
            ValueError: If its shape is another.
        """
        return self.inverse(x).log_prob

    @no_type_check
    def sample_and_log_prob(
        self, key: Array, num_samples: int
    ) -> tuple[Float[np.ndarray, "n d"], Float[np.ndarray, " n"]]:
        """Draw points together with their log-density.

        Args:
            key: JAX random key.
            num_samples: Number n of draws.

        Returns:
            ``(x, log_q)``: points, shape ``(n, d)``, and log-densities in nats, shape ``(n,)``. The density is NaN
            where the inverse does not lead back to the draw's own base point: the discrete map folds there. Dropping
            such draws (weight zero) keeps importance estimates exact, for `log_prob` describes the others alone.

        Raises:
            TypeError: If `key` is no JAX random key.
            ValueError: If `num_samples` is not a natural number, or so many do not fit in memory.
        """
        z = _base(key, num_samples, self.num_dims)
        x = self.forward(z)
        preimage = self.inverse(x)
        recovered = np.max(np.abs(preimage.z - z), axis=1) < 1e-3
        return np.asarray(x), np.where(recovered, preimage.log_prob, np.nan)

    @no_type_check
    def forward(self, z: Float[Any, "n d"]) -> Float[Array | np.ndarray, "n d"]:
        """Carry base points to the data, shape ``(n, d)`` to ``(n, d)``."""
        return _by_chunks(_forward, self, z)

    @no_type_check
    def inverse(self, x: Float[Any, "n d"], max_steps: int = MAX_NEWTON, is_wanted: Any = None) -> Preimage:
        """Carry points back to the base, with the log-determinant of the way forward; NaN after `max_steps` of Newton.

        Whether a point has an inverse must not depend on how it was come by: compare densities of equal `max_steps`.
        Traced points that are not wanted, by a mask of shape ``(n,)``, come back as NaN and take no time.
        """
        if isinstance(x, Tracer):
            return _inverse(self, x, np.int32(max_steps), is_wanted)
        max_steps = integer(1, 10**6)("`Flow.inverse` for its `max_steps`", max_steps)
        quick = _by_chunks(partial(_inverse, max_steps=np.int32(1)), self, x)
        hard = np.flatnonzero(np.isnan(quick.log_det))
        if len(hard) == 0:
            return quick
        # Every point of a chunk pays for its slowest one: the few that need more steps have chunks of their own.
        careful = _by_chunks(partial(_inverse, max_steps=np.int32(max_steps)), self, np.asarray(x)[hard])
        for old, new in zip(quick, careful, strict=True):
            old[hard] = new
        return quick


@no_type_check
def _base(key: Array, num_samples: int, num_dims: int) -> np.ndarray:
    """Standard normal points; the first n do not depend on how many follow. A float32 map sees each as it is."""
    key, num_samples = require_key("Flow", key), require_count("Flow", num_samples, num_dims)
    return np.random.default_rng(np.asarray(jax.random.key_data(key))).normal(size=(num_samples, num_dims))


def _by_chunks(function: Callable, flow: Flow, x: Any) -> Any:
    """Apply a jitted function to chunks of one size."""
    if isinstance(x, Tracer):
        return function(flow, x)
    _check_parts(flow)
    dtype = getattr(x, "dtype", None)
    x = require_array("`Flow` for its points", x)
    x = x.astype(dtype) if dtype in (np.float32, np.float16) else x  # precision is the caller's
    if x.ndim != 2 or x.shape[1] != flow.num_dims:
        raise ValueError(f"`Flow` expected points of shape (n, {flow.num_dims}); got {x.shape}. Add the leading axis.")
    return by_chunks(partial(function, flow), x, CHUNK)


def _check_parts(flow: Flow) -> None:
    """Refuse a flow that was put together wrongly; its constructor sees the tracers of JAX as well."""
    num_dims = flow.num_dims
    require_array("`Flow` for its `mean`", flow.mean)
    if require_array("`Flow` for its `scale`", flow.scale).shape != (num_dims, num_dims):
        raise ValueError(f"`Flow` expected `scale` of shape {(num_dims, num_dims)}; got {np.shape(flow.scale)}.")
    integer(0, 10**6)("`Flow` for its `num_steps`", flow.num_steps)
    POSITIVE("`Flow` for its `width`", flow.width)
    is_tree = all(hasattr(leaf, "dtype") for leaf in jax.tree.leaves(flow.velocity))
    if not (callable(flow.velocity) and is_tree):
        raise TypeError(
            f"`Flow` expected a callable pytree as `velocity`; got {shown(flow.velocity)}. Use `Flow.from_velocity`."
        )


# ------------------------------------------------------------- the discrete map, written for one point


@jax.jit
@full_precision
def _forward(flow: Flow, z: Array) -> Array:
    def one(z: Array) -> Array:
        return _centre(flow, z) + _scale(flow, z) @ _push(flow, z.astype(_precision(flow, z))).astype(z.dtype)

    return map_points(one, z)


@jax.jit
@full_precision
def _inverse(flow: Flow, x: Array, max_steps: Array, is_wanted: Array | None = None) -> Preimage:
    scale = _scale(flow, x)
    white = map_points(lambda x: solve_triangular(scale, x - _centre(flow, x), lower=True), x)
    white = white.astype(_precision(flow, x))
    is_wanted = jnp.ones(len(x), bool) if is_wanted is None else is_wanted
    z, log_det, converged = _solve(flow, white, max_steps, is_wanted)
    log_det = log_det.astype(x.dtype) + jnp.sum(jnp.log(jnp.diag(scale)))
    return Preimage(z.astype(x.dtype), jnp.where(converged & is_wanted, log_det, jnp.nan))


def _precision(flow: Flow, x: Array) -> Any:
    """Precision of the map between whitening and base: a float32 network gains nothing from float64 steps."""
    weights = [leaf.dtype for leaf in jax.tree.leaves(flow.velocity) if hasattr(leaf, "dtype")]
    return jnp.result_type(*weights) if weights else x.dtype


def _centre(flow: Flow, x: Array) -> Array:
    return jnp.asarray(flow.mean, x.dtype)


def _scale(flow: Flow, x: Array) -> Array:
    return jnp.asarray(flow.scale, x.dtype)


def _push(flow: Flow, z: Array) -> Array:
    return integrate(flow.velocity, _width(flow, z) * z, flow.num_steps, backwards=False)


def _width(flow: Flow, x: Array) -> Array:
    return jnp.asarray(flow.width, x.dtype)


def _correct(flow: Flow, x: Array) -> Array:
    """Nearly solve T(z) = x: integrate backwards, and correct."""
    width = _width(flow, x)

    def pass_through(i: Array, state: tuple[Array, ...]) -> tuple[Array, ...]:
        """Integrate back and forth; every way back corrects z by how far the one before was off."""
        z, back, y = state
        backwards = i % 2 == 0
        y = integrate(flow.velocity, jnp.where(backwards, y, width * y), flow.num_steps, backwards=backwards)
        y = jnp.where(backwards, y / width, y)
        back = jnp.where(i == 0, y, back)
        z = jnp.where(i == 0, y, jnp.where(backwards, z + back - y, z))
        return z, back, jnp.where(backwards, z, y)

    # Each correction gains two to four digits without a Jacobian, at a fifth of its price. All ways are one loop, for
    # which the field is compiled once.
    return jax.lax.fori_loop(0, 1 + 2 * NUM_CORRECTIONS, pass_through, (x, x, x))[0]


def _solve(flow: Flow, x: Array, max_steps: Array, is_wanted: Array) -> tuple[Array, Array, Array]:
    """Solve T(z) = x for the wanted points by Newton's method; return z, log|det dT/dz|, convergence."""
    tolerance = 2e-6 if x.dtype == jnp.float64 else 2e-5

    def newton(point: tuple[Array, ...]) -> tuple[Array, ...]:
        x, z, _, _ = point
        image, jacobian = _value_and_jacobian(partial(_push, flow), z)
        factors = lu_factor(jacobian)
        step = lu_solve(factors, x - image)
        # Networks are float32: their own rounding moves the image by 1e-7 of the point's size.
        converged = jnp.max(jnp.abs(step)) < tolerance * (1 + jnp.max(jnp.abs(z)))
        return x, z + step, jnp.sum(jnp.log(jnp.abs(jnp.diag(factors[0])))), converged

    def step_all(state: tuple[Any, Array]) -> tuple[Any, Array]:
        points, i = state
        return map_some(newton, points, ~points[-1]), i + 1

    def is_unsolved(state: tuple[Any, Array]) -> Array:
        points, i = state
        return ~jnp.all(points[-1]) & (i < max_steps)

    _, guess = map_some(lambda point: (point[0], _correct(flow, point[0])), (x, x), is_wanted)
    start = x, guess, jnp.zeros(len(x), x.dtype), ~is_wanted
    (_, *solution), _ = jax.lax.while_loop(is_unsolved, step_all, (start, jnp.zeros((), jnp.int32)))
    z, log_det, converged = solution
    return z, log_det, converged


def _value_and_jacobian(function: Callable[[Array], Array], x: Array) -> tuple[Array, Array]:
    """Forward mode: d tangents through one pass."""
    along = partial(jax.jvp, function, (x,))
    value, columns = jax.vmap(lambda v: along((v,)), out_axes=(None, 1))(jnp.eye(x.shape[0], dtype=x.dtype))
    return value, columns


# ------------------------------------------------------------- fitting


class FlowInfo(NamedTuple):
    """What happened when a flow was fitted."""

    training: TrainingInfo
    is_gaussian: bool  # whether no network beat the Gaussian on the held-out points
    log_prob: float  # weighted mean log-density of the held-out points, in nats


@no_type_check  # its own messages come before a run-time checker's
@float64
def fit(
    key: Array,
    points: Float[Any, "n d"],
    log_weights: Float[Any, " n"] | None = None,
    *,
    training: Training = Training(),  # noqa: B008
) -> tuple[Flow | Pushforward, FlowInfo]:
    r"""Give a set of samples a distribution.

    The points are whitened by their weighted mean and Cholesky factor, a network learns the velocity that carries
    N(0, I) to them, by conditional flow matching unless `training.objective` says otherwise, and the network is kept
    only if it beats the Gaussian on points held out of the training.

    Args:
        key: JAX random key.
        points: Samples, shape ``(n, d)`` with ``n > d``.
        log_weights: Their log-weights in nats up to a constant, shape ``(n,)``; equal if left out.
        training: How to train.

    Returns:
        ``(flow, info)``: a :class:`Flow`, or a :class:`nsflow.densities.Pushforward` of one where the objective has a
        base of its own, and what happened. Both have ``sample``, ``log_prob`` and ``sample_and_log_prob``.

    Raises:
        TypeError: If the key, the points or the training are of the wrong kind.
        ValueError: If the points are not a finite ``(n, d)`` array with more rows of positive weight than columns, the
            weights do not match them, or points of these weights have no covariance, as where one weight dominates.

    Example:
        >>> points = np.random.default_rng(0).normal(3.0, 2.0, (500, 1))
        >>> flow, info = fit(jax.random.key(0), points, training=Training(num_steps=200))
        >>> x, log_q = flow.sample_and_log_prob(jax.random.key(1), 5)
        >>> x.shape, log_q.shape
        ((5, 1), (5,))
    """
    require_key("fit", key)
    instance(Training, "an nsflow.Training")("`fit` for its `training`", training)
    points, log_weights = require_cloud("fit", points, log_weights)
    key_split, key_init, key_train = jax.random.split(key, 3)
    objective = training.objective or FlowMatching(training.path)
    base = getattr(objective, "base", Normal())
    whole = Gaussian.fit(points, log_weights)
    if not base.is_white:
        whole = Gaussian(np.zeros_like(whole.mean), np.eye(whole.num_dims))
    white = whole.whiten(points)
    order = np.random.default_rng(np.asarray(jax.random.key_data(key_split))).permutation(len(points))
    num_held_out = min(CHUNK, max(1, int(training.held_out * len(points))))
    held_out, kept = order[:num_held_out], order[num_held_out:]
    weights = _normalise(log_weights[held_out])

    def carried(flow: Flow) -> Any:
        return flow if base == Normal() else Pushforward(flow, base)

    def score(flow: Flow) -> float:
        # A point without an inverse has no density; 100 nats below the rest is a price that no field would pay.
        log_prob = np.asarray(carried(flow).log_prob(white[held_out]))
        return float(weights @ np.nan_to_num(log_prob, nan=-100.0))

    num_dims = points.shape[1]
    architecture = training.architecture or Architecture.of_dims(num_dims)
    field = objective.init(key_init, num_dims, architecture)
    gaussian = Flow(objective.velocity(field), np.zeros(num_dims), np.eye(num_dims), np.int32(0))
    num_steps = np.int32(training.integration_steps or max(6, 24 // num_dims))
    flow = replace(gaussian, num_steps=num_steps, width=objective.path.width)
    field, info = train(
        key_train,
        field,
        white[kept],
        log_weights[kept],
        objective=objective,
        training=training,
        score=lambda field: score(replace(flow, velocity=objective.velocity(field))),
        score_now=score(gaussian),  # the untrained network is zero
    )
    best, log_prob = gaussian, info.scores[0]
    if info.best > 0:
        best, log_prob = _refine(replace(flow, velocity=objective.velocity(field)), info.scores[info.best], score)
    log_prob -= float(np.sum(np.log(np.diag(whole.scale))))
    best = replace(best, mean=whole.mean, scale=whole.scale)
    return carried(best), FlowInfo(info, int(best.num_steps) == 0, log_prob)


def _refine(flow: Flow, best: float, score: Callable[[Flow], float]) -> tuple[Flow, float]:
    """Double the integration steps while the held-out density gains: sharp fields need more than smooth ones."""
    while 2 * flow.num_steps <= 32:
        finer = replace(flow, num_steps=np.int32(2 * flow.num_steps))
        gain = score(finer) - best
        if gain < 0.1:  # the density is exact at any number of steps; twice as many double the price of a run
            break
        flow, best = finer, best + gain
    return flow, best


def _normalise(log_weights: np.ndarray) -> np.ndarray:
    weights = np.exp(log_weights - np.max(log_weights))
    return weights / np.sum(weights)
