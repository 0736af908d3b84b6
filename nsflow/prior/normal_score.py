r"""The map from N(0, 1) to a scalar distribution, tabulated from its density and accurate in both tails to 1e-300.

Few libraries have quantile functions that hold beyond a tail probability of 1e-16: many are computed as
:math:`F^{-1}(1 - p)`, some from cumulative functions that are themselves differences. Log densities are accurate
nearly everywhere, and sums of them from either end inwards have no differences in them.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int
from scipy import special

from nsflow.prior.coordinate import Coordinate

NODES, WEIGHTS = np.polynomial.legendre.leggauss(10)
TOLERANCE = 1e-10  # of the integral of a panel, relative to the smaller of both tails
BEND = 1e-11  # error of the interpolated coordinate, which is a logarithm of the distance to an edge
GAP = 1e-13  # of a normal score: of a panel with less probability nothing is left after rounding
NARROWEST = 1e-13  # relative width of a panel that is not cut any more: of one with a jump
MAX_CUTS = 60
NUM_HALVINGS = 40
STEP = 1.0  # of the coordinate, over which the exponent of a power law is measured
MAX_PANELS = 10_000  # smooth densities take one to two thousand; noise takes any number
NOTHING = -745.0  # nats below its highest place at which a density ends: exp(-745) is the smallest double
FARTHEST = -705.0  # log of the tail probability beyond which no latent point comes: at 37.4
MAX_STEPS = 60  # outwards, each twice as long as the last
SCAN = np.linspace(-40.0, 40.0, 81)  # coordinates at which mass is looked for besides the draws
QUANTILES = np.linspace(0.0, 1.0, 33)
NUM_NEWTON = 6  # steps to invert a cubic; from the chord three give all digits of a smooth one


LogDensity = Callable[[Float[np.ndarray, "..."]], Float[np.ndarray, "..."]]


class Density(NamedTuple):
    r"""A density on the coordinate, :math:`g(y) = \log f(x(y)) + \log dx/dy`, and power laws beyond two places.

    Next to an edge `x` has lost the digits that tell how far the edge is: Beta(0.01, 0.01) has 0.41 of its mass in the
    last 1e-8 below one.
    """

    log_density: LogDensity
    coordinate: Coordinate
    low: float  # the two places
    high: float

    @classmethod
    def of(
        cls, log_density: LogDensity, coordinate: Coordinate, floor: float = -np.inf, middle: float = 0.0
    ) -> "Density":
        """Continue a density beyond where doubles resolve it.

        Args:
            log_density: Log density of points, in nats.
            coordinate: The coordinate.
            floor: Nats below which the library's own arithmetic underflows.
            middle: A coordinate where it does not.

        Returns:
            The density of the coordinate.
        """
        density = cls(log_density, coordinate, *coordinate.resolved)
        for end in ("low", "high"):
            inside, outside = np.clip(middle, density.low, density.high), getattr(density, end)
            if density._at(np.array([outside]))[0] >= floor:
                continue
            for _ in range(NUM_HALVINGS):
                place = (inside + outside) / 2
                is_high = density._at(np.array([place]))[0] >= floor
                inside, outside = (place, outside) if is_high else (inside, place)
            density = density._replace(**{end: inside})
        return density

    def __call__(self, y: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
        """Evaluate in nats, -inf where there is no density."""
        inner = self._inner(np.clip(y, self.low, self.high))
        for distance, end, inwards in ((self.low - y, self.low, STEP), (y - self.high, self.high, -STEP)):
            if np.any(distance > 0):
                inner = inner + self._beyond(np.maximum(distance, 0.0), end, inwards)
        return inner

    def _beyond(self, distance: np.ndarray, end: float, inwards: float) -> Any:
        r"""What is added beyond an end: :math:`-\kappa s + c\,(e^{-s} - 1)` through the values at three places.

        The second term is the next one of a power series in the distance from an edge, :math:`x^{k - 1} (1 + c x)`:
        without it the integral of Beta(0.01, 0.01) from 1e-5 on was off by 2e-5, with it by 1e-9.
        """
        values = self._inner(end + inwards * np.arange(3))
        if not np.all(np.isfinite(values)):
            return 0.0
        first, second = np.diff(values)
        curved = (second - first) / np.expm1(STEP)
        return -distance * (first - curved) / STEP + curved / np.expm1(STEP) * np.expm1(-distance)

    def noise(self, y: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
        """Error that rounding leaves in the logarithm of the density, nats, for exponents up to a hundred."""
        return 100 * self.coordinate.rounding(np.clip(y, self.low, self.high))

    def _inner(self, y: np.ndarray) -> np.ndarray:
        value = self._at(y.ravel()).reshape(y.shape) + self.coordinate.log_slope(y)
        return np.where(np.isnan(value), -np.inf, value)

    def _at(self, y: np.ndarray) -> np.ndarray:
        with np.errstate(all="ignore"):  # far out libraries overflow on the way to a density of zero
            return self.log_density(np.asarray(self.coordinate.value(y)))


class NormalScoreTable(NamedTuple):
    """Monotone piecewise cubics y(z): coordinates of distributions by those of N(0, 1), with jumps over gaps.

    The pieces of all different distributions lie one after the other, and each scalar knows where its own are.
    """

    z: Float[np.ndarray, "2 n"]  # at both ends of each piece
    y: Float[np.ndarray, "2 n"]
    slopes: Float[np.ndarray, "2 n"]  # dy/dz there
    first: Int[np.ndarray, " k"]  # piece of each scalar
    size: Int[np.ndarray, " k"]  # number of its pieces

    @classmethod
    def joined(cls, tables: Sequence["NormalScoreTable"], kinds: Int[np.ndarray, " k"]) -> "NormalScoreTable":
        """Join tables of one scalar each, and give each of many scalars the table of its kind."""
        size = np.concatenate([table.size for table in tables])
        first = np.cumsum(size) - size
        z, y, slopes = (np.concatenate([table[i] for table in tables], axis=1) for i in range(3))
        return cls(z, y, slopes, first[kinds], size[kinds])

    def forward(self, z: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """Coordinates of normal scores; beyond the last pieces those of their ends."""
        piece = self._piece(self.z[0], z)
        z0, z1 = jnp.asarray(self.z)[:, piece]
        t = (z - z0) / (z1 - z0)
        # Not `clip`, whose derivative is one half on a knot.
        return self._cubic(piece, jnp.where(t < 0, 0.0, jnp.where(t > 1, 1.0, t)))[0]

    def inverse(self, y: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """Normal scores of coordinates; in a gap that of the gap."""
        piece = self._piece(self.y[0], y)
        y0, y1 = jnp.asarray(self.y)[:, piece]
        t = target = jnp.clip((y - y0) / (y1 - y0), 0.0, 1.0)
        for _ in range(NUM_NEWTON):
            value, slope = self._cubic(piece, t)
            t = jnp.clip(t - ((value - y0) / (y1 - y0) - target) / jnp.maximum(slope / (y1 - y0), 1e-3), 0.0, 1.0)
        z0, z1 = jnp.asarray(self.z)[:, piece]
        return z0 + t * (z1 - z0)

    def _piece(self, knots: np.ndarray, place: Array) -> Array:
        """Find the last piece of each scalar that begins at a place or below, its first if there is none."""
        begins, place = jnp.asarray(knots), lax.stop_gradient(place)
        low = jnp.broadcast_to(jnp.asarray(self.first), place.shape)

        def halve(_: Any, ends: tuple[Array, Array]) -> tuple[Array, Array]:
            low, high = ends
            middle = (low + high) // 2
            is_above = (begins[jnp.minimum(middle, len(knots) - 1)] <= place) & (middle < high)
            return jnp.where(is_above, middle, low), jnp.where(is_above, high, middle)

        # A loop: unrolled, its gathers from constants take XLA five seconds to compile.
        num_halvings = int(np.max(self.size)).bit_length()
        return lax.fori_loop(0, num_halvings, halve, (low, low + jnp.asarray(self.size)))[0]

    def _cubic(self, piece: Array, t: Array) -> tuple[Array, Array]:
        """Value and derivative by t, the share of the way through a piece."""
        y0, y1 = jnp.asarray(self.y)[:, piece]
        m0, m1 = jnp.asarray(self.slopes * (self.z[1] - self.z[0]))[:, piece]
        return _hermite(y0, y1, m0, m1, t)


def _hermite(y0: Any, y1: Any, m0: Any, m1: Any, t: Any) -> tuple[Any, Any]:
    """The cubic with these values and derivatives at t = 0 and 1, and its derivative."""
    square, cube = 3 * (y1 - y0) - 2 * m0 - m1, m0 + m1 - 2 * (y1 - y0)
    return y0 + t * (m0 + t * (square + t * cube)), m0 + t * (2 * square + 3 * t * cube)


def tabulate(density: LogDensity, places: Float[np.ndarray, " n"]) -> tuple[NormalScoreTable, float]:
    """Integrate a density from both ends, and tabulate the normal score of its coordinate.

    Args:
        density: Log density of the coordinate, in nats; it need not be normalised.
        places: Coordinates where some of the mass is, such as draws or quantiles.

    Returns:
        ``(table, log_mass)``: the table of the normalised density, and the log of its integral in nats.

    Raises:
        ValueError: If there is no mass.

    Example:
        >>> from nsflow.numerics.precision import float64
        >>> from scipy import stats
        >>> density = Density.of(stats.gamma(0.1).logpdf, Coordinate(0.0, np.inf))
        >>> table, log_mass = float64(tabulate)(density, np.linspace(-30.0, 1.0, 33))
        >>> x = float64(lambda: density.coordinate.value(table.forward(jnp.array([10.0]))))()
        >>> print(f"{stats.gamma(0.1).sf(float(x[0])) / stats.norm.sf(10.0):.6f} {abs(log_mass):.6f}")
        1.000000 0.000000
    """
    edges = _grade(_outwards(density, np.unique(places)))
    a, b = edges[:-1], edges[1:]
    whole = _integral(density, a, b)
    for _ in range(MAX_CUTS):
        middle = (a + b) / 2
        left, right = _integral(density, a, middle), _integral(density, middle, b)
        halves = np.logaddexp(left, right)
        if not np.any(np.isfinite(halves)):
            raise ValueError("no mass")
        is_fine = _is_fine(density, a, middle, b, whole, left, right)
        if np.all(is_fine):
            break
        if len(a) > MAX_PANELS:
            raise ValueError(f"a density that {MAX_PANELS} panels do not integrate")
        cut = ~is_fine
        a, b = (np.concatenate(pair) for pair in ((a, middle[cut]), (np.where(cut, middle, b), b[cut])))
        whole = np.concatenate([np.where(cut, left, whole), right[cut]])
        order = np.argsort(a)
        a, b, whole = a[order], b[order], whole[order]
    below, above, log_mass = _tails(whole)
    z, y = _normal_score(below, above), np.stack([a, b])
    slopes = _slopes(density, y, np.stack([z[:-1], z[1:]]), log_mass)
    is_piece = _is_piece(z[:-1], z[1:])
    knots = np.append(z[:-1][is_piece], z[1:][is_piece][-1])
    y, ends = y[:, is_piece], np.stack([knots[:-1], knots[1:]])
    slopes = _monotone(np.diff(knots), np.diff(y, axis=0), slopes[:, is_piece])
    return NormalScoreTable(ends, y, slopes, np.array([0]), np.array([y.shape[1]])), log_mass


def _is_piece(z0: np.ndarray, z1: np.ndarray) -> np.ndarray:
    """Whether panels have any probability beyond rounding: those of a gap have not, and scores jump over it."""
    return z1 - z0 > GAP * (1 + np.abs(z0))


def _outwards(density: LogDensity, places: np.ndarray) -> np.ndarray:
    """Add the ends of a density, or where it is smaller than any double."""
    spread = max(places[-1] - places[0], 1e-3)
    values = density(places)
    if not np.any(np.isfinite(values)):
        raise ValueError("no mass")
    top = float(np.max(values))
    ends = []
    for start, sign in ((places[0], -1.0), (places[-1], 1.0)):
        for k in range(MAX_STEPS):
            ends.append(start + sign * spread * 2.0**k)
            value = density(np.array(ends[-1:]))[0]
            if value < top + NOTHING:
                break
        else:
            raise ValueError("a density without an end")
    return np.unique(np.concatenate([places, ends]))


def _grade(edges: np.ndarray) -> np.ndarray:
    """Cut panels until none is more than twice as wide as one beside it: a wide one would not see a narrow peak."""
    while True:
        widths = np.diff(edges)
        beside = np.minimum(np.append(widths[1:], np.inf), np.append(np.inf, widths[:-1]))
        too_wide = widths > 2.5 * beside
        if not np.any(too_wide):
            return edges
        edges = np.sort(np.concatenate([edges, (edges[:-1] + widths / 2)[too_wide]]))


def _integral(density: LogDensity, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Log of the integral of each panel."""
    half = (b - a) / 2
    values = density((a + b)[:, None] / 2 + half[:, None] * NODES)
    return np.logaddexp.reduce(values + np.log(WEIGHTS), axis=1) + np.log(half)


def _tails(integrals: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Log of the share below and above each edge of panels, each summed from its own end, and of the sum."""
    below = np.concatenate([[-np.inf], np.logaddexp.accumulate(integrals)])
    above = np.concatenate([np.logaddexp.accumulate(integrals[::-1])[::-1], [-np.inf]])
    return below - below[-1], above - above[0], float(below[-1])


def _normal_score(below: np.ndarray, above: np.ndarray) -> np.ndarray:
    score = special.ndtri_exp(np.maximum(np.minimum(below, above), NOTHING))
    return np.where(below < above, score, -score)


def _slopes(density: LogDensity, y: np.ndarray, z: np.ndarray, log_mass: float) -> np.ndarray:
    """The derivative of y by z at both ends of each panel; there may be a jump of the density between two."""
    inside = 1e-9 * (y[1] - y[0])
    log_density = density(y + np.stack([inside, -inside])) - log_mass
    with np.errstate(over="ignore"):
        return np.exp(-0.5 * z**2 - 0.5 * np.log(2 * np.pi) - log_density)


def _is_fine(
    density: LogDensity, a: np.ndarray, middle: np.ndarray, b: np.ndarray, whole: np.ndarray, left: np.ndarray,
    right: np.ndarray,
) -> np.ndarray:  # fmt: skip
    """Whether panels are narrow enough for their integral and for a cubic."""
    halves = np.logaddexp(left, right)
    below, above, log_mass = _tails(halves)
    tail = np.minimum(below[1:], above[:-1])
    smaller = np.maximum(tail, halves - log_mass)
    with np.errstate(invalid="ignore"):
        error = np.abs(np.expm1(np.where(halves > -np.inf, whole - halves, 0.0))) * np.exp(halves - log_mass - smaller)
    z0, z1 = _normal_score(below, above)[:-1], _normal_score(below, above)[1:]
    z = _normal_score(np.logaddexp(below[:-1], left - log_mass), np.logaddexp(above[1:], right - log_mass))
    slopes = _slopes(density, np.stack([a, b]), np.stack([z0, z1]), log_mass)
    is_piece = _is_piece(z0, z1)
    width = np.where(is_piece, z1 - z0, 1.0)
    m0, m1 = width * _monotone(width, b - a, slopes)
    noise = density.noise(middle) if isinstance(density, Density) else 0.0
    bend = np.abs(_hermite(a, b, m0, m1, (z - z0) / width)[0] - middle)
    # Within a near gap scores differ in their last digits alone, which say no more about the middle.
    is_bent = is_piece & (bend > (BEND + noise) * (1 + np.abs(middle)) + (b - a) * GAP / width)
    is_narrow = b - a < NARROWEST * (1 + np.abs(middle))
    return is_narrow | (tail < FARTHEST) | ((error < TOLERANCE + noise) & ~is_bent)


def _monotone(run: np.ndarray, rise: np.ndarray, slopes: np.ndarray) -> np.ndarray:
    """Bound slopes so that each cubic is monotone (Fritsch & Carlson 1980, Eq. 4.3)."""
    return np.minimum(slopes, 3 * rise / run)


def scores(
    log_density: Callable[[int, Float[np.ndarray, " n"]], Float[np.ndarray, " n"]],
    low: Float[np.ndarray, " k"],
    high: Float[np.ndarray, " k"],
    draws: Float[np.ndarray, "n k"],
    floor: float = -np.inf,
) -> "Scores":
    """Tabulate independent scalars, each kind of them once.

    Args:
        log_density: Index of a scalar and points to its log density there, in nats.
        low: Lower edges of the supports.
        high: Upper edges.
        draws: Places where there is mass, such as draws; NaN where nothing is known.
        floor: Log density in nats below which the library's own arithmetic underflows.

    Returns:
        The maps.

    Raises:
        ValueError: If a density has no mass, or one that cannot be integrated.
    """
    probes = draws[: min(8, len(draws)), 0]
    signs = [np.concatenate([[low[i], high[i]], np.nan_to_num(log_density(i, probes))]) for i in range(len(low))]
    _, first, kinds = np.unique(np.array(signs), axis=0, return_index=True, return_inverse=True)
    tables, coordinates, log_mass = [], [], []
    for i in first.tolist():
        known = draws[np.isfinite(draws[:, i]), i]
        coordinate = Coordinate.around(float(low[i]), float(high[i]), known)
        near = np.clip(coordinate.inverse(known), *coordinate.resolved)
        far = np.clip(SCAN, *coordinate.resolved)
        middle = float(np.median(near)) if len(near) else 0.0
        density = Density.of(partial(log_density, i), coordinate, floor, middle)
        table, mass = tabulate(density, np.concatenate([np.quantile(near, QUANTILES) if len(near) else far, far]))
        tables.append(table)
        coordinates.append(coordinate)
        log_mass.append(mass)
    kinds = np.ravel(kinds)
    return Scores(tuple(tables), tuple(coordinates), kinds, np.array(log_mass)[kinds])


class Scores(NamedTuple):
    """The maps between independent scalars and N(0, I)."""

    tables: tuple[NormalScoreTable, ...]  # of each kind
    coordinates: tuple[Coordinate, ...]
    kinds: Int[np.ndarray, " k"]  # of each scalar
    log_mass: Float[np.ndarray, " k"]  # nats, of each density

    def forward(self, z: Float[Array, " k"]) -> Float[Array, " k"]:
        """Map normal scores to values."""
        y = NormalScoreTable.joined(self.tables, self.kinds).forward(z)
        return self._on_supports(lambda coordinate, y: coordinate.value(y), y)

    def inverse(self, x: Float[Array, " k"]) -> Float[Array, " k"]:
        """Map values to normal scores."""
        y = self._on_supports(lambda coordinate, x: coordinate.inverse(x), x)
        return NormalScoreTable.joined(self.tables, self.kinds).inverse(y)

    def roughly(self, x: Float[np.ndarray, "n k"]) -> Float[np.ndarray, "n k"]:
        """Normal scores by straight lines between knots, good to four digits."""
        pairs = [(self.tables[int(kind)], self.coordinates[int(kind)]) for kind in self.kinds]
        columns = [np.interp(c.inverse(column), t.y[0], t.z[0]) for (t, c), column in zip(pairs, x.T, strict=True)]
        return np.stack(columns, axis=1)

    def _on_supports(self, function: Callable[[Coordinate, Array], Array], values: Array) -> Array:
        """Apply a function of coordinates to the numbers of each kind of support: without edges, with one, with two."""
        columns = Coordinate(*np.array(self.coordinates)[self.kinds].T)
        supports = 2 * np.isfinite(columns.low) + np.isfinite(columns.high)
        groups = [np.flatnonzero(supports == support) for support in np.unique(supports)]
        parts = [function(Coordinate(*(c[group] for c in columns)), values[group]) for group in groups]
        return jnp.concatenate(parts)[np.argsort(np.concatenate(groups))]
