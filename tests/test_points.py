"""Contours, evidence shares and training weights on points made by hand."""

import numpy as np
import pytest

from nsflow.importance.weights import effective_sample_size, temper, truncate
from nsflow.nested.points import Points, evidence_share, highest_share, join, next_contour

ANY = (np.log(1e-9), 0.0)


def points_of(log_likelihood, log_prior_weights=None):
    """Points of given prior volume: with no prior draws, the weights are log_prior - log_flows."""
    log_likelihood = np.asarray(log_likelihood, float)
    n = len(log_likelihood)
    log_flows = np.zeros(n) if log_prior_weights is None else -np.asarray(log_prior_weights, float)
    return Points(
        np.arange(n, dtype=float)[:, None], log_likelihood, np.zeros(n) - 800.0, log_flows - 800.0, np.zeros(n, bool), 0
    )


@pytest.fixture(autouse=True)
def _no_prior_draws():
    with np.errstate(divide="ignore"):  # log of no prior draws
        yield


# ---- contours


@pytest.mark.parametrize(
    ("compression", "min_ess", "num_above"),
    [
        ((0.19, 0.85), 3.0, 3),  # as high as the effective number allows
        ((0.45, 0.85), 3.0, 5),  # as high as the compression allows
        ((0.19, 0.85), 20.0, 9),  # too few points: the weakest compression
        ((0.19, 0.85), 9.5, 9),
    ],
)
def test_contour_is_the_highest_that_leaves_enough(compression, min_ess, num_above):
    """Ten points of equal weight: k of them above have mass k/10 and k effective points."""
    order = np.random.default_rng(0).permutation(10)
    contour = next_contour(points_of(order), -np.inf, compression=tuple(np.log(compression)), min_ess=min_ess)
    assert contour.log_likelihood == 10 - num_above
    assert contour.log_mass == pytest.approx(np.log(num_above / 10))
    assert contour.ess == pytest.approx(num_above)


def test_points_below_the_contour_or_without_likelihood_are_ignored():
    points = points_of([-np.inf, -np.inf, 0, 1, 2, 3, 4, 5])
    contour = next_contour(points, 2.0, compression=ANY, min_ess=2.0)
    assert contour == pytest.approx((4.0, np.log(2 / 4), 2.0))
    contour = next_contour(points, -np.inf, compression=ANY, min_ess=6.0)
    assert contour == pytest.approx((0.0, 0.0, 6.0))


def test_plateau_stays_together():
    """Seven points share the highest likelihood: none of them can be below the contour that holds another."""
    contour = next_contour(points_of([0, 1, 1, 1, 0, 1, 1, 1, 1, 0]), -np.inf, compression=ANY, min_ess=2.0)
    assert contour == pytest.approx((1.0, np.log(0.7), 7.0))


def test_one_plateau_is_its_own_contour():
    contour = next_contour(points_of(np.full(10, 3.0)), -np.inf, compression=(-2.0, -0.7), min_ess=2.0)
    assert contour == pytest.approx((3.0, 0.0, 10.0))


def test_contour_passes_a_plateau_that_is_not_the_top():
    """Of 100 points, 97 share the lowest likelihood: a tenth of the range wanted, but nothing else is to be climbed."""
    points = points_of([0.0] * 97 + [1.0, 2.0, 3.0])
    contour = next_contour(points, -np.inf, compression=(-2.0, -0.7), min_ess=50.0)
    assert contour == pytest.approx((1.0, np.log(0.03), 3.0))


def test_mass_and_effective_number_are_weighted():
    """Weights 1, 2, 3, 4 from the top: mass (1 + 2 + 3) / 10, effective number 36 / 14."""
    contour = next_contour(points_of([3, 2, 1, 0], np.log([1, 2, 3, 4])), -np.inf, compression=ANY, min_ess=2.5)
    assert contour == pytest.approx((1.0, np.log(0.6), 36 / 14))


# ---- weights


def test_prior_volume_counts_the_prior_among_the_flows():
    """pi / (n_0 pi + sum_k n_k q_k), with pi = 0.3, n_0 = 10, sum = 2; the posterior weight is L times it."""
    points = Points(np.zeros((1, 1)), np.array([-5.0]), np.log([0.3]), np.log([2.0]), np.array([False]), 10)
    assert points.log_prior_weights[0] == pytest.approx(np.log(0.3 / 5))
    assert points.log_posterior_weights[0] == pytest.approx(-5 + np.log(0.3 / 5))


def test_draws_of_the_prior_share_its_volume():
    points = Points(np.zeros((8, 1)), np.zeros(8), np.linspace(-3, 0, 8), np.full(8, -np.inf), np.ones(8, bool), 8)
    np.testing.assert_allclose(points.log_prior_weights, -np.log(8))


def test_evidence_share_is_the_weight_on_and_above_the_contour():
    """Likelihoods 1, 2, 3, 4 with volumes 4, 3, 2, 1: (6 + 4) / (4 + 6 + 6 + 4) at the third."""
    points = points_of(np.log([1, 2, 3, 4]), np.log([4, 3, 2, 1]))
    assert evidence_share(points, np.log(3)) == pytest.approx(0.5)
    assert evidence_share(points, -np.inf) == 1
    assert evidence_share(points._replace(log_likelihood=points.log_likelihood + 1e6), 1e6 + np.log(2.5)) == (
        pytest.approx(0.5)
    )


def test_truncate_caps_at_root_n_times_the_mean():
    """The cap is sqrt(n) mean(w); weights of zero are not among the n, and lighter ones keep theirs."""
    weights = np.array([1.0] * 15 + [1000.0])
    expected = np.append(weights[:15], np.sqrt(16) * weights.mean())
    np.testing.assert_allclose(np.exp(truncate(np.log(weights) + 500) - 500), expected)
    with_null = np.append(np.log(weights), [-np.inf] * 9)
    np.testing.assert_allclose(np.exp(truncate(with_null)), np.append(expected, np.zeros(9)))
    np.testing.assert_array_equal(truncate(np.zeros(5)), np.zeros(5))


# ---- sets


def test_select_and_join_keep_rows_together():
    points = Points(np.arange(4.0)[:, None], *(np.arange(4.0) + 10 * k for k in (1, 2, 3)), np.arange(4) < 2, 7)
    above = np.array([False, True, False, True])
    joined = join(points.select(above), points.select(~above)._replace(num_prior=99))
    np.testing.assert_array_equal(joined.x[:, 0], [1, 3, 0, 2])
    for k, column in enumerate(joined[1:4]):
        np.testing.assert_array_equal(column, joined.x[:, 0] + 10 * (k + 1))
    np.testing.assert_array_equal(joined.is_prior, joined.x[:, 0] < 2)
    assert joined.num_prior == 7


def test_few_heavy_points_are_joined_by_the_heaviest_of_the_rest():
    """One point outweighs all others by e^100; twenty a dimension are kept to train on, and none without likelihood."""
    points = points_of(np.append(np.arange(50.0), [150.0, -np.inf]))
    assert np.sum(points.matters) == 20
    assert np.all(points.log_likelihood[points.matters] >= 31)
    assert np.sum(points_of([1.0, 2.0, -np.inf]).matters) == 2


def test_tempering_leaves_good_weights_alone_and_evens_out_bad_ones():
    good = np.zeros(10)
    np.testing.assert_array_equal(temper(good, 9.0), good)
    bad = -(np.arange(10.0) ** 2)
    assert effective_sample_size(bad) < 2
    assert 4 <= effective_sample_size(temper(bad, 4.0)) < 4.5
    np.testing.assert_array_equal(temper(bad, 11.0), 0.0)  # more than there are: all alike


def test_evidence_that_may_lie_endlessly_high_overflows_nothing():
    """The highest point has no volume, and the others may all be as high as it."""
    points = points_of([2000, 0, 0], [-5000, 0, 0])
    assert highest_share(points, np.ones(3, bool)) == pytest.approx(np.exp(700.0))


def test_highest_points_of_no_volume_have_no_effective_number():
    """Squares of their weights underflow, and 0 / 0 is a warning."""
    points = points_of([4, 3, 2, 1, 0], [-500, -500, 0, 0, 0])
    assert next_contour(points, -np.inf, compression=ANY, min_ess=2.0).log_likelihood == 1.0
