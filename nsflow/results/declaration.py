"""Whether values are of the types that a class declares: what was read from a file may be anything."""

import collections.abc
import types
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any, ClassVar, Union, get_args, get_origin, get_type_hints, no_type_check

import numpy as np
from jaxtyping import jaxtyped

LARGEST = 2**53  # of integers: beyond, floats skip some, and the products of two overflow


@no_type_check  # a run-time checker gives every function lengths of its own
def departure(thing: Any) -> str:
    """Say where the fields of a dataclass or named tuple depart from what its class declares.

    Args:
        thing: The object; its arrays must agree in the lengths that share a name, too.

    Returns:
        What is expected of the first such field and what it is, or the empty string.

    Example:
        >>> from typing import NamedTuple
        >>> class Pair(NamedTuple):
        ...     name: str
        ...     numbers: tuple[int, ...]
        >>> departure(Pair("a", (1, 2))), departure(Pair("a", (1, None)))
        ('', 'Pair.numbers expected tuple[int, ...]; got (1, None)')
    """
    with jaxtyped("context"):  # in which n is one number
        for name, declared in _declared(type(thing)).items():
            value = getattr(thing, name)
            if not conforms(value, declared):
                what = declared.__name__ if isinstance(declared, type) else str(declared)
                return f"{type(thing).__name__}.{name} expected {what}; got {_short(value)}"
    return ""


@no_type_check
def conforms(value: Any, declared: Any) -> bool:
    """Whether a value is of a declared type; an integer is a float too, and a boolean neither.

    Args:
        value: The value.
        declared: A class, a union, a tuple, list or mapping of them, or an array of jaxtyping.

    Returns:
        Whether it is.
    """
    origin, inner = get_origin(declared), get_args(declared)
    if declared is Any or origin is ClassVar:
        return True
    if origin in (Union, types.UnionType):
        return any(conforms(value, kind) for kind in inner)
    if origin is tuple:
        kinds = [inner[0]] * len(value) if isinstance(value, tuple) and inner[1:] == (...,) else list(inner)
        return isinstance(value, tuple) and len(value) == len(kinds) and all(map(conforms, value, kinds))
    if origin is list:
        return isinstance(value, list) and all(conforms(item, inner[0]) for item in value)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return isinstance(value, Mapping) and all(
            conforms(key, inner[0]) and conforms(item, inner[1]) for key, item in value.items()
        )
    if declared is collections.abc.Callable or origin is collections.abc.Callable:
        return callable(value)
    if declared is int:
        return isinstance(value, int | np.integer) and not isinstance(value, bool) and abs(int(value)) < LARGEST
    if declared is float:
        return isinstance(value, float | np.floating) or conforms(value, int)
    if declared is bool:
        return isinstance(value, bool | np.bool_)
    if getattr(declared, "_is_protocol", False) and not getattr(declared, "_is_runtime_protocol", False):
        return callable(value)  # no more can be asked of one: those of nsflow are functions
    return isinstance(value, origin or declared or type(None))


@cache
def _declared(cls: type) -> dict[str, Any]:
    hints = get_type_hints(cls)
    names = [part.name for part in fields(cls)] if is_dataclass(cls) else getattr(cls, "_fields", ())
    return {name: hints[name] for name in names if name in hints}


def _short(value: Any) -> str:
    text = f"an array of {value.dtype}, shape {value.shape}" if isinstance(value, np.ndarray) else repr(value)
    return text if len(text) < 80 else f"{text[:80]}..."
