"""Ellipsoids around modes: uniform, as large as a Gaussian's contour, and nowhere below one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nsflow.modes.modes import Mode
from nsflow.moves.ellipsoids import EQUAL, around

SCALE = np.array([[0.5, 0.0], [0.3, 0.1]])
MODES = [Mode(np.zeros(2), -2.0, SCALE), Mode(np.array([5.0, 5.0]), -1.0, 0.2 * np.eye(2))]
LOG_LIKELIHOOD = np.array([3.0, 4.0])  # a prior of e^-5
TWO = around(MODES, LOG_LIKELIHOOD, 70, jnp.dtype(jnp.float32))


def reaching(contour):
    return TWO.at_contour(jnp.float32(contour))


def test_they_end_where_gaussian_likelihoods_cross_the_contour():
    ellipsoids = reaching(1.0)
    for mode, peak, log_radius in zip(MODES, LOG_LIKELIHOOD, ellipsoids.log_radius, strict=True):
        angle = np.linspace(0, 2 * np.pi, 9)
        edge = mode.centre + np.exp(log_radius) * np.stack([np.cos(angle), np.sin(angle)], axis=1) @ mode.scale.T
        white = np.linalg.solve(mode.scale, (edge - mode.centre).T)
        assert peak - 0.5 * np.sum(white**2, axis=0) == pytest.approx(np.ones(9), abs=1e-4)
        inside, outside = (mode.centre + stretch * (edge - mode.centre) for stretch in (0.99, 1.01))
        assert np.all(jax.vmap(ellipsoids.log_prob)(jnp.asarray(inside, jnp.float32)) > -np.inf)
        assert np.all(jax.vmap(ellipsoids.log_prob)(jnp.asarray(outside, jnp.float32)) == -np.inf)


def test_draws_have_their_density():
    """The mean of 1 / density is the area that is drawn from; false-alarm rate 1e-4."""
    ellipsoids = reaching(1.0)
    x = ellipsoids.sample(jax.random.key(0), 20_000)
    area = np.exp(-np.asarray(jax.vmap(ellipsoids.log_prob)(x), np.float64))
    areas = np.pi * np.exp(2 * np.asarray(ellipsoids.log_radius)) * np.array([0.05, 0.04])
    kept = area[area < np.inf]  # but for rounding at an edge
    assert len(kept) > 0.999 * len(area)
    assert abs(np.mean(kept) - np.sum(areas)) < 3.9 * np.std(kept) / np.sqrt(len(kept))
    share = np.mean(np.asarray(x)[:, 0] > 2.5)
    expected = EQUAL / 2 + (1 - EQUAL) * areas[1] / np.sum(areas)
    assert abs(share - expected) < 3.9 * np.sqrt(expected * (1 - expected) / len(x))
    assert abs(np.mean(kept) - np.sum(areas[::-1] * [1, 2])) > 0.1 * np.sum(areas)  # the test can fail


def test_a_mode_below_the_contour_is_not_drawn():
    ellipsoids = reaching(3.5)
    assert ellipsoids.log_radius[0] == -np.inf
    assert np.all(np.asarray(ellipsoids.sample(jax.random.key(0), 500))[:, 0] > 4)
    assert bool(ellipsoids.is_there)
    assert not bool(reaching(4.5).is_there)
    assert np.all(jax.vmap(reaching(4.5).log_prob)(jnp.asarray([[0.0, 0.0], [5.0, 5.0]])) == -np.inf)


@pytest.mark.parametrize("contour", [-1e30, -np.inf])
def test_they_hold_no_more_than_the_prior(contour):
    log_mass = -5 + np.log(np.pi * np.array([0.05, 0.04])) + 2 * np.asarray(reaching(contour).log_radius)
    assert log_mass == pytest.approx(np.zeros(2), abs=1e-4)


def test_modes_come_back_as_they_were():
    for mode, again in zip(MODES, TWO.modes, strict=True):
        assert again.centre == pytest.approx(mode.centre)
        assert again.log_density == pytest.approx(mode.log_density)
        assert again.scale == pytest.approx(mode.scale)
    nothing = around([], np.zeros(0), 0, jnp.dtype(jnp.float32), num_dims=3)
    assert nothing.centre.shape == (0, 3)
    assert not nothing.is_any
    assert nothing.modes == []
