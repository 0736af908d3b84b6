"""Modes above draws of the prior: proposed around from the start, or looked for in what a run has found."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, no_type_check

import jax
import jax.numpy as jnp
import numpy as np
from blackjax.ns.adaptive import AdaptiveNSState
from jax.flatten_util import ravel_pytree
from jaxtyping import Array

from nsflow.adapters.blackjax.result import LostMode, NestedResult
from nsflow.modes.modes import Mode, ascend, basins, highest_mode, isolation, measure, share_of_evidence
from nsflow.moves.ellipsoids import Ellipsoids, around
from nsflow.moves.inner_kernel import flatten, require_function, require_state
from nsflow.moves.learner import Learner
from nsflow.moves.memory import Draws
from nsflow.numerics.arguments import LARGEST, SMALLEST, instance, real, require_array, shown
from nsflow.numerics.precision import float64

MIN_SHARE = 0.01  # of the evidence that makes a mode worth an alarm
LOST = 1 / 3  # of a mode's share, by Laplace's approximation, below which the run has lost it
STEEP = 0.1  # gain in nats of a step of one width that tells the edge of a prior from a maximum within it
FLAT = 0.5  # width, in deviations of the prior, beyond which a maximum is a ridge: two shells were called ten modes


class _Target:
    """Log of prior times likelihood of a flat vector, and its gradient; both together count as two calls."""

    def __init__(self, terms: Callable[[Array], tuple[Array, Array]], max_calls: int) -> None:
        def log_density(x: Array) -> tuple[Array, Array]:
            log_prior, log_likelihood = terms(x)
            return log_prior + log_likelihood, log_likelihood

        self._both = jax.jit(jax.value_and_grad(log_density, has_aux=True))
        self.max_calls = max_calls
        self.num_calls = 0

    @property
    def is_exhausted(self) -> bool:
        """Whether another evaluation would exceed the calls allowed."""
        return self.num_calls + 2 > self.max_calls

    def __call__(self, x: np.ndarray) -> tuple[float, np.ndarray]:
        if self.is_exhausted:
            return -np.inf, np.zeros(len(x))
        self.num_calls += 2
        (value, _), gradient = self._both(x)
        if not np.isfinite(value):
            return -np.inf, np.zeros(len(x))
        return float(value), np.nan_to_num(np.asarray(gradient), posinf=0.0, neginf=0.0)

    def log_likelihood(self, x: np.ndarray) -> float:
        """The likelihood alone, one call."""
        self.num_calls += 1
        (_, log_likelihood), _ = self._both(x)
        return float(log_likelihood)


@no_type_check  # its own messages come before a run-time checker's
@float64
def find_lost_modes(
    result: NestedResult,
    prior_draws: Any,
    logprior_fn: Callable[[Any], Array],
    loglikelihood_fn: Callable[[Any], Array],
    max_calls: int = 5000,
) -> NestedResult:
    r"""Climb from draws of the prior, and compare what lies around the maxima with what the run has there.

    Nested sampling loses a mode when its last live point dies below the mode's own contours, and nothing that it
    records tells. But some draw of the prior may have stood on its slopes: local maxima among these are climbed from,
    and each maximum :math:`m` has by Laplace's approximation the evidence

    .. math:: Z_m = L(m)\, \pi(m) \sqrt{\det 2 \pi \Sigma}, \qquad \Sigma^{-1} = -\nabla\nabla \log L \pi .

    A mode with a hundredth of the evidence, of which the run has less than a third, is lost, and sets an alarm. One
    whose slopes no draw hit stays unseen; maxima on an edge of the prior or along a ridge have no such Gaussian and are
    passed over.

    Parameters
    ----------
    result
        From `finalise`.
    prior_draws
        Positions drawn from the prior, such as those that `init` had; more of them find rarer modes.
    logprior_fn
        Log-prior of one particle, nats.
    loglikelihood_fn
        Log-likelihood of one particle, nats; differentiable.
    max_calls
        Likelihood calls not to be exceeded, a gradient with its value counting as two; those for the draws come on
        top.

    Returns
    -------
    The result with `lost_modes`, their alarms, and the calls counted.

    Raises
    ------
    ValueError
        If the leaves of `prior_draws` disagree on the number of positions, or there are fewer than two.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from anesthetic import MCMCSamples
    >>> normal = lambda x, mean: -0.5 * jnp.sum((x - mean) ** 2) - jnp.log(2 * jnp.pi)
    >>> draws = np.random.default_rng(0).uniform(-20, 20, (500, 2))
    >>> half = MCMCSamples(np.random.default_rng(1).normal(size=(500, 2)) - 9)
    >>> result = NestedResult(half, -7.4, 0.1, -7.4, 0.1, 9000, 0.1, 0.5, 0.9, 0.5, 0.5)
    >>> find_lost_modes(
    ...     result, draws, lambda x: -2 * jnp.log(40.0), lambda x: jnp.logaddexp(normal(x, -9), normal(x, 9))
    ... ).alarms
    ('a mode with 50% of the evidence was lost, the run has 0% there: use add_modes, more live points, or nsflow.run',)
    """
    instance(NestedResult, "what `finalise` returned")("`find_lost_modes`", result)
    max_calls = _terms("find_lost_modes", logprior_fn, loglikelihood_fn, max_calls)
    unravel, x = _flat(prior_draws)
    modes, _, target = _find_modes(unravel, x, logprior_fn, loglikelihood_fn, max_calls)
    result = replace(result, num_calls=result.num_calls + len(x) + target.num_calls)
    known = [np.asarray(ravel_pytree(lost.position)[0]) for lost in result.lost_modes]
    return with_lost_modes(result, [mode for mode in modes if not any(map(mode.contains, known))], unravel)


@no_type_check  # its own messages come before a run-time checker's
@float64
def add_modes(
    state: AdaptiveNSState,
    prior_draws: Any,
    logprior_fn: Callable[[Any], Array],
    loglikelihood_fn: Callable[[Any], Array],
    max_calls: int = 5000,
) -> AdaptiveNSState:
    r"""Climb from draws of the prior, and propose around the maxima from the first step on.

    Of a thousand live points a narrow mode has one or none until the contour is far up its slopes, and what one
    live point has found is lost by chance or counts by chance. A fifth of the draws (`Learner.ellipsoid_share`) then
    come from ellipsoids that reach to the contour where the likelihood is a Gaussian and the prior flat,
    :class:`nsflow.moves.Ellipsoids`. The flow learns from them and from the draws of the prior. They change what
    is proposed and its density, nothing else. `finalise` sets an alarm for each of these modes that the run has lost
    all the same.

    Call it after `init`, outside of jit; again to look among other draws. The modes are those of
    :func:`find_lost_modes`, with a hundredth of the evidence of all of them.

    Parameters
    ----------
    state
        From `init`, before the first step.
    prior_draws
        Positions drawn from the prior; some thousands, as each mode needs one of them on its slopes.
    logprior_fn
        Log-prior of one particle, nats.
    loglikelihood_fn
        Log-likelihood of one particle, nats; differentiable.
    max_calls
        Likelihood calls not to be exceeded, a gradient with its value counting as two; those for the draws come on
        top.

    Returns
    -------
    The state with ellipsoids around the modes.

    Raises
    ------
    ValueError
        If the leaves of `prior_draws` disagree on the number of positions, there are fewer than two, or they have
        another dimension than the live points.

    Examples
    --------
    >>> import nsflow.adapters.blackjax as nested
    >>> log_prior = lambda x: jnp.where(jnp.all(jnp.abs(x) < 20), -2 * jnp.log(40.0), -jnp.inf)
    >>> log_likelihood = lambda x: jnp.logaddexp(-0.5 * jnp.sum((x - 9) ** 2), -5 * jnp.sum((x + 9) ** 2))
    >>> algorithm = nested.as_top_level_api(log_prior, log_likelihood, 6, 50)
    >>> state = algorithm.init(jax.random.uniform(jax.random.key(0), (500, 2), minval=-20.0, maxval=20.0))
    >>> draws = np.random.default_rng(0).uniform(-20, 20, (2000, 2))
    >>> state = add_modes(state, draws, log_prior, log_likelihood)
    >>> state.inner_kernel_params["proposal"].ellipsoids.centre.round(3).tolist()
    [[9.0, 9.0], [-9.0, -9.0]]
    """
    require_state("add_modes", state)
    max_calls = _terms("add_modes", logprior_fn, loglikelihood_fn, max_calls)
    online: Any = state.inner_kernel_params["proposal"]
    num_dims, dtype = online.flow.num_dims, online.flow.mean.dtype
    unravel, x = _flat(prior_draws)
    if x.shape[1] != num_dims:
        raise ValueError(f"`prior_draws` expected positions of dimension {num_dims}, as live points; got {x.shape[1]}.")
    found, log_likelihood, target = _find_modes(unravel, x, logprior_fn, loglikelihood_fn, max_calls)
    known = online.ellipsoids.modes
    met = [any(other.contains(mode.centre, mode.log_density) for other in known) for mode in found]
    modes = known + [mode for mode, is_met in zip(found, met, strict=True) if not is_met]
    modes = [mode for mode, share in zip(modes, share_of_evidence(modes, -np.inf), strict=True) if share > MIN_SHARE]
    peaks = np.array([target.log_likelihood(mode.centre) for mode in modes])
    num_calls = int(online.ellipsoids.num_calls) + len(x) + target.num_calls
    ellipsoids = around(modes, peaks, num_calls, dtype, num_dims)
    draws = Draws(*(jnp.asarray(np.asarray(a, dtype)) for a in (x, log_likelihood, np.zeros(len(x)))))
    online, ellipsoids = _observe(online, draws, ellipsoids, state.particles.loglikelihood)
    # A step is compiled anew for arrays that are placed on other devices than those before.
    if getattr(online.flow.mean, "committed", False):
        ellipsoids = jax.device_put(ellipsoids, online.flow.mean.sharding)
    params = {**state.inner_kernel_params, "proposal": online._replace(ellipsoids=ellipsoids)}  # pyright: ignore[reportGeneralTypeIssues]
    return state._replace(inner_kernel_params=params)


@jax.jit
def _observe(online: Any, draws: Draws, ellipsoids: Ellipsoids, live: Array) -> tuple[Any, Ellipsoids]:
    """Learn from draws, and let ellipsoids reach to the lowest of the live points."""
    contour = jnp.min(live).astype(ellipsoids.centre.dtype)
    return Learner.observe(online, draws), ellipsoids.at_contour(contour)


def with_lost_modes(result: NestedResult, modes: list[Mode], unravel: Callable[[Array], Any]) -> NestedResult:
    """Set an alarm for each mode around which a run has too little of the evidence.

    Parameters
    ----------
    result
        From `finalise`.
    modes
        The modes.
    unravel
        The position of one particle from a flat vector.

    Returns
    -------
    The result with these `lost_modes` after those that it has.
    """
    lost = tuple(
        LostMode(unravel(jnp.asarray(mode.centre)), float(share), float(found))
        for mode, share, found in zip(modes, *_shares(result, modes), strict=True)
        if share > MIN_SHARE and found < LOST * share
    )
    return replace(result, lost_modes=result.lost_modes + lost)


def _terms(owner: str, logprior_fn: Any, loglikelihood_fn: Any, max_calls: Any) -> int | float:
    """Check what both functions are given; the largest number of calls."""
    require_function(owner, "logprior_fn", logprior_fn)
    require_function(owner, "loglikelihood_fn", loglikelihood_fn)
    return real(lambda n: n >= 0, "a number of calls of at least 0")("`max_calls`", max_calls)


def _flat(prior_draws: Any) -> tuple[Callable[[Array], Any], np.ndarray]:
    """Positions as an array, one row a particle, and the way back for one row."""
    sizes = {np.shape(leaf)[:1] for leaf in jax.tree.leaves(prior_draws)}
    if len(sizes) != 1 or sizes <= {(), (0,), (1,)}:
        raise ValueError(
            "`prior_draws` expected a PyTree of arrays, two or more positions along the first axis of each; "
            f"got leading axes {sorted(sizes)}."
        )
    prior_draws = jax.tree.map(lambda leaf: jnp.asarray(require_array("`prior_draws`", leaf)), prior_draws)
    _, unravel = ravel_pytree(jax.tree.map(lambda leaf: leaf[0], prior_draws))
    x = np.asarray(flatten(prior_draws))
    with np.errstate(all="ignore"):
        width = np.std(x, axis=0)
    if not np.all((width > SMALLEST) & (width < LARGEST)):
        raise ValueError(
            f"`prior_draws` expected finite coordinates that vary, by {SMALLEST} to {LARGEST}; got standard deviations "
            f"{shown(width)}. Change the unit."
        )
    return unravel, x


def _find_modes(
    unravel: Callable[[Array], Any],
    x: np.ndarray,
    logprior_fn: Callable[[Any], Array],
    loglikelihood_fn: Callable[[Any], Array],
    max_calls: int,
) -> tuple[list[Mode], np.ndarray, _Target]:
    """The maxima above draws of the prior, the log-likelihood of the draws, and what was climbed."""

    def terms(vector: Array) -> tuple[Array, Array]:
        position = unravel(vector)
        return logprior_fn(position), loglikelihood_fn(position)

    log_prior, log_likelihood = map(np.asarray, jax.jit(jax.vmap(terms))(x))
    log_density = log_prior + log_likelihood
    target = _Target(terms, max_calls)
    is_there = log_density > -np.inf
    modes = _climb(target, x[is_there], log_density[is_there])
    return modes, np.where(is_there, log_likelihood, -np.inf), target


def _climb(target: _Target, x: np.ndarray, values: np.ndarray) -> list[Mode]:
    """The maxima above the local maxima among draws of the prior, the most isolated ones first."""
    if len(x) < 2:  # of those with a likelihood
        return []
    width = np.std(x, axis=0)
    z = x / width
    tops = np.unique(basins(z, values))
    met: list[Mode] = []
    is_peak: list[bool] = []

    def scaled(z: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = target(z * width)
        return value, gradient * width

    for top in tops[np.argsort(-isolation(z, values, tops), kind="stable")]:
        reach = 0.5 * np.min(np.linalg.norm(np.delete(z, top, axis=0) - z[top], axis=1))
        centre, log_density = ascend(scaled, z[top], reach)
        if any(mode.contains(centre * width, log_density) for mode in met):
            continue
        mode = measure(scaled, centre, log_density)
        slope = np.linalg.norm(mode.scale.T @ scaled(centre)[1])
        if target.is_exhausted:  # its values are no longer the likelihood's
            break
        met.append(Mode(centre * width, log_density, width[:, None] * mode.scale))
        is_peak.append(bool(slope < STEEP and np.linalg.norm(mode.scale, 2) < FLAT))
    return [mode for mode, peak in zip(met, is_peak, strict=True) if peak]


def _shares(result: NestedResult, modes: list[Mode]) -> tuple[np.ndarray, np.ndarray]:
    """Share of the evidence of each mode: by its Gaussian, and by the samples at which that is the highest."""
    if not modes:
        return np.zeros(0), np.zeros(0)
    x = np.asarray(result.samples)[:, : len(modes[0].centre)].astype(float)
    weights = np.asarray(result.samples.get_weights())
    found = np.bincount(highest_mode(modes, x), weights=weights, minlength=len(modes)) / np.sum(weights)
    share = share_of_evidence(modes, result.logZ)
    # Of the same whole as the modes' shares, which is more than the run's evidence where it has lost one.
    whole = max(result.logZ, np.logaddexp.reduce([mode.log_evidence for mode in modes]))
    return share, found * np.exp(result.logZ - whole)
