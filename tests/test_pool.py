"""The ring of draws that a flow learns from, and how they count."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nsflow.moves.memory import Draws, Pool, _emphasise


def points(seed, num):
    """Uniform points in a square."""
    x = jax.random.uniform(jax.random.key(seed), (num, 2), jnp.float32)
    return Draws(x, jnp.sum(x, axis=1), jnp.zeros(num, jnp.float32))


def is_used(draws):
    return np.asarray(draws.log_weight) > -np.inf


def test_a_draw_without_a_density_teaches_nothing():
    """A weight of infinity once turned the flow into NaN."""
    draws = points(0, 40)
    draws = draws._replace(log_weight=draws.log_weight.at[:3].set(jnp.asarray([jnp.nan, jnp.inf, -jnp.inf])))
    pool = Pool.start(points(1, 40), 640).observe(draws)
    assert np.flatnonzero(is_used(pool.draws)).tolist() == [*range(40), *range(43, 80)]


def test_live_points_train_until_there_are_as_many_draws():
    live = points(0, 40)
    pool = Pool.start(live, 640)
    assert np.sum(is_used(pool.without_live(40))) == 40
    pool = pool.observe(jax.tree.map(lambda a: a[:39], live))
    assert np.sum(is_used(pool.without_live(40))) == 79
    pool = pool.observe(jax.tree.map(lambda a: a[:1], live))
    assert np.flatnonzero(is_used(pool.without_live(40))).tolist() == [*range(40, 80)]
    # Once around the ring the first rows are draws like the others.
    for _ in range(15):
        pool = pool.observe(live)
    assert np.all(is_used(pool.without_live(40)))


def test_the_oldest_draws_are_forgotten():
    pool = Pool.start(points(0, 40), 80)
    for step in range(5):
        pool = pool.observe(points(step, 30)._replace(log_likelihood=jnp.full(30, float(step))))
    kept = np.sort(np.asarray(pool.draws.log_likelihood))
    assert kept.tolist() == 20 * [2.0] + 30 * [3.0] + 30 * [4.0]


def test_of_more_draws_than_there_are_places_the_newest_are_kept():
    draws = points(2, 100)._replace(log_likelihood=jnp.arange(100, dtype=jnp.float32))
    pool = Pool.start(points(0, 40), 40).observe(draws)
    assert np.sort(np.asarray(pool.draws.log_likelihood)).tolist() == list(range(60, 100))


def test_draws_that_were_not_made_teach_nothing():
    draws = points(2, 40)._replace(log_weight=jnp.full(40, jnp.nan, jnp.float32))
    pool = Pool.start(points(0, 40), 640).observe(draws)
    assert np.sum(is_used(pool.draws)) == 40
    assert np.isfinite(np.asarray(pool.training_set(40, 0.0, 0.6).weights)).all()


def test_training_set_is_weighted_draws_above_the_contour_from_the_highest_down():
    draws = points(1, 1000)._replace(log_weight=jnp.full(1000, 3.0, jnp.float32))
    x, weights, place = (np.asarray(a) for a in Pool.start(draws, 1000).training_set(600, 1.0, 0.0))
    height = np.asarray(draws.log_likelihood)
    assert np.array_equal(place, np.argsort(-height, stable=True))
    used = height[place] > 1.0
    assert np.array_equal(weights > 0, used)
    assert weights[used] == pytest.approx(1 / used.sum(), rel=1e-4)
    assert np.array_equal(x[used], np.asarray(draws.x)[place][used])


@pytest.mark.parametrize(("contour", "num_live", "expected"), [(1.9, 1600, 400), (5.0, 1600, 400), (1.0, 8000, 1000)])
def test_too_few_draws_above_the_contour_are_joined_by_the_next_below(contour, num_live, expected):
    draws = points(1, 1000)._replace(log_weight=jnp.full(1000, 3.0, jnp.float32))
    used = np.asarray(Pool.start(draws, 1000).training_set(num_live, contour, 0.0).weights) > 0
    assert used.sum() == pytest.approx(expected, abs=1)  # rounding of the cumulated weights
    assert np.all(used[: used.sum()])


def test_emphasis_is_a_power_of_the_mass_above():
    """Of n equal weights the k-th from the top has the mass k / n; equal heights share theirs."""
    draws = Draws(jnp.zeros((5, 1)), jnp.asarray([3.0, 0.0, 2.0, 1.0, 2.0]), jnp.zeros(5))
    weights = {e: np.asarray(Pool.start(draws, 5).training_set(4, -1.0, e).weights) for e in (0.0, 0.5)}
    expected = np.array([0.2, 0.6, 0.6, 0.8, 1.0]) ** -0.5
    np.testing.assert_allclose(weights[0.5], expected / np.sum(expected), rtol=1e-5)
    np.testing.assert_allclose(weights[0.0], 0.2, rtol=1e-6)


def test_training_points_far_above_the_contour_are_not_without_bound():
    top = np.asarray(_emphasise(jnp.full(100_000, 1e-5), -jnp.arange(100_000.0), 0.6))
    assert np.sum(top[:1000]) < 1.01 * 0.01**0.4  # of X^-0.6 dX, whose integral is X^0.4
    assert top[0] == pytest.approx(top[999], rel=1e-2)
