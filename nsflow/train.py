"""Teach a velocity field from weighted points. The home of optax."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.tree_util import Partial
from jaxtyping import Array, Float

from nsflow.objective import flow_matching
from nsflow.path import AbstractPath, TrigonometricPath
from nsflow.velocity import Architecture


@dataclass(frozen=True)
class Training:
    """How a velocity field is trained.

    Args:
        path: Probability path between base and data.
        architecture: Size of the network.
        num_steps: Largest number of gradient steps.
        batch_size: Pairs (x0, x1) in one step.
        learning_rate: Peak of the cosine schedule.
        ema: Decay of the exponential moving average of the weights, which is what a fit returns.
        steps_per_score: Steps between two looks at the held-out points.
        patience: Looks without a gain after which training stops.
        held_out: Share of the points that is kept for scoring and never trained on.
        integration_steps: Runge-Kutta steps of the flow; doubled up to 32 where the held-out density gains by it.
    """

    path: AbstractPath = field(default_factory=TrigonometricPath)
    architecture: Architecture = field(default_factory=Architecture)
    num_steps: int = 2000
    batch_size: int = 256
    learning_rate: float = 3e-3
    ema: float = 0.99
    steps_per_score: int = 200
    patience: int = 2
    held_out: float = 0.1
    integration_steps: int = 8


class TrainingInfo(NamedTuple):
    """What happened in one training."""

    num_steps: int  # gradient steps made
    losses: tuple[float, ...]  # mean training loss between two looks
    scores: tuple[float, ...]  # held-out log-density at each look, in nats; the first is the untrained field's
    best: int  # index of the kept look; 0 means that the field stayed as it was


class _State(NamedTuple):
    weights: Any  # pytree of the field's arrays
    average: Any  # their exponential moving average
    optimizer: Any


def fit(
    key: Array,
    velocity: Partial,
    points: Float[np.ndarray, "n d"],
    log_weights: Float[np.ndarray, " n"],
    *,
    training: Training,
    score: Callable[[Partial], float],
) -> tuple[Partial, TrainingInfo]:
    """Train a field on whitened points and keep the weights that score best.

    Minibatches are systematic resamples in proportion to the weights: weighting the loss instead lets a few heavy
    points set the gradient's noise. The minimiser of the flow matching loss over a finite set memorises the set, so
    the number of steps is chosen by `score` on points that were held out.

    Args:
        key: JAX random key.
        velocity: The field, a callable pytree ``velocity(t, x)``.
        points: Whitened training points.
        log_weights: Their log-weights in nats, up to a constant.
        training: Options.
        score: Held-out log-density of a field in nats; larger is better.

    Returns:
        The field with the best score, which may be the one that came in, and what happened.
    """
    points, quantiles = _pad(np.asarray(points, np.float32), log_weights)
    state = _State(velocity, velocity, _optimizer(training).init(velocity))
    best, losses, scores = velocity, [], [score(velocity)]
    num_looks = -(-training.num_steps // training.steps_per_score)
    for look in range(1, num_looks + 1):
        state, loss = _train_steps(jax.random.fold_in(key, look), state, points, quantiles, training)
        losses.append(float(loss))
        scores.append(score(state.average))
        if scores[-1] >= np.nanmax(scores):
            best = state.average
        if look - int(np.nanargmax(scores)) >= training.patience:
            break
    info = TrainingInfo(look * training.steps_per_score, tuple(losses), tuple(scores), int(np.nanargmax(scores)))
    return best, info


def _pad(points: np.ndarray, log_weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Give the training set one of a few sizes, so that few shapes compile; return it with its weight quantiles."""
    size = 256
    while size < len(points):
        size *= 2
    weights = np.exp(log_weights - log_weights.max())
    quantiles = np.ones(size)
    quantiles[: len(points)] = np.cumsum(weights) / weights.sum()
    return np.pad(points, ((0, size - len(points)), (0, 0))), quantiles


def _optimizer(training: Training) -> optax.GradientTransformation:
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, training.learning_rate, min(100, training.num_steps // 4), training.num_steps, 0.02 * training.learning_rate
    )
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))


@partial(jax.jit, static_argnames="training")
def _train_steps(key: Array, state: _State, points: Array, quantiles: Array, training: Training) -> tuple[_State, Array]:
    optimizer = _optimizer(training)

    def batch_loss(velocity: Partial, key: Array) -> Array:
        t, x0, x1 = _minibatch(key, points, quantiles, training.batch_size)
        losses = jax.vmap(flow_matching, (None, None, 0, 0, 0))(velocity, training.path, t, x0, x1)
        return jnp.mean(losses)

    def step(state: _State, key: Array) -> tuple[_State, Array]:
        loss, gradient = jax.value_and_grad(batch_loss)(state.weights, key)
        updates, optimizer_state = optimizer.update(gradient, state.optimizer, state.weights)
        weights = optax.apply_updates(state.weights, updates)
        average = optax.incremental_update(weights, state.average, 1 - training.ema)
        return _State(weights, average, optimizer_state), loss

    state, losses = jax.lax.scan(step, state, jax.random.split(key, training.steps_per_score))
    return state, jnp.mean(losses)


def _minibatch(key: Array, points: Array, quantiles: Array, size: int) -> tuple[Array, Array, Array]:
    """Stratified times, base draws and a systematic resample of the data, paired at random."""
    key_t, key_x0, key_x1 = jax.random.split(key, 3)
    strata = (jnp.arange(size) + jax.random.uniform(key_t, (size,), jnp.float32)) / size
    x0 = jax.random.normal(key_x0, (size, points.shape[1]), jnp.float32)
    comb = (jnp.arange(size) + jax.random.uniform(key_x1)) / size
    # x0 is independent of its index, so the order of the resample need not be shuffled; t must be.
    t = jax.random.permutation(jax.random.fold_in(key_t, 1), strata)
    return t, x0, points[jnp.searchsorted(quantiles, comb)]
