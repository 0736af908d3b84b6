"""Pools of other libraries behind one interface, which survives workers that die or hang."""

import os
import sys
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, nullcontext
from multiprocessing.pool import ThreadPool
from multiprocessing.process import BaseProcess
from typing import Any, final

from nsflow.numerics.errors import Lost, describe

POLL = 0.1  # seconds between two looks at workers that have not answered
GRACE = 3.0  # seconds that the workers of a pool have to end before they are killed
START = 60.0  # seconds beyond the time-out that workers have to start and to import what they need
KINDS = "multiprocessing, concurrent.futures, mpi4py.futures, schwimmbad, a dask Client, ray.util.multiprocessing"


@final
class Workers:
    """The workers of a pool.

    Args:
        pool: A pool, or a function or class without arguments that makes one, called when work comes.
        timeout: Seconds without any result after which the outstanding work is given up; None to wait for ever.

    Raises:
        TypeError: If `pool` is neither.
        ValueError: If there is a `timeout`, and the pool can only wait until all its work is done.

    Example:
        >>> from concurrent.futures import ThreadPoolExecutor
        >>> Workers(lambda: ThreadPoolExecutor(2)).map(sum, [(1, 2), (3, 4)])
        [3, 7]
    """

    def __init__(self, pool: Any, timeout: float | None = None) -> None:
        self._make = None if _is_pool(pool) else pool
        self._pool = pool if _is_pool(pool) else None
        self._timeout = timeout
        self._has_answered = False
        self._has_warned = False
        self._num_users, self._lock = 0, threading.Lock()
        self._finalise: Callable[[], Any] = lambda: None
        if self._pool is None and not callable(pool):
            raise TypeError(
                f"`HostLikelihood` expected a `pool` with a `map` method, or a function that makes one; got {pool!r}. "
                f"Give a pool of {KINDS}, or for instance `pool=multiprocessing.Pool`."
            )
        if self._pool is not None:
            self._require_timeout()

    @property
    def is_made_here(self) -> bool:
        """Whether the pool was given as what makes it."""
        return self._make is not None

    @property
    def pool(self) -> Any:
        """The pool at work; made now if it was not yet."""
        if self._pool is None:
            assert self._make is not None
            with _own_warning():
                pool = self._make()
            if not _is_pool(pool):
                raise TypeError(
                    f"`HostLikelihood` expected `pool` to make a pool with a `map` method; it made {pool!r}. "
                    f"Return a pool of {KINDS}."
                )
            self._own(pool)
            self._require_timeout()
        return self._pool

    @property
    def number(self) -> int:
        """Number of workers, as the pool tells it; else of this machine's processors."""
        if hasattr(self.pool, "nthreads"):  # a dask Client
            return max(1, sum(self.pool.nthreads().values()))
        told = (getattr(self.pool, name, None) for name in ("num_workers", "size", "_max_workers", "_processes"))
        return next((n for n in told if isinstance(n, int) and n > 0), os.cpu_count() or 1)

    def map(self, task: Callable[[Any], Any], chunks: Sequence[Any]) -> list[Any]:
        """Apply a function that does not raise to every chunk.

        Returns:
            What the function returned, in order; :class:`nsflow.numerics.errors.Lost` where a worker died or hung.
        """
        pool = self.pool
        if not self._has_warned:
            self._has_warned = True
            _warn_of_fork(pool)
        submit = _submit(pool)
        if submit is None:
            results = pool.map(task, chunks)
            return list(pool.gather(results) if hasattr(pool, "gather") else results)
        processes = _processes(pool)  # before any of them can die
        try:
            with _own_warning() if _is_forking(pool) else nullcontext():
                handles = [submit(task, chunk) for chunk in chunks]
        except Exception as error:  # the pool is broken, or the task cannot be sent
            return [Lost(describe(error), chunk) for chunk in chunks]
        results = self._collect(handles, chunks, processes)
        if self._make is not None and any(isinstance(result, Lost) for result in results):
            self._end()  # what hangs would be at work until this process ends, and keep it from that
        return results

    def renew(self) -> None:
        """Put a new pool in the place of one that a dead or hanging worker has spoilt, where that can be done."""
        if self._make is not None:
            self._end()
        elif type(self._pool) is ProcessPoolExecutor:  # one dead process breaks it for good
            old: Any = self._pool
            _stop(old)
            arguments = {"mp_context": old._mp_context, "initializer": old._initializer, "initargs": old._initargs}
            self._make = lambda: ProcessPoolExecutor(old._max_workers, **arguments)
            self._own(self._make())
            self._has_answered = False

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """End a pool that this object has made when the last of the blocks that use it is left."""
        with self._lock:
            self._num_users += 1
        try:
            yield
        finally:
            with self._lock:
                self._num_users -= 1
                is_last = self._num_users == 0
            if is_last and self._make is not None:
                self._end()

    def _end(self) -> None:
        """End the pool that this object has made; another is made when there is work."""
        self._finalise()
        self._pool, self._has_answered = None, False

    def _own(self, pool: Any) -> None:
        """Use a pool that this object has made, and must stop."""
        self._pool = pool
        self._finalise = weakref.finalize(self, _stop, pool)

    def _require_timeout(self) -> None:
        if self._timeout is not None and _submit(self._pool) is None:
            raise ValueError(
                f"`HostLikelihood` expected a `pool` that can give up a call after `timeout`={self._timeout} seconds; "
                f"got {self._pool!r}, which only has `map`. Leave out `timeout`, or give a pool of multiprocessing or "
                "concurrent.futures."
            )

    def _collect(self, handles: list[Any], chunks: Sequence[Any], processes: list[Any]) -> list[Any]:
        """Wait for every answer, or until no answer has come for too long or a worker has died."""
        results: list[Any] = [None] * len(handles)
        waiting = dict(enumerate(handles))
        last = time.monotonic()
        while waiting:
            first = next(iter(waiting))
            _wait(waiting[first])
            done = [i for i, handle in waiting.items() if _is_done(handle)]
            for i in done:
                results[i] = _result(waiting.pop(i), chunks[i])
            self._has_answered = self._has_answered or bool(done)
            last = time.monotonic() if done else last
            current = _processes(self.pool)
            # Only of those that their pool has put away: two threads that ask at once may wait for ever.
            codes = [process.exitcode for process in processes if process not in current]
            reason = self._trouble([code for code in codes if code], time.monotonic() - last)
            if reason:
                return [Lost(reason, chunks[i]) if i in waiting else result for i, result in enumerate(results)]
        return results

    def _trouble(self, codes: Sequence[int], seconds: float) -> str:
        """Why the answers that are missing will not come; empty if they may."""
        if codes:
            return f"a worker of the pool died with exit code {codes[0]}"
        allowed = None if self._timeout is None else self._timeout + (0.0 if self._has_answered else START)
        return f"no answer within {self._timeout} seconds" if allowed is not None and seconds > allowed else ""


def _is_pool(pool: Any) -> bool:
    return not isinstance(pool, type) and callable(getattr(pool, "map", None))


def _submit(pool: Any) -> Callable[..., Any] | None:
    """How one call is handed to a pool; None where it only maps."""
    if hasattr(pool, "submit") and hasattr(pool, "gather"):  # a dask Client; it remembers the values of pure functions
        return lambda task, chunk: pool.submit(task, chunk, pure=False)
    if hasattr(pool, "submit"):
        return pool.submit
    if hasattr(pool, "apply_async"):
        return lambda task, chunk: pool.apply_async(task, (chunk,))
    return None


def _wait(handle: Any) -> None:
    """Wait for one answer, for a moment."""
    if hasattr(handle, "wait"):
        handle.wait(POLL)
        return
    try:
        handle.result(POLL)
    except Exception:  # that it is not there yet, or what `_result` will meet again
        return


def _is_done(handle: Any) -> bool:
    return bool(handle.done() if hasattr(handle, "done") else handle.ready())


def _result(handle: Any, chunk: Any) -> Any:
    try:
        return handle.result() if hasattr(handle, "result") else handle.get()
    except Exception as error:  # the task itself never raises: the pool lost its worker, or could not send it
        return Lost(describe(error), chunk)


def _processes(pool: Any) -> list[Any]:
    """Processes of a multiprocessing pool, which replaces dead ones without a word, and forgets their work."""
    processes = getattr(pool, "_pool", None)
    return [p for p in processes if hasattr(type(p), "exitcode")] if isinstance(processes, list) else []


def _stop(pool: Any) -> None:
    """End a pool and its workers within seconds, also those that hang or ignore that they are asked to end."""
    executor: Any = getattr(pool, "_processes", None) if isinstance(pool, ProcessPoolExecutor) else None
    processes = [p for p in [*_processes(pool), *(executor or {}).values()] if isinstance(p, BaseProcess)]
    if isinstance(pool, ProcessPoolExecutor):
        pool.shutdown(wait=False, cancel_futures=True)
        for process in processes:
            process.kill()
    elif hasattr(pool, "terminate"):
        # It waits for ever for workers that ignore SIGTERM, and for a lock that one of them holds as it dies.
        ending = threading.Thread(target=pool.terminate, daemon=True)
        try:
            ending.start()
            ending.join(GRACE)
        except RuntimeError:  # Python itself is ending
            pass
        for process in processes:
            process.kill()
    elif hasattr(pool, "shutdown"):
        pool.shutdown(wait=False)
    elif hasattr(pool, "close"):
        pool.close()


FORKED = (r"os\.fork\(\) was called", r".*multi-threaded, use of fork\(\)")  # of JAX, and of Python


@contextmanager
def _own_warning() -> Iterator[None]:
    """Leave out what others say where a process is forked: what is said in its place tells what to do."""
    with warnings.catch_warnings():
        for message in FORKED:
            warnings.filterwarnings("ignore", message)
        yield


def _is_forking(pool: Any) -> bool:
    context: Any = getattr(pool, "_ctx", None) or getattr(pool, "_mp_context", None)
    is_fork = hasattr(context, "get_start_method") and context.get_start_method() == "fork"
    return is_fork and not isinstance(pool, ThreadPool)


def _warn_of_fork(pool: Any) -> None:
    """Warn of workers that are, or will be, copies of a process that has started JAX."""
    if not _is_forking(pool) or not has_started_jax():
        return
    submit, is_running = _submit(pool), bool(_processes(pool) or getattr(pool, "_processes", None))
    if is_running and submit is not None:
        handle = submit(_has_jax, None)  # workers that were forked before JAX started are fine
        for _ in range(round(START / POLL)):
            _wait(handle)
            if _is_done(handle):
                break
        if not _is_done(handle) or _result(handle, None) is not True:
            return
    warnings.warn(
        "The pool of the likelihood forks a process in which JAX has started, which has threads: a copy of it may wait "
        'for ever. Give `pool=multiprocessing.get_context("spawn").Pool`, or "forkserver", or of concurrent.futures '
        '`ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn"))`.',
        RuntimeWarning,
        stacklevel=2,
    )


def _has_jax(_: None) -> bool:
    """Asked of a worker before any work: whether it has inherited a JAX that had started."""
    return has_started_jax()


def has_started_jax() -> bool:
    """Whether JAX has made its threads in this process, or in the one of which it is a copy."""
    bridge = sys.modules.get("jax._src.xla_bridge")
    return bool(getattr(bridge, "backends_are_initialized", bool)())
