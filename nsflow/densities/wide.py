"""A flow or a Gaussian with a wider base: what training points missed lies around them, not among them."""

from dataclasses import dataclass

import jax
import numpy as np
from jaxtyping import Array, Float

from nsflow.densities.gaussian import Preimage
from nsflow.densities.pushforward import Map
from nsflow.numerics.storable import storable

SHARES = (0.5, 0.3, 0.2)  # p_k of the normals
DEVIATIONS = (0.0, 1.0, 3.0)  # m_k, by which their radii exceed the first's, in its deviations


@storable("wide")
@dataclass(frozen=True)
class Wide:
    r"""Distribution of T(z), where z comes from normals of three widths and T is the map of a flow or a Gaussian.

    .. math::
        q(x) = \left|\det \frac{\partial T}{\partial z}\right|^{-1} \sum_k p_k\, N(z; 0, s_k^2 I),
        \qquad s_k = 1 + \frac{m_k}{\sqrt{2d}}.

    The radius of N(0, I) has the mean sqrt(d) and the deviation 2^-1/2, so that the wider ones end about m = 1 and
    m = 3 typical deviations further out. They bound the weights where training points were few, and a ladder that
    draws from them keeps what a contour's Gaussian would cut off: ladders of Neal's funnel in 10-d ended 1.0 to 2.3
    nats low without them and within 0.1 with them. Half of the draws are of unit width, so no density is less than half
    of the map's own.

    Args:
        map: The flow or Gaussian.

    Example:
        >>> from nsflow.densities.gaussian import Gaussian
        >>> x, log_q = Wide(Gaussian(np.zeros(2), np.eye(2))).sample_and_log_prob(jax.random.key(0), 1000)
        >>> bool(1.5 < x.std() < 1.8)
        True

    References:
        Hesterberg (1995), *Weighted Average Importance Sampling and Defensive Mixture Distributions*, Section 3.
    """

    map: Map

    def sample(self, key: Array, num_samples: int) -> np.ndarray:
        """Draw points, ``(n, d)``."""
        return np.asarray(self.map.forward(self._base(key, num_samples)))

    def sample_and_log_prob(self, key: Array, num_samples: int) -> tuple[np.ndarray, np.ndarray]:
        """Draw points, ``(n, d)``, with their log-density in nats; NaN where the map folds."""
        z = self._base(key, num_samples)
        x = np.asarray(self.map.forward(z))
        preimage = self.map.inverse(x)
        recovered = np.max(np.abs(preimage.z - z), axis=1) < 1e-3
        return x, np.where(recovered, self._density(preimage), np.nan)

    def log_prob(self, x: Float[np.ndarray, "n d"]) -> np.ndarray:
        """Log-density in nats, shape ``(n,)``; NaN where the map's inverse was not found."""
        return self._density(self.map.inverse(x))

    def _base(self, key: Array, num_samples: int) -> np.ndarray:
        rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
        num_dims = self.map.num_dims
        width = _widths(num_dims)[rng.choice(len(SHARES), num_samples, p=SHARES)]
        return width[:, None] * rng.normal(size=(num_samples, num_dims))

    def _density(self, preimage: Preimage) -> np.ndarray:
        z = np.asarray(preimage.z, np.float64)
        num_dims = z.shape[1]
        widths = _widths(num_dims)
        # What a normal of each width has over that of unit width, which the preimage's own density is.
        log_ratio = 0.5 * np.sum(z**2, axis=1)[:, None] * (1 - widths**-2) - num_dims * np.log(widths)
        return preimage.log_prob + np.logaddexp.reduce(log_ratio + np.log(SHARES), axis=1)


def _widths(num_dims: int) -> np.ndarray:
    return 1 + np.array(DEVIATIONS) / np.sqrt(2 * num_dims)


def widest(num_dims: int) -> float:
    """Width of the widest normal over that of the map's own."""
    return float(_widths(num_dims)[-1])
