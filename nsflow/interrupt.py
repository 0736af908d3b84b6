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
    """Whether a signal has come."""

    def __init__(self) -> None:
        self.received = False

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Note a signal; a second SIGINT is a KeyboardInterrupt as usual."""
        if self.received and number == signal.SIGINT:
            signal.default_int_handler(number, frame)
        self.received = True


@contextmanager
def listen() -> Iterator[Interrupt]:
    """Note SIGTERM and SIGINT while the block runs, and restore what handled them before.

    Python lets only the main thread handle signals: in others nothing changes. What the caller ignores stays ignored.

    Yields:
        What says whether one came.

    Example:
        >>> with listen() as interrupt:
        ...     signal.raise_signal(signal.SIGTERM)
        >>> interrupt.received
        True
    """
    interrupt, before = Interrupt(), {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT):
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
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
