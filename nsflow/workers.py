"""Pools of other libraries behind one interface, which survives workers that die or hang."""

import os
import time
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.process import BaseProcess
from typing import Any, final

from nsflow.failure import Lost, describe

POLL = 0.1  # seconds between two looks at workers that have not answered
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
            What the function returned, in order; :class:`nsflow.failure.Lost` where a worker died or hung.
        """
        submit = _submit(self.pool)
        if submit is None:
            results = self.pool.map(task, chunks)
            return list(self.pool.gather(results) if hasattr(self.pool, "gather") else results)
        processes = _processes(self.pool)  # before any of them can die
        try:
            handles = [submit(task, chunk) for chunk in chunks]
        except Exception as error:  # the pool is broken, or the task cannot be sent
            return [Lost(describe(error), chunk) for chunk in chunks]
        return self._collect(handles, chunks, processes)

    def renew(self) -> None:
        """Put a new pool in the place of one that a dead or hanging worker has spoilt, where that can be done."""
        if self._make is not None:
            self._finalise()
            self._pool, self._has_answered = None, False
        elif type(self._pool) is ProcessPoolExecutor:  # one dead process breaks it for good
            old: Any = self._pool
            _stop(old)
            arguments = {"mp_context": old._mp_context, "initializer": old._initializer, "initargs": old._initargs}
            self._own(ProcessPoolExecutor(old._max_workers, **arguments))
            self._has_answered = False

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
    """End a pool and its workers, also those that hang."""
    processes = list((getattr(pool, "_processes", None) or {}).values()) if hasattr(pool, "submit") else []
    if hasattr(pool, "terminate"):
        pool.terminate()
    elif isinstance(pool, ProcessPoolExecutor):
        pool.shutdown(wait=False, cancel_futures=True)
        for process in processes:
            if isinstance(process, BaseProcess):
                process.kill()
    elif hasattr(pool, "shutdown"):
        pool.shutdown(wait=False)
    elif hasattr(pool, "close"):
        pool.close()
