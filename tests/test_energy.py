"""Energy models: a gradient that is a score, and a normalising constant that nsflow finds."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import nsflow
from nsflow.densities.gaussian import Gaussian
from nsflow.diffusion.energy import Conservative, EnergyModel, gradient
from nsflow.diffusion.process import ProcessPath, VarianceExploding
from nsflow.diffusion.score_matching import DenoisingScoreMatching
from nsflow.flow.objective import FlowMatching
from nsflow.flow.path import LinearPath, TrigonometricPath
from nsflow.flow.training import Training
from nsflow.flow.velocity import Architecture

PATH = TrigonometricPath()


def modes(n, seed):
    rng = np.random.default_rng(seed)
    return np.where(rng.random(n) < 0.3, -2.0, 1.0)[:, None] * np.array([1.0, 0.5]) + 0.4 * rng.normal(size=(n, 2))


@pytest.fixture(scope="module")
def model():
    training = Training(num_steps=1000, architecture=Architecture(width=48))
    return EnergyModel.fit(jax.random.key(0), modes(4000, 0), training=training)[0]


@pytest.mark.parametrize("path", [PATH, LinearPath(), ProcessPath(VarianceExploding(0.1, 5.0))])
def test_untrained_model_is_the_gaussian_of_the_points(path):
    """E = z^2 / 2 in whitened coordinates, however wide the points of the path are there."""
    points = modes(500, 0)
    whole = Gaussian.fit(points)
    potential = Conservative(DenoisingScoreMatching(path)).init(jax.random.key(0), 2, Architecture(width=8))
    untrained = EnergyModel(potential, path, 0.7, whole)
    energy = [float(untrained.log_density(jnp.asarray(x, jnp.float32))) for x in points[:5]]
    np.testing.assert_allclose(energy, -0.5 * np.sum(whole.whiten(points[:5]) ** 2, axis=1), rtol=1e-4)


def test_score_is_the_gradient_of_the_density(model):
    x = jnp.array([0.3, -0.2])
    step = 1e-2 * jnp.eye(2)
    slope = [(model.log_density(x + h) - model.log_density(x - h)) / 2e-2 for h in step]
    np.testing.assert_allclose(model.score(x), slope, rtol=0.02, atol=0.05)
    noise = gradient(model.potential)(
        jnp.array(model.time), jnp.asarray(model.whole.whiten(np.asarray(x)[None])[0], jnp.float32)
    )
    expected = -np.linalg.solve(model.whole.scale.T, noise) / PATH.sigma(jnp.array(model.time))
    np.testing.assert_allclose(model.score(x), expected, rtol=1e-3)


def test_normalising_constant_by_nsflow(model):
    """logZ + log V is the log of a quadrature of e^-E over the box, within 5 errors."""
    result = nsflow.run(
        lambda p: model.log_density(p["x"].astype(jnp.float32)).astype(jnp.float64),
        nsflow.Prior({"x": dist.Uniform(-5.0, 5.0).expand([2])}),
        ess=2000,
    )
    axis = np.linspace(-5, 5, 301)
    points = jnp.asarray(np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2), jnp.float32)
    log_density = np.asarray(jax.jit(jax.vmap(model.log_density))(points), np.float64)
    expected = np.log(np.exp(log_density).sum() * (axis[1] - axis[0]) ** 2)
    assert result.logZ + np.log(100) == pytest.approx(expected, abs=5 * result.logZ_err)
    assert result.logZ_err < 0.05


def test_model_is_the_density_of_its_points(model):
    """Normalised by quadrature, held-out points have nearly the log-density that they have under the truth."""
    axis = np.linspace(-5, 5, 301)
    points = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
    evaluate = jax.jit(jax.vmap(model.log_density))
    mass = np.exp(np.asarray(evaluate(jnp.asarray(points, jnp.float32)))).sum() * (axis[1] - axis[0]) ** 2
    held_out = modes(1000, 1)
    learned = np.asarray(evaluate(jnp.asarray(held_out, jnp.float32))) - np.log(mass)
    parts = [
        w * np.exp(-np.sum((held_out - m * np.array([1, 0.5])) ** 2, axis=1) / 0.32) for w, m in ((0.3, -2), (0.7, 1))
    ]
    truth = np.log(sum(parts) / (2 * np.pi * 0.16))
    assert np.mean(truth) - np.mean(learned) < 0.15
    gaussian = Gaussian.fit(modes(4000, 0)).log_prob(held_out)
    assert np.mean(learned) > np.mean(gaussian) + 0.3


def test_refuses_an_objective_without_a_potential():
    with pytest.raises(TypeError, match="expected a Conservative"):
        EnergyModel.fit(jax.random.key(0), modes(100, 0), training=Training(objective=FlowMatching(PATH)))
