"""Mixture of local kernels with the prior's tails: what a flow smooths away, a kernel on a training point keeps."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import gammaln, log_ndtr, logsumexp
from jaxtyping import Array, Float
from scipy import special
from scipy.spatial import KDTree

from nsflow.shapes import by_chunks

CHUNK = 256  # points evaluated at once, so that one compiled shape serves every batch
LOG_2PI = float(np.log(2 * np.pi))


@dataclass(frozen=True)
class Kernels:
    r"""Equal mixture of multivariate Student-t kernels, some draws of which follow the prior outwards.

    .. math::
        q(x) = \frac1m \sum_k \Bigl[(1 - \epsilon)\, t_\nu(x; c_k, L_k L_k^T)
        + \frac\epsilon d \sum_i t_\nu(x_{-i})\, N(x_i; 0, 1 \mid |x_i| > |c_{ki}|, x_i c_{ki} > 0) \Bigr],

    where the kernel's marginal without coordinate i stands beside that coordinate's prior tail beyond the centre. A
    mode cut by an edge of the prior has this tail in latent space, and no local kernel reaches its end: on the eggbox,
    with modes on all four edges, local kernels alone left 1.4 % of the posterior under-covered a hundredfold, and
    none with a tenth of the draws spent on tails.

    Eighteen sharp modes in two dimensions, on which a flow alone reached an importance efficiency of 0.24, are easy for
    kernels; in ten dimensions kernels cover next to nothing and flows do the work.

    Args:
        centres: Centres c, shape ``(m, d)``.
        scales: Lower triangular factors L, shape ``(m, d, d)``.
        dof: Degrees of freedom nu; a few keep the tails heavy enough to bound the weights.
        tails: Share epsilon of the draws that follow the prior outwards.

    Example:
        >>> points = np.random.default_rng(0).normal(size=(1000, 2))
        >>> kernels = Kernels.fit(jax.random.key(0), points, np.zeros(1000))
        >>> x, log_q = kernels.sample_and_log_prob(jax.random.key(1), 10)
        >>> x.shape, log_q.shape
        ((10, 2), (10,))
    """

    centres: Float[np.ndarray, "m d"]
    scales: Float[np.ndarray, "m d d"]
    dof: float = 5.0
    tails: float = 0.1

    @classmethod
    def fit(
        cls,
        key: Array,
        points: Float[np.ndarray, "n d"],
        log_weights: Float[np.ndarray, " n"],
        *,
        num_kernels: int = 1000,
    ) -> "Kernels":
        """Centre kernels on a systematic resample, each as wide as the cloud of its nearest neighbours.

        A cloud grows until it holds 0.7 % of the weight, or d + 2 effective points where points are few. A lone heavy
        point fills it alone: then the spacing of the light points around sets the width, not the distance to another
        mode.

        Args:
            key: JAX random key.
            points: Training points, shape ``(n, d)``.
            log_weights: Their log-weights in nats, up to a constant.
            num_kernels: Number m of kernels.

        Returns:
            The mixture.
        """
        num_points, num_dims = points.shape
        weights = np.exp(log_weights - np.max(log_weights))
        weights = weights / np.sum(weights)
        comb = (np.arange(num_kernels) + float(jax.random.uniform(key))) / num_kernels
        chosen = np.minimum(np.searchsorted(np.cumsum(weights), comb), num_points - 1)
        centres, index = np.unique(chosen, return_inverse=True)
        enough = max(0.007, (num_dims + 2) * np.sum(weights**2))
        near: np.ndarray = np.asarray(KDTree(points).query(points[centres], min(num_points, 32 * num_dims))[1])
        held = np.cumsum(weights[near], axis=1) - weights[near] < enough
        member = held | (np.arange(near.shape[-1]) < num_dims + 2)
        count = np.sum(member, axis=1)
        offsets = (points[near] - points[centres][:, None, :]) * member[:, :, None]
        covariance = np.einsum("mki,mkj->mij", offsets, offsets) / count[:, None, None]
        # Few neighbours know a direction's variance poorly, and on a line they would make the kernel singular.
        roundness = np.trace(covariance, axis1=1, axis2=2) / (num_dims + count)
        covariance += (roundness + 1e-300)[:, None, None] * np.eye(num_dims)
        return cls(points[chosen], np.linalg.cholesky(covariance)[index])

    def sample_and_log_prob(self, key: Array, num_samples: int) -> tuple[np.ndarray, np.ndarray]:
        """Draw points, ``(n, d)``, with their log-density in nats."""
        rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
        num_kernels, num_dims = self.centres.shape
        k = rng.integers(num_kernels, size=num_samples)
        normal = rng.normal(size=(num_samples, num_dims))
        stretch = np.sqrt(self.dof / rng.chisquare(self.dof, size=num_samples))
        x = self.centres[k] + stretch[:, None] * np.einsum("nij,nj->ni", self.scales[k], normal)
        outwards = np.flatnonzero(rng.random(num_samples) < self.tails)
        i = rng.integers(num_dims, size=len(outwards))
        centre = self.centres[k[outwards], i]
        log_mass = np.log1p(-rng.random(len(outwards))) + special.log_ndtr(-np.abs(centre))
        x[outwards, i] = np.copysign(special.ndtri_exp(log_mass), centre)
        return x, self.log_prob(x)

    def log_prob(self, x: Float[np.ndarray, "n d"]) -> np.ndarray:
        """Log-density in nats, shape ``(n,)``."""
        inverses = np.linalg.inv(self.scales)
        return by_chunks(lambda chunk: _log_prob(chunk, self.centres, inverses, self.dof, self.tails), x, CHUNK)


@jax.jit
def _log_prob(x: Array, centres: Array, inverses: Array, dof: Array, tails: Array) -> Array:
    num_kernels, num_dims = centres.shape
    log_det = -jnp.sum(jnp.log(jnp.diagonal(inverses, axis1=1, axis2=2)), axis=1)
    precisions = jnp.swapaxes(inverses, 1, 2) @ inverses
    # Without coordinate i: its conditional variance 1 / P_ii leaves the determinant, its residual the distance.
    conditional = jnp.diagonal(precisions, axis1=1, axis2=2)
    log_beyond = log_ndtr(-jnp.abs(centres))

    def log_t(distance: Array, log_det: Array, dims: int) -> Array:
        norm = gammaln((dof + dims) / 2) - gammaln(dof / 2) - dims / 2 * jnp.log(dof * jnp.pi)
        return norm - log_det - (dof + dims) / 2 * jnp.log1p(distance / dof)

    def one(x: Array) -> Array:
        offset = x[None, :] - centres
        score = jnp.einsum("mij,mj->mi", precisions, offset)
        distance = jnp.sum(offset * score, axis=1)
        local = log_t(distance, log_det, num_dims)
        others = jnp.maximum(distance[:, None] - score**2 / conditional, 0.0)
        marginal = log_t(others, log_det[:, None] + 0.5 * jnp.log(conditional), num_dims - 1)
        is_beyond = (jnp.abs(x)[None, :] > jnp.abs(centres)) & (x[None, :] * centres > 0)
        outer = jnp.where(is_beyond, (-0.5 * x**2 - 0.5 * LOG_2PI)[None, :] - log_beyond, -jnp.inf)
        terms = jnp.concatenate(
            [jnp.log1p(-tails) + local[:, None], jnp.log(tails / num_dims) + marginal + outer], axis=1
        )
        return logsumexp(terms) - jnp.log(num_kernels)

    return jax.lax.map(one, x)
