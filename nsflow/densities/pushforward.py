"""Where a map carries a base distribution."""

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from nsflow.densities.bases import AbstractBase
from nsflow.densities.gaussian import Preimage
from nsflow.numerics.precision import float64
from nsflow.numerics.storable import storable


@runtime_checkable
class Map(Protocol):
    """A bijection from a base to points; a flow and a Gaussian have one."""

    @property
    def num_dims(self) -> int: ...  # noqa: D102
    @property
    def scale(self) -> Float[np.ndarray, "d d"]: ...  # noqa: D102
    def forward(self, z: Any) -> Any: ...  # noqa: D102
    def inverse(self, x: Any) -> Preimage: ...  # noqa: D102


@storable("pushforward")
@dataclass(frozen=True)
class Pushforward:
    r"""Distribution of T(z), where z comes from any base and T is the map of a flow or a Gaussian.

    .. math:: \log q(x) = \log p(z) - \log\left|\det \frac{\partial T}{\partial z}\right|, \qquad z = T^{-1}(x).

    Args:
        map: The flow or Gaussian.
        base: Distribution of z.

    Example:
        >>> import jax
        >>> from nsflow.densities.bases import EdgedBall
        >>> from nsflow.densities.gaussian import Gaussian
        >>> q = Pushforward(Gaussian(np.ones(2), np.eye(2)), EdgedBall())
        >>> x, log_q = q.sample_and_log_prob(jax.random.key(0), 1000)
        >>> bool(0.9 < x.mean() < 1.1)
        True
    """

    map: Map
    base: AbstractBase

    @float64
    def sample(self, key: Array, num_samples: int) -> np.ndarray:
        """Draw points, ``(n, d)``."""
        return np.asarray(self.map.forward(self._base(key, num_samples)))

    @float64
    def sample_and_log_prob(self, key: Array, num_samples: int) -> tuple[np.ndarray, np.ndarray]:
        """Draw points, ``(n, d)``, with their log-density in nats; NaN where the map folds."""
        z = self._base(key, num_samples)
        x = np.asarray(self.map.forward(z))
        preimage = self.map.inverse(x)
        recovered = np.max(np.abs(preimage.z - z), axis=1) < 1e-3
        return x, np.where(recovered, self._density(preimage), np.nan)

    @float64
    def log_prob(self, x: Float[np.ndarray, "n d"]) -> np.ndarray:
        """Log-density in nats, shape ``(n,)``; NaN where the map's inverse was not found."""
        return self._density(self.map.inverse(x))

    def _base(self, key: Array, num_samples: int) -> np.ndarray:
        return np.asarray(self.base.sample(key, num_samples, self.map.num_dims), np.float64)

    def _density(self, preimage: Preimage) -> np.ndarray:
        log_prob = self.base.log_prob_each(jnp.asarray(preimage.z))
        return np.asarray(log_prob - preimage.log_det, np.float64)
