"""The parameters of a prior: density, draws, and the bijection between values and a latent vector."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, Protocol, final, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from numpyro.distributions import biject_to
from scipy import special

from nsflow.prior.quantile import SMALLEST_TAIL, standard_normal_log_prob

# exp(+-700) is still finite: the latent place of a point on the very edge of its support.
LATENT_EDGE = 700.0
TAILS = (1e-9, 1e-12, 1e-14, 1e-17, 1e-30, 1e-100, 1e-300)  # probabilities at which quantiles are tried


@runtime_checkable
class Parameter(Protocol):
    """A parameter with values of shape `shape` and a latent vector of length `num_dims`; all methods take batches.

    `forward` maps latent ``(n, d)`` to values ``(n, *shape)`` and `inverse` maps back. `log_prob` is the density of
    the values, `latent_log_prob` that of the latent vector, both in nats, shape ``(n,)``.
    """

    @property
    def shape(self) -> tuple[int, ...]: ...  # noqa: D102
    @property
    def num_dims(self) -> int: ...  # noqa: D102
    @property
    def traceable(self) -> bool: ...  # noqa: D102
    def forward(self, z: Any) -> Any: ...  # noqa: D102
    def inverse(self, x: Any) -> Any: ...  # noqa: D102
    def log_prob(self, x: Any) -> Any: ...  # noqa: D102
    def latent_log_prob(self, z: Any) -> Any: ...  # noqa: D102
    def sample(self, key: Any, n: int) -> Any: ...  # noqa: D102
    def latent_sample(self, key: Any, n: int) -> Any: ...  # noqa: D102


class NormalLatent(ABC):
    """What parameters share whose latent vector is exactly N(0, I), one number for each of theirs."""

    shape: tuple[int, ...]

    @abstractmethod
    def forward(self, z: Float[Array, "n d"]) -> Float[Array, "n *shape"]:
        """Map latent vectors to values."""

    @property
    def num_dims(self) -> int:
        """Length of the latent vector."""
        return int(np.prod(self.shape, dtype=int))

    def latent_log_prob(self, z: Float[Array, "n d"]) -> Float[Array, " n"]:
        """Density of the latent vectors, in nats: the standard normal's."""
        return standard_normal_log_prob(z)

    def sample(self, key: Array, n: int) -> Float[Array, "n *shape"]:
        """Draw values."""
        return self.forward(self.latent_sample(key, n))

    def latent_sample(self, key: Array, n: int) -> Float[Array, "n d"]:
        """Draw latent vectors."""
        return jax.random.normal(key, (n, self.num_dims))


@final
@dataclass(frozen=True)
class NormalScore(NormalLatent):
    """A distribution whose latent vector is exactly N(0, I): an affine, a log-affine, a probit or a tabulated map."""

    distribution: Any
    shape: tuple[int, ...]
    to_value: Callable[[Any], Any]  # one latent point, already of the parameter's shape, to its value
    to_latent: Callable[[Any], Any]
    traceable: bool = True

    def forward(self, z: Float[Array, "n d"]) -> Float[Array, "n *shape"]:
        """Map latent vectors to values."""
        return jax.vmap(lambda z: self.to_value(z.reshape(self.shape)))(z)

    def inverse(self, x: Float[Array, "n *shape"]) -> Float[Array, "n d"]:
        """Map values to latent vectors."""
        return jax.vmap(lambda x: self.to_latent(x).reshape(self.num_dims))(x)

    def log_prob(self, x: Float[Array, "n *shape"]) -> Float[Array, " n"]:
        """Density of the values, in nats."""
        return log_prob(self.distribution, x)


@final
@dataclass(frozen=True)
class Bijected:
    """A numpyro distribution without a quantile function: latent vector and density by the bijection of its support."""

    distribution: Any
    shape: tuple[int, ...]
    latent_shape: tuple[int, ...]
    traceable: bool = True

    @property
    def num_dims(self) -> int:
        """Length of the latent vector; a simplex of k numbers has k - 1."""
        return int(np.prod(self.latent_shape, dtype=int))

    @property
    def _bijection(self) -> Any:
        return biject_to(self.distribution.support)

    def forward(self, z: Float[Array, "n d"]) -> Float[Array, "n *shape"]:
        """Map latent vectors to values."""
        return jax.vmap(lambda z: self._bijection(z.reshape(self.latent_shape)))(z)

    def inverse(self, x: Float[Array, "n *shape"]) -> Float[Array, "n d"]:
        """Map values to latent vectors."""
        z = jax.vmap(lambda x: self._bijection.inv(x).reshape(self.num_dims))(x)
        return jnp.nan_to_num(z, nan=jnp.nan, posinf=LATENT_EDGE, neginf=-LATENT_EDGE)

    def log_prob(self, x: Float[Array, "n *shape"]) -> Float[Array, " n"]:
        """Density of the values, in nats."""
        return log_prob(self.distribution, x)

    def latent_log_prob(self, z: Float[Array, "n d"]) -> Float[Array, " n"]:
        """Density of the latent vectors, in nats: that of the values times the volume they stretch to."""

        def one(z: Any) -> Any:
            z = z.reshape(self.latent_shape)
            x = self._bijection(z)
            density = jnp.sum(self.distribution.log_prob(x)) + jnp.sum(self._bijection.log_abs_det_jacobian(z, x))
            # Where x rounds to the edge of the support there is no double to hold the point: no prior mass.
            return jnp.where(jnp.isfinite(density), density, -jnp.inf)

        return jax.vmap(one)(z)

    def sample(self, key: Array, n: int) -> Float[Array, "n *shape"]:
        """Draw values."""
        return jnp.asarray(self.distribution.sample(key, (n,)), jnp.float64)

    def latent_sample(self, key: Array, n: int) -> Float[Array, "n d"]:
        """Draw latent vectors."""
        return self.inverse(self.sample(key, n))


@final
@dataclass(frozen=True)
class HostNormalScore(NormalLatent):
    """A frozen scipy distribution, evaluated by scipy; its latent vector is N(0, I) by the probit map."""

    distribution: Any
    shape: tuple[int, ...]
    traceable: bool = False

    @cached_property
    def latent_limits(self) -> tuple[Float[np.ndarray, " d"], Float[np.ndarray, " d"]]:
        """Latent places beyond which scipy's quantiles do not belong to its own tail probabilities."""
        pairs = (self.distribution.ppf, self.distribution.cdf), (self.distribution.isf, self.distribution.sf)
        lower, upper = (self._limit(*pair) for pair in pairs)
        return -lower, upper

    def _limit(self, quantile: Callable[[Any], Any], probability: Callable[[Any], Any]) -> Float[np.ndarray, " d"]:
        limit = np.full(self.num_dims, np.inf)
        for good, tail in reversed(tuple(pairwise(TAILS))):
            with np.errstate(all="ignore"):
                back = np.broadcast_to(np.log(probability(quantile(tail))) - np.log(tail), self.shape).ravel()
            limit = np.where(np.abs(back) < 1e-3, limit, -special.ndtri(good))
        return limit

    # By numpy alone: JAX compiles for each number of points, a few hundred times in a run.
    def forward(self, z: Any) -> Any:
        """Map latent vectors to values."""
        z = np.asarray(z, np.float64).reshape((-1, *self.shape))
        tail = np.clip(special.ndtr(-np.abs(z)), SMALLEST_TAIL, 0.5)
        return np.asarray(np.where(z < 0, self.distribution.ppf(tail), self.distribution.isf(tail)), np.float64)

    def inverse(self, x: Any) -> Float[np.ndarray, "n d"]:
        """Map values to latent vectors."""
        x = np.asarray(x, np.float64)
        below, above = self.distribution.cdf(x), self.distribution.sf(x)
        z = special.ndtri(np.clip(np.minimum(below, above), SMALLEST_TAIL, 0.5))
        return np.where(below < above, z, -z).reshape((-1, self.num_dims))

    def log_prob(self, x: Any) -> Float[np.ndarray, " n"]:
        """Density of the values, in nats."""
        density = np.asarray(self.distribution.logpdf(np.asarray(x)), np.float64)
        return density.reshape(len(density), -1).sum(-1)


@final
class Joint:
    """Independent parameters, each with its block of the latent vector, in order.

    Args:
        parameters: Name -> parameter.
    """

    def __init__(self, parameters: dict[str, Parameter]) -> None:
        self.parameters = parameters
        self.shapes = {name: p.shape for name, p in parameters.items()}
        self.num_dims = sum(p.num_dims for p in parameters.values())
        self.traceable = all(p.traceable for p in parameters.values())
        self._cuts = np.cumsum([p.num_dims for p in parameters.values()])[:-1].tolist()

    def _blocks(self, z: Array) -> list[tuple[str, Parameter, Array]]:
        return [
            (name, p, block)
            for (name, p), block in zip(self.parameters.items(), jnp.split(z, self._cuts, axis=1), strict=True)
        ]

    def _keys(self, key: Array) -> list[tuple[str, Parameter, Array]]:
        keys = jax.random.split(key, len(self.parameters))
        return [(name, p, k) for (name, p), k in zip(self.parameters.items(), keys, strict=True)]

    def forward(self, z: Array) -> dict[str, Array]:
        """Map latent vectors to parameters."""
        return {name: p.forward(block) for name, p, block in self._blocks(z)}

    def inverse(self, params: dict[str, Array]) -> Array:
        """Map parameters to latent vectors."""
        return jnp.concatenate([p.inverse(params[name]) for name, p in self.parameters.items()], axis=1)

    def log_prob(self, params: dict[str, Array]) -> Array:
        """Density of the parameters, in nats."""
        return sum((p.log_prob(params[name]) for name, p in self.parameters.items()), start=jnp.zeros(()))

    def latent_log_prob(self, z: Array) -> Array:
        """Density of the latent vectors, in nats."""
        return sum((p.latent_log_prob(block) for _, p, block in self._blocks(z)), start=jnp.zeros(()))

    def sample(self, key: Array, n: int) -> dict[str, Array]:
        """Draw parameters."""
        return {name: p.sample(k, n) for name, p, k in self._keys(key)}

    def latent_sample(self, key: Array, n: int) -> Array:
        """Draw latent vectors: those of `sample` with the same key."""
        return jnp.concatenate([p.latent_sample(k, n) for _, p, k in self._keys(key)], axis=1)


def column_names(shapes: Mapping[str, tuple[int, ...]]) -> tuple[str, ...]:
    """Name the columns that parameters of these shapes fill, in C order.

    Args:
        shapes: Parameter name -> shape.

    Returns:
        The name itself for a scalar, with indices for the elements of an array.

    Example:
        >>> column_names({"a": (), "C": (1, 2)})
        ('a', 'C[0,0]', 'C[0,1]')
    """
    return tuple(
        f"{name}[{','.join(map(str, index))}]" if index else name
        for name, shape in shapes.items()
        for index in np.ndindex(shape)
    )


def log_prob(distribution: Any, x: Float[Array, "n *shape"]) -> Float[Array, " n"]:
    """Log density of a batch of values in nats, -inf outside the support."""

    def one(x: Any) -> Any:
        # Without `validate_args` numpyro gives a uniform its density outside its bounds as well.
        inside = jnp.all(jnp.asarray(distribution.support(x)))
        return jnp.where(inside, jnp.sum(distribution.log_prob(x)), -jnp.inf)

    return jax.vmap(one)(x)
