"""Arguments as users give them: any real scalar becomes Python's own number, and what is wrong is refused by name."""

import math
import numbers
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

Rule = Callable[[str, Any], Any]  # of the argument's name and value, to the value as it is kept
UNKNOWN_MEMORY = 2**36  # bytes, where the system does not tell


def scalar(value: Any) -> int | float | None:
    """Python's own number for any real scalar: Python's, numpy's, or an array of none but one. None for all else.

    Args:
        value: What a user gave.

    Returns:
        An int or a float; None for a truth value, a string and so on.

    Example:
        >>> import jax.numpy as jnp
        >>> scalar(np.float32(50)), scalar(jnp.asarray(3)), scalar(True), scalar("3")
        (50.0, 3, None, None)
    """
    if value is np.ma.masked:  # is zero as an array
        return None
    if _is_array(value) and value.ndim == 0:
        if _is_key(value.dtype):
            return None
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return None
    try:
        number = float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf  # pyright: ignore[reportOperatorIssue]
    return int(value) if isinstance(value, numbers.Integral) else number


def _is_array(value: Any, traced: bool = False) -> bool:
    """Whether a value is an array of numpy or JAX; of JAX, which takes a second to import, only where it is there."""
    jax = sys.modules.get("jax")
    if jax is None or isinstance(value, np.ndarray):
        return isinstance(value, np.ndarray)
    return isinstance(value, jax.Array) and (traced or not isinstance(value, jax.core.Tracer))


def _is_key(dtype: Any) -> bool:
    jax = sys.modules.get("jax")
    return jax is not None and jax.numpy.issubdtype(dtype, jax.dtypes.prng_key)


def shown(value: Any) -> str:
    """Write what a user gave in no more than a line or two."""
    try:
        text = repr(value)
    except Exception:
        text = f"an object of class {type(value).__name__}"
    return text if len(text) <= 200 else text[:200] + "..."


def real(is_valid: Callable[[float], bool], expected: str) -> Rule:
    """Rule of a real number.

    Args:
        is_valid: Whether a number will do.
        expected: What will do, in words.

    Returns:
        The rule.

    Example:
        >>> real(lambda x: x > 0, "a positive number")("`rate`", np.float32(0.5))
        0.5
    """

    def check(name: str, value: Any) -> int | float:
        number = scalar(value)
        if number is None or not is_valid(number):
            raise ValueError(f"{name} expected {expected}; got {shown(value)}.")
        return number

    return check


def integer(smallest: int, largest: int | float = math.inf, advice: str = "") -> Rule:
    """Rule of an integer.

    Args:
        smallest: Smallest one that will do.
        largest: Largest one.
        advice: What to do instead.

    Returns:
        The rule.

    Example:
        >>> integer(1)("`size`", np.int64(3))
        3
    """
    bounds = f"of at least {smallest}" if largest == math.inf else f"from {smallest} to {largest}"

    def check(name: str, value: Any) -> int:
        number = scalar(value)
        if not isinstance(number, int) or not smallest <= number <= largest:
            raise ValueError(f"{name} expected an integer {bounds}; got {shown(value)}.{' ' * bool(advice)}{advice}")
        return number

    return check


def truth(name: str, value: Any) -> bool:
    """Rule of True or False: the text "False" would count as true."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} expected True or False; got {shown(value)}.")
    return bool(value)


def instance(kind: type | tuple[type, ...], expected: str) -> Rule:
    """Rule of an object of a class, or of one of several.

    Args:
        kind: The class or classes.
        expected: What they are, in words.

    Returns:
        The rule.

    Example:
        >>> instance(dict, "a dict")("`options`", {})
        {}
    """

    def check(name: str, value: Any) -> Any:
        if not isinstance(value, kind):
            raise TypeError(f"{name} expected {expected}; got {shown(value)}.")
        return value

    return check


def part(kind: type) -> Rule:
    """Rule of a part of one of nsflow's kinds."""
    return instance(kind, f"an {kind.__module__}.{kind.__name__}")


def several(rule: Rule, expected: str, is_valid: Callable[[tuple[Any, ...]], bool] = lambda _: True) -> Rule:
    """Rule of a tuple or list whose items follow a rule each; it is kept as a tuple, which can be hashed.

    Args:
        rule: Of an item.
        expected: What will do, in words.
        is_valid: Whether the items will do together.

    Returns:
        The rule.

    Example:
        >>> several(integer(1), "positive integers")("`sizes`", [1, 2])
        (1, 2)
    """

    def check(name: str, value: Any) -> tuple[Any, ...]:
        refusal = ValueError(f"{name} expected {expected}; got {shown(value)}.")
        if not isinstance(value, tuple | list):
            raise refusal
        try:
            items = tuple(rule(name, item) for item in value)
        except (TypeError, ValueError) as error:
            raise refusal from error
        if not is_valid(items):
            raise refusal
        return items

    return check


def optional(rule: Rule) -> Rule:
    """Rule of what may be left out, as None."""
    return lambda name, value: None if value is None else rule(name, value)


POSITIVE = real(lambda x: 0 < x < math.inf, "a positive, finite number")
NUMBER = real(lambda _: True, "a number")


def texts(name: str, value: Any) -> tuple[str, ...]:
    """Rule of some strings, in any collection but a string."""
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
        raise TypeError(f"{name} expected a tuple of strings; got {shown(value)}.")
    try:
        items = tuple(value)
    except Exception:  # an array of no dimension
        items = (value,)
    if not all(isinstance(item, str) for item in items):
        raise TypeError(f"{name} expected strings alone; got {shown(value)}.")
    return tuple(map(str, items))  # numpy's strings are none of JSON's


TIMES = several(
    real(lambda t: 0 <= t <= 1, "a time"), "two rising times in [0, 1]", lambda t: len(t) == 2 and t[0] < t[1]
)


def settle(options: Any, rules: Mapping[str, Rule], owner: str = "") -> None:
    """Check the fields of a frozen dataclass as it is made, and keep them as the rules return them.

    Args:
        options: The dataclass.
        rules: Field -> rule.
        owner: What the messages put in front of the field's name, such as ``"Training."``.
    """
    for name, rule in rules.items():
        object.__setattr__(options, name, rule(f"`{owner}{name}`", getattr(options, name)))


def require_key(owner: str, key: Any) -> Any:
    """Return a JAX random key, or refuse what is none, such as a seed.

    Args:
        owner: Who asks, for the message.
        key: What a user gave.

    Returns:
        The key.

    Raises:
        TypeError: If it is none, or an array of several.
    """
    dtype, shape = getattr(key, "dtype", None), getattr(key, "shape", None)
    if _is_array(key, traced=True) and dtype is not None and shape is not None:
        if _is_key(dtype) and shape == ():
            return key
        if dtype == np.uint32 and shape in ((2,), (4,)):  # as `jax.random.PRNGKey` makes it
            return key
    raise TypeError(f"`{owner}` expected one JAX random key; got {shown(key)}. Write `jax.random.key(0)`.")


def require_array(name: str, value: Any, smallest_ndim: int = 0) -> np.ndarray:
    """Return real numbers as a float64 array.

    Args:
        name: The argument's name in its quotes, and whose it is.
        value: What a user gave; a masked number is NaN.
        smallest_ndim: Fewest axes that will do.

    Returns:
        The array.

    Raises:
        TypeError: If they are no real numbers.
        ValueError: If rows differ in length, or there are fewer axes.

    Example:
        >>> require_array("`x`", [[1, 2]]).tolist()
        [[1.0, 2.0]]
    """
    try:
        array = np.ma.asarray(value) if isinstance(value, np.ma.MaskedArray) else np.asarray(value)
    except ValueError as error:
        raise ValueError(f"{name} expected rows of equal length; got {shown(value)}. Give an array.") from error
    except Exception as error:
        raise TypeError(f"{name} expected an array of real numbers; got {shown(value)}.") from error
    # To numpy the small floats of JAX are of no kind that it knows.
    is_real = array.dtype.kind in "biuf" or array.dtype.name.startswith(("bfloat", "float"))
    if array.dtype == object:  # of a pandas column, say; None would be read as NaN
        is_real = all(scalar(item) is not None or isinstance(item, bool) for item in array.flat)
    if not is_real:
        raise TypeError(f"{name} expected an array of real numbers; got {shown(value)}.")
    if array.ndim < smallest_ndim:
        raise ValueError(f"{name} expected an array of at least {smallest_ndim} axes; got shape {array.shape}.")
    try:
        array = array.astype(np.float64, copy=False)
    except OverflowError as error:
        raise ValueError(f"{name} expected numbers below 1.8e308; got {shown(value)}.") from error
    return array.filled(np.nan) if isinstance(array, np.ma.MaskedArray) else array


def require_points(owner: str, points: Any, log_weights: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return weighted points to which a density can be fitted.

    Args:
        owner: Who asks, for the messages.
        points: What a user gave as points, shape ``(n, d)``.
        log_weights: And as their log-weights in nats, shape ``(n,)``; equal if None.

    Returns:
        ``(points, log_weights)`` in float64.

    Raises:
        TypeError: If they are no real numbers.
        ValueError: If the shapes are wrong, a point is not finite or too large to be squared, or a log-weight is NaN
            or +inf.
    """
    points = require_array(f"`{owner}` for its `points`", points)
    if points.ndim != 2 or points.shape[1] == 0:
        raise ValueError(
            f"`{owner}` expected `points` of shape (n, d) with d > 0; got {points.shape}. One row is one sample."
        )
    if not np.all(np.isfinite(points)):
        bad = int(np.flatnonzero(~np.isfinite(points).all(axis=1))[0])
        raise ValueError(f"`{owner}` expected finite `points`; row {bad} is {shown(points[bad])}. Drop such rows.")
    if np.any(np.abs(points) > LARGEST):
        raise ValueError(
            f"`{owner}` expected `points` of at most {LARGEST}, whose squares float64 holds; got "
            f"{np.max(np.abs(points)):.3g}. Change the unit."
        )
    weights = np.zeros(len(points)) if log_weights is None else log_weights
    weights = require_array(f"`{owner}` for its `log_weights`", weights)
    if weights.shape != (len(points),):
        raise ValueError(
            f"`{owner}` expected `log_weights` of shape ({len(points)},), one for each point; got {weights.shape}."
        )
    if np.any(np.isnan(weights)) or np.any(weights == np.inf):
        raise ValueError(
            f"`{owner}` expected `log_weights` in nats, finite or -inf; got NaN or +inf. Drop such points."
        )
    return points, weights


SMALLEST, LARGEST = 1e-140, 1e140  # of numbers whose squares float64 holds


def require_cloud(owner: str, points: Any, log_weights: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return those of weighted points that have weight, if they can be whitened.

    Args:
        owner: Who asks, for the messages.
        points: What a user gave as points, shape ``(n, d)``.
        log_weights: And as their log-weights in nats, shape ``(n,)``; equal if None.

    Returns:
        ``(points, log_weights)`` in float64.

    Raises:
        TypeError: If they are no real numbers.
        ValueError: As in :func:`require_points`; and if there are no more points than dimensions, or a column does not
            vary, or by too little to be squared.
    """
    points, log_weights = require_points(owner, points, log_weights)
    kept = log_weights > -np.inf
    points, log_weights = points[kept], log_weights[kept]
    if len(points) <= points.shape[1]:
        raise ValueError(
            f"`{owner}` expected more points of positive weight than dimensions; got {len(points)} in "
            f"{points.shape[1]}-d."
        )
    for column, spread in enumerate(np.ptp(points, axis=0)):
        if spread == 0:
            raise ValueError(
                f"`{owner}` expected columns that vary; column {column} of `points` is constant. Leave it out."
            )
        if spread < SMALLEST:
            raise ValueError(
                f"`{owner}` expected columns whose values lie at least {SMALLEST} apart, whose square float64 holds; "
                f"those of column {column} of `points` lie {spread:.3g} apart. Change its unit."
            )
    return points, log_weights


def require_count(owner: str, num_samples: Any, width: int = 1) -> int:
    """Return a number of draws, or refuse what is none, and more than fit in memory.

    Args:
        owner: Who asks, for the messages.
        num_samples: What a user gave.
        width: Numbers of a draw.

    Returns:
        The number.

    Raises:
        ValueError: If it is not an integer of at least 0, or too large.
    """
    count = integer(0)(f"`{owner}` for its `num_samples`", num_samples)
    require_memory(f"`{owner}` for its `num_samples`", count, 8 * width)
    return count


def require_memory(name: str, count: int | float, size: int) -> None:
    """Refuse more draws than this machine holds: they would fill it for hours before the system ends the process.

    Args:
        name: The argument's name in its quotes, and whose it is.
        count: Number of draws.
        size: Bytes of a draw.

    Raises:
        ValueError: If they do not fit.
    """
    if count * size > (available := memory()):
        raise ValueError(
            f"{name} expected at most {available // size} draws, which fill the {available / 2**30:.3g} GiB of this "
            f"machine; got {shown(count)}. Give fewer."
        )


def memory() -> int:
    """Bytes of this machine's memory, and 64 GiB where the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows
        return UNKNOWN_MEMORY
