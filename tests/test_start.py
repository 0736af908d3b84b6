"""Warm starts: fewer calls from good samples, the right evidence from wrong ones, and refusals."""

import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from scipy import stats

import nsflow
from nsflow.nested.warm_start import as_start

FALSE_ALARM = 1e-4
PRIOR = nsflow.Prior({"x": dist.Uniform(-5, 5), "y": dist.Uniform(-5, 5)})


def run(*centres, **options):
    """Normals of width 0.3 on the diagonal, and their evidence."""

    def log_likelihood(p):
        return np.logaddexp.reduce([-0.5 * ((p["x"] - c) ** 2 + (p["y"] - c) ** 2) / 0.3**2 for c in centres])

    likelihood = nsflow.HostLikelihood(log_likelihood, vectorized=True)
    return nsflow.run(likelihood, PRIOR, **{"ess": 500, **options}), np.log(len(centres) * 2 * np.pi * 0.3**2 / 100)


def around(centre, num=500):
    return np.random.default_rng(0).normal(centre, 0.3, (num, 2))


def test_start_from_another_model_saves_calls():
    """Where climbs are no help: on a ring."""
    logZ = np.log(2 * np.pi * 2 * np.sqrt(2 * np.pi) * 0.1 / 100)

    def run(centre, **options):
        ring = lambda p: -0.5 * ((np.hypot(p["x"] - centre, p["y"]) - 2) / 0.1) ** 2  # noqa: E731
        return nsflow.run(nsflow.HostLikelihood(ring, vectorized=True), PRIOR, ess=500, **options)

    old, cold = run(0.0), run(0.1)
    warm = run(0.1, start=old)
    # Runs end beyond their target by up to a batch, so calls are counted for each effective sample.
    assert warm.num_calls / warm.ess < 0.9 * cold.num_calls / cold.ess
    assert abs(warm.logZ - logZ) < 5 * warm.logZ_err
    assert warm.logZ_err < 0.05


@pytest.mark.parametrize("centres", [(-3.0,), pytest.param((-2.0, 2.0), marks=pytest.mark.slow)])
def test_wrong_start_leaves_the_evidence_right(centres):
    """Samples where no evidence is, or of one of two modes: pulls over seeds have mean 0 and variance 1."""
    runs = [run(*centres, start=around(2.0), seed=seed) for seed in range(6)]
    pulls = np.array([(result.logZ - logZ) / result.logZ_err for result, logZ in runs])
    assert max(result.logZ_err for result, _ in runs) < 0.06
    assert 2 * stats.norm.sf(abs(pulls.mean()) * np.sqrt(len(pulls))) > FALSE_ALARM
    tail = stats.chi2.cdf(np.sum(pulls**2), len(pulls))
    assert 2 * min(tail, 1 - tail) > FALSE_ALARM


def test_start_belongs_to_the_checkpoint(tmp_path):
    path = tmp_path / "run.nsflow"
    capped, _ = run(0.0, start=around(0.0), checkpoint=path, max_calls=2500)
    assert capped.stop_reason == "max_calls reached"
    with pytest.raises(ValueError, match="the samples of this call's `start`"):
        run(0.0, start=around(0.1), checkpoint=path)
    resumed, _ = run(0.0, start=around(0.0), checkpoint=path)
    assert resumed == run(0.0, start=around(0.0))[0]


def test_samples_far_beyond_a_prior_without_edges_are_outside():
    """Of a normal prior the latent point of 1e300 has a square that is no number."""
    prior = nsflow.Prior({"a": dist.Normal(0, 1)})
    samples = np.random.default_rng(0).normal(size=(50, 1))
    assert len(as_start(np.append(samples, [[1e300]], axis=0), prior).latent(prior)[0]) == 50


def test_samples_of_every_kind_are_the_same():
    prior = nsflow.Prior({"a": dist.Normal(0, 1), "b": dist.Uniform(-1, 1).expand([2])})
    array = np.random.default_rng(0).uniform(-1, 1, (50, 3))
    given = {"b": array[:, 1:], "a": array[:, 0]}
    assert np.array_equal(as_start(given, prior).samples, array)
    assert np.array_equal(as_start(jnp.asarray(array), prior).samples, array.astype(np.float32))
    assert as_start(given, prior).digest() == as_start(array, prior).digest()
    x, _ = as_start(array, prior).latent(prior)
    np.testing.assert_allclose(prior.flatten(prior.forward(x)), array, atol=1e-6)
    outside = np.concatenate([array, [[0, 5, 5], [np.nan, 0, 0]]])
    assert len(as_start(outside, prior).latent(prior)[0]) == 50


@pytest.mark.parametrize(
    ("start", "error", "message"),
    [
        (around(0.0)[:, :1], ValueError, r"shape \(n, 2\)"),
        (np.zeros((500, 2)), ValueError, "at least 30 distinct samples"),
        (around(100.0), ValueError, "at least 30 distinct samples"),
        ({"x": np.zeros(5)}, ValueError, r"samples of \['x', 'y'\]"),
        ({"x": np.zeros(5), "y": np.zeros(4)}, ValueError, "got shapes"),
        ({"x": 0.0, "y": 0.0}, ValueError, "got shapes"),
        ("chain.csv", TypeError, "a dict or an array"),
        (np.array([["a", "b"]] * 500), TypeError, "`start` expected an array of real numbers"),
        ({"x": ["a"], "y": ["b"]}, TypeError, "`start` for its 'x' expected an array of real numbers; got .'a'."),
        ({"x": [None], "y": [None]}, TypeError, "real numbers"),
        ({"x": [1j], "y": [1j]}, TypeError, "real numbers"),
        ({"x": [[1], [1, 2]], "y": [1, 2]}, ValueError, "rows of equal length"),
        ({"x": [], "y": []}, ValueError, "at least 30 distinct samples .* got 0 of 0"),
        (np.zeros((0, 2)), ValueError, "at least 30 distinct samples .* got 0 of 0"),
        (np.full((500, 2), np.nan), ValueError, "got 0 of 500"),
        ({1: [0.0]}, ValueError, r"samples of \['x', 'y'\]; got \[1\]"),
    ],
)
def test_nonsense_is_refused(start, error, message):
    with pytest.raises(error, match=message):
        run(0.0, start=start)
