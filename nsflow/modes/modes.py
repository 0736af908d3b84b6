"""Modes: local maxima that a ladder of contours may have left behind, and Gaussians around them."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import minimize
from scipy.spatial import KDTree

from nsflow.densities.gaussian import Gaussian, lower_root
from nsflow.likelihood.batch import show
from nsflow.likelihood.journal import Recorded, bare
from nsflow.likelihood.likelihood import JaxLikelihood, Likelihood, evaluate
from nsflow.numerics.errors import LikelihoodError, describe
from nsflow.numerics.precision import float64
from nsflow.numerics.storable import storable
from nsflow.prior.prior import Prior

MAX_EVALUATIONS = 200  # of the gradient in one ascent; ten dimensions need forty
MAX_CURVATURE = 1e16  # in latent units; differences cannot see more, and a mode of no width has no density
HIGHER = 1.0  # nats above a maximum by which a point lies on another mode; noise of 0.1 nats stays below
STEP = 1e-4  # of finite differences, in latent units, where the prior has width one
COARSE = 1e-7  # latent width below which those steps see the bend of the prior's map instead of the mode
FINE_STEP = 0.1  # of differences within such a mode, in its own deviations
FLAT = 0.01  # curvature in these below which what looked narrow was an edge
MIN_WIDTH = 1e-12  # in latent units, where rounding is a ten-thousandth of it
MAX_SHARPENINGS = 6  # times that the place and the widths of such a mode are measured; two or three suffice


class Target:
    r"""Log of likelihood times prior in latent space with its gradient; it counts the likelihood calls it makes.

    JAX functions are differentiated, and a value with its gradient counts as two calls, or as 1 + d where only forward
    mode can. Others are differenced, 2 d + 1 calls, and so are those of which JAX has no gradient. Along discrete
    coordinates the gradient is taken for zero, so that an ascent keeps their values.

    Args:
        likelihood: The likelihood.
        prior: The prior.
        max_calls: Calls after which every further value is -inf.
    """

    def __init__(self, likelihood: Likelihood, prior: Prior, *, max_calls: int) -> None:
        self.likelihood = likelihood
        self.prior = prior
        self.max_calls = max_calls
        self.num_calls = 0
        function = bare(likelihood)
        is_traced = isinstance(function, JaxLikelihood) and prior.traceable
        self._gradient = function.latent_value_and_grad(prior) if is_traced else None

    @property
    def is_traced(self) -> bool:
        """Whether JAX differentiates the likelihood."""
        return self._gradient is not None

    @property
    def price(self) -> int:
        """Likelihood calls of a value with its gradient."""
        return self._gradient.price if self._gradient is not None else 2 * self.prior.num_dims + 1

    @property
    def is_exhausted(self) -> bool:
        """Whether another evaluation would exceed the calls allowed."""
        return self.num_calls + self.price > self.max_calls

    def __call__(self, x: Float[np.ndarray, " d"]) -> tuple[float, Float[np.ndarray, " d"]]:
        """Value in nats and gradient at one point; -inf and zero where the likelihood is zero or NaN."""
        if self.is_exhausted:
            return -np.inf, np.zeros(len(x))
        value, gradient = self._traced(x) if self._gradient is not None else self._differenced(x)
        if not np.isfinite(value):
            return -np.inf, np.zeros(len(x))
        return value, np.where(self.prior.is_discrete, 0.0, np.nan_to_num(gradient, posinf=0.0, neginf=0.0))

    def _traced(self, x: np.ndarray) -> tuple[float, np.ndarray]:
        assert self._gradient is not None
        if isinstance(self.likelihood, Recorded):
            rows = np.append(x, np.nan)[None]  # no digest of parameters, which are never NaN
            names = ("value", *(f"gradient {i}" for i in range(len(x))))
            both = self.likelihood.journal.recall(rows, lambda _: self._both(x), price=self.price, columns=names)
        else:
            both = self._both(x)
        self.num_calls += self.price
        return float(both["value"][0]), np.array([both[f"gradient {i}"][0] for i in range(len(x))])

    def _both(self, x: np.ndarray) -> dict[str, np.ndarray]:
        """Value and gradient, as columns of one row."""
        assert self._gradient is not None
        try:
            value, gradient = float64(self._gradient.function)(x)
        except Exception as error:
            point = show(self.prior.forward(x))
            raise LikelihoodError(f"{describe(error)} (raised by the gradient of the likelihood at {point})") from error
        columns = {"value": value, **{f"gradient {i}": g for i, g in enumerate(np.asarray(gradient))}}
        return {name: np.asarray(number, np.float64)[None] for name, number in columns.items()}

    def _differenced(self, x: np.ndarray) -> tuple[float, np.ndarray]:
        steps = STEP * np.eye(len(x))
        values = self._values(np.concatenate([x[None], x + steps, x - steps]))
        with np.errstate(invalid="ignore"):
            return float(values[0]), (values[1 : len(x) + 1] - values[len(x) + 1 :]) / (2 * STEP)

    def _values(self, points: np.ndarray) -> np.ndarray:
        log_likelihood = evaluate(self.likelihood, self.prior.forward(points)).log_likelihood
        self.num_calls += len(points)
        return log_likelihood + np.asarray(self.prior.latent_log_prob(points))

    def within(
        self, centre: Float[np.ndarray, " d"], scale: Float[np.ndarray, "d d"]
    ) -> tuple[float, Float[np.ndarray, " d"], Float[np.ndarray, "d d"]]:
        """Value, gradient and Hessian at a point, the latter two in units of a scale; NaN if calls do not suffice."""
        num_dims, steps = len(centre), FINE_STEP * scale.T
        price = 2 * (2 * num_dims + 1) if self._gradient is not None else 1 + num_dims + num_dims**2
        if self.num_calls + price > self.max_calls:
            self.num_calls = self.max_calls
            return np.nan, np.full(num_dims, np.nan), np.full((num_dims, num_dims), np.nan)
        if self._gradient is not None:
            ahead, behind = np.array([(self(centre + h)[1], self(centre - h)[1]) for h in steps]).swapaxes(0, 1)
            value, gradient = self(centre)
            return value, gradient @ scale, (ahead - behind) @ scale / (2 * FINE_STEP)
        first, second = np.triu_indices(num_dims, 1)
        pairs = steps[first] + steps[second]
        values = self._values(centre + np.concatenate([np.zeros((1, num_dims)), steps, -steps, pairs, -pairs]))
        value, ahead, behind = values[0], values[1 : num_dims + 1], values[num_dims + 1 : 2 * num_dims + 1]
        bend = ahead + behind - 2 * value
        both, neither = np.split(values[2 * num_dims + 1 :], 2)
        hessian = np.diag(bend)
        hessian[first, second] = (both + neither - 2 * value - bend[first] - bend[second]) / 2
        hessian[second, first] = hessian[first, second]
        return float(value), (ahead - behind) / (2 * FINE_STEP), hessian / FINE_STEP**2


@storable("mode")
class Mode(NamedTuple):
    """A local maximum of likelihood times prior in latent space."""

    centre: Float[np.ndarray, " d"]
    log_density: float  # of likelihood times prior, nats
    scale: Float[np.ndarray, "d d"]  # lower triangular; its square is the inverse of the negative Hessian
    num_climbs: int = 1  # that ended there
    basin: float = 0.0  # draws of the prior whose local maxima these started from
    is_stray: bool = False  # whether no point covered it when it was found, or no climb from the prior led there
    slope: float = 0.0  # nats that a Newton step from the centre promises: where a climb got stuck it is no maximum

    @property
    def is_settled(self) -> bool:
        """Whether it is a maximum: with noise of 0.1 nats in the likelihood, climbs end anywhere on the way."""
        return self.slope < HIGHER

    @property
    def log_evidence(self) -> float:
        """Laplace's approximation of the evidence of this mode, in nats."""
        return self.log_density + float(np.sum(np.log(np.diag(self.scale)) + 0.5 * np.log(2 * np.pi)))

    def contains(self, centre: Float[np.ndarray, " d"], log_density: float = -np.inf) -> bool:
        """Whether an ascent that ended there ended in this mode, and not on a spike within it."""
        is_within = np.sum(np.linalg.solve(self.scale, centre - self.centre) ** 2) < 1
        return bool(is_within and log_density < self.log_density + HIGHER)


def highest_mode(modes: Sequence[Mode], x: Float[np.ndarray, "n d"]) -> Int[np.ndarray, " n"]:
    """Index of the mode whose Gaussian, with the mode's evidence, is the highest at each point."""
    return np.argmax([mode.log_evidence + Gaussian(mode.centre, mode.scale).log_prob(x) for mode in modes], axis=0)


def share_of_evidence(modes: Sequence[Mode], logZ: float) -> Float[np.ndarray, " m"]:
    """Share of the evidence that each mode has by Laplace's approximation: of logZ, or of all modes if that is more."""
    log_evidence = np.array([mode.log_evidence for mode in modes])
    return np.exp(log_evidence - max(logZ, np.logaddexp.reduce(log_evidence)))


def basins(x: Float[np.ndarray, "n d"], log_density: Float[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """Find the local maximum above each point: step to the nearest higher one among its neighbours, until none is.

    A point on a slope escapes all of k neighbours with a chance of about 2^-k, so that max(10, 2 d) of them leave a
    few false maxima among thousands of points.

    Args:
        x: Points, shape ``(n, d)``.
        log_density: Function value at each, shape ``(n,)``.

    Returns:
        Index of the maximum above each point, shape ``(n,)``; its own where the point is one.

    Example:
        >>> x = np.linspace(-2, 2, 101)[:, None]
        >>> x[np.unique(basins(x, np.cos(3 * x[:, 0])))].ravel().round(2).tolist()
        [-2.0, 0.0, 2.0]

    References:
        Koontz, Narendra & Fukunaga (1976), *A Graph-Theoretic Approach to Nonparametric Cluster Analysis*, Section II.
    """
    num_points, num_dims = x.shape
    near = np.asarray(KDTree(x).query(x, min(num_points, 1 + max(10, 2 * num_dims)))[1]).reshape(num_points, -1)
    is_higher = log_density[near] > log_density[:, None]
    itself = np.arange(num_points)
    above = np.where(np.any(is_higher, axis=1), near[itself, np.argmax(is_higher, axis=1)], itself)
    while np.any(above[above] != above):
        above = above[above]
    return above


def isolation(
    x: Float[np.ndarray, "n d"], log_density: Float[np.ndarray, " n"], chosen: Int[np.ndarray, " m"]
) -> Float[np.ndarray, " m"]:
    """Distance of points to the nearest higher one; infinite for the highest.

    Args:
        x: Points, shape ``(n, d)``.
        log_density: Function value at each, shape ``(n,)``.
        chosen: Indices of the points to look at, shape ``(m,)``.

    Returns:
        The distances, shape ``(m,)``.

    Example:
        >>> isolation(np.array([[0.0], [1.0], [3.0]]), np.array([0.0, 2.0, 1.0]), np.array([0, 1, 2])).tolist()
        [1.0, inf, 2.0]

    References:
        Rodriguez & Laio (2014), *Clustering by Fast Search and Find of Density Peaks*, Eq. 2.
    """
    distances = [np.linalg.norm(x[log_density > log_density[i]] - x[i], axis=1) for i in chosen]
    return np.array([np.min(distance, initial=np.inf) for distance in distances])


def unmet(modes: Sequence[Mode], logZ: float) -> float:
    r"""Evidence in modes like the strays that no climb has met, by their own chance of it.

    .. math:: \sum_k s_k \Bigl(1 - \frac{h_k}{n}\Bigr)^n, \qquad n = \sum_j h_j,

    with the share s_k of the evidence of each stray and the number h_j of climbs that ended on each mode: a mode that
    one climb of many met has a twin that none did with a chance of 0.37. Ends of climbs that are no maxima do not
    count: before a cliff to zero likelihood most climbs get stuck where they began.

    Args:
        modes: The modes, with their climbs.
        logZ: Log-evidence to which theirs compare, nats.

    Returns:
        The share of the evidence.

    Example:
        >>> mode = Mode(np.zeros(1), 0.0, np.eye(1), num_climbs=1, is_stray=True)
        >>> unmet([mode], logZ=0.0)  # the only one that any climb met
        0.0
        >>> round(unmet([mode, mode._replace(log_density=-50.0, num_climbs=99, is_stray=False)], logZ=0.0), 2)
        0.37

    References:
        Good (1953), *The Population Frequencies of Species and the Estimation of Population Parameters*, Section 2.
    """
    modes = [mode for mode in modes if mode.is_settled]
    if not modes:
        return 0.0
    num_climbs = np.array([mode.num_climbs for mode in modes])
    chance = (1 - num_climbs / np.sum(num_climbs)) ** np.sum(num_climbs)
    is_stray = np.array([mode.is_stray for mode in modes])
    return float((share_of_evidence(modes, logZ) * chance) @ is_stray)


def news(modes: Sequence[Mode]) -> float:
    """Chance that the next climb to a maximum ends on a new one: the share of those that were alone on theirs.

    Args:
        modes: The modes, with their climbs.

    Returns:
        The chance.

    Example:
        >>> mode = Mode(np.zeros(1), 0.0, np.eye(1))
        >>> news([mode, mode._replace(num_climbs=9)])
        0.1

    References:
        Good (1953), *The Population Frequencies of Species and the Estimation of Population Parameters*, Eq. 9.
    """
    num_climbs = np.array([mode.num_climbs for mode in modes if mode.is_settled])
    return float(np.sum(num_climbs == 1) / max(1, np.sum(num_climbs)))


Function = Callable[[np.ndarray], tuple[float, np.ndarray]]  # of a point: value and gradient


class _Vain(Exception):
    """A climb gains nothing any more."""


def ascend(
    target: Function,
    start: Float[np.ndarray, " d"],
    reach: float = 1.0,
    tolerance: float = 1e-9,
    patience: int = MAX_EVALUATIONS,
) -> tuple[Float[np.ndarray, " d"], float]:
    """Climb from a point to the maximum above it.

    Args:
        target: Function of a point that returns value and gradient.
        start: Where to start, shape ``(d,)``.
        reach: Length of the first step, which knows no curvature yet. One beyond the basin ends on another maximum: of
            a core within a shell in 4-d, half of the evidence was lost by steps of one latent unit.
        tolerance: Relative gain of a step with which the climb ends.
        patience: Values in a row without a gain after which it ends.

    Returns:
        The best point met and its value.

    References:
        Byrd, Lu, Nocedal & Zhu (1995), *A Limited Memory Algorithm for Bound Constrained Optimization*.
    """
    best, num_vain = (start, -np.inf), 0

    def negative(steps: np.ndarray) -> tuple[float, np.ndarray]:
        nonlocal best, num_vain
        x = start + reach * steps
        value, gradient = target(x)
        num_vain = 0 if value > best[1] + tolerance * max(1.0, abs(value)) else num_vain + 1
        if value > best[1]:
            best = x, value
        if num_vain > patience:
            raise _Vain
        # The line search turns back from a large number; infinity would end it.
        return (-value if value > -np.inf else 1e300), -reach * gradient

    options = {"maxfun": MAX_EVALUATIONS, "ftol": tolerance}
    with suppress(_Vain):
        minimize(negative, np.zeros(len(start)), jac=True, method="L-BFGS-B", options=options)
    return best


def measure(
    target: Function, centre: Float[np.ndarray, " d"], log_density: float, widths: Float[np.ndarray, " d"] | float = 1.0
) -> Mode:
    r"""Measure the width of a mode: :math:`L L^T = (-\nabla\nabla f)^{-1}` by differences of the gradient.

    Curvatures below one, the prior's, are raised to one: along a ridge the mode ends where the prior does.

    Args:
        target: Function of a point that returns value and gradient.
        centre: The maximum, shape ``(d,)``.
        log_density: Value there, nats.
        widths: Along coordinates without a gradient, how wide the mode is; one along the others.

    Returns:
        The mode.
    """
    steps = STEP * np.eye(len(centre))
    ahead, behind = np.array([(target(centre + h)[1], target(centre - h)[1]) for h in steps]).swapaxes(0, 1)
    hessian, gradient = (ahead - behind) / (2 * STEP), np.mean(ahead + behind, axis=0) / 2
    curvatures, axes = np.linalg.eigh(-0.5 * (hessian + hessian.T))
    scale = lower_root(axes / np.sqrt(np.clip(curvatures, 1.0, MAX_CURVATURE)))
    with np.errstate(over="ignore"):
        slope = 0.5 * float(np.sum((scale.T @ gradient) ** 2))
    return Mode(centre, log_density, np.reshape(widths, (-1, 1)) * scale, slope=slope)


def sharpen(target: Target, mode: Mode) -> Mode:
    r"""Find place and widths of a mode that is narrower than differences in latent units can tell, in its own units.

    Steps of 1e-4 across a Gaussian of width 1e-10 in a unit box see the bend of the probit map: the top of a host
    likelihood in 4-d was missed by 65 nats, and no Gaussian on it was taken for a maximum. Newton's method in
    deviations of what was measured last finds both.

    Args:
        target: Value and gradient; it counts calls.
        mode: A mode as measured.

    Returns:
        The mode, unchanged where it is no narrower than 1e-7 or where this finds no maximum.
    """
    axes, widths, _ = np.linalg.svd(mode.scale)
    if np.min(widths) > COARSE or np.any(target.prior.is_discrete):
        return mode
    centre, scale = mode.centre, axes * widths
    for _ in range(MAX_SHARPENINGS):
        value, gradient, hessian = target.within(centre, scale)
        if not np.all(np.isfinite(hessian)) or not np.all(np.isfinite(gradient)):
            return mode
        curvatures, axes = np.linalg.eigh(-0.5 * (hessian + hessian.T))
        if np.min(curvatures) < FLAT:
            return mode
        root = axes / np.sqrt(curvatures)
        move = root.T @ gradient
        slope = 0.5 * float(np.sum(move**2))
        axes, widths, _ = np.linalg.svd(scale @ root)
        finer = axes * np.clip(widths, MIN_WIDTH, 1.0)  # along a ridge the mode ends where the prior does
        if slope < FLAT and value > mode.log_density - HIGHER:
            return mode._replace(centre=centre, log_density=value, scale=lower_root(finer), slope=slope)
        centre, scale = centre + scale @ (root @ move), finer
    return mode
