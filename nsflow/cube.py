"""A prior given as a transform of the unit cube, JAX or plain numpy."""

from collections.abc import Callable, Mapping
from typing import Any, final

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtr
from jaxtyping import Array, Float

from nsflow.parameter import column_names
from nsflow.quantile import SMALLEST_COMPLEMENT, SMALLEST_TAIL, standard_normal_log_prob


@final
class Cube:
    r"""Parameters :math:`x = T(u)` with u uniform in the unit cube; the latent vector is :math:`z = \Phi^{-1}(u)`.

    Args:
        prior_transform: Function of one point u, shape ``(d,)``, to ``d`` numbers: an array, or a dict of parameters.
        names: The d names; of a dict, those of its flattened elements.

    Raises:
        TypeError: If `prior_transform` is not a function.
        ValueError: If its output does not fit the names, is not finite at u = 1/2, ignores u, or is random.

    Example:
        >>> from nsflow.precision import float64
        >>> cube = float64(Cube)(lambda u: np.exp(np.asarray(u)), ("a", "b"))
        >>> cube.traceable, cube.shapes
        (False, {'a': (), 'b': ()})
    """

    def __init__(self, prior_transform: Any, names: tuple[str, ...]) -> None:
        if not callable(prior_transform):
            raise TypeError(
                f"`Prior.from_transform` expected a function of the unit cube; got {prior_transform!r}. "
                "Give a function of one array u of shape (d,)."
            )
        self.num_dims = len(names)
        self._names = names
        self._transform: Callable[[Any], Any] = prior_transform
        self.traceable = _is_traceable(prior_transform, self.num_dims)
        middle = self._call(np.full(self.num_dims, 0.5))
        self.shapes = {name: value.shape for name, value in middle.items()}
        self._check(middle)

    def forward(self, z: Float[Array, "n d"]) -> dict[str, Array]:
        """Map latent vectors to parameters."""
        # u = 0 and u = 1 are edges of the support, mostly infinite ones.
        u = jnp.clip(ndtr(z), SMALLEST_TAIL, 1 - SMALLEST_COMPLEMENT)
        if self.traceable:
            return jax.vmap(self._named)(u)
        rows = [self._call(row) for row in np.asarray(u)]
        return {
            name: jnp.asarray(np.array([row[name] for row in rows]).reshape((len(rows), *shape)))
            for name, shape in self.shapes.items()
        }

    def inverse(self, params: dict[str, Array]) -> Array:
        """Refuse: a transform has no known inverse."""
        raise self._one_way("inverse", params)

    def log_prob(self, params: dict[str, Array]) -> Array:
        """Refuse: the density of the parameters is not known."""
        raise self._one_way("log_prob", params)

    def latent_log_prob(self, z: Float[Array, "n d"]) -> Float[Array, " n"]:
        """Density of the latent vectors, in nats: the standard normal's."""
        return standard_normal_log_prob(z)

    def sample(self, key: Array, n: int) -> dict[str, Array]:
        """Draw parameters."""
        return self.forward(self.latent_sample(key, n))

    def latent_sample(self, key: Array, n: int) -> Float[Array, "n d"]:
        """Draw latent vectors."""
        return jax.random.normal(key, (n, self.num_dims))

    def _named(self, u: Any) -> dict[str, Array]:
        """Call the function on one point; an array it returns is split into scalars."""
        output = self._transform(u)
        if isinstance(output, Mapping):
            return {name: jnp.asarray(value, jnp.float64) for name, value in output.items()}
        array = jnp.asarray(output, jnp.float64)
        if array.shape != (self.num_dims,):
            raise ValueError(
                f"`Prior.from_transform` expected `prior_transform` to return shape ({self.num_dims},), one number "
                f"for each of the names {self._names}; got shape {array.shape}. Mend the function or the names."
            )
        return dict(zip(self._names, array, strict=True))

    def _call(self, u: np.ndarray) -> dict[str, np.ndarray]:
        # A copy: functions that scale u in place are common, and must not change the caller's.
        return {name: np.asarray(value) for name, value in self._named(u.copy()).items()}

    def _check(self, middle: dict[str, np.ndarray]) -> None:
        columns = column_names(self.shapes)
        if sorted(columns) != sorted(self._names):
            raise ValueError(
                f"`Prior.from_transform` expected `prior_transform` to return the parameters {self._names}; "
                f"got a dict that flattens to {columns}. Give these as names, or return the others from the likelihood."
            )
        if not all(np.all(np.isfinite(value)) for value in middle.values()):
            raise ValueError(
                f"`Prior.from_transform` expected finite parameters in the middle of the cube, u = 0.5; got {middle}. "
                "Check the function's scale and units."
            )
        again = self._call(np.full(self.num_dims, 0.5))
        if any(not np.array_equal(again[name], middle[name]) for name in middle):
            raise ValueError(
                f"`Prior.from_transform` expected the same parameters from the same u; got {middle}, then {again}. "
                "The function draws random numbers itself: compute the parameters from u alone."
            )
        elsewhere = self._call(np.linspace(0.2, 0.4, self.num_dims))
        if all(np.array_equal(elsewhere[name], middle[name]) for name in middle):
            raise ValueError(
                f"`Prior.from_transform` expected parameters that change with u; got {middle} at two points of the "
                "cube. Compute the parameters from u."
            )

    def _one_way(self, method: str, params: dict[str, Array]) -> ValueError:
        return ValueError(
            f"`Prior.{method}` expected a prior made of distributions; got one made by `from_transform`, which cannot "
            f"tell the density or the cube position of {list(params)}. Work in the latent space "
            "(`forward`, `latent_log_prob`), or give distributions."
        )


def _is_traceable(prior_transform: Callable[[Any], Any], num_dims: int) -> bool:
    """Whether JAX can trace the function; anything it raises here it raises again, or not, when called with numpy."""
    try:
        jax.eval_shape(prior_transform, jax.ShapeDtypeStruct((num_dims,), jnp.float64))
    except Exception:
        return False
    return True
