"""Merged runs: closed forms, honest errors where one run has missed a mode, and refusals."""

from dataclasses import replace

import jax
import numpy as np
import numpyro.distributions as dist
import pytest
from scipy import stats

import nsflow
from nsflow.densities.gaussian import Gaussian
from nsflow.importance.evidence import log_evidence
from nsflow.merge import _union
from nsflow.nested.draws import Batches
from nsflow.nested.points import Points
from nsflow.nested.state import Phase, Problem, State
from nsflow.proposals.meta_proposal import MetaProposal, PriorProposal

FALSE_ALARM = 1e-4
PRIOR = nsflow.Prior({"x": dist.Normal(0, 1)})


def result(log_weights, num_draws=None, **options):
    """A result of given weights."""
    num_draws = num_draws or len(log_weights)
    estimate = log_evidence(np.asarray(log_weights), num_draws=np.array([num_draws]))
    x = np.arange(len(log_weights), dtype=float)[:, None]
    return nsflow.Results(
        names=("x",), samples=x, log_likelihood=np.zeros(len(x)), log_weights=log_weights, num_draws=num_draws,
        num_calls=100, **{**estimate._asdict(), **options},
    )  # fmt: skip


def test_pooled_evidence_is_the_average_over_evaluated_draws():
    """Z = (2 * 2 + 3 * 7) / 5, whatever share of its draws each run evaluated, and the weights' mean is Z as well."""
    one, two = result(np.log([1.0, 5.0]), 3), result(np.log([14.0, 14.0, 14.0]), 6)
    merged = nsflow.merge([one, two])
    assert merged.logZ == pytest.approx(np.log((2 * 2 + 3 * 7) / 5))
    assert np.logaddexp.reduce(merged.log_weights) - np.log(merged.num_draws) == pytest.approx(merged.logZ)
    variance = (0.4 * 2 * one.logZ_err) ** 2 + (0.6 * 7 * two.logZ_err) ** 2
    assert merged.logZ_err == pytest.approx(np.sqrt(variance) / 5)
    assert (merged.num_draws, merged.num_calls, len(merged.samples)) == (9, 200, 5)


def test_alarms_and_unfinished_runs_are_not_lost():
    rng = np.random.default_rng(0)
    one = result(0.1 * rng.normal(size=1000), alarms=("a spike may be lost",))
    two = result(0.1 * rng.normal(size=1000) + 1, finished=False)
    merged = nsflow.merge([one, two])
    assert not merged.finished
    assert merged.alarms[0] == "run 0: a spike may be lost"
    assert "runs 0 and 1 disagree" in merged.alarms[1]


def log_likelihood(x):
    """Two normals of equal evidence in units of the prior, logZ = 0."""
    modes = [stats.norm.logpdf(x[:, 0], m, 0.1) - stats.norm.logpdf(x[:, 0]) for m in (-1.5, 1.5)]
    return np.logaddexp(*modes) - np.log(2)


def frozen_run(seed, centre):
    """A state whose frozen mixture proposes one of the two modes, and a little of the prior."""
    components = (PriorProposal(PRIOR), Gaussian(np.array([centre]), np.array([[0.12]])))
    proposal = MetaProposal(components, (20, 400))
    nothing = Points(np.zeros((0, 1)), *(np.zeros(0),) * 3, np.zeros(0, bool), 0)
    batches = batch(proposal, seed)
    problem = Problem(nsflow.HostLikelihood(len), PRIOR)
    state = State(problem, nsflow.Settings(), Phase.FINISHED, nothing, components, (20, 400), 420, (), frozen=batches)
    return replace(state, rounds=(batch(proposal, seed + 1000),))


def batch(proposal, seed):
    draws = proposal.sample(jax.random.key(seed))
    log_prior = np.asarray(PRIOR.latent_log_prob(draws.x))
    return Batches(proposal, (0, 1), 1, draws, log_likelihood(draws.x), log_prior)


def test_union_of_mixtures_needs_no_luck_where_a_run_has_missed_a_mode():
    """Alone each run is low nearly always; the union has small errors, and pulls of mean 0 and variance 1."""
    with jax.enable_x64(True):
        runs = [(frozen_run(2 * i, -1.5), frozen_run(2 * i + 1, 1.5)) for i in range(60)]
        merged = [_union(pair, (0, 1)) for pair in runs]
    pulls = np.array([m.logZ / m.logZ_err for m in merged])
    assert max(m.logZ_err for m in merged) < 0.05
    assert 2 * stats.norm.sf(abs(pulls.mean()) * np.sqrt(len(pulls))) > FALSE_ALARM
    tail = stats.chi2.cdf(np.sum(pulls**2), len(pulls))
    assert 2 * min(tail, 1 - tail) > FALSE_ALARM
    alone = [one.frozen.estimate() for one, _ in runs]
    assert np.median([e.logZ_err for e in alone]) > 0.1
    assert np.mean([e.logZ for e in alone]) < -0.05


def test_rounds_count_where_they_are_as_good_as_the_union():
    """Two runs of one good mixture: a draw of a round counts for a frozen one, and the ESS is that of all draws."""
    with jax.enable_x64(True):
        runs = [frozen_run(i, 1.5) for i in range(2)]
        both = MetaProposal((*runs[0].components, Gaussian(np.array([-1.5]), np.array([[0.12]]))), (20, 400, 400))
        runs = [replace(s, frozen=batch(both, i), rounds=(batch(both, i + 9),)) for i, s in enumerate(runs)]
        merged, without = _union(runs, (0, 1)), _union([replace(s, rounds=()) for s in runs], (0, 1))
    assert merged.ess == pytest.approx(2 * without.ess, rel=0.1)
    assert abs(merged.logZ) < 5 * merged.logZ_err


def test_union_counts_draws_and_says_what_is_missing():
    with jax.enable_x64(True):
        one, two = frozen_run(0, -1.5), frozen_run(1, 1.5)
        merged = _union([one, two], (0, 1))
        assert (merged.num_draws, merged.num_calls) == (1680, 840)
        with pytest.raises(ValueError, match="that of seed 1 has not yet"):
            _union([one, replace(two, frozen=None)], (0, 1))


BOX = nsflow.Prior({"x": dist.Uniform(-5, 5), "y": dist.Uniform(-5, 5)})
GAUSSIAN = nsflow.HostLikelihood(lambda p: -0.5 * (p["x"] ** 2 + p["y"] ** 2) / 0.3**2, vectorized=True)


def test_checkpoints_of_two_seeds_are_merged(tmp_path):
    paths = [tmp_path / "one.nsflow", tmp_path / "two.nsflow"]
    results = [nsflow.run(GAUSSIAN, BOX, seed=i, ess=500, checkpoint=path) for i, path in enumerate(paths)]
    before = {p: p.read_bytes() for path in paths for p in path.iterdir()}
    merged = nsflow.merge(paths, log_likelihood=GAUSSIAN, prior=BOX)
    pooled = nsflow.merge(results)
    for both in (merged, pooled):
        assert abs(both.logZ - np.log(2 * np.pi * 0.3**2 / 100)) < 5 * both.logZ_err
        assert both.num_calls == sum(r.num_calls for r in results)
        assert both.finished
    assert pooled.ess > max(r.ess for r in results)
    assert {p: p.read_bytes() for path in paths for p in path.iterdir()} == before
    with pytest.raises(ValueError, match="expected independent runs, of different seeds"):
        nsflow.merge([paths[0], paths[0]], log_likelihood=GAUSSIAN, prior=BOX)
    with pytest.raises(ValueError, match="belongs to another run"):
        nsflow.merge(paths, log_likelihood=lambda p: p["x"], prior=BOX)
    with pytest.raises(TypeError, match="`log_likelihood` and `prior` beside checkpoints"):
        nsflow.merge(paths)
    with pytest.raises(ValueError, match="there is none at"):
        nsflow.merge([paths[0], tmp_path / "three.nsflow"], log_likelihood=GAUSSIAN, prior=BOX)


def test_wrong_calls_are_refused():
    one = result(np.zeros(10))
    other = replace(result(np.ones(10)), names=("y",), labels=())
    for runs, error, message in (
        ([one], ValueError, "at least two runs"),
        (one, ValueError, "at least two runs"),
        ([one, one], ValueError, "run 1 is the same as an earlier one"),
        ([one, other], ValueError, "the same parameters"),
        ([one, "run.nsflow"], TypeError, "results only or paths"),
        ([one, 3], TypeError, "results only or paths"),
    ):
        with pytest.raises(error, match=message):
            nsflow.merge(runs)
