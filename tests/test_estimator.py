"""Density estimators: one protocol, exact densities, and evidences that do not depend on which proposes."""

import copy
import pickle

import jax
import numpy as np
import pytest

import nsflow
from nsflow.adapters.flowjax import DiscreteFlowEstimator
from nsflow.densities.gaussian import Gaussian
from nsflow.diffusion.score_matching import DenoisingScoreMatching
from nsflow.flow.objective import FlowMatching
from nsflow.flow.path import LinearPath
from nsflow.flow.training import Training
from nsflow.flow.velocity import Architecture
from nsflow.proposals.estimators import (
    AbstractEstimator,
    FlowEstimator,
    GaussianEstimator,
    GaussianMixtureEstimator,
    KernelEstimator,
    resample,
)
from tests import targets

SMALL = Training(num_steps=300, architecture=Architecture(width=32))
ESTIMATORS = {
    "gaussian": GaussianEstimator(),
    "gaussian mixture": GaussianMixtureEstimator(num_components=(1, 2, 4)),
    "kernels": KernelEstimator(),
    "flow": FlowEstimator(SMALL),
    "score matching": FlowEstimator(Training(**vars(SMALL) | {"objective": DenoisingScoreMatching(SMALL.path)})),
    "discrete flow": DiscreteFlowEstimator(num_layers=2, width=16, max_epochs=10),
}
# A flow taught by score matching is compiled for a minute and is made like the others.
EVERY = pytest.mark.parametrize(
    "estimator",
    [
        pytest.param(estimator, id=name, marks=pytest.mark.slow if name == "score matching" else ())
        for name, estimator in ESTIMATORS.items()
    ],
)
POINTS = np.random.default_rng(0).normal(size=(2000, 2)) * [1.0, 0.3] + [2.0, -1.0]
POINTS[:, 1] += 0.5 * POINTS[:, 0] ** 2


@EVERY
def test_density_integrates_to_one_and_draws_have_it(estimator):
    """On a grid; and E_q[f/q] = 1 for a narrow normal f, within 5 standard errors."""
    density = estimator.fit(jax.random.key(0), POINTS, np.zeros(len(POINTS)))
    axes = np.linspace(-6, 10, 160), np.linspace(-9, 30, 390)
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 2)
    cell = (axes[0][1] - axes[0][0]) * (axes[1][1] - axes[1][0])
    assert np.nansum(np.exp(np.asarray(density.log_prob(grid)))) * cell == pytest.approx(1, abs=0.02)
    x, log_q = density.sample_and_log_prob(jax.random.key(1), 4000)
    narrow = Gaussian(np.array([2.0, 1.0]), 0.3 * np.eye(2))
    ratio = np.nan_to_num(np.exp(narrow.log_prob(np.asarray(x)) - log_q))
    assert np.mean(ratio) == pytest.approx(1, abs=5 * np.std(ratio) / 4000**0.5)
    kept = np.isfinite(log_q)
    assert kept.mean() > 0.98
    np.testing.assert_allclose(np.asarray(density.log_prob(x))[kept], np.asarray(log_q)[kept], atol=2e-3)
    np.testing.assert_array_equal(density.sample(jax.random.key(1), 4000), x)


@EVERY
def test_weights_count(estimator):
    """Points weighted towards one side give the mean of the weighted points."""
    log_weights = 1.5 * (POINTS[:, 0] - 2)
    density = estimator.fit(jax.random.key(0), POINTS, log_weights)
    x, _ = density.sample_and_log_prob(jax.random.key(1), 4000)
    weights = np.exp(log_weights)
    mean = weights @ POINTS[:, 0] / weights.sum()
    assert mean > 3
    assert np.mean(np.asarray(x)[:, 0]) == pytest.approx(mean, abs=0.25)


@EVERY
def test_run_with_any_proposal(estimator):
    """The evidence is right within 5 errors whatever proposes."""
    problem = targets.edge()
    result = nsflow.run(problem.log_likelihood, problem.prior, ess=1000, proposal=estimator)
    assert result.finished
    assert result.logZ == pytest.approx(problem.logZ, abs=5 * result.logZ_err)
    assert result.logZ_err < 0.1


def test_run_takes_a_user_s_estimator():
    """It is asked, with weights, in every round; what it returns proposes."""
    asked = []

    class Broad(AbstractEstimator):
        def fit(self, key, points, log_weights):  # noqa: ARG002
            asked.append((points.shape, log_weights.shape))
            gaussian = Gaussian.fit(points, log_weights)
            return Gaussian(gaussian.mean, 2 * gaussian.scale)

    problem = targets.gaussian()
    result = nsflow.run(problem.log_likelihood, problem.prior, ess=1000, proposal=Broad())
    assert asked
    assert all(points[0] == weights[0] for points, weights in asked)
    assert result.logZ == pytest.approx(problem.logZ, abs=5 * result.logZ_err)


@pytest.mark.parametrize("wrong", ["flow", GaussianEstimator, Gaussian(np.zeros(2), np.eye(2))])
def test_run_refuses_what_cannot_be_fitted(wrong):
    problem = targets.gaussian()
    with pytest.raises(TypeError, match="`proposal` expected an nsflow.AbstractEstimator"):
        nsflow.run(problem.log_likelihood, problem.prior, proposal=wrong)


def test_mixture_finds_the_number_of_modes():
    points = np.concatenate([np.random.default_rng(k).normal(6 * k, 1, size=(500, 1)) for k in range(4)])
    mixture = GaussianMixtureEstimator((1, 2, 4, 8)).fit(jax.random.key(0), points, np.zeros(2000))
    assert len(mixture.components) == 4


def test_flow_estimator_is_the_flow_with_a_wider_base():
    weights = np.zeros(len(POINTS))
    wide = FlowEstimator(SMALL).fit(jax.random.key(0), POINTS, weights)
    bare = FlowEstimator(SMALL, wide=False).fit(jax.random.key(0), POINTS, weights)
    assert isinstance(bare, nsflow.Flow)
    spread = [np.std(q.sample_and_log_prob(jax.random.key(1), 2000)[0][:, 0]) for q in (bare, wide)]
    assert spread[1] > 1.2 * spread[0]


def test_flow_estimator_takes_any_objective():
    training = Training(**vars(SMALL) | {"objective": FlowMatching(LinearPath())})
    assert FlowEstimator(training).fit(jax.random.key(0), POINTS, np.zeros(2000)).map.num_dims == 2


def test_resample_has_the_weights():
    """Systematic: a point of weight w comes n w times, up to one."""
    rng, points = np.random.default_rng(0), np.arange(4.0)[:, None]
    weights = np.array([0.1, 0.2, 0.3, 0.4])
    counts = np.bincount(resample(rng, points, np.log(weights), 1000)[:, 0].astype(int), minlength=4)
    np.testing.assert_allclose(counts, 1000 * weights, atol=1)
    assert len(resample(rng, points, np.log(weights))) == np.ceil(1 / np.sum(weights**2))


def test_missing_library_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sklearn.mixture", None)
    with pytest.raises(ImportError, match=r"pip install 'nsflow\[densities\]'"):
        GaussianMixtureEstimator().fit(jax.random.key(0), POINTS, np.zeros(2000))


@pytest.mark.parametrize(
    "sent",
    [*ESTIMATORS.values(), SMALL, nsflow.Settings(ess=50, training=SMALL)],
    ids=lambda sent: type(sent).__name__,
)
def test_what_is_sent_to_another_process_comes_back_equal(sent):
    assert pickle.loads(pickle.dumps(sent)) == copy.deepcopy(sent) == sent
