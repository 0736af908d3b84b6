"""Small problems with known evidence."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from scipy import integrate

import nsflow


class Target(NamedTuple):
    log_likelihood: Callable
    prior: nsflow.Prior
    logZ: float


def gaussian() -> Target:
    """A normal likelihood of two means under normal priors: Gaussian algebra."""
    prior = nsflow.Prior({"m": dist.Normal(0.0, 3.0).expand([2])})
    sigma, data = 0.3, np.array([1.0, -2.0])
    total = sigma**2 + 3.0**2

    def log_likelihood(p):
        return jnp.sum(dist.Normal(p["m"], sigma).log_prob(data))

    return Target(log_likelihood, prior, float(np.sum(-0.5 * data**2 / total - 0.5 * np.log(2 * np.pi * total))))


def edge() -> Target:
    """Exponential decay from the corner of a unit square: the posterior piles up on the prior's edges."""
    prior = nsflow.Prior({"a": dist.Uniform(0.0, 1.0), "b": dist.Uniform(0.0, 1.0)})
    rate = 20.0
    return Target(lambda p: -rate * (p["a"] + p["b"]), prior, float(2 * np.log((1 - np.exp(-rate)) / rate)))


def two_modes() -> Target:
    """Two unequal separated normal modes in one dimension; one quadrature."""
    prior = nsflow.Prior({"x": dist.Uniform(-10.0, 10.0)})

    def log_likelihood(p, xp=jnp):
        x = p["x"]
        return xp.logaddexp(-0.5 * ((x + 5.0) / 0.5) ** 2, np.log(0.5) - 0.5 * ((x - 5.0) / 0.3) ** 2)

    def integrand(x):
        return np.exp(log_likelihood({"x": x}, np)) / 20.0

    value = integrate.quad(integrand, -10, 10, points=[-5, 5], epsabs=0, epsrel=1e-10)[0]
    return Target(log_likelihood, prior, float(np.log(value)))


def narrow_mode() -> Target:
    """A broad normal mode and, far from it, one of a fifth of its width with 0.3 of the evidence, in five dimensions.

    The narrow one fills 7e-5 of the prior out to three of its widths: contours rise past it long before they see it.
    """
    prior = nsflow.Prior({"x": dist.Uniform(-10.0, 10.0).expand([5])})
    modes = ((0.7, -4.0, 1.0), (0.3, 6.0, 0.2))

    def log_likelihood(p):
        terms = [jnp.log(w) + jnp.sum(dist.Normal(m, s).log_prob(p["x"])) for w, m, s in modes]
        return jnp.logaddexp(*terms)

    return Target(log_likelihood, prior, float(-5 * np.log(20.0)))
