"""Maximum likelihood: the flow's own log-density as its objective, the reference where it can be afforded."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from nsflow.densities.bases import Normal
from nsflow.flow.objective import AbstractFlowObjective
from nsflow.flow.ode import integrate
from nsflow.flow.path import AbstractPath
from nsflow.numerics.arguments import integer, part, settle


@final
@dataclass(frozen=True)
class MaximumLikelihood(AbstractFlowObjective):
    r"""Mean of :math:`-\log q(x)` over the minibatch; rows are data points.

    .. math::
        -\log q(x) = -\log N(z; 0, I) - \log \left| \det \frac{\partial z}{\partial x} \right|,

    where K Runge-Kutta steps carry x back to z. Each point costs 4 K passes with d tangents and their gradient, where
    flow matching costs one pass and its gradient.

    Args:
        path: The path whose Gaussian velocity the network corrects, and whose width is the base's.
        num_steps: Number K of steps.

    References:
        Grathwohl et al. (2019), *FFJORD*, Eq. 4; here the density is that of the discrete map, by the whole Jacobian.
    """

    path: AbstractPath
    num_steps: int = 6

    def __post_init__(self) -> None:
        """Refuse values of another kind, or out of range."""
        settle(self, {"path": part(AbstractPath), "num_steps": integer(1, 10**6)}, "MaximumLikelihood.")

    def __call__(self, key: Array, field: Callable[[Array, Array], Array], rows: Float[Array, "n d"]) -> Array:  # noqa: ARG002
        """Mean over the minibatch, nats a dimension."""
        return -jnp.mean(jax.vmap(lambda x: self.log_prob(field, x))(rows)) / rows.shape[1]

    def log_prob(self, field: Callable[[Array, Array], Array], x: Float[Array, " d"]) -> Float[Array, ""]:
        """Log-density of one whitened point, nats."""
        pull = lambda x: integrate(field, x, self.num_steps, backwards=True) / self.path.width  # noqa: E731
        return Normal().log_prob(pull(x)) + jnp.linalg.slogdet(jax.jacfwd(pull)(x))[1]
