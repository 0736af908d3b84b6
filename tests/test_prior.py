"""Identities of the prior in closed form, then the wrong calls it must explain."""

import copy
import functools
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
import scipy.stats as stats
from numpyro.distributions import transforms

import nsflow
from nsflow.nested.summary import limit_alarms
from nsflow.numerics.precision import float64
from nsflow.prior.periodic import LATENT_LIMIT
from nsflow.prior.prior import Prior

FALSE_ALARM = 1e-6  # chance that a correct nsflow fails any one statistical test in this file

NORMAL_LATENT = {
    "normal": dist.Normal(1.0, 2.0),
    "lognormal": dist.LogNormal(0.5, 1.5),
    "uniform": dist.Uniform(-5, 5),
    "loguniform": dist.LogUniform(1e-3, 1e3),
    "halfnormal": dist.HalfNormal(2.0),
    "exponential": dist.Exponential(2.0),
    "cauchy": dist.Cauchy(1.0, 2.0),
    "halfcauchy": dist.HalfCauchy(2.0),
    "laplace": dist.Laplace(1.0, 2.0),
    "logistic": dist.Logistic(1.0, 2.0),
    "gumbel": dist.Gumbel(1.0, 2.0),
    "weibull": dist.Weibull(2.0, 1.5),
    "pareto": dist.Pareto(1.0, 3.0),
    "truncated": dist.TruncatedNormal(0.0, 1.0, low=-1.0, high=2.0),
    "power law": dist.DoublyTruncatedPowerLaw(-2.0, 1.0, 10.0),
    "levy": dist.Levy(0.0, 1.0),
    "transformed": dist.TransformedDistribution(dist.Normal(0.0, 1.0), transforms.AffineTransform(1.0, -2.0)),
    "vector": dist.Normal(np.zeros(3), 1.0),
    "matrix": dist.Uniform(0, 1).expand([2, 3]).to_event(1),
    "expanded": dist.Exponential(np.array([[1.0], [2.0]])).expand([2, 3]),
    "multivariate": dist.MultivariateNormal(np.array([1.0, 2.0]), np.array([[2.0, 0.5], [0.5, 1.0]])),
    "batch of multivariate": dist.MultivariateNormal(np.zeros((3, 2)), np.array([[2.0, 0.5], [0.5, 1.0]])),
    "low rank": dist.LowRankMultivariateNormal(np.zeros(3), np.ones((3, 1)), np.ones(3)),
    "scipy normal": stats.norm(1, 2),
    "scipy uniform": stats.uniform(-1, 3),
    "scipy multivariate": stats.multivariate_normal([1, 2], [[2, 0.5], [0.5, 1]]),
}
BIJECTED = {
    "gamma": dist.Gamma(2.0, 3.0),
    "beta": dist.Beta(2.0, 0.5),
    "student": dist.StudentT(3.0, 0.0, 1.0),
    "inverse gamma": dist.InverseGamma(2.0, 1.0),
    "von Mises": dist.VonMises(0.0, 2.0),
    "folded": dist.FoldedDistribution(dist.Normal(1.0, 1.0)),
    "mixture": dist.MixtureSameFamily(
        dist.Categorical(np.array([0.3, 0.7])), dist.Normal(np.array([-1.0, 1.0]), np.ones(2))
    ),
    "random walk": dist.GaussianRandomWalk(1.0, 4),
}
SMALLER_LATENT = {
    "dirichlet": (dist.Dirichlet(np.array([1.0, 2.0, 3.0])), 2),
    "batch of dirichlet": (dist.Dirichlet(np.ones((2, 3))), 4),
    # numpyro's own arithmetic is not strict about types
    "correlation": (float64(dist.LKJCholesky)(3, 2.0), 3),
}
HOST = {"gamma": stats.gamma(2.0, scale=3.0), "vector": stats.beta(np.array([1.0, 2.0]), 2.0), "t": stats.t(3)}

ALL = {**NORMAL_LATENT, **BIJECTED, **{k: v for k, (v, _) in SMALLER_LATENT.items()}}
ALL |= {f"host {k}": v for k, v in HOST.items()}


def cases(table):
    return pytest.mark.parametrize("name", table)


@functools.cache
def prior_of(name):
    """One prior for all tests, which use it with batches of 20, so that it compiles once."""
    return Prior({"x": ALL[name]})


def latent_points(prior):
    return np.random.default_rng(1).normal(size=(20, prior.num_dims))


@cases(ALL)
@float64
def test_round_trip(name):
    prior = prior_of(name)
    z = latent_points(prior)
    x = prior.forward(z)
    assert x["x"].dtype == prior.log_prob(x).dtype == np.float64
    assert x["x"].shape == (20, *prior.shapes["x"])
    np.testing.assert_allclose(prior.inverse(x), z, atol=1e-10)
    assert np.isfinite(prior.log_prob(x)).all()


@cases(["uniform", "multivariate", "gamma", "correlation", "host vector"])
@float64
def test_samples_are_the_latent_samples_carried_over(name):
    prior = prior_of(name)
    key = jax.random.key(1)
    z, x = prior.latent_sample(key, 20), prior.sample(key, 20)
    assert z.dtype == x["x"].dtype == np.float64
    np.testing.assert_allclose(prior.forward(z)["x"], x["x"], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("name", "size"), [(name, size) for name, (_, size) in SMALLER_LATENT.items()])
def test_latent_size_counts_the_free_numbers(name, size):
    assert prior_of(name).num_dims == size


@cases({**NORMAL_LATENT, **BIJECTED})
@float64
def test_latent_density_is_that_of_the_values_times_the_jacobian(name):
    prior = prior_of(name)
    z = latent_points(prior)
    jacobian = jax.vmap(jax.jacfwd(lambda z: prior.forward(z)["x"].reshape(-1)))(z)
    expected = prior.log_prob(prior.forward(z)) + np.linalg.slogdet(jacobian)[1]
    np.testing.assert_allclose(prior.latent_log_prob(z), expected, atol=1e-10)


@cases([*SMALLER_LATENT, "gamma", "beta"])
@float64
def test_latent_density_integrates_to_one(name):
    """E over x ~ prior of g(z) / p(z) is the integral of g: 1 for the density g of a fitted, narrower Gaussian."""
    prior = prior_of(name)
    z = np.asarray(prior.latent_sample(jax.random.key(3), 20_000))
    # Narrower than the prior, so that the ratio is bounded in the bulk and its variance finite.
    narrow = stats.multivariate_normal(z.mean(0), 0.5 * np.cov(z.T))
    ratio = np.exp(narrow.logpdf(z) - np.asarray(prior.latent_log_prob(z)))
    error = ratio.std() / np.sqrt(len(z))
    assert error < 0.02
    assert abs(ratio.mean() - 1) < stats.norm.isf(FALSE_ALARM / 2) * error


@cases([*NORMAL_LATENT, *(f"host {name}" for name in HOST)])
@float64
def test_latent_prior_is_standard_normal(name):
    prior = prior_of(name)
    z = np.linspace(-3, 3, 20 * prior.num_dims).reshape(20, -1)
    np.testing.assert_allclose(prior.latent_log_prob(z), stats.norm.logpdf(z).sum(1), rtol=1e-13)


@pytest.mark.parametrize(
    ("distribution", "reference"),
    [
        (dist.Weibull(2.0, 1.5), stats.weibull_min(1.5, scale=2.0)),
        (dist.Gumbel(1.0, 2.0), stats.gumbel_r(1.0, 2.0)),
        (dist.Pareto(1.0, 3.0), stats.pareto(3.0)),
        (dist.HalfCauchy(2.0), stats.halfcauchy(scale=2.0)),
        (dist.LogUniform(1e-3, 1e3), stats.loguniform(1e-3, 1e3)),
        (dist.Gamma(2.0, 3.0), stats.gamma(2.0, scale=1 / 3)),
        (stats.gamma(2.0, scale=3.0), stats.gamma(2.0, scale=3.0)),
        (dist.VonMises(0.0, 2.0), stats.vonmises(2.0)),
    ],
    ids=lambda d: type(d).__name__,
)
def test_samples_follow_the_distribution(distribution, reference):
    x = Prior({"x": distribution}).sample(jax.random.key(4), 5000)["x"]
    assert stats.kstest(np.asarray(x), reference.cdf).pvalue > FALSE_ALARM


@pytest.mark.parametrize(
    ("distribution", "reference"),
    [
        (dist.Exponential(2.0), stats.expon(scale=0.5)),
        (dist.HalfNormal(2.0), stats.chi(1, scale=2.0)),
        (dist.HalfCauchy(2.0), stats.halfcauchy(scale=2.0)),
        (dist.Cauchy(0.0, 2.0), stats.cauchy(0.0, 2.0)),
        (dist.Laplace(0.0, 2.0), stats.laplace(0.0, 2.0)),
        (dist.Logistic(0.0, 2.0), stats.logistic(0.0, 2.0)),
        (dist.Gumbel(0.0, 2.0), stats.gumbel_r(0.0, 2.0)),
        (dist.Weibull(2.0, 1.5), stats.weibull_min(1.5, scale=2.0)),
        (dist.Pareto(1.0, 3.0), stats.pareto(3.0)),
        (dist.Uniform(0.0, 1.0), stats.uniform()),
    ],
    ids=lambda d: type(d).__name__,
)
@float64
def test_both_tails_are_accurate(distribution, reference):
    """Phi(9) is 1 to the last digit: only a tail computed from its own side passes."""
    z = np.array([-20.0, -9.0, -8.0, -1.0, 1.0, 8.0, 9.0, 20.0])
    expected = np.where(z < 0, reference.ppf(stats.norm.cdf(z)), reference.isf(stats.norm.sf(z)))
    np.testing.assert_allclose(Prior({"x": distribution}).forward(z[:, None])["x"], expected, rtol=1e-9)


@cases(ALL)
@float64
def test_far_points_and_edges_stay_finite(name):
    prior = prior_of(name)
    z = np.outer(np.repeat([-8.0, 8.0], 10), np.ones(prior.num_dims))
    x = prior.forward(z)
    assert np.isfinite(x["x"]).all()
    assert np.isfinite(prior.log_prob(x)).all()
    assert np.isfinite(prior.latent_log_prob(z)).all()
    assert np.isfinite(prior.inverse(x)).all()


@pytest.mark.parametrize("z", [-1e3, -38.0, 38.0, 1e3])
@float64
def test_every_latent_point_is_inside_the_support(z):
    prior = Prior({"u": dist.Uniform(5, 6), "e": dist.Exponential(1.0), "t": dist.TruncatedNormal(0.0, 1.0, low=1.0)})
    x = prior.forward(np.full(3, z))
    assert 5 < x["u"] < 6  # a likelihood may have a pole at a bound
    assert 0 < x["e"] < 1e3
    assert 1 <= x["t"] < np.inf


@pytest.mark.parametrize("edge", [0.0, 1.0])
def test_inverse_of_an_edge_is_finite(edge):
    prior = Prior({"u": dist.Uniform(0, 1), "b": dist.Beta(2.0, 2.0), "s": stats.beta(2.0, 2.0)})
    assert np.isfinite(prior.inverse({"u": edge, "b": edge, "s": edge})).all()


@float64
def test_density_outside_the_support_is_zero():
    prior = Prior({"u": dist.Uniform(0, 1), "g": dist.Gamma(2.0, 1.0)})
    log_prob = prior.log_prob({"u": np.array([0.5, 2.0, 0.5]), "g": np.array([1.0, 1.0, -1.0])})
    np.testing.assert_allclose(log_prob, [-1.0, -np.inf, -np.inf])


@float64
def test_parameters_are_independent_blocks_in_order():
    prior = Prior({"w": dist.Dirichlet(np.ones(3)), "a": dist.Normal(2.0, 1.0), "b": stats.t(3)})
    z = prior.latent_sample(jax.random.key(5), 7)
    assert prior.num_dims == z.shape[1] == 4
    np.testing.assert_allclose(prior.forward(z)["a"], 2 + z[:, 2])
    singles = [Prior({"w": dist.Dirichlet(np.ones(3))}), Prior({"a": dist.Normal(2.0, 1.0)}), Prior({"b": stats.t(3)})]
    x = prior.forward(z)
    expected = sum(single.log_prob({name: x[name]}) for name, single in zip("wab", singles, strict=True))
    np.testing.assert_allclose(prior.log_prob(x), expected)


def test_one_point_and_many_axes():
    prior = Prior({"a": dist.Normal(0, 1), "w": dist.Dirichlet(np.ones(3)), "s": stats.expon()})
    one = prior.forward(np.zeros(4))
    assert {k: v.shape for k, v in one.items()} == {"a": (), "w": (3,), "s": ()}
    assert prior.log_prob(one).shape == prior.latent_log_prob(np.zeros(4)).shape == ()
    assert prior.inverse(one).shape == (4,)
    grid = prior.forward(np.zeros((5, 6, 4)))
    assert grid["w"].shape == (5, 6, 3)
    assert prior.log_prob(grid).shape == (5, 6)
    assert prior.inverse(grid).shape == (5, 6, 4)


def test_names_and_columns():
    prior = Prior({"a": dist.Normal(0, 1), "b": dist.Normal(np.zeros(2), 1), "C": dist.Normal(np.zeros((1, 2)), 1)})
    assert prior.names == ("a", "b[0]", "b[1]", "C[0,0]", "C[0,1]")
    params = {"C": np.array([[[4.0, 5.0]]]), "b": np.array([[2.0, 3.0]]), "a": np.array([1.0])}
    np.testing.assert_array_equal(prior.flatten(params), [[1.0, 2.0, 3.0, 4.0, 5.0]])
    np.testing.assert_array_equal(prior.flatten({k: v[0] for k, v in params.items()}), [[1.0, 2.0, 3.0, 4.0, 5.0]])


def test_single_precision_arguments_become_double():
    """0.001 in single precision is off by 5e-11; the logarithm numpyro takes of it in single, by 2e-7."""
    prior = Prior({"a": dist.LogUniform(0.001, 1.0), "b": dist.Normal(jnp.float32(0.1), jnp.float32(2.0))})
    x = prior.forward(np.array([-1e3, 0.0]))
    assert x["a"].dtype == x["b"].dtype == np.float64
    np.testing.assert_allclose(x["a"], 0.001, rtol=1e-14)
    np.testing.assert_allclose(
        prior.log_prob({"a": 0.001, "b": 0.0}),
        stats.loguniform(0.001, 1).logpdf(0.001) + stats.norm(np.float32(0.1), 2.0).logpdf(0.0),
        rtol=1e-14,
    )


def test_global_configuration_is_untouched_and_jit_works():
    prior = Prior({"a": dist.Uniform(-5, 5), "g": dist.Gamma(2.0, 1.0)})
    jitted = float64(jax.jit(prior.forward))(np.zeros((3, 2)))
    np.testing.assert_allclose(jitted["a"], 0.0)
    assert jnp.ones(1).dtype == np.float32


def test_traceable():
    assert Prior({"a": dist.Normal(0, 1), "b": stats.norm(), "c": stats.uniform(0, 1)}).traceable
    assert Prior({"a": dist.Normal(0, 1), "b": stats.t(3)}).traceable
    assert not Prior({"a": dist.Normal(0, 1), "b": stats.studentized_range(3, 10)}).traceable


def test_prior_is_immutable():
    prior = Prior({"a": dist.Normal(0, 1)})
    with pytest.raises(AttributeError, match="immutable"):
        prior.num_dims = 3
    with pytest.raises(TypeError):
        prior.shapes["a"] = (2,)


# ---- transforms of the unit cube


def jax_transform(u):
    return jnp.stack([10 * u[0] - 5, jnp.exp(u[1])])


def numpy_transform(u):
    u[0] = 10 * u[0] - 5  # in place, as many do
    u[1] = np.exp(u[1])
    return u


def dict_transform(u):
    return {"a": u[0], "b": u[1:] * 2}


@pytest.mark.parametrize(("transform", "traceable"), [(jax_transform, True), (numpy_transform, False)])
@float64
def test_transform_by_jax_or_numpy(transform, traceable):
    prior = Prior.from_transform(transform, ["a", "b"])
    z = np.array([[0.0, 0.0], [1.0, -1.0], [0.3, 50.0]])
    u = stats.norm.cdf(z)
    x = prior.forward(z)
    assert prior.traceable is traceable
    np.testing.assert_allclose(x["a"], 10 * u[:, 0] - 5, atol=1e-12)
    np.testing.assert_allclose(x["b"], np.exp(u[:, 1]))
    np.testing.assert_allclose(prior.latent_log_prob(z), stats.norm.logpdf(z).sum(1))
    np.testing.assert_allclose(
        prior.sample(jax.random.key(0), 5)["a"], prior.forward(prior.latent_sample(jax.random.key(0), 5))["a"]
    )


def test_transform_to_a_dict():
    prior = Prior.from_transform(dict_transform, ["a", "b[0]", "b[1]"])
    assert prior.names == ("a", "b[0]", "b[1]")
    assert prior.forward(np.zeros((4, 3)))["b"].shape == (4, 2)
    assert prior.forward(np.zeros(3))["b"].shape == (2,)


def aliased(u):
    v = u
    v *= 10  # in numpy u as well, in JAX v alone
    return u


def shifted_in_place(u):
    u *= 10
    u[0] = np.exp(u[0])
    return u


def updated(u):
    return u.at[0].set(jnp.exp(10 * u[0])).at[1].set(10 * u[1])  # arrays of JAX alone have `at`


@pytest.mark.parametrize(
    ("transform", "first", "traceable"),
    [(aliased, lambda u: u, False), (shifted_in_place, np.exp, False), (updated, np.exp, True)],
)
@float64
def test_transforms_in_place(transform, first, traceable):
    prior = Prior.from_transform(transform, ["a", "b"])
    z = np.array([[0.3, 1.0], [-1.0, 0.1]])
    u = 10 * stats.norm.cdf(z)
    assert prior.traceable is traceable
    np.testing.assert_allclose(prior.forward(z)["a"], first(u[:, 0]))
    np.testing.assert_allclose(prior.forward(z)["b"], u[:, 1])


@pytest.mark.parametrize(
    "transform",
    [lambda u: [u[0] > 0.9, 0.0], lambda u: np.array([np.floor(3 * u[0]), u[1] < 0.002]), lambda u: 1.0 * (u > 0.99)],
)
def test_transforms_to_switches_are_not_taken_for_constants(transform):
    prior = Prior.from_transform(transform, ["a", "b"])
    z = np.array([[0.0, 0.0], [2.5, -3.0]])
    expected = np.array([transform(u) for u in stats.norm.cdf(z)], float)
    np.testing.assert_array_equal(prior.flatten(prior.forward(z)), expected)


# ---- compilations

COMPILED = []  # names of events that JAX reports; listeners cannot be taken away again
jax.monitoring.register_event_duration_secs_listener(lambda event, *_, **__: COMPILED.append(event))


def num_compiled():
    return COMPILED.count("/jax/core/compile/backend_compile_duration")


HOST_PRIORS = {
    "transform": lambda: Prior.from_transform(numpy_transform, ["a", "b"]),
    "periodic transform": lambda: Prior.from_transform(numpy_transform, ["a", "b"], periodic=["a"]),
    "scipy": lambda: Prior({"a": stats.gamma(2.0), "b": stats.t(3)}),
    "mixed": lambda: Prior({"a": dist.Gamma(2.0, 1.0), "b": stats.t([3, 4]), "c": dist.Poisson(3.0)}),
    "circle": lambda: Prior({"a": nsflow.Periodic(stats.vonmises(0.5))}),
}


@cases(HOST_PRIORS)
@float64
def test_maps_of_the_host_compile_for_no_number_of_points(name):
    """JAX compiled every operation for every number of points, 423 times in one run."""
    prior = HOST_PRIORS[name]()

    def use(num):
        z = prior.latent_sample(jax.random.key(1), num)
        x = prior.forward(z)
        np.testing.assert_allclose(prior.sample(jax.random.key(1), num)[prior.names[0]], x[prior.names[0]], rtol=1e-9)
        assert prior.latent_log_prob(z).shape == (num,)
        if "transform" not in name:
            assert np.isfinite(prior.log_prob(x)).all()
            np.testing.assert_array_equal(np.shape(prior.inverse(x)), np.shape(z))

    before = num_compiled()
    use(1)
    assert num_compiled() > before  # the count counts
    before = num_compiled()
    for num in (2, 3, 17, 64, 513):
        use(num)
    assert num_compiled() == before


def box_by_jax(u):
    return 20 * u - 10


def box_by_numpy(u):
    return np.asarray(u) * 20 - 10


def test_a_run_with_a_transform_in_numpy_equals_that_of_jax_and_compiles_no_more():
    def log_likelihood(p):
        return -0.5 * ((p["a"] - 1) / 0.3) ** 2 - 0.5 * ((p["b"] - p["a"]) / 0.2) ** 2

    results, counts = [], []
    for transform in (box_by_jax, box_by_numpy):
        before = num_compiled()
        prior = Prior.from_transform(transform, ["a", "b"])
        likelihood = nsflow.HostLikelihood(log_likelihood, vectorized=True)
        settings = nsflow.Settings(num_prior=100)
        results.append(nsflow.run(likelihood, prior, ess=100, settings=settings, progress=False))
        counts.append(num_compiled() - before)
    assert counts[1] <= counts[0] + 5
    assert results[1].num_calls == results[0].num_calls
    np.testing.assert_allclose(results[1].logZ, results[0].logZ, atol=1e-9)
    np.testing.assert_allclose(results[1].samples, results[0].samples, rtol=1e-7, atol=1e-7)


def narrowly_broken(u):
    x = 20 * np.asarray(u) - 10
    if abs(x[0] - 1.0) < 2e-3:
        raise FloatingPointError("no convergence")
    return x


def test_a_transform_that_raises_in_the_middle_of_a_run_costs_no_work():
    prior = Prior.from_transform(narrowly_broken, ["a"])
    likelihood = nsflow.HostLikelihood(lambda p: -0.5 * ((p["a"] - 1) / 0.05) ** 2, vectorized=True)
    result = nsflow.run(likelihood, prior, ess=100, settings=nsflow.Settings(num_prior=100), progress=False)
    assert not result.finished
    assert result.num_calls >= 100
    assert "prior_transform" in result.stop_reason
    assert "FloatingPointError: no convergence" in result.stop_reason


# ---- where the tail of a prior ends


def by_ppf(u):
    return stats.norm.ppf(u)


def by_isf(u):
    return stats.norm.isf(u)


def run_to_datum(prior, datum, max_calls=20_000):
    likelihood = nsflow.HostLikelihood(lambda p: stats.norm.logpdf(p["a"], datum, 0.1), vectorized=True)
    settings = nsflow.Settings(num_prior=200)
    return nsflow.run(likelihood, prior, ess=100, max_calls=max_calls, settings=settings, progress=False)


def test_a_datum_beyond_the_resolution_of_the_cube_is_no_secret():
    """log Z is -66.2 there in the place of -41.0, and k-hat, ESS and errors look well."""
    result = run_to_datum(Prior.from_transform(by_ppf, ["a"]), 9.0, max_calls=4000)
    assert any("prior of 'a' ends in its upper tail of 9e-16" in alarm for alarm in result.alarms)


@pytest.mark.parametrize(("transform", "datum"), [(by_ppf, 5.0), pytest.param(by_isf, 9.0, marks=pytest.mark.slow)])
def test_a_datum_within_the_resolution_of_the_cube_is_right(transform, datum):
    """Numbers next to zero are resolved: the survival function's inverse has the upper tail."""
    result = run_to_datum(Prior.from_transform(transform, ["a"]), datum)
    assert not [alarm for alarm in result.alarms if "prior of" in alarm]
    assert abs(result.logZ - stats.norm.logpdf(datum, 0, np.hypot(1, 0.1))) < 5 * result.logZ_err
    assert result.logZ_err < 0.2


def test_limits_belong_to_latent_coordinates():
    prior = Prior({"w": dist.Dirichlet(np.ones(3)), "phi": nsflow.Periodic(dist.Uniform(0, 1).expand([2]))})
    assert prior.latent_names == ("w", "w", "phi[0]", "phi[1]")
    lower, upper = prior.latent_limits
    np.testing.assert_array_equal(upper, [np.inf, np.inf, LATENT_LIMIT, LATENT_LIMIT])
    np.testing.assert_array_equal(lower, -upper)
    cube = Prior.from_transform(by_ppf, ["a", "b"], periodic=["b"])
    assert cube.latent_names == ("a", "b")
    np.testing.assert_array_equal(cube.latent_limits[0], [-np.inf, -LATENT_LIMIT])
    np.testing.assert_array_equal(cube.latent_limits[1], [LATENT_LIMIT, LATENT_LIMIT])
    # A step of u is an eighth of what is beyond.
    beyond = stats.norm.sf(LATENT_LIMIT)
    np.testing.assert_allclose(beyond, 8 * 2.0**-53, rtol=1e-9)


@pytest.mark.parametrize(("weight", "is_alarming"), [(1e-4, False), (0.01, True)])
def test_the_alarm_weighs_the_draws_beyond_a_limit(weight, is_alarming):
    prior = Prior.from_transform(by_ppf, ["a", "b"])
    x = np.array([[0.0, 0.0], [0.0, 8.1], [9.0, 9.0], [-20.0, 0.0]])
    with np.errstate(divide="ignore"):
        alarms = limit_alarms(prior, x, np.log([1.0, weight, 0.0, 1.0]))
    assert len(alarms) == is_alarming
    assert not alarms or "prior of 'b'" in alarms[0]
    assert "0.5%" in alarms[0] if alarms else True
    assert limit_alarms(prior, x, np.full(4, -np.inf)) == []


# ---- copies


SENT = {
    "numpyro": lambda: Prior({"a": dist.Gamma(2.0, 3.0), "b": dist.TruncatedNormal(0.0, 1.0, low=0.5)}),
    "scipy": lambda: Prior({"a": stats.gamma(2.0), "b": stats.rv_histogram(np.histogram([1.0, 2, 2, 3]))}),
    "circle": lambda: Prior({"a": nsflow.Periodic(dist.Uniform(0, 6)), "b": dist.Poisson(2.0)}).turn(
        np.array([0.3, 0])
    ),
    "jax": lambda: Prior.from_transform(jax_transform, ["a", "b"], labels={"a": r"$\alpha$"}),
    "numpy": lambda: Prior.from_transform(numpy_transform, ["a", "b"], periodic=["a"]).turn(np.array([0.25, 0.0])),
}


@cases(SENT)
@float64
def test_a_prior_from_a_pickle_is_the_same_to_the_last_bit(name):
    prior, key = SENT[name](), jax.random.key(2)
    assert copy.copy(prior) is copy.deepcopy(prior) is prior
    for library in (pickle, pytest.importorskip("cloudpickle")):
        sent = library.loads(library.dumps(prior))
        assert (sent.names, sent.labels, sent.num_dims) == (prior.names, prior.labels, prior.num_dims)
        assert sent.phases.tolist() == prior.phases.tolist()
        z = prior.latent_sample(key, 20)
        assert np.array_equal(sent.latent_sample(key, 20), z)
        assert np.array_equal(sent.flatten(sent.forward(z)), prior.flatten(prior.forward(z)))
        assert np.array_equal(sent.latent_log_prob(z), prior.latent_log_prob(z))


def test_a_prior_of_a_lambda_needs_cloudpickle():
    prior = Prior.from_transform(lambda u: 3 * u, ["a"])
    sent = pickle.loads(pytest.importorskip("cloudpickle").dumps(prior))
    assert sent.forward(np.zeros(1))["a"] == 1.5


# ---- labels


def test_labels_are_given_by_name_or_in_order():
    normals = {"a": dist.Normal(0, 1), "b": dist.Normal(np.zeros(2), 1)}
    assert Prior(normals).labels == ("a", "b[0]", "b[1]")
    assert Prior(normals, labels={"b[1]": r"\beta_1", "a": "$x$"}).labels == ("$x$", "b[0]", r"\beta_1")
    assert Prior(normals, labels=["x", "y", "z"]).labels == ("x", "y", "z")
    assert Prior.from_transform(box_by_jax, ["a", "b"], labels=("x", "y")).labels == ("x", "y")
    turned = Prior({"a": nsflow.Periodic(dist.Uniform(0, 1))}, labels=["x"]).turn(np.array([0.5]))
    assert turned.labels == ("x",)


@pytest.mark.parametrize(
    ("labels", "error", "match"),
    [
        ("alpha", TypeError, "`labels` expected a dict.*'alpha'"),
        (3, TypeError, "`labels` expected a dict.*got 3"),
        ({"c": "x"}, ValueError, r"columns \('a', 'b'\); got others, \['c'\]"),
        (["x"], ValueError, r"one for each of \('a', 'b'\); got \['x'\]"),
        ({"a": 3}, TypeError, "strings; got 3"),
        ({"a": " "}, ValueError, "printable text; got ' '"),
        ({"a": "\x1b[31m"}, ValueError, "printable text"),
    ],
)
def test_wrong_labels_are_explained(labels, error, match):
    with pytest.raises(error, match=match):
        Prior.from_transform(box_by_jax, ["a", "b"], labels=labels)
    with pytest.raises(error, match=match):
        Prior({"a": dist.Normal(0, 1), "b": dist.Normal(0, 1)}, labels=labels)


# ---- wrong calls

N = dist.Normal(0, 1)
WRONG_PRIORS = {
    "no mapping": ([N], TypeError, "expected a dict"),
    "empty": ({}, ValueError, "at least one parameter"),
    "name not a string": ({1: N}, TypeError, "strings as parameter names; got 1"),
    "empty name": ({" ": N}, ValueError, "non-empty"),
    "tuple": ({"a": (0, 1)}, TypeError, r"parameter 'a'; got \(0, 1\).*Uniform\(0, 1\)"),
    "class": ({"a": dist.Normal}, TypeError, r"'a'.*That is the class.*Normal\(\.\.\.\)"),
    "scipy class": ({"a": stats.gamma}, TypeError, r"Freeze it.*scipy.stats.gamma\(\.\.\.\)"),
    "function": ({"a": lambda u: u}, TypeError, "from_transform"),
    "improper": ({"a": dist.ImproperUniform(dist.constraints.real, (), ())}, ValueError, "'a'; got Improper.*improper"),
    "infinite": ({"a": dist.Uniform(0, np.inf)}, ValueError, "finite arguments.*'a'.*Mend `high`"),
    "unit": ({"a": dist.Unit(0.0)}, ValueError, "proper"),
    "delta": ({"a": dist.Delta(0.0)}, ValueError, "'a'.*point mass"),
    "masked": ({"a": N.mask(False)}, ValueError, "masked"),
    "discrete vector": ({"a": dist.Multinomial(3, jnp.ones(2) / 2)}, ValueError, "'a'.*discrete Multinomial.*itself"),
    "one value": ({"a": dist.DiscreteUniform(3, 3)}, ValueError, "'a'.*one value only|low < high"),
    "too many values": ({"a": dist.Poisson(1e9)}, ValueError, "'a'.*Poisson.*more than 1000000 values"),
    "no smallest value": ({"a": stats.skellam(1.0, 2.0)}, ValueError, "'a'.*skellam.*no smallest value"),
    "nan": ({"a": dist.Normal(np.nan, 1.0, validate_args=False)}, ValueError, "'a'.*loc=nan.*Mend `loc`"),
    "nan bound": ({"a": dist.Uniform(0.0, np.nan)}, ValueError, "'a'.*nan"),
    "swapped": ({"a": dist.Uniform(1, 0)}, ValueError, r"low < high.*'a'; got Uniform\(low=1, high=0\)"),
    "empty interval": ({"a": dist.Uniform(1, 1)}, ValueError, "low < high"),
    "negative scale": (
        {"a": dist.Normal(0, -1, validate_args=False)},
        ValueError,
        "'a'; got Normal.*scale=-1.*invalid scale",
    ),
    "negative scale inside": (
        {"a": dist.Normal(0, -1, validate_args=False).expand([2]).to_event(1)},
        ValueError,
        "invalid scale",
    ),
    "log of zero": ({"a": dist.LogUniform(0.0, 1.0, validate_args=False)}, ValueError, "'a'.*invalid low"),
    "scipy scale": ({"a": stats.norm(0, -1)}, ValueError, "'a'.*norm with.*-1"),
    "no elements": ({"a": dist.Normal(np.zeros(0), 1.0)}, ValueError, "at least one number.*'a'"),
    "no freedom": ({"a": dist.Dirichlet(np.ones(1))}, ValueError, "at least one free number.*'a'"),
    "sphere": ({"a": dist.ProjectedNormal(np.array([1.0, 0.0]))}, ValueError, "mapped to a latent vector.*'a'"),
    "gap": (
        {"a": dist.MixtureGeneral(dist.Categorical(np.ones(2) / 2), [dist.Uniform(0.0, 1.0), dist.Uniform(2.0, 3.0)])},
        ValueError,
        "'a'.*outside the support",
    ),
    "reserved": ({"logL": N}, ValueError, "anesthetic.*'logL'"),
    "collision": ({"b[0]": N, "b": dist.Normal(np.zeros(2), 1.0)}, ValueError, r"different name.*b\[0\]"),
}


@pytest.mark.parametrize(("distributions", "error", "match"), WRONG_PRIORS.values(), ids=WRONG_PRIORS.keys())
def test_wrong_priors_are_explained(distributions, error, match):
    with pytest.raises(error, match=match):
        Prior(distributions)


WRONG_TRANSFORMS = {
    "no function": ([1, 2], ["a"], TypeError, r"function of the unit cube; got \[1, 2\]"),
    "names a string": (jax_transform, "ab", TypeError, "list of names"),
    "no names": (jax_transform, [], ValueError, "at least one name"),
    "too few": (lambda u: u[:1], ["a", "b"], ValueError, r"shape \(2,\).*got shape \(1,\)"),
    "not finite": (lambda u: jnp.log(u - 0.5), ["a"], ValueError, "finite parameters in the middle"),
    "repeated": (jax_transform, ["a", "a"], ValueError, "different name.*'a'"),
    "other keys": (dict_transform, ["a", "b", "c"], ValueError, r"flattens to \('a', 'b\[0\]', 'b\[1\]'\)"),
    "random": (lambda u: u + np.random.default_rng().normal(), ["a"], ValueError, "draws random numbers itself"),
    "constant": (lambda u: np.ones(1), ["a"], ValueError, "change with u"),  # noqa: ARG005
    "broken": (lambda u: u.no_such_method(), ["a"], AttributeError, r"prior_transform.*u = \[0.5\].*no_such_method"),
    "raises": (lambda u: [1 / 0], ["a"], ZeroDivisionError, "prior_transform.*it raised ZeroDivisionError"),  # noqa: ARG005
    "nothing": (lambda u: None, ["a"], TypeError, "prior_transform.*real numbers.*got None"),  # noqa: ARG005
    "text": (lambda u: ["x"], ["a"], TypeError, r"prior_transform.*real numbers.*got \['x'\]"),  # noqa: ARG005
    "text in a dict": (lambda u: {"a": "x"}, ["a"], TypeError, "real numbers of 'a'.*got 'x'"),  # noqa: ARG005
    "complex": (lambda u: u * 1j, ["a"], TypeError, "real numbers"),
    "ragged": (lambda u: [u, [1.0]], ["a", "b"], TypeError, "real numbers"),
    "too many": (lambda u: np.append(u, 1.0), ["a"], ValueError, r"shape \(1,\).*'a'.*got shape \(2,\)"),
    "shape by place": (
        lambda u: {"a": np.zeros(1 if u[0] < 0.9 else 2)},
        ["a[0]"],
        ValueError,
        r"\{'a': \(1,\)\}.*got \{'a': \(2,\)",
    ),
    "keys": (lambda u: {1: u[0], "a": u[1]}, ["a", "b"], TypeError, r"strings as names of parameters; got \[1, 'a'\]"),
    "raises at a place": (
        lambda u: [u[0] if u[0] < 0.99 else {}["x"]],
        ["a"],
        LookupError,
        r"u = \[0.99\d+\].*it raised KeyError",
    ),
}


@pytest.mark.parametrize(("transform", "names", "error", "match"), WRONG_TRANSFORMS.values(), ids=WRONG_TRANSFORMS)
def test_wrong_transforms_are_explained(transform, names, error, match):
    with pytest.raises(error, match=match):
        Prior.from_transform(transform, names)


PRIOR = Prior({"a": N, "b": dist.Normal(np.zeros(2), 1.0)})
WRONG_USES = {
    "latent length": (lambda: PRIOR.forward(np.zeros((4, 2))), r"\(\.\.\., 3\); got shape \(4, 2\)"),
    "missing": (lambda: PRIOR.log_prob({"a": 0.0}), r"parameters \['a', 'b'\]; got \['a'\]"),
    "unknown": (lambda: PRIOR.inverse({"a": 0.0, "c": 0.0}), r"got \['a', 'c'\]"),
    "shape": (lambda: PRIOR.log_prob({"a": 0.0, "b": np.zeros(3)}), r"\(\.\.\., 2\) of parameter 'b'; got \(3,\)"),
    "batch": (lambda: PRIOR.log_prob({"a": np.zeros(4), "b": np.zeros((5, 2))}), "same batch axes"),
    "density of a transform": (
        lambda: Prior.from_transform(jax_transform, ["a", "b"]).log_prob({"a": 0.0, "b": 0.0}),
        "from_transform.*latent space",
    ),
    "inverse of a transform": (
        lambda: Prior.from_transform(jax_transform, ["a", "b"]).inverse({"a": 0.0, "b": 0.0}),
        "Prior.inverse.*from_transform",
    ),
}


@pytest.mark.parametrize(("use", "match"), WRONG_USES.values(), ids=WRONG_USES)
def test_wrong_uses_are_explained(use, match):
    with pytest.raises(ValueError, match=match):
        use()


TWO = Prior({"a": dist.Normal(0.0, 1.0), "b": dist.Uniform(-1.0, 1.0)})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: TWO.sample(jax.random.key(0), 2.5), "integer of at least 0; got 2.5"),
        (lambda: TWO.sample(jax.random.key(0), -1), "integer of at least 0; got -1"),
        (lambda: TWO.latent_sample(jax.random.key(0), "5"), "integer of at least 0; got '5'"),
        (lambda: TWO.sample(jax.random.key(0), 10**13), "at most .* draws"),
        (lambda: TWO.sample(0, 5), "one JAX random key; got 0"),
        (lambda: TWO.log_prob(None), r"a dict with values of the parameters \['a', 'b'\]; got None"),
        (lambda: TWO.inverse([1.0, 2.0]), "a dict with values"),
        (lambda: TWO.flatten({"a": None, "b": 0.0}), "parameter 'a' expected an array of real numbers; got None"),
        (lambda: TWO.inverse({"a": 0.0, "b": "x"}), "parameter 'b' expected an array of real numbers"),
        (lambda: TWO.forward(None), "latent points expected an array of real numbers"),
        (lambda: TWO.forward(["a", "b"]), "latent points expected an array of real numbers"),
        (lambda: TWO.latent_log_prob([1j, 2.0]), "latent points expected an array of real numbers"),
        (lambda: TWO.turn(0.5), r"phases of shape \(2,\); got \(\)"),
        (lambda: TWO.step_widths(None), "real numbers; got None"),
    ],
)
def test_wrong_calls_say_what_was_expected(call, message):
    with pytest.raises((TypeError, ValueError), match=message):
        call()


def test_no_points_are_points_too():
    assert TWO.flatten(TWO.forward(np.zeros((0, 2)))).shape == (0, 2)
    assert TWO.flatten(TWO.sample(jax.random.key(0), 0)).shape == (0, 2)


@pytest.mark.parametrize(
    ("distribution", "message"),
    [
        (
            lambda: dist.Normal("a", 1.0),
            "`Prior` for `loc` of parameter 'q' expected an array of real numbers; got 'a'",
        ),
        (lambda: dist.Normal(0.0, 1j), "`Prior` for `scale` of parameter 'q' expected an array of real numbers"),
        (lambda: stats.norm("a"), "`Prior` for the arguments of parameter 'q' expected an array of real numbers"),
        (lambda: stats.norm(scale=None), "`Prior` for the arguments of parameter 'q' expected"),
    ],
)
def test_arguments_that_are_no_numbers_are_refused_with_the_parameters_name(distribution, message):
    with pytest.raises(TypeError, match=message):
        Prior({"q": distribution()})
