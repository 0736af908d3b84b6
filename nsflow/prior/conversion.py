"""Which distributions can be a parameter's prior, and the parameter each one makes."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import scipy.special
import scipy.stats
from jaxtyping import Array
from numpyro.distributions import biject_to
from numpyro.distributions.discrete import HurdleProbs, ZeroInflatedProbs

from nsflow.numerics.arguments import require_array
from nsflow.numerics.batching import by_chunks
from nsflow.numerics.precision import float64
from nsflow.prior.coordinate import LARGEST, SMALLEST, Coordinate
from nsflow.prior.discrete import Discrete, table
from nsflow.prior.normal_score import Scores, scores
from nsflow.prior.parameter import LATENT_EDGE, Bijected, HostNormalScore, NormalScore, Parameter
from nsflow.prior.periodic import Periodic, Turned
from nsflow.prior.quantile import from_normal, numpyro_quantile, to_normal
from nsflow.prior.simplex import Simplex

CHUNK = 1024  # points at which numpyro evaluates a density at once, so that few shapes compile
NUM_DRAWS = 512
NUM_QUANTILES = 33
NUM_TRIED = 4096  # draws that a bijection must bring back
NORMALISED = 1e-4  # nats by which the integral of a density may differ from 1
CHECKED = np.array([0.01, 0.3, 0.7, 0.99])  # probabilities whose quantiles must be the library's own
UNDERFLOW = -705.0  # nats below which the logarithm of a density that scipy computes first has lost its digits
SLOW = (
    "irwinhall",
    "ksone",
    "kstwo",
    "levy_stable",
    "studentized_range",
)  # densities that take milliseconds, for 20 000 points
INTERVALS = tuple(
    type(c)
    for c in (
        dist.constraints.real, dist.constraints.positive, dist.constraints.nonnegative, dist.constraints.less_than(0.0),
        dist.constraints.unit_interval, dist.constraints.open_interval(0.0, 1.0), dist.constraints.circular,
        dist.constraints.greater_than(0.0), dist.constraints.greater_than_eq(0.0), dist.constraints.interval(0.0, 1.0),
    )
)  # fmt: skip


@float64
def as_parameter(name: str, distribution: Any) -> Parameter:
    """Return the parameter with this distribution, after checking that it is a proper one.

    Args:
        name: The parameter's name, for the messages.
        distribution: A numpyro distribution, a frozen scipy distribution, one of scipy's that takes no arguments (an
            `rv_histogram`, or `rv_discrete` of given values), or any of them in a `Periodic`.

    Returns:
        The parameter. Its latent vector is N(0, I) but for joint distributions that are neither normal nor Dirichlet.

    Raises:
        TypeError: If `distribution` is neither.
        ValueError: If it is improper, discrete but not of single numbers, has invalid arguments or no map to a latent
            vector.

    Example:
        >>> as_parameter("b", dist.Normal(jnp.zeros(3), 1.0)).shape
        (3,)
    """
    if isinstance(distribution, Periodic):
        return _periodic(name, distribution.distribution)
    if isinstance(distribution, dist.Distribution):
        return _numpyro_parameter(name, distribution)
    if _is_complete(distribution):
        distribution = distribution()
    kind = getattr(distribution, "dist", None)
    if isinstance(kind, scipy.stats.rv_discrete):
        return _scipy_discrete(name, distribution, kind)
    if isinstance(kind, scipy.stats.rv_continuous):
        return _scipy_parameter(name, distribution, kind)
    if isinstance(distribution, type(scipy.stats.multivariate_normal())):
        return _numpyro_parameter(name, dist.MultivariateNormal(distribution.mean, distribution.cov))
    raise TypeError(
        f"`Prior` expected a numpyro distribution or a frozen scipy.stats distribution for parameter {name!r}; "
        f"got {distribution!r}. {_advice(distribution)}"
    )


def _is_complete(distribution: Any) -> bool:
    """Whether it is a scipy distribution of the user's own making without shape parameters, which needs no freezing."""
    if not isinstance(distribution, (scipy.stats.rv_continuous, scipy.stats.rv_discrete)):
        return False
    return distribution.numargs == 0 and getattr(scipy.stats, str(distribution.name), None) is not distribution


def _advice(thing: Any) -> str:
    if isinstance(thing, type) and issubclass(thing, dist.Distribution):
        return f"That is the class: give its arguments, as in `{thing.__name__}(...)`."
    if isinstance(thing, (scipy.stats.rv_continuous, scipy.stats.rv_discrete)):
        return f"Freeze it by giving its arguments, as in `scipy.stats.{thing.name}(...)`."
    if isinstance(thing, (tuple, list)) and len(thing) == 2:
        return f"For a flat prior write `numpyro.distributions.Uniform({thing[0]!r}, {thing[1]!r})`."
    if callable(thing):
        return "For a transform of the unit cube use `Prior.from_transform(prior_transform, names)`."
    return "Write for instance `numpyro.distributions.Uniform(0, 1)`."


def _discrete(name: str, got: str, why: str) -> ValueError:
    return ValueError(
        f"`Prior` expected a continuous distribution or one of single integers for parameter {name!r}; got the "
        f"discrete {got}, which has {why}. Sum over its values inside the likelihood, or compare one run per value."
    )


def _periodic(name: str, distribution: Any) -> Parameter:
    base = as_parameter(name, distribution)
    if not isinstance(base, NormalScore | HostNormalScore) or isinstance(distribution, dist.MultivariateNormal):
        raise ValueError(
            f"`Periodic` expected a distribution with a quantile function for parameter {name!r}; got "
            f"{distribution!r}. For an angle write `Uniform(0, 2 * jnp.pi)` or `scipy.stats.vonmises(kappa)`."
        )
    return Turned(base, np.zeros(base.num_dims))


# ---- numpyro


def _numpyro_parameter(name: str, distribution: Any) -> Parameter:
    *_, core = _wrappers(distribution)
    for layer in _layers(core):
        _check_layer(name, layer)
    shape = tuple(distribution.shape())
    if 0 in shape:
        raise ValueError(
            f"`Prior` expected at least one number for parameter {name!r}; got {_describe(distribution)} of shape "
            f"{shape}. Leave the parameter out."
        )
    if _is_discrete(distribution):
        return _numpyro_discrete(name, distribution, shape)
    distribution = _in_float64(distribution)
    *_, core = _wrappers(distribution)
    maps = _normal_score_maps(core, shape)
    if maps is not None:
        return NormalScore(distribution, shape, *maps)
    if isinstance(core, dist.Dirichlet) and shape[-1] > 1:
        try:
            return Simplex.of(distribution, np.broadcast_to(np.asarray(core.concentration, np.float64), shape))
        except ValueError:
            raise ValueError(
                f"`Prior` expected concentrations of which doubles can hold a share for parameter {name!r}; got "
                f"{_describe(core)}. Take larger ones."
            ) from None
    return _tabulated(name, distribution, shape) or _bijected(name, distribution, shape)


def _wrappers(distribution: Any) -> Iterator[Any]:
    """Yield the distribution and what `.expand` and `.to_event` wrapped: the last one is the family itself."""
    yield distribution
    while isinstance(distribution, (dist.ExpandedDistribution, dist.Independent)):
        distribution = distribution.base_dist
        yield distribution


def _layers(distribution: Any) -> Iterator[Any]:
    """Yield the distribution and every distribution it was made from."""
    yield distribution
    for attribute in ("base_dist", "component_distribution"):
        if isinstance(inner := getattr(distribution, attribute, None), dist.Distribution):
            yield from _layers(inner)
    for component in getattr(distribution, "component_distributions", None) or ():
        yield from _layers(component)


NOT_A_DENSITY = {
    dist.ImproperUniform: "improper: it has no finite volume to draw from. Give it bounds, as `Uniform(low, high)`",
    dist.Unit: "improper. Add its log factor to the likelihood",
    dist.Delta: "a point mass. Fix the value inside the likelihood instead",
    dist.MaskedDistribution: "masked, hence improper. Remove the mask",
    dist.LeftCensoredDistribution: "censored: part of it is a point mass. Put the censoring into the likelihood",
    dist.RightCensoredDistribution: "censored: part of it is a point mass. Put the censoring into the likelihood",
    dist.IntervalCensoredDistribution: "censored: part of it is a point mass. Put the censoring into the likelihood",
    ZeroInflatedProbs: "partly a point mass at zero. Compare one run with and one without the parameter",
    HurdleProbs: "partly a point mass at zero. Compare one run with and one without the parameter",
}


def _check_layer(name: str, layer: Any) -> None:
    """Refuse what has no proper density, and arguments that numpyro does not check unless asked."""
    for kind, reason in NOT_A_DENSITY.items():
        if isinstance(layer, kind):
            raise ValueError(
                f"`Prior` expected a proper distribution for parameter {name!r}; got {_describe(layer)}, "
                f"which is {reason}."
            )
    for argument, value in layer.get_args().items():
        if not isinstance(value, dist.Distribution):
            require_array(f"`Prior` for `{argument}` of parameter {name!r}", value)
    low, high = getattr(layer, "low", None), getattr(layer, "high", None)
    if low is not None and high is not None and not np.all(np.asarray(low) < np.asarray(high)):
        raise ValueError(
            f"`Prior` expected low < high for parameter {name!r}; got {_describe(layer)}. Swap or mend the bounds."
        )
    _check_arguments(name, layer)


TRUNCATED = (
    dist.LeftTruncatedDistribution,
    dist.RightTruncatedDistribution,
    dist.TwoSidedTruncatedDistribution,
)


def _check_arguments(name: str, layer: Any) -> None:
    for argument, value in layer.get_args().items():
        infinite_allowed = isinstance(layer, TRUNCATED) and argument in ("low", "high")
        if np.any(np.isnan(value)) or not (infinite_allowed or np.all(np.isfinite(value))):
            raise ValueError(
                f"`Prior` expected finite arguments for the distribution of parameter {name!r}; "
                f"got {_describe(layer)}. Mend `{argument}`."
            )
    try:
        layer.validate_args(strict=False)
    except ValueError as error:
        raise ValueError(
            f"`Prior` expected valid arguments for the distribution of parameter {name!r}; got {_describe(layer)}. "
            f"Numpyro says: {error}"
        ) from error


def _is_discrete(distribution: Any) -> bool:
    return bool(getattr(distribution.support, "is_discrete", False))


def _numpyro_discrete(name: str, distribution: Any, shape: tuple[int, ...]) -> Parameter:
    *_, core = _wrappers(distribution)
    lowest, highest = getattr(core.support, "lower_bound", 0), getattr(core.support, "upper_bound", np.inf)
    if core.event_shape != () or np.ndim(lowest) > 0 or np.ndim(highest) > 0 and np.ptp(highest) > 0:
        raise _discrete(name, _describe(core), "no probability for each number by itself, or its own range for each")
    if isinstance(core, dist.BernoulliProbs | dist.BernoulliLogits):
        highest = 1
    num_elements = int(np.prod(shape, dtype=int))

    def log_prob(values: np.ndarray) -> np.ndarray:
        columns = values.reshape((-1,) + (1,) * len(shape))
        each = core.log_prob(jnp.asarray(np.broadcast_to(columns, (len(values), *shape))))
        return np.asarray(each, np.float64).reshape(len(values), num_elements)

    return _counted(name, _describe(core), shape, log_prob, int(lowest), float(np.max(highest)))


def _scipy_discrete(name: str, distribution: Any, kind: Any) -> Parameter:
    lowest, highest = (np.asarray(bound, np.float64) for bound in distribution.support())
    got = f"scipy.stats.{kind.name} with {distribution.args} {distribution.kwds}"
    if lowest.ndim > 0 or not np.isfinite(lowest):
        raise _discrete(name, got, "no smallest value, or its own for each element")

    def log_prob(values: np.ndarray) -> np.ndarray:
        return np.asarray(distribution.logpmf(values), np.float64)[:, None]

    return _counted(name, got, (), log_prob, int(lowest), float(highest))


def _counted(
    name: str, got: str, shape: tuple[int, ...], log_prob: Callable[..., Any], lowest: int, highest: float
) -> Parameter:
    try:
        lowest, log_probs = table(log_prob, lowest, highest)
    except ValueError as error:
        raise _discrete(name, got, str(error)) from error
    if np.sum(np.isfinite(log_probs[0])) < 2:
        raise _discrete(name, got, "one value only")
    return Discrete(shape, lowest, log_probs)


def _describe(distribution: Any) -> str:
    arguments = ", ".join(f"{k}={np.asarray(v).tolist()}" for k, v in distribution.get_args().items())
    return f"{type(distribution).__name__}({arguments})"


def _in_float64(distribution: Any) -> Any:
    """Return the distribution with every number in double precision, also those numpyro derived in single."""
    if type(distribution) in (dist.LogNormal, dist.LogUniform, dist.Pareto, dist.InverseGamma):
        arguments = {k: jnp.asarray(v, jnp.float64) for k, v in distribution.get_args().items()}
        return type(distribution)(**arguments)

    def double(leaf: Any) -> Any:
        return leaf if jnp.asarray(leaf).dtype == bool else jnp.asarray(leaf, jnp.float64)

    leaves, tree = jax.tree.flatten(
        distribution, is_leaf=lambda node: node is not distribution and isinstance(node, dist.Distribution)
    )
    doubled = tree.unflatten([_in_float64(x) if isinstance(x, dist.Distribution) else double(x) for x in leaves])
    # A few families (Levy in numpyro 0.22) lose their support on this way.
    return distribution if doubled.support is None else doubled


def _normal_score_maps(core: Any, shape: tuple[int, ...]) -> tuple[Callable[[Any], Any], Callable[[Any], Any]] | None:
    """Return the map from N(0, I) to the distribution and its inverse in closed form, or None where there is none."""
    if isinstance(core, (dist.MultivariateNormal, dist.LowRankMultivariateNormal)):
        tril = jnp.broadcast_to(jnp.asarray(core.scale_tril), (*shape, shape[-1]))
        return (
            lambda z: core.loc + (tril @ z[..., None])[..., 0],
            lambda x: jax.scipy.linalg.solve_triangular(tril, (x - core.loc)[..., None], lower=True)[..., 0],
        )
    if type(core) is dist.Normal:
        return lambda z: core.loc + core.scale * z, lambda x: (x - core.loc) / core.scale
    if type(core) is dist.LogNormal:
        # The clip keeps x = 0, on the edge, at a finite place.
        return (
            lambda z: jnp.clip(jnp.exp(core.loc + core.scale * z), SMALLEST, LARGEST),
            lambda x: (jnp.maximum(jnp.log(x), -LATENT_EDGE) - core.loc) / core.scale,
        )
    quantile = numpyro_quantile(core)
    if quantile is None:
        return None
    # Far out some overflow: a Pareto variable of exponent 0.1 at z = 9.
    inside = Coordinate(*(_interval(core) or (-np.inf, np.inf))).inside
    return lambda z: jnp.clip(from_normal(quantile, z), *inside), lambda x: to_normal(quantile, x)


def _tabulated(name: str, distribution: Any, shape: tuple[int, ...]) -> NormalScore | None:
    """Return a parameter of scalars by tables of their densities; None if they are no continuous scalars with edges."""
    *_, core = _wrappers(distribution)
    support = _interval(core)
    if support is None:
        return None
    batch, size = tuple(core.batch_shape), int(np.prod(core.batch_shape, dtype=int))
    low, high = (np.broadcast_to(np.asarray(bound, np.float64), batch).ravel() for bound in support)
    elements = [_element(core, i) for i in range(size)]

    def log_density(i: int, x: np.ndarray) -> np.ndarray:
        element, index = (core, i) if elements[i] is None else (elements[i], 0)
        values = by_chunks(partial(_each_log_prob, element), x, CHUNK)
        return np.asarray(values, np.float64).reshape(len(x), -1)[:, index]

    try:
        table = scores(log_density, low, high, _draws(core, low, high))
    except ValueError:
        return None
    if isinstance(core, TRUNCATED):
        # The mass that numpyro divides by is a difference of cumulative functions: 0 for a normal beyond 8.3.
        mass = jnp.asarray(table.log_mass.reshape(batch))
        distribution = Truncated(
            core.base_dist, jnp.asarray(low.reshape(batch)), jnp.asarray(high.reshape(batch)), mass
        )
    elif np.max(np.abs(table.log_mass)) > NORMALISED:
        raise ValueError(
            f"`Prior` expected a density that integrates to 1 for parameter {name!r}; got {_describe(core)}, whose "
            f"integral is {np.exp(table.log_mass).tolist()}. Write its density into the likelihood."
        )
    kinds = np.broadcast_to(table.kinds.reshape(batch), shape).ravel()
    return _by_scores(distribution, shape, table._replace(kinds=kinds))


def _by_scores(distribution: Any, shape: tuple[int, ...], table: Scores) -> NormalScore:
    return NormalScore(
        distribution,
        shape,
        lambda z: table.forward(z.ravel()).reshape(shape),
        lambda x: table.inverse(x.ravel()).reshape(shape),
    )


@dataclass(frozen=True)
class Truncated:
    """A distribution between two edges, normalised by the integral of its density."""

    base: Any
    low: Array
    high: Array
    log_mass: Array  # nats

    def support(self, x: Array) -> Array:
        """Whether points are between the edges."""
        return (x >= self.low) & (x <= self.high)

    def log_prob(self, x: Array) -> Array:
        """Log density, in nats."""
        return self.base.log_prob(x) - self.log_mass


def _interval(core: Any) -> tuple[Any, Any] | None:
    """Return the edges of the support of a distribution of continuous scalars."""
    support = core.support
    if core.event_shape != () or support is None or not isinstance(support, INTERVALS):
        return None
    return getattr(support, "lower_bound", -np.inf), getattr(support, "upper_bound", np.inf)


@jax.jit  # the distribution is an argument, so that a family compiles once
def _each_log_prob(core: Any, x: Any) -> Array:
    density = core.base_dist if isinstance(core, TRUNCATED) else core
    columns = jnp.asarray(x).reshape((-1,) + (1,) * len(core.batch_shape))
    return density.log_prob(jnp.broadcast_to(columns, (len(x), *core.batch_shape)))


def _element(core: Any, i: int) -> Any:
    """Return one scalar of a batch; None where it can only be evaluated with all others."""
    if core.batch_shape == ():
        return core
    try:
        arguments = {k: np.broadcast_to(v, core.batch_shape).ravel()[i] for k, v in core.get_args().items()}
        return _in_float64(type(core)(**arguments))
    except (TypeError, ValueError, AttributeError):
        return None


def _draws(core: Any, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Return draws of each scalar, shape (n, k); of a truncated one those of its base inside, the others NaN.

    Raises:
        ValueError: If others draw values outside the support that they declare, as a mixture does with different ones.
    """
    base = core.base_dist if isinstance(core, TRUNCATED) else core
    try:
        draws = np.asarray(base.sample(jax.random.key(0), (NUM_DRAWS,)), np.float64)
    except (NotImplementedError, ImportError):
        draws = np.full((NUM_DRAWS, *core.batch_shape), np.nan)
    draws = np.broadcast_to(draws, (NUM_DRAWS, *core.batch_shape)).reshape(NUM_DRAWS, -1)
    if not isinstance(core, TRUNCATED) and np.any((draws < low) | (draws > high)):
        raise ValueError("draws outside the support")
    return np.where((draws > low) & (draws < high), draws, np.nan)


def _bijected(name: str, distribution: Any, shape: tuple[int, ...]) -> Bijected:
    """Return the parameter mapped by the bijection of its support, after trying it on draws."""
    try:
        latent_shape = tuple(biject_to(distribution.support).inverse_shape(shape))
        parameter = Bijected(distribution, shape, latent_shape)
        trouble = _trouble(parameter)
        cause = None
    except (NotImplementedError, ImportError, TypeError, ValueError, KeyError) as error:
        trouble, cause = f"raises {error!r}", error
        latent_shape, parameter = (), None
    if parameter is None or trouble is not None:
        raise ValueError(
            f"`Prior` expected a distribution that can be drawn from and mapped to a latent vector for parameter "
            f"{name!r}; got {_describe(distribution)} with support {distribution.support}, which {trouble}. "
            "Rewrite it as a function, inside the likelihood, of parameters with simpler distributions."
        ) from cause
    if 0 in latent_shape:
        raise ValueError(
            f"`Prior` expected at least one free number for parameter {name!r}; got {_describe(distribution)}, which "
            "leaves none. Leave the parameter out."
        )
    return parameter


def _trouble(parameter: Bijected) -> str | None:
    """Say what goes wrong with some draws, if anything does."""

    def trial(key: Any) -> Any:
        x = parameter.sample(key, NUM_TRIED)
        z = parameter.inverse(x)
        return x, z, parameter.forward(z), parameter.latent_log_prob(z)

    x, z, back, density = jax.jit(trial)(jax.random.key(0))
    if x.shape[1:] != parameter.shape:
        return f"draws values of shape {x.shape[1:]} where it declares {parameter.shape}"
    # Gamma(0.01) draws an exact 0 now and then: a point on the edge, which comes back as exp(-700).
    if back.shape != x.shape or not jnp.all(jnp.isclose(back, x, rtol=1e-6, atol=1e-6)):
        return "draws values outside the support it declares"
    # Numpyro's sigmoid stops at 1 - 1e-16: what is beyond piles up there, and no density knows of it.
    is_edge = jnp.any((z == z.max(axis=0)) | (z == z.min(axis=0)), axis=1)
    is_lost = ~jnp.isfinite(density) | (is_edge & (jnp.sum(is_edge) > 2 * z.shape[1]))
    lost = float(jnp.mean(is_lost))
    if lost > 0.5:
        return "has no finite density at its own draws"
    if lost > NORMALISED * 10:
        return f"rounds {lost:.1%} of its draws to an edge of its support: that mass would be missing from the evidence"
    return None


# ---- scipy


def _scipy_parameter(name: str, distribution: Any, kind: Any) -> Parameter:
    quantiles = np.stack([distribution.ppf(u) for u in (0.01, 0.5, 0.99)])
    if quantiles.size == 0 or not np.all(np.isfinite(quantiles)) or not np.all(np.diff(quantiles, axis=0) > 0):
        raise ValueError(
            f"`Prior` expected valid arguments for the distribution of parameter {name!r}; got "
            f"scipy.stats.{kind.name} with {distribution.args} {distribution.kwds}, whose quantiles at 0.01, 0.5 and "
            f"0.99 are {quantiles.tolist()}. Mend loc, scale or shape."
        )
    if isinstance(kind, type(scipy.stats.norm)):
        return _numpyro_parameter(name, dist.Normal(distribution.mean(), distribution.std()))
    if isinstance(kind, type(scipy.stats.uniform)):
        return _numpyro_parameter(name, dist.Uniform(*distribution.support()))
    shape = quantiles.shape[1:]
    table = _scipy_scores(distribution, shape)
    return HostNormalScore(distribution, shape) if table is None else _by_scores(OfScipy(distribution), shape, table)


@dataclass(frozen=True)
class OfScipy:
    """A frozen scipy distribution to JAX, which calls back for its density."""

    distribution: Any

    def support(self, x: Array) -> Array:
        """True: outside of its support scipy's density is zero."""
        return jnp.ones(x.shape, bool)

    def log_prob(self, x: Array) -> Array:
        """Log density, in nats."""
        return jax.pure_callback(
            self._on_host, jax.ShapeDtypeStruct(x.shape, jnp.float64), x, vmap_method="expand_dims"
        )

    def _on_host(self, x: Any) -> np.ndarray:
        with np.errstate(all="ignore"):  # far out scipy overflows on the way to a density of zero
            return np.asarray(self.distribution.logpdf(np.asarray(x)), np.float64)


def _scipy_scores(distribution: Any, shape: tuple[int, ...]) -> Scores | None:
    """Tabulate a scipy distribution; None if its density is slow, noisy, or disagrees with its quantiles."""
    size = int(np.prod(shape, dtype=int))
    low, high = (np.broadcast_to(np.asarray(b, np.float64), shape).ravel() for b in distribution.support())
    levels = np.concatenate([CHECKED, np.linspace(0.02, 0.98, NUM_QUANTILES)])
    places = np.asarray(distribution.ppf(levels.reshape((-1,) + (1,) * len(shape))), np.float64).reshape(-1, size)

    def log_density(i: int, x: np.ndarray) -> np.ndarray:
        columns = np.broadcast_to(x.reshape((-1,) + (1,) * len(shape)), (len(x), *shape))
        return np.asarray(distribution.logpdf(columns), np.float64).reshape(len(x), size)[:, i]

    if distribution.dist.name in SLOW:
        return None
    try:
        table = scores(log_density, low, high, places, floor=UNDERFLOW)
    except ValueError:
        return None
    expected, checked = scipy.special.ndtri(CHECKED)[:, None], places[: len(CHECKED)]
    # Next to an edge a quantile may be rounded to the edge itself.
    above = table.roughly(np.nextafter(checked, -np.inf)) - 1e-3 < expected
    below = expected < table.roughly(np.nextafter(checked, np.inf)) + 1e-3
    return table if np.all(above & below) and np.max(np.abs(table.log_mass)) < NORMALISED else None
