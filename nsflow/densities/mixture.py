"""Mixtures of densities, drawn from at random."""

from dataclasses import dataclass

import jax
import numpy as np
from jaxtyping import Array, Float

from nsflow.densities.density import Proposal, log_prob
from nsflow.numerics.storable import storable


@storable("mixture")
@dataclass(frozen=True)
class Mixture:
    """Mixture as one component: each draw picks its own.

    Args:
        components: The proposals.
        weights: Their weights, which sum to one.
    """

    components: tuple[Proposal, ...]
    weights: tuple[float, ...]

    def sample(self, key: Array, num_samples: int) -> np.ndarray:
        """Draw points, ``(n, d)``."""
        key_count, *keys = jax.random.split(key, 1 + len(self.components))
        rng = np.random.default_rng(np.asarray(jax.random.key_data(key_count)))
        counts = rng.multinomial(num_samples, self.weights).tolist()
        draws = [q.sample_and_log_prob(k, n) for q, k, n in zip(self.components, keys, counts, strict=True)]
        return rng.permutation(np.concatenate([np.asarray(x) for x, _ in draws]))

    def sample_and_log_prob(self, key: Array, num_samples: int) -> tuple[np.ndarray, np.ndarray]:
        """Draw points, ``(n, d)``, with their log-density in nats."""
        x = self.sample(key, num_samples)
        return x, self.log_prob(x)

    def log_prob(self, x: Float[np.ndarray, "n d"]) -> np.ndarray:
        """Log-density in nats, shape ``(n,)``."""
        log_q = np.stack([log_prob(q, x) for q in self.components], axis=1)
        return np.logaddexp.reduce(log_q + np.log(self.weights), axis=1)
