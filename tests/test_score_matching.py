"""Score matching: denoising and implicit losses have one minimiser and a known difference."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nsflow.diffusion.process import ProcessPath, VarianceExploding, VariancePreserving
from nsflow.diffusion.score_matching import (
    DenoisingScoreMatching,
    ExactDivergence,
    ImplicitScoreMatching,
    LikelihoodWeighting,
    NoiseVariance,
    SlicedDivergence,
    Unweighted,
    denoising_score_matching,
    implicit_score_matching,
    score,
)
from nsflow.flow.path import LinearPath, TrigonometricPath
from tests.marginals import MixtureOnPath

PATHS = {
    "linear": LinearPath(),
    "trigonometric": TrigonometricPath(),
    "VP": ProcessPath(VariancePreserving()),
    "VE": ProcessPath(VarianceExploding(0.1, 3.0)),
}
EVERY_PATH = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
WEIGHTINGS = pytest.mark.parametrize("weighting", [NoiseVariance(), LikelihoodWeighting(), Unweighted()])
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(80)
DATA = np.array([-1.0, 0.2, 1.4])  # in one dimension
T = 0.6


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


def mean(loss):
    """Mean of loss(x0, x1) over x0 ~ N(0, 1), by quadrature, and over the data."""
    pairs = jnp.stack([v.ravel() for v in jnp.meshgrid(jnp.asarray(NODES), jnp.asarray(DATA), indexing="ij")], axis=1)
    values = jax.vmap(lambda pair: loss(pair[:1], pair[1:]))(pairs).reshape(80, 3)
    return jnp.asarray(WEIGHTS) @ jnp.mean(values, axis=1) / np.sqrt(2 * np.pi)


def losses(path, weighting, theta):
    """Both losses of the field with parameters theta, at one time."""
    t = jnp.array(T)
    field = lambda t, x: theta[0] * x + theta[1] * jnp.tanh(x - theta[2])  # noqa: E731
    exact, key = ExactDivergence(), jax.random.key(0)
    denoising = mean(lambda x0, x1: denoising_score_matching(field, path, weighting, t, x0, x1))
    implicit = mean(
        lambda x0, x1: implicit_score_matching(
            field, path, weighting, exact, key, t, path.alpha(t) * x1 + path.sigma(t) * x0
        )
    )
    return denoising, implicit


@EVERY_PATH
@WEIGHTINGS
def test_losses_differ_by_a_constant(path, weighting):
    """lambda d / (2 sigma^2) whatever the field, by quadrature; so that both have one gradient and one minimiser."""
    t, theta = jnp.array(T), jnp.array([0.4, -0.7, 0.3])
    constant = 0.5 * weighting(path, t) / path.sigma(t) ** 2
    denoising, implicit = losses(path, weighting, theta)
    np.testing.assert_allclose(denoising - implicit, constant, rtol=1e-6)
    gradients = [jax.grad(lambda theta, i=i: losses(path, weighting, theta)[i])(theta) for i in (0, 1)]
    assert np.max(np.abs(gradients[0])) > 1e-2
    np.testing.assert_allclose(*gradients, rtol=1e-5, atol=1e-7)


@EVERY_PATH
def test_minimiser_is_the_score(path):
    """No perturbation of the true mean noise of a mixture changes its implicit loss to first order."""
    target = MixtureOnPath(path, weights=(1 / 3,) * 3, means=tuple((m,) for m in DATA), widths=(0.0, 0.0, 0.0))
    t = jnp.array(T)

    def loss(size):
        field = lambda t, x: target.noise(t, x) + size * jnp.sin(2 * x + 0.3)  # noqa: E731
        return mean(lambda x0, x1: denoising_score_matching(field, path, NoiseVariance(), t, x0, x1))

    slope, curvature = jax.grad(loss)(0.0), jax.grad(jax.grad(loss))(0.0)
    assert curvature > 0.1
    np.testing.assert_allclose(slope, 0, atol=1e-4 * curvature)


def test_score_of_the_mean_noise():
    target = MixtureOnPath(TrigonometricPath())
    t, x = jnp.array(T), jnp.array([0.3, -1.0])
    np.testing.assert_allclose(score(target.noise, target.path)(t, x), target.score(t, x), rtol=1e-12)


def test_weightings():
    path, t = ProcessPath(VariancePreserving()), jnp.array(T)
    assert NoiseVariance()(path, t) == path.sigma(t) ** 2
    assert LikelihoodWeighting()(path, t) == pytest.approx(path.diffusion(t) ** 2)
    assert Unweighted()(path, t) == 1


def test_sliced_divergence_is_unbiased():
    """Exact for a diagonal Jacobian, and within 5 standard errors (2 (|A|^2 - diagonal) / m) for any other."""
    x, key = jnp.array([0.3, -0.8, 1.1]), jax.random.key(0)
    A = jnp.array([[1.0, 0.5, 0.0], [-0.3, 2.0, 0.7], [0.2, 0.1, -1.0]])
    assert ExactDivergence()(key, jnp.sin, x) == pytest.approx(float(jnp.sum(jnp.cos(x))))
    assert SlicedDivergence()(key, jnp.sin, x) == pytest.approx(float(jnp.sum(jnp.cos(x))))
    off = A + A.T - 2 * jnp.diag(jnp.diag(A))
    error = float(jnp.sqrt(jnp.sum(off**2) / 2 / 10_000))
    assert SlicedDivergence(10_000)(key, lambda x: A @ x, x) == pytest.approx(2.0, abs=5 * error)
    assert SlicedDivergence(1)(key, lambda x: A @ x, x) != pytest.approx(2.0, abs=1e-3)


@pytest.mark.parametrize("kind", [DenoisingScoreMatching, ImplicitScoreMatching])
def test_objectives_are_the_mean_over_their_times(kind):
    """Times are stratified between the first and the last, and the loss of the true noise is that of its mean error."""
    path, rows = TrigonometricPath(), jnp.asarray(np.random.default_rng(0).normal(size=(4096, 2)), jnp.float32)
    objective = kind(path, times=(0.2, 0.8))

    def loss(first, last):
        """Of the true noise of data that are N(0, I), but for a field that is far off between two times."""
        far = lambda t: jnp.where((first < t) & (t < last), jnp.asarray(1e3, t.dtype), path.sigma(t))  # noqa: E731
        return float(objective(jax.random.key(0), lambda t, x: far(t) * x, rows))

    value = loss(2.0, 3.0)
    assert loss(-1.0, 0.2) == loss(0.8, 2.0) == value  # no time lies outside
    assert loss(0.2, 0.201) > value + 1 < loss(0.799, 0.8)  # some lie at either end
    # E|sigma x_t - x0|^2 / 2 = d alpha^2 / 2, and the implicit loss is d / 2 less; cos^2 has mean 1/2.
    expected = 0.5 if kind is DenoisingScoreMatching else -0.5
    assert value == pytest.approx(expected, abs=0.05)  # five standard errors


def test_velocity_of_an_objective_is_the_probability_flow():
    target = MixtureOnPath(ProcessPath(VariancePreserving()))
    velocity = DenoisingScoreMatching(target.path).velocity(target.noise)
    t, x = jnp.array(T), jnp.array([0.3, -1.0])
    np.testing.assert_allclose(velocity(t, x), target.velocity(t, x), rtol=1e-9)
