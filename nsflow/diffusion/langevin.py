r"""Langevin dynamics: noisy descents of a potential L whose stationary density is the Gibbs distribution.

With a step size :math:`\eta` and noise :math:`\eta \sigma \xi` the temperature is :math:`T = \eta \sigma^2 / 2` and the
stationary density :math:`\exp(-L/T) = \exp(-2L / (\eta \sigma^2))`. All functions move one point; `jax.vmap` them.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from nsflow.flow.path import AbstractPath

LogProb = Callable[[Array], Array]


def unadjusted_langevin(
    key: Array, score: Callable[[Array], Array], x: Float[Array, " d"], step_size: Any, temperature: Any = 1.0
) -> Float[Array, " d"]:
    r"""One step of the unadjusted Langevin algorithm.

    .. math:: x' = x - \eta \nabla L(x) + \sqrt{2 \eta T}\,\xi, \qquad \xi \sim N(0, I) .

    Its stationary density is the Gibbs distribution up to an error of order :math:`\eta`: for a Gaussian of variance
    :math:`v T` the variance is :math:`v T / (1 - \eta / 2v)`.

    Args:
        key: JAX random key.
        score: :math:`-\nabla L`, the gradient of the log-density at temperature 1.
        x: The point.
        step_size: eta.
        temperature: T.

    Returns:
        The next point.

    Example:
        >>> step = lambda key, x: unadjusted_langevin(key, lambda x: -x, x, 0.1)
        >>> x = run_chain(jax.random.key(0), step, jnp.zeros(2), 1000)
        >>> x.shape
        (1000, 2)

    References:
        Roberts & Tweedie (1996), *Exponential Convergence of Langevin Distributions*, Eq. 4.
    """
    noise = jax.random.normal(key, x.shape, x.dtype)
    return x + step_size * score(x) + jnp.sqrt(jnp.asarray(2 * step_size * temperature, x.dtype)) * noise


def metropolis_langevin(
    key: Array, log_prob: LogProb, x: Float[Array, " d"], step_size: Any, temperature: Any = 1.0
) -> tuple[Float[Array, " d"], Bool[Array, ""]]:
    r"""One step of the Metropolis-adjusted Langevin algorithm, whose stationary density is exact.

    .. math:: a = \min\Bigl(1, \frac{p(x')\,N(x; x' - \eta \nabla L(x'), 2 \eta T)}
        {p(x)\,N(x'; x - \eta \nabla L(x), 2 \eta T)}\Bigr), \qquad p = e^{-L/T} .

    Args:
        key: JAX random key.
        log_prob: :math:`-L`, the log-density at temperature 1 up to a constant.
        x: The point.
        step_size: eta.
        temperature: T.

    Returns:
        ``(x, accepted)``: the next point, and whether it is a new one.

    References:
        Roberts & Tweedie (1996), Eq. 7; Besag (1994), in the discussion of Grenander & Miller.
    """
    key_step, key_accept = jax.random.split(key)
    value_and_score = jax.value_and_grad(log_prob)
    value, score = value_and_score(x)
    proposed = unadjusted_langevin(key_step, lambda _: score, x, step_size, temperature)
    proposed_value, proposed_score = value_and_score(proposed)

    def log_step(start: Array, score: Array, end: Array) -> Array:
        return -jnp.sum((end - start - step_size * score) ** 2) / (4 * step_size * temperature)

    log_ratio = (proposed_value - value) / temperature
    log_ratio += log_step(proposed, proposed_score, x) - log_step(x, score, proposed)
    accepted = jnp.log(jax.random.uniform(key_accept, dtype=x.dtype)) < log_ratio  # NaN is a refusal
    return jnp.where(accepted, proposed, x), accepted


def annealed_langevin(
    key: Array,
    score: Callable[[Array, Array], Array],
    path: AbstractPath,
    times: Float[Array, " k"],
    x: Float[Array, " d"],
    *,
    num_steps: int = 100,
    step_size: float = 0.1,
) -> Float[Array, " d"]:
    r"""Unadjusted Langevin steps at one noise scale after another, the noise falling.

    .. math:: \eta_k = \eta\,\sigma(t_k)^2 .

    Args:
        key: JAX random key.
        score: Score of the points on the path, called as ``score(t, x)``.
        path: The path, for its sigma.
        times: Increasing times of the path, one for each noise scale.
        x: Where to start, a draw of about the first marginal.
        num_steps: Steps at each noise scale.
        step_size: eta, the step in units of the squared noise.

    Returns:
        A point of about the last marginal.

    References:
        Song & Ermon (2019), *Generative Modeling by Estimating Gradients of the Data Distribution*, Algorithm 1, whose
        step size is :math:`\eta` twice.
    """

    def at_scale(x: Array, inputs: tuple[Array, Array]) -> tuple[Array, None]:
        t, key = inputs
        move = lambda key, x: unadjusted_langevin(key, lambda x: score(t, x), x, step_size * path.sigma(t) ** 2)  # noqa: E731
        return jax.lax.scan(lambda x, key: (move(key, x), None), x, jax.random.split(key, num_steps))

    return jax.lax.scan(at_scale, x, (times, jax.random.split(key, len(times))))[0]


def run_chain(
    key: Array, step: Callable[[Array, Array], Array], x: Float[Array, " d"], num_steps: int
) -> Float[Array, "n d"]:
    """Repeat a step of one point.

    Args:
        key: JAX random key.
        step: Called as ``step(key, x)``, returns the next point.
        x: Where to start.
        num_steps: How often.

    Returns:
        All points after the first, shape ``(num_steps, d)``.
    """

    def move(x: Array, key: Array) -> tuple[Array, Array]:
        x = step(key, x)
        return x, x

    return jax.lax.scan(move, x, jax.random.split(key, num_steps))[1]
