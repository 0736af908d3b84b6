"""Density estimators: ways to give weighted points a distribution that proposes for the sampler."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, final, no_type_check

import jax
import numpy as np
from jaxtyping import Array, Float

from nsflow.densities.density import Proposal
from nsflow.densities.gaussian import Gaussian
from nsflow.densities.mixture import Mixture
from nsflow.densities.pushforward import Pushforward
from nsflow.densities.wide import Wide
from nsflow.flow import flow
from nsflow.flow.flow import Flow
from nsflow.flow.training import Training
from nsflow.importance.weights import effective_sample_size
from nsflow.numerics.arguments import instance, integer, require_key, require_points, settle, several, truth
from nsflow.numerics.storable import storable

COUNTS = several(integer(1, 10**5), "at least one positive integer", bool)


class AbstractEstimator(ABC):
    """A way to fit a density; `nsflow.run(..., proposal=...)` takes any.

    Example:
        A normal that is twice too wide:

        >>> class Broad(AbstractEstimator):
        ...     def fit(self, key, points, log_weights):
        ...         gaussian = Gaussian.fit(points, log_weights)
        ...         return Gaussian(gaussian.mean, 2 * gaussian.scale)
        >>> Broad().fit(jax.random.key(0), np.random.default_rng(0).normal(size=(100, 2)), np.zeros(100)).num_dims
        2
    """

    @abstractmethod
    def fit(self, key: Array, points: Float[np.ndarray, "n d"], log_weights: Float[np.ndarray, " n"]) -> Proposal:
        """Fit a density.

        Args:
            key: JAX random key.
            points: Points, shape ``(n, d)``.
            log_weights: Their log-weights in nats up to a constant, shape ``(n,)``.

        Returns:
            An object with ``sample_and_log_prob(key, n)`` and ``log_prob(x)``, here ``sample(key, n)`` too.
        """


@no_type_check  # its own messages come before a run-time checker's
@final
@dataclass(frozen=True)
class GaussianEstimator(AbstractEstimator):
    """One normal with the points' mean and covariance."""

    def fit(self, key: Array, points: Float[np.ndarray, "n d"], log_weights: Float[np.ndarray, " n"]) -> Gaussian:
        """Fit a density; see :meth:`AbstractEstimator.fit`."""
        key, points, log_weights = _given("GaussianEstimator", key, points, log_weights)
        return Gaussian.fit(points, log_weights)


@no_type_check  # its own messages come before a run-time checker's
@final
@dataclass(frozen=True)
class GaussianMixtureEstimator(AbstractEstimator):
    """Mixture of normals, by scikit-learn's expectation maximisation.

    Args:
        num_components: Numbers of normals to try; that of the best Bayesian information criterion is kept.

    Example:
        >>> two = np.random.default_rng(0).normal([[-5.0], [5.0]], size=(2, 500)).reshape(-1, 1)
        >>> mixture = GaussianMixtureEstimator().fit(jax.random.key(0), two, np.zeros(1000))
        >>> len(mixture.components)
        2
    """

    num_components: tuple[int, ...] = (1, 2, 4, 8, 16, 32)

    def __post_init__(self) -> None:
        """Refuse numbers that no mixture could have."""
        settle(self, {"num_components": COUNTS}, "GaussianMixtureEstimator.")

    def fit(self, key: Array, points: Float[np.ndarray, "n d"], log_weights: Float[np.ndarray, " n"]) -> Mixture:
        """Fit a density; see :meth:`AbstractEstimator.fit`."""
        key, points, log_weights = _given("GaussianMixtureEstimator", key, points, log_weights)
        try:
            from sklearn.mixture import GaussianMixture
        except ImportError as error:
            raise ImportError(
                "`GaussianMixtureEstimator` needs scikit-learn: pip install 'nsflow[densities]'."
            ) from error
        rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
        whole = Gaussian.fit(points, log_weights)
        white = whole.whiten(resample(rng, points, log_weights))
        seed = int(rng.integers(2**31))
        num_distinct = len(np.unique(white, axis=0))
        sizes = [k for k in self.num_components if k * (white.shape[1] + 1) <= len(white) and k <= num_distinct]
        fits = [GaussianMixture(k, reg_covar=1e-4, random_state=seed).fit(white) for k in sizes or [1]]
        best: Any = min(fits, key=lambda fitted: fitted.bic(white))
        scales = whole.scale @ np.linalg.cholesky(best.covariances_)
        # Cholesky factors multiply to a Cholesky factor.
        normals = [Gaussian(mean, scale) for mean, scale in zip(whole.forward(best.means_), scales, strict=True)]
        weights = best.weights_ / np.sum(best.weights_)
        return Mixture(tuple(normals), tuple(weights.tolist()))


@no_type_check  # its own messages come before a run-time checker's
@final
@dataclass(frozen=True)
class KernelEstimator(AbstractEstimator):
    """Kernel density estimate with one normal kernel on each point, by SciPy.

    Args:
        max_centres: Largest number of kernels; of more points a resample is taken.
    """

    max_centres: int = 5000

    def __post_init__(self) -> None:
        """Refuse a number that no estimate could have."""
        settle(self, {"max_centres": integer(2)}, "KernelEstimator.")

    def fit(
        self, key: Array, points: Float[np.ndarray, "n d"], log_weights: Float[np.ndarray, " n"]
    ) -> "KernelDensity":
        """Fit a density; see :meth:`AbstractEstimator.fit`."""
        key, points, log_weights = _given("KernelEstimator", key, points, log_weights)
        rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
        centres, weights = points, np.exp(log_weights - np.max(log_weights))
        if len(points) > self.max_centres:
            centres = resample(rng, points, log_weights, self.max_centres)
            weights = np.ones(len(centres))
        return KernelDensity(centres, weights)


@storable("kernel-density")
@final
@dataclass(frozen=True)
class KernelDensity:
    """Kernel density estimate as a proposal.

    Args:
        centres: Centres of the normals, shape ``(n, d)``.
        weights: Their weights up to a factor, shape ``(n,)``.
    """

    centres: Float[np.ndarray, "n d"]
    weights: Float[np.ndarray, " n"]

    @cached_property
    def kernels(self) -> Any:
        """The estimate, a `scipy.stats.gaussian_kde`."""
        from scipy.stats import gaussian_kde

        return gaussian_kde(self.centres.T, weights=self.weights)

    def sample(self, key: Array, num_samples: int) -> np.ndarray:
        """Draw points, ``(n, d)``."""
        rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
        return self.kernels.resample(num_samples, rng).T

    def sample_and_log_prob(self, key: Array, num_samples: int) -> tuple[np.ndarray, np.ndarray]:
        """Draw points, ``(n, d)``, with their log-density in nats."""
        x = self.sample(key, num_samples)
        return x, self.log_prob(x)

    def log_prob(self, x: Float[np.ndarray, "n d"]) -> np.ndarray:
        """Log-density in nats, shape ``(n,)``."""
        return self.kernels.logpdf(x.T)


@no_type_check  # its own messages come before a run-time checker's
@final
@dataclass(frozen=True)
class FlowEstimator(AbstractEstimator):
    """A continuous normalising flow, by flow matching or any other objective of :class:`nsflow.Training`.

    Args:
        training: How to train.
        wide: Whether to draw from a base of three widths, as the sampler does by default: weights have lighter tails.
    """

    training: Training = field(default_factory=Training)
    wide: bool = True

    def __post_init__(self) -> None:
        """Refuse what is no training."""
        settle(self, {"training": instance(Training, "an nsflow.Training"), "wide": truth}, "FlowEstimator.")

    def fit(
        self, key: Array, points: Float[np.ndarray, "n d"], log_weights: Float[np.ndarray, " n"]
    ) -> Flow | Pushforward | Wide:
        """Fit a density; see :meth:`AbstractEstimator.fit`."""
        key, points, log_weights = _given("FlowEstimator", key, points, log_weights)
        fitted, _ = flow.fit(key, points, log_weights, training=self.training)
        return Wide(fitted) if self.wide and isinstance(fitted, Flow) else fitted


def _given(owner: str, key: Any, points: Any, log_weights: Any) -> tuple[Array, np.ndarray, np.ndarray]:
    """The arguments of a fit, checked."""
    key, (points, log_weights) = require_key(owner, key), require_points(owner, points, log_weights)
    if not np.any(log_weights > -np.inf):
        raise ValueError(f"`{owner}` expected at least one point of positive weight; got {len(points)} without any.")
    return key, points, log_weights


def resample(
    rng: np.random.Generator,
    points: Float[np.ndarray, "n d"],
    log_weights: Float[np.ndarray, " n"],
    num_samples: int | None = None,
) -> Float[np.ndarray, "m d"]:
    """Equally weighted points, for estimators that take no weights.

    Args:
        rng: Source of random numbers.
        points: Points, shape ``(n, d)``.
        log_weights: Their log-weights in nats up to a constant.
        num_samples: How many; the effective sample size, rounded up, if left out.

    Returns:
        A systematic resample in random order.
    """
    weights = np.exp(log_weights - np.max(log_weights))
    num_samples = num_samples or int(np.ceil(effective_sample_size(log_weights)))
    comb = (np.arange(num_samples) + rng.uniform()) / num_samples
    chosen = np.searchsorted(np.cumsum(weights) / np.sum(weights), comb)
    return rng.permutation(points[np.minimum(chosen, len(points) - 1)])
