"""Nested sampling for blackjax with a learned proposal.

The shape is that of :mod:`blackjax.ns.nss`: `init`, `build_kernel` and `as_top_level_api`, which returns a
`SamplingAlgorithm`. A flow learns the prior above the contour from its own weighted draws, inside jit, and an inner
kernel of :mod:`nsflow.moves` moves particles by it.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, no_type_check

import jax
import jax.numpy as jnp
import numpy as np
from blackjax.base import SamplingAlgorithm
from blackjax.ns import adaptive
from blackjax.ns.adaptive import AdaptiveNSState
from blackjax.ns.base import NSInfo, StateWithLogLikelihood, delete_fn, init_state_strategy
from jax.flatten_util import ravel_pytree
from jaxtyping import Array

from nsflow.adapters.blackjax.modes import with_lost_modes
from nsflow.adapters.blackjax.result import (
    NUM_VOLUMES,
    NestedResult,
    importance_evidence,
    insertion_p_values,
    nested_samples,
)
from nsflow.moves.ellipsoids import Ellipsoids
from nsflow.moves.inner_kernel import (
    AbstractInnerKernel,
    Health,
    IndependenceMH,
    Moves,
    Problem,
    flatten,
    require_function,
    require_state,
)
from nsflow.moves.learner import Learner
from nsflow.moves.memory import Draws
from nsflow.numerics.arguments import instance, integer, real, require_key, shown
from nsflow.numerics.precision import standard_promotion

LEARNER = instance(Learner, "an nsflow.adapters.blackjax.Learner")
MEMORY = 0.1  # weight of the newest step in the running means


class UpdateInfo(NamedTuple):
    """What one step did.

    Attributes
    ----------
    acceptance
        Share of accepted moves for each new particle, shape ``(num_delete,)``.
    num_calls
        Likelihood evaluations for each, shape ``(num_delete,)``.
    insertion_rank
        Rank of each among the survivors and the new particles before it, over their number; uniform on (0, 1) and
        independent if the inner kernel works, shape ``(num_delete,)``.
    unique_fraction
        Share of distinct live points after the step, shape ``(1,)``.
    log_likelihood
        Of each draw of the flow, nats, shape ``(num_draws,)``.
    log_weight
        Log prior density minus log flow density of each, nats; -inf outside the prior and, unless hardly any draw lies
        above it, below the contour; NaN where none was drawn.
    """

    acceptance: Array
    num_calls: Array
    insertion_rank: Array
    unique_fraction: Array
    log_likelihood: Array
    log_weight: Array


@no_type_check  # its own messages come before a run-time checker's
@standard_promotion
def init(
    position: Any,
    init_state_fn: Callable[..., StateWithLogLikelihood],
    learner: Learner = Learner(),  # noqa: B008
    rng_key: Array | None = None,
) -> AdaptiveNSState:
    """Evaluate the first live points and whiten them; the first step trains the flow.

    Parameters
    ----------
    position
        Draws from the prior: a PyTree of floating-point arrays with one leading axis, the live points.
    init_state_fn
        Builds the state of many particles from their positions.
    learner
        How the flow is trained.
    rng_key
        Key of the network's first weights.

    Returns
    -------
    The state of the sampler; the flow is in `inner_kernel_params`.

    Raises
    ------
    TypeError
        If a leaf is not an array of floating-point numbers.
    ValueError
        If the leaves disagree on the number of live points, or these are not more than twice the dimension.
    """
    require_function("init", "init_state_fn", init_state_fn)
    LEARNER("`init` for its `learner`", learner)
    num_live, num_dims = _check(position)
    if num_live <= 2 * num_dims:
        raise ValueError(
            f"`init` expected more than {2 * num_dims} live points in {num_dims} dimensions; got {num_live}. "
            "Draw more positions from the prior: a thousand is usual."
        )
    key = jax.random.key(0) if rng_key is None else require_key("init", rng_key)
    # A position beyond float32 becomes infinite. Where numpy is told to raise, that ends the process inside JAX.
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        return learner.replicate(_init(key, position, init_state_fn, learner))


@partial(jax.jit, static_argnums=(2, 3))  # a hundred operations that are compiled one by one take two seconds
def _init(
    key: Array, position: Any, init_state_fn: Callable[..., StateWithLogLikelihood], learner: Learner
) -> AdaptiveNSState:
    state = adaptive.init(position, _without_nan(init_state_fn))
    x = flatten(state.particles.position)
    live = Draws(x, state.particles.loglikelihood.astype(x.dtype), jnp.zeros(len(x), x.dtype))
    one = jnp.ones((), x.dtype)
    health = Health(one, one, jnp.full_like(one, -jnp.inf), jnp.int32(0))
    return state._replace(inner_kernel_params={"proposal": learner.init(key, live), "health": health})


@no_type_check  # its own messages come before a run-time checker's
def build_kernel(
    init_state_fn: Callable[..., StateWithLogLikelihood],
    num_inner_steps: int,
    num_delete: int = 1,
    inner_kernel: AbstractInnerKernel = IndependenceMH(),  # noqa: B008
    learner: Learner = Learner(),  # noqa: B008
    train_every: float = 0.3,
) -> Callable[[Array, AdaptiveNSState], tuple[AdaptiveNSState, NSInfo]]:
    """Build the nested sampling kernel.

    Parameters
    ----------
    init_state_fn
        Builds the state of one particle, called as ``init_state_fn(position, loglikelihood_birth=...)``.
    num_inner_steps
        Moves for each new particle; batches of draws for :class:`Rejection`.
    num_delete
        Particles that are replaced in one step.
    inner_kernel
        How they are replaced.
    learner
        How the flow is trained; the one that `init` had.
    train_every
        Compression in nats of prior volume between two trainings; infinity to train by `retrain` alone.

    Returns
    -------
    A kernel ``(rng_key, state) -> (state, info)``; the info holds the dead particles and an :class:`UpdateInfo`.
    """
    num_inner_steps = integer(1, 10**6)("`num_inner_steps`", num_inner_steps)
    num_delete = integer(1, 10**6)("`num_delete`", num_delete)
    train_every = real(lambda x: x > 0, "a positive number of nats")("`train_every`", train_every)
    LEARNER("`learner`", learner)
    require_function("build_kernel", "init_state_fn", init_state_fn)
    require_function("build_kernel", "inner_kernel", inner_kernel)

    @standard_promotion
    @jax.jit
    def kernel(rng_key: Array, state: AdaptiveNSState) -> tuple[AdaptiveNSState, NSInfo]:
        num_live = len(state.particles.loglikelihood)
        if num_delete >= num_live:
            raise ValueError(f"`num_delete` expected fewer than the {num_live} live points; got {num_delete}.")
        problem = Problem(learner, _of_vectors(init_state_fn, state), num_inner_steps, num_delete)

        def replace_dead(
            rng_key: Array, state: Any, loglikelihood_0: Array, **params: Any
        ) -> tuple[StateWithLogLikelihood, Moves]:
            new, moves = inner_kernel(problem, rng_key, state.particles, loglikelihood_0, **params)
            births = jnp.full_like(new.loglikelihood_birth, loglikelihood_0)
            return new._replace(loglikelihood_birth=births), moves

        key_step, key_rank, key_train = jax.random.split(rng_key, 3)
        if np.isfinite(train_every):
            interval = max(1, round(train_every * num_live / num_delete))
            num_steps = state.inner_kernel_params["health"].num_steps  # pyright: ignore[reportAttributeAccessIssue]
            state = jax.lax.cond(
                num_steps % interval == 0,
                lambda: _train(key_train, state, learner),
                lambda: state,
            )
        step = adaptive.build_kernel(partial(delete_fn, num_delete=num_delete), replace_dead, lambda *args: args[3])
        new_state, info = step(key_step, state)
        moves: Moves = info.update_info  # pyright: ignore[reportAssignmentType]
        contour = jnp.max(info.particles.loglikelihood)

        health: Health = state.inner_kernel_params["health"]  # pyright: ignore[reportAssignmentType]
        unique = _unique_fraction(new_state.particles)
        health = Health(
            acceptance=health.acceptance + MEMORY * (jnp.mean(moves.acceptance) - health.acceptance),
            unique_fraction=unique,
            log_envelope=jnp.maximum(health.log_envelope, _largest_weight(moves.draws, contour)),
            num_steps=health.num_steps + 1,
        )
        proposal = learner.observe(state.inner_kernel_params["proposal"], moves.training_draws)  # pyright: ignore[reportArgumentType]
        rank = _insertion_rank(key_rank, state.particles.loglikelihood, contour, _newest(state, new_state, num_delete))
        update_info = UpdateInfo(
            moves.acceptance,
            moves.num_calls,
            rank,
            unique[None],
            moves.draws.log_likelihood,
            moves.draws.log_weight,
        )
        params = {"proposal": proposal, "health": health}
        return new_state._replace(inner_kernel_params=params), NSInfo(info.particles, update_info)

    return kernel


@no_type_check  # its own messages come before a run-time checker's
def as_top_level_api(
    logprior_fn: Callable[[Any], Array],
    loglikelihood_fn: Callable[[Any], Array],
    num_inner_steps: int,
    num_delete: int = 1,
    inner_kernel: AbstractInnerKernel = IndependenceMH(),  # noqa: B008
    learner: Learner = Learner(),  # noqa: B008
    train_every: float = 0.3,
) -> SamplingAlgorithm:
    """Nested sampling with a learned proposal, called as `blackjax.nss` is.

    Parameters
    ----------
    logprior_fn
        Log-prior of one particle, nats; -inf outside.
    loglikelihood_fn
        Log-likelihood of one particle, nats.
    num_inner_steps
        Moves for each new particle. A dozen draws do where slices take 5 d moves of about five evaluations each; see
        `UpdateInfo.unique_fraction`.
    num_delete
        Particles that are replaced in one step; a tenth of the live points makes good use of batches.
    inner_kernel
        :class:`IndependenceMH`, :class:`LatentSlice`, :class:`Mixture` of both or :class:`Rejection`.
    learner
        How the flow is trained.
    train_every
        Compression in nats of prior volume between two trainings inside jit; infinity to train by `retrain` alone.

    Returns
    -------
    A `SamplingAlgorithm`.

    Examples
    --------
    >>> import blackjax
    >>> uniform = lambda x: jnp.where(jnp.all(jnp.abs(x) < 5), -2 * jnp.log(10.0), -jnp.inf)
    >>> sampler = as_top_level_api(uniform, lambda x: -0.5 * jnp.sum(x**2), num_inner_steps=4, num_delete=20)
    >>> state = sampler.init(jax.random.uniform(jax.random.key(0), (200, 2), minval=-5.0, maxval=5.0))
    >>> state, info = jax.jit(sampler.step)(jax.random.key(1), state)
    >>> info.particles.position.shape, bool(info.update_info.acceptance.mean() > 0.2)
    ((20, 2), True)
    """
    require_function("as_top_level_api", "logprior_fn", logprior_fn)
    require_function("as_top_level_api", "loglikelihood_fn", loglikelihood_fn)
    init_state_fn = partial(init_state_strategy, logprior_fn=logprior_fn, loglikelihood_fn=loglikelihood_fn)
    kernel = build_kernel(init_state_fn, num_inner_steps, num_delete, inner_kernel, learner, train_every)
    init_states_fn = jax.vmap(init_state_fn)

    def init_fn(position: Any, rng_key: Array | None = None) -> AdaptiveNSState:
        return init(position, init_states_fn, learner, rng_key)

    return SamplingAlgorithm(init_fn, kernel)  # pyright: ignore[reportArgumentType]


@no_type_check  # its own messages come before a run-time checker's
@standard_promotion
def retrain(
    rng_key: Array,
    state: AdaptiveNSState,
    learner: Learner = Learner(),  # noqa: B008
    num_rounds: int = 40,
) -> AdaptiveNSState:
    """Train the flow between two steps; the tree keeps its shapes and dtypes, so that nothing is compiled anew.

    Parameters
    ----------
    rng_key
        Key of the training.
    state
        The state of the sampler.
    learner
        How the flow is trained; the one that `init` had.
    num_rounds
        How many times `learner.num_steps` gradient steps are made.

    Returns
    -------
    The state with the new flow.
    """
    require_key("retrain", rng_key)
    require_state("retrain", state)
    LEARNER("`retrain` for its `learner`", learner)
    num_rounds = integer(1, 10**6)("`retrain` for its `num_rounds`", num_rounds)
    return jax.jit(_train, static_argnums=2)(rng_key, state, learner, num_rounds)


@no_type_check  # its own messages come before a run-time checker's
@standard_promotion
def finalise(state: AdaptiveNSState, dead: Sequence[NSInfo]) -> NestedResult:
    """Turn a run into anesthetic samples, two evidences and their tests.

    Parameters
    ----------
    state
        The final state; its live points join the dead.
    dead
        The info of every step, from the first.

    Returns
    -------
    The result. Without float64, log-likelihoods beyond 1e4 nats lose the digits that tell points apart: subtract a
    constant or call ``jax.config.update("jax_enable_x64", True)`` first.

    Raises
    ------
    ValueError
        If `dead` is empty.
    """
    require_state("finalise", state)
    if not isinstance(dead, Sequence) or not all(isinstance(info, NSInfo) for info in dead):
        raise TypeError(f"`finalise` expected a list of what `step` returned beside its state; got {shown(dead)}.")
    if not dead:
        raise ValueError("`finalise` expected the info of at least one step; got none. Collect what `step` returns.")
    dead = [jax.device_get(info) for info in dead]
    particles = jax.tree.map(
        lambda *parts: np.concatenate(parts), *[info.particles for info in dead], jax.device_get(state.particles)
    )
    steps: list[UpdateInfo] = [info.update_info for info in dead]  # pyright: ignore[reportAssignmentType]
    samples = nested_samples(particles.position, particles.loglikelihood, particles.loglikelihood_birth)
    volumes = np.asarray(samples.logZ(NUM_VOLUMES))
    num_live, num_delete = len(state.particles.loglikelihood), len(steps[0].num_calls)
    importance = importance_evidence(
        np.asarray(particles.loglikelihood[np.isnan(particles.loglikelihood_birth)], np.float64),
        np.array([np.max(info.particles.loglikelihood) for info in dead], np.float64),
        np.stack([step.log_likelihood for step in steps]).astype(np.float64),
        np.stack([step.log_weight for step in steps]).astype(np.float64),
        num_delete / num_live,
    )
    p_value, worst_p_value = insertion_p_values(
        np.concatenate([step.insertion_rank for step in steps]).astype(np.float64), num_live
    )
    ellipsoids: Ellipsoids = state.inner_kernel_params["proposal"].ellipsoids  # pyright: ignore[reportAttributeAccessIssue]
    result = NestedResult(
        samples=samples,
        logZ=float(np.mean(volumes)),
        logZ_err=float(np.std(volumes)),
        importance_logZ=importance.logZ,
        importance_logZ_err=importance.logZ_err,
        num_calls=num_live + int(ellipsoids.num_calls) + sum(int(np.sum(step.num_calls)) for step in steps),
        khat=importance.khat,
        acceptance=float(np.mean([step.acceptance for step in steps])),
        unique_fraction=float(min(step.unique_fraction[0] for step in steps)),
        insertion_p_value=p_value,
        worst_insertion_p_value=worst_p_value,
        num_dropped=len(particles.loglikelihood) - len(samples),
    )
    flat, unravel = ravel_pytree(jax.tree.map(lambda leaf: leaf[0], state.particles.position))
    return with_lost_modes(result, ellipsoids.modes, lambda vector: unravel(vector.astype(flat.dtype)))


def _train(rng_key: Array, state: AdaptiveNSState, learner: Learner, num_rounds: Any = None) -> AdaptiveNSState:
    """Train the flow on what lies above the lowest live point, and forget the largest weight of the one before."""
    proposal: Any = state.inner_kernel_params["proposal"]
    health: Any = state.inner_kernel_params["health"]
    contour = jnp.min(state.particles.loglikelihood)
    proposal = learner.train(rng_key, proposal, contour, num_rounds)
    health = health._replace(log_envelope=jnp.full_like(health.log_envelope, -jnp.inf))
    return state._replace(inner_kernel_params={"proposal": proposal, "health": health})


def _check(position: Any) -> tuple[int, int]:
    """Number of live points and their dimension."""
    leaves = jax.tree.leaves(position)
    for leaf in leaves:
        if not (
            isinstance(leaf, np.ndarray | jax.Array) and jnp.issubdtype(leaf.dtype, jnp.floating) and leaf.ndim >= 1
        ):
            raise TypeError(
                f"`init` expected a PyTree of floating-point arrays with the live points along the first axis; got "
                f"{shown(leaf)}. Discrete parameters cannot be moved by a flow."
            )
    sizes = {leaf.shape[0] for leaf in leaves}
    if len(sizes) != 1 or min(sizes) == 0:
        raise ValueError(f"`init` expected leaves of equal length, the number of live points; got {sorted(sizes)}.")
    num_dims = sum(leaf[0].size for leaf in leaves)
    if num_dims == 0:
        raise ValueError("`init` expected positions of at least one number; got none.")
    return sizes.pop(), num_dims


def _of_vectors(init_state_fn: Callable, state: AdaptiveNSState) -> Callable:
    """The state of one particle from a flat vector."""
    _, unravel = ravel_pytree(jax.tree.map(lambda leaf: leaf[0], state.particles.position))
    init_state_fn = _without_nan(init_state_fn)
    return lambda x, loglikelihood_birth: init_state_fn(unravel(x), loglikelihood_birth=loglikelihood_birth)


def _without_nan(init_state_fn: Callable) -> Callable:
    """Take a log-likelihood of NaN for -inf: a NaN is never deleted, and a run would not end."""

    def init_finite_fn(position: Any, **birth: Any) -> StateWithLogLikelihood:
        state = init_state_fn(position, **birth)
        if not isinstance(state, StateWithLogLikelihood):
            raise TypeError(
                "`init_state_fn` expected to return a blackjax StateWithLogLikelihood, as `init_state_strategy` does; "
                f"got {shown(state)}."
            )
        value = state.loglikelihood
        return state._replace(loglikelihood=jnp.where(jnp.isnan(value), -jnp.inf, value))

    return init_finite_fn


def _unique_fraction(particles: StateWithLogLikelihood) -> Array:
    """Share of distinct live points: copies have all coordinates in common, so the sum of these tells them apart."""
    code = jnp.sort(jnp.sum(flatten(particles.position), axis=1))
    return (1 + jnp.sum(jnp.diff(code) != 0).astype(code.dtype)) / len(code)


def _largest_weight(draws: Draws, contour: Array) -> Array:
    is_above = (draws.log_likelihood > contour) & ~jnp.isnan(draws.log_weight)
    return jnp.max(jnp.where(is_above, draws.log_weight, -jnp.inf))


def _newest(old: AdaptiveNSState, new: AdaptiveNSState, num_delete: int) -> Array:
    """Log-likelihood of the particles that replaced the dead ones."""
    _, target = delete_fn(old, num_delete)  # pyright: ignore[reportArgumentType]
    return new.particles.loglikelihood[target]


def _insertion_rank(key: Array, live: Array, contour: Array, new: Array) -> Array:
    """Rank of each new log-likelihood among survivors and the new ones before it, at random among equals, over all."""
    reference = jnp.concatenate([live, new])
    earlier = jnp.arange(len(new)) < jnp.arange(len(new))[:, None]
    counts = jnp.concatenate([jnp.broadcast_to(live > contour, (len(new), len(live))), earlier], axis=1)
    below = jnp.sum(counts & (reference < new[:, None]), axis=1)
    equal = jnp.sum(counts & (reference == new[:, None]), axis=1)
    place = jax.random.uniform(key, new.shape, new.dtype) * (equal + 1).astype(new.dtype)
    return (below.astype(new.dtype) + place) / (jnp.sum(counts, axis=1) + 1).astype(new.dtype)
