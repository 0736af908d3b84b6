"""Couplings keep both marginals; Sinkhorn's tends to the optimal assignment."""

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import linear_sum_assignment

from nsflow.flow.coupling import Independent, Sinkhorn
from nsflow.flow.objective import FlowMatching
from nsflow.flow.path import LinearPath

RNG = np.random.default_rng(0)
X0, X1 = (jnp.asarray(RNG.normal(loc, 1.0, size=(64, 2)), jnp.float32) for loc in (0.0, 1.0))


def test_independent_pairs_are_as_they_come():
    np.testing.assert_array_equal(Independent().pair(jax.random.key(0), X0, X1), X0)


def test_plan_has_uniform_marginals():
    plan = np.exp(Sinkhorn(num_iterations=300).log_plan(X0, X1))
    np.testing.assert_allclose(plan.sum(axis=0), 1 / 64, rtol=1e-4)
    np.testing.assert_allclose(plan.sum(axis=1), 1 / 64, rtol=5e-3)


def test_cost_tends_to_that_of_the_optimal_assignment():
    """Within 1 % at a small penalty; a large one couples independently."""
    cost = np.sum((np.asarray(X0)[:, None] - np.asarray(X1)[None]) ** 2, axis=2)
    best = cost[linear_sum_assignment(cost)].mean()
    small, large = (
        float(np.sum(np.exp(Sinkhorn(regularisation, 3000).log_plan(X0, X1)) * cost)) for regularisation in (0.002, 1e4)
    )
    assert best < cost.mean() / 2
    np.testing.assert_allclose(small, best, rtol=0.01)
    np.testing.assert_allclose(large, cost.mean(), rtol=0.01)


def test_pairs_are_draws_of_the_plan():
    """Over many keys each base point is drawn as often as any, to five standard errors."""
    keys = jax.random.split(jax.random.key(0), 500)
    coupling = Sinkhorn(num_iterations=300)
    pairs = np.asarray(jax.vmap(lambda key: coupling.pair(key, X0, X1))(keys))
    counts = np.array([np.sum(np.all(pairs == x, axis=2)) for x in np.asarray(X0)]) / 500
    np.testing.assert_allclose(counts, 1, atol=5 * 500**-0.5)
    distance = np.mean(np.sum((pairs - np.asarray(X1)) ** 2, axis=2))
    assert distance < 0.7 * np.mean(np.sum((np.asarray(X0)[:, None] - np.asarray(X1)[None]) ** 2, axis=2))


def test_flow_matching_uses_its_coupling():
    """The loss of the zero field is the mean squared distance of the pairs: smaller where they are near."""
    losses = [
        float(FlowMatching(LinearPath(), coupling=coupling)(jax.random.key(0), lambda t, x: 0 * x, X1))
        for coupling in (Independent(), Sinkhorn())
    ]
    assert losses[1] < 0.8 * losses[0]
