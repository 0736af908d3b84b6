"""Values, counts and failures of likelihoods, on the host, through pools and under JAX."""

import concurrent.futures
import copy
import functools
import math
import multiprocessing
import multiprocessing.pool
import pickle
import threading

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pandas
import pytest
from scipy import special

from nsflow.likelihood import host
from nsflow.likelihood.host import HostLikelihood
from nsflow.likelihood.likelihood import CHUNKS, JaxLikelihood, as_likelihood, check, evaluate, require_finite
from nsflow.nested.state import Settings
from nsflow.numerics.errors import LikelihoodError
from nsflow.prior.prior import Prior
from nsflow.sampler import run

PARAMS = {"a": np.arange(7.0), "b": np.arange(14.0).reshape(7, 2)}
VALUES = -(np.arange(7.0) ** 2) - np.arange(14.0).reshape(7, 2).sum(1)


def jax_function(params):
    return -(params["a"] ** 2) - jnp.sum(params["b"])


def host_function(params):
    return -(params["a"] ** 2) - np.sum(params["b"])


def vectorized_function(params):
    return -(params["a"] ** 2) - np.sum(params["b"], axis=-1)


def failing_function(params):
    if params["a"] == 3:
        raise ZeroDivisionError("boom")
    return 0.0


HOST_FUNCTIONS = pytest.mark.parametrize(
    ("function", "vectorized"), [(host_function, False), (vectorized_function, True)], ids=["points", "vectorized"]
)


# ---- values


def test_jax_values():
    evaluation = evaluate(JaxLikelihood(jax_function), PARAMS)
    np.testing.assert_array_equal(evaluation.log_likelihood, VALUES)
    assert evaluation.log_likelihood.dtype == np.float64
    assert {name: array.shape for name, array in evaluation.nan_params.items()} == {"a": (0,), "b": (0, 2)}


@HOST_FUNCTIONS
def test_host_values(function, vectorized):
    evaluation = evaluate(HostLikelihood(function, vectorized=vectorized), PARAMS)
    np.testing.assert_array_equal(evaluation.log_likelihood, VALUES)


def test_jax_is_evaluated_in_double_precision():
    """1e6 nats + 0.01: single precision rounds to 1/16."""
    value = evaluate(JaxLikelihood(lambda p: p["a"] + 1e6), {"a": np.array([0.01])}).log_likelihood
    np.testing.assert_allclose(value, 1e6 + 0.01, rtol=1e-15)
    assert jnp.ones(1).dtype == np.float32


def test_no_points():
    empty = {"a": np.zeros(0), "b": np.zeros((0, 2))}
    for likelihood in (JaxLikelihood(jax_function), HostLikelihood(host_function)):
        assert evaluate(likelihood, empty).log_likelihood.shape == (0,)


@HOST_FUNCTIONS
def test_host_function_cannot_change_the_points(function, vectorized):
    def careless(params):
        value = function(params)
        params["b"] *= 0
        return value

    before = PARAMS["b"].copy()
    np.testing.assert_array_equal(
        evaluate(HostLikelihood(careless, vectorized=vectorized), PARAMS).log_likelihood, VALUES
    )
    np.testing.assert_array_equal(PARAMS["b"], before)


# ---- copies


@pytest.mark.parametrize(
    "likelihood",
    [
        JaxLikelihood(jax_function),
        HostLikelihood(vectorized_function, vectorized=True, retries=5),
        HostLikelihood(host_function, pool=multiprocessing.pool.ThreadPool, num_chunks=2, timeout=60.0),
    ],
    ids=["jax", "vectorized", "pool"],
)
def test_likelihoods_can_be_copied_and_sent(likelihood):
    assert copy.copy(likelihood) is copy.deepcopy(likelihood) is likelihood
    evaluate(likelihood, PARAMS)  # compiled, and its pool at work
    sent = pickle.loads(pickle.dumps(likelihood))
    np.testing.assert_array_equal(evaluate(sent, PARAMS).log_likelihood, VALUES)
    for name in ("function", "vectorized", "pool", "num_chunks", "timeout", "retries"):
        assert getattr(sent, name, None) == getattr(likelihood, name, None)


def test_a_pool_at_work_and_devices_are_not_sent():
    with multiprocessing.pool.ThreadPool(1) as pool:
        likelihood = HostLikelihood(host_function, pool=pool)
        assert copy.deepcopy(likelihood) is likelihood
        with pytest.raises(TypeError, match=r"`pool` is <multiprocessing.pool.ThreadPool.*pool=multiprocessing.Pool"):
            pickle.dumps(likelihood)
    with pytest.raises(TypeError, match="`JaxLikelihood` expected no `mesh` when it is pickled"):
        pickle.dumps(JaxLikelihood(jax_function, mesh=jax.make_mesh((1,), ("points",))))


# ---- one row, one call


@pytest.mark.parametrize("n", [1, 255, 256, 257, 1203])
def test_jax_evaluates_each_row_once(n):
    rows, shapes = [], set()

    def count(a):
        rows.extend(np.ravel(a).tolist())
        shapes.add(np.shape(a))
        return np.asarray(a)

    def function(params):
        shape = jax.ShapeDtypeStruct((), np.float64)
        return jax.pure_callback(count, shape, params["a"], vmap_method="expand_dims")

    values = evaluate(JaxLikelihood(function), {"a": np.arange(float(n))}).log_likelihood
    assert sorted(rows) == list(range(n))
    assert {size for (size,) in shapes} <= set(CHUNKS)
    np.testing.assert_array_equal(values, np.arange(n))


@pytest.mark.parametrize("num_chunks", [1, 3, 100])
@HOST_FUNCTIONS
def test_host_evaluates_each_row_once(function, vectorized, num_chunks):
    rows, lock = [], threading.Lock()

    def counted(params):
        with lock:
            rows.extend(np.atleast_1d(params["a"]).tolist())
        return function(params)

    with multiprocessing.pool.ThreadPool(2) as pool:
        likelihood = HostLikelihood(counted, vectorized=vectorized, pool=pool, num_chunks=num_chunks)
        np.testing.assert_array_equal(evaluate(likelihood, PARAMS).log_likelihood, VALUES)
    assert sorted(rows) == list(range(7))


def test_check_counts_what_it_evaluates():
    calls = []

    def counted(params):
        calls.append(params)
        return 0.0

    assert check(HostLikelihood(counted), PARAMS) == len(calls) == 7
    assert check(JaxLikelihood(jax_function), PARAMS) == 0


# ---- pools


def test_spawned_processes():
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(2, mp_context=context) as pool:
        for function, vectorized in ((host_function, False), (vectorized_function, True)):
            likelihood = HostLikelihood(function, vectorized=vectorized, pool=pool)
            np.testing.assert_array_equal(evaluate(likelihood, PARAMS).log_likelihood, VALUES)
        with pytest.raises(ZeroDivisionError, match=r"boom.*failing_function.*'a': 3.0"):
            check(HostLikelihood(failing_function, pool=pool), PARAMS)
        with pytest.raises(LikelihoodError, match=r"boom.*failing_function.*'a': 3.0"):
            evaluate(HostLikelihood(failing_function, pool=pool), PARAMS)


class Futures:
    """Like a dask Client: `map` returns futures, `gather` their values."""

    def map(self, function, chunks):
        return [lambda chunk=chunk: function(chunk) for chunk in chunks]

    def gather(self, futures):
        return [future() for future in futures]


class Builtin:
    map = staticmethod(map)


@pytest.mark.parametrize("pool", [Futures(), Builtin()], ids=["gather", "lazy map"])
def test_other_pools(pool):
    likelihood = HostLikelihood(vectorized_function, vectorized=True, pool=pool, num_chunks=3)
    np.testing.assert_array_equal(evaluate(likelihood, PARAMS).log_likelihood, VALUES)


def test_worker_is_picklable():
    task = pickle.loads(pickle.dumps(host._Task(host_function, False)))
    np.testing.assert_array_equal(task(PARAMS).log_likelihood, VALUES)


# ---- derived parameters


DERIVED = {"sum": PARAMS["a"] + PARAMS["b"][:, 0], "half": PARAMS["a"] / 2}


@pytest.mark.parametrize(
    "likelihood",
    [
        JaxLikelihood(lambda p: (jax_function(p), {"sum": p["a"] + p["b"][0], "half": p["a"] / 2})),
        HostLikelihood(lambda p: (host_function(p), {"sum": p["a"] + p["b"][0], "half": p["a"] / 2})),
        HostLikelihood(
            lambda p: (vectorized_function(p), {"sum": p["a"] + p["b"][:, 0], "half": p["a"] / 2}), vectorized=True
        ),
    ],
    ids=["jax", "points", "vectorized"],
)
def test_derived_parameters_come_with_the_values(likelihood):
    check(likelihood, PARAMS)
    evaluation = evaluate(likelihood, PARAMS)
    np.testing.assert_array_equal(evaluation.log_likelihood, VALUES)
    assert set(evaluation.derived) == set(DERIVED)
    for name, values in DERIVED.items():
        np.testing.assert_array_equal(evaluation.derived[name], values)


def test_a_likelihood_may_return_minus_infinity_before_it_has_derived_anything():
    evaluation = evaluate(HostLikelihood(lambda p: -np.inf if p["a"] < 3 else (0.0, {"c": p["a"]})), PARAMS)
    np.testing.assert_array_equal(evaluation.derived["c"], [np.nan] * 3 + [3, 4, 5, 6])


# ---- NaN and infinity


@pytest.mark.parametrize(
    "likelihood",
    [
        JaxLikelihood(lambda p: jnp.where(p["a"] == 2, jnp.nan, p["a"])),
        HostLikelihood(lambda p: np.nan if p["a"] == 2 else p["a"]),
        HostLikelihood(lambda p: np.where(p["a"] == 2, np.nan, p["a"]), vectorized=True),
    ],
    ids=["jax", "points", "vectorized"],
)
def test_nan_becomes_impossible_and_is_recorded(likelihood):
    log_likelihood, nan_params, derived = evaluate(likelihood, PARAMS)
    assert derived == {}
    np.testing.assert_array_equal(log_likelihood, [0, 1, -np.inf, 3, 4, 5, 6])
    np.testing.assert_array_equal(nan_params["a"], [2.0])
    np.testing.assert_array_equal(nan_params["b"], [[4.0, 5.0]])


# 7 points with a = 0 to 6, of which two have no value; 9 and 0 lie under the masks.
UNDER = np.where(np.arange(7) % 4 == 1, 9.0, np.arange(7.0))
IS_MASKED = np.arange(7) % 4 == 1
MISSING = {
    "masked floats": lambda: np.ma.array(UNDER, mask=IS_MASKED),
    "masked integers": lambda: np.ma.array(UNDER.astype(int), mask=IS_MASKED),
    "list with masked": lambda: [np.ma.masked if m else v for m, v in zip(IS_MASKED, UNDER, strict=True)],
    "nullable floats": lambda: pandas.Series(
        pandas.array([None if m else 1.0 * v for m, v in zip(IS_MASKED, UNDER, strict=True)], "Float64")
    ),
    "nullable integers": lambda: pandas.array(
        [None if m else int(v) for m, v in zip(IS_MASKED, UNDER, strict=True)], "Int64"
    ),
    "objects": lambda: np.array([pandas.NA if m else v for m, v in zip(IS_MASKED, UNDER, strict=True)], dtype=object),
}


def masked_one(params):
    """One point: `np.ma.masked`, which numpy reads as zero, in log L and in a derived parameter."""
    value = np.ma.masked if params["a"] % 4 == 1 else params["a"]
    return value, {"d": value}


def masked_many(params):
    value = np.ma.array(params["a"], mask=params["a"] % 4 == 1)
    return value, {"d": value.astype(int)}


@pytest.mark.parametrize("kind", MISSING)
def test_what_has_no_value_is_nan_and_not_what_lies_under_a_mask(kind):
    likelihood = HostLikelihood(lambda _: (MISSING[kind](), {"d": MISSING[kind]()}), vectorized=True)
    evaluation = evaluate(likelihood, PARAMS)
    np.testing.assert_array_equal(evaluation.log_likelihood, np.where(IS_MASKED, -np.inf, np.arange(7.0)))
    np.testing.assert_array_equal(evaluation.derived["d"], np.where(IS_MASKED, np.nan, np.arange(7.0)))
    np.testing.assert_array_equal(evaluation.nan_params["a"], [1, 5])


@pytest.mark.parametrize(("function", "vectorized"), [(masked_one, False), (masked_many, True)])
@pytest.mark.parametrize("is_pooled", [False, True])
def test_masked_points_are_nan_in_a_pool_as_well(function, vectorized, is_pooled):
    with multiprocessing.pool.ThreadPool(2) as pool:
        evaluation = evaluate(HostLikelihood(function, vectorized=vectorized, pool=pool if is_pooled else None), PARAMS)
    np.testing.assert_array_equal(evaluation.log_likelihood, np.where(IS_MASKED, -np.inf, np.arange(7.0)))
    np.testing.assert_array_equal(evaluation.derived["d"], np.where(IS_MASKED, np.nan, np.arange(7.0)))


def test_a_masked_logarithm_has_its_evidence():
    """It was -0.72, with log L = 0 in half of the prior."""
    likelihood = HostLikelihood(lambda p: 20 * np.ma.log(p["a"]) - 10 * p["a"])
    prior = Prior({"a": dist.Uniform(-5.0, 5.0)})
    result = run(likelihood, prior, ess=200, settings=Settings(num_prior=200, num_live=100))
    exact = special.gammaln(21) + np.log(special.gammainc(21, 50)) - 21 * np.log(10) - np.log(10)
    assert abs(result.logZ - exact) < 5 * result.logZ_err < 0.5


class Quantity(float):
    """As astropy's: a number with a unit, whose bare value numpy reads."""

    unit = "percent"

    def to_value(self, unit):
        assert unit == ""
        return self / 100


class Attached:
    """As torch's tensors that carry a gradient, which numpy may not read."""

    def __array__(self, dtype=None, copy=None):
        raise RuntimeError("Can't call numpy() on Tensor that requires grad.")


def test_units_that_cancel_are_applied():
    evaluation = evaluate(HostLikelihood(lambda p: Quantity(100 * p["a"])), PARAMS)
    np.testing.assert_allclose(evaluation.log_likelihood, np.arange(7.0))


@pytest.mark.parametrize("output", [Attached(), [None, 1.0], object(), [[0.0], [0.0, 1.0]], pandas.NaT])
def test_what_numpy_cannot_read_is_named(output):
    with pytest.raises(
        TypeError, match=r"expected to return real numbers; .*(Attached|list|object|NaT).* at \{'a': 0.0"
    ):
        check(HostLikelihood(lambda _: output), PARAMS)


def test_minus_infinity_is_a_value():
    log_likelihood, nan_params, _ = evaluate(HostLikelihood(lambda p: -np.inf), PARAMS)  # noqa: ARG005
    assert np.all(log_likelihood == -np.inf)
    assert len(nan_params["a"]) == 0


@pytest.mark.parametrize(("kind", "where"), [(JaxLikelihood, jnp.where), (HostLikelihood, np.where)])
def test_plus_infinity_is_refused_with_the_point(kind, where):
    with pytest.raises(ValueError, match=r"\+inf at \{'a': \[4.0\], 'b': \[\[8.0, 9.0\]\]\}"):
        evaluate(kind(lambda p: where(p["a"] == 4, np.inf, 0.0)), PARAMS)


def test_what_no_double_can_square_is_infinite():
    evaluation = evaluate(HostLikelihood(lambda p: -1.7e308 if p["a"] == 4 else -1e30), PARAMS)
    np.testing.assert_array_equal(evaluation.log_likelihood, [-1e30] * 4 + [-np.inf] + [-1e30] * 2)
    with pytest.raises(LikelihoodError, match=r"got \+1e\+300 at"):
        evaluate(HostLikelihood(lambda p: 1e300), PARAMS)  # noqa: ARG005


def test_impossible_everywhere_is_refused():
    require_finite(np.array([-np.inf, 0.0]))
    with pytest.raises(ValueError, match="finite log-likelihood somewhere.*all 3 draws"):
        require_finite(np.full(3, -np.inf))


# ---- wrong calls


def test_as_likelihood():
    jax_likelihood, host_likelihood = JaxLikelihood(jax_function), HostLikelihood(host_function)
    assert as_likelihood(jax_likelihood) is jax_likelihood
    assert as_likelihood(host_likelihood) is host_likelihood
    assert as_likelihood(jax_function).function is jax_function


@pytest.mark.parametrize("likelihood", [JaxLikelihood(jax_function), HostLikelihood(host_function)])
def test_likelihoods_are_immutable(likelihood):
    with pytest.raises(AttributeError, match="immutable"):
        likelihood.function = None


WRONG_CONSTRUCTIONS = {
    "no function": (lambda: as_likelihood(3.0), TypeError, "`JaxLikelihood` expected a function.*got 3.0"),
    "no host function": (lambda: HostLikelihood([1]), TypeError, "`HostLikelihood` expected a function"),
    "pool without map": (lambda: HostLikelihood(host_function, pool=4), TypeError, "`map` method.*; got 4"),
    "no chunks": (
        lambda: HostLikelihood(host_function, num_chunks=0),
        ValueError,
        "`num_chunks` expected an integer of at least 1; got 0",
    ),
    "half a chunk": (
        lambda: HostLikelihood(host_function, num_chunks=2.5),
        ValueError,
        "`num_chunks` expected an integer .*; got 2.5",
    ),
    "no mesh": (lambda: JaxLikelihood(jax_function, mesh=4), TypeError, "`mesh` of devices; got 4.*make_mesh"),
}


@pytest.mark.parametrize(("build", "error", "match"), WRONG_CONSTRUCTIONS.values(), ids=WRONG_CONSTRUCTIONS)
def test_wrong_constructions_are_explained(build, error, match):
    with pytest.raises(error, match=match):
        build()


def two_arguments(a, b):
    return a + b


def mutating(params):
    params["b"][0] = 1.0
    return params["b"][0]


WRAP = r"HostLikelihood\("
WRONG_JAX = {
    "signature": (two_arguments, TypeError, r"two_arguments failed.*a: \(\), b: \(2,\).*missing 1 required"),
    "key": (lambda p: p["c"], LookupError, r"parameters a: \(\), b: \(2,\): KeyError: 'c'"),
    "vector": (lambda p: p["b"], ValueError, r"a scalar for one point; got an array of shape \(2,\)"),
    "complex": (lambda p: p["a"] * 1j, TypeError, "real number; got complex128"),
    "boolean": (lambda p: p["a"] > 0, TypeError, "real number; got bool"),
    "none": (lambda p: None, TypeError, "one real scalar; got None"),  # noqa: ARG005
    "tuple": (lambda p: (p["a"], p["a"]), TypeError, "one real scalar"),
    "derived vector": (lambda p: (p["a"], {"c": p["b"]}), ValueError, r"'c' expected to return a scalar"),
    "numpy": (lambda p: np.sin(p["a"]).sum(), TypeError, WRAP),
    "math": (lambda p: math.sin(p["a"]), TypeError, WRAP),
    "float": (lambda p: float(p["a"]), TypeError, WRAP),
    "branch": (lambda p: 1.0 if p["a"] > 0 else 0.0, TypeError, WRAP),
    "loop": (lambda p: sum(range(int(p["a"]))), TypeError, WRAP),
    "item": (lambda p: p["a"].item(), TypeError, WRAP),
    "in place": (mutating, TypeError, WRAP),
}


@pytest.mark.parametrize(("function", "error", "match"), WRONG_JAX.values(), ids=WRONG_JAX)
def test_wrong_jax_functions_are_explained(function, error, match):
    with pytest.raises(error, match=match) as caught:
        check(JaxLikelihood(function), PARAMS)
    assert (match is WRAP) <= (caught.value.__cause__ is not None)


WRONG_HOST = {
    "signature": (two_arguments, False, TypeError, "missing 1 required.*'a': 0.0"),
    "key": (lambda p: p["c"], False, LookupError, r"KeyError: 'c'.*at \{'a': 0.0, 'b': \["),
    "key, vectorized": (
        lambda p: p["c"],
        True,
        LookupError,
        r"KeyError: 'c'.*7 points of.* a: \(\), b: \(2,\)",
    ),
    "vector": (lambda p: p["b"], False, ValueError, r"one number; got shape \(2,\).*vectorized=True"),
    "none": (lambda p: None, False, TypeError, "real numbers; got NoneType"),  # noqa: ARG005
    "complex": (lambda p: 1j * p["a"], False, TypeError, "real numbers; got complex128"),
    "text": (lambda p: "0.0", False, TypeError, "real numbers; got <U3"),  # noqa: ARG005
    "too short": (lambda p: p["a"][:3], True, ValueError, r"shape \(7,\).*got \(3,\)"),
    "scalar": (lambda p: p["a"].sum(), True, ValueError, r"shape \(7,\).*got \(\)"),
    "column": (lambda p: p["a"][:, None], True, ValueError, r"shape \(7,\).*got \(7, 1\)"),
    "ragged": (lambda p: [None] * len(p["a"]), True, TypeError, "real numbers; got list"),
    "lists of unequal lengths": (lambda p: [[0.0], [0.0, 1.0]], False, TypeError, "real numbers; got list"),  # noqa: ARG005
    "derived vector": (lambda p: (0.0, {"c": p["b"]}), False, ValueError, "derived parameter 'c'; got shape"),
    "derived text": (lambda p: (0.0, {"c": "x"}), False, TypeError, "'c' expected to return real numbers"),  # noqa: ARG005
    "derived scalar": (lambda p: (p["a"], {"c": 1.0}), True, ValueError, r"shape \(7,\) of the derived .*'c'"),
}


@pytest.mark.parametrize(("function", "vectorized", "error", "match"), WRONG_HOST.values(), ids=WRONG_HOST)
def test_wrong_host_functions_are_explained(function, vectorized, error, match):
    with pytest.raises(error, match=match):
        check(HostLikelihood(function, vectorized=vectorized), PARAMS)


class StrangeError(Exception):
    def __init__(self, code, text):
        super().__init__(code, text)


def strange(params):  # noqa: ARG001
    raise StrangeError(3, "odd")


@pytest.mark.parametrize(
    ("function", "error", "match"),
    [
        (failing_function, ZeroDivisionError, r"boom \(raised by the likelihood failing_function at \{'a': 3.0"),
        (strange, RuntimeError, r"StrangeError.*odd.*'a': 0.0, 'b': \[0.0, 1.0\]"),
    ],
)
def test_exceptions_name_the_point(function, error, match):
    """Before a run of the same type; during one of the type that a run catches."""
    for call, kind in ((check, error), (evaluate, LikelihoodError)):
        with pytest.raises(kind, match=match) as caught:
            call(HostLikelihood(function), PARAMS)
        assert isinstance(caught.value.__cause__, (ZeroDivisionError, StrangeError))


def generator(params):
    yield params["a"]


async def coroutine(params):
    return params["a"]


async def stream(params):
    yield params["a"]


class Called:
    """Its call is a generator."""

    def __call__(self, params):
        yield params["a"]


@pytest.mark.parametrize("wrap", [HostLikelihood, JaxLikelihood])
@pytest.mark.parametrize(
    ("function", "what"),
    [
        (generator, "a generator function"),
        (coroutine, "an async function"),
        (stream, "an async generator"),
        (dict, "a class"),
        (functools.partial(generator), "a generator function"),
        (Called(), "a generator function"),
    ],
    ids=["generator", "async", "stream", "class", "partial", "object"],
)
def test_functions_that_return_no_number_are_refused(wrap, function, what):
    with pytest.raises(TypeError, match=f"`{wrap.__name__}` expected a function that returns a number; got {what}"):
        wrap(function)


@pytest.mark.parametrize(
    ("name", "value"),
    [("vectorized", "False"), ("vectorized", None), ("num_chunks", 1.5), ("retries", -1), ("timeout", "3")],
)
def test_options_of_a_host_likelihood_are_checked(name, value):
    with pytest.raises((TypeError, ValueError), match=f"`HostLikelihood` for its `{name}` expected .*; got "):
        HostLikelihood(lambda p: p["a"], **{name: value})
