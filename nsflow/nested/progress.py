"""What a run tells while it lasts: one record a step, to a terminal, a log, or a function of the user's."""

import logging
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NamedTuple

from nsflow.nested.state import Phase, Settings, StepInfo

LOG = logging.getLogger("nsflow")
RECENT = 10  # steps over which the speed is measured: the first ones compile
PHASES = tuple(str(phase) for phase in Phase if phase is not Phase.FINISHED)


class Progress(NamedTuple):
    """Where a run is after one step.

    Before the frozen phase `logZ`, its error and `ess` are those of the points that train the proposals: a guide,
    biased low. In it they are those of the draws that count.
    """

    phase: str  # "ladder", "scouting", "posterior" or "frozen"
    contour: float  # log L above which the newest level was trained, nats
    logZ: float  # nats
    logZ_err: float  # nats
    ess: float
    target: float  # effective sample size at which the run is finished
    num_calls: int
    calls_per_second: float  # of the last steps; NaN where no time has passed
    seconds: float  # so far
    seconds_left: float | None  # None before the frozen phase has shown how fast its ESS grows

    def __str__(self) -> str:
        left = "unknown" if self.seconds_left is None else clock(self.seconds_left)
        guide = "" if self.phase == Phase.FROZEN else " (a guide)"
        return (
            f"{self.phase}: contour {self.contour:.2f}, logZ {self.logZ:.3f} +- {self.logZ_err:.3f} nats{guide}, "
            f"ESS {self.ess:.0f} of {self.target:.0f}, {self.num_calls} calls, {self.calls_per_second:.0f} a second, "
            f"{clock(self.seconds)} so far, {left} left"
        )


def progress_of(trace: Sequence[StepInfo], settings: Settings) -> Progress:
    """Sum up the steps so far.

    Args:
        trace: What each step did, at least one, with their `seconds`.
        settings: Options of the run: its target, and the calls after which it is stopped.

    Returns:
        The record of the last step. The time left is that to the target at the rate at which the frozen phase has
        gained ESS, or that to `max_calls` where it is shorter; a phase that trains cannot tell when it will end.

    Example:
        >>> step = StepInfo("frozen", 1000, -3.0, -5.0, 100.0, float("nan"), False, logZ_err=0.1, seconds=10.0)
        >>> steps = [step, step._replace(num_calls=2000, ess=300.0, seconds=12.0)]
        >>> progress = progress_of(steps, Settings(ess=1000))
        >>> progress.calls_per_second, progress.seconds_left
        (500.0, 7.0)
        >>> progress_of(steps[:1], Settings(ess=1000)).seconds_left is None
        True
    """
    last, before = trace[-1], trace[-1 - RECENT : -1]
    elapsed, num_calls = last.seconds, last.num_calls
    if before:
        elapsed, num_calls = elapsed - before[0].seconds, num_calls - before[0].num_calls
    speed = num_calls / elapsed if elapsed > 0 else float("nan")
    return Progress(
        phase=last.phase,
        contour=last.contour,
        logZ=last.logZ,
        logZ_err=last.logZ_err,
        ess=last.ess,
        target=float(settings.ess),
        num_calls=last.num_calls,
        calls_per_second=speed,
        seconds=last.seconds,
        seconds_left=_seconds_left(trace, settings),
    )


def _seconds_left(trace: Sequence[StepInfo], settings: Settings) -> float | None:
    """Time to the target or the cap; None where the frozen phase has not gone on for two steps."""
    first = len(trace)
    while first > 0 and trace[first - 1].phase == Phase.FROZEN:
        first -= 1
    if len(trace) - first < 2:
        return None
    start, last = trace[first], trace[-1]
    gained, spent, elapsed = last.ess - start.ess, last.num_calls - start.num_calls, last.seconds - start.seconds
    if min(gained, spent, elapsed) <= 0:  # a heavy weight can take more from the ESS than the others gave
        return None
    missing = min(
        max(settings.ess - last.ess, 0.0) / gained,
        max(settings.max_calls - last.num_calls, 0) / spent,
    )
    return missing * elapsed


def clock(seconds: float) -> str:
    """Write a duration.

    Args:
        seconds: The duration.

    Returns:
        Hours, minutes and seconds.

    Example:
        >>> clock(3725.4)
        '1:02:05'
    """
    return str(timedelta(seconds=round(seconds)))


Listener = Callable[[Progress], object]


def check_progress(progress: object) -> None:
    """Refuse what can be neither a choice nor a listener.

    Args:
        progress: What a user gave.

    Raises:
        TypeError: If it is not True, False or a function.
    """
    if not isinstance(progress, bool) and not callable(progress):
        raise TypeError(
            "`progress` expected True (a display, on an interactive terminal only), False (none), or a function of one "
            f"nsflow.Progress; got {progress!r}."
        )


@contextmanager
def watching(
    progress: bool | Listener, settings: Settings, num_within: Callable[[], int] = lambda: 0
) -> Iterator[Callable[[Sequence[StepInfo]], None]]:
    """Log every step, and show it or hand it on, until the run ends.

    The logger is "nsflow", the level INFO. Nothing that a display or a function raises ends the run: the first mistake
    is logged as a warning, which Python prints where logging was not set up, and the run goes on.

    Args:
        progress: True for a display on standard error where that is an interactive terminal, False for none, or a
            function that is called with the :class:`Progress` of every step.
        settings: Options of the run.
        num_within: Tells the likelihood calls of the step at work; the display counts them as they come.

    Yields:
        A function of the steps so far, to be called after each.
    """
    display = _display(settings, num_within) if progress is True and _is_interactive() else None
    listener = display.show if display else progress if callable(progress) else None
    has_failed = False

    def guard(call: Callable[..., object], *args: Any) -> None:
        nonlocal has_failed
        try:
            call(*args)
        except Exception:
            if not has_failed:
                LOG.warning("`progress` failed; the run goes on, and says this only once", exc_info=True)
            has_failed = True

    def report(trace: Sequence[StepInfo]) -> None:
        record = progress_of(trace, settings)
        LOG.info("%s", record)
        if listener is not None:
            guard(listener, record)

    if display:
        guard(display.start)
    try:
        yield report
    finally:
        if display:
            guard(display.stop)


def _is_interactive() -> bool:
    return _is_terminal(sys.stderr)


def _is_terminal(stream: Any) -> bool:
    """Whether a stream is one; it may be missing, or an object that only has `write`."""
    return bool(getattr(stream, "isatty", bool)())


def _display(settings: Settings, num_within: Callable[[], int]) -> "_Panel | _Lines":
    """Four lines that are drawn over, where rich is installed and the terminal can; else a line a step."""
    try:
        from rich.console import Console
    except ImportError:
        return _Lines()
    console = Console(stderr=True)
    return _Panel(console, settings, num_within) if console.is_interactive else _Lines()


class _Lines:
    """A line a step."""

    def start(self) -> None:
        print("nsflow: drawing from the prior", file=sys.stderr, flush=True)

    def show(self, progress: Progress) -> None:
        print(f"nsflow: {progress}", file=sys.stderr, flush=True)

    def stop(self) -> None: ...


class _Panel:
    """Four lines that are drawn over, four times a second as the clock runs while a step lasts; gone at the end."""

    def __init__(self, console: Any, settings: Settings, num_within: Callable[[], int]) -> None:
        from rich.live import Live

        self.num_within = num_within
        self.target = float(settings.ess)
        self.latest: Progress | None = None
        self.since = time.monotonic()
        # What a likelihood prints goes above the lines; but to its file where that is not the terminal.
        is_shown = _is_terminal(sys.stdout)
        self.live = Live(self, console=console, refresh_per_second=4, transient=True, redirect_stdout=is_shown)

    def start(self) -> None:
        self.since = time.monotonic()
        self.live.start()

    def show(self, progress: Progress) -> None:
        self.latest, self.since = progress, time.monotonic()
        self.live.refresh()

    def stop(self) -> None:
        self.live.stop()

    def __rich__(self) -> Any:
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        latest, passed = self.latest, time.monotonic() - self.since
        current = latest.phase if latest else "prior"
        phases = Text(" > ").join(
            Text(phase, "bold green" if phase == current else "dim") for phase in ("prior", *PHASES)
        )
        grid = Table.grid(padding=(0, 2))
        grid.add_row("nsflow", phases)
        bar = ProgressBar(total=self.target, completed=min(latest.ess if latest else 0.0, self.target), width=40)
        if latest is None:
            grid.add_row("ESS", bar)
            grid.add_row("time", f"{clock(passed)} so far; {self.num_within()} calls")
            return grid
        ess = Table.grid(padding=(0, 2))
        ess.add_row(bar, f"{latest.ess:.0f} of {self.target:.0f}")
        grid.add_row("ESS", ess)
        guide = "" if latest.phase == Phase.FROZEN else ", a guide until draws are frozen"
        grid.add_row("log Z", f"{latest.logZ:.3f} +- {latest.logZ_err:.3f} nats{guide}; contour {latest.contour:.2f}")
        left = "" if latest.seconds_left is None else f", about {clock(max(latest.seconds_left - passed, 0))} left"
        speed = f"{latest.num_calls + self.num_within()} calls, {latest.calls_per_second:.0f} a second"
        grid.add_row("time", f"{clock(latest.seconds + passed)} so far{left}; {speed}")
        return grid
