"""Batches of parameters and of what a likelihood returns, and how messages show them."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from nsflow.numerics.arguments import shown

Params = Mapping[str, Any]


def as_numpy(params: Params) -> dict[str, np.ndarray]:
    """Turn every parameter into a float64 array."""
    return {name: np.asarray(value, np.float64) for name, value in params.items()}


def num_points(batch: dict[str, np.ndarray]) -> int:
    """Length of the leading axis."""
    return len(next(iter(batch.values())))


def rows(batch: dict[str, np.ndarray], index: slice | np.ndarray) -> dict[str, np.ndarray]:
    """Copy these rows: functions that change their arguments in place must not change the sampler's points."""
    return {name: np.array(array[index]) for name, array in batch.items()}


class Values(NamedTuple):
    """What a likelihood returned for a batch of points."""

    log_likelihood: np.ndarray  # (n,), nats, float64
    derived: dict[Any, np.ndarray]  # further numbers of each point, (n,) each


def split(output: Any) -> tuple[Any, Mapping[Any, Any]]:
    """Take the derived parameters, if there are any, from what a likelihood returned.

    Example:
        >>> split((-1.0, {"h": 0.7})), split(-1.0)
        ((-1.0, {'h': 0.7}), (-1.0, {}))
    """
    if isinstance(output, tuple) and len(output) == 2 and isinstance(output[1], Mapping):
        return output
    return output, {}


def join_derived(parts: Sequence[tuple[int, Mapping[Any, np.ndarray]]]) -> dict[Any, np.ndarray]:
    """Append derived parameters of batches of points, each with its length; NaN where a batch lacks one.

    A likelihood that returns -inf early has not computed them.

    Example:
        >>> join_derived([(1, {}), (2, {"h": np.array([0.6, 0.7])})])
        {'h': array([nan, 0.6, 0.7])}
    """
    names = dict.fromkeys(name for _, derived in parts for name in derived)
    return {
        name: np.concatenate([derived.get(name, np.full(size, np.nan)) for size, derived in parts]) for name in names
    }


def join_values(parts: Sequence[Values]) -> Values:
    """Append the values of batches of points."""
    log_likelihood = np.concatenate([part.log_likelihood for part in parts])
    return Values(log_likelihood, join_derived([(len(part.log_likelihood), part.derived) for part in parts]))


def require_callable(owner: str, function: object) -> Callable[[Any], Any]:
    """Return a function, or refuse what is none, and what returns no number when it is called."""
    if not callable(function):
        raise TypeError(
            f"`{owner}` expected a function of one dict of parameters; got {shown(function)}. "
            "Give the function itself, not its value."
        )
    for called in (function, getattr(function, "__call__", None)):  # noqa: B004
        for kind, is_kind, advice in NO_FUNCTIONS:
            if is_kind(called):
                raise TypeError(
                    f"`{owner}` expected a function that returns a number; got {kind}, {shown(function)}. {advice}"
                )
    return function


NO_FUNCTIONS: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    ("a class", inspect.isclass, "Give an object of it that can be called."),
    ("a generator function", inspect.isgeneratorfunction, "Write `return` in the place of `yield`."),
    ("an async function", inspect.iscoroutinefunction, "Write `def` in the place of `async def`."),
    ("an async generator", inspect.isasyncgenfunction, "Write `def` and `return`."),
)


def name_of(function: Any) -> str:
    """Name of a function, or of the type of a callable object."""
    function = getattr(function, "func", function)  # of a `functools.partial`
    return getattr(function, "__name__", type(function).__name__)


def show_shapes(host: dict[str, np.ndarray]) -> str:
    """Write the shapes of one point's parameters."""
    return ", ".join(f"{name}: {array.shape[1:]}" for name, array in host.items())


def show(params: Mapping[str, Any]) -> str:
    """Write parameters so that they can be pasted back; of a batch, no more than fits a line or two."""
    text = str({name: np.asarray(value).tolist() for name, value in params.items()})
    return text if len(text) < 500 else text[:500] + "..."
