"""Which distributions can be a parameter's prior, and the parameter each one makes."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import scipy.stats
from numpyro.distributions import biject_to
from numpyro.distributions.discrete import HurdleProbs, ZeroInflatedProbs

from nsflow.arguments import require_array
from nsflow.discrete import Discrete, table
from nsflow.parameter import LATENT_EDGE, Bijected, HostNormalScore, NormalScore, Parameter
from nsflow.periodic import Periodic, Turned
from nsflow.precision import float64
from nsflow.quantile import CLOSED_FORMS, from_normal, numpyro_quantile, to_normal


@float64
def as_parameter(name: str, distribution: Any) -> Parameter:
    """Return the parameter with this distribution, after checking that it is a proper one.

    Args:
        name: The parameter's name, for the messages.
        distribution: A numpyro distribution, a frozen scipy distribution, or either of them in a `Periodic`.

    Returns:
        The parameter. Its latent vector is N(0, I) where the distribution has a quantile function.

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
    if isinstance(core, TRUNCATED):
        raise ValueError(
            f"`Prior` expected a truncation that leaves accurate numbers for parameter {name!r}; got "
            f"{_describe(distribution)}, whose quantiles and density disagree in numpyro. Truncate less far in the "
            "tail, or use the frozen scipy distribution (`scipy.stats.truncnorm`)."
        )
    return _bijected(name, distribution, shape)


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

    return _tabulated(name, _describe(core), shape, log_prob, int(lowest), float(np.max(highest)))


def _scipy_discrete(name: str, distribution: Any, kind: Any) -> Parameter:
    lowest, highest = (np.asarray(bound, np.float64) for bound in distribution.support())
    got = f"scipy.stats.{kind.name} with {distribution.args} {distribution.kwds}"
    if lowest.ndim > 0 or not np.isfinite(lowest):
        raise _discrete(name, got, "no smallest value, or its own for each element")

    def log_prob(values: np.ndarray) -> np.ndarray:
        return np.asarray(distribution.logpmf(values), np.float64)[:, None]

    return _tabulated(name, got, (), log_prob, int(lowest), float(highest))


def _tabulated(
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
    """Return the map from N(0, I) to the distribution and its inverse, or None where numpyro has no quantiles."""
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
            lambda z: jnp.exp(core.loc + core.scale * z),
            lambda x: (jnp.maximum(jnp.log(x), -LATENT_EDGE) - core.loc) / core.scale,
        )
    if core.event_shape == () and (type(core) in CLOSED_FORMS or _has_quantile(core)):
        quantile = numpyro_quantile(core)
        return lambda z: from_normal(quantile, z), lambda x: to_normal(quantile, x)
    return None


def _has_quantile(core: Any) -> bool:
    r"""Whether `icdf` exists, inverts `cdf` and belongs to `log_prob`: :math:`p(F^{-1}(u))\, dF^{-1}/du = 1`."""
    u = jnp.array([0.02, 0.3, 0.7, 0.98]).reshape((4,) + (1,) * len(core.batch_shape))
    u = jnp.broadcast_to(u, (4, *core.batch_shape))
    try:
        x, slope = jax.jvp(core.icdf, (u,), (jnp.ones_like(u),))
        identities = jnp.exp(core.log_prob(x)) * slope - 1, core.cdf(x) - u
    except (NotImplementedError, ImportError, AttributeError):
        return False
    return all(bool(jnp.all(jnp.abs(identity) < 1e-6)) for identity in identities)


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
    """Say what goes wrong with 64 draws, if anything does."""

    def trial(key: Any) -> Any:
        x = parameter.sample(key, 64)
        z = parameter.inverse(x)
        return x, parameter.forward(z), parameter.latent_log_prob(z)

    x, back, density = jax.jit(trial)(jax.random.key(0))
    if x.shape[1:] != parameter.shape:
        return f"draws values of shape {x.shape[1:]} where it declares {parameter.shape}"
    # Gamma(0.01) draws an exact 0 now and then: a point on the edge, which comes back as exp(-700).
    if back.shape != x.shape or not jnp.all(jnp.isclose(back, x, rtol=1e-6, atol=1e-6)):
        return "draws values outside the support it declares"
    if not jnp.mean(jnp.isfinite(density)) > 0.5:
        return "has no finite density at its own draws"
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
    return HostNormalScore(distribution, quantiles.shape[1:])
