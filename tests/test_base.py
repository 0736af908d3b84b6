"""Bases are normalised, and their draws have their density."""

import jax
import numpy as np
import pytest
from scipy import integrate, special, stats

from nsflow.densities.bases import EdgedBall, Normal

BASES = [Normal(), EdgedBall(), EdgedBall(share=0.4, inflation=1.2, deviation=2.0)]


def shells(base, num_dims):
    """Radii, and the density of the radius there."""
    log_area = np.log(2) + num_dims / 2 * np.log(np.pi) - special.gammaln(num_dims / 2)
    grid = np.linspace(1e-4, 12 + 2 * num_dims**0.5, 20_001)
    points = np.zeros((len(grid), num_dims), np.float32)
    points[:, 0] = grid
    return grid, np.exp(log_area + (num_dims - 1) * np.log(grid) + np.asarray(jax.vmap(base.log_prob)(points)))


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("num_dims", [1, 3, 10])
def test_density_integrates_to_one(base, num_dims):
    grid, density = shells(base, num_dims)
    assert integrate.trapezoid(density, grid) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("num_dims", [1, 3, 10])
def test_draws_have_the_radii_of_the_density(base, num_dims):
    """False-alarm rate 1e-4 each."""
    z = np.asarray(base.sample(jax.random.key(num_dims), 4000, num_dims))
    grid, density = shells(base, num_dims)
    cumulated = integrate.cumulative_trapezoid(density, grid, initial=0)
    uniform = np.interp(np.linalg.norm(z, axis=1), grid, cumulated / cumulated[-1])
    assert stats.kstest(uniform, "uniform").pvalue > 1e-4
    assert stats.kstest(np.sign(z[:, 0]) * uniform / 2 + 0.5, "uniform").pvalue > 1e-4


def test_ball_has_the_covariance_that_it_says():
    z = EdgedBall(share=1 - 1e-9, inflation=1.3).sample(jax.random.key(0), 20_000, 4)
    assert np.std(np.asarray(z)) == pytest.approx(1.3, abs=0.02)
