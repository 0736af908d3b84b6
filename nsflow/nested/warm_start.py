"""Samples to start from: what another run or another model's posterior may tell about this one."""

import math
from collections.abc import Mapping
from hashlib import blake2b
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from nsflow.numerics.arguments import require_array, shown
from nsflow.prior.prior import Prior
from nsflow.results.results import Results

FARTHEST = 1e100  # of a latent point: its square is a number


class Start(NamedTuple):
    """Weighted samples of a prior's parameters."""

    samples: Float[np.ndarray, "n k"]  # a column for each of the prior's names
    log_weights: Float[np.ndarray, " n"]  # nats, up to a constant

    def latent(self, prior: Prior) -> tuple[Float[np.ndarray, "n d"], Float[np.ndarray, " n"]]:
        """Map the samples to latent points; those outside the prior are left out.

        Args:
            prior: The prior.

        Returns:
            ``(x, log_weights)``.

        Raises:
            ValueError: If hardly any is inside.
        """
        x = np.asarray(prior.inverse(_params(self.samples, prior)), np.float64)
        inside = np.all(np.abs(x) < FARTHEST, axis=1) & (self.log_weights > -np.inf)
        # What lies beyond an edge is mapped to the edge, far out in latent space, and does not come back.
        back = prior.flatten(prior.forward(np.where(inside[:, None], x, 0.0)))
        inside &= np.all(np.isclose(back, self.samples, 1e-6, 1e-9), axis=1)
        num_distinct, least = len(np.unique(x[inside], axis=0)), 10 * (1 + prior.num_dims)
        if num_distinct < least:
            raise ValueError(
                f"`start` expected at least {least} distinct samples of positive weight inside the prior; got "
                f"{num_distinct} of {len(x)}. Give more of them, or check their order and units: {prior.names}."
            )
        return x[inside], self.log_weights[inside]

    def digest(self) -> str:
        """What tells these samples from others."""
        data = np.ascontiguousarray(self.samples).tobytes() + np.ascontiguousarray(self.log_weights).tobytes()
        return blake2b(data, digest_size=16).hexdigest()


def as_start(samples: Any, prior: Prior) -> Start:
    """Return samples as an array with weights.

    Args:
        samples: A result, whose weights count; or equally weighted samples: a dict of the prior's parameters, each of
            shape ``(n, *shape)``, or an array, shape ``(n, k)``, with a column for each of the prior's names.
        prior: The prior.

    Returns:
        The samples.

    Raises:
        TypeError: If they are something else, or no real numbers.
        ValueError: If parameters are missing, or shapes are wrong.

    Example:
        >>> import numpyro.distributions as dist
        >>> prior = Prior({"a": dist.Normal(0, 1)})
        >>> as_start({"a": np.zeros(5)}, prior).samples.shape
        (5, 1)
    """
    if isinstance(samples, Results):
        missing = [name for name in prior.names if name not in samples.names]
        if missing:
            raise ValueError(
                f"`start` expected a result with the columns {prior.names}; {missing} are missing. Give samples of the "
                "same parameters."
            )
        columns = [samples.names.index(name) for name in prior.names]
        return Start(samples.samples[:, columns], samples.log_weights)
    if isinstance(samples, Mapping):
        if set(samples) != set(prior.shapes):
            raise ValueError(f"`start` expected samples of {sorted(prior.shapes)}; got {shown(list(samples))}.")
        values = {name: require_array(f"`start` for its {name!r}", samples[name]) for name in prior.shapes}
        if any(value.shape != (len(value), *prior.shapes[n]) for n, value in values.items() if value.ndim) or any(
            value.ndim == 0 or len(value) != len(next(iter(values.values()))) for value in values.values()
        ):
            shapes = {name: value.shape for name, value in values.items()}
            raise ValueError(f"`start` expected arrays of n samples of {dict(prior.shapes)}; got shapes {shapes}.")
        array = np.concatenate(
            [value.reshape(len(value), math.prod(value.shape[1:])) for value in values.values()], axis=1
        )
    elif isinstance(samples, np.ndarray | jax.Array):
        array = require_array("`start`", samples)
        if array.ndim != 2 or array.shape[1] != len(prior.names):
            raise ValueError(
                f"`start` expected an array of shape (n, {len(prior.names)}), a column for each of {prior.names}; got "
                f"{array.shape}."
            )
    else:
        raise TypeError(f"`start` expected an nsflow.Results, a dict or an array of samples; got {shown(samples)}.")
    return Start(array, np.zeros(len(array)))


def _params(samples: np.ndarray, prior: Prior) -> dict[str, np.ndarray]:
    """Undo `Prior.flatten`."""
    params, first = {}, 0
    for name, shape in prior.shapes.items():
        size = int(np.prod(shape, dtype=int))
        params[name] = samples[:, first : first + size].reshape(len(samples), *shape)
        first += size
    return params
