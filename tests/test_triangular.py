"""Triangular maps: inverse and determinant, what they straighten, and what a ridge and a funnel cost with them."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import nsflow
from nsflow.densities.gaussian import Gaussian
from nsflow.densities.mixture import Mixture
from nsflow.densities.triangular import Bent, TriangularMap, basis
from nsflow.nested.components import fit_cheap, straightener_of
from nsflow.nested.warm_start import as_start
from nsflow.proposals.triangular_fit import fit


def ridge(num_points, num_dims, *, width=0.1):
    """A normal, twice its square give or take 0.05, and more normals."""
    x = 0.5 * np.random.default_rng(0).normal(size=(num_points, num_dims))
    x[:, 1] = 2 * x[:, 0] ** 2 + width * x[:, 1]
    return x


def chain():
    """The squares of two coordinates add up to a third, and its square is a fourth."""
    x = np.random.default_rng(1).normal(size=(2000, 4))
    x[:, 2] = x[:, 0] ** 2 + x[:, 1] ** 2 + 0.1 * x[:, 2]
    x[:, 3] = (x[:, 2] - 2) ** 2 + 0.1 * x[:, 3]
    return x[:, [3, 0, 2, 1]]


def funnel(num_points, num_dims):
    """A log-width of deviation 1.5, and normals of that width around another one."""
    x = np.random.default_rng(5).normal(size=(num_points, num_dims))
    x[:, 2:] = x[:, [1]] + np.exp(1.5 * x[:, [0]]) * x[:, 2:]
    return x


def pairs(found, *, widths):
    return {(step.target, step.source) for step in found.steps if np.any(step.log_width) is np.bool_(widths)}


@pytest.mark.parametrize("points", [chain(), funnel(2000, 4)], ids=["curves", "widths"])
def test_bending_undoes_straightening_and_the_determinant_is_that_of_the_jacobian(points):
    found = fit(points, np.zeros(len(points)))
    np.testing.assert_allclose(found.bend(found.straighten(points)), points, atol=1e-12)
    far = 10 * points
    np.testing.assert_allclose(found.bend(found.straighten(far)), far, rtol=1e-8, atol=1e-8)
    step = 1e-5 * np.eye(4)
    jacobian = (found.straighten(points[0] + step) - found.straighten(points[0] - step)) / 2e-5
    np.testing.assert_allclose(np.log(np.linalg.det(jacobian)), found.log_det(points[:1])[0], atol=1e-6)
    assert np.max(np.abs(jacobian - np.eye(4))) > 0.1


def test_curves_are_found_from_the_ancestors_on():
    found = fit(chain(), np.zeros(2000))
    assert pairs(found, widths=False) >= {(2, 1), (2, 3), (0, 2)}


@pytest.mark.parametrize(("num_points", "correlation"), [(300, 0.95), (3000, 0.99)])
def test_widths_are_found_around_the_lines_that_they_belong_to(num_points, correlation):
    """Around the mean of all points, the width of the members of a group hardly changes."""
    x = funnel(num_points, 5)
    found = fit(x, np.zeros(num_points))
    assert pairs(found, widths=True) == {(2, 0), (3, 0), (4, 0)}
    assert pairs(found, widths=False) == {(2, 1), (3, 1), (4, 1)}
    y = found.straighten(x)[:, 2:]
    noise = (x[:, 2:] - x[:, [1]]) * np.exp(-1.5 * x[:, [0]])
    assert all(np.corrcoef(noise[:, k], y[:, k])[0, 1] > correlation for k in range(3))


@pytest.mark.parametrize("num_points", [200, 2000])
def test_a_curve_leaves_the_noise_around_it(num_points):
    x = ridge(num_points, 3)
    found = fit(x, np.zeros(num_points))
    assert [(step.target, step.source) for step in found.steps] == [(1, 0)]
    assert 0.045 < np.std(found.straighten(x)[:, 1]) < 0.06
    np.testing.assert_array_equal(found.straighten(x)[:, [0, 2]], x[:, [0, 2]])


def test_weights_count():
    """Half of the points are on another curve, and count for nothing."""
    x = ridge(2000, 2)
    x[1000:, 1] *= -1
    log_weights = np.where(np.arange(2000) < 1000, 0.0, -50.0)
    all_points, half = fit(x, log_weights), fit(x[:1000], np.zeros(1000))
    # The knots lie between other points, and differ by 1e-5.
    np.testing.assert_allclose(all_points.straighten(x[:1000]), half.straighten(x[:1000]), atol=1e-4)


@pytest.mark.parametrize(
    "points",
    [
        np.random.default_rng(2).normal(size=(300, 20)),
        np.random.default_rng(3).normal(size=(300, 1)) + 0.03 * np.random.default_rng(4).normal(size=(300, 10)),
        ridge(50, 2),
        np.repeat(ridge(5, 2), 100, axis=0),
    ],
    ids=["Gaussian", "straight ridge", "few points", "equal values"],
)
def test_nothing_is_taken_without_a_curve_or_without_points(points):
    found = fit(points, np.zeros(len(points)))
    assert not found.steps
    np.testing.assert_array_equal(found.straighten(points), points)


@pytest.mark.parametrize("num_values", [7, 8, 10, 50])
def test_few_distinct_points_are_straightened_once(num_values):
    """A curve through one value of them all and the width that is left gain for ever, one after the other."""
    x = np.repeat(np.random.default_rng(7).normal(size=(num_values, 2)), 400 // num_values, axis=0)
    found = fit(x, np.zeros(len(x)))
    assert len({(step.target, step.source, bool(np.any(step.log_width))) for step in found.steps}) == len(found.steps)
    assert np.all(np.isfinite(found.straighten(x)))


def test_a_function_of_a_whole_number_is_straightened_once():
    """A warm start on a Poisson number and whether it is above four hung."""
    rng = np.random.default_rng(0)
    whole = rng.poisson(4, 1000)
    prior = nsflow.Prior({"whole": dist.Poisson(4.0), "above": dist.Bernoulli(0.5), "other": dist.Normal(0.0, 1.0)})
    samples = {"whole": 1.0 * whole, "above": 1.0 * (whole > 4), "other": rng.normal(size=1000)}
    x, log_weights = as_start(samples, prior).latent(prior)
    found = fit(x, log_weights)
    assert len({(step.target, step.source, bool(np.any(step.log_width))) for step in found.steps}) == len(found.steps)
    assert np.all(np.isfinite(found.straighten(x)))


def test_far_points_of_two_widths_can_be_squared_in_single_precision():
    x = np.random.default_rng(9).normal(size=(2000, 3))
    x[:, 2] *= np.exp(1.2 * (x[:, 0] + x[:, 1]))
    found = fit(x, np.zeros(2000))
    assert pairs(found, widths=True) == {(2, 0), (2, 1)}
    assert np.max(np.abs(found.straighten(20 * x))) < 1e18


def test_two_coordinates_that_tell_each_other_make_one_pair():
    x = ridge(2000, 2)
    x[:, 0] = np.abs(x[:, 0])
    assert len(fit(x, np.zeros(len(x))).steps) == 1


def test_splines_are_smooth_and_end_as_straight_lines():
    knots = np.array([-1.0, -0.2, 0.1, 0.5, 2.0])
    for x in (np.linspace(-9, -1, 9), np.linspace(2, 9, 9)):
        columns = basis(x, knots)
        np.testing.assert_allclose(np.diff(columns, 2, axis=0), 0, atol=1e-12 * np.max(np.abs(columns)))
    columns = basis(np.linspace(-3, 4, 7001), knots)
    assert columns.shape == (7001, 7)
    assert np.linalg.matrix_rank(columns) == 7
    assert np.max(np.abs(np.diff(columns, 2, axis=0))) < 1e-5  # no jump of value or slope
    inside = np.diff(basis(np.linspace(-1, 2, 3001), knots), 3, axis=0)
    assert np.max(np.abs(inside)) < 1e-7  # nor, between the outer knots, of curvature


def test_far_points_stay_where_numbers_are():
    """A chain of ten, each by twice the square of the one before: continued as parabolas, it would end beyond 1e300."""
    (one,) = fit(ridge(2000, 2), np.zeros(2000)).steps
    chain = TriangularMap(tuple(one._replace(target=i + 1, source=i) for i in reversed(range(9))))
    far = 10 * np.random.default_rng(6).normal(size=(100, 10))
    assert np.max(np.abs(chain.bend(far))) < 1e10
    np.testing.assert_allclose(chain.straighten(chain.bend(far)), far, atol=1e-3)


@pytest.mark.parametrize("points", [ridge(2000, 2), funnel(2000, 3)[:, [0, 2]]], ids=["ridge", "funnel"])
def test_density_of_draws_is_that_of_their_points(points):
    """And the mass is one: draws of a wide Gaussian in x, weighed by the density."""
    bent = Bent(Gaussian(np.zeros(2), np.diag([0.7, 0.4])), fit(points, np.zeros(2000)))
    x, log_q = bent.sample_and_log_prob(jax.random.key(0), 1000)
    np.testing.assert_allclose(bent.log_prob(x), log_q, rtol=1e-9)
    wide = Gaussian(np.array([0.0, 1.5]), np.diag([1.5, 3.0]))
    x, log_wide = wide.sample_and_log_prob(jax.random.key(1), 100_000)
    weights = np.exp(bent.log_prob(x) - log_wide)
    assert abs(np.mean(weights) - 1) < 4 * np.std(weights) / np.sqrt(len(weights)) < 0.05


def flat(p):
    return 0.0 * p["x"][0]


@pytest.mark.parametrize("num_dims", [3, 8], ids=["kernels", "one Gaussian"])
@pytest.mark.parametrize("is_curved", [True, False])
def test_levels_are_straightened_where_that_gains(num_dims, is_curved):
    prior = nsflow.Prior({"x": dist.Normal(jnp.zeros(num_dims), 1.0).to_event(1)})
    state = nsflow.init(jax.random.key(0), nsflow.Problem(nsflow.JaxLikelihood(flat), prior))
    x = ridge(1000, num_dims, width=0.02) if is_curved else np.random.default_rng(0).normal(size=(1000, num_dims))
    proposal = fit_cheap(jax.random.key(1), state, x, np.zeros(1000))
    mixed = Mixture((Gaussian(np.zeros(num_dims), np.eye(num_dims)), proposal), (0.5, 0.5))
    assert (straightener_of(proposal) is not None) is (straightener_of(mixed) is not None) is is_curved


def test_a_curved_ridge_keeps_its_ends():
    """Without straightening this run is 0.38 nats low after 39 000 calls, and not at its end."""
    others = {f"c{i}": dist.Uniform(-10, 10) for i in range(10)}
    prior = nsflow.Prior({"a": dist.Uniform(-5, 5), "b": dist.Uniform(-5, 45), **others})

    def log_likelihood(p):
        z = jnp.stack([p["a"], (p["b"] - 2 * p["a"] ** 2) / 0.05, *((p[name] - 2) / 0.2 for name in others)])
        return -0.5 * jnp.sum(z**2) - 6 * jnp.log(2 * jnp.pi) - jnp.log(0.05 * 0.2**10)

    result = nsflow.run(log_likelihood, prior, seed=2, ess=3000, max_calls=30_000, progress=False)
    assert result.finished
    assert not result.alarms
    assert abs(result.logZ + np.log(500.0) + 10 * np.log(20.0)) < 4 * result.logZ_err < 0.1
