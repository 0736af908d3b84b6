"""Inner kernels for blackjax: moves that leave the prior above a contour invariant, whatever the flow.

A flow that fits badly costs acceptance, never the distribution: each move knows the exact density of what it proposes.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, final

import jax
import jax.numpy as jnp
from blackjax.ns.adaptive import AdaptiveNSState
from blackjax.ns.base import StateWithLogLikelihood
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from nsflow.densities.bases import normal_rows
from nsflow.moves.learner import Learner, Online
from nsflow.moves.memory import Draws
from nsflow.moves.slices import NUM_BEFORE, slice_moves
from nsflow.numerics.arguments import integer, part, real, settle, shown

SHARE = real(lambda x: 0 <= x <= 1, "a share from 0 to 1")
SCARCE = 0.1  # share of the draws above the contour below which the others teach the flow too


class Health(NamedTuple):
    """How the inner kernel has been doing; running means over about ten steps."""

    acceptance: Array  # share of the flow's proposals that were accepted
    unique_fraction: Array  # distinct live points over all live points
    log_envelope: Array  # largest log-weight since the flow was trained, nats
    num_steps: Array  # steps so far


class Moves(NamedTuple):
    """What an inner kernel did besides moving particles."""

    acceptance: Float[Array, " num_delete"]
    num_calls: Array  # likelihood evaluations for each new particle
    draws: Draws  # what the flow drew, with log prior / q; NaN in place of draws that were not made
    training_draws: Draws  # those of them that the flow learns from


class Problem(NamedTuple):
    """The problem on flat vectors, and how large a step is."""

    learner: Learner
    init_state: Callable[..., StateWithLogLikelihood]  # (vector, loglikelihood_birth) of one point
    num_inner_steps: int
    num_delete: int


class AbstractInnerKernel(ABC):
    """How the deleted particles are replaced."""

    @abstractmethod
    def __call__(
        self,
        problem: Problem,
        key: Array,
        live: StateWithLogLikelihood,
        contour: Array,
        proposal: Online,
        health: Health,
    ) -> tuple[StateWithLogLikelihood, Moves]:
        """Draw `num_delete` particles from the prior above the contour.

        Parameters
        ----------
        problem
            Likelihood, learner and sizes.
        key
            Random key.
        live
            All live points, of which the survivors lie above the contour.
        contour
            Log-likelihood to exceed, nats.
        proposal
            The flow.
        health
            How the kernel has been doing.

        Returns:
        -------
        The particles, and what was done.
        """


def require_function(owner: str, name: str, value: Any) -> None:
    """Refuse what cannot be called, and a class."""
    if not callable(value) or isinstance(value, type):
        raise TypeError(f"`{owner}` expected a function as `{name}`; got {shown(value)}.")


def require_state(owner: str, state: Any) -> None:
    """Refuse what is no state of the sampler."""
    if not isinstance(state, AdaptiveNSState):
        raise TypeError(f"`{owner}` expected the state that `init` or `step` returned; got {shown(state)}.")


def flatten(position: Any) -> Array:
    """Positions as an array, one row a particle."""
    return jax.vmap(lambda leaf: ravel_pytree(leaf)[0])(position)


class _Latent(NamedTuple):
    """Particles with their places in the base space; `slice_moves` reads the first two fields."""

    position: Array
    logdensity: Array  # of the prior in the base space, relative to the base's, nats; NaN where there is no inverse
    particle: StateWithLogLikelihood


def _latent(learner: Learner, z: Array, log_flow: Array, particles: StateWithLogLikelihood) -> _Latent:
    return _Latent(z, particles.logdensity - log_flow + jax.vmap(learner.base.log_prob)(z), particles)


@final
@dataclass(frozen=True)
class IndependenceMH(AbstractInnerKernel):
    r"""Metropolis-Hastings with independent proposals from the flow.

    .. math::
        \alpha(x \to x') = \min\left\{1, \frac{\pi(x')\,q(x)}{\pi(x)\,q(x')}\right\} 1[L(x') > L^*] .

    The proposals of all chains and steps are drawn and evaluated in one batch. Where a starting point has no density
    under the flow the chain stays there, as it never could have been proposed.

    Some of the draws move nothing: the flow is to know nothing of the particles that it moves. Taught by the proposals
    themselves it made log Z of a log-gamma in 10-d too large by 0.30 +- 0.08 nats at 10 steps; taught by others, by
    0.06 +- 0.07.

    Parameters
    ----------
    training_share
        Share of the draws of an inner step that train the flow and estimate the evidence; the others are proposals.

    References:
    ----------
    Tierney (1994), "Markov chains for exploring posterior distributions", Section 2.3.2.
    """

    training_share: float = 0.4

    def __post_init__(self) -> None:
        """Refuse values of another kind, or out of range."""
        settle(self, {"training_share": SHARE}, "IndependenceMH.")

    def __call__(
        self,
        problem: Problem,
        key: Array,
        live: StateWithLogLikelihood,
        contour: Array,
        proposal: Online,
        health: Health,  # noqa: ARG002
    ) -> tuple[StateWithLogLikelihood, Moves]:
        """Move chains from random survivors; take the last state of each."""
        last, moves = self.move(problem, key, live, contour, proposal)
        return last.particle, moves

    def move(
        self, problem: Problem, key: Array, live: StateWithLogLikelihood, contour: Array, proposal: Online
    ) -> tuple[_Latent, Moves]:
        """Make the moves; where the chains end in the base space comes with it."""
        if problem.num_inner_steps < 2:
            raise ValueError(
                f"`num_inner_steps` expected 2 or more, as some draws train the flow; got {problem.num_inner_steps}."
            )
        num_chains = problem.num_delete
        num_training = max(1, min(round(self.training_share * problem.num_inner_steps), problem.num_inner_steps - 1))
        num_steps = problem.num_inner_steps - num_training
        key_start, key_draw, key_accept = jax.random.split(key, 3)
        start = _survivors(key_start, live, contour, num_chains)
        all_draws, (proposed, start, log_weight) = _propose(
            problem,
            key_draw,
            proposal,
            problem.num_inner_steps * num_chains,
            num_training * num_chains,
            start,
            contour,
        )
        proposed, draws = jax.tree.map(lambda a: a[: num_steps * num_chains], (proposed, all_draws))
        training_draws = jax.tree.map(lambda a: a[num_steps * num_chains :], all_draws)
        new_log_weight = jnp.where(draws.log_likelihood > contour, draws.log_weight, -jnp.inf)
        log_uniform = jnp.log(jax.random.uniform(key_accept, new_log_weight.shape, log_weight.dtype))
        inputs = ((proposed, new_log_weight), log_uniform)
        by_step = jax.tree.map(lambda a: a.reshape(num_steps, num_chains, *a.shape[1:]), inputs)

        def step(carry: Any, inputs: Any) -> tuple[Any, Array]:
            state, log_weight = carry
            (new, new_log_weight), log_uniform = inputs
            is_accepted = log_uniform < new_log_weight - log_weight
            return (_where(is_accepted, new, state), jnp.where(is_accepted, new_log_weight, log_weight)), is_accepted

        (last, _), is_accepted = jax.lax.scan(step, (start, log_weight), by_step)
        calls = jnp.full(num_chains, problem.num_inner_steps, jnp.int32)
        acceptance = jnp.mean(is_accepted, axis=0, dtype=log_weight.dtype)
        return last, Moves(acceptance, calls, all_draws, training_draws)


@final
@dataclass(frozen=True)
class LatentSlice(AbstractInnerKernel):
    """Slice moves along random directions in the flow's latent space.

    There the prior above a contour is nearly a ball, whatever its shape. Each step also draws `num_delete` points from
    the flow, for the evidence's second estimate and for its training.

    Parameters
    ----------
    max_expansions
        Cap on the expansions of a slice.
    max_shrinkage
        Cap on its shrinkage.

    References:
    ----------
    Neal (2003), "Slice sampling", Sections 4 and 5.
    """

    max_expansions: int = 10
    max_shrinkage: int = 100

    def __post_init__(self) -> None:
        """Refuse values of another kind, or out of range."""
        settle(self, {"max_expansions": integer(0, 10**6), "max_shrinkage": integer(1, 10**6)}, "LatentSlice.")

    def __call__(
        self,
        problem: Problem,
        key: Array,
        live: StateWithLogLikelihood,
        contour: Array,
        proposal: Online,
        health: Health,  # noqa: ARG002
    ) -> tuple[StateWithLogLikelihood, Moves]:
        """Move chains from random survivors; take the last state of each."""
        key_start, key_draw, key_move = jax.random.split(key, 3)
        start = _survivors(key_start, live, contour, problem.num_delete)
        draws, (_, start, _) = _propose(
            problem, key_draw, proposal, problem.num_delete, problem.num_delete, start, contour
        )
        last, acceptance, calls = self.move(problem, key_move, start, contour, proposal, problem.num_inner_steps)
        return last, Moves(acceptance, calls + 1, draws, draws)

    def move(
        self, problem: Problem, key: Array, start: _Latent, contour: Array, proposal: Online, num_steps: int
    ) -> tuple[StateWithLogLikelihood, Array, Array]:
        """Make slice moves from given particles; return these, the share that moved, and the calls."""
        learner, (num_chains, num_dims) = problem.learner, start.position.shape
        dtype = start.position.dtype

        def at(z: Array) -> tuple[_Latent, Array]:
            x, log_q = learner.push(proposal, z)
            particles = jax.vmap(partial(problem.init_state, loglikelihood_birth=contour))(x)
            latent = _latent(learner, z, log_q, particles)
            log_density = jnp.where(jnp.isnan(latent.logdensity), -jnp.inf, latent.logdensity)
            return latent._replace(logdensity=log_density), particles.loglikelihood > contour

        key_direction, key_uniform = jax.random.split(key)
        direction = normal_rows(key_direction, num_chains * num_steps, num_dims, dtype)
        direction = 2 * direction / jnp.linalg.norm(direction, axis=1, keepdims=True)
        num_uniforms = NUM_BEFORE + self.max_shrinkage
        uniforms = jax.random.uniform(key_uniform, (num_chains * num_steps * num_uniforms,), dtype)
        last, acceptance, calls = slice_moves(
            start,
            at,
            direction.reshape(num_chains, num_steps, num_dims),
            uniforms.reshape(num_chains, num_steps, num_uniforms),
            max_expansions=self.max_expansions,
        )
        # What did not move keeps its own coordinates, not those of a way there and back.
        moved = ~jnp.isnan(start.logdensity) & (acceptance > 0)
        return _where(moved, last.particle, start.particle), acceptance, calls


MIXTURE = {
    "independent": part(IndependenceMH),
    "local": part(LatentSlice),
    "num_slices": integer(1, 10**6),
    "min_acceptance": SHARE,
    "min_unique": SHARE,
}


@final
@dataclass(frozen=True)
class Mixture(AbstractInnerKernel):
    """Independent proposals, followed by slice moves while these are rejected too often.

    The choice rests on earlier steps alone, so both ways leave the constrained prior invariant.

    Parameters
    ----------
    independent
        The first kernel.
    local
        The second.
    num_slices
        Slice moves of one chain, of about five calls each.
    min_acceptance
        Share of accepted proposals below which the slices are made.
    min_unique
        Share of distinct live points below which they are made.
    """

    independent: IndependenceMH = field(default_factory=IndependenceMH)
    local: LatentSlice = field(default_factory=LatentSlice)
    num_slices: int = 2
    min_acceptance: float = 0.15
    min_unique: float = 0.75

    def __post_init__(self) -> None:
        """Refuse values of another kind, or out of range."""
        settle(self, MIXTURE, "Mixture.")

    def __call__(
        self,
        problem: Problem,
        key: Array,
        live: StateWithLogLikelihood,
        contour: Array,
        proposal: Online,
        health: Health,
    ) -> tuple[StateWithLogLikelihood, Moves]:
        """Move chains from random survivors; take the last state of each."""
        key_independent, key_local = jax.random.split(key)
        latent, moves = self.independent.move(problem, key_independent, live, contour, proposal)

        def slices() -> tuple[StateWithLogLikelihood, Array]:
            moved, _, calls = self.local.move(problem, key_local, latent, contour, proposal, self.num_slices)
            return moved, calls

        is_poor = (health.acceptance < self.min_acceptance) | (health.unique_fraction < self.min_unique)
        particles, calls = jax.lax.cond(is_poor, slices, lambda: (latent.particle, jnp.zeros_like(moves.num_calls)))
        return particles, moves._replace(num_calls=moves.num_calls + calls)


@final
@dataclass(frozen=True)
class Rejection(AbstractInnerKernel):
    r"""Rejection sampling: accept a draw with probability w / M, w = prior / q.

    M is the largest weight of the live points and of all draws since the flow was trained. New particles owe nothing
    to old ones. At most `num_inner_steps` batches of `num_delete` draws are made; what is missing then are survivors,
    which the share of unique points shows.
    """

    def __call__(
        self,
        problem: Problem,
        key: Array,
        live: StateWithLogLikelihood,
        contour: Array,
        proposal: Online,
        health: Health,
    ) -> tuple[StateWithLogLikelihood, Moves]:
        """Fill the places of the deleted particles."""
        size, num_batches = problem.num_delete, problem.num_inner_steps
        key_start, key_loop = jax.random.split(key)
        live_weights = _log_weight(problem.learner.log_prob(proposal, flatten(live.position)), live, contour)
        nobody = jax.tree.map(lambda a: a[:0], live)
        is_known = (live.loglikelihood > contour) & (live_weights < jnp.inf)
        envelope = jnp.maximum(health.log_envelope, jnp.max(jnp.where(is_known, live_weights, -jnp.inf)))
        dtype = envelope.dtype
        blank = Draws(
            jnp.zeros((num_batches, size, proposal.flow.num_dims), dtype),
            jnp.zeros((num_batches, size), dtype),
            jnp.full((num_batches, size), jnp.nan, dtype),
        )

        def is_unfilled(carry: Any) -> Array:
            i, num_filled, *_ = carry
            return (num_filled < size) & (i < num_batches)

        def one_batch(carry: Any) -> Any:
            i, num_filled, particles, record = carry
            key_draw, key_accept = jax.random.split(jax.random.fold_in(key_loop, i))
            draws, (proposed, *_) = _propose(problem, key_draw, proposal, size, size, nobody, contour)
            log_uniform = jnp.log(jax.random.uniform(key_accept, (size,), dtype))
            is_accepted = (draws.log_likelihood > contour) & (log_uniform < draws.log_weight - envelope)
            # Places beyond the last are dropped, and so are the rejected.
            place = jnp.where(is_accepted, num_filled + jnp.cumsum(is_accepted) - 1, size)
            particles = jax.tree.map(lambda old, new: old.at[place].set(new, mode="drop"), particles, proposed.particle)
            record = jax.tree.map(lambda old, new: old.at[i].set(new), record, draws)
            return i + 1, num_filled + jnp.sum(is_accepted), particles, record

        start = (jnp.int32(0), jnp.zeros((), int), _survivors(key_start, live, contour, size), blank)
        i, num_filled, particles, record = jax.lax.while_loop(is_unfilled, one_batch, start)
        draws = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), record)
        acceptance = jnp.full(size, (num_filled / (i * size)).astype(dtype))
        return particles, Moves(acceptance, jnp.full(size, i), draws, draws)


def _survivors(key: Array, live: StateWithLogLikelihood, contour: Array, num: int) -> StateWithLogLikelihood:
    """Random live points above the contour; random live points if all lie on it."""
    num_live, num_above = len(live.loglikelihood), jnp.sum(live.loglikelihood > contour)
    # `jax.random.choice` takes half a second to compile.
    place = jax.random.randint(key, (num,), 0, jnp.where(num_above > 0, num_above, num_live))
    index = jnp.argsort(-live.loglikelihood)[place]
    return jax.tree.map(lambda a: a[index], live)


def _propose(
    problem: Problem,
    key: Array,
    proposal: Online,
    num: int,
    num_training: int,
    chains: StateWithLogLikelihood,
    contour: Array,
) -> tuple[Draws, tuple[_Latent, _Latent, Array]]:
    """Draw from the flow and evaluate, and see where chains stand; a draw without a density has weight zero.

    Where few lie above the contour the last `num_training` of the draws have their weights below it too. Returns the
    draws, their particles, the chains, and the log-weights of these.
    """
    learner = problem.learner
    draws = learner.draw(key, proposal, num)
    particles = jax.vmap(partial(problem.init_state, loglikelihood_birth=jnp.nan))(draws.x)
    # The density of a draw below the contour is asked for only where so few lie above that it helps to train the flow.
    is_above = (particles.loglikelihood > contour) & (particles.logdensity > -jnp.inf)
    is_scarce = jnp.sum(is_above) < SCARCE * num
    is_wanted = is_above | is_scarce & (jnp.arange(num) >= num - num_training)
    placed = learner.place(proposal, draws, flatten(chains.position), is_wanted)
    drawn, known = (jax.tree.map(lambda a, rows=rows: a[rows], placed) for rows in (slice(num), slice(num, None)))
    log_weight = particles.logdensity - drawn.log_prob
    log_weight = jnp.where(jnp.isnan(log_weight), -jnp.inf, log_weight)
    return Draws(drawn.x, particles.loglikelihood, log_weight), (
        _latent(learner, drawn.z, drawn.log_flow, particles),
        _latent(learner, known.z, known.log_flow, chains),
        _log_weight(known.log_prob, chains, contour),
    )


def _log_weight(log_q: Array, state: StateWithLogLikelihood, contour: Array) -> Array:
    """Log of prior over flow density; +inf where there is none, -inf for what must leave a plateau at the contour."""
    log_weight = jnp.where(jnp.isnan(log_q), jnp.inf, state.logdensity - log_q)
    return jnp.where(state.loglikelihood > contour, log_weight, -jnp.inf)


def _where(condition: Array, new: Any, old: Any) -> Any:
    """Choose rows of two trees."""
    pick = lambda a, b: jnp.where(condition.reshape(-1, *(1,) * (a.ndim - 1)), a, b)  # noqa: E731
    return jax.tree.map(pick, new, old)
