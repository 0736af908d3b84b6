"""A prior given as a transform of the unit cube, JAX or plain numpy."""

import copy
from collections.abc import Callable, Collection, Mapping
from typing import Any, final

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtr
from jaxtyping import Array, Float
from scipy import special

from nsflow.numerics.errors import LikelihoodError, describe, same_type
from nsflow.prior.parameter import column_names
from nsflow.prior.periodic import LATENT_LIMIT
from nsflow.prior.quantile import SMALLEST_COMPLEMENT, SMALLEST_TAIL, standard_normal_log_prob

NUM_TRIED = 64  # points of the cube at which a transform is tried; its user waits for them


@final
class Cube:
    r"""Parameters :math:`x = T(u)` with u uniform in the unit cube; the latent vector is :math:`z = \Phi^{-1}(u)`.

    A coordinate on a circle is turned by its phase, :math:`u = (\Phi(z) + \phi) \bmod 1`.

    Args:
        prior_transform: Function of one point u, shape ``(d,)``, to ``d`` numbers: an array, or a dict of parameters.
        names: The d names; of a dict, those of its flattened elements.
        periodic: Those of the names whose coordinate of the cube, the one at the same place, is a circle.

    Raises:
        TypeError: If `prior_transform` is not a function, or does not return real numbers.
        ValueError: If its output does not fit the names, is not finite at u = 1/2, ignores u, or is
            random; or if a periodic parameter ignores its coordinate.
        Exception: What it raises, with the point in the message.

    Example:
        >>> from nsflow.numerics.precision import float64
        >>> cube = float64(Cube)(lambda u: np.exp(np.asarray(u)), ("a", "b"))
        >>> cube.traceable, cube.shapes
        (False, {'a': (), 'b': ()})
    """

    def __init__(self, prior_transform: Any, names: tuple[str, ...], periodic: Collection[str] = ()) -> None:
        if not callable(prior_transform):
            raise TypeError(
                f"`Prior.from_transform` expected a function of the unit cube; got {prior_transform!r}. "
                "Give a function of one array u of shape (d,)."
            )
        self.num_dims = len(names)
        self.names = names
        self.is_periodic = np.array([name in periodic for name in names])
        self.phases = np.zeros(self.num_dims)
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._transform: Callable[[Any], Any] = prior_transform
        # A copy: functions that scale u in place are common, and must not change the caller's.
        self._as_argument: Callable[[Any], Any] = np.array
        points = _spread(self.num_dims)
        tried = self._try(points)
        self._check(tried)
        self.traceable = self._is_traced_alike(points, tried)

    def forward(self, z: Any) -> dict[str, Any]:
        """Map latent vectors to parameters: by JAX, or all by numpy, as JAX compiles for each number of points."""
        if self.traceable:
            return jax.vmap(self._named)(self._place(z, jnp, ndtr))
        try:
            return self._stack([self._call(row) for row in self._place(np.asarray(z), np, special.ndtr)])
        except Exception as error:  # in the middle of a run, which returns what it has
            raise LikelihoodError(str(error)) from error.__cause__ or error

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

    @property
    def latent_limits(self) -> tuple[np.ndarray, np.ndarray]:
        """Where u can be told from 0 and from 1: numbers next to 0 can be, and those next to 1 cannot."""
        return np.where(self.is_periodic, -LATENT_LIMIT, -np.inf), np.full(self.num_dims, LATENT_LIMIT)

    def turned(self, phases: Float[np.ndarray, " d"]) -> "Cube":
        """The same prior with other phases."""
        cube = copy.copy(self)
        cube.phases = np.where(self.is_periodic, phases % 1.0, 0.0)
        return cube

    def _place(self, z: Any, xp: Any, ndtr: Callable[[Any], Any]) -> Any:
        """Places in the cube."""
        u = ndtr(z)
        if self.is_periodic.any():
            u = xp.where(self.is_periodic, xp.mod(u + self.phases, 1.0), u)
        # u = 0 and u = 1 are edges of the support, mostly infinite ones.
        return xp.clip(u, SMALLEST_TAIL, 1 - SMALLEST_COMPLEMENT)

    def _named(self, u: Any) -> dict[str, Array]:
        """Call the function on one point in JAX; an array it returns is split into scalars."""
        output = self._transform(u)
        if isinstance(output, Mapping):
            return {name: jnp.asarray(value, jnp.float64) for name, value in output.items()}
        return dict(zip(self.names, jnp.asarray(output, jnp.float64), strict=True))

    def _call(self, u: np.ndarray) -> dict[str, Any]:
        """Call the function on one point in numpy, and check what it returns."""
        try:
            output = self._transform(self._as_argument(u))
        except Exception as error:
            raise same_type(
                error,
                "`Prior.from_transform` expected `prior_transform` to map every point u inside the unit cube; at "
                f"u = {_show(u)} it raised {describe(error)}. Mend the function there.",
            ) from error
        if isinstance(output, Mapping):
            if not all(isinstance(name, str) for name in output):
                raise TypeError(
                    "`Prior.from_transform` expected `prior_transform` to return strings as names of parameters; got "
                    f"{list(output)}. Quote them."
                )
            values = {name: self._numbers(value, f" of {name!r}") for name, value in output.items()}
            shapes = {name: value.shape for name, value in values.items()}
            if self.shapes and shapes != self.shapes:
                raise ValueError(
                    f"`Prior.from_transform` expected `prior_transform` to return parameters of the shapes "
                    f"{self.shapes} at every point; got {shapes} at u = {_show(u)}. Return the same ones everywhere."
                )
            return values
        array = self._numbers(output, "")
        if array.shape != (self.num_dims,):
            raise ValueError(
                f"`Prior.from_transform` expected `prior_transform` to return shape ({self.num_dims},), one number "
                f"for each of the names {self.names}; got shape {array.shape}. Mend the function or the names."
            )
        return dict(zip(self.names, array, strict=True))

    def _numbers(self, value: Any, of: str) -> np.ndarray:
        try:
            array = np.asarray(np.ma.filled(value.astype(float), np.nan) if np.ma.isMaskedArray(value) else value)
        except ValueError:  # lists of unequal lengths
            array = np.array(None)
        if array.dtype.kind not in "biuf":
            raise TypeError(
                f"`Prior.from_transform` expected `prior_transform` to return real numbers{of}, an array of shape "
                f"({self.num_dims},) or a dict of the parameters {self.names}; got {value!r}. Return them."
            )
        return array.astype(np.float64)

    def _try(self, points: np.ndarray) -> dict[str, np.ndarray]:
        """Call the function at some points; with JAX's arrays if it works with these alone, as ``u.at[0].set`` does."""
        try:
            first = self._call(points[0])
        except Exception:
            if not _is_traceable(self._transform, self.num_dims):
                raise
            self._as_argument = jnp.array
            first = self._call(points[0])
        self.shapes = {name: value.shape for name, value in first.items()}
        return self._stack([first, *(self._call(u) for u in points[1:])])

    def _stack(self, rows: list[dict[str, Any]]) -> dict[str, np.ndarray]:
        return {
            name: np.array([row[name] for row in rows]).reshape((len(rows), *shape))
            for name, shape in self.shapes.items()
        }

    def _is_traced_alike(self, points: np.ndarray, tried: dict[str, np.ndarray]) -> bool:
        """Whether JAX can trace the function, and gets the same numbers.

        After ``v = u; v *= 10`` numpy has changed u as well, and JAX has not.
        """
        if not _is_traceable(self._transform, self.num_dims):
            return False
        try:
            traced = jax.jit(jax.vmap(self._named))(points)
        except Exception:
            return False
        # Where values step, rounding may tell a few points apart.
        same = [np.isclose(traced[name], values, 1e-4, 1e-8, equal_nan=True) for name, values in tried.items()]
        return bool(np.mean([np.mean(each) for each in same]) > 0.9)

    def _check(self, tried: dict[str, np.ndarray]) -> None:
        columns = column_names(self.shapes)
        if sorted(columns) != sorted(self.names):
            raise ValueError(
                f"`Prior.from_transform` expected `prior_transform` to return the parameters {self.names}; "
                f"got a dict that flattens to {columns}. Give these as names, or return the others from the likelihood."
            )
        middle = {name: value[0] for name, value in tried.items()}
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
        if all(np.all(value == value[0]) for value in tried.values()):
            raise ValueError(
                f"`Prior.from_transform` expected parameters that change with u; got {middle} at {NUM_TRIED} points of "
                "the cube. Compute the parameters from u."
            )
        for name in np.array(self.names)[self.is_periodic]:
            self._check_circle(str(name))

    def _check_circle(self, name: str) -> None:
        index = self.names.index(name)
        places = np.full((4, self.num_dims), 0.5)
        places[:, index] = (0.1, 0.3, 0.5, 0.9)
        values = self._stack([self._call(u) for u in places])
        table = np.concatenate([value.reshape(len(places), -1) for value in values.values()], axis=1)
        if np.ptp(table[:, column_names(self.shapes).index(name)]) == 0:
            raise ValueError(
                f"`Prior.from_transform` expected the names in the order of the cube's coordinates, since {name!r} is "
                f"periodic; it does not change with u[{index}]. Mend the order of `names`."
            )

    def _one_way(self, method: str, params: dict[str, Array]) -> ValueError:
        return ValueError(
            f"`Prior.{method}` expected a prior made of distributions; got one made by `from_transform`, which cannot "
            f"tell the density or the cube position of {list(params)}. Work in the latent space "
            "(`forward`, `latent_log_prob`), or give distributions."
        )


def _spread(num_dims: int) -> np.ndarray:
    """Points of the cube: its middle, then some at which each coordinate takes places from 0.001 to 0.999."""
    z, rng = np.linspace(-3, 3, NUM_TRIED - 1), np.random.default_rng(0)
    places = np.stack([rng.permutation(special.ndtr(z)) for _ in range(num_dims)], axis=1)
    return np.vstack([np.full(num_dims, 0.5), places])


def _is_traceable(prior_transform: Callable[[Any], Any], num_dims: int) -> bool:
    """Whether JAX can trace the function; anything it raises here it raises again, or not, when called with numpy."""
    try:
        jax.eval_shape(prior_transform, jax.ShapeDtypeStruct((num_dims,), jnp.float64))
    except Exception:
        return False
    return True


def _show(u: np.ndarray) -> str:
    return np.array2string(u, separator=", ", threshold=12)
