"""One Gaussian: the cheapest proposal, and where a flow starts from."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float

from nsflow.numerics.storable import storable

LOG_2PI = float(np.log(2 * np.pi))


class Preimage(NamedTuple):
    """The base points that a map carries to given points."""

    z: Any  # (n, d), in the base
    log_det: Any  # (n,), log|det dx/dz| in nats; NaN where the inverse was not found

    @property
    def log_prob(self) -> Any:
        """Log-density of the given points where the base is N(0, I), nats."""
        return -0.5 * (self.z**2).sum(axis=1) - 0.5 * self.z.shape[1] * LOG_2PI - self.log_det


@storable("gaussian")
@dataclass(frozen=True)
class Gaussian:
    r"""Normal distribution :math:`N(\mu, L L^T)`.

    Args:
        mean: Centre mu, shape ``(d,)``.
        scale: Lower triangular factor L, shape ``(d, d)``.

    Example:
        >>> gaussian = Gaussian.fit(np.random.default_rng(0).normal(3.0, 2.0, (1000, 1)))
        >>> bool(abs(gaussian.mean[0] - 3) < 0.3), bool(abs(gaussian.scale[0, 0] - 2) < 0.2)
        (True, True)
    """

    mean: Float[np.ndarray, " d"]
    scale: Float[np.ndarray, "d d"]

    @classmethod
    def fit(
        cls,
        points: Float[np.ndarray, "n d"],
        log_weights: Float[np.ndarray, " n"] | None = None,
        *,
        frame: Float[np.ndarray, "d d"] | None = None,
    ) -> "Gaussian":
        """Weighted mean and covariance of points; few effective points have their random correlations shrunk.

        Args:
            points: Points, shape ``(n, d)``.
            log_weights: Their log-weights in nats up to a constant, shape ``(n,)``; equal if left out.
            frame: Scale of a Gaussian of about the same shape, such as that of the level before: correlations are
                shrunk to its own. With shrinkage to none, ten coordinates correlated by 0.999 stalled a ladder.

        Returns:
            The Gaussian.

        Raises:
            ValueError: If points of these weights have no covariance, as where one weight dominates.
        """
        log_weights = np.zeros(len(points)) if log_weights is None else log_weights
        weights = np.exp(log_weights - np.max(log_weights))
        weights /= np.sum(weights)
        mean = weights @ points
        frame = np.eye(points.shape[1]) if frame is None else frame
        offset = np.linalg.solve(frame, (points - mean).T).T
        covariance = offset.T @ (offset * weights[:, None])
        # Few effective points leave random correlations of size n_eff^-1/2; their square is the shrinkage, so that a
        # true correlation of 0.999 survives 500 points.
        shrinkage = min(1.0, (points.shape[1] * np.sum(weights**2)) ** 2)
        covariance += shrinkage * (np.diag(np.diag(covariance)) - covariance)
        try:
            return cls(mean, frame @ np.linalg.cholesky(covariance))
        except np.linalg.LinAlgError as error:
            raise ValueError(
                "The fit of a normal expected points whose weighted covariance is positive definite; got one that is "
                f"not: the largest weight is {np.max(weights):.6g} of all, and {1 / np.sum(weights**2):.1f} of "
                f"{len(points)} points are effective in {points.shape[1]} dimensions. Give more points of comparable "
                "weight, and no column that follows from others."
            ) from error

    def whiten(self, x: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
        """Map points to where the Gaussian is N(0, I)."""
        return np.linalg.solve(self.scale, (x - self.mean).T).T

    @property
    def num_dims(self) -> int:
        """Dimension d of the points."""
        return len(self.mean)

    def forward(self, z: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
        """Map points of N(0, I) to those of the Gaussian."""
        return self.mean + z @ self.scale.T

    def inverse(self, x: Float[np.ndarray, "n d"]) -> Preimage:
        """Map points back, with the log-determinant of the way forward."""
        return Preimage(self.whiten(x), np.full(len(x), np.sum(np.log(np.diag(self.scale)))))

    def sample(self, key: Array, num_samples: int) -> np.ndarray:
        """Draw points, ``(n, d)``."""
        rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
        return self.forward(rng.normal(size=(num_samples, self.num_dims)))

    def sample_and_log_prob(self, key: Array, num_samples: int) -> tuple[np.ndarray, np.ndarray]:
        """Draw points, ``(n, d)``, with their log-density in nats."""
        x = self.sample(key, num_samples)
        return x, self.log_prob(x)

    def log_prob(self, x: Float[np.ndarray, "n d"]) -> np.ndarray:
        """Log-density in nats, shape ``(n,)``."""
        return self.inverse(x).log_prob


def lower_root(root: Float[np.ndarray, "*batch d n"]) -> Float[np.ndarray, "*batch d d"]:
    """Lower triangular L with a positive diagonal and L L^T = A A^T.

    By QR, not Cholesky: of a cliff's curvature of 1e20 beside one of 1 rounding leaves no positive definite matrix.

    Args:
        root: The matrix A, shape ``(d, n)``, or some of them.

    Returns:
        L, shape ``(d, d)``, of each.

    Example:
        >>> lower_root(np.array([[3.0, 4.0], [0.0, 5.0]])).round(6).tolist()
        [[5.0, 0.0], [4.0, 3.0]]
    """
    upper = np.asarray(np.linalg.qr(np.swapaxes(root, -1, -2), mode="r"))
    signs = np.where(np.diagonal(upper, axis1=-2, axis2=-1) < 0, -1.0, 1.0)
    return np.swapaxes(upper * signs[..., :, None], -1, -2)
