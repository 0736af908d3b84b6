"""Draws that trained none of what proposed them: all that the headline rests on."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from nsflow.importance.evidence import Evidence, log_evidence
from nsflow.likelihood.batch import join_derived
from nsflow.numerics.storable import storable
from nsflow.proposals.meta_proposal import Draws, MetaProposal


@storable("batches")
class Batches(NamedTuple):
    """Draws of proposals that they did not train, one batch like the other."""

    proposal: MetaProposal
    components: tuple[int, ...]  # which components of the state the proposal mixes
    num_batches: int
    draws: Draws
    log_likelihood: Float[np.ndarray, " n"]  # nats
    log_prior: Float[np.ndarray, " n"]  # log-density of the prior in latent space, nats
    derived: Mapping[str, np.ndarray] = MappingProxyType({})  # what the likelihood returned beside log L, (n,) each

    @property
    def log_weights(self) -> Float[np.ndarray, " n"]:
        r"""Log of :math:`L \pi / Q`, nats."""
        return self.log_likelihood + self.log_prior - self.draws.log_Q

    @property
    def num_draws(self) -> np.ndarray:
        """Draws made from each component, dropped ones included."""
        return self.num_batches * np.asarray(self.proposal.num_draws)

    @property
    def shares(self) -> Float[np.ndarray, " j"]:
        """Share of the evidence that each component proposes: every draw is split by their parts of Q there.

        Of no evidence at all, its share of the draws.
        """
        if not np.any(self.log_weights > -np.inf):
            return np.asarray(self.proposal.num_draws) / sum(self.proposal.num_draws)
        weights = np.exp(self.log_weights - np.max(self.log_weights))
        part = np.exp(self.draws.log_q - self.draws.log_Q[:, None]) * self.proposal.num_draws
        return weights @ part / (np.sum(weights) * sum(self.proposal.num_draws))

    @property
    def efficiency(self) -> float:
        """Effective samples of a likelihood call."""
        return self.estimate().ess / max(1, len(self.log_prior))

    def estimate(self) -> Evidence:
        """Evidence of these draws alone."""
        return log_evidence(self.log_weights, self.draws.component, self.num_draws)


class Fresh(NamedTuple):
    """All draws that the headline rests on; each component of each proposal is a stratum."""

    x: Float[np.ndarray, "n d"]
    log_likelihood: Float[np.ndarray, " n"]  # nats
    log_weights: Float[np.ndarray, " n"]  # nats; their mean over all draws is the evidence
    stratum: Int[np.ndarray, " n"]
    num_draws: Int[np.ndarray, " j"]  # of each stratum, dropped ones included
    derived: Mapping[str, np.ndarray] = MappingProxyType({})  # what the likelihood returned beside log L, (n,) each

    def estimate(self) -> Evidence:
        """Evidence of all draws."""
        return log_evidence(self.log_weights, self.stratum, self.num_draws)


def pool(batches: Sequence[Batches], credits: Sequence[float]) -> Fresh:
    r"""Join draws of several proposals, a draw of proposal r for :math:`c_r` draws.

    .. math::
        \hat Z = \frac{\sum_r c_r \sum_i w_{ri}}{\sum_r c_r n_r}.

    Every term estimates Z without bias, and so does their average as long as the credits do not look at the weights
    that they multiply.

    Args:
        batches: The draws, at least one batch.
        credits: How much a draw of each proposal counts.

    Returns:
        The draws with rescaled weights.
    """
    num_draws = [b.num_draws for b in batches]
    total = sum(n.sum() for n in num_draws)
    scale = total / sum(c * n.sum() for c, n in zip(credits, num_draws, strict=True))
    first = np.cumsum([0, *(len(n) for n in num_draws)])
    with np.errstate(divide="ignore"):
        log_weights = [b.log_weights + np.log(c * scale) for b, c in zip(batches, credits, strict=True)]
    return Fresh(
        np.concatenate([b.draws.x for b in batches]),
        np.concatenate([b.log_likelihood for b in batches]),
        np.concatenate(log_weights),
        np.concatenate([b.draws.component + j for b, j in zip(batches, first, strict=False)]),
        np.concatenate(num_draws),
        join_derived([(len(b.log_prior), b.derived) for b in batches]),
    )
