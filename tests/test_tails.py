"""Every prior in both tails to 1e-300, and its mass next to the edges of its support."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from numpyro.distributions import transforms
from scipy import special, stats
from scipy.stats._distr_params import distcont

import nsflow
from nsflow import Prior
from nsflow.numerics.precision import float64
from nsflow.prior.coordinate import Coordinate
from nsflow.prior.normal_score import Density, tabulate
from nsflow.prior.parameter import HostNormalScore

NUMPYRO = {
    "AsymmetricLaplace": dist.AsymmetricLaplace(1.0, 2.0, 3.0),
    "AsymmetricLaplaceQuantile": dist.AsymmetricLaplaceQuantile(1.0, 2.0, 0.3),
    "Beta": dist.Beta(2.0, 0.5),
    "BetaProportion": dist.BetaProportion(0.3, 4.0),
    "Cauchy": dist.Cauchy(1.0, 2.0),
    "Chi2": dist.Chi2(3.0),
    "Dagum": dist.Dagum(1.0, 2.0, 3.0),
    "DoublyTruncatedPowerLaw": dist.DoublyTruncatedPowerLaw(-2.0, 1.0, 10.0),
    "Exponential": dist.Exponential(2.0),
    "FoldedDistribution": dist.FoldedDistribution(dist.Normal(1.0, 1.0)),
    "Gamma": dist.Gamma(2.0, 3.0),
    "Gompertz": dist.Gompertz(1.0, 2.0),
    "Gumbel": dist.Gumbel(1.0, 2.0),
    "HalfCauchy": dist.HalfCauchy(2.0),
    "HalfNormal": dist.HalfNormal(2.0),
    "InverseGamma": dist.InverseGamma(2.0, 3.0),
    "Kumaraswamy": dist.Kumaraswamy(2.0, 3.0),
    "Laplace": dist.Laplace(1.0, 2.0),
    "LeftTruncatedDistribution": dist.TruncatedNormal(0.0, 1.0, low=0.0),
    "Levy": dist.Levy(0.0, 2.0),
    "LogNormal": dist.LogNormal(1.0, 2.0),
    "LogUniform": dist.LogUniform(1.0, 10.0),
    "Logistic": dist.Logistic(1.0, 2.0),
    "LowerTruncatedPowerLaw": dist.LowerTruncatedPowerLaw(-2.5, 1.0),
    "MixtureGeneral": dist.MixtureGeneral(
        dist.Categorical(np.array([0.3, 0.7])), [dist.Normal(0.0, 1.0), dist.StudentT(3.0, 2.0, 1.0)]
    ),
    "MixtureSameFamily": dist.MixtureSameFamily(
        dist.Categorical(np.array([0.3, 0.7])), dist.Normal(np.array([0.0, 30.0]), np.array([1.0, 0.01]))
    ),
    "Normal": dist.Normal(1.0, 2.0),
    "Pareto": dist.Pareto(1.0, 2.0),
    "RelaxedBernoulliLogits": dist.RelaxedBernoulliLogits(0.5, 0.3),
    "RightTruncatedDistribution": dist.TruncatedNormal(0.0, 1.0, high=0.0),
    "SoftLaplace": dist.SoftLaplace(1.0, 2.0),
    "StudentT": dist.StudentT(3.0, 1.0, 2.0),
    "TransformedDistribution": dist.TransformedDistribution(dist.Normal(0.0, 1.0), transforms.SigmoidTransform()),
    "TruncatedPolyaGamma": dist.TruncatedPolyaGamma(),
    "TwoSidedTruncatedDistribution": dist.TruncatedNormal(0.0, 1.0, low=-1.0, high=2.0),
    "Uniform": dist.Uniform(1.0, 2.0),
    "VonMises": dist.VonMises(0.5, 2.0),
    "Weibull": dist.Weibull(1.0, 2.0),
}
SPARSE = {
    "Beta(0.01, 0.01)": dist.Beta(0.01, 0.01),
    "Beta(2, 0.05)": dist.Beta(2.0, 0.05),
    "Gamma(0.01)": dist.Gamma(0.01, 1.0),
    "InverseGamma(0.05)": dist.InverseGamma(0.05, 1.0),
    "StudentT(0.1)": dist.StudentT(0.1, 0.0, 1.0),
    "truncated at 40": dist.TruncatedNormal(0.0, 1.0, low=40.0),
    "truncated t": dist.TruncatedDistribution(dist.StudentT(3.0, 0.0, 1.0), low=5.0),
}
# What else numpyro has: of several numbers, of integers, improper, or abstract.
OTHERS = {
    "BernoulliLogits", "BernoulliProbs", "BetaBinomial", "BetaNegativeBinomial", "BinomialLogits", "BinomialProbs",
    "CAR", "CategoricalLogits", "CategoricalProbs", "CirculantNormal", "Delta", "Dirichlet", "DirichletMultinomial",
    "DiscreteUniform", "Distribution", "EulerMaruyama", "ExpandedDistribution", "GammaPoisson", "GaussianCopula",
    "GaussianCopulaBeta", "GaussianRandomWalk", "GaussianStateSpace", "GeometricLogits", "GeometricProbs",
    "HurdleGamma", "HurdleLogNormal", "HurdleLogits", "HurdlePoisson", "HurdleProbs", "ImproperUniform", "Independent",
    "IntervalCensoredDistribution", "InverseWishart", "InverseWishartCholesky", "LKJ", "LKJCholesky",
    "LeftCensoredDistribution", "LeftTruncatedGamma", "LowRankMultivariateNormal", "MaskedDistribution", "MatrixNormal",
    "MultinomialLogits", "MultinomialProbs", "MultivariateNormal", "MultivariateStudentT", "NegativeBinomial2",
    "NegativeBinomialLogits", "NegativeBinomialProbs", "OrderedLogistic", "Poisson", "ProjectedNormal",
    "RightCensoredDistribution", "RightTruncatedGamma", "SineBivariateVonMises", "SineSkewed",
    "TwoSidedTruncatedGamma", "Unit", "Wishart", "WishartCholesky", "ZeroInflatedLogits", "ZeroInflatedPoisson",
    "ZeroInflatedProbs", "ZeroSumNormal",
}  # fmt: skip
Z = np.concatenate([-(10.0 ** np.linspace(0.0, np.log10(37.0), 12))[::-1], 10.0 ** np.linspace(0, np.log10(37.0), 12)])
# Densities that scipy computes with a noise of 1e-5, too slowly, or on several periods: its own quantiles are used.
BY_SCIPY = {"cosine", "irwinhall", "jf_skew_t", "ksone", "kstwo", "levy_stable", "ncf", "studentized_range", "vonmises"}


def test_the_walk_meets_every_distribution_of_numpyro():
    classes = {n for n, c in vars(dist).items() if inspect.isclass(c) and issubclass(c, dist.Distribution)}
    assert classes == set(NUMPYRO) | OTHERS


def require_normal(prior, distribution, log_density, tolerance):
    r"""Require :math:`f(x(z))\,dx/dz = \phi(z)` wherever x can be told from an edge, and order everywhere."""
    x, slope = jax.jvp(lambda z: prior.forward(z[:, None])["a"], (jnp.asarray(Z),), (jnp.ones(len(Z)),))
    x, slope = np.asarray(x), np.asarray(slope)
    assert np.all(np.isfinite(x))
    assert np.all(np.diff(x) >= 0)
    edges = [edge for edge in distribution if np.isfinite(edge)]
    is_far = np.all([np.abs(x - edge) > 1e-7 * abs(edge) for edge in edges], axis=0) if edges else True
    is_inside = is_far & (np.abs(x) > 1e-290) & (np.abs(x) < 1e140) & (slope > 0)
    with np.errstate(all="ignore"):
        density = np.asarray(log_density(x))
    is_inside &= density > -680  # where scipy takes logarithms of densities, digits end
    assert np.sum(is_inside) >= 3
    error = density[is_inside] + np.log(slope[is_inside]) - stats.norm.logpdf(Z[is_inside])
    np.testing.assert_allclose(error, 0.0, atol=tolerance)


@pytest.mark.parametrize("name", [*NUMPYRO, *SPARSE])
@float64
def test_numpyro_in_both_tails(name):
    distribution = (NUMPYRO | SPARSE)[name]
    prior = Prior({"a": distribution})
    support = distribution.support
    edges = (getattr(support, "lower_bound", -np.inf), getattr(support, "upper_bound", np.inf))
    require_normal(prior, edges, lambda x: prior.log_prob({"a": x}), 3e-6)
    z = np.array([-20.0, -3.0, 0.3, 3.0])[:, None]
    back = np.asarray(prior.inverse(prior.forward(z)))
    x = np.asarray(prior.forward(z)["a"])
    is_apart = np.all([np.abs(x - edge) > 1e-4 * abs(edge) for edge in edges if np.isfinite(edge)] or [x == x], axis=0)
    is_apart &= (np.abs(x) > 1e-290) & (np.abs(x) < 1e290)
    np.testing.assert_allclose(back[is_apart, 0], z[is_apart, 0], atol=1e-6)


@pytest.mark.parametrize(
    ("distribution", "log_tail"),
    [
        (dist.Gamma(0.5, 1.0), lambda z, x: np.log(special.gammaincc(0.5, x))),
        (dist.Beta(0.3, 2.0), lambda z, x: np.log(special.betaincc(0.3, 2.0, x))),
        (dist.TruncatedNormal(0.0, 1.0, low=0.0), lambda z, x: np.log(2) + special.log_ndtr(-x)),
        (stats.truncnorm(0.0, np.inf), lambda z, x: np.log(2) + special.log_ndtr(-x)),
        (dist.TruncatedNormal(0.0, 1.0, low=10.0), lambda z, x: special.log_ndtr(-x) - special.log_ndtr(-10.0)),
        (dist.AsymmetricLaplace(0.0, 1.0, 2.0), lambda z, x: -np.log(5.0) - 2 * x),
        (stats.t(1.0), lambda z, x: np.log(np.arctan2(1.0, x) / np.pi)),
        (stats.loggamma(2.0), lambda z, x: np.log(special.gammaincc(2.0, np.exp(x)))),
    ],
    ids=["gamma", "beta", "half normal", "scipy half normal", "far", "asymmetric", "t", "loggamma"],
)
@float64
def test_upper_tails_are_those_of_closed_forms(distribution, log_tail):
    z = np.array([3.0, 5.0])
    z = z if isinstance(distribution, dist.Beta) else np.append(z, [8.0, 9.0, 15.0, 30.0, 37.0])
    x = np.asarray(Prior({"a": distribution}).forward(z[:, None])["a"])
    np.testing.assert_allclose(log_tail(z, x), special.log_ndtr(-z), rtol=1e-7)


@pytest.mark.parametrize("case", [c for c in distcont if isinstance(c[0], str)], ids=lambda c: f"{c[0]}{c[1]}")
@float64
def test_scipy_in_both_tails(case):
    name, arguments = case
    if name == "studentized_range":
        pytest.skip("a second for each quantile")
    distribution = getattr(stats, name)(*arguments)
    prior = Prior({"a": distribution})
    if isinstance(prior._map.parameters["a"], HostNormalScore):
        assert name in BY_SCIPY or (name, arguments[0]) == ("pearson3", -2)
        return
    require_normal(prior, distribution.support(), distribution.logpdf, 3e-6)


@float64
def test_a_gap_in_a_prior_is_jumped():
    def log_density(x):
        return np.where((x < 1) | (x > 2), np.log(0.5), -np.inf)

    coordinate = Coordinate(0.0, 3.0)
    table, log_mass = tabulate(Density.of(log_density, coordinate), np.linspace(-3.0, 3.0, 7))
    x = coordinate.value(np.asarray(table.forward(jnp.asarray(special.ndtri([0.1, 0.499, 0.501, 0.9])))))
    assert abs(log_mass) < 1e-8
    np.testing.assert_allclose(x, [0.2, 0.998, 2.002, 2.8], atol=1e-6)


def test_limits_are_where_scipy_loses_its_tail():
    """The density of nine uniforms' sum is slow; scipy computes its upper quantiles as those of 1 - p."""
    lower, upper = Prior({"a": stats.irwinhall(2)})._map.parameters["a"].latent_limits
    assert lower < -7
    assert 6 < upper < 8.3


@float64
def test_shares_of_a_sparse_dirichlet_are_sticks_of_a_beta():
    """The first share is Beta(a, rest) by itself; all of them sum to one and come back."""
    a = np.array([0.05, 0.3, 2.0])
    prior = Prior({"a": dist.Dirichlet(a)})
    z = np.array([[-9.0, 0.3], [-1.0, -2.0], [0.0, 0.0], [0.5, 3.0]])
    x = np.asarray(prior.forward(z)["a"])
    np.testing.assert_allclose(special.betainc(0.05, 2.3, x[1:, 0]), stats.norm.cdf(z[1:, 0]), rtol=1e-8)
    np.testing.assert_allclose(x.sum(axis=1), 1.0, rtol=1e-14)
    np.testing.assert_allclose(prior.inverse({"a": x})[1:], z[1:], atol=1e-7)
    jacobian = jax.vmap(jax.jacfwd(lambda z: prior.forward(z)["a"][:2]))(jnp.asarray(z[1:]))
    density = np.asarray(prior.log_prob({"a": x[1:]})) + np.linalg.slogdet(jacobian)[1]
    np.testing.assert_allclose(density, stats.norm.logpdf(z[1:]).sum(axis=1), atol=1e-6)


@float64
def test_equal_and_different_scalars_of_a_vector_have_their_own_tables():
    prior = Prior({"a": dist.Gamma(np.array([[0.5, 2.0], [2.0, 0.5]]), 1.0).expand([3, 2, 2])})
    z = np.linspace(-3, 3, 12)
    x = np.asarray(prior.forward(z)["a"])
    shape = np.broadcast_to([[0.5, 2.0], [2.0, 0.5]], (3, 2, 2))
    np.testing.assert_allclose(special.gammainc(shape, x).ravel(), stats.norm.cdf(z), rtol=1e-8)


class Twice(dist.SoftLaplace):
    def log_prob(self, value):
        return super().log_prob(value) + np.log(2.0)


def test_a_density_that_does_not_integrate_to_one_is_refused():
    with pytest.raises(ValueError, match=r"integrates to 1 for parameter 'a'.*integral is \[2.0"):
        Prior({"a": Twice(0.0, 1.0)})


def test_a_share_of_nothing_is_refused():
    with pytest.raises(ValueError, match="expected concentrations.*'a'"):
        Prior({"a": dist.Dirichlet(np.array([0.02, 1e-300, 0.02]))})


def test_a_bijection_that_rounds_draws_to_an_edge_is_refused():
    """One logit of nine is beyond 36.7, where the number itself is one."""
    sparse = dist.TransformedDistribution(dist.Normal(np.zeros(2), 30.0).to_event(1), transforms.SigmoidTransform())
    with pytest.raises(ValueError, match="'a'.*edge of its support"):
        Prior({"a": sparse})


# ---- evidences


def half_normal_evidence(m, s):
    r""":math:`\int_0^\infty 2 N(x; 0, 1) N(m; x, s^2)\,dx`."""
    width = np.hypot(1.0, s)
    return np.log(2) + stats.norm.logpdf(m, 0.0, width) + special.log_ndtr(m / (width * s))


CONFLICTS = {"8.3 +- 0.1": (8.3, 0.1), "8.1 +- 0.01": (8.1, 0.01), "10 +- 0.1": (10.0, 0.1)}


@pytest.mark.parametrize("host", [False, True], ids=["numpyro", "scipy"])
@pytest.mark.parametrize("name", CONFLICTS)
def test_data_beyond_where_a_quantile_function_used_to_end(name, host):
    m, s = CONFLICTS[name]
    prior = Prior({"a": stats.truncnorm(0.0, np.inf) if host else dist.TruncatedNormal(0.0, 1.0, low=0.0)})
    log_norm = -0.5 * np.log(2 * np.pi * s**2)
    result = nsflow.run(lambda p: log_norm - 0.5 * ((p["a"] - m) / s) ** 2, prior, ess=500, progress=False)
    assert result.logZ_err < 0.1
    assert abs(result.logZ - half_normal_evidence(m, s)) < 4.9 * result.logZ_err  # a chance of 1e-6


@pytest.mark.parametrize("a", [0.05, 0.02])
def test_successes_under_a_sparse_beta(a):
    likelihood = nsflow.HostLikelihood(lambda p: 3 * np.log(p["q"]), vectorized=True)
    result = nsflow.run(likelihood, Prior({"q": dist.Beta(a, a)}), ess=2000, progress=False)
    assert result.logZ_err < 0.03
    assert abs(result.logZ - special.betaln(a + 3, a) + special.betaln(a, a)) < 4.9 * result.logZ_err


def test_counts_under_a_sparse_dirichlet():
    a, counts = 0.05 * np.ones(6), np.array([20, 0, 0, 0, 0, 0])
    exact = special.gammaln(a.sum()) - special.gammaln(a.sum() + 20) + np.sum(special.gammaln(a + counts))
    exact -= np.sum(special.gammaln(a))
    likelihood = nsflow.HostLikelihood(lambda p: 20 * np.log(p["q"][:, 0]), vectorized=True)
    result = nsflow.run(likelihood, Prior({"q": dist.Dirichlet(a)}), ess=1000, progress=False)
    assert result.logZ_err < 0.05
    assert abs(result.logZ - exact) < 4.9 * result.logZ_err


VECTORS = {
    "Dirichlet 0.05": dist.Dirichlet(0.05 * np.ones(3)),
    "Dirichlet 0.02": dist.Dirichlet(0.02 * np.ones(4)),
    "LKJ": float64(dist.LKJ)(3, 1.0),
    "Wishart": float64(dist.WishartCholesky)(4.0, np.eye(2)),
    "multivariate t": dist.MultivariateStudentT(3.0, np.zeros(2), np.eye(2)),
    "zero sum": dist.ZeroSumNormal(1.0, (3,)),
    "ordered": dist.TransformedDistribution(dist.Normal(0.0, 1.0).expand([3]), transforms.OrderedTransform()),
    "integers": dist.Poisson(2.0),
    "scipy truncated": stats.truncnorm(1.0, 3.0),
    "scipy by its own quantiles": stats.irwinhall(3),
    "scipy angle": nsflow.Periodic(stats.vonmises(2.0)),
    "angle": nsflow.Periodic(dist.VonMises(0.5, 2.0)),
}
EVERY = {**NUMPYRO, **SPARSE, **VECTORS}
QUICK = ("Beta(0.01, 0.01)", "Gamma(0.01)", "Dirichlet 0.05")


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in EVERY]
)
def test_a_constant_likelihood_has_the_evidence_one(name):
    """Of 60 priors with a chance of 1e-6 each that the pull of a right one is refused."""
    likelihood = nsflow.HostLikelihood(lambda p: np.zeros(len(next(iter(p.values())))), vectorized=True)
    result = nsflow.run(likelihood, Prior({"a": EVERY[name]}), ess=1000, progress=False)
    assert result.finished
    assert result.logZ_err < 0.05
    assert abs(result.logZ) < 4.9 * result.logZ_err + 1e-9
