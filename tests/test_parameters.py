"""Parameters that are integers, angles, or derived by the likelihood."""

import copy
import pickle

import anesthetic
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from scipy import stats
from scipy.special import logsumexp

import nsflow
from nsflow.likelihood.likelihood import JaxLikelihood
from nsflow.modes.modes import Target, ascend, measure
from nsflow.prior.periodic import emptiest

FALSE_ALARM = 1e-4  # chance that a correct nsflow fails any one statistical test of this file; the seeds are fixed
SIGMAS = stats.norm.isf(FALSE_ALARM / 2)
SETTINGS = nsflow.Settings(ess=1000, num_prior=1000)

# ---- integers

INTEGERS = {
    "uniform": (dist.DiscreteUniform(-2, 5), stats.randint(-2, 6)),
    "Poisson": (dist.Poisson(3.0), stats.poisson(3.0)),
    "broad Poisson": (dist.Poisson(1e4), stats.poisson(1e4)),
    "Bernoulli": (dist.Bernoulli(0.3), stats.bernoulli(0.3)),
    "geometric": (dist.Geometric(0.3), stats.geom(0.3, loc=-1)),
    "binomial": (dist.Binomial(5, 0.3), stats.binom(5, 0.3)),
    "categorical": (
        dist.Categorical(jnp.array([0.1, 0.2, 0.7])),
        stats.rv_discrete(values=([0, 1, 2], [0.1, 0.2, 0.7])),
    ),
    "scipy's": (stats.nbinom(2, 0.4), stats.nbinom(2, 0.4)),
}


@pytest.mark.parametrize(("distribution", "reference"), INTEGERS.values(), ids=INTEGERS)
def test_integers_have_their_probabilities_and_come_back(distribution, reference):
    """Latent places of a standard normal, at its quantiles, against the quantile function; both tails."""
    prior = nsflow.Prior({"k": distribution})
    u = np.concatenate([10.0 ** -np.arange(2, 16), np.linspace(0.011, 0.989, 97)])
    for z, quantile in ((stats.norm.ppf(u), reference.ppf), (stats.norm.isf(u), reference.isf)):
        k = np.asarray(prior.forward(z[:, None])["k"])
        np.testing.assert_array_equal(k, quantile(u))
        np.testing.assert_array_equal(prior.forward(prior.inverse({"k": k}))["k"], k)
        np.testing.assert_allclose(prior.log_prob({"k": k}), reference.logpmf(k), rtol=1e-8, atol=1e-9)
    np.testing.assert_array_equal(prior.log_prob({"k": np.array([0.5, -7.0])}), -np.inf)
    np.testing.assert_allclose(prior.latent_log_prob(z[:, None]), stats.norm.logpdf(z))


def test_scipy_distributions_of_the_users_own_need_no_freezing():
    """They take no arguments: a histogram, values with probabilities, a class without shape parameters."""

    class Ramp(stats.rv_continuous):
        def _pdf(self, x):
            return 2 * x

        def _cdf(self, x):
            return x**2

        def _ppf(self, q):
            return np.sqrt(q)

    histogram = stats.rv_histogram(np.histogram(np.arange(1, 11) ** 2, bins=5))
    values = stats.rv_discrete(values=([1, 2, 5], [0.2, 0.5, 0.3]))
    ramp = Ramp(a=0.0, b=1.0, name="ramp")
    prior = nsflow.Prior({"h": histogram, "k": values, "r": ramp})
    assert prior.is_discrete.tolist() == [False, True, False]
    z = np.linspace(-3, 3, 50)
    x = prior.forward(np.stack([z, z, z], axis=1))
    u = stats.norm.cdf(z)
    for name, distribution in (("h", histogram), ("k", values), ("r", ramp)):
        np.testing.assert_allclose(x[name], distribution.ppf(u), rtol=1e-9)
    expected = histogram.logpdf(x["h"]) + values.logpmf(x["k"]) + ramp.logpdf(x["r"])
    np.testing.assert_allclose(prior.log_prob(x), expected, rtol=1e-9)
    with pytest.raises(TypeError, match="Freeze it"):  # a slip: this is the standard normal
        nsflow.Prior({"a": stats.norm})


def test_vectors_of_integers():
    prior = nsflow.Prior({"k": dist.Poisson(jnp.array([1.0, 50.0])), "x": dist.Normal(0, 1)})
    k = np.asarray(prior.sample(jax.random.key(0), 4000)["k"])
    assert prior.names == ("k[0]", "k[1]", "x")
    assert prior.is_discrete.tolist() == [True, True, False]
    np.testing.assert_allclose(k.mean(axis=0), [1, 50], atol=SIGMAS * np.sqrt(50 / 4000))


COUNT = dist.Poisson(1.5)


def mixed(p):
    """A number of sources k and the flux x of each: data 6 +- 0.5 of their product."""
    return -0.5 * ((p["k"] * p["x"] - 6.0) / 0.5) ** 2


def exact_mixed():
    """Log evidence and posterior of k, by quadrature over x for each k."""
    x = np.linspace(0, 10, 20001)
    terms = []
    for k in range(60):
        with np.errstate(under="ignore"):
            terms.append(np.log(np.trapezoid(np.exp(mixed({"k": k, "x": x})), x) / 10) + stats.poisson(1.5).logpmf(k))
    return logsumexp(terms), np.exp(terms - logsumexp(terms))


@pytest.mark.parametrize(
    "kind",
    [pytest.param(lambda f: f, id="jax"), pytest.param(nsflow.HostLikelihood, id="host", marks=pytest.mark.slow)],
)
def test_evidence_with_an_integer(kind):
    prior = nsflow.Prior({"k": COUNT, "x": dist.Uniform(0.0, 10.0)})
    logZ, probabilities = exact_mixed()
    result = nsflow.run(kind(mixed), prior, seed=1, settings=SETTINGS)
    assert abs(result.logZ - logZ) < SIGMAS * result.logZ_err
    assert result.logZ_err < 0.06
    weights = np.exp(result.log_weights - logsumexp(result.log_weights))
    k = result.samples[:, 0]
    np.testing.assert_array_equal(k, np.round(k))
    for value in (1, 2, 3):
        share = probabilities[value]
        error = np.sqrt(share * (1 - share) / result.ess)
        assert abs(weights[k == value].sum() - share) < stats.norm.isf(FALSE_ALARM / 6) * error


@pytest.mark.parametrize("kind", [JaxLikelihood, nsflow.HostLikelihood])
def test_scouts_keep_integers_and_know_the_mass_of_their_modes(kind):
    """Laplace's approximation is exact for a Gaussian in x at k = 3, of which the prior has a fifth."""
    prior = nsflow.Prior({"k": dist.DiscreteUniform(0, 4), "x": dist.Normal(0.0, 1.0)})
    target = Target(kind(lambda p: -0.5 * ((p["x"] - p["k"]) / 0.1) ** 2), prior, max_calls=1000)
    start = prior.inverse({"k": 3.0, "x": 0.0}) + np.array([0.05, 0.0])
    centre, log_density = ascend(target, start)
    assert prior.forward(centre)["k"] == 3
    mode = measure(target, centre, log_density, prior.step_widths(centre))
    exact = np.log(0.2) + stats.norm.logpdf(3, 0, np.hypot(1, 0.1)) + np.log(0.1 * np.sqrt(2 * np.pi))
    assert mode.log_evidence == pytest.approx(exact, abs=1e-4)


# ---- angles


@pytest.mark.parametrize("distribution", [dist.Uniform(0.0, 2 * jnp.pi), stats.vonmises(0.5), stats.uniform(1, 3)])
def test_a_turn_changes_no_density_and_no_value(distribution):
    prior, plain = (nsflow.Prior({"phi": d}) for d in (nsflow.Periodic(distribution), distribution))
    turned = prior.turn(np.array([0.3]))
    assert turned.is_periodic.all()
    assert turned.phases.tolist() == [0.3]
    z = np.linspace(-4, 4, 41)[:, None]
    phi = turned.forward(z)
    np.testing.assert_allclose(turned.inverse(phi), z, atol=1e-8)
    np.testing.assert_allclose(turned.log_prob(phi), plain.log_prob(phi))
    np.testing.assert_allclose(turned.latent_log_prob(z), stats.norm.logpdf(z[:, 0]))
    np.testing.assert_allclose(prior.forward(z)["phi"], plain.forward(z)["phi"], atol=1e-9)
    u, v = (plain.inverse(p)[:, 0] for p in (phi, plain.forward(z)))
    np.testing.assert_allclose((stats.norm.cdf(u) - stats.norm.cdf(v) - 0.3) % 1.0 % (1 - 1e-9), 0, atol=1e-7)


@pytest.mark.parametrize("centres", [(0.0,), (0.4,), (0.97,), (0.1, 0.6), (0.0, 1 / 3, 2 / 3)])
def test_the_circle_is_cut_far_from_the_best_draws(centres):
    """Of 1000 draws from a prior of five dimensions that all matter."""
    rng = np.random.default_rng(1)
    u, others = rng.random(1000), rng.normal(size=(1000, 4))
    distance = np.abs((u[:, None] - centres + 0.5) % 1.0 - 0.5)
    log_likelihood = np.logaddexp.reduce(-0.5 * (distance / 0.02) ** 2, axis=1) - 0.5 * np.sum(
        (others / 0.3) ** 2, axis=1
    )
    cut = emptiest(u, log_likelihood)
    assert np.min(np.abs((cut - np.array(centres) + 0.5) % 1.0 - 0.5)) > 0.08


def across(p, xp=jnp):
    """A von Mises posterior of width 0.1 at the end of the circle, its width that of another parameter's."""
    return 100.0 * (xp.cos(p["phi"]) - 1.0) - 0.5 * ((p["x"] - xp.sin(p["phi"])) / 0.1) ** 2


def exact_across():
    phi, x = np.meshgrid(np.linspace(-np.pi, np.pi, 4001), np.linspace(-2, 2, 2001), indexing="ij")
    values = np.exp(across({"phi": phi, "x": x}, np))
    return np.log(np.trapezoid(np.trapezoid(values, x[0], axis=1), phi[:, 0]) / (2 * np.pi * 10))


def test_a_posterior_across_the_ends_of_a_circle():
    """One mode in the latent space, of the width that the likelihood gives it, and the evidence that it has."""
    prior = nsflow.Prior({"phi": nsflow.Periodic(dist.Uniform(0.0, 2 * np.pi)), "x": dist.Uniform(-5.0, 5.0)})
    likelihood = nsflow.HostLikelihood(lambda p: across(p, np), vectorized=True)
    result = nsflow.run(likelihood, prior, settings=SETTINGS)
    assert abs(result.logZ - exact_across()) < SIGMAS * result.logZ_err
    assert result.logZ_err < 0.05
    phi, x = result.samples.T
    assert 0 <= phi.min() < 0.1 < 6 < phi.max() <= 2 * np.pi  # values are as the distribution has them
    problem = nsflow.Problem(nsflow.HostLikelihood(lambda p: across(p, np), vectorized=True), prior)
    turned = nsflow.init(jax.random.key(0), problem, SETTINGS).problem.prior
    weights = np.exp(result.log_weights - logsumexp(result.log_weights))
    for p, is_one_mode in ((turned, True), (prior, False)):
        z = np.asarray(p.inverse({"phi": phi, "x": x}))[:, 0]
        spread = np.sqrt(weights @ (z - weights @ z) ** 2)
        assert (spread < 0.2) == is_one_mode
        assert (spread > 1.5) != is_one_mode


def unit_to_angle(u):
    return np.asarray([2 * np.pi * u[0], 10 * u[1] - 5])


def unit_to_angle_by_jax(u):
    return jnp.stack([2 * jnp.pi * u[0], 10 * u[1] - 5])


@pytest.mark.parametrize("transform", [unit_to_angle, unit_to_angle_by_jax])
def test_a_periodic_coordinate_of_a_transform(transform):
    """Turned like a distribution, and the same from a pickle and in a checkpoint."""
    prior = nsflow.Prior.from_transform(transform, ["phi", "x"], periodic=["phi"], labels={"phi": r"\phi"})
    same = nsflow.Prior({"phi": nsflow.Periodic(dist.Uniform(0.0, 2 * np.pi)), "x": dist.Uniform(-5.0, 5.0)})
    assert prior.is_periodic.tolist() == [True, False]
    assert not nsflow.Prior.from_transform(transform, ["phi", "x"]).is_periodic.any()
    z = np.random.default_rng(0).normal(size=(50, 2))
    for phases in (np.zeros(2), np.array([0.3, 0.0])):
        turned = prior.turn(phases)
        assert turned.phases.tolist() == phases.tolist()
        expected = same.turn(phases).forward(z)
        for name, values in turned.forward(z).items():
            np.testing.assert_allclose(values, expected[name], atol=1e-9)
    assert copy.deepcopy(prior) is prior


def test_a_posterior_across_the_ends_of_a_transform(tmp_path):
    prior = nsflow.Prior.from_transform(unit_to_angle, ["phi", "x"], periodic=["phi"], labels={"phi": r"\phi"})
    likelihood = nsflow.HostLikelihood(lambda p: across(p, np), vectorized=True)
    settings, sent = nsflow.Settings(ess=300, num_prior=300), pickle.loads(pickle.dumps(prior))
    path = tmp_path / "run"
    capped = nsflow.run(likelihood, prior, max_calls=2000, settings=settings, checkpoint=path, progress=False)
    assert not capped.finished
    result = nsflow.run(likelihood, sent, settings=settings, checkpoint=path, progress=False)
    assert abs(result.logZ - exact_across()) < SIGMAS * result.logZ_err
    assert result.logZ_err < 0.15
    assert result.labels == capped.labels == (r"$\phi$", "x")
    phi = result.samples[:, 0]
    assert 0 <= phi.min() < 0.1 < 6 < phi.max() <= 2 * np.pi
    unlabelled = nsflow.Prior.from_transform(unit_to_angle, ["phi", "x"], periodic=["phi"])
    again = nsflow.run(likelihood, unlabelled, settings=settings, checkpoint=path, progress=False)
    assert (again.logZ, again.labels) == (result.logZ, ("phi", "x"))  # labels are no part of what a run is


@pytest.mark.parametrize(
    ("periodic", "error", "match"),
    [
        ("phi", TypeError, r"a list of names as `periodic`; got 'phi'.*periodic=\['phi'\]"),
        (["psi"], ValueError, r"names among \('phi', 'x'\) as `periodic`; got \['psi'\]"),
        (True, TypeError, "a list of names as `periodic`; got True"),
    ],
)
def test_wrong_circles_of_a_transform_are_explained(periodic, error, match):
    with pytest.raises(error, match=match):
        nsflow.Prior.from_transform(unit_to_angle, ["phi", "x"], periodic=periodic)


def test_names_of_circles_are_in_the_order_of_the_cube():
    def swapped(u):
        return {"phi": 6.283 * u[1], "x": u[0]}

    with pytest.raises(ValueError, match=r"'phi' is periodic; it does not change with u\[0\]"):
        nsflow.Prior.from_transform(swapped, ["phi", "x"], periodic=["phi"])
    assert nsflow.Prior.from_transform(swapped, ["x", "phi"], periodic=["phi"]).is_periodic.tolist() == [False, True]


@pytest.mark.parametrize("distribution", [dist.Poisson(1.0), dist.Dirichlet(jnp.ones(3))])
def test_what_has_no_quantile_function_cannot_be_periodic(distribution):
    with pytest.raises(ValueError, match="`Periodic` expected a distribution with a quantile function.*'phi'"):
        nsflow.Prior({"phi": nsflow.Periodic(distribution)})


# ---- derived parameters


def with_derived(p):
    return -0.5 * (p["a"] ** 2 + p["b"] ** 2), {"sum": p["a"] + p["b"], "ratio": p["a"] / p["b"]}


@pytest.mark.parametrize("kind", [lambda f: f, nsflow.HostLikelihood], ids=["jax", "host"])
def test_derived_parameters_reach_results_chains_and_files(kind, tmp_path):
    prior = nsflow.Prior({"a": dist.Uniform(-5.0, 5.0), "b": dist.Uniform(-5.0, 5.0)})
    calls = []

    def counted(p):
        calls.append(1)
        return with_derived(p)

    result = nsflow.run(kind(counted), prior, settings=SETTINGS)
    assert result.derived == result.names[2:]
    assert set(result.derived) == {"sum", "ratio"}
    columns = dict(zip(result.names, result.samples.T, strict=True))
    np.testing.assert_allclose(columns["sum"], columns["a"] + columns["b"], rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(columns["ratio"], columns["a"] / columns["b"], rtol=1e-9)
    assert kind is not nsflow.HostLikelihood or len(calls) == result.num_calls  # never called twice for a point
    assert result.posterior(10)["sum"].shape == (10,)
    assert "2 of them derived" in repr(result)
    assert {"a", "b", "sum", "ratio"} <= {name for name, _ in result.to_anesthetic().columns}
    result.save(tmp_path / "run")
    assert nsflow.load(tmp_path / "run") == result
    assert nsflow.load(tmp_path / "run").derived == result.derived
    assert "sum" in anesthetic.read_chains(str(tmp_path / "run"))


def test_derived_parameters_of_training_points_are_not_kept():
    prior = nsflow.Prior({"a": dist.Uniform(-5.0, 5.0), "b": dist.Uniform(-5.0, 5.0)})
    result = nsflow.run(nsflow.HostLikelihood(with_derived), prior, max_calls=1500, settings=SETTINGS)
    assert result.derived == ("sum", "ratio")
    assert np.isnan(result.samples[:, 2:]).all()


@pytest.mark.parametrize(
    ("name", "error", "match"),
    [("a", ValueError, "'a' beside"), ("logL", ValueError, "'logL' beside"), (3, TypeError, "strings.*got 3")],
)
def test_names_of_derived_parameters_must_be_free(name, error, match):
    likelihood = nsflow.HostLikelihood(lambda p: (-(p["a"] ** 2), {name: 1.0}))
    with pytest.raises(error, match=match):
        nsflow.run(likelihood, nsflow.Prior({"a": dist.Normal(0, 1)}))
