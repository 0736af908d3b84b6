"""A flow that learns inside jit: exact densities, a ring of draws, and what it is taught by."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from nsflow.flow.flow import Flow
from nsflow.flow.velocity import Architecture
from nsflow.modes.modes import Mode
from nsflow.moves.ellipsoids import around
from nsflow.moves.learner import CHOOSE_EVERY, Learner
from nsflow.moves.memory import Draws
from nsflow.numerics.precision import standard_promotion

SMALL = Learner(architecture=Architecture(16, 1, (), (1.0,)), num_steps=50, first_rounds=10, batch_size=128)


def live(key, num, num_dims=2):
    """Uniform points in a square."""
    x = jax.random.uniform(key, (num, num_dims), jnp.float32)
    return Draws(x, jnp.sum(x, axis=1), jnp.zeros(num, jnp.float32))


def bend(x):
    """Height over the middle of a curved band."""
    return x[:, 1] - 2 * (2 * x[:, 0] - 1) ** 2


@pytest.fixture(scope="module")
def trained():
    """A flow that has learned a band of height 0.4 around a parabola."""
    points = live(jax.random.key(0), 2000)
    x = points.x.at[:, 1].set(0.4 * points.x[:, 1] - bend(points.x.at[:, 1].set(0)))
    points = points._replace(x=x)
    online = jax.jit(SMALL.init)(jax.random.key(1), points)
    return standard_promotion(jax.jit(SMALL.train))(jax.random.key(2), online, -jnp.inf, 10)


def test_untrained_flow_is_the_whitened_base():
    points = live(jax.random.key(0), 500)
    online = jax.jit(SMALL.init)(jax.random.key(1), points)
    x, log_q = SMALL.sample_and_log_prob(jax.random.key(3), online, 20_000)
    assert np.mean(np.asarray(x), axis=0) == pytest.approx(np.mean(np.asarray(points.x), axis=0), abs=0.01)
    assert int(online.flow.num_steps) == 0
    assert not np.any(np.isnan(log_q))


def test_training_gains_on_held_out_points_and_the_density_integrates_to_one(trained):
    assert float(trained.gain) > 0.2
    x, log_q = jax.jit(SMALL.sample_and_log_prob, static_argnums=2)(jax.random.key(3), trained, 20_000)
    x = np.asarray(x)
    inside = (x[:, 0] > 0.1) & (x[:, 0] < 0.9) & (bend(x) > 0.1) & (bend(x) < 0.3)
    weights = np.where(inside, np.exp(-np.asarray(log_q, np.float64)), 0)
    # An area of 0.8 x 0.2 by importance: false-alarm rate 1e-4.
    error = np.std(weights) / np.sqrt(len(weights))
    assert abs(np.mean(weights) - 0.16) < 3.9 * error
    assert error < 0.01


def test_density_of_draws_is_that_of_the_inverse(trained):
    x, log_q = jax.jit(SMALL.sample_and_log_prob, static_argnums=2)(jax.random.key(4), trained, 500)
    z, log_prob = jax.jit(SMALL.pull)(trained, x)
    assert np.asarray(log_prob) == pytest.approx(np.asarray(log_q), abs=1e-3)
    assert np.asarray(jax.jit(SMALL.push)(trained, z)[0]) == pytest.approx(np.asarray(x), abs=1e-3)


def test_flow_and_ellipsoids_have_one_density(trained):
    """A small square about an ellipsoid's centre by importance; false-alarm rate 1e-4."""
    modes = [Mode(np.array([0.5, 0.2]), 0.0, 0.05 * np.eye(2)), Mode(np.array([0.9, -2.0]), 0.0, 0.01 * np.eye(2))]
    ellipsoids = around(modes, np.array([2.0, 2.0]), 0, jnp.dtype(jnp.float32)).at_contour(jnp.float32(0.0))
    mixed = trained._replace(ellipsoids=ellipsoids)
    x, log_q = jax.jit(SMALL.sample_and_log_prob, static_argnums=2)(jax.random.key(3), mixed, 40_000)
    np.testing.assert_allclose(jax.jit(SMALL.log_prob)(mixed, x), log_q, atol=1e-3)
    x, density = np.asarray(x), np.exp(np.asarray(log_q, np.float64))
    inside = np.all(np.abs(x - [0.5, 0.2]) < 0.07, axis=1)
    weights = np.where(inside, 1 / density, 0)
    error = np.std(weights) / np.sqrt(len(weights))
    assert abs(np.mean(weights) - 0.0196) < 3.9 * error
    assert error < 0.0003
    # Where the flow has nothing, the ellipsoid has its part of their share.
    far = x[:, 1] < -1.5
    assert abs(np.mean(far) - 0.2 * (0.125 + 0.75 / 26)) < 3.9 * np.sqrt(0.03 / len(x))


def test_a_draw_that_rounding_puts_outside_of_its_ellipsoid_is_none(trained):
    """With the density of the far flow alone its weight was e^861."""
    wide = replace(
        trained.flow, mean=jnp.full(2, 70.0), scale=0.3 * jnp.eye(2, dtype=jnp.float32), num_steps=jnp.int32(0)
    )
    ellipsoids = around([Mode(np.full(2, 80.0), 0.0, 1e-4 * np.eye(2))], np.array([2.0]), 0, jnp.dtype(jnp.float32))
    mixed = trained._replace(flow=wide, ellipsoids=ellipsoids.at_contour(jnp.float32(0.0)))
    x, log_q = jax.jit(SMALL.sample_and_log_prob, static_argnums=2)(jax.random.key(0), mixed, 5000)
    near = np.linalg.norm(np.asarray(x) - 80, axis=1) < 1
    assert 0 < np.mean(np.isnan(log_q)[near]) < 0.1
    assert np.nanmin(np.asarray(log_q)[near]) > 10


def test_training_emphasises_what_lies_above():
    """The training set of points in a square is narrower about the top, and with an exponent of zero it is not."""
    points = live(jax.random.key(0), 2000)
    points = points._replace(log_likelihood=-jnp.sum((points.x - 0.5) ** 2, axis=1))
    spread = {}
    for emphasis in (0.0, 0.6):
        learner = replace(SMALL, emphasis=emphasis, num_steps=1)
        online = learner.init(jax.random.key(1), points)
        trained = standard_promotion(jax.jit(learner.train))(jax.random.key(2), online, -jnp.inf)
        spread[emphasis] = float(trained.flow.scale[0, 0])
    assert spread[0.0] == pytest.approx(12**-0.5, rel=0.05)
    assert spread[0.6] < 0.85 * spread[0.0]


@pytest.mark.parametrize("options", [{"ellipsoid_share": 1.0}, {"ellipsoid_share": -0.1}, {"emphasis": -1.0}])
def test_shares_and_exponents_out_of_range_are_named(options):
    with pytest.raises(ValueError, match=f"`{next(iter(options))}` expected"):
        Learner(**options)


def test_a_map_that_folds_gives_nan_and_no_density(trained):
    folded = Flow.from_velocity(lambda t, x: 40 * jnp.sin(9 * x), 2, num_steps=1)
    folded = replace(folded, mean=jnp.zeros(2, jnp.float32), scale=jnp.eye(2, dtype=jnp.float32))
    _, log_q = jax.jit(SMALL.sample_and_log_prob, static_argnums=2)(
        jax.random.key(0), trained._replace(flow=folded), 500
    )
    assert np.mean(np.isnan(log_q)) > 0.5


def test_a_draw_without_a_density_of_the_flow_is_none_beside_ellipsoids(trained, monkeypatch):
    """An inverse may lead back without having settled; a density of zero became a weight of infinity."""
    pull = Learner.pull

    def unsettled(learner, online, x, is_wanted):
        z, log_prob = pull(learner, online, x, is_wanted)
        return z, jnp.where(x[:, 0] < 0.5, jnp.nan, log_prob)

    monkeypatch.setattr(Learner, "pull", unsettled)
    ellipsoids = around([Mode(np.full(2, 90.0), 0.0, np.eye(2))], np.array([2.0]), 0, jnp.dtype(jnp.float32))
    mixed = trained._replace(ellipsoids=ellipsoids.at_contour(jnp.float32(0.0)))
    x, log_q = SMALL.sample_and_log_prob(jax.random.key(0), mixed, 500)  # not jitted: another trace may be cached
    is_near, is_unsettled = np.asarray(x)[:, 0] < 10, np.asarray(x)[:, 0] < 0.5
    assert np.sum(is_unsettled) > 50
    assert np.all(np.isnan(log_q)[is_unsettled])
    assert np.mean(np.isfinite(log_q)[is_near & ~is_unsettled]) > 0.9
    assert not np.any(np.isinf(log_q))


@pytest.mark.slow
def test_training_on_weighted_draws_recovers_the_target():
    """Draws from a wide normal, weighted to a uniform square; false-alarm rate 1e-4."""
    x = jax.random.normal(jax.random.key(0), (16_000, 2), jnp.float32)
    inside = jnp.all(jnp.abs(x) < 1, axis=1)
    pool = Draws(x, jnp.zeros(16_000, jnp.float32), jnp.where(inside, 0.5 * jnp.sum(x**2, axis=1), -jnp.inf))
    points = Draws(jnp.full((100, 2), 5.0, jnp.float32), jnp.ones(100, jnp.float32), jnp.zeros(100, jnp.float32))
    online = replace(SMALL, pool_size=160).init(jax.random.key(1), points)._replace(pool=pool)
    online = standard_promotion(jax.jit(SMALL.train))(jax.random.key(2), online, -1.0, 20)
    x, log_q = jax.jit(SMALL.sample_and_log_prob, static_argnums=2)(jax.random.key(3), online, 4000)
    inside = np.all(np.abs(np.asarray(x)) < 1, axis=1)
    assert np.mean(inside) > 0.6
    weights = np.exp(-np.asarray(log_q, np.float64)[inside])
    resampled = np.asarray(x)[inside][np.random.default_rng(0).choice(inside.sum(), 1000, p=weights / weights.sum()), 0]
    assert stats.kstest(resampled / 2 + 0.5, "uniform").pvalue > 1e-4


def test_a_network_is_trained_at_length_where_it_is_useful():
    """The first training has its own number of rounds, others have one, or more beyond half a nat of gain."""
    learner = replace(SMALL, num_steps=5, first_rounds=3, num_rounds=4)
    train = standard_promotion(jax.jit(learner.train))
    online = train(jax.random.key(2), learner.init(jax.random.key(1), live(jax.random.key(0), 200)), -jnp.inf)
    count = lambda online: int(online.training.optimizer[1].count)  # noqa: E731
    assert count(online) == 15
    for gain, rounds in ((0.4, 1), (0.6, 4)):
        later = train(jax.random.key(3), online._replace(gain=jnp.float32(gain)), -jnp.inf)
        assert count(later) == 15 + 5 * rounds


def test_integration_steps_are_chosen_now_and_then_or_when_asked():
    learner = replace(SMALL, num_steps=5, first_rounds=1, num_rounds=1)
    online = learner.init(jax.random.key(1), live(jax.random.key(0), 200))
    train = standard_promotion(jax.jit(learner.train))
    gains = []
    for i in range(CHOOSE_EVERY + 1):
        online = train(jax.random.key(i), online, -jnp.inf)
        gains.append(float(online.gain))
    assert gains[0] != 0
    assert set(gains[:-1]) == {gains[0]}
    assert gains[-1] != gains[0]
    assert float(train(jax.random.key(9), online, -jnp.inf, 1).gain) != gains[-1]
