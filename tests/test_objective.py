"""The flow matching loss and its minimiser."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nsflow.flow.objective import FlowMatching, Regression, flow_matching
from nsflow.flow.path import LinearPath, TrigonometricPath

X0, X1 = jnp.array([1.0, -2.0]), jnp.array([3.0, 0.5])


@pytest.mark.parametrize("path", [LinearPath(), TrigonometricPath()])
def test_loss_is_the_mean_squared_distance_to_the_velocity(path):
    """The field u_t itself has loss 0; one that is off by delta has mean delta^2, at the point x_t."""
    t, delta = jnp.array(0.3), jnp.array([0.5, -1.0])
    x_t, u_t = path.sample(t, X0, X1)

    def field(at, x):
        np.testing.assert_array_equal(at, t)
        np.testing.assert_array_equal(x, x_t)
        return u_t + delta

    assert flow_matching(lambda *_: u_t, path, t, X0, X1) == 0
    assert flow_matching(field, path, t, X0, X1) == pytest.approx(0.625, rel=1e-5)


def test_minimiser_is_the_marginal_velocity():
    """N(0, 1) to N(m, s^2) on straight lines: E[u|x] = m + (t s^2 - (1 - t)) / (t^2 s^2 + (1 - t)^2) (x - t m).

    Least squares over the linear fields a + b x at one t finds it, to the Monte-Carlo error of 200 000 pairs.
    """
    m, s, t, n = 1.5, 0.4, 0.7, 200_000
    x0, x1 = jax.random.normal(jax.random.key(0), (2, n, 1)) * jnp.array([1.0, s])[:, None, None]
    x1 = x1 + m

    @jax.jit
    def loss(field):
        def one(x0, x1):
            return flow_matching(lambda _, x: field[:1] + field[1:] * x, LinearPath(), jnp.array(t), x0, x1)

        return jnp.mean(jax.vmap(one)(x0, x1))

    # The loss is a parabola, so one Newton step from anywhere ends at its minimum.
    start = jnp.zeros(2)
    minimiser = start - jnp.linalg.solve(jax.hessian(loss)(start), jax.grad(loss)(start))
    slope = (t * s**2 - (1 - t)) / (t**2 * s**2 + (1 - t) ** 2)
    np.testing.assert_allclose(minimiser, [m - slope * t * m, slope], atol=0.02)


def test_flow_matching_objective_is_the_mean_loss_of_its_pairs():
    rows, objective = jnp.arange(12.0, dtype=jnp.float32).reshape(6, 2), FlowMatching(LinearPath())
    t, x0 = objective.pair(jax.random.key(0), rows)

    def field(t, x):
        return t * x

    expected = [flow_matching(field, LinearPath(), *triple) for triple in zip(t, x0, rows, strict=True)]
    assert objective(jax.random.key(0), field, rows) == pytest.approx(np.mean(expected), rel=1e-5)


@pytest.mark.parametrize(
    ("wanted", "predicted", "loss"),
    [
        (0.0, 0.5, 0.125),
        (0.0, -3.0, 2.5),
        (-10.0, -14.0, 0.0),  # at the floor: lower still is as good
        (-10.0, -8.0, 1.5),  # but higher is wrong
    ],
)
def test_regression_is_huber_above_its_floor(wanted, predicted, loss):
    rows = jnp.array([[1.0, 2.0, wanted]])
    assert Regression(floor=-10.0)(jax.random.key(0), lambda x: predicted + 0 * x[0], rows) == pytest.approx(loss)
