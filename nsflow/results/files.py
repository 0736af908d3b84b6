"""The two files of a result: `root.csv`, which anesthetic reads, and `root.json`, which holds everything else."""

import csv
import errno
import hashlib
import io
import json
import math
import os
import secrets
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from jaxtyping import Float64

FORMAT = "nsflow results"
VERSION = 1
NON_FINITE = "$float"  # JSON has no NaN and no infinity: they are written {"$float": "-inf"}


def paths(root: Any) -> tuple[Path, Path]:
    """Return the CSV and the JSON file of a root, which may be given with either suffix.

    Args:
        root: Path of the run, such as ``"chains/run"``.

    Returns:
        ``(csv, json)``.

    Raises:
        ValueError: If `root` names no file.

    Example:
        >>> [path.as_posix() for path in paths("chains/run.json")]
        ['chains/run.csv', 'chains/run.json']
    """
    path = as_path("root", root)
    if path.name in ("", ".."):
        raise ValueError(
            f"`root` expected the path of a run; got {os.fspath(root)!r}. Write 'chains/run', for example."
        )
    # Only our own suffixes go: in "run_0.5" the dot belongs to the name.
    name = path.stem if path.suffix in (".csv", ".json") else path.name
    return path.with_name(name + ".csv"), path.with_name(name + ".json")


def write(root: Any, frame: Any, header: Mapping[str, Any]) -> None:
    """Write a frame and its header, each file at once or not at all; the parent folders are made.

    Args:
        root: Path of the run.
        frame: Weighted, labelled anesthetic frame of float64 columns.
        header: Everything that is not a column, as :func:`plain` returns it.
    """
    table, info = paths(root)
    table.parent.mkdir(parents=True, exist_ok=True)
    columns = [name for name, _ in frame.columns]
    document = {
        "format": FORMAT,
        "format_version": VERSION,
        "columns": columns,
        "num_rows": len(frame),
        "digest": _digest(frame.to_numpy()),
        **header,
    }
    text = json.dumps(_encode(document), indent=1, allow_nan=False)
    # pandas writes the shortest text that reads back to the same double.
    with _replacing(table, "w", encoding="utf-8", newline="") as file:
        frame.to_csv(file)
    write_bytes(info, (text + "\n").encode())


def read(root: Any) -> tuple[dict[str, Any], Float64[np.ndarray, "n columns"]]:
    """Read what :func:`write` wrote.

    Args:
        root: Path of the run.

    Returns:
        ``(header, values)``: the header, and the columns, shape ``(n, num_columns)``, bit for bit as written.

    Raises:
        FileNotFoundError: If one of the two files is missing.
        ValueError: If they are damaged, not nsflow's, of a newer format, or do not belong together.
    """
    table, info = paths(root)
    for path in (info, table):
        if not path.is_file():
            raise FileNotFoundError(
                f"`load` expected a saved result at {os.fspath(root)!r}; there is no file {path}. "
                "A result is the two files .csv and .json; keep them together."
            )
    header = _read_header(info)
    columns, values = _read_table(table)
    if columns != header["columns"] or len(values) != header["num_rows"]:
        raise ValueError(
            f"`load` expected {header['num_rows']} rows of {header['columns']} in {table}, as {info} says; "
            f"got {len(values)} rows of {columns}. The two files are from different runs, or the CSV was cut short."
        )
    if _digest(values) != header["digest"]:
        raise ValueError(
            f"`load` expected in {table} the numbers that were saved with {info}; they have changed. "
            "The files are from different runs, or the CSV was edited; read it alone with `anesthetic.read_chains`."
        )
    return header, values


def plain(value: Any) -> Any:
    """Reduce a value to what JSON can hold, and what comes back equal: numbers, strings, lists, string-keyed dicts.

    Args:
        value: Anything. Tuples and arrays become lists, numpy scalars Python's, and objects of any other kind their
            `repr`: a result must not be lost over a setting that cannot be written.

    Returns:
        The plain value, which shares no mutable part with `value`.

    Example:
        >>> plain({"ess": np.float64(5.0), "pool": None, "levels": (1, 2), "solver": complex})
        {'ess': 5.0, 'pool': None, 'levels': [1, 2], 'solver': "<class 'complex'>"}
    """
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, (np.bool_, np.integer, int)):
        return bool(value) if isinstance(value, np.bool_) else int(value)
    if isinstance(value, (np.floating, float)):
        return float(value)
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if hasattr(value, "__array__") and not isinstance(value, type) and np.asarray(value).dtype.kind in "biuf":
        return plain(np.asarray(value).tolist())
    return repr(value)


def _encode(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return {NON_FINITE: repr(value)}
    if isinstance(value, dict):
        return {key: _encode(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_encode(item) for item in value]
    return value


def _decode(value: dict[str, Any]) -> Any:
    return float(value[NON_FINITE]) if value.keys() == {NON_FINITE} else value


def _read_header(path: Path) -> dict[str, Any]:
    try:
        header = json.loads(read_bytes(path).decode(), object_hook=_decode)
    except (ValueError, TypeError, RecursionError) as error:  # also what is not UTF-8, and lists without end
        raise ValueError(
            f"`load` expected JSON in {path}; got a file that is damaged or cut short ({error}). "
            "Restore it from a copy; the samples alone can be read with `anesthetic.read_chains`."
        ) from error
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise ValueError(f"`load` expected {path} to be written by `Results.save`; it is some other JSON file.")
    if header.get("format_version") != VERSION:
        raise ValueError(
            f"`load` expected format version {VERSION} in {path}; got {header.get('format_version')!r}. "
            "Load it with the version of nsflow that wrote it, or a newer one."
        )
    missing = [key for key in ("columns", "num_rows", "digest") if key not in header]
    if missing:
        raise ValueError(f"`load` expected {missing} in {path}; they are missing. Restore the file from a copy.")
    return header


def _read_table(path: Path) -> tuple[list[str], np.ndarray]:
    """Read an anesthetic CSV: a row of names, a row of labels, a row of index names, then index, weight, columns."""
    try:
        with io.StringIO(read_bytes(path).decode(), newline="") as file:
            rows = csv.reader(file)
            columns = next(rows, [])[2:]
            next(rows, None)
            next(rows, None)
            # Python's own float is exact, which pandas' default reader is not (it errs in the last bit).
            cells = [[float(cell) if cell else math.nan for cell in row[2:]] for row in rows]
            values = np.array(cells, dtype=np.float64).reshape(len(cells), len(columns))
    except (ValueError, csv.Error) as error:  # also what is not UTF-8
        raise ValueError(
            f"`load` expected a number in every cell of {path}; got a row that is damaged or cut short ({error}). "
            "Restore the file from a copy."
        ) from error
    return columns, values


def _digest(values: np.ndarray) -> str:
    values = np.where(np.isnan(values), np.nan, values)  # whose sign and payload a CSV does not keep
    return hashlib.sha256(np.ascontiguousarray(values, dtype="<f8").tobytes()).hexdigest()


def as_path(owner: str, value: Any) -> Path:
    """Turn what a user gave into a path, with `~` for their home.

    Args:
        owner: The argument's name, for the message.
        value: What was given.

    Returns:
        The path.

    Raises:
        TypeError: If it is neither a string nor a path.
        ValueError: If no file can have this name.
        OSError: If it is too long for the file system.

    Example:
        >>> as_path("root", "chains/run").as_posix()
        'chains/run'
    """
    text = os.fspath(value) if isinstance(value, str | os.PathLike) else None
    if not isinstance(text, str):
        raise TypeError(f"`{owner}` expected a path, as a string or a pathlib.Path; got {value!r}.")
    try:
        path = Path(text).expanduser()
        os.lstat(path)
    except (ValueError, RuntimeError) as error:  # a zero byte, half of a surrogate pair, the home of nobody
        raise ValueError(f"`{owner}` expected the path of a file; got {text!r} ({error}).") from None
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            message = (
                f"`{owner}` expected a name that the file system takes; got {len(text)} characters: {text[:80]}..."
            )
            raise OSError(error.errno, message) from None
        path = Path(text).expanduser()  # not there yet
    return path


def open_regular(path: Path, flags: int = os.O_RDONLY, *, follows: bool = False) -> int:
    """Open a file that is one: a link could lead anywhere, and of a pipe the opening alone may last for ever.

    Args:
        path: The file.
        flags: How to open it, as in `os.open`.
        follows: Whether it may be a link to a file.

    Returns:
        Its descriptor.

    Raises:
        OSError: If it is a link, pipe, device or folder, or cannot be opened.
    """
    # Systems that lack these flags lack the things, too.
    flags |= getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
    flags |= 0 if follows else getattr(os, "O_NOFOLLOW", 0)
    descriptor = os.open(path, flags, 0o666)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is no file but a link, pipe, device or folder", str(path))
    return descriptor


def read_bytes(path: Path) -> bytes:
    """Read a file, which may be a link to one.

    Args:
        path: The file.

    Returns:
        Its content.
    """
    with open(open_regular(path, follows=True), "rb") as file:
        return file.read()


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file that exists whole or not at all, whatever happens to the process or the machine.

    Args:
        path: The file, which is replaced if it exists.
        data: Its content.
    """
    with _replacing(path, "wb") as file:
        file.write(data)


@contextmanager
def _replacing(path: Path, mode: str, **options: Any) -> Iterator[IO[Any]]:
    """Write a file under another name in the same folder, then rename: a crash leaves the old file or the new one."""
    # A name that nobody can foresee, and a file that did not exist: a link in its place would lead elsewhere.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    descriptor = open_regular(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    try:
        with open(descriptor, mode, **options) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Force the names in a folder to disk, without which a power cut may take a new file along.

    Args:
        path: The folder.
    """
    if hasattr(os, "O_DIRECTORY"):  # elsewhere a folder cannot be opened
        folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
