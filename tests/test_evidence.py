"""Evidence, its error and its diagnostics, against closed forms and brute force."""

import numpy as np
import pytest
from scipy import stats

from nsflow.importance.evidence import log_evidence
from nsflow.importance.pareto import pareto_khat, pareto_tail
from nsflow.importance.weights import effective_sample_size

FALSE_ALARM = 1e-5  # chance that a correct nsflow fails any one statistical test in this file


def assert_pulls_are_normal(pulls):
    """Mean 0 and variance 1, both ways: an error bar that is too wide fails like one that is too narrow."""
    n = len(pulls)
    tail = stats.chi2.cdf(np.sum(pulls**2), n)
    assert 2 * stats.norm.sf(abs(np.mean(pulls)) * np.sqrt(n)) > FALSE_ALARM
    assert 2 * min(tail, 1 - tail) > FALSE_ALARM


# ---- values


@pytest.mark.parametrize("offset", [0.0, 1e6, -1e6])
def test_constant_weights_are_exact(offset):
    estimate = log_evidence(np.full(100, np.log(3.0) + offset))
    assert estimate.logZ == pytest.approx(np.log(3.0) + offset, abs=1e-9)
    assert (estimate.logZ_err, estimate.ess, estimate.khat) == (0.0, 100.0, -np.inf)
    assert estimate.max_weight_share == pytest.approx(0.01)


@pytest.mark.parametrize("offset", [1e6, -1e6])
def test_an_offset_shifts_the_evidence_alone(offset):
    """Weights of e^1e6 neither overflow nor lose their spread."""
    log_weights = np.random.default_rng(0).normal(size=1000)
    here, there = log_evidence(log_weights), log_evidence(log_weights + offset)
    assert there.logZ - offset == pytest.approx(here.logZ, abs=1e-8)
    np.testing.assert_allclose(there[1:], here[1:], rtol=1e-6)


def test_one_stratum_is_the_textbook_estimate():
    """Z is the mean, its error the standard error of the mean over Z, ESS is Kish's."""
    weights = np.random.default_rng(0).gamma(2.0, size=500)
    estimate = log_evidence(np.log(weights))
    assert estimate.logZ == pytest.approx(np.log(weights.mean()))
    assert estimate.logZ_err == pytest.approx(stats.sem(weights) / weights.mean())
    assert estimate.ess == pytest.approx(weights.sum() ** 2 / (weights**2).sum())
    assert estimate.max_weight_share == pytest.approx(weights.max() / weights.sum())


def test_lognormal_weights_have_honest_errors():
    """E[w] = 1 for log w ~ N(-s^2/2, s^2), and the error is sqrt((e^{s^2} - 1) / n)."""
    rng, s, n = np.random.default_rng(0), 0.5, 4000
    estimates = [log_evidence(rng.normal(-(s**2) / 2, s, n)) for _ in range(400)]
    assert_pulls_are_normal(np.array([estimate.logZ / estimate.logZ_err for estimate in estimates]))
    assert np.mean([estimate.logZ_err for estimate in estimates]) == pytest.approx(
        np.sqrt(np.expm1(s**2) / n), rel=0.01
    )


# ---- strata


NUM_DRAWS = np.array([100, 400])
COMPONENT = np.repeat([0, 1], NUM_DRAWS)


def strata(rng):
    """Gamma weights of mean 5 and 0.5 in two strata: Z = (100 * 5 + 400 * 0.5) / 500."""
    return np.log(np.concatenate([5 * rng.gamma(10.0, 0.1, 100), 0.5 * rng.gamma(4.0, 0.25, 400)]))


def test_stratified_error_is_the_scatter_of_repetitions():
    rng, truth = np.random.default_rng(0), np.log(1.4)
    estimates = [log_evidence(strata(rng), COMPONENT, NUM_DRAWS) for _ in range(1000)]
    assert_pulls_are_normal(np.array([(estimate.logZ - truth) / estimate.logZ_err for estimate in estimates]))
    # In closed form: var w is 25/10 and 0.25/4.
    expected = np.sqrt(100 * 2.5 + 400 * 0.0625) / 700
    assert np.mean([estimate.logZ_err for estimate in estimates]) == pytest.approx(expected, rel=0.01)


def test_stratification_takes_the_difference_of_the_strata_out_of_the_error():
    log_weights = strata(np.random.default_rng(0))
    stratified, pooled = log_evidence(log_weights, COMPONENT, NUM_DRAWS), log_evidence(log_weights)
    assert stratified.logZ == pytest.approx(pooled.logZ)
    assert stratified.logZ_err < 0.6 * pooled.logZ_err


def test_order_of_the_draws_does_not_matter():
    log_weights, order = strata(np.random.default_rng(0)), np.random.default_rng(1).permutation(500)
    expected = log_evidence(log_weights, COMPONENT, NUM_DRAWS)
    np.testing.assert_allclose(log_evidence(log_weights[order], COMPONENT[order], NUM_DRAWS), expected)


def test_draws_of_weight_zero_count_whether_listed_or_not():
    """-inf in the list, or only in the number of draws: the same estimate."""
    log_weights, null = strata(np.random.default_rng(0)), np.full(60, -np.inf)
    listed = log_evidence(np.append(log_weights, null), np.append(COMPONENT, np.full(60, 1)), NUM_DRAWS + [0, 60])
    counted = log_evidence(log_weights, COMPONENT, NUM_DRAWS + [0, 60])
    np.testing.assert_allclose(listed, counted, rtol=1e-12)
    assert counted.logZ == pytest.approx(log_evidence(log_weights).logZ + np.log(500 / 560))


def test_a_stratum_of_one_draw_can_only_widen_the_error():
    """Its square stands in for the variance that one draw does not tell: sqrt(w^2) / sum w here."""
    estimate = log_evidence(np.log([1.0, 1.0, 1.0, 2.0]), np.array([0, 0, 0, 1]), np.array([3, 1]))
    assert estimate.logZ_err == pytest.approx(2 / 5)


@pytest.mark.parametrize("log_weights", [np.full(10, -np.inf), np.zeros(0)], ids=["zero", "none"])
def test_no_weight_is_no_evidence(log_weights):
    estimate = log_evidence(log_weights, np.zeros(len(log_weights), int), np.array([10]))
    assert estimate == (-np.inf, np.inf, 0.0, np.inf, 1.0)
    assert effective_sample_size(log_weights) == 0


@pytest.mark.parametrize(
    ("log_weights", "message"),
    [
        (np.zeros(1), "at least two draws to estimate its error; got 1"),
        (np.zeros(0), "got 0"),
        (np.array([0.0, np.nan]), "NaN or"),
        (np.array([0.0, np.inf]), r"\+inf"),
    ],
)
def test_weights_without_an_estimate_are_refused(log_weights, message):
    with pytest.raises(ValueError, match=message):
        log_evidence(log_weights)


# ---- k-hat


@pytest.mark.parametrize("shape", [0.1, 0.5, 0.9])
def test_khat_finds_the_shape_of_a_pareto_tail(shape):
    """Mean over repetitions against (k m + 5) / (m + 10) for a tail of m = 3 sqrt(n), to 5 standard errors and 0.02."""
    rng, n = np.random.default_rng(0), 20_000
    khats = [pareto_khat(np.log(stats.genpareto(shape).rvs(n, random_state=rng))) for _ in range(40)]
    tail = np.ceil(3 * np.sqrt(n))
    assert np.mean(khats) == pytest.approx((shape * tail + 5) / (tail + 10), abs=0.02 + 5 * stats.sem(khats))


def test_khat_of_bounded_weights_is_low_and_of_infinite_variance_high():
    rng = np.random.default_rng(0)
    assert pareto_khat(np.log(rng.uniform(size=10_000))) < 0
    assert pareto_khat(-np.log(rng.uniform(size=10_000))) > 0.8  # w = 1/u: k = 1


def test_khat_is_regularised_towards_a_half(monkeypatch):
    """(k m + 5) / (m + 10) for a tail of m = 10 weights."""
    monkeypatch.setattr("nsflow.importance.pareto._generalised_pareto", lambda _: (2.0, 1.0))
    assert pareto_khat(np.arange(50.0)) == pytest.approx(25 / 20)


def test_khat_knows_no_scale():
    log_weights = np.log(stats.genpareto(0.5).rvs(5000, random_state=0))
    assert pareto_khat(log_weights + 1e4) == pytest.approx(pareto_khat(log_weights), abs=1e-6)


def test_tail_has_the_scale_of_what_exceeds_its_threshold():
    """Excesses of a generalised Pareto over t are one again, of scale sigma + k t: mean over 40 repetitions."""
    rng, n, shape, sigma = np.random.default_rng(0), 20_000, 0.3, 2.0
    tails = [pareto_tail(np.log(stats.genpareto(shape, scale=sigma).rvs(n, random_state=rng))) for _ in range(40)]
    log_ratios = [t.log_scale - np.log(sigma + shape * np.exp(t.log_threshold)) for t in tails]
    assert np.mean(log_ratios) == pytest.approx(0, abs=0.02 + 5 * stats.sem(log_ratios))
    assert all(t.size == np.ceil(3 * np.sqrt(n)) for t in tails)


def test_khat_of_too_few_weights_is_infinite():
    assert pareto_khat(np.random.default_rng(0).normal(size=15)) == np.inf
    assert pareto_khat(np.append(np.zeros(10), np.full(1000, -np.inf))) == np.inf
