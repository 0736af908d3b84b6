"""Named parameters of a model: draws, densities, and the bijection to the latent space in which flows are trained."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Protocol, final, no_type_check, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float

from nsflow.numerics.arguments import require_array, require_count, require_key, shown
from nsflow.numerics.batching import draw_in_chunks, in_chunks
from nsflow.numerics.precision import float64
from nsflow.prior.conversion import as_parameter
from nsflow.prior.discrete import Discrete
from nsflow.prior.parameter import Joint, column_names
from nsflow.prior.transform import Cube

# Columns that anesthetic's nested samples own.
CHUNK = 512  # points mapped at once, so that one compiled shape serves every batch
RESERVED = ("logL", "logL_birth", "log_weights", "nlive", "insertion", "weights")

Params = Mapping[str, Any]


@runtime_checkable
class Map(Protocol):
    """Where a prior's values come from: `shapes` of the parameters and batched maps of all of them at once."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]: ...  # noqa: D102
    @property
    def num_dims(self) -> int: ...  # noqa: D102
    @property
    def traceable(self) -> bool: ...  # noqa: D102
    def forward(self, z: Array) -> dict[str, Array]: ...  # noqa: D102
    def inverse(self, params: dict[str, Array]) -> Array: ...  # noqa: D102
    def log_prob(self, params: dict[str, Array]) -> Array: ...  # noqa: D102
    def latent_log_prob(self, z: Array) -> Array: ...  # noqa: D102
    def sample(self, key: Array, n: int) -> dict[str, Array]: ...  # noqa: D102
    def latent_sample(self, key: Array, n: int) -> Array: ...  # noqa: D102


@final
class Prior:
    r"""Prior of named parameters, with a bijection between them and a latent vector :math:`z \in R^d`.

    Scalars are :math:`x = F^{-1}(\Phi(z))`, accurate in both tails to 1e-300, a multivariate normal is
    :math:`\mu + L z`, a Dirichlet distribution a stick that is broken: their latent prior *is* N(0, I), and hard edges
    vanish. Any other joint distribution uses the bijection of its support to :math:`R^d`, with

    .. math::
        \log p(z) = \log \pi(x(z)) + \log \left| \det \frac{\partial x}{\partial z} \right|.

    Every method takes one point or a batch with one leading axis or more, and works in float64. Priors are immutable.

    Args:
        distributions: Parameter name -> numpyro distribution (scalar, vector or joint) or frozen `scipy.stats`
            distribution, either of them in an :class:`nsflow.Periodic` where its ends meet. Distributions of single
            integers may be discrete. Parameters are independent of each other.
        labels: Labels of the columns for plots and files: a dict of some `names`, or a list of all, of strings such as
            ``r"$\alpha$"``; the names themselves if left out.

    Raises:
        TypeError: If `distributions` is not a mapping from strings to distributions, or `labels` not of strings.
        ValueError: If it is empty, a name cannot be a column of the result, or a distribution is improper, discrete
            but not of single numbers, has invalid arguments, or cannot be mapped to a latent vector; or if `labels`
            do not fit the names.

    Example:
        >>> import jax, numpyro.distributions as dist
        >>> prior = Prior({"a": dist.Uniform(-5, 5), "b": dist.Normal(0, 1).expand([2])})
        >>> prior.names, prior.num_dims
        (('a', 'b[0]', 'b[1]'), 3)
        >>> {name: value.shape for name, value in prior.sample(jax.random.key(0), 100).items()}
        {'a': (100,), 'b': (100, 2)}
    """

    __slots__ = ("_labels", "_made_by", "_map", "_names", "_run")
    _labels: tuple[str, ...]
    _made_by: tuple[Callable[..., "Prior"], tuple[Any, ...]]  # a function and its arguments, which can be pickled
    _map: Map
    _names: tuple[str, ...]
    _run: Mapping[str, Callable[..., Any]]

    @float64
    def __init__(self, distributions: object, labels: object = None) -> None:
        if not isinstance(distributions, Mapping):
            raise TypeError(
                f"`Prior` expected a dict of parameter names and distributions; got {shown(distributions)}. "
                "Write `Prior({'a': numpyro.distributions.Normal(0, 1)})`."
            )
        if not distributions:
            raise ValueError("`Prior` expected at least one parameter; got an empty dict. Give each parameter a prior.")
        for name, value in distributions.items():
            _check_name(name)
            _check_frozen(name, value)
        source = Joint({name: as_parameter(name, value) for name, value in distributions.items()})
        self._set(source, labels, (Prior, (dict(distributions), labels)))

    def _set(self, source: Map, labels: object, made_by: tuple[Callable[..., "Prior"], tuple[Any, ...]]) -> None:
        names = column_names(source.shapes)
        _check_columns(names)
        object.__setattr__(self, "_labels", _check_labels(labels, names))
        object.__setattr__(self, "_made_by", made_by)
        object.__setattr__(self, "_map", source)
        object.__setattr__(self, "_names", names)
        object.__setattr__(self, "_run", _compiled(source))

    def __copy__(self) -> "Prior":
        """The prior itself, which is immutable."""
        return self

    def __deepcopy__(self, memo: Any) -> "Prior":
        """The prior itself, which is immutable."""
        return self

    def __reduce__(self) -> tuple[Callable[..., "Prior"], tuple[Any, ...]]:
        """Pickle what it was made from: what is compiled is compiled anew."""
        return _remake, (*self._made_by, self.phases)

    def __setattr__(self, name: str, value: object) -> None:
        raise dataclasses.FrozenInstanceError(f"`Prior` is immutable: cannot set {name!r}. Build a new one.")

    def __delattr__(self, name: str) -> None:
        raise dataclasses.FrozenInstanceError(f"`Prior` is immutable: cannot delete {name!r}. Build a new one.")

    @classmethod
    @float64
    def from_transform(
        cls, prior_transform: object, names: object, *, labels: object = None, periodic: object = ()
    ) -> "Prior":
        r"""Prior given as a transform of the unit cube, as other nested samplers take it.

        .. math::
            x = T(u), \quad u \sim U(0, 1)^d, \quad u = \Phi(z), \quad z \sim N(0, I).

        The density of x is not known, so `log_prob` and `inverse` are refused; sampling does not need them.
        Doubles next to 1 are 1e-16 apart: a tail where u goes to 1 ends at z = 7.95, and a result with its posterior
        beyond says so. A tail where u goes to 0 is resolved to 1e-308.

        Args:
            prior_transform: Function of one point u, shape ``(d,)``, to the ``d`` parameters: an array of shape
                ``(d,)``, or a dict of them. JAX or plain numpy; which of the two is found out by trying.
            names: The ``d`` column names. Of a returned array, each is one scalar parameter; a returned dict must
                flatten to these names (``"b[0]"``, ``"b[1]"`` for a vector ``"b"``).
            labels: Labels of the columns, as of a :class:`Prior`.
            periodic: Those of the names whose ends meet, as of an angle: u = 0 and u = 1 of the coordinate at the same
                place are one place. See :class:`nsflow.Periodic`.

        Returns:
            The prior; not `traceable` if the function needs numpy.

        Raises:
            TypeError: If `prior_transform` is not a function or does not return real numbers, `names` or `periodic`
                is not a sequence of strings, or `labels` are not strings.
            ValueError: If the output does not fit the names, is not finite at u = 1/2, ignores
                u, or is random; or if `labels` or `periodic` do not fit the names.
            Exception: What the function raises, with the point in the message.

        Example:
            >>> prior = Prior.from_transform(lambda u: 10 * u - 5, ["a", "b"])
            >>> float(prior.forward(jnp.zeros(2))["a"])
            0.0
        """
        if isinstance(names, str) or not isinstance(names, Sequence):
            raise TypeError(
                f"`Prior.from_transform` expected a list of names, one a dimension of the cube; got {names!r}. "
                "Write `names=['a', 'b']`."
            )
        if not names:
            raise ValueError("`Prior.from_transform` expected at least one name; got none. Name each dimension.")
        for name in names:
            _check_name(name)
        _check_columns(tuple(names))
        circles = _check_periodic(periodic, tuple(names))
        prior = object.__new__(cls)
        source = Cube(prior_transform, tuple(names), circles)
        prior._set(source, labels, (_from_transform, (prior_transform, tuple(names), labels, circles)))
        return prior

    @property
    def names(self) -> tuple[str, ...]:
        """Column names: ``"a"`` for a scalar, ``"b[0]"``, ``"C[0,1]"`` for the elements of arrays."""
        return self._names

    @property
    def labels(self) -> tuple[str, ...]:
        """Labels of the columns, for plots and files."""
        return self._labels

    @property
    def num_dims(self) -> int:
        """Dimension d of the latent space; a simplex of k numbers counts k - 1."""
        return self._map.num_dims

    @property
    def latent_names(self) -> tuple[str, ...]:
        """What each latent coordinate belongs to: a column, or a parameter that has fewer coordinates than columns."""
        if isinstance(self._map, Cube):
            return self._map.names
        columns = ((name, p.num_dims, column_names({name: p.shape})) for name, p in self._parameters.items())
        return tuple(c for name, d, names in columns for c in (names if len(names) == d else (name,) * d))

    @property
    def latent_limits(self) -> tuple[Float[np.ndarray, " d"], Float[np.ndarray, " d"]]:
        """Lowest and highest place of each latent coordinate that the map resolves; infinite where it has no end."""
        limits = [
            [np.broadcast_to(limit, p.num_dims) for limit in getattr(p, "latent_limits", (-np.inf, np.inf))]
            for p in self._parameters.values()
        ]
        lower, upper = (np.concatenate(side) for side in zip(*limits, strict=True))
        return lower, upper

    @property
    def traceable(self) -> bool:
        """Whether JAX can trace `forward`, `inverse` and the densities; False where scipy or numpy has a part."""
        return self._map.traceable

    @property
    def is_discrete(self) -> Bool[np.ndarray, " d"]:
        """Latent coordinates along which values step from integer to integer."""
        return np.concatenate([np.full(p.num_dims, isinstance(p, Discrete)) for p in self._parameters.values()])

    @property
    def is_periodic(self) -> Bool[np.ndarray, " d"]:
        """Latent coordinates whose two ends are the same place."""
        parts = [getattr(p, "is_periodic", np.zeros(p.num_dims, bool)) for p in self._parameters.values()]
        return np.concatenate(parts)

    @no_type_check
    def step_widths(self, z: Float[np.ndarray, " d"]) -> Float[np.ndarray, " d"]:
        r"""Widths of Gaussians with the prior mass of the discrete values at a point; one for continuous coordinates.

        .. math:: \frac{p_k}{\sqrt{2 \pi}\, \phi(z)}.

        Args:
            z: Latent point, shape ``(d,)``.

        Returns:
            The widths in latent units, shape ``(d,)``.
        """
        z = self._vector(z, "latent point")
        starts = np.cumsum([0, *(p.num_dims for p in self._parameters.values())])
        blocks = ((p, z[i : i + p.num_dims]) for p, i in zip(self._parameters.values(), starts, strict=False))
        return np.concatenate([p.step_widths(b) if isinstance(p, Discrete) else np.ones(len(b)) for p, b in blocks])

    @property
    def phases(self) -> Float[np.ndarray, " d"]:
        """Turns of the periodic coordinates, in [0, 1); zero for the others."""
        return np.concatenate([getattr(p, "phases", np.zeros(p.num_dims)) for p in self._parameters.values()])

    @no_type_check
    @float64
    def turn(self, phases: Float[np.ndarray, " d"]) -> "Prior":
        """The same prior, whose periodic coordinates are cut open elsewhere.

        Args:
            phases: The new `phases`, shape ``(d,)``.

        Returns:
            A prior of the same density whose latent vectors mean other places on the circles.
        """
        phases = self._vector(phases, "phases")
        starts = np.cumsum([0, *(p.num_dims for p in self._parameters.values())])
        turned: dict[str, Any] = {
            name: p.turned(phases[i : i + p.num_dims]) if hasattr(p, "turned") else p
            for (name, p), i in zip(self._parameters.items(), starts, strict=False)
        }
        prior = object.__new__(Prior)
        source = Joint(turned) if isinstance(self._map, Joint) else turned["cube"]
        prior._set(source, self._labels, self._made_by)
        return prior

    @property
    def _parameters(self) -> Mapping[str, Any]:
        """The parameters, each with its block of the latent vector; a transform is one block."""
        return self._map.parameters if isinstance(self._map, Joint) else {"cube": self._map}

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shape of each parameter's value, read-only."""
        return MappingProxyType(self._map.shapes)

    def __repr__(self) -> str:
        return f"Prior(names={self.names}, num_dims={self.num_dims})"

    @no_type_check  # its own messages come before a run-time checker's
    @float64
    def sample(self, key: Array, num_samples: int) -> dict[str, Float[Array | np.ndarray, "..."]]:
        """Draw from the prior: the same points as `latent_sample` with the same key.

        Args:
            key: JAX random key.
            num_samples: Number n of points.

        Returns:
            Parameters, each of shape ``(n, *shape)``.

        Raises:
            TypeError: If `key` is no JAX random key.
            ValueError: If `num_samples` is not a natural number, or so many do not fit in memory.
        """
        return self._run["sample"](*self._draws(key, num_samples))

    @no_type_check  # its own messages come before a run-time checker's
    @float64
    def latent_sample(self, key: Array, num_samples: int) -> Float[Array | np.ndarray, "n d"]:
        """Draw from the prior, in the latent space.

        Args:
            key: JAX random key.
            num_samples: Number n of points.

        Returns:
            Latent points, shape ``(n, d)``.

        Raises:
            TypeError: If `key` is no JAX random key.
            ValueError: If `num_samples` is not a natural number, or so many do not fit in memory.
        """
        return self._run["latent_sample"](*self._draws(key, num_samples))

    @no_type_check
    @float64
    def forward(self, z: Float[Array | np.ndarray, "*batch d"]) -> dict[str, Float[Array | np.ndarray, "..."]]:
        """Map latent points to parameters.

        Args:
            z: Latent points, shape ``(..., d)``.

        Returns:
            Parameters, each of shape ``(..., *shape)``; inside the support for every finite z.

        Raises:
            ValueError: If the last axis of `z` is not of length d.
        """
        flat, batch = self._latent(z)
        return {name: x.reshape((*batch, *x.shape[1:])) for name, x in self._run["forward"](flat).items()}

    @no_type_check
    @float64
    def inverse(self, params: Params) -> Float[Array | np.ndarray, "*batch d"]:
        """Map parameters to latent points.

        Args:
            params: Parameters, each of shape ``(..., *shape)``.

        Returns:
            Latent points, shape ``(..., d)``; finite also on the edge of the support.

        Raises:
            ValueError: If parameters are missing, unknown or of the wrong shape, or the prior is a transform.
        """
        flat, batch = self._params(params)
        return self._run["inverse"](flat).reshape((*batch, self.num_dims))

    @no_type_check
    @float64
    def log_prob(self, params: Params) -> Float[Array | np.ndarray, "*batch"]:
        """Log density of the parameters, in nats.

        Args:
            params: Parameters, each of shape ``(..., *shape)``.

        Returns:
            Log density, shape ``(...)``; -inf outside the support.

        Raises:
            ValueError: If parameters are missing, unknown or of the wrong shape, or the prior is a transform.
        """
        flat, batch = self._params(params)
        return self._run["log_prob"](flat).reshape(batch)

    @no_type_check
    @float64
    def latent_log_prob(self, z: Float[Array | np.ndarray, "*batch d"]) -> Float[Array | np.ndarray, "*batch"]:
        """Log density of the prior in the latent space, in nats; N(0, I) unless a parameter has no quantile function.

        Args:
            z: Latent points, shape ``(..., d)``.

        Returns:
            Log density, shape ``(...)``.

        Raises:
            ValueError: If the last axis of `z` is not of length d.
        """
        flat, batch = self._latent(z)
        return self._run["latent_log_prob"](flat).reshape(batch)

    @no_type_check
    @float64
    def flatten(self, params: Params) -> Float[np.ndarray, "n columns"]:
        """Lay the parameters out as the columns `names`.

        Args:
            params: Parameters, each of shape ``(n, *shape)``, or ``shape`` for one point.

        Returns:
            Table of shape ``(n, len(names))``.

        Raises:
            ValueError: If parameters are missing, unknown or of the wrong shape.
        """
        flat, _ = self._params(params)
        return np.concatenate([np.asarray(x).reshape(len(x), math.prod(x.shape[1:])) for x in flat.values()], axis=1)

    def _draws(self, key: Any, num_samples: Any) -> tuple[Any, int]:
        return require_key("Prior", key), require_count("Prior", num_samples, self.num_dims)

    def _vector(self, value: Any, what: str) -> np.ndarray:
        array = require_array(f"`Prior` for its {what}", value)
        if array.shape != (self.num_dims,):
            raise ValueError(f"`Prior` expected {what} of shape ({self.num_dims},); got {array.shape}.")
        return array

    def _latent(self, z: Any) -> tuple[Any, tuple[int, ...]]:
        z = _float64(z, "latent points")
        if z.shape[-1:] != (self.num_dims,):
            raise ValueError(
                f"`Prior` expected latent points of shape (..., {self.num_dims}); got shape {z.shape}. "
                "The last axis is the latent vector."
            )
        return z.reshape((math.prod(z.shape[:-1]), self.num_dims)), z.shape[:-1]

    def _params(self, params: Any) -> tuple[dict[str, Any], tuple[int, ...]]:
        """Check the names and shapes and give all parameters one batch axis, in the prior's order."""
        if not isinstance(params, Mapping):
            raise TypeError(
                f"`Prior` expected a dict with values of the parameters {list(self.shapes)}; got {shown(params)}."
            )
        if set(params) != set(self.shapes):
            raise ValueError(
                f"`Prior` expected values of the parameters {list(self.shapes)}; got {list(params)}. Give each one."
            )
        arrays = {name: _float64(params[name], f"parameter {name!r}") for name in self.shapes}
        batches = set()
        for name, shape in self.shapes.items():
            cut = arrays[name].ndim - len(shape)
            if cut < 0 or arrays[name].shape[cut:] != shape:
                raise ValueError(
                    f"`Prior` expected shape (..., {', '.join(map(str, shape))}) of parameter {name!r}; "
                    f"got {arrays[name].shape}. Put the batch axes first."
                )
            batches.add(arrays[name].shape[:cut])
        if len(batches) > 1:
            raise ValueError(
                "`Prior` expected the same batch axes of every parameter; got shapes "
                f"{ {name: x.shape for name, x in arrays.items()} }. Broadcast them first."
            )
        (batch,) = batches
        size = math.prod(batch)
        return {name: x.reshape((size, *self.shapes[name])) for name, x in arrays.items()}, batch


def _float64(x: Any, what: str) -> Any:
    return x.astype(jnp.float64) if isinstance(x, Tracer) else require_array(f"`Prior` for its {what}", x)


def _compiled(source: Map) -> dict[str, Callable[..., Any]]:
    """Compile what JAX can: a prior of ten parameters is a hundred small operations."""
    maps = _maps(source)
    # Latent vectors are JAX's in any prior.
    draw = draw_in_chunks(source.latent_sample, CHUNK)
    density, forward = in_chunks(jax.jit(source.latent_log_prob), CHUNK), maps["forward"]
    sample = (
        draw_in_chunks(source.sample, CHUNK)
        if source.traceable
        else lambda key, num_samples: forward(np.asarray(draw(key, num_samples)))
    )
    return {**maps, "latent_log_prob": density, "sample": sample, "latent_sample": draw}


def _maps(source: Any) -> dict[str, Callable[[Any], Any]]:
    """Maps of a prior or a parameter; where one of the parameters needs numpy, each by itself.

    Outside of compiled functions JAX compiles every operation for every number of points: 423 times in a run of a
    transform in numpy, half of its time.
    """
    if source.traceable:
        return {name: in_chunks(jax.jit(getattr(source, name)), CHUNK) for name in ("forward", "inverse", "log_prob")}
    if not isinstance(source, Joint):
        return {name: getattr(source, name) for name in ("forward", "inverse", "log_prob")}
    parts = {name: _maps(p) for name, p in source.parameters.items()}
    cuts = np.cumsum([p.num_dims for p in source.parameters.values()])[:-1].tolist()

    def forward(z: Any) -> dict[str, Any]:
        blocks = np.split(z, cuts, axis=1)
        return {name: part["forward"](block) for (name, part), block in zip(parts.items(), blocks, strict=True)}

    def inverse(params: dict[str, Any]) -> Any:
        return np.concatenate([part["inverse"](params[name]) for name, part in parts.items()], axis=1)

    def log_prob(params: dict[str, Any]) -> Any:
        return sum(part["log_prob"](params[name]) for name, part in parts.items())

    return {"forward": forward, "inverse": inverse, "log_prob": log_prob}


def _remake(make: Callable[..., Prior], arguments: tuple[Any, ...], phases: Float[np.ndarray, " d"]) -> Prior:
    """Make a prior as it was made before it was pickled."""
    prior = make(*arguments)
    return prior.turn(phases) if np.any(phases) else prior


def _from_transform(prior_transform: Any, names: tuple[str, ...], labels: Any, periodic: tuple[str, ...]) -> Prior:
    return Prior.from_transform(prior_transform, names, labels=labels, periodic=periodic)


def _check_name(name: Any) -> None:
    if not isinstance(name, str):
        raise TypeError(f"`Prior` expected strings as parameter names; got {name!r}. Quote the name.")
    if not name.strip():
        raise ValueError(f"`Prior` expected non-empty parameter names; got {name!r}. Name the parameter.")


def _check_frozen(name: str, distribution: Any) -> None:
    """Refuse a frozen scipy distribution whose arguments are no numbers: scipy reads them when it is asked."""
    given = (*getattr(distribution, "args", ()), *getattr(distribution, "kwds", {}).values())
    for value in given if hasattr(distribution, "dist") else ():
        require_array(f"`Prior` for the arguments of parameter {name!r}", value)


def _check_columns(names: tuple[str, ...]) -> None:
    for name in names:
        if name in RESERVED:
            raise ValueError(
                f"`Prior` expected parameter names that are free in anesthetic's tables; got {name!r}, a column of "
                f"its own. Choose a name other than {', '.join(RESERVED)}."
            )
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(
            f"`Prior` expected a different name for every column; got {repeated} more than once. Elements of a vector "
            "'b' are called 'b[0]', 'b[1]': rename the other parameter."
        )


def _check_labels(labels: Any, names: tuple[str, ...]) -> tuple[str, ...]:
    if labels is None:
        return names
    if isinstance(labels, str) or not isinstance(labels, Mapping | Sequence):
        raise TypeError(
            f"`labels` expected a dict of names and labels, or a list of labels; got {labels!r}. Write for instance "
            f"`labels={{{names[0]!r}: ...}}`."
        )
    if isinstance(labels, Mapping):
        unknown = [name for name in labels if name not in names]
        if unknown:
            raise ValueError(f"`labels` expected labels of the columns {names}; got others, {unknown}. Leave them out.")
        labels = [labels.get(name, name) for name in names]
    if len(labels) != len(names):
        raise ValueError(f"`labels` expected one for each of {names}; got {list(labels)}. Give all, or a dict of some.")
    for label in labels:
        if not isinstance(label, str):
            raise TypeError(f"`labels` expected strings; got {label!r}. Quote the label.")
        if not label.strip() or not label.isprintable():
            raise ValueError(
                f"`labels` expected printable text; got {label!r}. Leave the label out, or write it as TeX."
            )
    return tuple(labels)


def _check_periodic(periodic: Any, names: tuple[str, ...]) -> tuple[str, ...]:
    if isinstance(periodic, str) or not isinstance(periodic, Sequence | set | frozenset):
        raise TypeError(
            f"`Prior.from_transform` expected a list of names as `periodic`; got {periodic!r}. "
            f"Write for instance `periodic=[{names[0]!r}]`."
        )
    unknown = [name for name in periodic if name not in names]
    if unknown:
        raise ValueError(
            f"`Prior.from_transform` expected names among {names} as `periodic`; got {unknown}. Name the parameters "
            "whose ends meet."
        )
    return tuple(name for name in names if name in periodic)
