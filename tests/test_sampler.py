"""The loop: closed forms, honest errors over many seeds, reproducibility, caps, and wrong calls."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from scipy import stats

import nsflow
from nsflow.flow.velocity import Architecture
from nsflow.likelihood.likelihood import as_likelihood
from nsflow.nested.points import Points
from nsflow.nested.state import Phase, Problem
from nsflow.nested.summary import summarise
from nsflow.sampler import next_batch
from tests import targets

FALSE_ALARM = 1e-4  # chance that a correct nsflow fails any one statistical test of this file; the seeds are fixed
SMALL = Architecture(width=32, depth=2)
QUICK = nsflow.Settings(
    ess=1000,
    num_prior=1000,
    num_live=500,
    rounds=(0.5,),
    max_rounds=2,
    training=nsflow.Training(architecture=SMALL, num_steps=400, integration_steps=4),
)


@pytest.mark.parametrize("target", [targets.gaussian, targets.edge, targets.two_modes])
def test_evidence_is_unbiased_and_its_error_honest(target):
    """Pulls of logZ over seeds have mean 0 and, as the error bar says, variance 1."""
    log_likelihood, prior, logZ = target()
    results = [nsflow.run(log_likelihood, prior, seed=seed, settings=QUICK) for seed in range(8)]
    errors = np.array([result.logZ_err for result in results])
    pulls = (np.array([result.logZ for result in results]) - logZ) / errors
    tail = stats.chi2.cdf(np.sum(pulls**2), len(pulls))
    assert errors.max() < 0.05  # a wide error bar must not pass
    assert 2 * stats.norm.sf(abs(pulls.mean()) * np.sqrt(len(pulls))) > FALSE_ALARM
    assert 2 * min(tail, 1 - tail) > FALSE_ALARM
    assert all(result.finished and result.ess >= 1000 for result in results)


def test_scouting_finds_the_mode_that_the_ladder_loses(monkeypatch):
    """With the narrow mode the evidence is right; without it, it is low by log 0.7 = -0.357."""
    monkeypatch.setattr("nsflow.nested.levels._looks_ahead", lambda _: False)  # climbs before the ladder find it, too
    log_likelihood, prior, logZ = targets.narrow_mode()
    settings = replace(QUICK, num_prior=4000, kernel_dims=0)
    result = nsflow.run(log_likelihood, prior, seed=1, settings=settings)
    ladder = [step for step in result.trace if step["phase"] == "ladder"]
    assert ladder[-1]["logZ"] < logZ - 0.2  # the ladder did lose it
    assert abs(result.logZ - logZ) < stats.norm.isf(FALSE_ALARM / 2) * result.logZ_err
    assert result.logZ_err < 0.06


def slab_with_spike(p):
    """A Gaussian of width 1 in 10-d, and one of width 0.1 with 100 times its evidence, 0.6 from its centre."""
    x = jnp.stack([p[name] for name in "abcdefghij"])
    spike = -0.5 * jnp.sum((x - 0.2) ** 2) / 0.1**2 + 10 * np.log(10) + np.log(100)
    return jnp.logaddexp(-0.5 * jnp.sum(x**2), spike)


def test_ladder_climbs_past_the_slab_into_the_spike():
    """Each of five ladders meets the spike's top, 27.6; of those that ended with the slab's evidence, none did."""
    problem = Problem(as_likelihood(slab_with_spike), nsflow.Prior({n: dist.Uniform(-5, 5) for n in "abcdefghij"}))
    for seed in range(5):
        key = jax.random.key(seed)
        state, i = nsflow.init(key, problem, nsflow.Settings()), 0
        while state.phase is Phase.LADDER:
            i += 1
            state, _ = nsflow.step(jax.random.fold_in(key, i), state)
        assert np.max(state.points.log_likelihood) > 26


def test_integrable_pole_is_no_endless_ladder():
    """L = |x|^-1/2 has no top, and the evidence 2 on (-1, 1)."""
    prior = nsflow.Prior({"x": dist.Uniform(-1.0, 1.0)})
    result = nsflow.run(lambda p: -0.5 * jnp.log(jnp.abs(p["x"])), prior, settings=replace(QUICK, num_live=None))
    assert abs(result.logZ - np.log(2)) < stats.norm.isf(FALSE_ALARM / 2) * result.logZ_err
    assert result.logZ_err < 0.05


def test_posterior_moments():
    """The weighted samples are the conjugate posterior."""
    log_likelihood, prior, _ = targets.gaussian()
    result = nsflow.run(log_likelihood, prior, seed=3, settings=QUICK)
    weights = np.exp(result.log_weights - result.logZ) / result.num_draws
    shrink = 3.0**2 / (3.0**2 + 0.3**2)
    deviation = 0.3 * np.sqrt(shrink)
    mean = weights @ result.samples / weights.sum()
    sigmas = stats.norm.isf(FALSE_ALARM / 4)  # two sides, two coordinates
    np.testing.assert_allclose(mean, shrink * np.array([1.0, -2.0]), atol=sigmas * deviation / np.sqrt(result.ess))


def test_constant_likelihood_has_evidence_of_its_value():
    prior = nsflow.Prior({"a": dist.Uniform(-1, 1), "b": dist.Normal(0, 1)})
    result = nsflow.run(lambda p: 0 * p["a"] + 2.5, prior, settings=QUICK)
    assert result.logZ == pytest.approx(2.5, abs=max(1e-9, 5 * result.logZ_err))
    assert result.logZ_err < 0.05


def test_offset_of_a_million_nats_changes_nothing_else():
    log_likelihood, prior, _ = targets.two_modes()
    plain = nsflow.run(log_likelihood, prior, settings=QUICK)
    shifted = nsflow.run(lambda p: log_likelihood(p) + 2.0**20, prior, settings=QUICK)
    assert shifted.logZ - 2.0**20 == pytest.approx(plain.logZ, abs=0.2)
    assert shifted.logZ_err < 0.05


def test_zero_likelihood_on_most_of_the_prior():
    """L = 1 on a disc of area pi/400 of the square, 0 elsewhere."""
    prior = nsflow.Prior({"x": dist.Uniform(-1, 1).expand([2])})
    result = nsflow.run(lambda p: jnp.where(jnp.sum(p["x"] ** 2) < 0.04, 0.0, -jnp.inf), prior, settings=QUICK)
    assert abs(result.logZ - np.log(np.pi * 0.04 / 4)) < stats.norm.isf(FALSE_ALARM / 2) * result.logZ_err


def test_same_seed_same_bits_and_other_seed_other_bits():
    log_likelihood, prior, _ = targets.gaussian()
    first, again, other = (nsflow.run(log_likelihood, prior, seed=seed, settings=QUICK) for seed in (5, 5, 6))
    assert first == again
    assert first.logZ != other.logZ


def test_host_likelihood_agrees_and_every_point_is_counted():
    log_likelihood, prior, _ = targets.two_modes()
    seen = []

    def host(params):
        seen.append(len(params["x"]))
        return np.asarray(jax.vmap(log_likelihood)({"x": jnp.asarray(params["x"])}), float)

    result = nsflow.run(nsflow.HostLikelihood(host, vectorized=True), prior, settings=QUICK)
    assert result.num_calls == sum(seen)
    assert abs(result.logZ - targets.two_modes().logZ) < 5 * result.logZ_err


@pytest.mark.parametrize("max_calls", [1100, 2000, 3500])
def test_cap_on_calls_is_kept_and_marked(max_calls):
    log_likelihood, prior, _ = targets.gaussian()
    result = nsflow.run(log_likelihood, prior, ess=1e5, max_calls=max_calls, settings=QUICK)
    assert result.num_calls <= max_calls
    assert not result.finished
    assert "max_calls" in result.stop_reason
    assert np.isfinite(result.logZ)


def test_nan_is_zero_likelihood_and_reported():
    log_likelihood, prior, _ = targets.edge()
    result = nsflow.run(lambda p: jnp.where(p["a"] > 0.5, jnp.nan, log_likelihood(p)), prior, settings=QUICK)
    assert any("NaN" in alarm for alarm in result.alarms)
    assert abs(result.logZ - targets.edge().logZ) < 5 * result.logZ_err + 1e-4


def test_steps_are_pure_and_batches_announced():
    """A step leaves its state alone, returns the same bits again, and never draws more than announced."""
    log_likelihood, prior, _ = targets.gaussian()
    problem = nsflow.Problem(nsflow.JaxLikelihood(log_likelihood), prior)
    state = nsflow.init(jax.random.key(0), problem, QUICK)
    while state.phase is not Phase.FINISHED:
        before = state.points.x.copy()
        key = jax.random.key(state.num_calls)
        after, info = nsflow.step(key, state)
        assert np.array_equal(state.points.x, before)
        assert after.num_calls - state.num_calls <= next_batch(state)
        assert info.num_calls == after.num_calls
        state = after
    assert summarise(state).finished


def test_training_points_estimate_the_evidence_too():
    """A guide only: the counted densities make even the ladder's estimate right to its training bias."""
    log_likelihood, prior, logZ = targets.gaussian()
    result = nsflow.run(log_likelihood, prior, max_calls=5000, ess=1e6, settings=QUICK)
    assert result.logZ == pytest.approx(logZ, abs=0.3)
    assert Points._fields[-1] == "num_prior"


PRIOR = nsflow.Prior({"a": dist.Normal(0, 1)})


def good(p):
    return -(p["a"] ** 2)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: nsflow.run(good, {"a": dist.Normal(0, 1)}), TypeError, "expected `prior` to be an nsflow.Prior"),
        (lambda: nsflow.run(None, PRIOR), TypeError, "expected"),
        (lambda: nsflow.run(good, PRIOR, seed=-1), ValueError, "`seed` expected an integer"),
        (lambda: nsflow.run(good, PRIOR, seed=1.5), ValueError, "`seed` expected an integer"),
        (lambda: nsflow.run(good, PRIOR, seed=True), ValueError, "`seed` expected an integer"),
        (lambda: nsflow.run(good, PRIOR, ess=0), ValueError, "`ess` expected a finite number"),
        (lambda: nsflow.run(good, PRIOR, ess=np.inf), ValueError, "`ess` expected a finite number"),
        (lambda: nsflow.run(good, PRIOR, max_calls=0), ValueError, "`max_calls` expected"),
        (lambda: nsflow.run(good, PRIOR, max_calls=100), ValueError, "`max_calls`"),
        (lambda: nsflow.run(good, PRIOR, settings={"ess": 10}), TypeError, "`settings` expected nsflow.Settings"),
        (lambda: nsflow.Settings(num_live=5), ValueError, "`num_live` expected"),
        (lambda: nsflow.Settings(num_prior=3), ValueError, "`num_prior` expected"),
        (lambda: nsflow.Settings(compression=(-0.5, -2.0)), ValueError, "`compression` expected"),
        (lambda: nsflow.Settings(prior_share=0.0), ValueError, "`prior_share` expected"),
        (lambda: nsflow.Settings(rounds=()), ValueError, "`rounds` expected"),
        (lambda: nsflow.run(lambda p: -jnp.inf, PRIOR), ValueError, "-inf"),
        (lambda: nsflow.run(lambda p: jnp.inf + p["a"], PRIOR), ValueError, r"\+inf"),
        (lambda: nsflow.run(lambda p: p["b"], PRIOR), LookupError, "parameters a"),
        (lambda: nsflow.run(lambda p: jnp.stack([p["a"], p["a"]]), PRIOR), (TypeError, ValueError), "scalar"),
        (lambda: nsflow.run(lambda p: float(p["a"]), PRIOR), TypeError, "HostLikelihood"),
        (lambda: nsflow.run(lambda p: None, PRIOR), (TypeError, ValueError), "None"),
    ],
)
def test_wrong_calls_are_refused_with_a_clear_message(call, error, message):
    with pytest.raises(error, match=message):
        call()
