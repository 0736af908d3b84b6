"""The command: every word that can be typed ends in an exit code and a sentence, never in a traceback from inside."""

import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from matplotlib.figure import Figure

import nsflow
from nsflow import cli, plots
from nsflow.cli import main
from nsflow.nested import progress
from nsflow.results import html
from tests.test_plots import gaussian

MODEL = """
import numpy as np
import numpyro.distributions as dist
import nsflow
from neighbour import WIDTH

prior = nsflow.Prior({"x": dist.Uniform(-5.0, 5.0).expand([2])})
settings = nsflow.Settings(ess=300, num_prior=500, num_live=300, rounds=(0.5,), max_rounds=1)
log_likelihood = nsflow.HostLikelihood(lambda p: -0.5 * np.sum((p["x"] / WIDTH) ** 2, axis=-1), vectorized=True)
"""
BROKEN = """
import numpy as np
import numpyro.distributions as dist
import nsflow

prior = nsflow.Prior({"x": dist.Uniform(-5.0, 5.0)})

def residual(x):
    return missing_data - x

def function(p):
    return -0.5 * residual(p["x"]) ** 2

log_likelihood = nsflow.HostLikelihood(function)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two saved results, the second with alarms, and a model file with a neighbour that it imports."""
    path = tmp_path_factory.mktemp("terminal")
    gaussian(seed=1).save(path / "good")
    gaussian(
        seed=2, logZ=-7.0, alarms=("one draw carries 12% of the evidence",), finished=False, stop_reason="max_calls"
    ).save(path / "bad")
    (path / "model.py").write_text(MODEL)
    (path / "neighbour.py").write_text("WIDTH = 0.5\n")
    return path


@pytest.fixture(autouse=True)
def inside(folder, monkeypatch):
    """Work in that folder, and leave no import of a model behind."""
    monkeypatch.chdir(folder)
    path, modules = list(sys.path), set(sys.modules)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if Path(getattr(sys.modules[name], "__file__", None) or "/").is_relative_to(folder):
            del sys.modules[name]


def shell(*words, stdout=subprocess.PIPE, **env):
    """As a user starts it: a process of its own, without a terminal."""
    env = os.environ | {"PYTHONPATH": str(Path(nsflow.__file__).parent.parent)} | env
    command = [sys.executable, *(words if words[:1] == ("-c",) else ("-m", "nsflow", *words))]
    return subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, text=True, env=env)


# ---- run


def test_a_model_is_run_saved_and_shown(folder, capsys):
    assert main(["run", "model.py", "--seed", "3", "--output", "chains/new"]) == 0
    printed, warned = capsys.readouterr()
    assert warned == ""  # no display without a terminal
    result = nsflow.load(folder / "chains" / "new")
    assert result.seed == 3
    assert result.settings["ess"] == 300  # the model file's own settings
    assert f"{result.logZ:.3f} +- {result.logZ_err:.3f} nats" in printed
    assert "Saved chains/new.csv and .json" in printed

    # A second run does not replace it by accident, and finds that out before any work.
    before = (folder / "chains" / "new.csv").read_bytes()
    assert main(["run", "model.py", "--output", "chains/new"]) == 2
    assert "exist already. Give `--overwrite`" in capsys.readouterr().err
    assert (folder / "chains" / "new.csv").read_bytes() == before
    # A cap leaves it unfinished, which the exit code says; quiet prints nothing.
    assert main(["run", "model.py", "--output", "chains/new", "--overwrite", "--max-calls", "1e3", "--quiet"]) == 1
    assert capsys.readouterr() == ("", "")
    assert not nsflow.load(folder / "chains" / "new").finished


def test_the_hint_can_be_pasted_and_home_is_expanded(folder, capsys, monkeypatch):
    monkeypatch.setenv("HOME", str(folder / "home of a user"))
    assert main(["run", "model.py", "--output=~/my chains/a run", "--max-calls", "1e3"]) == 1
    hint = capsys.readouterr().out.splitlines()[-1].split("Next: ")[1]
    program, *words = shlex.split(hint)
    assert (program, words[0]) == ("nsflow", "report")
    assert Path(words[1]) == folder / "home of a user" / "my chains" / "a run"
    assert main(["show", "~/my chains/a run"]) == 1
    assert main(["plot", "~/my chains/a run", "--kind", "trace", "--output", "~/trace.png"]) == 0
    assert (folder / "home of a user" / "trace.png").exists()


def test_errors_hold_no_control_characters(capsys):
    assert main(["show", "no/such\x1b[2J"]) == 2
    said = capsys.readouterr().err
    assert r"no/such\x1b[2J" in said
    assert "\x1b" not in said


def test_a_stopped_run_is_resumed(folder, capsys):
    """What a cap stopped goes on to the same result as one at a go; a damaged checkpoint is told in plain words."""
    assert main(["run", "model.py", "--output", "chains/kept", "--resume", "--max-calls", "1500", "--quiet"]) == 1
    assert not nsflow.load(folder / "chains" / "kept").finished
    assert main(["run", "model.py", "--output", "chains/kept", "--resume", "--quiet"]) == 0
    assert main(["run", "model.py", "--output", "chains/whole", "--quiet"]) == 0
    kept, whole = (nsflow.load(folder / "chains" / name) for name in ("kept", "whole"))
    assert (kept.logZ, kept.num_calls) == (whole.logZ, whole.num_calls)
    manifest = folder / "chains" / "kept.nsflow" / "manifest"
    manifest.write_bytes(manifest.read_bytes()[:-10])
    capsys.readouterr()
    assert main(["run", "model.py", "--output", "chains/kept", "--resume"]) == 2
    assert "is damaged or cut short" in capsys.readouterr().err


def test_the_documented_model_gives_what_is_documented(folder, capsys):
    """A model in JAX, at a fifth of the documented size: log Z agrees within 5 of both errors, and so do the words."""
    page = (Path(__file__).parent.parent / "docs" / "guides" / "terminal.md").read_text(encoding="utf-8")
    model = re.search(r"```python\n(import jax.*?)```", page, re.DOTALL)
    printed = re.search(r"\$ nsflow run linear.py\n(.*?)```", page, re.DOTALL)
    assert model is not None
    assert printed is not None
    (folder / "linear.py").write_text(model[1])
    assert main(["run", "linear.py", "--ess", "2000"]) == 0
    now = capsys.readouterr().out
    found = [re.search(r"log Z +(-[\d.]+) \+- ([\d.]+) nats", text) for text in (printed[1], now)]
    (documented, error), (value, own_error) = [map(float, match.groups()) for match in found if match]
    assert abs(value - documented) < 5 * (error**2 + own_error**2) ** 0.5
    labels = [re.findall(r"^[a-zA-Z]+", text, re.MULTILINE) for text in (printed[1], now)]
    assert labels[0] == labels[1]


def test_a_result_that_cannot_be_saved_is_saved_elsewhere(capsys, monkeypatch, tmp_path):
    def full(self, root, save=nsflow.Results.save):
        if "chains" in str(root):
            raise OSError(28, "No space left on device")
        save(self, root)

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(nsflow.Results, "save", full)
    monkeypatch.setattr(cli, "_compute", lambda *_: gaussian())
    assert main(["run", "model.py", "--output", "chains/full"]) == 4
    message = capsys.readouterr().err
    found = re.search(r"No space left on device\). The result is in (\S+)\.csv and \.json: move it", message)
    assert found is not None
    assert nsflow.load(found[1]) == gaussian()


def test_a_folder_that_cannot_be_written_is_found_before_the_run(folder, capsys, monkeypatch):
    (folder / "file").write_text("")
    monkeypatch.setattr(cli, "_compute", lambda *_: pytest.fail("it computed first"))
    assert main(["run", "model.py", "--output", "file/run"]) == 4
    assert "nothing was computed yet" in capsys.readouterr().err


def test_what_fails_in_the_model_is_shown_in_its_own_lines(folder, capsys):
    (folder / "broken.py").write_text(BROKEN)
    assert main(["run", "broken.py"]) == 3
    message = capsys.readouterr().err
    assert 'broken.py", line 9, in residual' in message
    assert 'broken.py", line 12, in function' in message
    assert "NameError: name 'missing_data' is not defined" in message
    assert "raised by the likelihood function at {'x':" in message
    assert "nsflow/" not in message
    assert "site-packages" not in message


@pytest.mark.parametrize(
    ("source", "code", "message"),
    [
        ("prior = 1\n", 2, "it lacks log_likelihood. Such as:"),
        ("prior = {'a': 1}\ndef log_likelihood(p): return 0.0\n", 2, "Wrap it: nsflow.Prior"),
        ("def f(:\n", 3, "SyntaxError: invalid syntax"),
        ("import no_such_package\n", 3, "ModuleNotFoundError: No module named 'no_such_package'"),
        ("raise SystemExit(7)\n", 3, "SystemExit: 7"),
    ],
)
def test_model_files_that_are_none(source, code, message, folder, capsys):
    (folder / "wrong.py").write_text(source)
    assert main(["run", "wrong.py"]) == code
    printed = capsys.readouterr().err
    assert message in printed
    assert "terminal.py" not in printed


LEAVING = """
import signal, sys
import nsflow
import numpyro.distributions as dist
prior = nsflow.Prior({"a": dist.Normal(0, 1)})
signal.signal(signal.SIGALRM, lambda *_: sys.exit(%s))
def function(p):
    signal.raise_signal(signal.SIGALRM)
    return 0.0
log_likelihood = nsflow.HostLikelihood(function)
"""


@pytest.mark.parametrize(("left_with", "code", "said"), [("77", 77, ""), ("", 0, ""), ("'no quota'", 1, "no quota")])
def test_a_model_that_leaves_by_exit_has_its_exit_code(left_with, code, said, folder, capsys):
    """Of a handler of signals, as a batch system's; text is an error, as in Python."""
    (folder / "leaving.py").write_text(LEAVING % left_with)
    before = signal.getsignal(signal.SIGALRM)
    try:
        assert main(["run", "leaving.py", "--quiet"]) == code
    finally:
        signal.signal(signal.SIGALRM, before)
    assert said in capsys.readouterr().err


class Write:
    """All that some programs put in the place of a stream."""

    def write(self, text):
        return len(text)


class Broken(io.StringIO):
    """A pipe without a reader, and without a number."""

    def write(self, _):
        raise BrokenPipeError(32, "Broken pipe")


@pytest.mark.parametrize("stream", [None, Write(), Broken(), io.StringIO()], ids=lambda stream: type(stream).__name__)
def test_streams_of_other_programs_are_enough(stream, folder, monkeypatch):
    """And what was computed is saved before the first word fails."""
    monkeypatch.setattr(cli, "_compute", lambda *_: gaussian(seed=5))
    monkeypatch.setattr("sys.stdout", stream)
    assert main(["run", "model.py", "--output", "chains/stream", "--overwrite"]) == 0
    assert nsflow.load(folder / "chains" / "stream") == gaussian(seed=5)
    assert main(["show", "chains/stream"]) == 0


def test_standard_error_without_isatty_is_no_terminal(monkeypatch):
    monkeypatch.setattr("sys.stderr", Write())
    with progress.watching(True, nsflow.Settings()) as report:
        assert callable(report)


def test_a_model_may_be_called_like_a_module_that_is_loaded(folder, monkeypatch):
    (folder / "models").mkdir()
    (folder / "models" / "json.py").write_text("prior, log_likelihood = 1, 2\n")
    monkeypatch.setattr(cli, "_compute", lambda model, *_: gaussian(seed=model.prior))
    assert main(["run", "models/json.py", "--output", "chains/json"]) == 0
    assert nsflow.load("chains/json") == gaussian(seed=1)
    assert sys.modules["json"] is json


# ---- show, plot, compare, report


def test_show_prints_the_summary_and_tells_alarms_by_its_exit_code(capsys):
    assert main(["show", "good"]) == 0
    assert "parameter" in capsys.readouterr().out
    assert main(["show", "bad.json"]) == 1
    printed = capsys.readouterr().out
    assert "UNFINISHED: max_calls" in printed
    assert "ALARM: one draw carries 12% of the evidence" in printed


def test_plots_are_written_where_they_are_asked_for(folder, capsys):
    assert main(["plot", "good", "--kind", "trace"]) == 0
    assert "Wrote good_trace.png" in capsys.readouterr().out
    assert (folder / "good_trace.png").read_bytes().startswith(b"\x89PNG")
    assert main(["plot", "good", "--params", "b", "--output", "new/one.PDF"]) == 0
    assert (folder / "new" / "one.PDF").read_bytes().startswith(b"%PDF")
    first = (folder / "new" / "one.PDF").read_bytes()
    assert main(["plot", "good", "--params", "b", "--output", "new/one.PDF"]) == 0
    assert (folder / "new" / "one.PDF").read_bytes() == first


def test_compare_speaks_and_warns(capsys):
    assert main(["compare", "good", "bad"]) == 1
    printed = capsys.readouterr().out
    assert "The data favour good over bad by" in " ".join(printed.split())
    assert "WARNING: bad has an alarm: one draw carries 12% of the evidence" in printed
    assert "WARNING: bad is unfinished" in printed


def test_report_writes_one_page(folder, capsys, monkeypatch):
    monkeypatch.setattr(html, "KINDS", dict.fromkeys(plots.KINDS, lambda result, dark: Figure(figsize=(1, 1))))
    assert main(["report", "good", "--title", "Two means"]) == 0
    assert "Wrote good.html" in capsys.readouterr().out
    assert "<h1>Two means</h1>" in (folder / "good.html").read_text(encoding="utf-8")


# ---- words that are none


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["bogus"], "invalid choice: 'bogus'"),
        (["run"], "the following arguments are required: model.py"),
        (["run", "missing.py"], "there is no file missing.py"),
        (["run", "good.csv"], "ends in .py; got good.csv"),
        (["run", "model.py", "--ess", "-3"], "expected a number of at least 2; got '-3'"),
        (["run", "model.py", "--ess", "nan"], "expected a number of at least 2; got 'nan'"),
        (["run", "model.py", "--seed", "1.5"], "expected a whole number of at least 0; got '1.5'"),
        (["run", "model.py", "--max-calls", "many"], "expected a whole number of at least 1; got 'many'"),
        (["run", "model.py", "--max-calls", "10"], "`max_calls` must allow the 500 first draws"),
        (["run", "model.py", "--seed", "5e9"], "`run` for its `seed` expected an integer from 0 to 4294967295"),
        (["run", "model.py", "--output", ".."], "expected the path of a run; got '..'"),
        (["show", "missing"], "there is no file missing.json"),
        (["show", ""], "expected the path of a run; got ''"),
        (["show", "damaged"], "got a file that is damaged or cut short"),
        (["plot", "good", "--kind", "pie"], "invalid choice: 'pie'"),
        (["plot", "good", "--output", "good.gif"], "ends in .png, .pdf or .svg; got 'good.gif'"),
        (["plot", "good", "--params", "c"], "`params` expected names among ('a', 'b'); got ['c']"),
        (["plot", "good", "--params", "a", "--kind", "trace"], "`--params` belongs to `--kind triangle`"),
        (["compare", "good"], "the following arguments are required: RUN_B"),
        (["compare", "good", "missing"], "there is no file missing.json"),
        (["report", "missing"], "there is no file missing.json"),
    ],
)
def test_wrong_words_end_in_a_sentence_and_exit_code_2(words, message, folder, capsys):
    (folder / "damaged.json").write_text('{"format": ')
    (folder / "damaged.csv").write_text("")
    assert main(words) == 2
    printed, error = capsys.readouterr()
    assert printed == ""
    assert message in error
    assert "Traceback" not in error


def test_files_that_cannot_be_written_end_in_exit_code_4(folder, capsys):
    (folder / "occupied").write_text("")
    for words in (
        ["plot", "good", "--kind", "trace", "--output", "occupied/x.png"],
        ["report", "good", "--output", "."],
    ):
        assert main(words) == 4
        assert "could not write" in capsys.readouterr().err


def test_an_interrupt_is_no_traceback(monkeypatch, capsys):
    def interrupt(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "load", interrupt)
    assert main(["show", "good"]) == 130
    assert capsys.readouterr().err == "nsflow: interrupted\n"


# ---- as a process


def test_help_can_be_read_and_names_exit_codes(capsys):
    for command in ("run", "show", "plot", "compare", "report"):
        assert main([command, "--help"]) == 0
        printed = capsys.readouterr().out
        assert printed.startswith(f"usage: nsflow {command}")
        assert max(map(len, printed.splitlines())) <= 120
        if command == "run":
            assert "def log_likelihood(p):" in printed
    overview = shell("--help").stdout
    assert overview.startswith("usage: nsflow")
    for text in ("examples:", "exit codes:", "nsflow compare chains/simple chains/full"):
        assert text in overview
    assert shell("--version").stdout.startswith("nsflow ")


def test_show_works_as_a_process_in_ascii_and_into_a_closed_pipe(folder):
    gaussian(seed=1, names=("Ω", "b"), labels=()).save(folder / "greek")
    done = shell("show", "greek", PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, "")
    assert "log Z" in done.stdout
    reader, writer = os.pipe()
    os.close(reader)
    closed = shell("show", "good", stdout=writer, PYTHONUNBUFFERED="")
    os.close(writer)
    assert (closed.returncode, closed.stderr) == (0, "")


def test_help_and_show_start_without_the_heavy_packages():
    code = (
        "import sys; from nsflow.cli import main; main(['show', 'good']); main(['--help']);"
        "heavy = ('jax', 'flax', 'numpyro', 'matplotlib', 'pandas', 'anesthetic', 'scipy');"
        "print([module for module in heavy if module in sys.modules])"
    )
    done = shell("-c", code)
    assert done.stdout.splitlines()[-1] == "[]"
