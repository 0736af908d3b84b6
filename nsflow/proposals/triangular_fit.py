"""Fitting a triangular map: which curves and widths points have, the one that gains most first."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from nsflow.densities.triangular import STEEPEST, Step, TriangularMap, basis
from nsflow.importance.weights import truncate

NUM_KNOTS = 7
RANGE = (0.005, 0.995)  # quantiles between which the knots lie
MIN_POINTS = 12.0  # effective points for each knot
GAIN = 0.18  # nats a point that a step must gain a Gaussian; one curve of three may gain 0.2
SMALLEST = 1e-3  # distance from a line over its root mean square below which its logarithm tells nothing
MOST_TRIED = 4  # steps that are tried, for each dimension
NUM_REFITS = 3  # times a line is fitted where it is narrow, and the width around it


def fit(x: Float[np.ndarray, "n d"], log_weights: Float[np.ndarray, " n"]) -> TriangularMap:
    """Straighten the curve or even out the width that gains most, until none gains much.

    Args:
        x: Points, shape ``(n, d)``.
        log_weights: Their log-weights in nats, up to a constant, shape ``(n,)``.

    Returns:
        The map; without steps where none is worth taking.

    Example:
        >>> x = np.random.default_rng(0).normal(size=(1000, 2))
        >>> ridge = np.column_stack([x[:, 0], x[:, 0] ** 2 + 0.05 * x[:, 1]])
        >>> bool(fit(ridge, np.zeros(1000)).straighten(ridge)[:, 1].std() < 0.1)
        True
        >>> funnel = np.column_stack([x[:, 0], np.exp(2 * x[:, 0]) * x[:, 1]])
        >>> y = fit(funnel, np.zeros(1000)).straighten(funnel)[:, 1]
        >>> bool(np.max(np.abs(y)) < 6 * y.std())
        True
    """
    num_dims = x.shape[1]
    weights = np.exp(log_weights - np.max(log_weights))
    weights /= np.sum(weights)
    splines = dict[int, _Spline]()
    if 1 / np.sum(weights**2) > MIN_POINTS * NUM_KNOTS:
        splines = {j: s for j in range(num_dims) if (s := _Spline.of(j, x[:, j], weights)) is not None}
    y, steps, gains = x.copy(), list[Step](), _gains(splines, x, weights)
    descends = np.eye(num_dims, dtype=bool)  # whether i has j among its ancestors, or is j
    is_tried = np.zeros((2, num_dims, num_dims), bool)
    for _ in range(MOST_TRIED * num_dims):
        allowed = np.where(is_tried | descends.T, 0.0, gains)
        kind, i, j = map(int, np.unravel_index(np.argmax(allowed), allowed.shape))
        if not allowed[kind, i, j] > GAIN:
            break
        others = [spline for k, spline in splines.items() if not descends[k, i]]
        new = [_curve(i, y[:, i], splines[j])] if kind == 0 else _width(i, y[:, i], splines[j], others)
        is_tried[kind, i, j] = True  # of few distinct values curve and width would gain for ever, one after the other
        for step in new:
            curve, log_width = step.predict(x[:, step.source])
            y[:, i] = (y[:, i] - curve) * np.exp(-log_width)
            descends |= np.outer(descends[:, i], descends[step.source])
        steps += new
        gains = _gains(splines, y, weights) if new else gains
    return TriangularMap(tuple(sorted(steps, key=lambda step: -np.sum(descends[step.target]))))


@dataclass(frozen=True)
class _Spline:
    """Weighted least squares on the basis of one coordinate."""

    source: int
    knots: np.ndarray
    columns: np.ndarray  # (n, k + 2)
    orthogonal: np.ndarray  # (n, k + 2), orthonormal after multiplication by the roots of the weights
    triangle: np.ndarray  # (k + 2, k + 2)
    roots: np.ndarray  # (n,), of the weights

    @classmethod
    def of(cls, source: int, x: np.ndarray, weights: np.ndarray) -> "_Spline | None":
        """Lay the knots at quantiles; None where many values are equal, or so few that a curve meets each."""
        order = np.argsort(x)
        knots = np.interp(np.linspace(*RANGE, NUM_KNOTS), np.cumsum(weights[order]), x[order])
        if np.min(np.diff(knots)) <= 1e-6 * (knots[-1] - knots[0]):
            return None
        columns, roots = basis(x, knots), np.sqrt(weights)
        orthogonal, triangle = np.linalg.qr(columns * roots[:, None])
        if np.min(np.abs(np.diag(triangle))) < 1e-9 * np.abs(triangle[0, 0]):
            return None
        return cls(source, knots, columns, orthogonal, triangle, roots)

    def explain(self, y: np.ndarray, num_columns: int = NUM_KNOTS + 2) -> np.ndarray:
        """Components of y, or of each of its columns, along the first orthonormal columns."""
        return self.orthogonal[:, :num_columns].T @ (y.T * self.roots).T

    def fit(self, y: np.ndarray, num_columns: int = NUM_KNOTS + 2) -> np.ndarray:
        """Coefficients of what is nearest to y in the first columns, zero for the others."""
        coefficients = np.zeros(NUM_KNOTS + 2)
        triangle = self.triangle[:num_columns, :num_columns]
        coefficients[:num_columns] = np.linalg.solve(triangle, self.explain(y, num_columns))
        return coefficients


def _gains(splines: dict[int, _Spline], y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Nats that the curve, and the width, of each coordinate by each other one gain a Gaussian, shape ``(2, d, d)``.

    A curve gains half the log of the variance that a straight line leaves over what it leaves itself, a width about the
    variance of its logarithm. It is looked for in what straight lines in all other coordinates leave, for a slope would
    look like one.
    """
    num_dims = y.shape[1]
    offset = y - weights @ y
    offset /= np.sqrt(np.maximum(weights @ offset**2, np.finfo(float).tiny))
    precision = np.linalg.inv(offset.T @ (offset * weights[:, None]) + 1e-9 * np.eye(num_dims))
    log_distance = _log_distance(offset @ (precision / np.diag(precision)), weights)
    gains = np.zeros((2, num_dims, num_dims))
    for j, spline in splines.items():
        explained = spline.explain(offset) ** 2
        line = np.maximum(1 - np.sum(explained[:2], axis=0), 1e-12)
        gains[0, :, j] = -0.5 * np.log(np.maximum(1 - np.sum(explained[2:], axis=0) / line, 1e-12))
        gains[1, :, j] = np.sum(spline.explain(log_distance, 3)[1:] ** 2, axis=0)
    return gains


def _curve(target: int, y: np.ndarray, by: _Spline) -> Step:
    """The step that takes the curve nearest to y."""
    return Step(target, by.source, by.knots, by.fit(y), np.zeros(NUM_KNOTS + 2))


def _width(target: int, y: np.ndarray, by: _Spline, others: Sequence[_Spline]) -> list[Step]:
    """Steps that take straight lines in some coordinates, and then the width around these; none if that gains little.

    Group means around a common one, as wide as a third coordinate says, have a constant width around the mean of all.
    """
    weights = by.roots**2
    used, unused = [by], [spline for spline in others if spline is not by]
    log_width = np.zeros(len(y))
    while True:
        lines = np.column_stack([np.ones(len(y)), *(spline.columns[:, 1] for spline in used)])
        slopes, distance, parabola = _lines_and_width(lines, y, by, log_width)
        log_width = np.clip(by.columns @ parabola, -STEEPEST, STEEPEST)
        correlations = _partial_correlations(lines, distance, unused, _roots(by, log_width))
        if -0.5 * np.log(max(1 - np.max(correlations**2, initial=0.0), 1e-12)) < GAIN:
            break
        used.append(unused.pop(int(np.argmax(correlations**2))))
    even = distance * np.exp(-log_width)
    gain = _log_spread(_regress(lines, y, by.roots)[1], weights) - _log_spread(even, weights) - weights @ log_width
    if gain < GAIN:
        return []
    none, units = np.zeros(NUM_KNOTS + 2), np.eye(NUM_KNOTS + 2)
    taken = [Step(target, s.source, s.knots, m * units[1], none) for s, m in zip(used[1:], slopes[2:], strict=True)]
    return [*taken, Step(target, by.source, by.knots, slopes[:2] @ units[:2], parabola)]


def _lines_and_width(
    lines: np.ndarray, y: np.ndarray, by: _Spline, log_width: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Slopes of the lines nearest to y, what these leave, and the parabola of its log-width."""
    parabola = np.zeros(by.columns.shape[1])
    for _ in range(NUM_REFITS):
        parabola = by.fit(_log_distance(_regress(lines, y, _roots(by, log_width))[1], by.roots**2), 3)
        log_width = np.clip(by.columns @ parabola, -STEEPEST, STEEPEST)
    return *_regress(lines, y, _roots(by, log_width)), parabola


def _roots(by: _Spline, log_width: np.ndarray) -> np.ndarray:
    """Roots of the weights of points that are known to a width; no point is most of them."""
    with np.errstate(divide="ignore"):
        log_weights = truncate(2 * (np.log(by.roots) - log_width))
    return np.exp(0.5 * (log_weights - np.logaddexp.reduce(log_weights)))


def _regress(lines: np.ndarray, y: np.ndarray, roots: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Slopes of the lines nearest to y, or to each of its columns, and what they leave."""
    slopes = np.linalg.lstsq(lines * roots[:, None], (y.T * roots).T, rcond=None)[0]
    return slopes, y - lines @ slopes


def _partial_correlations(
    lines: np.ndarray, distance: np.ndarray, unused: Sequence[_Spline], roots: np.ndarray
) -> np.ndarray:
    """Correlation of what lines leave of y with what they leave of other coordinates."""
    target = distance * roots
    left = [_regress(lines, spline.columns[:, 1], roots)[1] * roots for spline in unused]
    norms = np.array([np.linalg.norm(column) for column in left]) * np.linalg.norm(target)
    return np.array([column @ target for column in left]) / np.maximum(norms * (1 + 1e-9), np.finfo(float).tiny)


def _log_distance(distance: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Log of absolute values, of each column, with a floor where they are as good as zero."""
    mean = weights @ distance**2
    return 0.5 * np.log(distance**2 + SMALLEST**2 * mean + np.finfo(float).tiny)


def _log_spread(distance: np.ndarray, weights: np.ndarray) -> float:
    return 0.5 * float(np.log(weights @ distance**2 + np.finfo(float).tiny))
