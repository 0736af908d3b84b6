"""Normal mixtures along a path: every marginal, score, mean noise and velocity is known."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np


@dataclass(frozen=True)
class MixtureOnPath:
    """Data from N(m_k, s_k^2 I) with weights w_k, at time t of a path from N(0, I)."""

    path: object
    weights: tuple = (0.7, 0.3)
    means: tuple = ((-1.0, 0.5), (1.5, -0.5))
    widths: tuple = (0.5, 0.3)

    def log_prob(self, t, x):
        """Marginal: a mixture of N(alpha m_k, alpha^2 s_k^2 + sigma^2)."""
        alpha, sigma = self.path.alpha(t), self.path.sigma(t)
        means, widths, weights = (jnp.asarray(v, x.dtype) for v in (self.means, self.widths, self.weights))
        variance = alpha**2 * widths**2 + sigma**2
        square = jnp.sum((x[None, :] - alpha * means) ** 2, axis=1)
        dims = x.shape[0]
        return jax.nn.logsumexp(
            jnp.log(weights) - 0.5 * square / variance - 0.5 * dims * jnp.log(2 * jnp.pi * variance)
        )

    def score(self, t, x):
        return jax.grad(self.log_prob, 1)(t, x)

    def noise(self, t, x):
        """E[x0 | x_t] = -sigma score."""
        return -self.path.sigma(t) * self.score(t, x)

    def velocity(self, t, x):
        """E[u | x_t], from the conditional means of each normal alone, not from the score."""
        alpha, sigma = self.path.alpha(t), self.path.sigma(t)
        rates = [jax.jvp(f, (t,), (jnp.ones_like(t),))[1] for f in (self.path.alpha, self.path.sigma)]
        means, widths, weights = (jnp.asarray(v, x.dtype) for v in (self.means, self.widths, self.weights))
        variance = (alpha**2 * widths**2 + sigma**2)[:, None]
        offset = x[None, :] - alpha * means
        log_share = (
            jnp.log(weights) - 0.5 * jnp.sum(offset**2 / variance, axis=1) - 0.5 * len(x) * jnp.log(variance[:, 0])
        )
        share = jax.nn.softmax(log_share)[:, None]
        x1 = means + alpha * widths[:, None] ** 2 / variance * offset
        x0 = sigma / variance * offset
        return jnp.sum(share * (rates[0] * x1 + rates[1] * x0), axis=0)

    def sample(self, rng, n):
        """Data."""
        k = rng.choice(len(self.weights), n, p=self.weights)
        return np.array(self.means)[k] + np.array(self.widths)[k, None] * rng.normal(size=(n, len(self.means[0])))
