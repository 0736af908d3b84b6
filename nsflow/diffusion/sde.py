"""Stochastic differential equations: forward processes simulated, and reversed by a score."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from nsflow.diffusion.langevin import unadjusted_langevin
from nsflow.diffusion.process import AbstractProcess
from nsflow.flow.path import AbstractPath

Field = Callable[[Array, Array], Array]

# ------------------------------------------------------------- processes from noise to data


@final
@dataclass(frozen=True)
class ReverseProcess(AbstractProcess):
    r"""A forward process run backwards; its time is :math:`\tau = 1 - t`.

    .. math:: dX = \bigl[-\mu + \tfrac12 (1 + \lambda^2)\,g^2\,\nabla \log p_t\bigr]\,d\tau + \lambda\,g\,dW .

    All lambda have the same marginals: 1 is the time reversal, 0 the probability-flow ODE. The forward process need not
    be linear.

    Args:
        process: The forward process.
        score: Score of its marginals, called as ``score(t, x)`` with the forward time.
        stochasticity: lambda.

    References:
        Anderson (1982), *Reverse-Time Diffusion Equation Models*; Song et al. (2021), *Score-Based Generative Modeling
        through Stochastic Differential Equations*, Eqs. 6 and 13; Huang et al. (2021), *A Variational Perspective on
        Diffusion-Based Generative Models and Score Matching*, Eq. 18, for lambda.
    """

    process: AbstractProcess
    score: Field
    stochasticity: float = 1.0

    def drift(self, t: Float[Array, ""], x: Float[Array, " d"]) -> Float[Array, " d"]:
        """Drift of one point."""
        variance = self.process.diffusion(1 - t) ** 2
        pull = 0.5 * (1 + self.stochasticity**2) * variance * self.score(1 - t, x)
        return pull - self.process.drift(1 - t, x)

    def diffusion(self, t: Float[Array, ""]) -> Float[Array, ""]:
        """Diffusion coefficient."""
        return self.stochasticity * self.process.diffusion(1 - t)


@final
@dataclass(frozen=True)
class PathProcess(AbstractProcess):
    r"""A process from the base of a path to its data, with noise of any level.

    .. math:: dX = \bigl[v + \tfrac12 \epsilon^2\,\nabla \log p_t\bigr]\,dt + \epsilon\,dW,
        \qquad \epsilon(t) = \lambda\,\sigma(t)^{1/2} .

    An interpolant's own forward process has an infinite diffusion at the base; this one is finite everywhere and so is
    its drift, for :math:`\epsilon^2 \nabla \log p_t = -\lambda^2\,E[x_0 \mid x_t]`.

    Args:
        path: The path between N(0, I) and data.
        noise: Mean of :math:`x_0` given a point, called as ``noise(t, x)``.
        stochasticity: lambda; 0 is the probability-flow ODE.

    References:
        Albergo et al. (2023), *Stochastic Interpolants*, Eq. 2.20 and Corollary 2.10.
    """

    path: AbstractPath
    noise: Field
    stochasticity: float = 1.0

    def drift(self, t: Float[Array, ""], x: Float[Array, " d"]) -> Float[Array, " d"]:
        """Drift of one point."""
        noise = self.noise(t, x)
        return self.path.velocity_from_noise(t, x, noise) - 0.5 * self.stochasticity**2 * noise

    def diffusion(self, t: Float[Array, ""]) -> Float[Array, ""]:
        """Diffusion coefficient."""
        return self.stochasticity * jnp.sqrt(self.path.sigma(t))


# ------------------------------------------------------------- integrators


class AbstractIntegrator(ABC):
    """One step of a process with additive noise."""

    @abstractmethod
    def __call__(
        self, key: Array, process: AbstractProcess, t: Float[Array, ""], x: Float[Array, " d"], h: Float[Array, ""]
    ) -> Float[Array, " d"]:
        """Carry a point from t to t + h.

        Args:
            key: JAX random key.
            process: The process.
            t: Time.
            x: Point.
            h: Step.

        Returns:
            The next point.
        """


@final
@dataclass(frozen=True)
class EulerMaruyama(AbstractIntegrator):
    r"""Weak order 1: :math:`x' = x + \mu h + g\,\Delta W`.

    References:
        Kloeden & Platen (1992), *Numerical Solution of Stochastic Differential Equations*, Eq. 14.1.1.
    """

    def __call__(
        self, key: Array, process: AbstractProcess, t: Float[Array, ""], x: Float[Array, " d"], h: Float[Array, ""]
    ) -> Float[Array, " d"]:
        """Take one step."""
        dW = jnp.sqrt(h) * jax.random.normal(key, x.shape, x.dtype)
        return x + h * process.drift(t, x) + process.diffusion(t) * dW


@final
@dataclass(frozen=True)
class StochasticHeun(AbstractIntegrator):
    r"""Weak order 2 at two drifts a step, for additive noise.

    .. math::
        \tilde x = x + \mu(t, x)\,h + \bar g\,\Delta W, \qquad
        x' = x + \tfrac12 \bigl[\mu(t, x) + \mu(t + h, \tilde x)\bigr] h + \bar g\,\Delta W,

    where :math:`\bar g^2` is the mean of :math:`g^2` at both ends.

    References:
        Kloeden & Platen (1992), Eq. 15.1.4, for constant g.
    """

    def __call__(
        self, key: Array, process: AbstractProcess, t: Float[Array, ""], x: Float[Array, " d"], h: Float[Array, ""]
    ) -> Float[Array, " d"]:
        """Take one step."""
        g = jnp.sqrt(0.5 * (process.diffusion(t) ** 2 + process.diffusion(t + h) ** 2))
        noise = g * jnp.sqrt(h) * jax.random.normal(key, x.shape, x.dtype)
        slope = process.drift(t, x)
        return x + 0.5 * h * (slope + process.drift(t + h, x + h * slope + noise)) + noise


@final
@dataclass(frozen=True)
class PredictorCorrector(AbstractIntegrator):
    r"""Steps of another integrator, each followed by Langevin steps that pull the point towards the right marginal.

    .. math:: x' = x + \eta\,\nabla \log p_t(x) + \sqrt{2 \eta}\,\xi, \qquad \eta = 2\,r^2 \sigma(t)^2 .

    Args:
        score: Score of the marginals, called as ``score(t, x)`` with the time of the process that is integrated.
        sigma: Width of the noise at that time, called as ``sigma(t)``.
        predictor: The other integrator.
        num_corrections: Langevin steps after each.
        signal_to_noise: r.

    References:
        Song et al. (2021), Algorithms 1 and 4: :math:`\eta = 2\,(r\,\lVert \xi \rVert / \lVert s \rVert)^2` from the
        norms of noise and score in a batch. Here the score is that of the kernel, of mean squared norm
        :math:`d / \sigma^2`, which that of the marginal never exceeds: steps are no longer, and points independent.
    """

    score: Field
    sigma: Callable[[Array], Array]
    predictor: AbstractIntegrator = EulerMaruyama()
    num_corrections: int = 1
    signal_to_noise: float = 0.16

    def __call__(
        self, key: Array, process: AbstractProcess, t: Float[Array, ""], x: Float[Array, " d"], h: Float[Array, ""]
    ) -> Float[Array, " d"]:
        """Take one step, then correct."""
        key_predict, *keys = jax.random.split(key, 1 + self.num_corrections)
        x, t = self.predictor(key_predict, process, t, x, h), t + h
        step_size = 2 * (self.signal_to_noise * self.sigma(t)) ** 2
        for key_correct in keys:
            x = unadjusted_langevin(key_correct, lambda x: self.score(t, x), x, step_size)
        return x


def simulate(
    key: Array,
    process: AbstractProcess,
    x: Float[Array, " d"],
    *,
    num_steps: int,
    times: tuple[float, float] = (0.0, 1.0),
    integrator: AbstractIntegrator = StochasticHeun(),  # noqa: B008
) -> Float[Array, "n d"]:
    """Simulate a process from one point in equal steps; `jax.vmap` it over keys and points.

    Args:
        key: JAX random key.
        process: The process, forward or reversed.
        x: Where to start.
        num_steps: Number of steps.
        times: First and last time; a score that is infinite at the data wants an end before it.
        integrator: How to take a step.

    Returns:
        The trajectory without its start, shape ``(num_steps, d)``; its last row is the sample.

    Example:
        >>> from nsflow.diffusion.process import VariancePreserving
        >>> keys = jax.random.split(jax.random.key(0), 1000)
        >>> forward = jax.vmap(lambda key: simulate(key, VariancePreserving(), 5 * jnp.ones(1), num_steps=50))
        >>> x = forward(keys)[:, -1]
        >>> bool(abs(x.mean()) < 0.2), bool(abs(x.std() - 1) < 0.1)
        (True, True)
    """
    first, last = times
    h = jnp.asarray((last - first) / num_steps, x.dtype)

    def move(x: Array, inputs: tuple[Array, Array]) -> tuple[Array, Array]:
        i, key = inputs
        x = integrator(key, process, first + i * h, x, h)
        return x, x

    steps = jnp.arange(num_steps, dtype=x.dtype)
    return jax.lax.scan(move, x, (steps, jax.random.split(key, num_steps)))[1]
