"""Shear: take from a coordinate what another one predicts of it, so that a curved ridge becomes a straight one."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Array, Float, Int

from nsflow.proposal import Proposal

NUM_KNOTS = 7
RANGE = (0.005, 0.995)  # quantiles between which the knots lie; beyond them a spline is a straight line
LEFT = 0.7  # of the variance that a straight line leaves: a curve that leaves less is taken; one of three may leave 2/3
MIN_POINTS = 12.0  # effective points for each knot


@dataclass(frozen=True)
class Shear:
    r"""Map that takes curves of some coordinates from others, in an order that makes it invertible.

    .. math:: y_i = x_i - \sum_{j \in P(i)} s_{ij}(x_j)

    with cubic splines s and no coordinate among its own ancestors. The determinant is one: a density keeps its
    values, and whatever is fitted to y is a proposal for x. Ridges such as :math:`x_2 = x_1^2 \pm 0.05`, on which
    Gaussians, kernels and networks all waste their draws, are Gaussians in y.

    Args:
        target: Coordinate i of each pair, those of an ancestor first, shape ``(p,)``.
        source: Coordinate j of each pair, shape ``(p,)``.
        knots: Knots of each spline, rising, shape ``(p, k)``.
        coefficients: Of the columns of `basis`, shape ``(p, k + 2)``.

    Example:
        >>> x = np.random.default_rng(0).normal(size=(1000, 2))
        >>> x[:, 1] = x[:, 0] ** 2 + 0.05 * x[:, 1]
        >>> shear = Shear.fit(x, np.zeros(1000))
        >>> bool(shear.straighten(x)[:, 1].std() < 0.1), bool(np.allclose(shear.bend(shear.straighten(x)), x))
        (True, True)

    References:
        Marzouk et al. (2016), *Sampling via Measure Transport: An Introduction*, Section 3 (triangular maps).
    """

    target: Int[np.ndarray, " p"]
    source: Int[np.ndarray, " p"]
    knots: Float[np.ndarray, "p k"]
    coefficients: Float[np.ndarray, "p k+2"]

    @classmethod
    def fit(cls, points: Float[np.ndarray, "n d"], log_weights: Float[np.ndarray, " n"]) -> "Shear":
        """Take curves one by one, the one that explains most first.

        Args:
            points: Points, shape ``(n, d)``.
            log_weights: Their log-weights in nats, up to a constant, shape ``(n,)``.

        Returns:
            The shear; without pairs where no curve is worth taking.
        """
        num_dims = points.shape[1]
        weights = np.exp(log_weights - np.max(log_weights))
        weights /= np.sum(weights)
        pairs: list[tuple[int, int, np.ndarray, np.ndarray]] = []
        splines = {}
        if 1 / np.sum(weights**2) > MIN_POINTS * NUM_KNOTS:
            splines = {j: s for j in range(num_dims) if (s := _Spline.of(points[:, j], weights)) is not None}
        residual = points.copy()
        descends = np.eye(num_dims, dtype=bool)  # whether i has j among its ancestors, or is j
        left = np.ones((num_dims, num_dims))
        for j, spline in splines.items():
            left[:, j] = spline.left(residual)
        while True:
            allowed = np.where(descends.T, 1.0, left)
            i, j = divmod(int(np.argmin(allowed)), num_dims)
            if not allowed[i, j] < LEFT:
                break
            coefficients, curve = splines[j].project(residual[:, i])
            pairs.append((i, j, splines[j].knots, coefficients))
            residual[:, i] -= curve
            descends |= np.outer(descends[:, i], descends[j])
            for k, spline in splines.items():
                left[i, k] = spline.left(residual[:, [i]])[0]
        pairs.sort(key=lambda pair: np.sum(descends[pair[0]]))  # an ancestor has fewer ancestors
        target, source = np.array([pair[:2] for pair in pairs], int).reshape(-1, 2).T
        knots = np.array([pair[2] for pair in pairs]).reshape(-1, NUM_KNOTS)
        return cls(target, source, knots, np.array([pair[3] for pair in pairs]).reshape(-1, NUM_KNOTS + 2))

    @property
    def is_straight(self) -> bool:
        """Whether nothing is taken from anything."""
        return len(self.target) == 0

    def straighten(self, x: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
        """Map points x to y."""
        y = np.array(x, np.float64)
        for i, j, knots, coefficients in zip(self.target, self.source, self.knots, self.coefficients, strict=True):
            y[:, i] -= basis(x[:, j], knots) @ coefficients
        return y

    def bend(self, y: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
        """Map points y back to x."""
        x = np.array(y, np.float64)
        for i, j, knots, coefficients in zip(self.target, self.source, self.knots, self.coefficients, strict=True):
            x[:, i] += basis(x[:, j], knots) @ coefficients
        return x


@dataclass(frozen=True)
class Sheared:
    """A proposal for y as one for x.

    Args:
        proposal: Proposal in the coordinates that the shear straightens.
        shear: The shear.
    """

    proposal: Proposal
    shear: Shear

    def sample_and_log_prob(self, key: Array, num_samples: int) -> tuple[np.ndarray, np.ndarray]:
        """Draw points, ``(n, d)``, with their log-density in nats; NaN where the proposal disowns them."""
        y, log_q = self.proposal.sample_and_log_prob(key, num_samples)
        return self.shear.bend(np.asarray(y)), np.asarray(log_q)

    def log_prob(self, x: Float[np.ndarray, "n d"]) -> np.ndarray:
        """Log-density in nats, shape ``(n,)``; NaN where the proposal disowns the point."""
        return np.asarray(self.proposal.log_prob(self.shear.straighten(np.asarray(x))))


def basis(x: Float[np.ndarray, " n"], knots: Float[np.ndarray, " k"]) -> Float[np.ndarray, "n k+2"]:
    """Columns of a cubic spline between the outer knots, continued by straight lines.

    Continued by parabolas, a chain of ten coordinates, each the square of the last, threw draws beyond 1e300.

    References:
        Hastie, Tibshirani & Friedman (2009), *The Elements of Statistical Learning*, Eq. 5.3.
    """
    span = knots[-1] - knots[0]
    u = (x - knots[0]) / span
    inner = np.clip(u, 0, 1)
    beyond = (u - inner)[:, None]
    steps = np.maximum(inner[:, None] - np.append(0, (knots[1:-1] - knots[0]) / span), 0)
    cubes = steps**3 + 3 * steps**2 * beyond
    return np.column_stack([np.ones(len(u)), u, inner * (2 * u - inner), cubes])


@dataclass(frozen=True)
class _Spline:
    """Weighted least squares on the basis of one coordinate."""

    knots: np.ndarray
    columns: np.ndarray  # (n, k + 2)
    orthogonal: np.ndarray  # (n, k + 2), orthonormal after multiplication by the roots of the weights
    triangle: np.ndarray  # (k + 2, k + 2)
    roots: np.ndarray  # (n,), of the weights

    @classmethod
    def of(cls, x: np.ndarray, weights: np.ndarray) -> "_Spline | None":
        """Lay the knots at quantiles; None where many values are equal."""
        order = np.argsort(x)
        knots = np.interp(np.linspace(*RANGE, NUM_KNOTS), np.cumsum(weights[order]), x[order])
        if np.min(np.diff(knots)) <= 1e-6 * (knots[-1] - knots[0]):
            return None
        columns, roots = basis(x, knots), np.sqrt(weights)
        orthogonal, triangle = np.linalg.qr(columns * roots[:, None])
        return cls(knots, columns, orthogonal, triangle, roots)

    def left(self, y: np.ndarray) -> np.ndarray:
        """Variance that the curve leaves of each column, over the variance that a straight line leaves."""
        scaled = y * self.roots[:, None]
        explained = (self.orthogonal.T @ scaled) ** 2
        line = np.sum(scaled**2, axis=0) - np.sum(explained[:2], axis=0)
        return 1 - np.sum(explained[2:], axis=0) / np.maximum(line, 1e-300)

    def project(self, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Coefficients and values of the curve nearest to a column."""
        coefficients = np.linalg.solve(self.triangle, self.orthogonal.T @ (y * self.roots))
        return coefficients, self.columns @ coefficients
