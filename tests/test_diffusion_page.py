"""The code of `docs/explanation/diffusion.md` runs as it is printed, with less training, and says what it says."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

PAGE = Path(__file__).resolve().parent.parent / "docs" / "explanation" / "diffusion.md"
# What is printed on the page, and what stands in for it here: each must be there once.
LESS = {
    "training=nsflow.Training(objective=objective))": "training=nsflow.Training(objective=objective, num_steps=800))",
    "jax.random.split(jax.random.key(2), 2000), jax.random.normal(jax.random.key(3), (2000, 2))": (
        "jax.random.split(jax.random.key(2), 500), jax.random.normal(jax.random.key(3), (500, 2))"
    ),
    "flow.sample_and_log_prob(jax.random.key(1), 2000)": "flow.sample_and_log_prob(jax.random.key(1), 500)",
    "box, ess=2000)": "box, ess=1000)",
    "prior, ess=5000)": "prior, ess=1000)",
    "prior, ess=5000, proposal": "prior, ess=1000, proposal",
    "num_steps=4000, patience=10": "num_steps=1000, patience=10",
}


@pytest.fixture(scope="module")
def page():
    text = PAGE.read_text()
    for printed, less in LESS.items():
        assert text.count(printed) == 1, printed
        text = text.replace(printed, less)
    scope: dict = {}
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(compile(block, str(PAGE), "exec"), scope)
    return scope


def true_log_prob(x):
    """Mean over the circles of a normal of width 0.1."""
    angle = (np.arange(400) + 0.5) / 400 * np.pi
    centres = np.concatenate([np.c_[np.cos(angle), np.sin(angle)], np.c_[1 - np.cos(angle), 0.5 - np.sin(angle)]])
    square = np.sum((np.asarray(x)[:, None] - centres) ** 2, axis=2)
    return np.log(np.mean(np.exp(-0.5 * square / 0.1**2), axis=1) / (2 * np.pi * 0.1**2) + 1e-300)


def test_formulas_are_the_code_beside_them(page):
    """Drift, diffusion and kernel of the process, and the conversions of the field, in closed form."""
    beta, total = 0.1 + 19.9 * 0.3, 0.1 * 0.3 + 0.5 * 19.9 * 0.3**2
    process, t, ones = page["process"], page["t"], jnp.ones(2)
    np.testing.assert_allclose(process.drift(t, ones), -0.5 * beta * ones, rtol=1e-5)
    np.testing.assert_allclose(process.diffusion(t), beta**0.5, rtol=1e-5)
    np.testing.assert_allclose(
        [page["factor"], page["std"]], [np.exp(-total / 2), (1 - np.exp(-total)) ** 0.5], rtol=1e-5
    )
    sigma = np.cos(np.pi / 2 * 0.3)
    np.testing.assert_allclose(page["again"], sigma * ones, rtol=1e-5)
    np.testing.assert_allclose(page["gradient"], -ones, rtol=1e-5)
    np.testing.assert_allclose(page["velocity"], 0, atol=1e-5)
    assert page["trajectories"].shape == (8, 200, 2)


def test_every_objective_beats_the_gaussian(page):
    """By more than half a nat, and none beats the truth."""
    gaussian = page["nsflow"].GaussianEstimator().fit(jax.random.key(0), page["points"], np.zeros(5000))
    truth, least = np.mean(true_log_prob(page["held_out"])), np.mean(gaussian.log_prob(page["held_out"])) + 0.5
    assert len(page["log_probs"]) == 5
    for name, value in page["log_probs"].items():
        assert least < value < truth, name


def test_density_has_mass_one(page):
    assert page["mass"] == pytest.approx(1, abs=0.01)
    log_q = page["flow"].log_prob(page["x"])
    np.testing.assert_allclose(log_q, page["log_q"], atol=1e-3)


def test_draws_of_each_dynamics_are_the_moons(page):
    """Half of them on either, most of them where the density of the data is not small."""
    edge = np.quantile(true_log_prob(page["points"]), 0.01)
    assert len(page["samples"]) == 4
    for x in (page["x"], *page["samples"]):
        assert np.mean(true_log_prob(x) > edge) > 0.75
        np.testing.assert_allclose(np.mean(x, axis=0), [0.5, 0.25], atol=0.15)


def test_constant_of_the_energy_is_its_integral(page):
    """Within 5 errors of a quadrature over the box."""
    axis = np.linspace(-4, 5, 301)
    points = jnp.asarray(np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2), jnp.float32)
    log_density = np.asarray(jax.jit(jax.vmap(page["model"].log_density))(points), np.float64)
    expected = np.log(np.exp(log_density).sum() * (axis[1] - axis[0]) ** 2)
    assert page["energy"].logZ_err < 0.05
    assert page["log_constant"] == pytest.approx(expected, abs=5 * page["energy"].logZ_err)


@pytest.mark.parametrize("name", ["result", "by_mixture"])
def test_evidence_is_within_its_error(page, name):
    result = page[name]
    assert result.finished
    assert result.logZ_err < 0.05
    assert result.logZ == pytest.approx(page["exact"], abs=5 * result.logZ_err)


def test_prior_is_carried_to_the_posterior(page):
    """The density in latent coordinates is far above the Gaussian's, and its draws lie in the box on the moons."""
    gaussian = page["nsflow"].GaussianEstimator().fit(jax.random.key(0), page["latent"], np.zeros(5000))
    assert page["carried_log_prob"] > np.mean(gaussian.log_prob(page["latent_held_out"])) + 0.4
    x = page["prior"].forward(page["carried"].sample(jax.random.key(0), 500))["x"]
    edge = np.quantile(true_log_prob(page["points"]), 0.01)
    assert np.mean(true_log_prob(x) > edge) > 0.75
