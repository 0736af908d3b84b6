"""Evidence from the draws of a sequence of flows, insertion ranks, alarms."""

from dataclasses import replace

import numpy as np
import pytest

from nsflow.adapters.blackjax.result import (
    NestedResult,
    column_names,
    importance_evidence,
    insertion_p_values,
    nested_samples,
)

NUM_DIMS, WIDTH = 3, 0.05


def gaussian_run(rng, num_live=400, num_steps=200, num_draws=40, compression=0.1):
    """Draws of normals around shrinking contours of a normal likelihood in the unit cube."""
    log_likelihood = lambda x: -0.5 * np.sum((x - 0.5) ** 2, axis=-1) / WIDTH**2  # noqa: E731
    radius = 0.8 * np.exp(-compression * np.arange(num_steps) / NUM_DIMS)
    contours = -0.5 * radius**2 / WIDTH**2
    deviation = (0.6 * radius)[:, None, None]
    x = 0.5 + deviation * rng.normal(size=(num_steps, num_draws, NUM_DIMS))
    log_q = np.sum(-0.5 * ((x - 0.5) / deviation) ** 2 - np.log(deviation) - 0.5 * np.log(2 * np.pi), axis=-1)
    is_inside = np.all((x > 0) & (x < 1), axis=-1)
    log_weight = np.where(is_inside, -log_q, -np.inf)
    prior = log_likelihood(rng.random((num_live, NUM_DIMS)))
    return prior, contours, log_likelihood(x), log_weight, compression


def test_importance_evidence_is_unbiased_and_knows_its_error():
    """Mean pull over 200 runs within 3.9 standard errors, rms in the 1e-4 band: false-alarm rate 2e-4."""
    truth = NUM_DIMS * np.log(WIDTH * np.sqrt(2 * np.pi))
    runs = [importance_evidence(*gaussian_run(np.random.default_rng(seed))) for seed in range(200)]
    pulls = np.array([(run.logZ - truth) / run.logZ_err for run in runs])
    assert abs(np.mean(pulls)) < 3.9 * 200**-0.5
    assert 0.8 < np.std(pulls) < 1.2
    assert np.mean([run.logZ_err for run in runs]) < 0.05


def test_constant_likelihood_has_the_evidence_of_its_value():
    prior, contours, log_likelihood, log_weight, compression = gaussian_run(np.random.default_rng(0))
    evidence = importance_evidence(
        np.full_like(prior, -2.0), np.full_like(contours, -2.0), np.full_like(log_likelihood, -2.0), log_weight, 0.1
    )
    assert evidence == (-2.0, 0.0, 0.0)


def test_draws_that_were_not_made_do_not_count():
    prior, contours, log_likelihood, log_weight, compression = gaussian_run(np.random.default_rng(0))
    padded = np.concatenate([log_weight, np.full_like(log_weight, np.nan)], axis=1)
    twice = np.concatenate([log_likelihood, np.zeros_like(log_likelihood)], axis=1)
    assert importance_evidence(prior, contours, twice, padded, compression) == pytest.approx(
        importance_evidence(prior, contours, log_likelihood, log_weight, compression)
    )


def test_no_weight_at_all_is_no_evidence():
    none = np.full((3, 4), -np.inf)
    assert importance_evidence(np.full(5, -np.inf), np.zeros(3), none, none, 0.1)[:2] == (-np.inf, np.inf)


def test_khat_tells_a_flow_that_is_too_narrow_from_one_that_fits():
    """Weights of a normal flow of width s in a normal prior: 1 - s^2 is their tail's index."""
    rng = np.random.default_rng(0)
    contours, flat = np.full(14, -1.0), np.zeros((14, 2000))
    for width, is_heavy in ((0.95, False), (0.5, True)):
        x = width * rng.normal(size=(14, 2000))
        log_weight = np.log(width) - 0.5 * x**2 * (1 - width**-2)
        assert (importance_evidence(np.full(10, -1.0), contours, flat, log_weight, 0.1).khat > 0.5) == is_heavy


def test_insertion_ranks_that_are_biased_are_seen():
    rng = np.random.default_rng(0)
    ranks = rng.random(5000)
    assert min(insertion_p_values(ranks, 500)) > 1e-3
    assert insertion_p_values(ranks**1.2, 500)[0] < 1e-3
    ranks[2000:2500] **= 2
    assert insertion_p_values(ranks, 500)[1] < 1e-3


RESULT = NestedResult(None, -1.0, 0.1, -1.0, 0.02, 100, 0.3, 0.5, 0.95, 0.5, 0.5)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"importance_logZ": -1.5}, "disagree"),
        ({"importance_logZ": np.nan}, "disagree"),
        ({"khat": 0.6}, "k-hat = 0.60"),
        ({"insertion_p_value": 1e-4}, "ranks"),
        ({"worst_insertion_p_value": 1e-4}, "ranks"),
        ({"unique_fraction": 0.4}, "40%"),
    ],
)
def test_alarms(change, word):
    assert RESULT.alarms == ()
    (alarm,) = replace(RESULT, **change).alarms
    assert word in alarm
    assert word in str(replace(RESULT, **change))


def test_columns_are_named_after_the_tree():
    assert column_names({"b": np.zeros((2, 2)), "a": {"c": np.zeros(())}}) == [
        "a.c", "b[0,0]", "b[0,1]", "b[1,0]", "b[1,1]",
    ]  # fmt: skip


def test_births_of_prior_draws_stay_nan():
    samples = nested_samples({"a": np.arange(4.0)}, np.arange(4.0), np.array([np.nan, np.nan, 0.0, 1.0]))
    assert list(samples.columns.get_level_values(0))[:2] == ["a", "logL"]
    assert samples.logL_birth.isna().sum() == 2
