"""Energy models: a scalar network whose gradient is a score, and whose normalising constant is an evidence."""

from dataclasses import dataclass
from typing import Any, final, no_type_check

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Float

from nsflow.densities.gaussian import Gaussian
from nsflow.diffusion.score_matching import AbstractScoreObjective, DenoisingScoreMatching
from nsflow.flow.objective import AbstractFlowObjective
from nsflow.flow.path import AbstractPath
from nsflow.flow.training import Training, train
from nsflow.flow.velocity import Architecture
from nsflow.numerics.arguments import instance, part, real, require_cloud, require_key, settle
from nsflow.numerics.precision import full_precision, standard_promotion
from nsflow.numerics.storable import storable


@final
@dataclass(frozen=True)
class Conservative(AbstractFlowObjective):
    r"""A score objective for a scalar potential :math:`\psi`, whose gradient is the mean noise.

    Args:
        objective: What the gradient is taught by.

    References:
        Salimans & Ho (2021), *Should EBMs Model the Energy or the Score?*, Eq. 4.
    """

    objective: AbstractScoreObjective

    def __post_init__(self) -> None:
        """Refuse values of another kind, or out of range."""
        settle(self, {"objective": part(AbstractScoreObjective)}, "Conservative.")

    @property
    def path(self) -> AbstractPath:  # type: ignore[override]
        """The path of the objective."""
        return self.objective.path

    def __call__(self, key: Array, field: Any, rows: Float[Array, "n d"]) -> Float[Array, ""]:
        """Loss of the gradient."""
        return self.objective(key, gradient(field), rows)

    def init(self, key: Array, num_dims: int, architecture: Any) -> Any:
        """Untrained potential."""
        return architecture.init_noise_potential(key, num_dims, self.path)

    def velocity(self, field: Any) -> Any:
        """Velocity of the probability-flow ODE."""
        return self.objective.velocity(gradient(field))


def gradient(potential: Any) -> Partial:
    """Gradient in space of a field ``potential(t, x)``, a callable pytree."""
    return Partial(_slope, potential)


@storable("energy-slope")
def _slope(potential: Any, t: Array, x: Array) -> Array:
    return jax.grad(potential, 1)(t, x)


@final
@dataclass(frozen=True)
class EnergyModel:
    r"""Density proportional to :math:`e^{-E(x)}`, where :math:`E = \psi(t, w z) / \sigma(t)` at one small noise scale.

    The points of the path there have the width :math:`w = (\alpha^2 + \sigma^2)^{1/2}`, the whitened data z unit width.

    What it is proportional to is a likelihood as good as any: under a uniform prior of volume V, `nsflow.run` gives
    :math:`\log \int e^{-E}\,dx = \log Z + \log V`.

    Args:
        potential: psi, called as ``potential(t, z)``.
        path: The path along which it was taught.
        time: t, near 1; the noise left there blurs the density by sigma(t) of a standard deviation.
        whole: The normal that whitens, ``z = L^-1 (x - mu)``.

    Example:
        >>> points = np.random.default_rng(0).normal(3.0, 2.0, size=(1000, 1))
        >>> model, _ = EnergyModel.fit(jax.random.key(0), points, training=Training(num_steps=100))
        >>> mean, shifted = model.log_density(jnp.array([3.0])), model.log_density(jnp.array([5.0]))
        >>> bool(0.3 < mean - shifted < 0.7)
        True
    """

    potential: Any
    path: AbstractPath
    time: float
    whole: Gaussian

    @no_type_check  # its own messages come before a run-time checker's
    @classmethod
    @standard_promotion
    def fit(
        cls,
        key: Array,
        points: Float[np.ndarray, "n d"],
        log_weights: Float[np.ndarray, " n"] | None = None,
        *,
        time: float = 0.95,
        training: Training = Training(),  # noqa: B008
    ) -> "tuple[EnergyModel, TrainingInfo]":
        """Teach a potential by denoising score matching along `training.path`.

        Args:
            key: JAX random key.
            points: Points, shape ``(n, d)``.
            log_weights: Their log-weights in nats up to a constant; equal if left out.
            time: Time of the path whose energy the model has.
            training: How to train; an objective of its own must be a :class:`Conservative` one.

        Returns:
            ``(model, info)``: the model, and what happened.

        Raises:
            TypeError: If the training's objective has no potential.
        """
        require_key("EnergyModel.fit", key)
        points, log_weights = require_cloud("EnergyModel.fit", points, log_weights)
        instance(Training, "an nsflow.Training")("`EnergyModel.fit` for its `training`", training)
        time = real(lambda t: 0 < t <= 1, "a time above 0, at most 1")("`EnergyModel.fit` for its `time`", time)
        objective = training.objective or Conservative(DenoisingScoreMatching(training.path))
        if not isinstance(objective, Conservative):
            raise TypeError(f"`training.objective` expected a Conservative(...) objective or None; got {objective!r}.")
        key_split, key_init, key_train, key_score = jax.random.split(key, 4)
        whole = Gaussian.fit(points, log_weights)
        order = np.random.default_rng(np.asarray(jax.random.key_data(key_split))).permutation(len(points))
        num_held_out = max(1, min(1024, int(training.held_out * len(points))))
        held_out, kept = order[:num_held_out], order[num_held_out:]
        white = whole.whiten(points).astype(np.float32)
        architecture = training.architecture or Architecture.of_dims(whole.num_dims)
        field = objective.init(key_init, whole.num_dims, architecture)
        chance = np.exp(log_weights[held_out] - np.max(log_weights[held_out]))
        rows = jnp.asarray(white[np.random.default_rng(0).choice(held_out, 1024, p=chance / np.sum(chance))])
        loss = jax.jit(lambda field: objective(key_score, field, rows))  # at the same times and noise at every look
        score = lambda field: -float(loss(field))  # noqa: E731
        field, info = train(
            key_train,
            field,
            white[kept],
            log_weights[kept],
            objective=objective,
            training=training,
            score=score,
            score_now=score(field),
        )
        return cls(field, objective.path, time, whole), info

    @full_precision
    def log_density(self, x: Float[Array, " d"]) -> Float[Array, ""]:
        """Minus the energy of one point: its log-density up to a constant, in nats.

        Args:
            x: Point, shape ``(d,)``.

        Returns:
            A scalar.
        """
        z = jnp.linalg.solve(jnp.asarray(self.whole.scale, x.dtype), x - jnp.asarray(self.whole.mean, x.dtype))
        t = jnp.asarray(self.time, x.dtype)
        sigma = self.path.sigma(t)
        width = jnp.sqrt(self.path.alpha(t) ** 2 + sigma**2)
        return -(self.potential(t, width * z) / sigma).astype(x.dtype)

    def score(self, x: Float[Array, " d"]) -> Float[Array, " d"]:
        """Gradient of :meth:`log_density`."""
        return jax.grad(self.log_density)(x)
