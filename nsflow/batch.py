"""Batches of parameters, and how messages show them."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

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


def require_callable(owner: str, function: object) -> Callable[[Any], Any]:
    """Return a function, or refuse what is none."""
    if not callable(function):
        raise TypeError(
            f"`{owner}` expected a function of one dict of parameters; got {function!r}. "
            "Give the function itself, not its value."
        )
    return function


def same_type(error: Exception, message: str) -> Exception:
    """Return an exception of the same type with this message, or the nearest type that can show one."""
    kind = type(error)
    if kind is KeyError:  # prints its message quoted and escaped
        return LookupError(message)
    if kind.__module__ == "builtins":
        try:
            return kind(message)
        except TypeError:
            pass
    return RuntimeError(message)


def describe(error: Exception) -> str:
    """Type and message of an exception."""
    return f"{type(error).__name__}: {error}"


def name_of(function: Any) -> str:
    """Name of a function, or of the type of a callable object."""
    return getattr(function, "__name__", type(function).__name__)


def show_shapes(host: dict[str, np.ndarray]) -> str:
    """Write the shapes of one point's parameters."""
    return ", ".join(f"{name}: {array.shape[1:]}" for name, array in host.items())


def show(params: Mapping[str, Any]) -> str:
    """Write parameters so that they can be pasted back; of a batch, no more than fits a line or two."""
    text = str({name: np.asarray(value).tolist() for name, value in params.items()})
    return text if len(text) < 500 else text[:500] + "..."
