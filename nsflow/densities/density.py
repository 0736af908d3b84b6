"""The contract of a density that proposes points."""

from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Array, Float


@runtime_checkable
class Proposal(Protocol):
    """Anything that draws latent points and knows their density; a :class:`nsflow.Flow` is one."""

    def sample_and_log_prob(self, key: Array, num_samples: int) -> tuple[Any, Any]:
        """Draw points, ``(n, d)``, with their log-density in nats; NaN marks a draw that its density disowns."""
        ...

    def log_prob(self, x: Any) -> Any:
        """Log-density in nats, shape ``(n,)``; NaN where `sample_and_log_prob` would disown the point."""
        ...


def log_prob(proposal: Proposal, x: Float[np.ndarray, "n d"]) -> Float[np.ndarray, " n"]:
    """Log-density of one component as part of a mixture, in nats: -inf where it disowns the point."""
    log_q = np.asarray(proposal.log_prob(x), np.float64)
    return np.where(np.isnan(log_q), -np.inf, log_q)
