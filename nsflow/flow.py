"""The flow: base, ODE and points, with the exact density of the discrete map."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import solve_triangular
from jax.tree_util import Partial
from jaxtyping import Array, Float

from nsflow import train
from nsflow.precision import float64
from nsflow.train import Training, TrainingInfo
from nsflow.velocity import as_velocity

CHUNK = 512  # points evaluated at once: one compiled shape serves every batch


class Preimage(NamedTuple):
    """Inverse of the discrete map at one point."""

    z: Array  # (d,), the base point that is carried to x
    log_det: Array  # (), log|det dT/dz| there, in nats
    converged: Array  # (), whether T(z) = x to the working precision


# ------------------------------------------------------------- the discrete map, for one whitened point


def _advance(velocity: Partial, num_steps: int, backwards: bool, x: Array) -> Array:
    """Classical Runge-Kutta of order 4 over [0, 1] in equal steps, or over [1, 0]."""
    h = (-1.0 if backwards else 1.0) / num_steps

    def step(x: Array, i: Array) -> tuple[Array, None]:
        t = i * h + (1.0 if backwards else 0.0)
        k1 = velocity(t, x)
        k2 = velocity(t + h / 2, x + h / 2 * k1)
        k3 = velocity(t + h / 2, x + h / 2 * k2)
        k4 = velocity(t + h, x + h * k3)
        return x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4), None

    return jax.lax.scan(step, x, jnp.arange(num_steps, dtype=x.dtype))[0]


def _value_and_jacobian(function: Callable[[Array], Array], x: Array) -> tuple[Array, Array]:
    value, push = jax.linearize(function, x)
    return value, jax.vmap(push, out_axes=1)(jnp.eye(x.shape[0], dtype=x.dtype))


def _invert(velocity: Partial, num_steps: int, x: Array) -> Preimage:
    """Integrate backwards, then solve T(z) = x by Newton's method with the exact Jacobian."""
    push = partial(_advance, velocity, num_steps, False)
    pull = partial(_advance, velocity, num_steps, True)
    tolerance = 1e-6 if x.dtype == jnp.float64 else 2e-5

    def newton(state: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
        z, _, _, i = state
        value, jacobian = _value_and_jacobian(push, z)
        residual = x - value
        return (
            z + jnp.linalg.solve(jacobian, residual),
            jnp.linalg.slogdet(jacobian)[1],
            jnp.max(jnp.abs(residual)) / (1 + jnp.max(jnp.abs(x))),
            i + 1,
        )

    def unsolved(state: tuple[Array, Array, Array, Array]) -> Array:
        _, _, error, i = state
        return ~(error < tolerance) & (i < 8)

    z = back = pull(x)
    for _ in range(2):  # contracts by the integrator's own error and needs no Jacobian: 10 times cheaper than Newton
        z = z + back - pull(push(z))
    z, log_det, error, _ = jax.lax.while_loop(
        unsolved, newton, (z, jnp.zeros((), x.dtype), jnp.full((), jnp.inf, x.dtype), 0)
    )
    return Preimage(z, log_det, error < tolerance)


# ------------------------------------------------------------- the distribution


@partial(
    jax.tree_util.register_dataclass, data_fields=("velocity", "mean", "scale"), meta_fields=("num_steps",)
)
@dataclass(frozen=True)
class Flow:
    velocity: Partial
    mean: Array
    scale: Array
    num_steps: int = 8

    @property
    def num_dims(self) -> int:
        return self.mean.shape[0]

    def sample(self, key, num_samples):
        z = jax.random.normal(key, (num_samples, self.num_dims), _dtype())
        return self.forward(z)

    def forward(self, z):
        return _by_chunks(_forward, self, z)

    def inverse(self, x) -> Preimage:
        return _by_chunks(_inverse, self, x)

    def log_prob(self, x):
        return self.log_prob_and_preimage(x)[0]

    def log_prob_and_preimage(self, x):
        p = self.inverse(x)
        lp = -0.5 * jnp.sum(p.z**2, -1) - 0.5 * self.num_dims * np.log(2 * np.pi) - p.log_det
        return jnp.where(p.converged, lp, jnp.nan), p


def _dtype():
    return jnp.zeros(()).dtype if not jax.config.jax_enable_x64 else jnp.float64


@partial(jax.jit)
def _forward(flow: Flow, z):
    return jax.vmap(lambda z: flow.mean + flow.scale @ _advance(flow.velocity, flow.num_steps, False, z))(z)


@partial(jax.jit)
def _inverse(flow: Flow, x):
    def one(x):
        p = _invert(flow.velocity, flow.num_steps, solve_triangular(flow.scale, x - flow.mean, lower=True))
        return p._replace(log_det=p.log_det + jnp.sum(jnp.log(jnp.diag(flow.scale))))

    return jax.vmap(one)(x)


def _by_chunks(function, flow, x):
    n = len(x)
    x = np.asarray(x)
    pad = -n % CHUNK
    x = np.concatenate([x, np.broadcast_to(np.asarray(flow.mean), (pad, x.shape[1])).astype(x.dtype)])
    out = [function(flow, x[i : i + CHUNK]) for i in range(0, n + pad, CHUNK)]
    return jax.tree.map(lambda *a: jnp.concatenate(a)[:n], *out)


def moments(points, log_weights):
    w = np.exp(log_weights - log_weights.max())
    w /= w.sum()
    n_eff = 1 / np.sum(w**2)
    mean = w @ points
    cov = (points - mean).T @ ((points - mean) * w[:, None])
    lam = min(1.0, (points.shape[1] / n_eff) ** 2)
    cov = (1 - lam) * cov + lam * np.diag(np.diag(cov))
    return mean, np.linalg.cholesky(cov)


@float64
def fit(key, points, log_weights=None, *, training=Training(), num_steps=8, initial=None):
    n, d = points.shape
    if log_weights is None:
        log_weights = np.zeros(n)
    mean, scale = moments(points, log_weights)
    white = np.linalg.solve(scale, (points - mean).T).T
    k1, k2, k3 = jax.random.split(key, 3)
    order = np.asarray(jax.random.permutation(k1, n))
    m = min(CHUNK, int(training.held_out * n))
    held, kept = order[:m], order[m:]
    w = np.exp(log_weights[held] - log_weights[held].max())
    w /= w.sum()
    eye, zero = np.eye(d), np.zeros(d)

    def score(velocity):
        lp = Flow(velocity, zero, eye, num_steps).log_prob(white[held])
        return float(w @ np.nan_to_num(np.asarray(lp), nan=-1e3))

    v0 = initial if initial is not None else training.architecture.init(k2, d, training.path)
    velocity, info = train.fit(k3, v0, white[kept], log_weights[kept], training=training, score=score)
    return Flow(velocity, mean, scale, num_steps), info
