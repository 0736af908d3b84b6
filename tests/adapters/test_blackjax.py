"""The drop-in for blackjax's nested sampler: its evidence, its interfaces, and what users type wrong."""

import os
import subprocess
import sys
import textwrap
from dataclasses import replace
from functools import partial
from pathlib import Path

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from blackjax.ns.base import init_state_strategy
from blackjax.util import run_inference_algorithm

import nsflow.adapters.blackjax as nested
from nsflow.flow.velocity import Architecture
from nsflow.numerics.precision import standard_promotion

ROOT = Path(__file__).resolve().parents[2]
QUICK = nested.Learner(architecture=Architecture(16, 1, (), (1.0,)), num_steps=30, first_rounds=5, batch_size=128)
COVARIANCE = np.array([[1.0, 0.6, 0.0], [0.6, 1.0, 0.3], [0.0, 0.3, 0.5]])
PRECISION = np.linalg.inv(COVARIANCE)
LOG_Z = -3 * np.log(10.0)  # a normalised likelihood well inside a cube of side ten
LOG_NORMALISER = -1.5 * np.log(2 * np.pi) - 0.5 * np.linalg.slogdet(COVARIANCE)[1]


def vector(position):
    return jnp.concatenate([position["pair"], position["one"][None]])


def log_prior(position):
    x = vector(position)
    return jnp.where(jnp.all(jnp.abs(x) < 5), jnp.asarray(LOG_Z, x.dtype), -jnp.inf)


def log_likelihood(position):
    x = vector(position)
    return -0.5 * x @ jnp.asarray(PRECISION, x.dtype) @ x + jnp.asarray(LOG_NORMALISER, x.dtype)


def prior_draws(key, num, dtype=jnp.float32):
    x = jax.random.uniform(key, (num, 3), dtype, -5.0, 5.0)
    return {"pair": x[:, :2], "one": x[:, 2]}


def build(num_inner_steps=6, num_delete=30, **options):
    options = {"learner": QUICK} | options
    return nested.as_top_level_api(log_prior, log_likelihood, num_inner_steps, num_delete, **options)


def run(sampler, key, num_live=300, dtype=jnp.float32, max_steps=1000):
    """The loop of blackjax's own documentation."""
    key, key_init = jax.random.split(key)
    state = sampler.init(prior_draws(key_init, num_live, dtype))
    step, dead = jax.jit(sampler.step), []
    while state.integrator.logZ_live - state.integrator.logZ > -3 and len(dead) < max_steps:
        key, key_step = jax.random.split(key)
        state, info = step(key_step, state)
        dead.append(info)
    return state, dead, step


@pytest.fixture(scope="module")
def runs():
    """Four runs that share one compilation."""
    sampler = build()
    return [run(sampler, jax.random.key(seed))[:2] for seed in range(4)]


@pytest.fixture(scope="module")
def results(runs):
    return [nested.finalise(*one) for one in runs]


# ---- what comes out


def test_both_evidences_are_right(results):
    """Over four runs; false-alarm rate 1e-4 each."""
    errors = np.array([[r.logZ - LOG_Z, r.logZ_err, r.importance_logZ - LOG_Z, r.importance_logZ_err] for r in results])
    classical, quoted, importance, own = np.mean(errors, axis=0)
    assert abs(classical) < 3.9 * quoted / 2
    assert abs(importance) < 3.9 * own / 2
    assert own < 0.4 * quoted
    assert 0.1 < quoted < 0.2  # sqrt(H / num_live) = 0.13


def test_healthy_runs_raise_no_alarm(results):
    assert [r.alarms for r in results] == 4 * [()]
    assert min(r.unique_fraction for r in results) > 0.6
    assert min(r.acceptance for r in results) > 0.3


def test_calls_are_counted(runs, results):
    for (_, dead), result in zip(runs, results, strict=True):
        assert result.num_calls == 300 + len(dead) * 30 * 6
        assert dead[0].update_info.log_weight.shape == (30 * 6,)
        assert dead[0].update_info.acceptance.shape == dead[0].update_info.insertion_rank.shape == (30,)


def test_samples_are_anesthetic_s_with_nan_births(runs, results):
    samples, (state, dead) = results[0].samples, runs[0]
    assert list(samples.columns[:3]) == ["one", "pair[0]", "pair[1]"]
    assert len(samples) == 300 + 30 * len(dead)
    births = np.concatenate([info.particles.loglikelihood_birth for info in dead])
    assert np.sum(np.isnan(births)) + np.sum(np.isnan(state.particles.loglikelihood_birth)) == 300
    assert np.isnan(births[:30]).all()
    covariance = samples[["pair[0]", "pair[1]", "one"]].cov().to_numpy()
    assert covariance == pytest.approx(COVARIANCE, abs=0.25)  # 4 standard errors of about 1000 points


def test_result_prints_both_evidences(results):
    printed = str(results[0])
    assert f"{results[0].logZ:.3f}" in printed
    assert f"{results[0].importance_logZ:.3f}" in printed
    assert "ALARM" not in printed
    assert "ALARM" in str(replace(results[0], logZ=results[0].logZ + 1))


@pytest.mark.parametrize("kernel", [nested.LatentSlice(), nested.Mixture(), nested.Rejection()], ids=type)
def test_other_kernels_reach_the_same_evidence(kernel):
    """False-alarm rate 1e-4."""
    state, dead, _ = run(build(inner_kernel=kernel, num_inner_steps=12), jax.random.key(0))
    result = nested.finalise(state, dead)
    assert abs(result.logZ - LOG_Z) < 3.9 * result.logZ_err
    assert abs(result.importance_logZ - LOG_Z) < 3.9 * result.importance_logZ_err
    assert result.unique_fraction > 0.6


# ---- blackjax's own tools


def test_generated_api_and_inference_loop_are_blackjax_s_own():
    make = blackjax.generate_top_level_api_from(nested)
    sampler = make(log_prior, log_likelihood, num_inner_steps=4, num_delete=20, learner=QUICK)
    state = sampler.init(prior_draws(jax.random.key(0), 100))
    last, (_, infos) = standard_promotion(run_inference_algorithm)(jax.random.key(1), sampler, 5, initial_state=state)
    assert infos.particles.loglikelihood.shape == (5, 20)
    assert float(jnp.min(last.particles.loglikelihood)) > float(jnp.min(state.particles.loglikelihood))


def test_runs_inside_a_while_loop():
    sampler = build(num_inner_steps=4)

    @jax.jit
    def whole_run(key, state):
        def body(carry):
            key, state, num_steps = carry
            key, key_step = jax.random.split(key)
            return key, sampler.step(key_step, state)[0], num_steps + 1

        unfinished = lambda c: c[1].integrator.logZ_live - c[1].integrator.logZ > -3  # noqa: E731
        return jax.lax.while_loop(unfinished, body, (key, state, jnp.int32(0)))

    initial = sampler.init(prior_draws(jax.random.key(0), 300))
    _, state, num_steps = standard_promotion(whole_run)(jax.random.key(1), initial)
    assert 60 < int(num_steps) < 140  # nats to the posterior and through it, times ten
    assert abs(float(state.integrator.logZ) - LOG_Z) < 0.6  # four errors


def test_float64_is_kept():
    with jax.enable_x64():
        sampler = build(num_inner_steps=4)
        state, dead, step = run(sampler, jax.random.key(0), dtype=jnp.float64, max_steps=15)
        assert state.particles.loglikelihood.dtype == state.particles.position["one"].dtype == jnp.float64
        assert dead[-1].update_info.log_weight.dtype == jnp.float64
        assert step._cache_size() == 1


def test_retrain_between_steps_compiles_nothing_and_helps():
    """One compilation of the step in the run, with training by `retrain` alone."""
    sampler = build(train_every=np.inf)
    step = jax.jit(sampler.step)
    acceptance = {}
    for trained in (False, True):
        key, state = jax.random.key(0), sampler.init(prior_draws(jax.random.key(1), 300))
        for i in range(40):
            key, key_step, key_train = jax.random.split(key, 3)
            if trained and i % 5 == 0:
                state = nested.retrain(key_train, state, QUICK)
            state, info = step(key_step, state)
        acceptance[trained] = float(np.mean(info.update_info.acceptance))
    assert step._cache_size() == 1
    assert acceptance[True] > 3 * acceptance[False]


def test_two_devices_give_what_one_gives():
    """In a process of its own: the number of devices is fixed at the start."""
    code = """
    import jax, jax.numpy as jnp, numpy as np
    import nsflow.adapters.blackjax as nested
    from nsflow.flow.velocity import Architecture
    mesh = jax.make_mesh((2,), ("chains",))
    learner = lambda mesh: nested.Learner(Architecture(16, 1, (), (1.0,)), num_steps=30, first_rounds=5, mesh=mesh)
    prior = lambda x: jnp.where(jnp.all(jnp.abs(x) < 5), -2 * jnp.log(10.0), -jnp.inf)
    seen = []
    def likelihood(x):
        return -0.5 * jnp.sum(x**2)
    rows = []
    for devices in (None, mesh):
        sampler = nested.as_top_level_api(prior, likelihood, 4, 20, learner=learner(devices))
        state = sampler.init(jax.random.uniform(jax.random.key(0), (200, 2), minval=-5.0, maxval=5.0))
        step = jax.jit(sampler.step)
        state = nested.add_modes(state, np.random.default_rng(0).uniform(-5, 5, (50, 2)), prior, likelihood)
        text = step.lower(jax.random.key(1), state).compile().as_text()
        for i in range(30):
            state, info = step(jax.random.key(i), state)
        rows.append((len(jax.devices()), "num_partitions=2" in text, float(state.integrator.logZ),
                     float(jnp.mean(info.update_info.acceptance)), step._cache_size()))
    print(rows)
    """
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", textwrap.dedent(code)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True, env=environment, cwd=ROOT).stdout
    (num_devices, is_sharded, one, *_), (_, is_sharded_by_mesh, two, acceptance, num_compiled) = eval(printed)
    assert num_compiled == 1
    assert (num_devices, is_sharded, is_sharded_by_mesh) == (2, False, True)
    assert two == pytest.approx(one, abs=0.3)  # the same seeds, other rounding
    assert acceptance > 0.3


# ---- failures that users meet


@pytest.mark.parametrize(
    ("position", "error", "message"),
    [
        ({"pair": np.zeros((50, 2), np.float32), "one": np.zeros(49, np.float32)}, ValueError, "equal length"),
        ({"pair": np.zeros((50, 2), int), "one": np.zeros(50, np.float32)}, TypeError, "floating-point"),
        ({"pair": np.zeros((5, 2), np.float32), "one": np.zeros(5, np.float32)}, ValueError, "more than 6 live points"),
        (3.0, TypeError, "floating-point"),
    ],
)
def test_bad_live_points_are_named(position, error, message):
    with pytest.raises(error, match=message):
        build().init(position)


def test_one_draw_cannot_both_train_and_move():
    sampler = build(num_inner_steps=1)
    with pytest.raises(ValueError, match="2 or more"):
        sampler.step(jax.random.key(1), sampler.init(prior_draws(jax.random.key(0), 100)))


@pytest.mark.parametrize("arguments", [(0, 1), (4, 0)])
def test_steps_and_deletions_are_positive(arguments):
    with pytest.raises(ValueError, match="expected an integer from 1"):
        nested.as_top_level_api(log_prior, log_likelihood, *arguments)


def test_more_deletions_than_live_points_are_refused():
    sampler = build(num_delete=100)
    state = sampler.init(prior_draws(jax.random.key(0), 100))
    with pytest.raises(ValueError, match="fewer than the 100 live points; got 100"):
        sampler.step(jax.random.key(1), state)


def test_finalise_wants_steps():
    state = build().init(prior_draws(jax.random.key(0), 100))
    with pytest.raises(ValueError, match="at least one step"):
        nested.finalise(state, [])


def test_nan_and_plateaus_do_not_stop_a_run():
    """NaN in half of the prior counts as -inf, and most of the rest has one value: Z is that of the top, a tenth."""
    draws = jax.random.uniform(jax.random.key(0), (200, 2), jnp.float32)
    prior = lambda x: jnp.where(jnp.all((x > 0) & (x < 1)), jnp.zeros((), x.dtype), -jnp.inf)  # noqa: E731

    def likelihood(x):
        value = jnp.where(x[0] < 0.2, jnp.float32(0.0), jnp.float32(-50.0))
        return jnp.where(x[1] > 0.5, jnp.nan, value)

    sampler = nested.as_top_level_api(prior, likelihood, 6, 20, learner=QUICK)
    state, step, dead = sampler.init(draws), jax.jit(sampler.step), []
    for i in range(25):
        state, info = step(jax.random.key(i), state)
        dead.append(info)
    result = nested.finalise(state, dead)
    assert result.importance_logZ == pytest.approx(np.log(0.1), abs=4 * max(result.importance_logZ_err, 0.02))
    assert 0 < result.num_dropped < 300
    assert "did not exceed their contour" in result.alarms[-1]


def test_a_state_function_of_one_s_own_is_accepted():
    """As blackjax's lower-level users build kernels."""
    state_fn = partial(init_state_strategy, logprior_fn=log_prior, loglikelihood_fn=log_likelihood)
    kernel = nested.build_kernel(state_fn, 4, 20, learner=QUICK)
    state = nested.init(prior_draws(jax.random.key(0), 100), jax.vmap(state_fn), QUICK)
    state, info = kernel(jax.random.key(1), state)
    assert info.particles.loglikelihood.shape == (20,)
