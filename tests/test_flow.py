"""The density of the discrete map: against closed forms, autodiff, quadrature and an adaptive solver."""

from dataclasses import replace

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial
from scipy import stats
from scipy.linalg import expm

from nsflow.flow import flow as module
from nsflow.flow import training
from nsflow.flow.flow import Flow, fit
from nsflow.flow.path import TrigonometricPath
from nsflow.flow.training import Training, TrainingInfo
from nsflow.flow.velocity import Architecture, as_velocity
from nsflow.numerics.precision import float64

FALSE_ALARM = 1e-5  # chance that a correct nsflow fails any one statistical test in this file


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def random_network(num_dims, size):
    """Untrained network with every weight moved: strongly nonlinear, still invertible."""
    field = Architecture(width=32, depth=2).init(jax.random.key(0), num_dims, TrigonometricPath())
    rng = np.random.default_rng(num_dims)
    return jax.tree.map(lambda w: w + jnp.asarray(size * rng.normal(size=w.shape), w.dtype), field)


def network_flow(num_dims, size=0.15, num_steps=6):
    rng = np.random.default_rng(1)
    scale = np.tril(0.3 * rng.normal(size=(num_dims, num_dims)), -1) + np.diag(np.linspace(0.4, 1.5, num_dims))
    return Flow(random_network(num_dims, size), rng.normal(size=num_dims), scale, np.int32(num_steps))


def base_points(num_dims):
    return np.random.default_rng(2).normal(size=(32, num_dims))


def swirl(t, x):
    """A smooth field with a changing divergence."""
    return jnp.stack([jnp.sin(2 * x[1] + t), jnp.tanh(x[0] - x[1])]) * (1 + t)


# ---- linear fields


@pytest.mark.parametrize("num_dims", [1, 2, 5])
@pytest.mark.parametrize("num_steps", [1, 3, 8])
@pytest.mark.usefixtures("x64")
def test_log_prob_of_linear_field_is_exact_at_any_step(num_dims, num_steps):
    """K steps of dx/dt = Ax apply M = R(A/K)^K, R the exponential series to fourth order: N(0, I) to N(0, M M^T)."""
    A = 0.4 * np.random.default_rng(num_dims).normal(size=(num_dims, num_dims))
    h, one = A / num_steps, np.eye(num_dims)
    M = np.linalg.matrix_power(one + h @ (one + h @ (one + h @ (one + h / 4) / 3) / 2), num_steps)
    flow = Flow.from_velocity(lambda _, x: A @ x, num_dims, num_steps=num_steps)
    z = base_points(num_dims)
    preimage = flow.inverse(z @ M.T)
    np.testing.assert_allclose(flow.forward(z), z @ M.T, atol=1e-12)
    np.testing.assert_allclose(preimage.z, z, atol=1e-10)
    np.testing.assert_allclose(preimage.log_det, np.linalg.slogdet(M)[1], atol=1e-10)
    expected = stats.multivariate_normal(np.zeros(num_dims), M @ M.T).logpdf(z)
    np.testing.assert_allclose(flow.log_prob(z), expected, atol=1e-10)


@pytest.mark.parametrize("num_dims", [1, 2, 5])
@pytest.mark.usefixtures("x64")
def test_log_prob_of_linear_field_tends_to_the_matrix_exponential(num_dims):
    """dx/dt = Ax carries N(0, I) to N(0, M M^T) with M = exp(A)."""
    A = 0.4 * np.random.default_rng(num_dims).normal(size=(num_dims, num_dims))
    M, x = expm(A), base_points(num_dims)
    flow = Flow.from_velocity(lambda _, x: A @ x, num_dims, num_steps=64)
    np.testing.assert_allclose(
        flow.log_prob(x), stats.multivariate_normal(np.zeros(num_dims), M @ M.T).logpdf(x), atol=1e-6
    )


def test_no_steps_leave_the_gaussian():
    """K = 0 is N(mean, L L^T) whatever the field."""
    flow = network_flow(2, num_steps=0)
    x, log_q = flow.sample_and_log_prob(jax.random.key(0), 100)
    np.testing.assert_allclose(x, flow.mean + module._base(jax.random.key(0), 100, 2) @ flow.scale.T, atol=1e-5)
    gaussian = stats.multivariate_normal(flow.mean, flow.scale @ flow.scale.T)
    np.testing.assert_allclose(log_q, gaussian.logpdf(x), atol=1e-5)


# ---- nonlinear networks


@pytest.mark.parametrize(
    ("num_dims", "enabled", "atol"),
    [(2, True, 1e-5), (5, True, 1e-5), (2, False, 1e-4)],
    ids=["2-float64", "5-float64", "2-float32"],
)
def test_inverse_and_log_prob_of_a_network(num_dims, enabled, atol):
    """The inverse undoes the map, and log q = log N(z) - log|det dx/dz| by autodiff of the forward map alone."""
    flow, bulk = network_flow(num_dims), base_points(num_dims)
    z = np.concatenate([bulk, 6 * bulk / np.linalg.norm(bulk, axis=1, keepdims=True)])  # the tail: |z| = 6
    with jax.enable_x64(enabled):
        x = flow.forward(z)
        jacobian = jax.vmap(jax.jacfwd(lambda z: module._forward(flow, z[None])[0]))(jnp.asarray(z))
        preimage, log_q = flow.inverse(x), flow.log_prob(x)
    log_det = np.linalg.slogdet(jacobian)[1]
    assert x.dtype == log_q.dtype == (np.float64 if enabled else np.float32)
    assert np.ptp(log_det) > 1  # far from linear
    np.testing.assert_allclose(preimage.z, z, atol=atol)
    np.testing.assert_allclose(preimage.log_det, log_det, atol=atol)
    # An error of z is |z| times as large in log N(z), and |z| = 6 in the tail.
    error = log_q - (stats.norm.logpdf(z).sum(1) - log_det)
    np.testing.assert_array_less(abs(error), atol * (1 + np.linalg.norm(z, axis=1)))


def test_density_integrates_to_one():
    """The integral of q over a grid is 1."""
    flow = network_flow(2)
    axis, step = np.linspace(-8, 8, 161, retstep=True)
    white = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
    q = np.exp(flow.log_prob(flow.mean + white @ flow.scale.T))
    assert np.sum(q) * step**2 * np.prod(np.diag(flow.scale)) == pytest.approx(1, abs=1e-3)


def test_draws_follow_the_density():
    """E_q[p/q] = 1 for a normalised p narrower than q, and the same key gives the same bits."""
    flow = network_flow(2)
    x, log_q = flow.sample_and_log_prob(jax.random.key(0), 4000)
    weights = np.exp(stats.multivariate_normal(flow.mean, 0.5 * flow.scale @ flow.scale.T).logpdf(x) - log_q)
    pull = (np.mean(weights) - 1) / (np.std(weights) / np.sqrt(len(weights)))
    assert np.std(weights) < 5
    assert 2 * stats.norm.sf(abs(pull)) > FALSE_ALARM
    np.testing.assert_array_equal(flow.sample(jax.random.key(0), 4000), x)
    np.testing.assert_allclose(flow.log_prob(x), log_q, atol=1e-6)


@float64
def adaptive_log_prob(field, x):
    """Log-density of the ODE itself: an adaptive solve of the point and the exact trace, from the data to the base."""

    def rates(t, state, _):
        return field(t, state[0]), jnp.trace(jax.jacfwd(field, argnums=1)(t, state[0]))

    def one(x):
        controller = diffrax.PIDController(rtol=1e-11, atol=1e-11)
        args = (diffrax.ODETerm(rates), diffrax.Dopri8(), 1.0, 0.0, -0.01, (x, jnp.zeros(())))
        z, minus_log_det = diffrax.diffeqsolve(*args, stepsize_controller=controller).ys
        return -0.5 * jnp.sum(z[0] ** 2) - 0.5 * len(x) * jnp.log(2 * jnp.pi) + minus_log_det[0]

    return np.asarray(jax.vmap(one)(jnp.asarray(x)))


def order_of_convergence(value, expected):
    """Slope of the error against the number of steps, both logarithmic, and the last error."""
    num_steps = [4, 8, 16, 32, 64]
    errors = [np.std(value(Flow.from_velocity(swirl, 2, num_steps=k)) - expected) for k in num_steps]
    return -np.polyfit(np.log(num_steps), np.log(errors), 1)[0], errors[-1]


@pytest.mark.usefixtures("x64")
def test_log_prob_converges_to_an_adaptive_solver_at_fourth_order():
    """The error against the ODE falls as K^-4."""
    x = base_points(2)
    expected = adaptive_log_prob(swirl, x)
    assert np.ptp(expected - stats.norm.logpdf(x).sum(1)) > 0.5
    order, error = order_of_convergence(lambda flow: flow.log_prob(x), expected)
    assert order == pytest.approx(4, abs=0.3)
    assert error < 1e-6


@pytest.mark.usefixtures("x64")
def test_forward_converges_at_fourth_order():
    z = base_points(2)
    expected = Flow.from_velocity(swirl, 2, num_steps=1024).forward(z)
    assert order_of_convergence(lambda flow: flow.forward(z), expected)[0] == pytest.approx(4, abs=0.3)


# ---- folds


FOLDING = Flow.from_velocity(lambda _, x: 0.85 * jnp.sin(3 * x), 1, num_steps=1)


def test_folded_draws_have_no_density_and_leave_estimates_exact():
    """Where the map folds, a draw may be NaN; the mean weight with NaN as zero is the mass of p where q is known."""
    x, log_q = FOLDING.sample_and_log_prob(jax.random.key(0), 20_000)
    assert 0.02 < np.mean(np.isnan(log_q)) < 0.9
    target = stats.norm(0.2, 0.8)
    axis, step = np.linspace(-5, 5, 20_001, retstep=True)
    known = ~np.isnan(FOLDING.log_prob(axis[:, None]))
    expected = np.sum(target.pdf(axis)[known]) * step

    def pull(log_q):
        weights = np.exp(target.logpdf(x[:, 0]) - np.nan_to_num(log_q, nan=np.inf))
        return (np.mean(weights) - expected) / (np.std(weights) / np.sqrt(len(weights)))

    assert 2 * stats.norm.sf(abs(pull(log_q))) > FALSE_ALARM
    # The other draws that land on the same points must not be counted as well.
    assert abs(pull(FOLDING.log_prob(x))) > 10


def test_log_prob_is_nan_where_there_is_no_inverse():
    """One step of dx/dt = 3 x^2 is x + 3 x^2 + ...: bounded below, so nothing lies far on the left."""
    flow = Flow.from_velocity(lambda _, x: 3 * x**2, 1, num_steps=1)
    assert np.all(np.isnan(flow.log_prob(np.linspace(-50, -1, 50)[:, None])))
    assert np.isfinite(flow.log_prob(np.array([[0.1]]))[0])


# ---- shapes and compilations


def test_first_draws_do_not_depend_on_how_many_follow():
    flow = network_flow(2)
    np.testing.assert_array_equal(flow.sample(jax.random.key(3), 300), flow.sample(jax.random.key(3), 700)[:300])
    assert len(np.unique(flow.sample(jax.random.key(3), 700), axis=0)) == 700
    x, log_q = flow.sample_and_log_prob(jax.random.key(3), 0)
    assert (x.shape, log_q.shape) == ((0, 2), (0,))


def test_flow_is_a_pytree_under_jit():
    flow, x = network_flow(2), base_points(2).astype(np.float32)
    np.testing.assert_allclose(jax.jit(lambda flow, x: flow.log_prob(x))(flow, x), flow.log_prob(x), atol=1e-5)


def test_one_compilation_serves_every_batch_step_and_weight():
    flow = network_flow(2)
    flow.sample_and_log_prob(jax.random.key(0), 10)
    counts = [function._cache_size() for function in (module._forward, module._inverse)]
    moved = replace(flow, mean=flow.mean + 1, num_steps=np.int32(3), velocity=random_network(2, 0.05))
    for num_samples in (1, 256, 600):
        moved.sample_and_log_prob(jax.random.key(0), num_samples)
    assert [f._cache_size() for f in (module._forward, module._inverse)] == counts


@pytest.mark.parametrize("shape", [(2,), (4, 3), (4, 2, 1)])
def test_points_of_another_shape_are_refused(shape):
    with pytest.raises(Exception, match=r"expected points of shape \(n, 2\)|n d"):
        network_flow(2).log_prob(np.zeros(shape))


# ---- fit


SHORT = Training(num_steps=600, steps_per_score=100, architecture=Architecture(width=32, depth=2))
BRIEF = replace(SHORT, num_steps=200)


def banana(rng, num_samples):
    """y ~ N(x^2, 0.3^2) with x ~ N(0, 1), and the log-density."""
    x = rng.normal(size=num_samples)
    y = x**2 + 0.3 * rng.normal(size=num_samples)
    return np.stack([x, y], 1), stats.norm.logpdf(x) + stats.norm.logpdf(y, x**2, 0.3)


@pytest.fixture(scope="module")
def banana_fit():
    points, _ = banana(np.random.default_rng(0), 3000)
    return points, *fit(jax.random.key(0), points, training=SHORT)


def test_fit_of_a_gaussian_is_the_gaussian():
    """Fresh points have the true mean log-density, to the 0.02 nats that 2000 training points allow."""
    gaussian = stats.multivariate_normal([3.0, -2.0], [[2.0, 1.2], [1.2, 1.0]])
    flow, info = fit(jax.random.key(0), gaussian.rvs(2000, random_state=0), training=SHORT)
    fresh = gaussian.rvs(4000, random_state=1)
    loss = gaussian.logpdf(fresh) - flow.log_prob(fresh)
    assert np.mean(loss) < 0.02
    assert info.is_gaussian == (flow.num_steps == 0)
    assert info.log_prob == pytest.approx(-gaussian.entropy(), abs=0.3)


def test_fit_of_a_banana_beats_the_gaussian(banana_fit):
    """Kullback-Leibler divergence from the truth, on fresh points: a fifth of the Gaussian's."""
    points, flow, info = banana_fit
    fresh, log_p = banana(np.random.default_rng(1), 4000)
    gaussian = stats.multivariate_normal(points.mean(0), np.cov(points.T))
    log_q = np.asarray(flow.log_prob(fresh))
    assert not info.is_gaussian
    assert np.mean(log_p - log_q) < 0.2 * np.mean(log_p - gaussian.logpdf(fresh))
    # The score is the mean log-density of the held-out points, in the units of the data.
    assert info.log_prob == pytest.approx(np.mean(log_q), abs=5 * np.std(log_q) / np.sqrt(256))


def test_same_key_gives_the_same_fit():
    """Bit for bit: the draws of two fits with one key are equal, and those of another key are not."""
    points, _ = banana(np.random.default_rng(0), 500)
    flows = [fit(jax.random.key(seed), points, training=BRIEF)[0] for seed in (0, 0, 1)]
    first, again, other = (flow.sample(jax.random.key(2), 100) for flow in flows)
    assert flows[0].num_steps > 0  # the network, not the Gaussian
    np.testing.assert_array_equal(first, again)
    assert not np.any(first == other)


def test_fit_reports_its_training(banana_fit):
    """Steps, one loss and one score for each look, the first score that of the Gaussian, the best kept."""
    _, flow, info = banana_fit
    training = info.training
    assert training.num_steps == SHORT.steps_per_score * len(training.losses) <= SHORT.num_steps
    assert len(training.scores) == len(training.losses) + 1
    assert training.best == np.argmax(training.scores) > 0
    # Refining the steps can only gain.
    assert info.log_prob + np.sum(np.log(np.diag(flow.scale))) >= training.scores[training.best] - 1e-9


def test_fit_honours_weights():
    """Points of a broad density weighted to a narrow bimodal one have the narrow one's fit."""
    rng = np.random.default_rng(0)
    broad = stats.norm(0, 2)
    x = broad.rvs(4000, random_state=rng)
    fresh = np.concatenate([rng.normal(-1, 0.3, 2800), rng.normal(2, 0.3, 1200)])

    def log_p(x):
        return np.logaddexp(np.log(0.7) + stats.norm.logpdf(x, -1, 0.3), np.log(0.3) + stats.norm.logpdf(x, 2, 0.3))

    log_weights = log_p(x) - broad.logpdf(x)
    flow, _ = fit(jax.random.key(0), x[:, None], log_weights, training=SHORT)
    weights = np.exp(log_weights) / np.sum(np.exp(log_weights))
    np.testing.assert_allclose(flow.mean, weights @ x[:, None])
    np.testing.assert_allclose(flow.scale**2, [[weights @ (x - flow.mean[0]) ** 2]], rtol=1e-6)
    resampled = rng.choice(x, 3000, p=weights)[:, None]
    other, _ = fit(jax.random.key(1), resampled, training=SHORT)
    divergence = [np.mean(log_p(fresh) - q.log_prob(fresh[:, None])) for q in (flow, other)]
    assert divergence[0] < 0.1
    assert divergence[0] < divergence[1] + 0.05


def test_held_out_points_are_never_trained_on(monkeypatch):
    """A tenth is scored, the rest is trained on with its own weights, and together they are all points."""
    rng = np.random.default_rng(0)
    points, log_weights = rng.normal(size=(200, 2)), rng.normal(size=200)
    scored, trained = [], []
    log_prob = Flow.log_prob
    monkeypatch.setattr(Flow, "log_prob", lambda flow, x: scored.append(x) or log_prob(flow, x))

    def untrained(_, velocity, points, log_weights, *, score_now, **__):
        trained.extend([points, log_weights])
        return velocity, TrainingInfo(0, (), (score_now,), 0)

    monkeypatch.setattr(module, "train", untrained)
    flow, info = fit(jax.random.key(0), points, log_weights, training=BRIEF)
    ((held_out,), (kept, kept_weights)) = scored, trained
    assert (len(held_out), len(kept)) == (20, 180)
    white = np.linalg.solve(flow.scale, (points - flow.mean).T).T
    np.testing.assert_allclose(sorted(map(tuple, np.concatenate([held_out, kept]))), sorted(map(tuple, white)))
    row = [int(np.argmin(np.sum((white - x) ** 2, axis=1))) for x in kept]
    np.testing.assert_array_equal(kept_weights, log_weights[row])
    assert info.is_gaussian


@pytest.mark.parametrize(
    ("start", "scores", "expected"),
    [
        (4, {8: 0.5, 16: 0.7, 32: 0.75}, (16, 0.7)),
        (4, {8: 0.05, 16: 9.0}, (4, 0.0)),
        (4, {8: 1.0, 16: 2.0, 32: 3.0, 64: 4.0}, (32, 3.0)),
        (32, {64: 1.0}, (32, 0.0)),
        (4, {8: -1.0}, (4, 0.0)),
    ],
    ids=["while it gains", "too little", "to the largest", "at the largest", "worse"],
)
def test_steps_double_while_the_held_out_density_gains(start, scores, expected):
    """By 0.1 nats at least, and to 32 at most."""
    flow, best = module._refine(network_flow(2, num_steps=start), 0.0, lambda flow: scores[int(flow.num_steps)])
    assert (int(flow.num_steps), best) == (expected[0], pytest.approx(expected[1]))


def test_points_without_weight_change_nothing():
    """A weight of zero and a common offset of the log-weights leave every bit as it was."""
    points, _ = banana(np.random.default_rng(0), 500)
    log_weights = np.where(points[:, 0] > 2, -np.inf, 0.0)
    flow, info = fit(jax.random.key(0), points, log_weights + 1e6, training=BRIEF)
    again, info_again = fit(jax.random.key(0), points[points[:, 0] <= 2], training=BRIEF)
    jax.tree.map(np.testing.assert_array_equal, flow, again)
    assert info == info_again


def test_fit_compiles_once():
    """Other points, weights, schedules and numbers of points reuse the compiled training and density."""
    points, _ = banana(np.random.default_rng(0), 500)
    fit(jax.random.key(0), points, training=BRIEF)
    counts = training.train_steps._cache_size(), module._inverse._cache_size()
    for num_points in (100, 300):
        log_weights = np.linspace(-1, 1, num_points)
        fit(jax.random.key(1), 2 * points[:num_points], log_weights, training=replace(BRIEF, learning_rate=1e-2))
    assert (training.train_steps._cache_size(), module._inverse._cache_size()) == counts


POINTS = np.random.default_rng(0).normal(size=(20, 2))


@pytest.mark.parametrize(
    ("points", "log_weights", "message"),
    [
        (np.zeros(20), None, r"shape \(n, d\) with d > 0; got \(20,\)"),
        (np.where(np.arange(40).reshape(20, 2) == 6, np.nan, POINTS), None, "row 3 is"),
        (np.where(np.arange(40).reshape(20, 2) == 7, np.inf, POINTS), None, "row 3 is"),
        (POINTS, np.zeros(19), r"shape \(20,\), one for each point; got \(19,\)"),
        (POINTS, np.full(20, np.nan), "finite or -inf; got NaN"),
        (POINTS, np.full(20, np.inf), r"got NaN or \+inf"),
        (POINTS[:2], None, "got 2 in 2-d"),
        (POINTS, np.where(np.arange(20) < 2, 0, -np.inf), "got 2 in 2-d"),
        (POINTS * np.array([1, 0]) + 4.0, None, "column 1 of `points` is constant"),
    ],
)
def test_fit_refuses(points, log_weights, message):
    with pytest.raises(ValueError, match=message):
        fit(jax.random.key(0), points, log_weights, training=BRIEF)


DOMINANT = np.where(np.arange(20) == 7, 0.0, -1e6)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"points": ["a", "b"]}, "`fit` for its `points` expected an array of real numbers"),
        ({"points": [[1.0, 2.0], [3.0]]}, "rows of equal length"),
        ({"points": {"a": POINTS}}, "an array of real numbers"),
        ({"points": POINTS[:, :0]}, r"with d > 0; got \(20, 0\)"),
        ({"points": POINTS * 1e-320}, r"at least 1e-140 apart.* those of column 0"),
        ({"points": POINTS * 1e200}, "at most 1e.140"),
        ({"log_weights": DOMINANT}, r"largest weight is 1 of all, and 1.0 of 20 points are effective in 2 dimensions"),
        ({"log_weights": "x"}, "`log_weights` expected an array of real numbers"),
        ({"key": 0}, "`fit` expected one JAX random key; got 0"),
        ({"training": None}, "expected an nsflow.Training; got None"),
        ({"training": {}}, "expected an nsflow.Training"),
    ],
    ids=lambda wrong: next(iter(wrong)) if isinstance(wrong, dict) else "",
)
def test_fit_says_what_it_expected(wrong, message):
    given = {"key": jax.random.key(0), "points": POINTS, "log_weights": None, "training": BRIEF} | wrong
    with pytest.raises((TypeError, ValueError), match=message):
        fit(given["key"], given["points"], given["log_weights"], training=given["training"])


def test_fit_holds_a_point_out_of_few():
    flow, _ = fit(jax.random.key(0), POINTS[:3], training=replace(BRIEF, num_steps=1, steps_per_score=1))
    assert np.all(np.isfinite(flow.log_prob(POINTS)))


OPAQUE = Partial(lambda _, t, x: x, object())  # whose part is no array


def affine(**parts):
    return Flow(as_velocity(lambda _, x: x), **{"mean": np.zeros(2), "scale": np.eye(2), "num_steps": 1} | parts)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: affine().sample(jax.random.key(0), -1), "integer of at least 0; got -1"),
        (lambda: affine().sample(jax.random.key(0), 2.5), "integer of at least 0; got 2.5"),
        (lambda: affine().sample(0, 5), "one JAX random key; got 0"),
        (lambda: affine().sample(jax.random.key(0), 10**13), "at most .* draws"),
        (lambda: affine().log_prob(np.zeros(2)), r"shape \(n, 2\); got \(2,\)"),
        (lambda: affine().log_prob(np.zeros((5, 3))), r"shape \(n, 2\); got \(5, 3\)"),
        (lambda: affine().log_prob(None), "real numbers; got None"),
        (lambda: affine().log_prob([["a", "b"]]), "real numbers"),
        (lambda: affine().inverse(POINTS, 0), "integer from 1"),
        (lambda: affine(mean=None).log_prob(POINTS), "`mean` to be an array"),
        (lambda: affine(scale=np.eye(3)).log_prob(POINTS), r"`scale` of shape \(2, 2\); got \(3, 3\)"),
        (lambda: affine(num_steps=-1).log_prob(POINTS), "`num_steps` expected"),
        (lambda: affine(width=-1.0).log_prob(POINTS), "`width` expected"),
        (
            lambda: replace(affine(), velocity=OPAQUE).log_prob(POINTS),
            "a callable pytree as `velocity`",
        ),
        (lambda: Flow.from_velocity(None, 2), "a function of time and point; got None"),
        (lambda: Flow.from_velocity(lambda _, x: x, 0), "`num_dims` expected an integer"),
    ],
)
def test_a_flow_says_what_it_expected(call, message):
    with pytest.raises((TypeError, ValueError), match=message):
        call()


def test_integers_are_points_like_any_other():
    """Their type once became that of the scale: 0.5 was read as 0."""
    flow = affine(scale=0.5 * np.eye(2))
    np.testing.assert_array_equal(flow.log_prob([[1, 2]]), flow.log_prob([[1.0, 2.0]]))


def test_a_point_beyond_float32_has_no_density_where_numpy_raises():
    """JAX's conversion of arguments ended the process."""
    with np.errstate(all="raise"), jax.enable_x64(False):
        assert np.all(np.isnan(affine().log_prob(POINTS * 1e300)))


def test_points_that_are_not_wanted_have_no_inverse_and_change_no_other():
    flow = Flow.from_velocity(lambda t, x: jnp.sin(3 * x + t), 2)
    x, is_wanted = flow.sample(jax.random.key(0), 100), np.arange(100) % 3 == 0
    both = jax.jit(lambda x, is_wanted: (flow.inverse(x), flow.inverse(x, is_wanted=is_wanted)))
    everything, some = both(jnp.asarray(x), jnp.asarray(is_wanted))
    assert np.all(np.isnan(some.log_det) == ~is_wanted)
    assert np.asarray(some.log_det)[is_wanted] == pytest.approx(np.asarray(everything.log_det)[is_wanted], abs=1e-5)
    assert np.asarray(some.z)[is_wanted] == pytest.approx(np.asarray(everything.z)[is_wanted], abs=1e-5)
