"""Triangular maps: they take from coordinates the curves and widths that others predict, so that ridges straighten."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Float

from nsflow.densities.density import Proposal
from nsflow.numerics.storable import storable

STEEPEST = 12.0  # nats at which the log of a width is cut off: of far points those of three sources make 1e16, not 1e39


@storable("triangular-step")
class Step(NamedTuple):
    """One coordinate less a curve, over a width, both of which another coordinate predicts."""

    target: int  # coordinate i
    source: int  # coordinate j
    knots: Float[np.ndarray, " k"]  # of both splines, rising
    curve: Float[np.ndarray, " k+2"]  # coefficients of m in the columns of `basis`
    log_width: Float[np.ndarray, " k+2"]  # and of s, in nats

    def predict(self, source: Float[np.ndarray, " n"]) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
        """Curve and log-width at values of the source, each of shape ``(n,)``."""
        columns = basis(source, self.knots)
        return columns @ self.curve, np.clip(columns @ self.log_width, -STEEPEST, STEEPEST)


@storable("triangular-map")
@dataclass(frozen=True)
class TriangularMap:
    r"""Bijection whose steps, one after the other, straighten curves and even out widths.

    .. math:: x_i \leftarrow (x_i - m_{ij}(x_j))\, e^{-s_{ij}(x_j)},

    with cubic splines m and s and no coordinate among its own ancestors; sources x_j are as they came. Ridges such as
    :math:`x_2 = x_1^2 \pm 0.05` and funnels such as :math:`x_2 = x_3 \pm e^{x_1}`, on which Gaussians, kernels and
    networks all waste their draws, are Gaussians after it.

    Args:
        steps: The steps; those of a coordinate come before those of its ancestors.

    Example:
        >>> parabola = Step(1, 0, np.array([-1.0, 0.0, 1.0]), np.array([0.0, 0.0, 4.0, 0.0, 0.0]), np.zeros(5))
        >>> TriangularMap((parabola,)).straighten(np.array([[-1.0, 0.0], [0.0, 0.0], [1.0, 0.0]]))[:, 1].tolist()
        [0.0, -1.0, -4.0]

    References:
        Marzouk et al. (2016), *Sampling via Measure Transport: An Introduction*, Section 3.
    """

    steps: tuple[Step, ...] = ()

    def straighten(self, x: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
        """Map points x to y."""
        y = np.array(x, np.float64)
        for step in self.steps:
            curve, log_width = step.predict(x[:, step.source])
            y[:, step.target] = (y[:, step.target] - curve) * np.exp(-log_width)
        return y

    def bend(self, y: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
        """Map points y back to x."""
        x = np.array(y, np.float64)
        for step in reversed(self.steps):
            curve, log_width = step.predict(x[:, step.source])
            x[:, step.target] = x[:, step.target] * np.exp(log_width) + curve
        return x

    def log_det(self, x: Float[np.ndarray, "n d"]) -> Float[np.ndarray, " n"]:
        r"""Log of :math:`|\det \partial y / \partial x|` at points x, nats, shape ``(n,)``."""
        log_widths = [step.predict(x[:, step.source])[1] for step in self.steps if np.any(step.log_width)]
        return -np.sum(log_widths, axis=0) if log_widths else np.zeros(len(x))


@storable("bent")
@dataclass(frozen=True)
class Bent:
    """A proposal for straightened coordinates as one for x.

    Args:
        proposal: Proposal for y.
        map: Map of x to y.
    """

    proposal: Proposal
    map: TriangularMap

    def sample_and_log_prob(self, key: Array, num_samples: int) -> tuple[np.ndarray, np.ndarray]:
        """Draw points, ``(n, d)``, with their log-density in nats; NaN where the proposal disowns them."""
        y, log_q = self.proposal.sample_and_log_prob(key, num_samples)
        x = self.map.bend(np.asarray(y))
        return x, np.asarray(log_q) + self.map.log_det(x)

    def log_prob(self, x: Float[np.ndarray, "n d"]) -> np.ndarray:
        """Log-density in nats, shape ``(n,)``; NaN where the proposal disowns the point."""
        x = np.asarray(x)
        return np.asarray(self.proposal.log_prob(self.map.straighten(x))) + self.map.log_det(x)


def basis(x: Float[np.ndarray, " n"], knots: Float[np.ndarray, " k"]) -> Float[np.ndarray, "n k+2"]:
    """Columns of a cubic spline between the outer knots, continued by straight lines; the third is a parabola there.

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
