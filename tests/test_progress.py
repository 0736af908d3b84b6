"""What a run tells: closed forms of its records, then displays, logs and functions that fail."""

import io
import logging
import math
import sys
from contextlib import redirect_stderr
from types import SimpleNamespace

import numpy as np
import numpyro.distributions as dist
import pytest
from rich.console import Console

import nsflow
from nsflow.nested import progress as module
from nsflow.nested.progress import Progress, progress_of, watching
from nsflow.nested.state import StepInfo
from nsflow.results.results import load

SETTINGS = nsflow.Settings(ess=1000, max_calls=10_000)
QUICK = nsflow.Settings(ess=300, num_prior=500, num_live=300, rounds=(0.5,), max_rounds=1)


def step(phase, num_calls, ess, seconds):
    return StepInfo(phase, num_calls, -3.0, -5.0, ess, math.nan, False, logZ_err=0.1, seconds=seconds)


def frozen(*steps):
    return [step("posterior", 500, 90.0, 2.0), *(step("frozen", *numbers) for numbers in steps)]


def run(progress=False):
    """Two Gaussian dimensions on the host: nothing of the likelihood is compiled."""
    likelihood = nsflow.HostLikelihood(lambda p: -0.5 * np.sum(p["x"] ** 2, axis=-1), vectorized=True)
    prior = nsflow.Prior({"x": dist.Uniform(-5.0, 5.0).expand([2])})
    return nsflow.run(likelihood, prior, settings=QUICK, progress=progress)


@pytest.fixture(scope="module")
def quiet():
    return run()


# ---- closed forms


def test_time_left_is_that_at_the_rate_of_the_frozen_phase():
    """200 effective samples took 4 seconds, and 700 are missing."""
    record = progress_of(frozen((1000, 100.0, 10.0), (1400, 200.0, 12.0), (1800, 300.0, 14.0)), SETTINGS)
    assert record.seconds_left == pytest.approx(14.0)
    assert record.calls_per_second == pytest.approx(1300 / 12)
    assert record[:7] == ("frozen", -3.0, -5.0, 0.1, 300.0, 1000.0, 1800)


def test_the_cap_on_calls_ends_a_run_before_the_target_does():
    """1000 calls took 4 seconds and gave an ESS of 2; 8000 calls are left, and 998 are missing."""
    record = progress_of(frozen((1000, 0.0, 10.0), (2000, 2.0, 14.0)), SETTINGS)
    assert record.seconds_left == pytest.approx(32.0)


@pytest.mark.parametrize(
    "trace",
    [
        [step("ladder", 500, 20.0, 1.0), step("ladder", 900, 30.0, 2.0)],
        frozen((1000, 100.0, 10.0)),
        frozen((1000, 100.0, 10.0), (2000, 60.0, 11.0)),  # a heavy weight came
    ],
)
def test_time_left_is_none_where_nobody_can_know(trace):
    assert progress_of(trace, SETTINGS).seconds_left is None


def test_nothing_is_left_beyond_the_target():
    assert progress_of(frozen((1000, 100.0, 10.0), (2000, 1100.0, 11.0)), SETTINGS).seconds_left == 0


def test_speed_is_that_of_the_last_steps():
    """Eleven slow steps before ten fast ones leave no trace but their last moment."""
    trace = [step("ladder", 100 * i, 1.0, 10.0 * i) for i in range(1, 12)]
    trace += [step("ladder", 1100 + 100 * i, 1.0, 110.0 + i) for i in range(1, 11)]
    assert progress_of(trace, SETTINGS).calls_per_second == pytest.approx(100.0)
    assert math.isnan(progress_of([step("ladder", 100, 1.0, 0.0)], SETTINGS).calls_per_second)


# ---- a run


def test_every_step_is_handed_on_and_the_last_one_is_the_headline(quiet):
    records: list[Progress] = []
    result = run(records.append)
    assert result == quiet  # watching changes nothing but the times
    assert [(r.phase, r.num_calls, r.logZ) for r in records] == [
        (t["phase"], t["num_calls"], t["logZ"]) for t in result.trace
    ]
    last = records[-1]
    assert (last.logZ, last.logZ_err, last.ess) == (result.logZ, result.logZ_err, result.ess)
    assert last.target == 300
    seconds = [t["seconds"] for t in result.trace]
    assert seconds == [r.seconds for r in records]
    assert (np.diff(seconds) > 0).all()
    assert seconds[0] > 0


def test_errors_of_the_phases_fall_with_the_draws(quiet):
    errors = [t["logZ_err"] for t in quiet.trace]
    assert np.isfinite(errors).all()
    assert errors[-1] == quiet.logZ_err
    assert errors[0] > errors[-1]


def test_times_do_not_make_results_differ_and_are_saved(quiet, tmp_path):
    quiet.save(tmp_path / "run")
    back = load(tmp_path / "run")
    assert [t["seconds"] for t in back.trace] == [t["seconds"] for t in quiet.trace]
    assert back == quiet


def test_a_function_that_raises_is_named_once_and_the_run_goes_on(quiet, caplog):
    calls = []

    def broken(record):
        calls.append(record)
        raise RuntimeError("no such channel")

    assert run(broken) == quiet
    assert len(calls) == len(quiet.trace)  # it may recover
    (warning,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert "`progress` failed" in warning.message
    assert "no such channel" in caplog.text


def test_a_batch_job_logs_a_line_a_step_and_prints_nothing(caplog, capsys):
    with caplog.at_level(logging.INFO, logger="nsflow"), watching(True, SETTINGS) as report:
        trace = frozen((1000, 100.0, 10.0), (2000, 200.0, 20.0))
        for end in range(1, len(trace) + 1):
            report(trace[:end])
    assert [record.message for record in caplog.records] == [
        "posterior: contour -3.00, logZ -5.000 +- 0.100 nats (a guide), ESS 90 of 1000, 500 calls, 250 a second, "
        "0:00:02 so far, unknown left",
        "frozen: contour -3.00, logZ -5.000 +- 0.100 nats, ESS 100 of 1000, 1000 calls, 62 a second, "
        "0:00:10 so far, unknown left",
        "frozen: contour -3.00, logZ -5.000 +- 0.100 nats, ESS 200 of 1000, 2000 calls, 83 a second, "
        "0:00:20 so far, 0:01:20 left",
    ]
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("progress", [None, "bar", 1])
def test_wrong_kinds_are_refused(progress):
    with pytest.raises(TypeError, match="`progress` expected True .* got"):
        run(progress)


# ---- displays


@pytest.fixture
def terminal(monkeypatch):
    """Standard error that says it is a terminal."""
    stream = io.StringIO()
    stream.isatty = lambda: True
    monkeypatch.setenv("TERM", "xterm-256color")
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_INTERACTIVE", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    return stream


def show(stream, progress=True):
    # Inside the test: pytest puts its own standard error back after the fixtures.
    with redirect_stderr(stream), watching(progress, SETTINGS) as report:
        report(frozen((1000, 100.0, 10.0), (2000, 200.0, 20.0)))


def test_a_terminal_shows_phase_evidence_speed_and_time_left(terminal):
    show(terminal)
    shown = terminal.getvalue()
    for text in ("posterior", "200 of 1000", "-5.000 +- 0.100 nats", "contour -3.00", "2000 calls, 83 a second"):
        assert text in shown
    assert "about 0:01:20 left" in shown
    assert shown.count("\x1b[2K") >= 4  # lines are drawn over, and gone at the end


def test_what_is_printed_to_a_file_stays_there(terminal, capsys):
    with redirect_stderr(terminal), watching(True, SETTINGS) as report:
        print("from the likelihood")
        report(frozen((1000, 100.0, 10.0)))
    assert capsys.readouterr().out == "from the likelihood\n"
    assert "from the likelihood" not in terminal.getvalue()


def test_false_shows_nothing_on_a_terminal(terminal):
    show(terminal, False)
    assert terminal.getvalue() == ""


def test_without_rich_there_is_a_line_a_step(terminal, monkeypatch):
    monkeypatch.setitem(sys.modules, "rich.console", None)
    show(terminal)
    first, second = terminal.getvalue().splitlines()
    assert first == "nsflow: drawing from the prior"
    assert second.startswith("nsflow: frozen: contour -3.00")


def test_a_terminal_that_cannot_draw_over_gets_lines(terminal, monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    show(terminal)
    assert len(terminal.getvalue().splitlines()) == 2


def test_a_terminal_that_hangs_up_does_not_end_the_run(terminal, monkeypatch, caplog):
    def write(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(module, "_display", lambda *_: SimpleNamespace(start=write, show=write, stop=write))
    show(terminal)
    assert caplog.text.count("`progress` failed") == 1


def test_the_panel_says_what_is_a_guide_before_the_first_step_and_after_it():
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=100)
    panel = module._Panel(console, SETTINGS, num_within=lambda: 70)
    console.print(panel)
    panel.latest = progress_of([step("ladder", 500, 20.0, 1.0)], SETTINGS)
    console.print(panel)
    before, after = file.getvalue().split("nsflow")[1:]
    assert "so far; 70 calls" in before
    assert "570 calls" in after  # 70 of the step at work
    assert "a guide until draws are frozen" in after
    assert "left" not in after
