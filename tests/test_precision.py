"""Accelerators round the factors of float32 products; densities must not be left to that."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from nsflow.densities.gaussian import Gaussian
from nsflow.densities.kernels import Kernels
from nsflow.diffusion.energy import EnergyModel
from nsflow.flow.flow import Flow
from nsflow.flow.path import TrigonometricPath
from nsflow.flow.velocity import Architecture
from nsflow.moves.learner import Learner
from nsflow.moves.memory import Draws

PATH, WHITE = TrigonometricPath(), Gaussian(np.zeros(2), np.eye(2))
FLOW = Flow(Architecture(16).init(jax.random.key(0), 2, PATH), WHITE.mean, WHITE.scale, np.int32(2))
ENERGY = EnergyModel(Architecture(16).init_noise_potential(jax.random.key(0), 2, PATH), PATH, 1.0, WHITE)
POINTS = np.random.default_rng(0).normal(size=(300, 2)).astype(np.float32)


def products(jaxpr: Any) -> Iterator[Any]:
    """Precision of every matrix product, those of inner functions, loops and branches included."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            yield equation.params["precision"]
        for inner in jaxprs_in_params(equation.params):
            yield from products(inner)


def frame(x: Any) -> Any:
    """Centre and scale of what a learner starts with."""
    zeros = jnp.zeros(len(x), x.dtype)
    flow = Learner(Architecture(16)).init(jax.random.key(0), Draws(x, zeros, zeros)).flow
    return flow.mean, flow.scale


DENSITIES = {
    "forward": FLOW.forward,
    "inverse": FLOW.inverse,
    "frame": frame,
    "energy": jax.vmap(ENERGY.log_density),
}


@pytest.mark.parametrize("name", DENSITIES)
def test_products_keep_the_bits_of_their_factors(name):
    found = list(products(jax.make_jaxpr(DENSITIES[name])(POINTS).jaxpr))
    assert len(found) > 0
    assert set(found) == {(jax.lax.Precision.HIGHEST, jax.lax.Precision.HIGHEST)}


def test_kernels_keep_them_too(monkeypatch):
    """Their function of one chunk of points is traced in place of being called."""
    traced = []

    def trace(function: Any, x: Any, _: int) -> Any:
        traced.append(jax.make_jaxpr(function)(x))
        return np.zeros(len(x))

    monkeypatch.setattr("nsflow.densities.kernels.by_chunks", trace)
    Kernels.fit(jax.random.key(0), POINTS, np.zeros(len(POINTS)), num_kernels=50).log_prob(POINTS)
    assert set(products(traced[0].jaxpr)) == {(jax.lax.Precision.HIGHEST, jax.lax.Precision.HIGHEST)}
