"""Modes: found where a draw of the prior stood on their slopes, kept if proposed, and no alarm where none is lost."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from anesthetic import MCMCSamples

import nsflow.adapters.blackjax as nested
from nsflow.adapters.blackjax.modes import add_modes, find_lost_modes
from nsflow.adapters.blackjax.result import NestedResult
from nsflow.flow.velocity import Architecture
from nsflow.modes.modes import Mode
from nsflow.moves.ellipsoids import around

BOX = 8.0
LOG_Z = -2 * np.log(2 * BOX)  # of a normalised likelihood within the box
NARROW = np.array([4.0, 4.0])
DRAWS = np.random.default_rng(0).uniform(-BOX, BOX, (1000, 2))  # five of them on the slopes of the narrow mode


def log_prior(x):
    return jnp.where(jnp.all(jnp.abs(x) < BOX), LOG_Z, -jnp.inf)


def normal(x, mean, width):
    return -0.5 * jnp.sum(((x - mean) / width) ** 2) - 2 * jnp.log(width) - jnp.log(2 * jnp.pi)


def two_modes(x):
    """A third of the evidence in a mode of width 0.1."""
    return jnp.logaddexp(normal(x, 0.0, 1.0) + jnp.log(2 / 3), normal(x, jnp.asarray(NARROW), 0.1) + jnp.log(1 / 3))


def result_of(x, weights=None, logZ=LOG_Z):
    return NestedResult(MCMCSamples(x, weights=weights), logZ, 0.1, logZ, 0.1, 9000, 0.1, 0.5, 0.9, 0.5, 0.5)


def samples(num_narrow):
    rng = np.random.default_rng(1)
    return np.concatenate([rng.normal(size=(2000, 2)), NARROW + 0.1 * rng.normal(size=(num_narrow, 2))])


def test_a_lost_mode_sets_an_alarm_with_its_share():
    result = find_lost_modes(result_of(samples(0), logZ=LOG_Z + np.log(2 / 3)), DRAWS, log_prior, two_modes)
    (mode,) = result.lost_modes
    np.testing.assert_allclose(mode.position, NARROW, atol=0.01)
    assert mode.share == pytest.approx(1 / 3, abs=0.01)
    assert mode.found == 0
    assert [alarm for alarm in result.alarms if "33%" in alarm]
    assert str(result).count("ALARM") == 1


@pytest.mark.parametrize(("num_narrow", "is_lost"), [(1000, False), (500, False), (150, True)])
def test_less_than_a_third_of_its_share_is_lost(num_narrow, is_lost):
    """The narrow mode has 0.33, 0.2 and 0.07 of the samples where it should have 0.33."""
    result = find_lost_modes(result_of(samples(num_narrow)), DRAWS, log_prior, two_modes)
    assert bool(result.lost_modes) == is_lost == bool(result.alarms)


def test_weights_count():
    x = samples(1000)
    result = find_lost_modes(result_of(x, np.where(x[:, 0] > 3, 0.1, 1.0)), DRAWS, log_prior, two_modes)
    assert result.lost_modes[0].found == pytest.approx(100 / 2100, abs=0.01)


def test_positions_are_trees_and_calls_are_counted():
    tree = {"a": DRAWS[:, 0].astype(np.float32), "b": DRAWS[:, 1:].astype(np.float32)}
    vector = lambda p: jnp.append(p["a"], p["b"])  # noqa: E731
    before = result_of(samples(0))
    after = find_lost_modes(before, tree, lambda p: log_prior(vector(p)), lambda p: two_modes(vector(p)))
    assert after.lost_modes[0].position["b"] == pytest.approx(4.0, abs=0.01)
    assert 1000 < after.num_calls - before.num_calls < 2500
    few = find_lost_modes(before, tree, lambda p: log_prior(vector(p)), lambda p: two_modes(vector(p)), max_calls=20)
    assert 1000 < few.num_calls - before.num_calls <= 1020
    assert few.lost_modes == ()


@pytest.mark.parametrize("log_likelihood", [lambda x: jnp.sum(x), lambda x: 0.0 * x[0], lambda x: -jnp.inf * x[0] ** 2])
def test_edges_plateaus_and_nothing_are_no_modes(log_likelihood):
    """A maximum in the corner of the prior has no Gaussian around it, a plateau none narrower than the prior."""
    near_corner = BOX - np.random.default_rng(2).exponential(size=(500, 2))
    result = find_lost_modes(result_of(near_corner, logZ=2 * BOX + LOG_Z), DRAWS, log_prior, log_likelihood)
    assert result.lost_modes == ()


def test_a_ridge_is_not_as_many_modes_as_climbs_end_on_it():
    """A circle: each climb ends on another point of it, and the samples lie on one half alone."""

    def circle(x):
        return -0.5 * ((jnp.linalg.norm(x) - 4) / 0.1) ** 2 - jnp.log(8 * jnp.pi * 0.1 * jnp.sqrt(2 * jnp.pi))

    angle = np.random.default_rng(3).uniform(0, np.pi, 1000)
    half = 4 * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    assert find_lost_modes(result_of(half), DRAWS, log_prior, circle).lost_modes == ()


@pytest.mark.parametrize("draws", [DRAWS[:1], DRAWS[:0], {"a": DRAWS[:, 0], "b": DRAWS[:5, 1]}, {}, 1.0])
def test_too_few_draws_are_refused(draws):
    with pytest.raises(ValueError, match="`prior_draws` expected a PyTree of arrays, two or more positions"):
        find_lost_modes(result_of(samples(0)), draws, log_prior, two_modes)


# ---- modes that are proposed from the start


@cache
def build(share):
    """An algorithm and its compiled step."""
    learner = nested.Learner(Architecture(16, 1, (), (1.0,)), num_steps=30, first_rounds=5, ellipsoid_share=share)
    algorithm = nested.as_top_level_api(log_prior, two_modes, 6, 20, learner=learner)
    return algorithm, jax.jit(algorithm.step)


def run(share, key):
    """A run of 200 live points, of which one stands on the slopes of the narrow mode."""
    algorithm, step = build(share)
    state = algorithm.init(jax.random.uniform(key, (200, 2), jnp.float32, -BOX, BOX))
    state, dead = add_modes(state, DRAWS, log_prior, two_modes), []
    while state.integrator.logZ_live - state.integrator.logZ > -3:
        key, key_step = jax.random.split(key)
        state, info = step(key_step, state)
        dead.append(info)
    assert step._cache_size() == 1
    return state, dead


def test_a_mode_that_is_proposed_is_kept():
    """Four runs; false-alarm rates 1e-4."""
    runs = [run(0.2, jax.random.key(seed)) for seed in range(4)]
    results = [nested.finalise(*one) for one in runs]
    for (state, dead), result in zip(runs, results, strict=True):
        assert result.alarms == ()
        ellipsoids = state.inner_kernel_params["proposal"].ellipsoids
        assert result.num_calls == 200 + len(dead) * 20 * 6 + int(ellipsoids.num_calls)
        assert 1000 < int(ellipsoids.num_calls) < 1500
    errors = [[r.logZ - LOG_Z, r.logZ_err, r.importance_logZ - LOG_Z, r.importance_logZ_err] for r in results]
    classical, quoted, importance, own = np.mean(errors, axis=0)
    assert abs(classical) < 3.9 * quoted / 2
    assert abs(importance) < 3.9 * own / 2
    assert quoted < 0.25
    assert own < 0.05


def test_a_mode_that_was_known_and_lost_sets_an_alarm():
    """One with half of the evidence where the run has nothing; a second search does not take the alarm back."""
    state, dead = run(0.2, jax.random.key(1))
    online = state.inner_kernel_params["proposal"]
    far = Mode(np.array([-5.0, 5.0]), LOG_Z - np.log(2 * np.pi * 0.01), 0.1 * np.eye(2))
    modes = [Mode(np.zeros(2), LOG_Z - np.log(2 * np.pi), np.eye(2)), far]
    ellipsoids = around(modes, np.array([mode.log_density - LOG_Z for mode in modes]), 0, jnp.dtype(jnp.float32))
    state.inner_kernel_params["proposal"] = online._replace(ellipsoids=ellipsoids)
    result = nested.finalise(state, dead)
    assert [alarm for alarm in result.alarms if "was lost, the run has 0% there" in alarm]
    np.testing.assert_allclose(result.lost_modes[0].position, [-5, 5])
    assert result.lost_modes[0].position.dtype == state.particles.position.dtype
    again = find_lost_modes(result, DRAWS, log_prior, two_modes)
    assert again.lost_modes == result.lost_modes
    assert again.num_calls > result.num_calls + len(DRAWS)


def test_modes_are_added_to_a_tree_and_again():
    vector = lambda p: jnp.concatenate([p["b"], p["a"][:, None]], axis=1)  # noqa: E731
    tree = lambda x: {"b": x[:, :1], "a": x[:, 1]}  # noqa: E731
    prior, likelihood = (lambda p, f=f: f(jnp.append(p["b"], p["a"])) for f in (log_prior, two_modes))
    algorithm = nested.as_top_level_api(prior, likelihood, 6, 20)
    state = algorithm.init(tree(jax.random.uniform(jax.random.key(0), (200, 2), jnp.float32, -BOX, BOX)))
    assert vector(state.particles.position).shape == (200, 2)
    one = add_modes(state, tree(DRAWS[np.linalg.norm(DRAWS - NARROW, axis=1) > 1]), prior, likelihood)
    two = add_modes(jax.device_get(one), tree(DRAWS), prior, likelihood)
    few, both = (s.inner_kernel_params["proposal"].ellipsoids for s in (one, two))
    np.testing.assert_allclose(few.centre, [[0, 0]], atol=0.01)
    np.testing.assert_allclose(both.centre, [[0, 0], NARROW], atol=0.01)
    assert int(both.num_calls) > int(few.num_calls) + len(DRAWS)
    assert bool(both.is_there)


def test_modes_have_the_dimension_of_live_points():
    algorithm = nested.as_top_level_api(log_prior, two_modes, 6, 20)
    state = algorithm.init(jax.random.uniform(jax.random.key(0), (200, 2), jnp.float32, -BOX, BOX))
    with pytest.raises(ValueError, match="dimension 2, as live points; got 3"):
        add_modes(state, np.random.default_rng(0).normal(size=(10, 3)), log_prior, two_modes)
