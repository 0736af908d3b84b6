"""Draws and their bookkeeping: every point's density under all that was drawn, in closed form."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from scipy import stats

import nsflow
from nsflow.flow.flow import Flow
from nsflow.nested.draws import Batches, pool
from nsflow.nested.state import count, draw, learn
from nsflow.proposals.meta_proposal import Draws, MetaProposal

MEANS, WIDTHS = (1.0, -2.0), (0.5, 0.8)


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def log_q(x):
    """Densities of the prior and of the two flows, shape (n, 3)."""
    return np.stack([stats.norm.logpdf(x[:, 0], m, s) for m, s in zip((0, *MEANS), (1, *WIDTHS), strict=True)], axis=1)


def log_sum(num_draws, x):
    """Log of the sum of the flows' densities times their draws."""
    with np.errstate(divide="ignore"):
        return np.logaddexp.reduce(log_q(x)[:, 1:] + np.log(num_draws), axis=1)


@pytest.fixture
def state():
    """100 points of the prior N(0, 1), and two normal flows not yet drawn from."""
    prior = nsflow.Prior({"a": dist.Normal(0, 1)})
    problem = nsflow.Problem(nsflow.JaxLikelihood(lambda p: -(p["a"] ** 2)), prior)
    flows = [
        replace(Flow.from_velocity(lambda _, x: x, 1, num_steps=0), mean=np.array([m]), scale=np.array([[s]]))
        for m, s in zip(MEANS, WIDTHS, strict=True)
    ]
    return nsflow.init(jax.random.key(0), problem, nsflow.Settings(num_prior=100)).add(*flows)


def everything(state):
    return np.ones(len(state.points.x), bool)


def test_every_point_knows_all_draws(state):
    """The counted density of old and new points is sum_k n_k q_k, and that of the prior is beside it."""
    after = draw(jax.random.key(1), state, {0: 20, 1: 30, 2: 50}, everything(state))
    points = after.points
    assert (after.num_draws, points.num_prior, after.num_calls) == ((120, 30, 50), 120, state.num_calls + 100)
    assert points.x.shape == (200, 1)
    np.testing.assert_array_equal(points.x[:100], state.points.x)
    np.testing.assert_allclose(points.log_flows, log_sum((30, 50), points.x), atol=1e-6)
    np.testing.assert_allclose(points.log_likelihood, -(points.x[:, 0] ** 2))
    mixture = np.logaddexp.reduce(log_q(points.x) + np.log([120, 30, 50]), axis=1)
    np.testing.assert_allclose(points.log_prior_weights, log_q(points.x)[:, 0] - mixture, atol=1e-6)


def test_only_active_points_learn_of_a_new_component(state):
    active = state.points.x[:, 0] > 0
    points = count(state, {0: 7, 1: 30, 2: 0}, active).points
    np.testing.assert_allclose(points.log_flows[active], log_sum((30, 0), points.x[active]), atol=1e-6)
    assert np.all(points.log_flows[~active] == -np.inf)
    assert np.all(state.points.log_flows == -np.inf)  # the state that came in stays as it was


def test_later_draws_of_a_component_are_booked_for_new_points_alone(state):
    once = draw(jax.random.key(1), state, {1: 30}, everything(state))
    twice = draw(jax.random.key(2), once, {1: 10}, everything(once))
    assert twice.num_draws == (100, 40, 0)
    np.testing.assert_array_equal(twice.points.log_flows[:130], once.points.log_flows)
    np.testing.assert_allclose(twice.points.log_flows[130:], log_sum((40, 0), twice.points.x[130:]), atol=1e-6)


def test_learned_draws_join_the_points_and_are_booked(state):
    """Two frozen batches of the prior and the second flow: each point once, no call twice, counts of both batches."""
    state = draw(jax.random.key(1), state, {1: 30}, everything(state))
    proposal = MetaProposal.of(state.components, (0, 2), (20, 25))
    batches = [proposal.sample(jax.random.key(seed)) for seed in (2, 3)]
    draws = Draws(*(np.concatenate(pair) for pair in zip(*batches, strict=True)))
    frozen = Batches(proposal, (0, 2), 2, draws, -(draws.x[:, 0] ** 2), log_q(draws.x)[:, 0])
    after = learn(state, frozen, everything(state))
    assert (after.num_draws, after.points.num_prior, after.num_calls) == ((140, 30, 50), 140, state.num_calls)
    np.testing.assert_array_equal(after.points.x, np.concatenate([state.points.x, draws.x]))
    np.testing.assert_array_equal(after.points.log_likelihood[130:], frozen.log_likelihood)
    np.testing.assert_allclose(after.points.log_flows, log_sum((30, 50), after.points.x), atol=1e-6)


def batches(weights, num_draws):
    """One batch of draws with these weights, from one component; the other draws of it were dropped."""
    log_weights, zero = np.log(weights), np.zeros(len(weights))
    draws = Draws(np.zeros((len(weights), 1)), zero.astype(int), zero, zero[:, None])
    return Batches(
        MetaProposal((Flow.from_velocity(lambda _, x: x, 1),), (num_draws,)), (0,), 1, draws, log_weights, zero
    )


def test_pooled_draws_count_for_their_credit():
    """Z = (sum w + c sum v) / (n + c m), with n and m the draws that were made, dropped ones included."""
    first, second, credit = batches([2.0, 4.0, 3.0], 5), batches([1.0, 7.0], 4), 0.3
    fresh = pool((first, second), (1.0, credit))
    expected = (9 + credit * 8) / (5 + credit * 4)
    assert fresh.num_draws.tolist() == [5, 4]
    assert fresh.stratum.tolist() == [0, 0, 0, 1, 1]
    assert np.sum(np.exp(fresh.log_weights)) / 9 == pytest.approx(expected)
    estimate = fresh.estimate()
    assert estimate.logZ == pytest.approx(np.log(expected))
    # Var Z = (n var(w) + c^2 m var(v)) / (n + c m)^2, with the dropped draws as zeros.
    n_var = 5 * np.var([2, 4, 3, 0, 0], ddof=1) + credit**2 * 4 * np.var([1, 7, 0, 0], ddof=1)
    assert estimate.logZ_err == pytest.approx(np.sqrt(n_var) / (5 + credit * 4) / expected)


def test_draws_without_credit_do_not_count():
    alone, other = batches([2.0, 4.0], 2), batches([100.0, 1.0], 2)
    assert pool((other, alone), (0.0, 1.0)).estimate().logZ == pytest.approx(np.log(3))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("compression", None),
        ("compression", (-1.0,)),
        ("compression", (np.nan, -1.0)),
        ("prior_share", None),
        ("prior_share", "0.1"),
        ("rounds", 3),
        ("rounds", (np.inf,)),
        ("num_prior", 200.5),
        ("num_live", True),
        ("max_scouts", -1),
        ("kernel_dims", 2.5),
        ("max_rounds", 0),
        ("max_restarts", None),
        ("ess", "50"),
        ("ess", np.array([50.0])),
        ("max_calls", 10**400),
        ("max_levels", True),
        ("max_seconds", np.nan),
        ("logZ_err", 1j),
        ("training", "x"),
        ("training", None),
        ("training", {"num_steps": 3}),
        ("proposal", nsflow.KernelEstimator),
    ],
)
def test_options_that_no_run_could_use_are_refused_by_name(name, value):
    with pytest.raises((ValueError, TypeError), match=f"`{name}` expected .*; got "):
        nsflow.Settings(**{name: value})


@pytest.mark.parametrize("kind", [np.float32, np.int64, np.asarray, jnp.asarray], ids=lambda kind: kind.__name__)
def test_any_real_scalar_is_a_number_of_pythons_own(kind):
    settings = nsflow.Settings(ess=kind(50), max_calls=kind(3000), rounds=[kind(1)])
    assert settings == nsflow.Settings(ess=50, max_calls=3000, rounds=(1,))
    assert {type(value) for value in (settings.ess, settings.max_calls, *settings.rounds)} <= {int, float}
    whole = np.int64(300) if kind is np.float32 else kind(300)
    assert type(nsflow.Settings(num_prior=whole).num_prior) is int


@pytest.mark.parametrize("name", ["num_prior", "num_live", "ess"])
def test_more_draws_than_memory_holds_are_refused_at_once(name):
    settings = nsflow.Settings(**{name: 10**12, "max_calls": 10**13})
    prior = nsflow.Prior({"a": dist.Normal(0, 1)})
    with pytest.raises(
        ValueError, match=rf"`{name}` expected at most \d+ draws, which fill the .* GiB .* got 10{{12}}"
    ):
        nsflow.run(lambda p: -(p["a"] ** 2), prior, settings=settings)
    nsflow.Settings(**{name: 10**12, "max_calls": 3000}).require_memory(1)  # which it never reaches
