"""A flow that learns while another sampler runs: everything here is pure, of fixed shapes, and runs inside jit."""

import math
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import solve_triangular
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float

from nsflow.densities.bases import AbstractBase, EdgedBall
from nsflow.flow.flow import Flow
from nsflow.flow.objective import FlowMatching
from nsflow.flow.path import AbstractPath, TrigonometricPath
from nsflow.flow.training import TrainState, resample, start, train_steps
from nsflow.flow.velocity import Architecture
from nsflow.moves.ellipsoids import Ellipsoids, around
from nsflow.moves.memory import Draws, Pool
from nsflow.numerics.arguments import instance, integer, optional, part, real, settle
from nsflow.numerics.precision import full_precision

MAX_NEWTON = 2  # steps after which a point counts as having no inverse; it is then neither drawn nor left
MAX_DISTANCE = 1e-3  # between a draw's base point and what its inverse leads back to
NUM_HELD_OUT = 128  # points that choose the number of integration steps
CHOOSE_EVERY = 4  # trainings to one choice of the number of integration steps, which takes as long as one to three
USEFUL = 0.5  # nats of held-out density over the base's beyond which a network is trained at length
WORTHWHILE = 0.1  # nats of held-out density that twice as many integration steps must gain


class Online(NamedTuple):
    """A flow that is being learned, with the draws that it learns from."""

    flow: Flow
    training: TrainState
    pool: Pool  # what it learns from
    num_trainings: Array  # so far
    num_steps: Array  # integration steps that the network wants
    gain: Array  # held-out log-density over that of the base, nats; the network is used where it is positive
    ellipsoids: Ellipsoids  # around modes that were found before; drawn from beside the flow


class Drawn(NamedTuple):
    """Draws whose density is not known yet."""

    x: Float[Array, "n d"]
    z: Float[Array, "n d"]  # where the flow was to carry them from
    is_ellipsoid: Bool[Array, " n"]  # whether they come from an ellipsoid instead


class Placed(NamedTuple):
    """Points with their places in the base; NaN where there is no inverse."""

    x: Float[Array, "n d"]
    z: Float[Array, "n d"]
    log_flow: Float[Array, " n"]  # log-density of the flow alone, nats
    log_prob: Float[Array, " n"]  # that of the draws, those from ellipsoids included, nats


RULES = {
    "architecture": optional(part(Architecture)),
    "path": part(AbstractPath),
    "base": part(AbstractBase),
    **dict.fromkeys(("num_steps", "first_rounds", "num_rounds", "batch_size", "pool_size"), integer(1, 10**6)),
    "learning_rate": real(lambda x: 0 < x <= 100, "a positive number of at most 100"),
    "ema": real(lambda x: 0 <= x < 1, "a number from 0 to below 1"),
    "emphasis": real(lambda x: 0 <= x <= 100, "an exponent of 0 to 100"),
    "max_integration_steps": integer(1, 10**6),
    "ellipsoid_share": real(lambda x: 0 <= x < 1, "a share from 0 to below 1"),
    "mesh": optional(instance(Mesh, "a jax.sharding.Mesh")),
}


@dataclass(frozen=True)
class Learner:
    r"""How a flow learns the prior within a rising likelihood contour.

    It is taught by draws of its own past, weighted by prior over proposal density, which are not the points that a
    sampler is about to move: a proposal fitted to these prefers their neighbourhood, and 8 steps of
    Metropolis-Hastings then raised log Z of a 10-d Gaussian by 0.5 nats. The first training alone has nothing but live
    points, which leave the pool once there are as many draws: kept for 40 steps they raised log Z of a 10-d log-gamma
    by 0.2 nats. Where fewer of these draws than a quarter of the number of live points are effective above the
    contour, those below it help out.

    A draw with the prior mass X above its likelihood counts X^-emphasis: what will be most of the prior above later
    contours is a small share of this one, and proposals that miss it now leave live points there to their own copies.

    Args:
        architecture: Size of the network; without Fourier features and smaller than that of `nsflow.run` if left out.
        path: Probability path between base and data.
        base: Where the flow starts.
        num_steps: Gradient steps of one round.
        first_rounds: Rounds of the first training; in a cube of ten dimensions 500 gradient steps left 0.16 of the
            proposals accepted, 3000 left 0.43.
        num_rounds: Rounds of another one while the network gains half a nat over the base; one is made while it does
            not. Some 1500 effective points are soon learnt by heart: on Neal's funnel, one round left the network about
            0.1 nats better than the base and four left it 0.1 worse. Where it matters they pay: one round instead of
            four took the share of proposals accepted on mixture-5 from 0.42 to 0.37.
        learning_rate: Constant rate of these.
        batch_size: Points in one of them.
        ema: Decay of the average of the weights, which is what proposes.
        pool_size: Draws that are remembered, for each live point.
        emphasis: Exponent of what lies far above the contour. At 0 the evidence of Neal's funnel in 10-d was 0.65 nats
            low and that of its draws 0.16; at 0.6 they are 0.1 and 0.03 low, at the same acceptance; at 0.9 a third
            of that was lost.
        max_integration_steps: Largest number of Runge-Kutta steps.
        ellipsoid_share: Share of the draws from ellipsoids around modes, where there are any.
        mesh: Devices that share the draws along its first axis; all on one if left out.

    Raises:
        TypeError: If a part is of another kind.
        ValueError: If a number is out of range.
    """

    architecture: Architecture | None = None
    path: AbstractPath = field(default_factory=TrigonometricPath)
    base: AbstractBase = field(default_factory=EdgedBall)
    num_steps: int = 25
    first_rounds: int = 120
    num_rounds: int = 4
    learning_rate: float = 3e-3
    batch_size: int = 256
    ema: float = 0.95
    pool_size: int = 16
    emphasis: float = 0.6
    max_integration_steps: int = 16
    ellipsoid_share: float = 0.2
    mesh: Mesh | None = None

    def __post_init__(self) -> None:
        """Refuse values that no training could use."""
        settle(self, RULES)

    def init(self, key: Array, live: Draws) -> Online:
        """Whiten the first live points, which are draws of the prior; `train` has everything else to learn.

        Args:
            key: JAX random key.
            live: The live points, with a log-weight of zero.

        Returns:
            The flow.
        """
        num_live, num_dims = live.x.shape
        velocity = (self.architecture or _architecture(num_dims)).init(key, num_dims, self.path)
        mean, scale = _frame(live.x, jnp.full_like(live.log_weight, 1 / num_live))
        flow = Flow(velocity, mean, scale, jnp.int32(0))
        zero = jnp.zeros((), live.x.dtype)
        nowhere = around([], np.zeros(0), 0, live.x.dtype, num_dims)
        pool = Pool.start(live, self.pool_size * num_live)
        return Online(flow, start(velocity), pool, jnp.int32(0), jnp.int32(2), zero, nowhere)

    @staticmethod
    def observe(online: Online, draws: Draws) -> Online:
        """Put draws in the place of the oldest; a log-weight of NaN is that of a draw that was not made."""
        return online._replace(pool=online.pool.observe(draws))

    def train(self, key: Array, online: Online, contour: Any, num_rounds: Any = None) -> Online:
        """Learn the prior above a contour, starting from the weights as they are.

        Args:
            key: JAX random key.
            online: The flow so far.
            contour: Log-likelihood in nats that the points are to exceed.
            num_rounds: How many times `num_steps` gradient steps are made; may be traced. By the options if left out.

        Returns:
            The flow, with new centre, scale, weights and number of integration steps.
        """
        is_asked = num_rounds is not None
        if not is_asked:
            later = jnp.where(online.gain > USEFUL, self.num_rounds, 1)
            num_rounds = jnp.where(online.num_trainings == 0, self.first_rounds, later)
        num_live = len(online.pool.draws.x) // self.pool_size
        x, weights, place = online.pool.training_set(num_live, contour, self.emphasis)
        mean, scale = _frame(x, weights)
        white = solve_triangular(scale, (x - mean[None]).T, lower=True).T
        is_held_out = place % 10 == 0  # a draw stays in its place, and in its part
        key_score, key_steps = jax.random.split(key)
        rows = white.astype(jnp.float32)
        quantiles = _quantiles(jnp.where(is_held_out, 0, weights)).astype(jnp.float32)
        rates = jnp.full(self.num_steps, self.learning_rate, jnp.float32)

        def one_round(i: Array, training: TrainState) -> TrainState:
            return train_steps(
                jax.random.fold_in(key_steps, i),
                training,
                rows,
                quantiles,
                rates,
                objective=FlowMatching(self.path, self.base),
                batch_size=self.batch_size,
                ema=self.ema,
            )[0]

        training = jax.lax.fori_loop(0, num_rounds, one_round, online.training)
        held_out = resample(key_score, white, _quantiles(jnp.where(is_held_out, weights, 0)), NUM_HELD_OUT)
        whitened = Flow(training.average, jnp.zeros_like(mean), jnp.eye(len(mean), dtype=x.dtype), jnp.int32(0))
        num_steps, gain = jax.lax.cond(
            is_asked | (online.num_trainings % CHOOSE_EVERY == 0),
            lambda: self._choose(online._replace(flow=whitened), held_out),
            lambda: (online.num_steps, online.gain),
        )
        return online._replace(
            flow=Flow(training.average, mean, scale, jnp.where(gain > 0, num_steps, 0)),
            training=training,
            num_trainings=online.num_trainings + 1,
            num_steps=num_steps,
            gain=gain,
            ellipsoids=online.ellipsoids.at_contour(jnp.asarray(contour, x.dtype)),
        )

    def _choose(self, online: Online, held_out: Array) -> tuple[Array, Array]:
        """Number of integration steps by the density of held-out points, and what it gains over that of the base."""
        candidates = jnp.clip(online.num_steps * jnp.array([1, 2, 4]) // 2, 1, self.max_integration_steps)
        candidates = candidates.astype(jnp.int32)

        def score(num_steps: Array) -> Array:
            _, log_prob = self.pull(online._replace(flow=replace(online.flow, num_steps=num_steps)), held_out)
            # A point without an inverse counts as 30 nats low; a chain that stands there would never move.
            return jnp.mean(jnp.nan_to_num(log_prob, nan=-30.0))

        scores = jax.lax.map(score, candidates)
        best = jnp.argmax(scores - WORTHWHILE * jnp.arange(3, dtype=scores.dtype))
        return candidates[best], scores[best] - jnp.mean(jax.vmap(self.base.log_prob)(held_out))

    def sample_and_log_prob(self, key: Array, online: Online, num_samples: int) -> tuple[Array, Array]:
        """Draw points, ``(n, d)``, with their log-density in nats; NaN where the map folds.

        They come from the flow and, a share of them, from the ellipsoids, and have the density of both.
        """
        drawn = self.draw(key, online, num_samples)
        placed = self.place(online, drawn, jnp.zeros((0, drawn.x.shape[1]), drawn.x.dtype), jnp.ones(num_samples, bool))
        return placed.x, placed.log_prob

    def draw(self, key: Array, online: Online, num_samples: int) -> Drawn:
        """Draw points without their density."""
        key_flow, key_part, key_ellipsoids = jax.random.split(key, 3)
        z = self._shard(self.base.sample(key_flow, num_samples, online.flow.num_dims).astype(online.flow.mean.dtype))
        x, is_ellipsoid = jnp.asarray(online.flow.forward(z)), jnp.zeros(num_samples, bool)
        if self._has_ellipsoids(online):
            share = jnp.where(online.ellipsoids.is_there, self.ellipsoid_share, 0.0)
            is_ellipsoid = jax.random.bernoulli(key_part, share, (num_samples,))
            x = jnp.where(is_ellipsoid[:, None], online.ellipsoids.sample(key_ellipsoids, num_samples), x)
        return Drawn(x, z, is_ellipsoid)

    def place(self, online: Online, drawn: Drawn, known: Float[Array, "m d"], is_wanted: Bool[Array, " n"]) -> Placed:
        """Densities of the wanted draws and, after them, of known points; NaN for the others and where the map folds.

        All are inverted at once: each place where a flow is inverted takes a second to compile.
        """
        num_samples, x = len(drawn.x), jnp.concatenate([drawn.x, known])
        recovered, log_flow = self.pull(online, x, jnp.concatenate([is_wanted, jnp.ones(len(known), bool)]))
        log_ellipsoid = self._log_ellipsoid(online, x)
        log_prob = self._mixed(online, log_flow, log_ellipsoid)
        # A draw that rounding puts outside of its ellipsoid would have the density of the flow alone: e^-861 was met.
        is_back = ~jnp.isnan(log_flow[:num_samples]) & _agree(recovered[:num_samples], drawn.z)
        is_found = is_wanted & jnp.where(drawn.is_ellipsoid, log_ellipsoid[:num_samples] > -jnp.inf, is_back)
        is_found = jnp.concatenate([is_found, jnp.ones(len(known), bool)])
        return Placed(x, recovered, log_flow, jnp.where(is_found, log_prob, jnp.nan))

    def log_prob(self, online: Online, x: Float[Array, "n d"]) -> Array:
        """Log-density of the draws at points, nats, shape ``(n,)``; NaN or -inf where none is drawn."""
        return self._mixed(online, self.pull(online, x)[1], self._log_ellipsoid(online, x))

    def _has_ellipsoids(self, online: Online) -> bool:
        return online.ellipsoids.is_any and self.ellipsoid_share > 0

    def _log_ellipsoid(self, online: Online, x: Array) -> Array:
        if not self._has_ellipsoids(online):
            return jnp.full(len(x), -jnp.inf, x.dtype)
        return jax.vmap(online.ellipsoids.log_prob)(x)

    def _mixed(self, online: Online, log_flow: Array, log_ellipsoid: Array) -> Array:
        """The density of flow and ellipsoids together."""
        if not self._has_ellipsoids(online):
            return log_flow
        # A draw without an inverse is none of the flow's, so that its density there is zero.
        log_flow = jnp.where(jnp.isnan(log_flow), -jnp.inf, log_flow)
        share = self.ellipsoid_share
        mixed = jnp.logaddexp(math.log1p(-share) + log_flow, math.log(share) + log_ellipsoid)
        return jnp.where(online.ellipsoids.is_there, mixed, log_flow)

    def push(self, online: Online, z: Float[Array, "n d"]) -> tuple[Array, Array]:
        """Carry base points to the data; their log-density there, nats, NaN where the inverse does not lead back."""
        z = self._shard(z)
        x = jnp.asarray(online.flow.forward(z))
        recovered, log_prob = self.pull(online, x)
        return x, jnp.where(_agree(recovered, z), log_prob, jnp.nan)

    def pull(self, online: Online, x: Float[Array, "n d"], is_wanted: Any = None) -> tuple[Array, Array]:
        """Carry points back to the base, with their log-density in nats; NaN where no inverse was found, or wanted."""
        preimage = online.flow.inverse(self._shard(x), MAX_NEWTON, is_wanted)
        z, log_det = jnp.asarray(preimage.z), jnp.asarray(preimage.log_det)
        return z, jax.vmap(self.base.log_prob)(z) - log_det

    def replicate(self, tree: Any) -> Any:
        """Put arrays on all devices of the mesh: a function compiled for one device would be compiled again."""
        return tree if self.mesh is None else jax.device_put(tree, self._sharding(PartitionSpec()))

    def _shard(self, points: Array) -> Array:
        if self.mesh is None:
            return points
        return jax.lax.with_sharding_constraint(points, self._sharding(PartitionSpec(self.mesh.axis_names[0])))

    def _sharding(self, spec: PartitionSpec) -> NamedSharding:
        assert self.mesh is not None
        # `jax.make_mesh` makes axes of explicit types; the compiler is to choose the shardings of all else.
        return NamedSharding(Mesh(self.mesh.devices, self.mesh.axis_names), spec)


def _architecture(num_dims: int) -> Architecture:
    """Default for a dimension.

    On mixture-5 a third layer took the share of proposals accepted from 0.40 to 0.45. In 10-d, 64 units instead of 48
    raised it on no problem, and steps of the Rosenbrock function took a third longer.
    """
    width, depth = (64, 3) if num_dims <= 5 else (max(48, 4 * num_dims), 2)
    return Architecture(width, depth, (), (1.0, 2.0))


def _agree(recovered: Array, z: Array) -> Array:
    """Whether base points that inverses lead back to are those that were carried forward."""
    return jnp.max(jnp.abs(recovered - z), axis=1) < MAX_DISTANCE


@full_precision
def _frame(x: Array, weights: Array) -> tuple[Array, Array]:
    """Mean and Cholesky factor of the covariance of weighted points."""
    mean = weights @ x
    offset = x - mean[None]
    covariance = offset.T @ (offset * weights[:, None])
    # Duplicates among few live points may leave it singular.
    ridge = 10 * jnp.finfo(x.dtype).eps * jnp.diag(jnp.diag(covariance))
    return mean, jnp.linalg.cholesky(covariance + ridge)


def _quantiles(weights: Array) -> Array:
    cumulated = jnp.cumsum(weights)
    return cumulated / cumulated[-1]
