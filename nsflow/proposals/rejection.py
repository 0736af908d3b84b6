"""Thinning: a surrogate of the likelihood decides which draws of a proposal are worth a call."""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import numpy as np
from jaxtyping import Array, Float

from nsflow.densities.density import Proposal, log_prob
from nsflow.numerics.storable import storable
from nsflow.prior.prior import Prior
from nsflow.proposals.meta_proposal import MetaProposal

Surrogate = Callable[[np.ndarray], np.ndarray]  # latent points, (n, d), to estimates of log L in nats, (n,)

MIN_CHANCE = 0.05  # of a draw to pass, if the surrogate is good; one off by a nat lets everything pass
MIN_ACCEPTANCE = 0.1  # share of draws that pass; fewer would cost more time than the calls they save
PRICE = 0.05  # relative gain of efficiency that a halved acceptance must bring, over log 2
QUANTILES = np.linspace(0.0, 0.95, 20)  # of the estimated weight, tried as bounds
NUM_BEYOND = 10  # bounds between the last of them and the largest weight, where the best of kernels lies


@storable("thinned")
@dataclass(frozen=True)
class Thinned:
    r"""Draws x of a proposal q, each of which passes with a chance that grows with its estimated weight.

    .. math::
        a(x) = \min\Bigl(1, \max\Bigl(a_0, \frac{\hat L(x)\,\pi(x)}{c\,q(x)}\Bigr)\Bigr).

    A draw that does not pass costs no likelihood call, but is counted as drawn: with :math:`n` draws the density of the
    points that pass is :math:`n\,q\,a`, exactly, and no normalisation of a is needed. The error of the evidence then
    contains the chance of the number that passed.

    Args:
        proposal: The proposal q.
        surrogate: Estimate of log L.
        prior: The prior pi.
        log_bound: Log of c, the estimated weight at which a draw passes for certain, nats.
        acceptance: Estimated share of draws that pass; for planning, no density rests on it.
        min_chance: Smallest chance a_0, wherever the surrogate thinks the target low: it bounds the cost of its errors.
        efficiency: Effective sample size of a draw that passes, as the surrogate sees it.

    References:
        Horvitz & Thompson (1952), *A Generalization of Sampling Without Replacement from a Finite Universe*, Eq. 6.
    """

    proposal: Proposal
    surrogate: Surrogate
    prior: Prior
    log_bound: float
    acceptance: float
    min_chance: float = MIN_CHANCE
    efficiency: float = 1.0

    @classmethod
    def fit(
        cls,
        key: Array,
        proposal: Proposal,
        surrogate: Surrogate,
        prior: Prior,
        *,
        min_chance: float = MIN_CHANCE,
        num_samples: int = 1024,
    ) -> "Thinned":
        """Choose the bound from free draws: as many pass as leaves the weights of those that do nearly equal.

        Args:
            key: JAX random key.
            proposal: The proposal.
            surrogate: Estimate of log L.
            prior: The prior.
            min_chance: Smallest chance of a draw to pass.
            num_samples: Number of free draws.

        Returns:
            The thinned proposal.
        """
        x, log_q = proposal.sample_and_log_prob(key, num_samples)
        x, log_q = np.asarray(x), np.asarray(log_q)
        kept = ~np.isnan(log_q)
        thinned, best = cls(proposal, surrogate, prior, -np.inf, 1.0, min_chance, 0.0), -np.inf  # lets everything pass
        if not np.any(kept):
            return thinned
        log_weights = thinned.estimate(x[kept], log_q[kept])
        quantiles = np.quantile(log_weights, QUANTILES)
        beyond = np.linspace(quantiles[-1], np.max(log_weights), 1 + NUM_BEYOND)[1:]
        for log_bound in np.concatenate([quantiles, beyond]):
            log_chance = np.clip(log_weights - log_bound, np.log(min_chance), 0.0)
            acceptance = float(np.sum(np.exp(log_chance))) / num_samples
            if acceptance < MIN_ACCEPTANCE:
                break
            log_efficiency = (
                2 * np.logaddexp.reduce(log_weights)
                - np.logaddexp.reduce(2 * log_weights - log_chance)
                - np.log(num_samples * acceptance)
            )
            score = log_efficiency + PRICE * np.log(acceptance)
            if score > best:
                best, efficiency = score, float(np.exp(log_efficiency))
                thinned = cls(proposal, surrogate, prior, float(log_bound), acceptance, min_chance, efficiency)
        return thinned

    def sample_and_log_prob(self, key: Array, num_samples: int) -> tuple[np.ndarray, np.ndarray]:
        """Draw points, ``(n, d)``, with their log-density in nats; NaN marks those that do not pass."""
        key_draw, key_pass = jax.random.split(key)
        x, log_q = self.proposal.sample_and_log_prob(key_draw, num_samples)
        x, log_q = np.asarray(x), np.asarray(log_q, np.float64)
        log_chance = self._log_chance(x, log_q)
        rng = np.random.default_rng(np.asarray(jax.random.key_data(key_pass)))
        passed = rng.random(num_samples) < np.exp(log_chance)
        return x, np.where(passed, log_q + log_chance, np.nan)

    def log_prob(self, x: Float[np.ndarray, "n d"]) -> np.ndarray:
        """Log of q a, in nats, shape ``(n,)``; -inf where the proposal disowns the point."""
        log_q = log_prob(self.proposal, x)
        return log_q + self._log_chance(x, log_q)

    def estimate(self, x: Float[np.ndarray, "n d"], log_q: Float[np.ndarray, " n"]) -> np.ndarray:
        """Log of the estimated weight, nats."""
        return self.surrogate(x) + np.asarray(self.prior.latent_log_prob(x)) - log_q

    def _log_chance(self, x: np.ndarray, log_q: np.ndarray) -> np.ndarray:
        owned = np.isfinite(log_q)
        log_chance = np.zeros(len(x))
        log_ratio = self.estimate(x[owned], log_q[owned]) - self.log_bound
        log_chance[owned] = np.clip(log_ratio, np.log(self.min_chance), 0.0)
        return log_chance


def acceptance(proposal: Proposal) -> float:
    """Share of a proposal's draws that cost a likelihood call."""
    return proposal.acceptance if isinstance(proposal, Thinned) else 1.0


def expected_calls(mixture: MetaProposal) -> int | float:
    """Likelihood calls of one batch, on average."""
    return sum(n * acceptance(q) for q, n in zip(mixture.components, mixture.num_draws, strict=True))


def at_most(calls: int | float) -> int:
    """Bound of the likelihood calls where so many are expected: 1024 draws know an acceptance of 0.2 to 6 %."""
    return round(1.25 * calls + 6 * calls**0.5)
