"""Slice moves of many chains at once, in one loop with one evaluation of each chain."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

NUM_BEFORE = 3  # uniform numbers of a move before it shrinks: its level, where its bracket lies, how far each end goes


class _Bracket(NamedTuple):
    """One chain within a move, which starts at t = 0."""

    ends: Float[Array, " 2"]
    steps_left: Int[Array, " 2"]  # by how many widths each end may still be moved
    level: Float[Array, ""]
    phase: Int[Array, ""]  # 0 and 1 while that end is moved, then 2
    num_shrunk: Int[Array, ""]


class _Chain(NamedTuple):
    """One chain and its bracket."""

    state: Any
    bracket: _Bracket
    num_moves: Int[Array, ""]
    num_accepted: Int[Array, ""]
    num_calls: Int[Array, ""]


def slice_moves(
    states: Any,
    evaluate: Callable[[Float[Array, "n d"]], tuple[Any, Bool[Array, " n"]]],
    directions: Float[Array, "n m d"],
    uniforms: Float[Array, "n m k"],
    *,
    max_expansions: int,
) -> tuple[Any, Float[Array, " n"], Int[Array, " n"]]:
    """Move chains along given lines, by stepping out and shrinkage.

    `blackjax.mcmc.slice` evaluates its candidates at five places, of which each is compiled, and lets all chains wait
    for the slowest one three times in each move. Here every chain goes on at its own pace.

    Args:
        states: Where the chains are, a NamedTuple with `position`, shape ``(n, d)``, and `logdensity`, shape ``(n,)``;
            one whose log-density is NaN is not moved.
        evaluate: Such states at given positions, and whether these are allowed.
        directions: Direction of each of m moves, as long as the first bracket.
        uniforms: Random numbers in [0, 1), k for each move, which stays where it is after ``k - 3`` shrinkages.
        max_expansions: Largest number of lengths that a bracket may have.

    Returns:
        The states, the share of the moves that were accepted, and the evaluations of each chain.

    Example:
        >>> from blackjax.mcmc.slice import SliceState
        >>> normal = lambda x: (SliceState(x, -0.5 * jnp.sum(x**2, axis=1)), jnp.ones(len(x), bool))
        >>> start, _ = normal(jnp.zeros((4000, 1)))
        >>> uniforms = jax.random.uniform(jax.random.key(0), (4000, 5, 53))
        >>> end, accepted, num_calls = slice_moves(start, normal, jnp.ones((4000, 5, 1)), uniforms, max_expansions=10)
        >>> bool(abs(jnp.std(end.position) - 1) < 0.05), float(jnp.min(accepted))
        (True, 1.0)

    References:
        Neal (2003), "Slice sampling", Figures 3 and 5.
    """
    num_moves, max_shrinkage = directions.shape[1], uniforms.shape[2] - NUM_BEFORE
    move_end = jnp.array([-1, 1], directions.dtype)
    count = lambda a: a.astype(jnp.int32)  # noqa: E731

    def begin(state: Any, uniform: Array) -> _Bracket:
        left = -uniform[1]
        steps_left = jnp.floor(max_expansions * uniform[2]).astype(jnp.int32)
        return _Bracket(
            ends=jnp.stack([left, left + 1]),
            steps_left=jnp.stack([steps_left, max_expansions - 1 - steps_left]),
            level=state.logdensity + jnp.log(uniform[0]),
            phase=jnp.int32(0),
            num_shrunk=jnp.int32(0),
        )

    def place(bracket: _Bracket, uniform: Array) -> Array:
        left, right = bracket.ends
        inside = left + uniform[NUM_BEFORE + bracket.num_shrunk] * (right - left)
        return jnp.where(bracket.phase == 2, inside, jnp.where(bracket.phase == 0, left, right))

    def advance(chain: _Chain, t: Array, candidate: Any, is_valid: Array, uniforms: Array) -> _Chain:
        bracket, is_moving = chain.bracket, chain.num_moves < num_moves
        is_in_slice = is_valid & (candidate.logdensity >= bracket.level)
        is_shrinking = bracket.phase == 2
        # Step out, or turn to the next end.
        is_end = jnp.arange(2) == bracket.phase
        expands = is_end & is_in_slice & (bracket.steps_left > 0)
        phase = bracket.phase + count(~is_shrinking & ~jnp.any(expands))
        # Or shrink, or end the move.
        shrinks = is_shrinking & jnp.stack([t < 0, t >= 0])
        ends = jnp.where(shrinks, t, bracket.ends + jnp.where(expands, move_end, jnp.zeros_like(move_end)))
        num_shrunk = bracket.num_shrunk + count(is_shrinking)
        is_accepted = is_moving & is_shrinking & is_in_slice
        is_over = is_moving & is_shrinking & (is_in_slice | (num_shrunk >= max_shrinkage))
        state = jax.tree.map(lambda new, old: jnp.where(is_accepted, new, old), candidate, chain.state)
        index = chain.num_moves + count(is_over)
        bracket = _Bracket(ends, bracket.steps_left - count(expands), bracket.level, phase, num_shrunk)
        bracket = jax.tree.map(
            lambda new, old: jnp.where(is_over, new, old), begin(state, uniforms[index % num_moves]), bracket
        )
        return _Chain(
            state, bracket, index, chain.num_accepted + count(is_accepted), chain.num_calls + count(is_moving)
        )

    def step(chains: _Chain) -> _Chain:
        row, move = jnp.arange(len(chains.num_moves)), chains.num_moves % num_moves
        t = jax.vmap(place)(chains.bracket, uniforms[row, move])
        candidates, is_valid = evaluate(chains.state.position + t[:, None] * directions[row, move])
        return jax.vmap(advance)(chains, t, candidates, is_valid, uniforms)

    zero = jnp.zeros(len(directions), jnp.int32)
    start = jnp.where(jnp.isnan(states.logdensity), jnp.full_like(zero, num_moves), zero)
    chains = _Chain(states, jax.vmap(begin)(states, uniforms[:, 0]), start, zero, zero)
    chains = jax.lax.while_loop(lambda chains: jnp.any(chains.num_moves < num_moves), step, chains)
    return chains.state, chains.num_accepted.astype(directions.dtype) / num_moves, chains.num_calls
