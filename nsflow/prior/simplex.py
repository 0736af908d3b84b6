r"""Dirichlet distributions as sticks that are broken: each share of what is left is a Beta, whose score is normal."""

from dataclasses import dataclass
from functools import partial
from typing import Any, final

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from scipy import special

from nsflow.prior.coordinate import SMALLEST
from nsflow.prior.normal_score import NormalScoreTable, tabulate
from nsflow.prior.parameter import NormalLatent, log_prob


@final
@dataclass(frozen=True)
class Simplex(NormalLatent):
    r"""A Dirichlet distribution, whose latent vector is N(0, I).

    .. math::
        x_j = b_j \prod_{i < j} (1 - b_i), \qquad b_j \sim \mathrm{Beta}\Bigl(a_j, \sum_{i > j} a_i\Bigr).

    The sticks are tabulated by their logits, so that neither a share of 1e-300 nor one of 1 - 1e-300 is rounded: at
    concentrations of 0.02 half of the sticks are nearer to an end than any double.

    Args:
        distribution: The distribution.
        shape: Shape of the value; its last axis is that of the shares.

    References:
        Sethuraman (1994), *A Constructive Definition of Dirichlet Priors*, Sec. 3.
    """

    distribution: Any
    shape: tuple[int, ...]
    table: NormalScoreTable  # of the logits of the sticks
    traceable: bool = True

    @classmethod
    def of(cls, distribution: Any, concentration: Float[np.ndarray, "*shape"]) -> "Simplex":
        """Tabulate the sticks of a Dirichlet distribution."""
        rest = np.cumsum(concentration[..., ::-1], axis=-1)[..., ::-1]
        pairs = np.stack([concentration[..., :-1].ravel(), rest[..., 1:].ravel()], axis=1)
        different, kinds = np.unique(pairs, axis=0, return_inverse=True)
        tables = [_stick(a, b) for a, b in different.tolist()]
        return cls(distribution, concentration.shape, NormalScoreTable.joined(tables, np.ravel(kinds)))

    @property
    def num_dims(self) -> int:
        """Length of the latent vector: one less than there are shares."""
        return int(np.prod(self._latent_shape, dtype=int))

    @property
    def _latent_shape(self) -> tuple[int, ...]:
        return (*self.shape[:-1], self.shape[-1] - 1)

    def forward(self, z: Float[Array, "n d"]) -> Float[Array, "n *shape"]:
        """Map latent vectors to shares."""
        return jax.vmap(self._shares)(z)

    def inverse(self, x: Float[Array, "n *shape"]) -> Float[Array, "n d"]:
        """Map shares to latent vectors."""
        return jax.vmap(self._scores)(x)

    def log_prob(self, x: Float[Array, "n *shape"]) -> Float[Array, " n"]:
        """Density of the shares, in nats."""
        return log_prob(self.distribution, x)

    def _shares(self, z: Float[Array, " d"]) -> Float[Array, "*shape"]:
        logits = self.table.forward(z).reshape(self._latent_shape)
        end = [(0, 0)] * (logits.ndim - 1)
        broken = jnp.pad(jax.nn.log_sigmoid(logits), [*end, (0, 1)])
        left = jnp.pad(jnp.cumsum(jax.nn.log_sigmoid(-logits), axis=-1), [*end, (1, 0)])
        # A share of nothing would give 0 log 0 in counts of the data; the smallest double gives nothing as well.
        return jnp.maximum(jnp.exp(broken + left), SMALLEST)

    def _scores(self, x: Float[Array, "*shape"]) -> Float[Array, " d"]:
        shares = jnp.maximum(x, SMALLEST)
        left = jnp.cumsum(shares[..., ::-1], axis=-1)[..., ::-1]
        logits = jnp.log(shares[..., :-1]) - jnp.log(left[..., 1:])
        return self.table.inverse(logits.ravel())


def _stick(a: float, b: float) -> NormalScoreTable:
    width = np.sqrt(1 / a + 1 / b)
    return tabulate(partial(_logit_beta, a, b), np.log(a / b) + width * np.linspace(-8.0, 8.0, 33))[0]


def _logit_beta(a: float, b: float, y: np.ndarray) -> np.ndarray:
    return -a * np.logaddexp(0, -y) - b * np.logaddexp(0, y) - special.betaln(a, b)
