"""The door to the likelihood: pieces of a batch, what is written down of each, and where a run may stop."""

import json
import struct
import time
import zlib
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from typing import Any, final

import numpy as np
from jaxtyping import Float

TARGET_SECONDS = 1.0  # of one piece where its size is free: what a kill can cost, and the time until a signal is heard
MAGIC = b"nsfj"
HEADER = struct.Struct("<4sIIII")  # magic, rows, columns, bytes of their names, checksum of what follows
DIGEST = 16  # bytes

Columns = dict[str, np.ndarray]  # name -> one number for each row


class Stopped(BaseException):
    """Leaves a step between two pieces of a batch; its message is the reason. Not to be handled as an error.

    Args:
        reason: The reason.
        columns: Values of the pieces before.
    """

    def __init__(self, reason: str, columns: Columns | None = None) -> None:
        super().__init__(reason)
        self.columns = columns or {}


@final
class Journal:
    """Evaluates batches in pieces. Between two of them a run can be stopped, and what is evaluated can be kept.

    A batch of a costly likelihood takes hours. Each row is identified by a digest of its parameters, and what an
    interrupted run wrote down is recalled instead of being evaluated again.

    Args:
        keep: Takes one piece as bytes, to be appended to a file; nothing is kept if left out.
        known: Values of earlier pieces, as :func:`read` returns them.
    """

    def __init__(
        self, keep: Callable[[bytes], Any] | None = None, known: dict[bytes, dict[str, float]] | None = None
    ) -> None:
        self.keep = keep
        self.known = known or {}
        self.check: Callable[[dict[str, float], Columns], Any] | None = None  # of a known row and the same one now
        self.stop: Callable[[], str] = lambda: ""  # the reason to stop now, or nothing
        self.num_calls = 0  # likelihood calls of the step at work
        self.pending: list[bytes] = []  # its pieces, for a checkpoint that is written before it is done
        self._size = 1  # a piece of sixteen calls of a minute each would not heed a signal for a quarter of an hour

    def begin_step(self) -> None:
        """Forget the step that is done."""
        self.num_calls, self.pending = 0, []

    def recall(
        self,
        rows: Float[np.ndarray, "n k"],
        compute: Callable[[slice], Columns],
        *,
        unit: int = 1,
        grows: bool = True,
        price: int = 1,
        columns: Collection[str] = ("log_likelihood",),
    ) -> Columns:
        """Evaluate rows in order, those that are known excepted.

        Args:
            rows: What identifies each evaluation, shape ``(n, k)``.
            compute: Columns of a slice of the rows; a column that a piece lacks is NaN there.
            unit: Pieces are multiples of so many rows: values of compiled functions depend on it in the last bit.
            grows: Whether cheap pieces may be larger than that.
            price: Likelihood calls that a row counts for.
            columns: Those that every row has; one that was written down without them is not known.

        Returns:
            The columns, shape ``(n,)`` each.

        Raises:
            Stopped: If there is a reason to stop.
        """
        if len(rows) == 0:
            return compute(slice(0, 0))
        keys = [blake2b(row.tobytes(), digest_size=DIGEST).digest() for row in rows] if self.keep or self.known else []
        wanted = set(columns)
        start = next((i for i, key in enumerate(keys) if not wanted <= self.known.get(key, {}).keys()), len(keys))
        if start < len(rows):
            start -= start % unit
        pieces = [{name: np.array([value]) for name, value in self.known[key].items()} for key in keys[:start]]
        self.num_calls += price * start
        if start and self.check:
            self.check(self.known[keys[0]], compute(slice(0, 1)))
            self.check = None
        if start and self.keep:
            self.pending.append(record(keys[:start], _join(pieces)))
        while start < len(rows):
            if reason := self.stop():
                raise Stopped(reason, _join(pieces))
            size = max(unit, self._size - self._size % unit) if grows else unit
            piece = slice(start, min(start + size, len(rows)))
            began = time.monotonic()
            pieces.append(compute(piece))
            self._size = _next_size(self._size, piece.stop - start, time.monotonic() - began)
            self.num_calls += price * (piece.stop - start)
            if self.keep:
                self.pending.append(record(keys[piece], pieces[-1]))
                self.keep(self.pending[-1])
            start = piece.stop
        return _join(pieces)


def _join(pieces: list[Columns]) -> Columns:
    names = dict.fromkeys(name for piece in pieces for name in piece)
    sizes = [len(next(iter(piece.values()))) for piece in pieces]
    return {
        name: np.concatenate([p.get(name, np.full(n, np.nan)) for p, n in zip(pieces, sizes, strict=True)])
        for name in names
    }


def _next_size(size: int, num_rows: int, seconds: float) -> int:
    if seconds > 2 * TARGET_SECONDS:
        return max(1, min(size, num_rows) // 2)
    return 2 * size if seconds < TARGET_SECONDS / 2 and num_rows >= size // 2 else size


def record(keys: list[bytes], columns: Columns) -> bytes:
    """Write a piece as bytes that tell where they end, and whether they are whole.

    Args:
        keys: Digest of each row.
        columns: Its values.

    Returns:
        The bytes.

    Example:
        >>> piece = record([b"0" * 16, b"1" * 16], {"log_likelihood": np.array([1.0, 2.0])})
        >>> known, end = read(piece + piece[:-1])
        >>> list(known.values()), end == len(piece)
        ([{'log_likelihood': 1.0}, {'log_likelihood': 2.0}], True)
    """
    names = json.dumps(list(columns)).encode()
    values = np.stack(list(columns.values())).astype("<f8")
    body = names + b"".join(keys) + values.tobytes()
    return HEADER.pack(MAGIC, len(keys), len(columns), len(names), zlib.crc32(body)) + body


def read(data: bytes) -> tuple[dict[bytes, dict[str, float]], int]:
    """Read pieces up to the first that is not whole: a run was killed while it wrote it.

    Args:
        data: What :func:`record` returned, any number of times.

    Returns:
        ``(known, end)``: digest of a row -> its values, and the bytes of the whole pieces.

    Raises:
        ValueError: If a whole piece holds what :func:`record` does not write.
    """
    view = memoryview(data)  # a slice of it is no copy, of which 300 000 took more than five minutes
    known: dict[bytes, dict[str, float]] = {}
    end = start = 0
    while start + HEADER.size <= len(data):
        magic, num_rows, num_columns, num_names, checksum = HEADER.unpack_from(data, start)
        begin = start + HEADER.size
        start = begin + num_names + num_rows * (DIGEST + 8 * num_columns)
        body = view[begin:start]
        if magic != MAGIC or start > len(data) or zlib.crc32(body) != checksum:
            break
        names, keys = _names(bytes(body[:num_names])), bytes(body[num_names : num_names + num_rows * DIGEST])
        if num_rows == 0 or len(names) != num_columns:
            raise ValueError(f"a record of {num_rows} rows, and {num_columns} columns for the names {list(names)}")
        values = np.frombuffer(body, "<f8", offset=num_names + len(keys)).reshape(num_columns, num_rows).T.tolist()
        known |= {
            keys[DIGEST * i : DIGEST * (i + 1)]: dict(zip(names, row, strict=True)) for i, row in enumerate(values)
        }
        end = start
    return known, end


@lru_cache
def _names(text: bytes) -> tuple[str, ...]:
    try:
        names = json.loads(text)
    except RecursionError:
        names = None
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise ValueError(f"a record of the columns {text[:80]!r}")
    if len(set(names)) < len(names):
        raise ValueError(f"a record with two columns of a name among {names}")
    return tuple(names)


@final
@dataclass(frozen=True)
class Recorded:
    """A likelihood that is evaluated through a journal.

    Args:
        likelihood: The likelihood.
        journal: The journal.
    """

    likelihood: Any
    journal: Journal


def bare(likelihood: Any) -> Any:
    """The likelihood itself, without a journal."""
    return likelihood.likelihood if isinstance(likelihood, Recorded) else likelihood
