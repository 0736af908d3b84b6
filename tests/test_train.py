"""Minibatches, schedule, early stopping, and the field that training finds."""

from dataclasses import dataclass
from typing import final

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from nsflow.flow import training as module
from nsflow.flow.objective import AbstractObjective, FlowMatching
from nsflow.flow.path import LinearPath
from nsflow.flow.training import Training
from nsflow.flow.velocity import Architecture


@pytest.fixture(autouse=True)
def _inside_fit():
    """Training runs inside `fit`, which sets 64-bit mode and the standard promotion."""
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


TINY = Training(num_steps=40, steps_per_score=10, patience=2)


def run(scores, training=TINY, log_weights=None, seed=0):
    """Train a tiny field on 50 points; `scores` are what its looks are told."""
    field = Architecture(width=8, depth=1).init(jax.random.key(0), 2, training.path)
    points = np.random.default_rng(0).normal(size=(50, 2)).astype(np.float32)
    log_weights = np.zeros(50) if log_weights is None else log_weights
    first, *rest = scores
    rest = iter(rest)
    seen = [field]

    def score(velocity):
        seen.append(velocity)
        return float(next(rest))

    result = module.train(
        jax.random.key(seed),
        field,
        points,
        log_weights,
        objective=FlowMatching(training.path),
        training=training,
        score=score,
        score_now=float(first),
    )
    return *result, seen


def same(first, second):
    return all(np.array_equal(*pair) for pair in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True))


# ---- minibatches


@pytest.mark.parametrize("num_points", [3, 50])
def testresample_draws_each_point_in_proportion_to_its_weight(num_points):
    """A systematic resample draws point i either floor(n w_i) or ceil(n w_i) times, and never the padding."""
    rng, size = np.random.default_rng(num_points), 256
    log_weights = rng.normal(size=num_points)
    log_weights[1] = -np.inf
    points = np.arange(1.0, 1 + num_points)[:, None]
    padded, quantiles = map(jnp.asarray, module._pad(points, log_weights))
    x1 = module.resample(jax.random.key(0), padded, quantiles, size)
    counts = np.bincount(np.asarray(x1[:, 0], int), minlength=num_points + 1)
    expected = size * np.exp(log_weights) / np.exp(log_weights).sum()
    assert counts[0] == 0
    assert np.all(np.abs(counts[1:] - expected) < 1)


def test_times_are_one_in_each_stratum_and_know_nothing_of_the_point():
    """t is stratified; the resample is in order, so t must not be."""
    points, quantiles = map(jnp.asarray, module._pad(np.arange(4096.0)[:, None], np.zeros(4096)))
    x1 = module.resample(jax.random.key(0), points, quantiles, 2048)
    t, x0 = FlowMatching(LinearPath()).pair(jax.random.key(1), x1)
    np.testing.assert_array_equal(np.floor(np.sort(t) * 2048), np.arange(2048))
    for first, second in [(t, x1[:, 0]), (t, x0[:, 0]), (x0[:, 0], x1[:, 0])]:
        assert abs(np.corrcoef(first, second)[0, 1]) < 5 / np.sqrt(2048)


def test_training_sets_share_few_sizes():
    """Each size compiles once: 4096, then factors of four."""
    sizes = [len(module._pad(np.zeros((n, 1)), np.zeros(n))[0]) for n in (10, 4096, 4097, 16384, 20_000)]
    assert sizes == [4096, 4096, 16384, 16384, 65536]


def test_learning_rate_warms_up_to_its_peak_and_decays():
    rates = module._learning_rates(Training(num_steps=950, steps_per_score=100, learning_rate=0.01))
    assert rates.shape == (10, 100)
    assert rates[0, 0] == 0
    assert 0.0098 < rates.max() <= 0.01
    assert np.all(np.diff(rates.ravel()[60:]) < 0)
    assert rates[-1, -1] < 3e-4


# ---- early stopping


@pytest.mark.parametrize(
    ("scores", "best", "num_looks"),
    [
        ([0, 1, 2, 3, 4], 4, 4),
        ([0, 1, -1, -2], 1, 3),
        ([0, -1, -2], 0, 2),
        ([0, 0, 0], 0, 2),
        ([0, np.nan, 1, np.nan, np.nan], 2, 4),
    ],
    ids=["always better", "worse later", "never better", "equal", "without density"],
)
def test_best_look_is_kept_and_patience_ends_the_training(scores, best, num_looks):
    velocity, info, seen = run(scores)
    assert (info.best, info.num_steps, len(info.losses)) == (best, 10 * num_looks, num_looks)
    np.testing.assert_array_equal(info.scores, scores)
    assert same(velocity, seen[best])
    assert not same(seen[0], seen[1])


def test_same_key_gives_the_same_bits():
    fields = [run([0, 1, 2, 3, 4], seed=seed)[0] for seed in (0, 0, 1)]
    assert same(fields[0], fields[1])
    assert not same(fields[0], fields[2])


def test_average_lags_behind_the_weights():
    """The exponential moving average: the slower it is, the closer the field stays to where it began."""

    def distance(ema):
        _, _, seen = run([0, 1], Training(num_steps=10, steps_per_score=10, ema=ema))
        pairs = zip(jax.tree.leaves(seen[0]), jax.tree.leaves(seen[1]), strict=True)
        return sum(np.sum((a - b) ** 2) for a, b in pairs) ** 0.5

    assert 0 < distance(0.9999) < 0.2 * distance(0.99)


@final
@dataclass(frozen=True)
class Indifferent(AbstractObjective):
    """A loss that no weight changes."""

    def __call__(self, key, field, rows):  # noqa: ARG002
        return 0.0 * jnp.sum(rows)


def test_weight_decay_shrinks_the_weights_by_the_rate():
    """Without a gradient each step leaves 1 - rate x decay of a weight, whatever the optimizer remembers."""
    field, rates = Partial(lambda weight, x: weight * x, jnp.array(3.0, jnp.float32)), jnp.array([0.1, 0.2])
    rows, quantiles = jnp.ones((4, 1), jnp.float32), jnp.arange(1, 5) / 4
    for decay, left in ((0.0, 1.0), (0.5, 0.95 * 0.9)):
        state, _ = module.train_steps(
            jax.random.key(0),
            module.start(field),
            rows,
            quantiles,
            rates,
            objective=Indifferent(),
            batch_size=2,
            ema=0.9,
            weight_decay=decay,
        )
        assert jax.tree.leaves(state.weights)[0] == pytest.approx(3.0 * left, rel=1e-6)


# ---- the field


def test_training_finds_the_marginal_velocity():
    """N(0, 1) to N(m, s^2) on straight lines: v = m + (t s^2 - (1 - t)) / (t^2 s^2 + (1 - t)^2) (x - t m)."""
    m, s = 1.0, 0.5
    training = Training(path=LinearPath(), num_steps=1000, steps_per_score=1000)
    field = Architecture(width=32, depth=2, frequencies=()).init(jax.random.key(0), 1, training.path)
    x1 = (m + s * np.random.default_rng(0).normal(size=(4096, 1))).astype(np.float32)

    def velocity(t, x):
        return m + (t * s**2 - (1 - t)) / (t**2 * s**2 + (1 - t) ** 2) * (x - t * m)

    t = jax.random.uniform(jax.random.key(1), (500,))
    x0, data = jax.random.normal(jax.random.key(2), (2, 500, 1)) * jnp.array([1.0, s])[:, None, None]
    x = t[:, None] * (m + data) + (1 - t)[:, None] * x0

    def distance(field):
        return float(np.sqrt(np.mean((jax.vmap(field)(t, x)[:, 0] - velocity(t, x[:, 0])) ** 2)))

    zeros = np.zeros(4096)
    trained, info = module.train(
        jax.random.key(0),
        field,
        x1,
        zeros,
        objective=FlowMatching(training.path),
        training=training,
        score=lambda v: -distance(v),
        score_now=-distance(field),
    )
    assert isinstance(trained, Partial)
    assert info.best == 1
    assert distance(trained) < 0.1 < 1 < distance(field)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("held_out", 0),
        ("held_out", -1),
        ("held_out", 1.0),
        ("num_steps", 1.5),
        ("num_steps", 10**12),
        ("steps_per_score", 0),
        ("batch_size", 0),
        ("patience", None),
        ("learning_rate", 0.0),
        ("weight_decay", -1.0),
        ("ema", 1.0),
        ("integration_steps", 0),
        ("path", None),
        ("objective", 3),
        ("objective", FlowMatching),
        ("architecture", 64),
    ],
)
def test_options_that_no_training_could_use_are_refused_by_name(name, value):
    with pytest.raises((ValueError, TypeError), match=f"`Training.{name}` expected .*; got "):
        Training(**{name: value})


def test_numbers_of_numpy_and_jax_are_those_of_python():
    training = Training(num_steps=np.int64(3), learning_rate=jnp.float32(0.5), held_out=np.float32(0.25))
    assert training == Training(num_steps=3, learning_rate=0.5, held_out=0.25)
    assert {type(training.num_steps), type(training.learning_rate)} == {int, float}
