"""SIGTERM and SIGINT during a run: asked to stop, it stops between two batches instead of losing its work."""

import multiprocessing
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import final


@final
class Interrupt:
    """Which signal has come, if any."""

    def __init__(self) -> None:
        self.number = 0

    @property
    def received(self) -> bool:
        """Whether one has."""
        return self.number != 0

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Note a signal; a second SIGINT is a KeyboardInterrupt as usual, which says where it came."""
        if self.received and number == signal.SIGINT:
            where = f" in {frame.f_code.co_name}, {frame.f_code.co_filename}:{frame.f_lineno}" if frame else ""
            raise KeyboardInterrupt(f"interrupted{where}")
        self.number = number

    def hand_on(self) -> None:
        """Do what the signal would have done if it had not been noted."""
        signal.raise_signal(self.number)


@contextmanager
def listen(interrupt: Interrupt | None = None, *, to_all: bool = True) -> Iterator[Interrupt]:
    """Note SIGTERM and SIGINT while the block runs, and restore what handled them before.

    Python lets only the main thread handle signals: in others nothing changes. What the caller ignores stays ignored.

    Args:
        interrupt: What notes them; a new one if left out.
        to_all: Whether to take signals away from handlers that the caller has set, as well as from Python's own.

    Yields:
        What says whether one came.

    Example:
        >>> with listen() as interrupt:
        ...     signal.raise_signal(signal.SIGTERM)
        >>> interrupt.received
        True
    """
    interrupt, before = interrupt or Interrupt(), {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT):
            handler = signal.getsignal(number)
            is_set = handler not in (signal.SIG_DFL, signal.default_int_handler)
            if handler not in (signal.SIG_IGN, None) and (to_all or not is_set):
                before[number] = signal.signal(number, interrupt.handle)
    try:
        yield interrupt
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def leave_to_parent() -> None:
    """In a process of a pool, ignore the first SIGINT, which a terminal sends to its whole group.

    The parent decides what becomes of the work. The second SIGINT is a KeyboardInterrupt there as here.

    Example:
        >>> before = signal.getsignal(signal.SIGINT)
        >>> leave_to_parent()  # this process has no parent
        >>> signal.getsignal(signal.SIGINT) == before
        True
    """
    is_worker = multiprocessing.parent_process() and threading.current_thread() is threading.main_thread()
    if is_worker and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, Interrupt().handle)
