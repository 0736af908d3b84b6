"""The draws that a flow learns from while another sampler runs: a ring of the most recent ones, of fixed shapes."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp
from jaxtyping import Array, Float, Int

SMALLEST_MASS = 0.01  # share of the training points that is not emphasised within: a few dozen effective points


class Draws(NamedTuple):
    """Evaluated points with importance weights."""

    x: Float[Array, "n d"]
    log_likelihood: Float[Array, " n"]  # nats
    log_weight: Float[Array, " n"]  # log of prior over proposal density, nats; -inf for what cannot be used


class TrainingSet(NamedTuple):
    """Draws in the order of their likelihood, the highest first."""

    x: Float[Array, "n d"]
    weights: Float[Array, " n"]  # normalised; zero for what is not used
    place: Int[Array, " n"]  # in the ring


class Pool(NamedTuple):
    """A ring of the most recent draws."""

    draws: Draws
    num_observed: Array  # draws so far

    @classmethod
    def start(cls, live: Draws, size: int) -> "Pool":
        """Begin with the first live points, and empty places after them."""
        missing = size - len(live.x)
        draws = Draws(
            jnp.pad(live.x, ((0, missing), (0, 0))),
            jnp.pad(live.log_likelihood, (0, missing), constant_values=-jnp.inf),
            jnp.pad(live.log_weight, (0, missing), constant_values=-jnp.inf),
        )
        return cls(draws, jnp.int32(len(live.x)))

    def observe(self, draws: Draws) -> "Pool":
        """Put draws in the place of the oldest; a log-weight of NaN is that of a draw that was not made."""
        size = len(self.draws.log_weight)
        draws = draws._replace(log_weight=jnp.where(draws.log_weight < jnp.inf, draws.log_weight, -jnp.inf))
        newest = jax.tree.map(lambda column: column[-size:], draws)
        index = (self.num_observed + jnp.arange(len(newest.log_weight))) % size
        kept = jax.tree.map(lambda old, new: jnp.asarray(old).at[index].set(new), self.draws, newest)
        return Pool(kept, self.num_observed + len(newest.log_weight))

    def without_live(self, num_live: int) -> Draws:
        """The draws without the first live points, once there are as many and any counts: the sampler moves those."""
        size = len(self.draws.x)
        place = jnp.arange(size)
        is_live = (place < num_live) & (place + size >= self.num_observed)
        others = jnp.where(is_live, -jnp.inf, self.draws.log_weight)
        is_replaced = (self.num_observed >= 2 * num_live) & jnp.any(others > -jnp.inf)
        return self.draws._replace(log_weight=jnp.where(is_replaced, others, self.draws.log_weight))

    def training_set(self, num_live: int, contour: Any, emphasis: float) -> TrainingSet:
        """Draws above a contour, or the highest of which a quarter of `num_live` are effective, with emphasis."""
        draws = self.without_live(num_live)
        place = jnp.argsort(-draws.log_likelihood)
        draws = Draws(*(column[place] for column in draws))
        weights = _weights_above(draws, contour, num_live / 4)
        x = jnp.where(weights[:, None] > 0, draws.x, jnp.zeros_like(draws.x))
        return TrainingSet(x, _emphasise(weights, draws.log_likelihood, emphasis), place)


def _weights_above(draws: Draws, contour: Any, min_ess: float) -> Array:
    """Normalised weights of sorted draws above a contour, or of the highest that have enough effective ones."""
    is_above = draws.log_likelihood > contour
    log_weight = jnp.where(is_above, draws.log_weight, -jnp.inf)
    log_weight = jnp.where(jnp.any(log_weight > -jnp.inf), log_weight, draws.log_weight)
    # As `points.truncate`: no draw can be most of a training set.
    cap = logsumexp(log_weight) - 0.5 * jnp.log(jnp.sum(log_weight > -jnp.inf).astype(log_weight.dtype))
    weights = jnp.exp(jnp.minimum(draws.log_weight, cap) - cap)
    ess = jnp.cumsum(weights) ** 2 / jnp.maximum(jnp.cumsum(weights**2), jnp.finfo(weights.dtype).tiny)
    lowest = draws.log_likelihood[jnp.argmax((ess >= min_ess) | (ess >= jnp.max(ess)))]
    weights = jnp.where(is_above | (draws.log_likelihood >= lowest), weights, jnp.zeros_like(weights))
    return weights / jnp.sum(weights)


def _emphasise(weights: Array, log_likelihood: Array, exponent: float) -> Array:
    """Weights, sorted, times a power of the prior mass above each: a mixture of the priors above contours from here."""
    # Points of one height have all the same mass above.
    last = jnp.searchsorted(-log_likelihood, -log_likelihood, side="right") - 1
    mass = jnp.cumsum(weights)[last]
    weights = weights * jnp.maximum(mass, SMALLEST_MASS) ** -exponent
    return weights / jnp.sum(weights)
