"""Discrete normalising flows of flowjax as proposals."""

from dataclasses import dataclass
from typing import Any, final

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from flowjax import bijections, distributions, flows
from flowjax.train import fit_to_data
from jaxtyping import Array, Float

from nsflow.densities.gaussian import Gaussian
from nsflow.numerics.batching import by_chunks
from nsflow.numerics.precision import full_precision, standard_promotion
from nsflow.proposals.estimators import AbstractEstimator, resample

CHUNK = 1024  # points evaluated at once, so that one compiled shape serves every batch


@final
@dataclass(frozen=True)
class DiscreteFlowEstimator(AbstractEstimator):
    """Coupling layers with rational quadratic splines, trained by maximum likelihood on whitened points.

    Args:
        num_layers: Coupling layers.
        width: Width of their networks.
        knots: Knots of each spline, on an interval of four standard deviations.
        max_epochs: Largest number of passes over the points.

    References:
        Durkan et al. (2019), *Neural Spline Flows*; Ward (2025), *flowjax*.
    """

    num_layers: int = 8
    width: int = 50
    knots: int = 8
    max_epochs: int = 100

    @standard_promotion
    def fit(self, key: Array, points: Float[np.ndarray, "n d"], log_weights: Float[np.ndarray, " n"]) -> "DiscreteFlow":
        """Fit a density; see :meth:`nsflow.AbstractEstimator.fit`."""
        key_init, key_train, key_resample = jax.random.split(key, 3)
        rng = np.random.default_rng(np.asarray(jax.random.key_data(key_resample)))
        whole = Gaussian.fit(points, log_weights)
        rows = jnp.asarray(whole.whiten(resample(rng, points, log_weights)), jnp.float32)
        with jax.enable_x64(False):
            untrained = flows.coupling_flow(
                key_init,
                base_dist=distributions.Normal(jnp.zeros(whole.num_dims)),
                transformer=bijections.RationalQuadraticSpline(knots=self.knots, interval=4),
                flow_layers=self.num_layers,
                nn_width=self.width,
            )
            fitted, _ = fit_to_data(
                key_train,
                untrained,
                rows,
                learning_rate=1e-3,
                max_epochs=self.max_epochs,
                max_patience=10,
                batch_size=min(256, len(rows) // 4),
                show_progress=False,
            )
        return DiscreteFlow(fitted, whole)


@final
@dataclass(frozen=True)
class DiscreteFlow:
    """A distribution of flowjax in the coordinates of the data.

    Args:
        distribution: The distribution, of whitened points.
        whole: The normal that whitens.
    """

    distribution: Any
    whole: Gaussian

    def sample(self, key: Array, num_samples: int) -> np.ndarray:
        """Draw points, ``(n, d)``."""
        with jax.enable_x64(False):
            keys = [jax.random.fold_in(key, i) for i in range(max(1, -(-num_samples // CHUNK)))]
            white = np.concatenate([_draw(self.distribution, key) for key in keys])[:num_samples]
        return self.whole.forward(white.astype(np.float64))

    def sample_and_log_prob(self, key: Array, num_samples: int) -> tuple[np.ndarray, np.ndarray]:
        """Draw points, ``(n, d)``, with their log-density in nats."""
        x = self.sample(key, num_samples)
        return x, self.log_prob(x)

    def log_prob(self, x: Float[np.ndarray, "n d"]) -> np.ndarray:
        """Log-density in nats, shape ``(n,)``."""
        preimage = self.whole.inverse(x)
        with jax.enable_x64(False):
            white = by_chunks(lambda z: _log_prob(self.distribution, z), preimage.z.astype(np.float32), CHUNK)
        return white.astype(np.float64) - preimage.log_det


@standard_promotion
@full_precision
@eqx.filter_jit
def _draw(distribution: Any, key: Array) -> Array:
    return distribution.sample(key, (CHUNK,))


@standard_promotion
@full_precision
@eqx.filter_jit
def _log_prob(distribution: Any, z: Array) -> Array:
    return distribution.log_prob(z)
