"""Arguments as users give them: every real scalar, and refusals that say what was expected and what came."""

from decimal import Decimal
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nsflow.numerics import arguments
from nsflow.numerics.arguments import require_array, require_count, require_key, require_points, scalar


@pytest.mark.parametrize(
    "given",
    [50, 50.0, np.float32(50), np.int64(50), np.uint8(50), np.asarray(50.0), jnp.asarray(50), Fraction(50)],
    ids=lambda given: type(given).__name__,
)
def test_every_real_scalar_is_a_number(given):
    assert scalar(given) == 50
    assert type(scalar(given)) in (int, float)


@pytest.mark.parametrize(
    "given",
    [None, True, np.True_, "50", b"50", 50j, [50], np.array([50]), np.ma.masked, Decimal(50), np.asarray("50")],
    ids=repr,
)
def test_nothing_else_is_one(given):
    assert scalar(given) is None


def test_numbers_beyond_float64_are_infinite():
    assert (scalar(10**400), scalar(-(10**400))) == (np.inf, -np.inf)
    assert scalar(jax.random.key(0)) is None


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ("x", TypeError, "real numbers; got 'x'"),
        ([[1, 2], [3]], ValueError, "rows of equal length"),
        ([1j], TypeError, "real numbers"),
        ([None], TypeError, "real numbers"),
        ({"a": 1}, TypeError, "real numbers"),
        (["a"], TypeError, "real numbers"),
        ([10**400], ValueError, "below 1.8e308"),
        (jax.random.key(0), TypeError, "real numbers"),
    ],
    ids=repr,
)
def test_arrays_of_anything_but_real_numbers_are_refused(given, error, message):
    with pytest.raises(error, match=message):
        require_array("`x`", given)


def test_masked_numbers_are_nan():
    np.testing.assert_array_equal(require_array("`x`", np.ma.array([1, 2], mask=[False, True])), [1, np.nan])


@pytest.mark.parametrize(
    "given",
    [0, None, "key", np.zeros(2), jax.random.split(jax.random.key(0))],
    ids=["0", "none", "text", "floats", "two"],
)
def test_a_seed_is_no_key(given):
    with pytest.raises(TypeError, match=r"(?s)`fit` expected one JAX random key; .* `jax.random.key\(0\)`"):
        require_key("fit", given)
    assert require_key("fit", jax.random.PRNGKey(0)).shape == (2,)


def test_more_draws_than_memory_holds_are_refused(monkeypatch):
    monkeypatch.setattr(arguments, "memory", lambda: 2**30)
    assert require_count("sample", 2**26, 2) == 2**26
    with pytest.raises(ValueError, match=r"at most 67108864 draws, which fill the 1 GiB .* got 67108865"):
        require_count("sample", 2**26 + 1, 2)
    for given in (-1, 2.5, None):
        with pytest.raises(ValueError, match="integer of at least 0"):
            require_count("sample", given)


@pytest.mark.parametrize(
    ("points", "message"),
    [
        (np.zeros((5, 0)), r"shape \(n, d\) with d > 0; got \(5, 0\)"),
        (np.full((5, 1), 1e200), "squares float64 holds; got 1e.200"),
        ([[np.nan]], r"row 0 is array\(\[nan\]\)"),
    ],
    ids=["no columns", "huge", "nan"],
)
def test_points_that_no_density_fits_are_refused(points, message):
    with pytest.raises(ValueError, match=message):
        require_points("fit", points, None)
