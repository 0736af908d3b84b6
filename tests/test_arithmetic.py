"""The caller's choices for floats and transfers are those of their own functions, not of ours."""

import jax
import matplotlib as mpl
import numpy as np
import numpyro.distributions as dist
import pytest
from matplotlib.figure import Figure

import nsflow
from nsflow import plots
from nsflow.numerics.arithmetic import OURS
from nsflow.results.text import summary

PRIOR = nsflow.Prior({"a": dist.Uniform(-5.0, 5.0), "b": dist.Normal(0.0, 1.0)})
SMALL = nsflow.Settings(ess=200, num_prior=200, num_live=100, proposal=nsflow.KernelEstimator())


def log_likelihood(p):
    return -0.5 * ((p["a"] - 0.3) / 0.01) ** 2 - 0.5 * (p["b"] / 0.1) ** 2


@pytest.fixture
def _strict():
    """Every float error raises, no transfer is allowed."""
    with np.errstate(all="raise"), jax.transfer_guard("disallow"):
        yield


@pytest.fixture(scope="module")
def peaceful():
    return nsflow.run(nsflow.HostLikelihood(log_likelihood, vectorized=True), PRIOR, settings=SMALL)


@pytest.mark.usefixtures("_strict")
def test_runs_and_results_are_those_of_a_caller_without_choices(peaceful, tmp_path):
    """They ended in a bare FloatingPointError at the first weight that underflowed."""
    paths = [tmp_path / "a", tmp_path / "b"]
    likelihood = nsflow.HostLikelihood(log_likelihood, vectorized=True)
    results = [nsflow.run(likelihood, PRIOR, settings=SMALL, checkpoint=p, seed=i) for i, p in enumerate(paths)]
    assert results[0] == peaceful
    assert nsflow.run(likelihood, PRIOR, settings=SMALL, checkpoint=paths[0], ess=400).ess > 400
    for both in (results, [str(path) for path in paths]):
        given = {} if both is results else {"log_likelihood": likelihood, "prior": PRIOR, "settings": SMALL}
        assert np.isfinite(nsflow.merge(both, **given).logZ)
    assert len(peaceful.posterior(50)["a"]) == 50
    assert np.isfinite(peaceful.information)
    assert len(peaceful.to_anesthetic()) > 0
    assert len(peaceful.to_nested_samples()) == len(peaceful.bootstrap_log_weights(2))
    assert "logZ" in repr(peaceful)
    assert "log Z" in summary(peaceful)
    peaceful.save(tmp_path / "saved")
    assert nsflow.load(tmp_path / "saved") == peaceful


@pytest.mark.usefixtures("_strict")
@pytest.mark.parametrize("kind", ["triangle", "trace", "weights", "levels"])
def test_plots_as_well(kind, peaceful):
    with mpl.rc_context({"backend": "agg"}):
        assert isinstance(plots.KINDS[kind](peaceful), Figure)


@pytest.mark.usefixtures("_strict")
def test_flows_are_fitted_and_drawn_from():
    with jax.transfer_guard("allow"):
        key = jax.random.key(0)
    points = np.random.default_rng(0).normal(size=(300, 2))
    flow, *_ = nsflow.fit(key, points, training=nsflow.Training(num_steps=20))
    assert np.all(np.isfinite(flow.log_prob(np.asarray(flow.sample(key, 10)))))


@pytest.mark.parametrize(("chosen", "heard"), [("raise", "FloatingPointError: divide by zero"), ("ignore", "")])
def test_functions_of_the_caller_have_the_callers_choice(chosen, heard):
    """A likelihood that counts on being told is told, and ours are silent where they were to be."""
    seen = []

    def dividing(p):
        seen.append(np.geterr())
        return log_likelihood(p) + 0.0 * float(np.float64(1.0) / np.float64(0.0) < 0)

    with np.errstate(all=chosen):
        if heard:
            with pytest.raises(FloatingPointError, match=heard):
                nsflow.run(nsflow.HostLikelihood(dividing), PRIOR, settings=SMALL)
        else:
            nsflow.run(nsflow.HostLikelihood(dividing), PRIOR, settings=SMALL, max_levels=1)
    assert {state["divide"] for state in seen} == {chosen}
    assert np.geterr() == OURS  # numpy's own, as before
