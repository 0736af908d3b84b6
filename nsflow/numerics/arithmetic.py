"""What numpy does where arithmetic on floats fails: our choice in our functions, the caller's in theirs."""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any, ParamSpec, TypeVar

import numpy as np

P = ParamSpec("P")
R = TypeVar("R")

# Weights underflow as a matter of course: where the caller had set `np.seterr(all="raise")`, the first one ended a run.
OURS = {"divide": "warn", "over": "warn", "invalid": "warn", "under": "ignore"}
_callers: ContextVar[dict[str, Any] | None] = ContextVar("callers", default=None)


@contextmanager
def own_arithmetic() -> Iterator[None]:
    """Compute with our choice, and remember the caller's.

    Example:
        >>> with np.errstate(all="raise"), own_arithmetic():
        ...     float(np.exp(np.float64(-1000.0)))
        0.0
    """
    if _callers.get() is not None:
        yield
        return
    before: dict[str, Any] = dict(np.geterr())
    ours: dict[str, Any] = OURS | {name: "ignore" for name, value in before.items() if value == "ignore"}
    token = _callers.set(before)
    try:
        with np.errstate(**ours):
            yield
    finally:
        _callers.reset(token)


@contextmanager
def callers_arithmetic() -> Iterator[None]:
    """Compute with the caller's choice again: within a function of theirs.

    Example:
        >>> with np.errstate(under="raise"), own_arithmetic(), callers_arithmetic():
        ...     np.geterr()["under"]
        'raise'
    """
    state = _callers.get()
    token = _callers.set(None)
    try:
        with nullcontext() if state is None else np.errstate(**state):
            yield
    finally:
        _callers.reset(token)


def with_own_arithmetic(function: Callable[P, R]) -> Callable[P, R]:
    """Run `function` with our choice.

    Args:
        function: Any function.

    Returns:
        The same function.

    Example:
        >>> with np.errstate(all="raise"):
        ...     float(with_own_arithmetic(np.exp)(np.float64(-1000.0)))
        0.0
    """

    @functools.wraps(function)
    def inside(*args: P.args, **kwargs: P.kwargs) -> R:
        with own_arithmetic():
            return function(*args, **kwargs)

    return inside
