"""An unbounded coordinate on the support of a scalar distribution, which tells points next to an edge apart."""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

SMALLEST, LARGEST = float(np.finfo(np.float64).tiny), float(np.finfo(np.float64).max)
# Of the edge, in its own units: nearer than the root of the rounding error, densities see the rounding of x.
RESOLUTION = 1e-8
FARTHEST = 345.0  # exp(345) = 1e150: beyond, densities compute squares that overflow


class Coordinate(NamedTuple):
    r"""The increasing map from :math:`y \in R` to the open interval (low, high).

    .. math::
        x = m + s \sinh y, \quad l + s\,e^y, \quad h - s\,e^{-y}, \quad l + (h - l) / (1 + e^{-y})

    for supports without edges, with a lower, an upper, and two edges.

    Args:
        low: Lower edge, or -inf.
        high: Upper edge, or inf.
        centre: The place m of a support without edges.
        scale: The scale s; not used between two edges.

    Each is a number, or an array of them for as many supports of one kind.

    Example:
        >>> x = Coordinate(0.0, 1.0).value(np.array([-700.0, 0.0, 700.0]))
        >>> bool(x[0] > 0), float(x[1]), bool(x[2] < 1)
        (True, 0.5, True)
    """

    low: Any
    high: Any
    centre: Any = 0.0
    scale: Any = 1.0

    @classmethod
    def around(cls, low: float, high: float, places: Float[np.ndarray, " n"]) -> "Coordinate":
        """Choose the coordinate whose unit is the spread of some places inside the support."""
        if len(places) == 0:
            return cls(low, high)
        centre = float(np.median(places))
        spread = float(np.subtract(*np.quantile(places, [0.75, 0.25])))
        if np.isfinite(low) and np.isfinite(high):
            return cls(low, high)
        if np.isfinite(low) or np.isfinite(high):
            spread = centre - low if np.isfinite(low) else high - centre
        return cls(low, high, centre, min(max(spread, 1e-100, 1e-12 * abs(centre)), 1e100))

    def value(self, y: Float[Any, "*shape"]) -> Float[Any, "*shape"]:
        """Map the coordinate to a point inside the support: where doubles end, to the last of them."""
        xp, low, high, scale = y.__array_namespace__(), self.low, self.high, self.scale
        y = xp.clip(y, -709.0, 709.0)
        if _all_infinite(low, high):
            return xp.clip(self.centre + scale * xp.sinh(y), -LARGEST, LARGEST)
        if _all_infinite(high):
            x = low + scale * xp.exp(y)
        elif _all_infinite(low):
            x = high - scale * xp.exp(-y)
        else:
            # Each half is counted from its own edge, where it has to tell points apart.
            near = (high - low) / (1 + xp.exp(xp.abs(y)))
            x = xp.where(y < 0, low + near, high - near)
        return xp.clip(x, *self.inside)

    def inverse(self, x: Float[Any, "*shape"]) -> Float[Any, "*shape"]:
        """Map points to the coordinate; those on an edge or beyond to a finite place far out."""
        xp, low, high, scale = x.__array_namespace__(), self.low, self.high, self.scale
        if _all_infinite(low, high):
            return xp.arcsinh((x - self.centre) / scale)

        def distance(length: Any) -> Any:
            return xp.log(xp.maximum(length / scale, SMALLEST))

        if _all_infinite(high):
            return distance(x - low)
        return -distance(high - x) if _all_infinite(low) else distance(x - low) - distance(high - x)

    def log_slope(self, y: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
        """Log of dx/dy."""
        if _all_infinite(self.low, self.high):
            return np.log(self.scale / 2) + np.logaddexp(y, -y)
        if _all_infinite(self.high):
            return np.log(self.scale) + y
        if _all_infinite(self.low):
            return np.log(self.scale) - y
        return np.log(self.high - self.low) - np.logaddexp(0, y) - np.logaddexp(0, -y)

    def rounding(self, y: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
        """Relative error of the distance between an edge and the double next to a point."""
        width = self.high - self.low if np.isfinite(self.high - self.low) else self.scale
        edges = [(edge, sign) for edge, sign in ((self.low, 1.0), (self.high, -1.0)) if np.isfinite(edge)]
        near = [np.finfo(float).eps * abs(edge) / width * np.exp(np.clip(-sign * y, -700, 700)) for edge, sign in edges]
        return np.sum(near, axis=0) if near else np.zeros(np.shape(y))

    @property
    def resolved(self) -> tuple[float, float]:
        """Coordinates between which a double x keeps eight digits of its distance to the edges."""
        width = self.high - self.low if np.isfinite(self.high - self.low) else self.scale

        def nearest(edge: float) -> float:
            digits = np.clip(RESOLUTION * abs(edge), SMALLEST, 1e-3 * width)
            return max(-FARTHEST, float(np.log(digits))) - float(np.log(width))

        farthest = FARTHEST - float(np.log(width))
        low = nearest(self.low) if np.isfinite(self.low) else -farthest
        high = -nearest(self.high) if np.isfinite(self.high) else farthest
        return low, high

    @property
    def inside(self) -> tuple[Any, Any]:
        """The outermost doubles of the support."""
        low = np.where(np.equal(self.low, 0), SMALLEST, np.nextafter(self.low, self.high))
        high = np.where(np.equal(self.high, 0), -SMALLEST, np.nextafter(self.high, self.low))
        return np.maximum(low, -LARGEST), np.minimum(high, LARGEST)


def _all_infinite(*edges: Any) -> bool:
    return all(bool(np.all(np.isinf(edge))) for edge in edges)
