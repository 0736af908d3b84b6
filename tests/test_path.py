"""Probability paths: their ends, their rates, and the field of two Gaussians."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nsflow.flow.flow import Flow
from nsflow.flow.path import AbstractPath, LinearPath, TrigonometricPath


class QuadraticPath(AbstractPath):
    """A path that only a subclass knows: everything else follows from its two coefficients."""

    def alpha(self, t):
        return t**2

    def sigma(self, t):
        return 1 - t


PATHS = pytest.mark.parametrize(
    "path", [LinearPath(), TrigonometricPath(), QuadraticPath()], ids=lambda p: type(p).__name__
)
X0, X1 = jnp.array([1.0, -2.0]), jnp.array([3.0, 0.5])


@PATHS
def test_path_begins_at_the_base_and_ends_at_the_data(path):
    np.testing.assert_allclose(path.sample(jnp.array(0.0), X0, X1)[0], X0, atol=1e-6)
    np.testing.assert_allclose(path.sample(jnp.array(1.0), X0, X1)[0], X1, atol=1e-6)


@PATHS
@pytest.mark.parametrize("t", [0.0, 0.3, 1.0])
def test_velocity_is_the_rate_of_the_point(path, t):
    """u_t = dx_t/dt by autodiff."""
    _, u_t = path.sample(jnp.array(t), X0, X1)
    np.testing.assert_allclose(u_t, jax.jacfwd(lambda t: path.sample(t, X0, X1)[0])(jnp.array(t)), rtol=1e-6)


@PATHS
@pytest.mark.parametrize("t", [0.1, 0.5, 0.9])
def test_gaussian_velocity_is_the_regression_on_the_point(path, t):
    """E[u|x] = Cov(u, x) / Var(x) x; both moments are those of orthonormal x0 and x1."""
    t = jnp.array(t)
    (x_0, u_0), (x_1, u_1) = (path.sample(t, *ends) for ends in (jnp.eye(2)[:, :1], jnp.eye(2)[:, 1:]))
    slope = (x_0 * u_0 + x_1 * u_1) / (x_0**2 + x_1**2)
    np.testing.assert_allclose(path.gaussian_velocity(t, jnp.ones(1)), slope, rtol=1e-5, atol=1e-6)


@PATHS
def test_flow_of_the_gaussian_velocity_is_the_identity(path):
    with jax.enable_x64(True):
        flow = Flow.from_velocity(path.gaussian_velocity, 2, num_steps=64)
        z = np.random.default_rng(0).normal(size=(10, 2))
        np.testing.assert_allclose(flow.forward(z), z, atol=1e-5)


def test_trigonometric_path_keeps_the_variance():
    """alpha^2 + sigma^2 = 1."""
    path, t = TrigonometricPath(), jnp.linspace(0, 1, 11)
    np.testing.assert_allclose(path.alpha(t[3]) ** 2 + path.sigma(t[3]) ** 2, 1, rtol=1e-6)


def test_abstract_path_has_no_instances():
    with pytest.raises(TypeError, match="abstract"):
        AbstractPath()
