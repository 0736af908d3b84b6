"""Short names by which files call classes and functions, given where each is defined."""

from collections.abc import Callable
from dataclasses import is_dataclass
from typing import Any, TypeVar, no_type_check

T = TypeVar("T")

STORABLE: dict[str, Any] = {}
_TAGS: dict[Any, str] = {}


@no_type_check  # its own messages come before a run-time checker's
def storable(tag: str) -> Callable[[T], T]:
    """Let checkpoints hold objects of a class of your own, such as a density that your estimator fits.

    A file calls the class by its tag, so that it may move to another module. It holds the fields of an object, which
    must be arrays, numbers, strings, and further parts that can be stored. A function that a stored object refers to
    needs a tag, too.

    Args:
        tag: Name in files, unique. Choose another when the fields change their meaning.

    Returns:
        A decorator that returns the class, a dataclass or named tuple, or the function as it is.

    Raises:
        TypeError: If `tag` is no text, or what is decorated is neither such a class nor a function.
        ValueError: If the tag belongs to something else.

    Example:
        >>> from dataclasses import dataclass
        >>> @storable("box")
        ... @dataclass(frozen=True)
        ... class Box:
        ...     low: float
        ...     high: float
    """
    if not isinstance(tag, str) or not tag:
        raise TypeError(f"`storable` expected a name, such as @storable('box'); got {tag!r}.")

    def decorate(thing: Any) -> Any:
        is_class = isinstance(thing, type)
        if not (is_dataclass(thing) or hasattr(thing, "_fields") if is_class else hasattr(thing, "__code__")):
            raise TypeError(f"`storable` expected a dataclass, a named tuple or a function; got {thing!r}.")
        old = STORABLE.get(tag)
        if old is not None and where(old) != where(thing):  # a cell of a notebook may be run again
            raise ValueError(f"`storable` expected a tag of its own for {where(thing)}; {tag!r} is {where(old)}.")
        STORABLE[tag] = thing
        _TAGS[thing] = tag
        return thing

    return decorate


def tag_of(thing: Any) -> str | None:
    """Tag of a class or function, or None if a file cannot name it."""
    try:
        tag = _TAGS.get(thing)
    except TypeError:  # not hashable: no class, no function
        return None
    return tag if tag is not None and STORABLE[tag] is thing else None


def where(thing: Any) -> str:
    """Module and name of a class or function; empty if it has none."""
    if not (hasattr(thing, "__module__") and hasattr(thing, "__qualname__")):
        return ""
    return f"{thing.__module__}.{thing.__qualname__}"
