"""Every objective of the family, taught through `fit`, gives a flow with an exact density."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import nsflow
from nsflow.densities.bases import AnyDistribution, EdgedBall, Given
from nsflow.densities.gaussian import Gaussian
from nsflow.densities.mixture import Mixture
from nsflow.densities.pushforward import Pushforward
from nsflow.diffusion.action_matching import ActionMatching
from nsflow.diffusion.energy import Conservative
from nsflow.diffusion.process import ProcessPath, SubVariancePreserving, VarianceExploding, VariancePreserving
from nsflow.diffusion.score_matching import (
    DenoisingScoreMatching,
    ImplicitScoreMatching,
    LikelihoodWeighting,
    SlicedDivergence,
)
from nsflow.flow.coupling import Sinkhorn
from nsflow.flow.flow import Flow, fit
from nsflow.flow.maximum_likelihood import MaximumLikelihood
from nsflow.flow.objective import FlowMatching
from nsflow.flow.path import LinearPath, TrigonometricPath
from nsflow.flow.training import Training
from nsflow.flow.velocity import Architecture

PATH = TrigonometricPath()
OBJECTIVES = {
    "flow matching": FlowMatching(PATH),
    "with noise": FlowMatching(LinearPath(noise=0.05)),
    "with optimal transport": FlowMatching(LinearPath(), coupling=Sinkhorn(num_iterations=20)),
    "denoising": DenoisingScoreMatching(PATH),
    "denoising VP": DenoisingScoreMatching(ProcessPath(VariancePreserving())),
    "denoising sub-VP": DenoisingScoreMatching(ProcessPath(SubVariancePreserving())),
    "denoising VE": DenoisingScoreMatching(ProcessPath(VarianceExploding(0.05, 5.0))),
    "likelihood weighting": DenoisingScoreMatching(ProcessPath(VariancePreserving()), LikelihoodWeighting()),
    "implicit": ImplicitScoreMatching(PATH),
    "sliced": ImplicitScoreMatching(PATH, divergence=SlicedDivergence(2)),
    "energy": Conservative(DenoisingScoreMatching(PATH)),
    "action matching": ActionMatching(PATH),
    "maximum likelihood": MaximumLikelihood(PATH, num_steps=4),
}


def moons(n, seed):
    """Two interleaving half circles of width 0.1."""
    rng = np.random.default_rng(seed)
    angle, upper = rng.uniform(0, np.pi, n), rng.random(n) < 0.5
    arcs = np.where(
        upper[:, None],
        np.stack([np.cos(angle), np.sin(angle)], axis=1),
        np.stack([1 - np.cos(angle), 0.5 - np.sin(angle)], axis=1),
    )
    return arcs + 0.1 * rng.normal(size=(n, 2))


def training(objective, num_steps=400):
    return Training(objective=objective, num_steps=num_steps, architecture=Architecture(width=48), integration_steps=12)


def mass(flow):
    """Integral of the density over a box around the moons, by a sum over a grid."""
    a, b = np.linspace(-3, 4, 150), np.linspace(-2.5, 3, 150)
    points = np.stack(np.meshgrid(a, b, indexing="ij"), axis=-1).reshape(-1, 2)
    cell = (a[1] - a[0]) * (b[1] - b[0])
    return np.exp(np.nan_to_num(np.asarray(flow.log_prob(points)), nan=-np.inf)).sum() * cell


# tests/test_diffusion_page.py teaches by flow, score and action matching, too.
QUICK = {"flow matching", "maximum likelihood"}


@pytest.mark.parametrize(
    "objective",
    [pytest.param(o, id=name, marks=() if name in QUICK else pytest.mark.slow) for name, o in OBJECTIVES.items()],
)
def test_objective_teaches_a_density(objective):
    """Held-out log-density well above the Gaussian's of -2.05, and a density that integrates to one."""
    num_steps = 1600 if isinstance(objective, Conservative) else 400  # the gradient of a network learns slowly
    flow, info = fit(jax.random.key(0), moons(3000, 0), training=training(objective, num_steps))
    assert isinstance(flow, Flow)
    assert not info.is_gaussian
    assert np.nanmean(flow.log_prob(moons(1000, 1))) > -1.75
    assert mass(flow) == pytest.approx(1, abs=0.02)


def test_prior_itself_as_base():
    """The path starts at a prior that is no normal, in the coordinates of the data; the density is exact."""
    prior = nsflow.Prior({"a": dist.Uniform(-2, 3), "b": dist.Normal(0.0, 2.0)})
    base = Given(lambda key, n: 2.0 * prior.latent_sample(key, n), lambda x: log_base(prior, x))
    flow, info = fit(jax.random.key(0), moons(3000, 0), training=training(FlowMatching(PATH, base=base)))
    assert isinstance(flow, Pushforward)
    assert np.nanmean(flow.log_prob(moons(1000, 1))) > -1.9
    assert mass(flow) == pytest.approx(1, abs=0.02)
    x, log_q = flow.sample_and_log_prob(jax.random.key(1), 500)
    kept = np.isfinite(log_q)
    assert kept.mean() > 0.95
    np.testing.assert_allclose(flow.log_prob(x[kept]), log_q[kept], atol=1e-3)


def log_base(prior, x):
    return prior.latent_log_prob(x / 2.0) - 2 * jnp.log(jnp.asarray(2.0, x.dtype))


def test_library_base():
    """A base of the library, in whitened coordinates."""
    flow, _ = fit(jax.random.key(0), moons(3000, 0), training=training(FlowMatching(PATH, base=EdgedBall())))
    assert isinstance(flow, Pushforward)
    assert np.nanmean(flow.log_prob(moons(1000, 1))) > -1.75


def test_any_distribution_as_base():
    """A mixture in plain NumPy, which JAX cannot trace, carries on to the moons; fresh draws have the density."""
    start = Mixture((Gaussian(np.zeros(2), np.eye(2)), Gaussian(np.array([1.0, 0.0]), 2.0 * np.eye(2))), (0.5, 0.5))
    base = AnyDistribution(start)
    flow, _ = fit(jax.random.key(0), moons(3000, 0), training=training(FlowMatching(LinearPath(), base=base)))
    assert isinstance(flow, Pushforward)
    assert np.nanmean(flow.log_prob(moons(1000, 1))) > -1.9
    assert mass(flow) == pytest.approx(1, abs=0.02)
    x, log_q = flow.sample_and_log_prob(jax.random.key(1), 4000)
    kept = np.isfinite(log_q)
    assert len(np.unique(x, axis=0)) == 4000
    narrow = Gaussian(np.array([0.5, 0.25]), 0.4 * np.eye(2))
    ratio = np.where(kept, np.exp(narrow.log_prob(x) - np.nan_to_num(log_q)), 0)
    assert np.mean(ratio) == pytest.approx(1, abs=5 * np.std(ratio) / 4000**0.5)


def test_width_is_part_of_the_density():
    """The base of a variance-exploding path is as wide as its largest noise; log q is that of the whole map."""
    flow, _ = fit(jax.random.key(0), moons(500, 0), training=training(OBJECTIVES["denoising VE"], num_steps=200))
    assert flow.width == pytest.approx(np.hypot(1, 5.0), rel=0.01)
    with jax.enable_x64(True):
        z = np.random.default_rng(0).normal(size=(20, 2))
        x = flow.forward(z)
        jacobian = jax.vmap(jax.jacfwd(lambda z: flow.forward(z[None])[0]))(jnp.asarray(z))
        expected = -0.5 * np.sum(z**2, axis=1) - np.log(2 * np.pi) - np.linalg.slogdet(jacobian)[1]
        np.testing.assert_allclose(flow.log_prob(x), expected, atol=1e-4)


def test_maximum_likelihood_is_the_flow_s_own_log_density():
    """Of one field, the objective and a flow of as many steps agree."""
    objective = MaximumLikelihood(PATH, num_steps=5)
    field = lambda t, x: jnp.sin(x) + t  # noqa: E731
    flow = Flow.from_velocity(field, 2, num_steps=5)
    rows = np.random.default_rng(0).normal(size=(10, 2))
    with jax.enable_x64(True):
        loss = objective(jax.random.key(0), field, jnp.asarray(rows))
        np.testing.assert_allclose(loss, -np.mean(flow.log_prob(rows)) / 2, rtol=1e-5)
