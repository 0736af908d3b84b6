"""Action matching recovers a known potential."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from nsflow.diffusion.action_matching import ActionMatching, action_matching
from nsflow.flow.path import LinearPath, TrigonometricPath
from nsflow.flow.training import Training, train
from nsflow.flow.velocity import Architecture
from nsflow.numerics.precision import standard_promotion

X_NODES, X_WEIGHTS = np.polynomial.hermite_e.hermegauss(60)
T_NODES, T_WEIGHTS = np.polynomial.legendre.leggauss(60)
M, S = 1.5, 0.4


def gaussian_action(path):
    """Potential of N(0, 1) to N(M, S^2): v = m' + (s'/s) (x - m) is the gradient of s = m' x + s'/(2s) (x - m)^2."""

    def action(t, x):
        mean = lambda t: path.alpha(t) * M  # noqa: E731
        width = lambda t: jnp.sqrt((path.alpha(t) * S) ** 2 + path.sigma(t) ** 2)  # noqa: E731
        (m, dm), (s, ds) = (jax.jvp(f, (t,), (jnp.ones_like(t),)) for f in (mean, width))
        return jnp.sum(dm * x + ds / (2 * s) * (x - m) ** 2)

    return action


def expected_loss(path, action):
    """Mean of the loss by quadrature over t and each marginal, which are normal."""
    nodes = jnp.asarray(X_NODES)

    def at(t):
        m, s = path.alpha(t) * M, jnp.sqrt((path.alpha(t) * S) ** 2 + path.sigma(t) ** 2)
        one = jax.vmap(lambda z, z_t: action_matching(action, t, z[None], (m + s * z_t)[None], (M + S * z)[None]))
        return jnp.asarray(X_WEIGHTS) @ one(nodes, nodes) / np.sqrt(2 * np.pi)

    t = 0.5 * (jnp.asarray(T_NODES) + 1)
    return 0.5 * jnp.asarray(T_WEIGHTS) @ jax.vmap(at)(t)


@pytest.mark.parametrize("path", [LinearPath(), TrigonometricPath()])
@pytest.mark.parametrize("change", [lambda t, x: jnp.sin(2 * x[0] + t), lambda t, x: t * x[0] ** 2])
def test_known_potential_is_the_minimiser(path, change):
    """To first order nothing lowers the loss; to second order it is half the squared gradient of the change."""
    with jax.enable_x64(True):
        exact = gaussian_action(path)
        loss = lambda size: expected_loss(path, lambda t, x: exact(t, x) + size * change(t, x))  # noqa: E731
        slope, curvature = jax.grad(loss)(0.0), jax.grad(jax.grad(loss))(0.0)
    assert curvature > 0.1
    np.testing.assert_allclose(slope, 0, atol=1e-6)


def test_constants_change_nothing():
    """s + c(t) has the same loss, for c(0) - c(1) and the integral of c' cancel."""
    with jax.enable_x64(True):
        exact = gaussian_action(LinearPath())
        losses = [expected_loss(LinearPath(), lambda t, x, c=c: exact(t, x) + c * t**3) for c in (0.0, 5.0)]
    np.testing.assert_allclose(*losses, rtol=1e-9)


def test_training_recovers_the_potential_up_to_a_constant():
    """Taught from samples of the marginals, the potential is off by less than 15 % of its own spread."""
    path, rng = TrigonometricPath(), np.random.default_rng(0)
    rows = rng.normal(M, S, size=(4000, 1))
    objective, training = ActionMatching(path), Training(num_steps=1500, patience=100)
    field = objective.init(jax.random.key(0), 1, Architecture(width=32))
    learned, _ = standard_promotion(train)(
        jax.random.key(1),
        field,
        rows,
        np.zeros(len(rows)),
        objective=objective,
        training=training,
        score=lambda field: score(objective, field),
        score_now=-np.inf,
    )
    exact = gaussian_action(path)
    for t in (0.2, 0.5, 0.8):
        at = jnp.array(t, jnp.float32)
        m, s = float(path.alpha(at)) * M, float(np.hypot(path.alpha(at) * S, path.sigma(at)))
        x = jnp.asarray(stats.norm(m, s).ppf((np.arange(200) + 0.5) / 200)[:, None], jnp.float32)
        known = jax.vmap(lambda x, at=at: exact(at, x))(x)
        difference = jax.vmap(lambda x, at=at: learned(at, x))(x) - known
        assert np.std(difference) < 0.15 * np.std(known)


def score(objective, field):
    """Held-out loss at fixed times and noise."""
    rows = jnp.asarray(np.random.default_rng(9).normal(M, S, size=(2000, 1)), jnp.float32)
    return -float(objective(jax.random.key(9), field, rows))
