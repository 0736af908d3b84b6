"""Score matching: fields that are taught the gradient of the log-density of blurred data."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, final

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Float

from nsflow.flow.objective import AbstractFlowObjective, stratified
from nsflow.flow.path import AbstractPath
from nsflow.numerics.arguments import TIMES, integer, part, settle
from nsflow.numerics.storable import storable

Field = Callable[[Array, Array], Array]


def score(noise: Field, path: AbstractPath) -> Field:
    r"""Score of the points on a path, :math:`\nabla \log p_t(x) = -\hat x_0(t, x) / \sigma(t)`.

    Args:
        noise: Mean of :math:`x_0` given a point, called as ``noise(t, x)``.
        path: The path.

    Returns:
        The score, called as ``score(t, x)`` where the path's sigma is not zero.

    Example:
        >>> from nsflow.flow.path import LinearPath
        >>> score(lambda t, x: x, LinearPath())(jnp.array(0.5), jnp.ones(2)).tolist()
        [-2.0, -2.0]

    References:
        Song et al. (2021), *Score-Based Generative Modeling through Stochastic Differential Equations*, Eq. 7.
    """
    return lambda t, x: -noise(t, x) / path.sigma(t)


def mean_noise(score: Field, path: AbstractPath) -> Field:
    r"""Mean noise of a score that is given, :math:`\hat x_0(t, x) = -\sigma(t)\,\nabla \log p_t(x)`.

    Args:
        score: Score of the points on the path, called as ``score(t, x)``.
        path: The path.

    Returns:
        The mean noise, called as ``noise(t, x)``, from which :meth:`nsflow.flow.AbstractPath.velocity_from_noise` has
        the velocity.

    Example:
        >>> from nsflow.flow.path import LinearPath
        >>> mean_noise(lambda t, x: -x, LinearPath())(jnp.array(0.5), jnp.ones(2)).tolist()
        [0.5, 0.5]
    """
    return lambda t, x: -path.sigma(t) * score(t, x)


# ------------------------------------------------------------- weightings of the noise scales


class AbstractWeighting(ABC):
    """How much the squared error of the score counts at each time."""

    @abstractmethod
    def __call__(self, path: AbstractPath, t: Float[Array, ""]) -> Float[Array, ""]:
        """The weight lambda(t)."""


@final
@dataclass(frozen=True)
class NoiseVariance(AbstractWeighting):
    r""":math:`\lambda = \sigma^2`: all noise scales count alike, and the loss is that of the noise.

    References:
        Song & Ermon (2019), *Generative Modeling by Estimating Gradients of the Data Distribution*, Eq. 6.
    """

    def __call__(self, path: AbstractPath, t: Float[Array, ""]) -> Float[Array, ""]:
        """The weight."""
        return path.sigma(t) ** 2


@final
@dataclass(frozen=True)
class LikelihoodWeighting(AbstractWeighting):
    r""":math:`\lambda = g^2`: the loss bounds the log-likelihood of the diffusion.

    References:
        Song et al. (2021), *Maximum Likelihood Training of Score-Based Diffusion Models*, Theorem 1.
    """

    def __call__(self, path: AbstractPath, t: Float[Array, ""]) -> Float[Array, ""]:
        """The weight."""
        return path.diffusion(t) ** 2


@final
@dataclass(frozen=True)
class Unweighted(AbstractWeighting):
    """The squared error of the score itself; small noise scales dominate."""

    def __call__(self, path: AbstractPath, t: Float[Array, ""]) -> Float[Array, ""]:  # noqa: ARG002
        """The weight."""
        return jnp.ones_like(t)


# ------------------------------------------------------------- losses of one point


def denoising_score_matching(
    noise: Field,
    path: AbstractPath,
    weighting: AbstractWeighting,
    t: Float[Array, ""],
    x0: Float[Array, " d"],
    x1: Float[Array, " d"],
) -> Float[Array, ""]:
    r"""Denoising score matching loss of one pair and one time.

    .. math::
        \ell = \frac{\lambda(t)}{2} \Bigl\lVert s(t, x_t) + \frac{x_0}{\sigma} \Bigr\rVert^2
             = \frac{\lambda(t)}{2\sigma^2} \lVert \hat x_0(t, x_t) - x_0 \rVert^2 .

    Args:
        noise: Field, called as ``noise(t, x)``; the score is minus it over sigma.
        path: The path between base and data.
        weighting: Weight of each noise scale.
        t: Time in (0, 1).
        x0: Draw of N(0, I).
        x1: Data point.

    Returns:
        The loss, a scalar.

    Example:
        >>> from nsflow.flow.path import LinearPath
        >>> x0, x1 = jnp.ones(2), jnp.zeros(2)
        >>> float(denoising_score_matching(lambda t, x: 0 * x, LinearPath(), NoiseVariance(), jnp.array(0.5), x0, x1))
        1.0

    References:
        Vincent (2011), *A Connection Between Score Matching and Denoising Autoencoders*, Eq. 10.
    """
    x_t, _ = path.sample(t, x0, x1)
    return 0.5 * weighting(path, t) / path.sigma(t) ** 2 * jnp.sum((noise(t, x_t) - x0) ** 2)


class AbstractDivergence(ABC):
    """An estimate of the divergence of a vector field at one point."""

    @abstractmethod
    def __call__(self, key: Array, field: Callable[[Array], Array], x: Float[Array, " d"]) -> Float[Array, ""]:
        """The divergence."""


@final
@dataclass(frozen=True)
class ExactDivergence(AbstractDivergence):
    """Trace of the Jacobian, by d tangents."""

    def __call__(self, key: Array, field: Callable[[Array], Array], x: Float[Array, " d"]) -> Float[Array, ""]:  # noqa: ARG002
        """The divergence."""
        return jnp.trace(jax.jacfwd(field)(x))


@final
@dataclass(frozen=True)
class SlicedDivergence(AbstractDivergence):
    r"""Unbiased estimate along random directions, :math:`\frac1m \sum_k v_k^T (\partial s / \partial x)\, v_k`.

    Args:
        num_slices: Number m of directions of random signs.

    References:
        Song et al. (2019), *Sliced Score Matching*, Eq. 8; Hutchinson (1990) for the signs.
    """

    num_slices: int = 1

    def __post_init__(self) -> None:
        """Refuse values of another kind, or out of range."""
        settle(self, {"num_slices": integer(1, 10**5)}, "SlicedDivergence.")

    def __call__(self, key: Array, field: Callable[[Array], Array], x: Float[Array, " d"]) -> Float[Array, ""]:
        """The estimate."""
        directions = jax.random.rademacher(key, (self.num_slices, *x.shape), x.dtype)
        return jnp.mean(jax.vmap(lambda v: v @ jax.jvp(field, (x,), (v,))[1])(directions))


def implicit_score_matching(
    noise: Field,
    path: AbstractPath,
    weighting: AbstractWeighting,
    divergence: AbstractDivergence,
    key: Array,
    t: Float[Array, ""],
    x_t: Float[Array, " d"],
) -> Float[Array, ""]:
    r"""Implicit score matching loss at one point of the path.

    .. math:: \ell = \lambda(t) \Bigl( \tfrac12 \lVert s(t, x_t) \rVert^2 + \nabla \cdot s(t, x_t) \Bigr) .

    It needs no pair: its mean differs from that of :func:`denoising_score_matching` by
    :math:`\lambda\, d / (2 \sigma^2)`, whatever the field.

    Args:
        noise: Field, called as ``noise(t, x)``; the score is minus it over sigma.
        path: The path, for its sigma.
        weighting: Weight of each noise scale.
        divergence: How the divergence is found.
        key: JAX random key for it.
        t: Time in (0, 1).
        x_t: Point on the path.

    Returns:
        The loss, a scalar.

    References:
        Hyvarinen (2005), *Estimation of Non-Normalized Statistical Models by Score Matching*, Eq. 4.
    """
    at_t = lambda x: score(noise, path)(t, x)  # noqa: E731
    return weighting(path, t) * (0.5 * jnp.sum(at_t(x_t) ** 2) + divergence(key, at_t, x_t))


# ------------------------------------------------------------- objectives


class AbstractScoreObjective(AbstractFlowObjective):
    """An objective of the noise; its velocity is that of the probability-flow ODE."""

    times: tuple[float, float]

    def init(self, key: Array, num_dims: int, architecture: Any) -> Any:
        """Untrained noise."""
        return architecture.init_noise(key, num_dims, self.path)

    def velocity(self, field: Any) -> Any:
        r"""Velocity of the probability-flow ODE, :math:`v = \mu - \tfrac12 g^2 \nabla \log p_t` backwards in time.

        References:
            Song et al. (2021), Eq. 13.
        """
        return Partial(partial(_probability_flow, self.path), field)

    def _draw(self, key: Array, rows: Array) -> tuple[Array, Array]:
        key_t, key_order, key_x0 = jax.random.split(key, 3)
        first, last = self.times
        t = first + (last - first) * stratified(key_t, key_order, len(rows))
        return t, jax.random.normal(key_x0, rows.shape, rows.dtype)


@storable("probability-flow")
def _probability_flow(path: AbstractPath, noise: Field, t: Array, x: Array) -> Array:
    return path.velocity_from_noise(t, x, noise(t, x))


@final
@dataclass(frozen=True)
class DenoisingScoreMatching(AbstractScoreObjective):
    """Denoising score matching over a range of noise scales; rows are data points.

    Args:
        path: The path between N(0, I) and data.
        weighting: Weight of each noise scale.
        times: Smallest and largest time of the path, between which the noise scales lie.
    """

    path: AbstractPath
    weighting: AbstractWeighting = NoiseVariance()
    times: tuple[float, float] = (0.01, 0.99)

    def __post_init__(self) -> None:
        """Refuse values of another kind, or out of range."""
        settle(
            self,
            {"path": part(AbstractPath), "weighting": part(AbstractWeighting), "times": TIMES},
            "DenoisingScoreMatching.",
        )

    def __call__(self, key: Array, field: Field, rows: Float[Array, "n d"]) -> Float[Array, ""]:
        """Mean of `denoising_score_matching` over the minibatch."""
        t, x0 = self._draw(key, rows)
        loss = jax.vmap(denoising_score_matching, (None, None, None, 0, 0, 0))
        return jnp.mean(loss(field, self.path, self.weighting, t, x0, rows))


@final
@dataclass(frozen=True)
class ImplicitScoreMatching(AbstractScoreObjective):
    """Implicit score matching over a range of noise scales; rows are data points.

    Args:
        path: The path between N(0, I) and data.
        weighting: Weight of each noise scale.
        divergence: Exact, at d tangents a point, or sliced.
        times: Smallest and largest time of the path, between which the noise scales lie.
    """

    path: AbstractPath
    weighting: AbstractWeighting = NoiseVariance()
    divergence: AbstractDivergence = ExactDivergence()
    times: tuple[float, float] = (0.01, 0.99)

    def __post_init__(self) -> None:
        """Refuse values of another kind, or out of range."""
        settle(
            self,
            {
                "path": part(AbstractPath),
                "weighting": part(AbstractWeighting),
                "divergence": part(AbstractDivergence),
                "times": TIMES,
            },
            "ImplicitScoreMatching.",
        )

    def __call__(self, key: Array, field: Field, rows: Float[Array, "n d"]) -> Float[Array, ""]:
        """Mean of `implicit_score_matching` over the minibatch."""
        t, x0 = self._draw(key, rows)
        x_t, _ = jax.vmap(self.path.sample)(t, x0, rows)
        keys = jax.random.split(jax.random.fold_in(key, 1), len(rows))
        loss = jax.vmap(implicit_score_matching, (None, None, None, None, 0, 0, 0))
        return jnp.mean(loss(field, self.path, self.weighting, self.divergence, keys, t, x_t))
