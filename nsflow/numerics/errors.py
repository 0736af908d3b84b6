"""What went wrong in other people's functions, told with the parameters at which it did."""

import traceback
from collections.abc import Mapping
from typing import Any, NamedTuple


class LikelihoodError(ValueError):
    """The likelihood failed in the middle of a run: it raised, returned no number, or its worker died or hung.

    The message says what happened and at which parameters. :func:`nsflow.run` catches it and returns what it has.
    """


class Failure(NamedTuple):
    """A call that raised; it comes back from a worker in place of a value."""

    error: Exception


class Lost(NamedTuple):
    """A chunk of points that never came back: its worker died, or took longer than allowed."""

    reason: str
    params: Mapping[str, Any]


def same_type(error: BaseException, message: str) -> Exception:
    """Return an exception of the same type with this message, or the nearest type that can show one.

    Other people's types become a `RuntimeError`: a multiprocessing pool hangs for ever on an exception that it cannot
    unpickle, such as one whose constructor takes two arguments.
    """
    kind = type(error)
    if kind is KeyError:  # prints its message quoted and escaped
        return LookupError(message)
    if kind.__module__ == "builtins" and issubclass(kind, Exception):
        try:
            return kind(message)
        except TypeError:
            pass
    return RuntimeError(message)


def explain(error: BaseException, where: str) -> Exception:
    """Return an exception of the same type, caused by the first one, that says where it was raised as well."""
    explained = same_type(error, f"{describe(error)} (raised by {where})")
    explained.__cause__ = error
    return explained


def portable(failure: Failure) -> Failure:
    """Make a failure fit to be sent to another process: its traceback, which does not travel, becomes a note."""
    error = failure.error
    cause = error.__cause__
    error.__cause__ = None
    if cause is not None:
        error.add_note("In the worker:\n" + "".join(traceback.format_exception(cause)))
    return Failure(error.with_traceback(None))


def describe(error: BaseException) -> str:
    """Type and message of an exception.

    Example:
        >>> describe(ValueError("boom"))
        'ValueError: boom'
    """
    return f"{type(error).__name__}: {error}"
