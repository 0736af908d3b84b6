"""Teach a field from weighted rows. The home of optax."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, no_type_check

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.tree_util import Partial
from jaxtyping import Array, Float

from nsflow.flow.objective import AbstractFlowObjective, AbstractObjective
from nsflow.flow.path import AbstractPath, TrigonometricPath
from nsflow.flow.velocity import Architecture
from nsflow.numerics.arguments import instance, integer, optional, real, settle

RULES = {
    "path": instance(AbstractPath, "a probability path, such as nsflow.flow.TrigonometricPath()"),
    "objective": optional(instance(AbstractFlowObjective, "an objective of flows, such as FlowMatching(path)")),
    "architecture": optional(instance(Architecture, "an nsflow.flow.Architecture, or None")),
    "num_steps": integer(1, 10**8),
    "batch_size": integer(1, 10**7),
    "learning_rate": real(lambda x: 0 < x <= 100, "a positive number of at most 100"),
    "weight_decay": real(lambda x: 0 <= x <= 1e6, "a number from 0 to 1e6"),
    "ema": real(lambda x: 0 <= x < 1, "a number from 0 to below 1"),
    "steps_per_score": integer(1, 10**8),
    "patience": integer(1),
    "held_out": real(lambda x: 0 < x < 1, "a share between 0 and 1"),
    "integration_steps": optional(integer(1, 10**6)),
}


@no_type_check  # its own messages come before a run-time checker's
@dataclass(frozen=True)
class Training:
    """How a field is trained.

    Args:
        path: Probability path between base and data.
        objective: What a flow is taught by: flow matching, score matching, action matching or maximum likelihood, with
            a path of its own. Flow matching along `path` if left out.
        architecture: Size of the network; :meth:`Architecture.of_dims` if left out.
        num_steps: Largest number of gradient steps.
        batch_size: Rows in one step.
        learning_rate: Peak of the cosine schedule.
        weight_decay: Pull of the weights towards zero, relative to the learning rate; decoupled from the gradient.
        ema: Decay of the exponential moving average of the weights, which is what a fit returns.
        steps_per_score: Steps between two looks at the held-out points.
        patience: Looks without a gain after which training stops.
        held_out: Share of the points that is kept for scoring and never trained on.
        integration_steps: Runge-Kutta steps of the flow, doubled up to 32 where the held-out density gains by it. If
            left out, 6 and more in few dimensions, where they are cheap and modes are sharpest. Fewer make the inverse
            dearer, not cheaper: with 4, corrections failed at so many points of a 10-d LogGamma that Newton's method
            took half as long again, at a density 0.01 nats worse.

    Raises:
        TypeError: If the path, the objective or the architecture is something else.
        ValueError: If a number is out of range.
    """

    path: AbstractPath = field(default_factory=TrigonometricPath)
    objective: AbstractFlowObjective | None = None
    architecture: Architecture | None = None
    num_steps: int = 2000
    batch_size: int = 256
    learning_rate: float = 3e-3
    weight_decay: float = 0.0
    ema: float = 0.99
    steps_per_score: int = 200
    patience: int = 2
    held_out: float = 0.1
    integration_steps: int | None = None

    def __post_init__(self) -> None:
        """Refuse values that no training could use."""
        settle(self, RULES, "Training.")


class TrainingInfo(NamedTuple):
    """What happened in one training."""

    num_steps: int  # gradient steps made
    losses: tuple[float, ...]  # mean training loss between two looks
    scores: tuple[float, ...]  # held-out log-density at each look, in nats; the first is the untrained field's
    best: int  # index of the kept look; 0 means that the field stayed as it was


class TrainState(NamedTuple):
    """A field in training."""

    weights: Any  # pytree of the field's arrays
    average: Any  # their exponential moving average
    optimizer: Any


def train(
    key: Array,
    field: Partial,
    rows: Float[np.ndarray, "n k"],
    log_weights: Float[np.ndarray, " n"],
    *,
    objective: AbstractObjective,
    training: Training,
    score: Callable[[Partial], float],
    score_now: float,
) -> tuple[Partial, TrainingInfo]:
    """Train a field and keep the weights that score best.

    Minibatches are systematic resamples in proportion to the weights: weighting the loss instead lets a few heavy
    points set the gradient's noise. The minimiser of the flow matching loss over a finite set memorises the set, so
    the number of steps is chosen by `score` on points that were held out.

    Args:
        key: JAX random key.
        field: The field, a callable pytree.
        rows: Training set; for a velocity, whitened points.
        log_weights: Their log-weights in nats, up to a constant.
        objective: What the field is taught by.
        training: Options.
        score: Quality of a field on held-out rows; larger is better.
        score_now: The score of `field` as it comes in.

    Returns:
        The field with the best score, which may be the one that came in, and what happened.
    """
    rows, quantiles = _pad(np.asarray(rows, np.float32), log_weights)
    rates = _learning_rates(training)
    state = start(field)
    best, losses, scores = field, [], [score_now]
    for look in range(1, len(rates) + 1):
        state, loss = train_steps(
            jax.random.fold_in(key, look),
            state,
            rows,
            quantiles,
            rates[look - 1],
            objective=objective,
            batch_size=training.batch_size,
            ema=training.ema,
            weight_decay=training.weight_decay,
        )
        losses.append(float(loss))
        scores.append(score(state.average))
        if int(np.nanargmax(scores)) == look:
            best = state.average
        if look - int(np.nanargmax(scores)) >= training.patience:
            break
    info = TrainingInfo(len(losses) * training.steps_per_score, tuple(losses), tuple(scores), int(np.nanargmax(scores)))
    return best, info


def _pad(rows: np.ndarray, log_weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Give the training set one of a few sizes, each of which compiles once; return it with its weight quantiles."""
    size = 4096
    while size < len(rows):
        size *= 4
    weights = np.exp(log_weights - log_weights.max())
    quantiles = np.ones(size)
    quantiles[: len(rows)] = np.cumsum(weights) / weights.sum()
    return np.pad(rows, ((0, size - len(rows)), (0, 0))), quantiles


def _learning_rates(training: Training) -> np.ndarray:
    """Warm-up and cosine decay, one row for each look; an input, so that all schedules share one compilation."""
    num_looks = -(-training.num_steps // training.steps_per_score)
    done = np.arange(num_looks * training.steps_per_score) / (num_looks * training.steps_per_score)
    rates = training.learning_rate * np.minimum(done / 0.05, 0.51 + 0.49 * np.cos(np.pi * done))
    return rates.astype(np.float32).reshape(num_looks, training.steps_per_score)


OPTIMIZER = optax.chain(optax.clip_by_global_norm(1.0), optax.scale_by_adam())


def start(field: Any) -> TrainState:
    """The state of a field that has not been trained."""
    return TrainState(field, field, OPTIMIZER.init(field))


@partial(jax.jit, static_argnames=("objective", "batch_size", "ema", "weight_decay"))
def train_steps(
    key: Array,
    state: TrainState,
    rows: Array,
    quantiles: Array,
    rates: Array,
    *,
    objective: AbstractObjective,
    batch_size: int,
    ema: float,
    weight_decay: float = 0.0,
) -> tuple[TrainState, Array]:
    """Make one gradient step for each learning rate.

    Args:
        key: JAX random key.
        state: The field so far.
        rows: Training set, shape ``(n, k)``.
        quantiles: Cumulated weights of the rows, the last of them 1, shape ``(n,)``.
        rates: Learning rates, shape ``(num_steps,)``.
        objective: What the field is taught by.
        batch_size: Rows in one step.
        ema: Decay of the average of the weights.
        weight_decay: Pull of the weights towards zero, relative to the learning rate.

    Returns:
        The field after the steps, and their mean loss.
    """

    def step(state: TrainState, inputs: tuple[Array, Array]) -> tuple[TrainState, Array]:
        key, rate = inputs
        key_rows, key_loss = jax.random.split(key)
        batch = resample(key_rows, rows, quantiles, batch_size)
        loss, gradient = jax.value_and_grad(lambda field: objective(key_loss, field, batch))(state.weights)
        updates, optimizer_state = OPTIMIZER.update(gradient, state.optimizer, state.weights)
        if weight_decay:
            updates = jax.tree.map(lambda u, w: u + weight_decay * w, updates, state.weights)
        weights = optax.apply_updates(state.weights, jax.tree.map(lambda u: -rate * u, updates))
        average = optax.incremental_update(weights, state.average, 1 - ema)
        return TrainState(weights, average, optimizer_state), loss

    state, losses = jax.lax.scan(step, state, (jax.random.split(key, rates.shape[0]), rates))
    return state, jnp.mean(losses)


def resample(key: Array, rows: Array, quantiles: Array, size: int) -> Array:
    """Systematic resample of rows by their cumulated weights, in their order."""
    comb = (jnp.arange(size, dtype=quantiles.dtype) + jax.random.uniform(key, (), quantiles.dtype)) / size
    return rows[jnp.searchsorted(quantiles, comb)]
