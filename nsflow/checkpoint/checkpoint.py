"""Checkpoints: a folder from which a killed run goes on to the same bits.

`manifest` says what the run is and where it stands; each `segment-*` holds the blocks of its arrays that were new at
that checkpoint; `journal-*` the likelihoods evaluated since the manifest; `lock` is held while a run writes.
A manifest is replaced at once, after all that it names is on disk.
"""

import os
import re
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO, final

import jax
import numpy as np

from nsflow.checkpoint.codec import Encoder, NotStorable, decode, given_by
from nsflow.checkpoint.identity import fingerprint, identify, recheck, require_same, require_same_likelihood
from nsflow.checkpoint.integrity import require_whole
from nsflow.checkpoint.manifest import (
    MANIFEST,
    Manifest,
    damaged,
    read_bytes,
    read_manifest,
    read_segment,
    write_manifest,
    write_segment,
)
from nsflow.flow.velocity import Architecture
from nsflow.likelihood.journal import Columns, Journal, Recorded, read
from nsflow.nested.state import Problem, Settings, State, StepInfo
from nsflow.nested.warm_start import Start
from nsflow.proposals.estimators import AbstractEstimator
from nsflow.results.files import as_path, open_regular, sync_folder, write_bytes

LOCK = "lock"
OURS = re.compile(r"manifest|lock|(segment|journal)-[0-9]+|\..*\.tmp")
INTERVAL = 5.0  # seconds between two checkpoints, or twenty times what one takes
SYNC = 1.0  # seconds between two times that the journal is forced to disk
MAX_SEGMENTS = 64  # files; beyond, and where half of their bytes are out of date, all is written anew


@final
class Checkpoint:
    """A run's folder, open for writing.

    Args:
        path: The folder.
        problem: The problem.
        settings: Its settings.
        seed: The seed.
        start: Samples of a warm start.
    """

    def __init__(self, path: Path, problem: Problem, settings: Settings, seed: int, start: Start | None = None) -> None:
        self.path = path
        self.problem = problem
        self.settings = settings
        self.identity = identify(problem.prior, settings, seed, start)
        self.likelihood: dict[str, Any] | None = None
        self.manifest: Manifest | None = None
        self._number = 0
        self._journal: BinaryIO | None = None
        self._sizes: dict[str, int] = {}  # of the segments, bytes
        self._saved_at, self._price, self._synced_at = -np.inf, 0.0, -np.inf
        self._phase: Any = None
        self._num_steps = -1  # that the checkpoint holds
        self.failed = False

    def restore(self) -> tuple[State, list[StepInfo]] | None:
        """Read the run that the folder holds.

        Returns:
            Its state and trace; None if it was killed before its first draws were evaluated.

        Raises:
            ValueError: If it is damaged, or another problem, seed, setting or version than this call's.
        """
        manifest = read_manifest(self.path)
        require_same(self.path, manifest.run, self.identity)
        self.manifest = manifest
        self._number = int(manifest.journal.split("-")[1])
        blocks: dict[str, bytes] = {}
        for name, keys in manifest.segments.items():
            blocks |= read_segment(self.path / name, keys)
            self._sizes[name] = (self.path / name).stat().st_size
        journal = _journal(self.problem)
        journal.known, _ = _read_journal(self.path / manifest.journal)
        if manifest.root < 0:
            journal.check = self._check_first
            return None
        try:
            given = given_by(self.problem, self.settings)
            saved = decode(manifest.nodes, manifest.root, given, blocks.__getitem__)
            require_whole(saved, self.problem, self.settings)
            state, trace = saved
        except Exception as error:
            raise damaged(self.path / MANIFEST, f"{type(error).__name__}: {error}") from None
        self.likelihood = manifest.likelihood
        if self.likelihood is not None:
            if not set(self.likelihood["rows"]) <= set(range(len(state.points.x))):
                raise damaged(self.path / MANIFEST, "rows of points that exist are expected")
            recheck(self.path, self.likelihood, state)
        self._phase, self._num_steps = state.phase, len(trace)
        return replace(state, settings=self.settings), list(trace)

    def begin(self) -> None:
        """Write down what the run is, before any work is spent.

        Raises:
            OSError: If the folder cannot be written.
        """
        if self.manifest is None:
            self._write(Encoder({}), -1)
        else:
            self._open_journal(self.manifest.journal)
        self._tidy()

    def offer(self, state: State, trace: Sequence[StepInfo]) -> None:
        """Save where the last time is long enough ago, or a phase has ended.

        Args:
            state: The run.
            trace: What its steps did.
        """
        due = time.monotonic() - self._saved_at > max(INTERVAL, 20 * self._price)
        if due or state.phase is not self._phase:
            self.save(state, trace)

    def save(self, state: State, trace: Sequence[StepInfo]) -> None:
        """Save, unless the checkpoint holds this already. A failure is a warning: the run goes on.

        Args:
            state: The run.
            trace: What its steps did.
        """
        if self._num_steps == len(trace) and state.phase is self._phase and not self.failed:
            return
        began = time.monotonic()
        try:
            if self.likelihood is None:
                self.likelihood = fingerprint(state)
            encoder = Encoder(given_by(self.problem, self.settings), self._stored())
            root = encoder.encode((state, tuple(trace)))
            if self._is_wasteful(encoder):
                encoder = Encoder(given_by(self.problem, self.settings))
                root = encoder.encode((state, tuple(trace)))
            self._write(encoder, root)
            self._tidy()
            self.failed = False
            self._num_steps = len(trace)
        except (OSError, NotStorable) as error:
            self._warn(error)
        self._phase = state.phase
        self._saved_at = time.monotonic()
        self._price = self._saved_at - began

    # ------------------------------------------------------------- the files

    def _stored(self) -> set[str]:
        return {key for keys in self.manifest.segments.values() for key in keys} if self.manifest else set()

    def _is_wasteful(self, encoder: Encoder) -> bool:
        """Whether there are many segments, or more bytes in them than twice those in use."""
        segments = self.manifest.segments if self.manifest else {}
        return len(segments) >= MAX_SEGMENTS or sum(self._sizes.values()) > 2 * encoder.num_bytes + 2**20

    def _write(self, encoder: Encoder, root: int) -> None:
        """Segment, journal, manifest: each is on disk before the next names it."""
        number = self._number + 1
        new = {key: data for key, data in encoder.blocks.items() if data is not None}
        old = self.manifest.segments if self.manifest else {}
        segments = {name: keys for name, keys in old.items() if any(encoder.blocks.get(k, b"") is None for k in keys)}
        if new:
            name = f"segment-{number}"
            self._sizes[name] = write_segment(self.path / name, new)
            segments[name] = list(new)
        journal = f"journal-{number}"
        write_bytes(self.path / journal, b"".join(_journal(self.problem).pending))
        nodes = "[" + ",".join(encoder.nodes) + "]"
        manifest = Manifest(self.identity, self.likelihood, [], root, segments, journal)
        write_manifest(self.path, manifest, nodes)
        self.manifest, self._number = manifest, number
        self._sizes = {name: self._sizes[name] for name in segments}
        self._open_journal(journal)

    def _open_journal(self, name: str) -> None:
        self.close()
        # A record cut short by a kill would hide those that follow it.
        path = self.path / name
        _, whole = _read_journal(path)
        if path.stat(follow_symlinks=False).st_nlink > 1:  # of a copy made of hard links: the other is not ours
            write_bytes(path, read_bytes(path)[:whole])
        self._journal = open(open_regular(path, os.O_RDWR), "r+b")
        self._journal.truncate(whole)
        self._journal.seek(whole)
        _journal(self.problem).keep = self._keep

    def _keep(self, piece: bytes) -> None:
        """Append a piece to the journal. After a failure no more is kept until the next checkpoint."""
        if self._journal is None:
            return
        try:
            self._journal.write(piece)
            self._journal.flush()
            if time.monotonic() - self._synced_at > SYNC:  # a kill needs none, a power cut does
                os.fsync(self._journal.fileno())
                self._synced_at = time.monotonic()
        except OSError as error:
            self.close()
            self._warn(error)

    def _warn(self, error: Exception) -> None:
        self.failed = True
        warnings.warn(
            f"The checkpoint {self.path} could not be written ({error}). The run goes on and its result is not "
            "affected, but if it is killed now it resumes from the last checkpoint that could be. Make room or mend "
            "the folder; it is tried again every few seconds.",
            RuntimeWarning,
            stacklevel=2,
        )

    def _tidy(self) -> None:
        """Remove what no manifest names: segments and journals of the past, and files that a kill left half written."""
        assert self.manifest is not None
        kept = {MANIFEST, LOCK, self.manifest.journal, *self.manifest.segments}
        for entry in self.path.iterdir():
            if entry.name not in kept and OURS.fullmatch(entry.name):
                entry.unlink(missing_ok=True)

    def close(self) -> None:
        """Close the journal."""
        if self._journal is not None:
            journal, self._journal = self._journal, None
            try:
                journal.close()
            except OSError:  # a full disk: what could not be flushed is lost
                pass

    def _check_first(self, there: dict[str, float], here: Columns) -> None:
        """Refuse another likelihood where a run was killed before it had a state."""
        values = np.array([there["log_likelihood"]]), here["log_likelihood"]
        require_same_likelihood(self.path, *values, noise=0.0)


def load_state(path: Any, problem: Problem, settings: Settings) -> tuple[State, int]:
    """Read the state of a run, whatever its seed, without writing anything.

    Args:
        path: Its folder.
        problem: Its problem, whose likelihood is recorded.
        settings: Its settings.

    Returns:
        ``(state, seed)``.

    Raises:
        ValueError: If there is no checkpoint, or one that does not belong to this call or has no state yet.
    """
    folder = as_path("merge", path)
    if not (folder / MANIFEST).is_file():
        raise ValueError(f"expected the folder of a checkpoint; there is none at {folder}. Give the path of a run.")
    run = read_manifest(folder).run
    checkpoint = Checkpoint(folder, problem, settings, run["seed"])
    checkpoint.identity["start"] = run.get("start")
    saved = checkpoint.restore()
    _journal(problem).known, _journal(problem).check = {}, None
    if saved is None:
        raise ValueError(f"The checkpoint {folder} has no draws yet. Let the run go on first.")
    return saved[0], run["seed"]


@contextmanager
def opened(
    path: Any, problem: Problem, settings: Settings, seed: int, start: Start | None = None
) -> Iterator[tuple[Checkpoint, tuple[State, list[StepInfo]] | None]]:
    """Open a run's folder, or make it, and hold its lock.

    Args:
        path: The folder; its parents are made.
        problem: The problem, whose likelihood is recorded.
        settings: Its settings.
        seed: The seed.
        start: Samples of a warm start.

    Yields:
        ``(checkpoint, saved)``: the folder, and the state and trace that it holds, if any.

    Raises:
        TypeError: If the settings make what no checkpoint can hold.
        ValueError: If something else is at `path`, or a checkpoint that does not belong to this call.
        OSError: If the folder cannot be written.
    """
    folder = as_path("checkpoint", path)
    exists = _check_path(folder)
    _demand_storable(problem, settings)
    checkpoint = Checkpoint(folder, problem, settings, seed, start)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        sync_folder(folder.parent)
    except OSError as error:
        raise _unwritable(folder, error) from None
    with _locked(folder):
        try:
            saved = checkpoint.restore() if exists else None
            try:
                checkpoint.begin()
            except OSError as error:
                raise _unwritable(folder, error) from None
            yield checkpoint, saved
        finally:
            checkpoint.close()
            _journal(problem).keep = None


def _read_journal(path: Path) -> tuple[dict[bytes, dict[str, float]], int]:
    data = read_bytes(path)
    try:
        return read(data)
    except ValueError as error:
        raise damaged(path, str(error)) from None


def _journal(problem: Problem) -> Journal:
    assert isinstance(problem.likelihood, Recorded)
    return problem.likelihood.journal


def _check_path(folder: Path) -> bool:
    """Whether there is a checkpoint; refuse to write over anything else."""
    if folder.name in ("", ".."):
        raise ValueError(f"`checkpoint` expected the path of a folder; got {str(folder)!r}. Write 'run.nsflow'.")
    try:
        entries = {entry.name: entry for entry in os.scandir(folder)}
    except (FileNotFoundError, NotADirectoryError):
        if not folder.exists():
            return False
        entries = None
    except OSError as error:
        raise _unwritable(folder, error) from None
    is_known = entries is not None and MANIFEST in entries
    if entries is None or not (is_known or all(map(OURS.fullmatch, entries))):
        raise ValueError(
            f"`checkpoint` expected a new path or an nsflow checkpoint; there is something else at {folder}. "
            "Nothing was written. Give another path."
        )
    for name, entry in entries.items():
        if OURS.fullmatch(name) and not entry.is_file(follow_symlinks=False):
            raise damaged(folder / name, "it is no file but a link, pipe, device or folder")
    if not is_known and any(re.match("segment|journal-[2-9]", name) for name in entries):
        raise damaged(folder / MANIFEST, "it is missing")
    return is_known


_HELD: set[tuple[int, int, int]] = set()  # folders in use: a process's file locks do not keep its own threads apart
_HOLDING = threading.Lock()


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the folder against other threads, and other processes where the system can."""
    status = folder.stat()
    key = (os.getpid(), status.st_dev, status.st_ino)
    with _HOLDING:
        if key in _HELD:  # the file is not opened either: to close it again would give up this process's lock
            raise _in_use(folder, "run of this process")
        _HELD.add(key)
    try:
        try:
            lock = open(open_regular(folder / LOCK, os.O_WRONLY | os.O_APPEND | os.O_CREAT), "ab")
        except OSError as error:
            raise _unwritable(folder, error) from None
        with lock:
            _acquire(lock, folder)
            yield
    finally:
        with _HOLDING:
            _HELD.discard(key)


def _acquire(lock: BinaryIO, folder: Path) -> None:
    try:
        import fcntl
    except ImportError:  # not a POSIX system
        return
    try:
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        raise _in_use(folder, "process") from None
    except OSError:  # a file system without locks
        pass


def _in_use(folder: Path, who: str) -> ValueError:
    return ValueError(f"The checkpoint {folder} is in use by another {who}. Wait for it, or give another path.")


def _demand_storable(problem: Problem, settings: Settings) -> None:
    """Refuse settings that make what a checkpoint cannot hold, by making a small one of each kind."""
    given = given_by(problem, settings)
    num_dims = problem.prior.num_dims
    try:
        objective = settings.training.objective
        if objective is not None:
            field = objective.init(jax.random.key(0), num_dims, Architecture(8, 1))
            Encoder(given).encode((objective.velocity(field), getattr(objective, "base", None)))
        if isinstance(settings.proposal, AbstractEstimator) and not type(settings.proposal).__module__.startswith(
            "nsflow."
        ):
            points = np.random.default_rng(0).normal(size=(100 * num_dims, num_dims))
            Encoder(given).encode(settings.proposal.fit(jax.random.key(0), points, np.zeros(len(points))))
    except NotStorable as error:
        raise TypeError(
            f"`checkpoint` expected settings whose proposals can be stored; got {error}. Make it a dataclass of "
            "arrays, numbers and parts of nsflow and name it by `nsflow.storable`; or run without a checkpoint."
        ) from error


def _unwritable(folder: Path, error: OSError) -> OSError:
    message = f"`checkpoint` expected a folder that can be written; got {folder} ({error}). Give another path."
    return type(error)(error.errno, message) if error.errno else OSError(message)
