"""What a terminal, a page and matplotlib can show of names and columns that may be a stranger's."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

MAX_LABEL = 300  # characters
MAX_DEPTH = 12  # braces within braces
SPARE = 100  # calls on the stack where matplotlib sets a label beyond those where it is tried
JITTER = 1e-3  # width that is drawn of a column without one, relative to its value


def printable(text: str, kept: str = "") -> str:
    r"""Escape what a terminal or a browser would obey instead of showing it: a file may come from a stranger.

    Args:
        text: The text.
        kept: Signs to leave as they are, such as the end of a line.

    Returns:
        The text, on one line unless that is kept.

    Example:
        >>> print(printable("clear the screen: \x1b[2J"))
        clear the screen: \x1b[2J
    """
    return "".join(
        sign if sign.isprintable() or sign in kept else sign.encode("unicode_escape").decode() for sign in text
    )


def settable(label: str) -> str:
    r"""Return a label that matplotlib can set: TeX that it cannot read is shown as it stands.

    Args:
        label: Text, of which what is within dollar signs is TeX.

    Returns:
        The label, at most 300 characters of it.

    Example:
        >>> settable(r"$\alpha_0$"), settable(r"$\input{x}$")
        ('$\\alpha_0$', '\\input{x}')
    """
    label = printable(label)
    if len(label) > MAX_LABEL:
        label = label[: MAX_LABEL - 3] + "..."
    num_dollars = len(re.findall(r"(?<!\\)\$", label))
    if num_dollars == 0 or num_dollars % 2 == 1 or (_depth(label) <= MAX_DEPTH and _is_read(label, SPARE)):
        return label
    if num_dollars == 2 and label[0] == label[-1] == "$":
        label = label[1:-1]
    return re.sub(r"(?<!\\)\$", r"\\$", label)


def _depth(text: str) -> int:
    steps = [1 if sign == "{" else -1 for sign in text if sign in "{}"]
    return int(np.max(np.cumsum(steps), initial=0))


def _is_read(label: str, spare: int) -> bool:
    """Whether matplotlib reads the TeX, with some calls of the stack to spare."""
    if spare:
        return _is_read(label, spare - 1)
    from matplotlib.mathtext import MathTextParser

    try:
        MathTextParser("path").parse(label)
    except Exception:  # of three libraries, which do not share a class; and the end of the stack
        return False
    return True


def spread(values: np.ndarray, seed: int = 0) -> np.ndarray:
    """Give a column of a single value a width that can be drawn; others stay as they are.

    Args:
        values: The column; NaN where it has no value.
        seed: Another for each column, so that no two lie on a line.

    Returns:
        The column.
    """
    known = values[np.isfinite(values)]
    if len(known) == 0 or np.ptp(known) > 1e-12 * np.max(np.abs(known)):
        return values
    width = JITTER * (abs(float(known[0])) or 1.0)
    return values + width * np.random.default_rng(seed).normal(size=len(values))


def as_number(value: Any) -> float:
    """Read a number of a step; NaN where it is none, or one that no scale can show."""
    return float(value) if isinstance(value, int | float) and abs(value) < 1e100 else np.nan


@contextmanager
def steady() -> Iterator[None]:
    """Let anesthetic draw with the same random numbers each time, and leave those of the caller as they were."""
    from anesthetic.utils import temporary_seed

    with temporary_seed(0):
        yield
