"""The command `nsflow`: run a model of a file, show, plot, compare and report what was saved."""

import argparse
import contextlib
import importlib.util
import io
import math
import os
import shlex
import sys
import sysconfig
import tempfile
import textwrap
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from nsflow.results import files
from nsflow.results.drawing import printable
from nsflow.results.results import Results, load
from nsflow.results.text import comparison, summary
from nsflow.results.versions import version_of

FINE, DOUBTFUL, USAGE, MODEL, UNSAVED, INTERRUPTED = 0, 1, 2, 3, 4, 130
LINES = "\n\t"  # of a traceback
KINDS = ("triangle", "trace", "weights", "levels")  # of nsflow.plots, which takes a second to import

MODEL_FILE = """
    import jax.numpy as jnp
    import numpyro.distributions as dist
    import nsflow

    prior = nsflow.Prior({"a": dist.Normal(0, 10), "b": dist.Uniform(-5, 5)})

    def log_likelihood(p):
        return -0.5 * ((p["a"] - 1) ** 2 + jnp.sin(3 * p["b"]) ** 2) / 0.01
"""
EXIT_CODES = f"""exit codes:
  {FINE}    done, and the results have no alarms
  {DOUBTFUL}    done, but a result is unfinished or has alarms (run, show, compare): read them
  {USAGE}    the command line, a file that it names, or what the model file defines is not as expected
  {MODEL}    the model's own code failed before there was a result
  {UNSAVED}    a file could not be written
  {INTERRUPTED}  interrupted
"""


class UsageError(Exception):
    """What a user typed cannot be done; the message says what can."""


class ModelError(Exception):
    """The user's own code failed; the message is their traceback."""


def main(argv: Sequence[str] | None = None) -> int:
    """Do what a command line says.

    Args:
        argv: Words after the name of the program; those that it was started with if left out.

    Returns:
        The exit code; see ``nsflow --help``.

    Example:
        >>> main(["show", "no/such/run"])
        2
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a name in Greek must not end a command where the terminal is ASCII
    try:
        arguments = _parser().parse_args(argv)
        for name in {"model", "output", "run", "a", "b"} & vars(arguments).keys():
            path = getattr(arguments, name)
            setattr(arguments, name, path and os.path.expanduser(path))  # a shell leaves --output=~/run as it is
        code = int(arguments.command(arguments))
        getattr(sys.stdout, "flush", lambda: None)()  # a program that calls this may have put anything in its place
        return code
    except SystemExit as stop:  # argparse has printed help, or what is wrong; or a model's own handler of signals left
        return stop.code if isinstance(stop.code, int) else _fail(1, stop.code) if stop.code else FINE
    except (UsageError, FileNotFoundError) as error:
        return _fail(USAGE, str(error))
    except ModelError as error:
        return _fail(MODEL, str(error))
    except BrokenPipeError:  # of `nsflow show run | head`; Python would complain once more as it closes
        with contextlib.suppress(AttributeError, io.UnsupportedOperation):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FINE
    except OSError as error:
        return _fail(UNSAVED, f"could not write: {error}")
    except KeyboardInterrupt:
        return _fail(INTERRUPTED, "interrupted")


def _fail(code: int, message: object) -> int:
    print(f"nsflow: {printable(str(message), kept=LINES)}", file=sys.stderr)
    return code


# ---- what can be typed


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="nsflow",
        description="Bayesian evidence and posteriors by nested sampling with learned proposals.",
        epilog="examples:\n"
        "  nsflow run model.py --ess 10000 --output chains/run\n"
        "  nsflow show chains/run\n"
        "  nsflow plot chains/run --kind trace --output trace.pdf\n"
        "  nsflow compare chains/simple chains/full\n"
        "  nsflow report chains/run\n\n"
        f"{EXIT_CODES}\n`nsflow COMMAND --help` says more about a command.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"nsflow {version_of('nsflow')}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_run(commands)
    _add_show(commands)
    _add_plot(commands)
    _add_compare(commands)
    _add_report(commands)
    return parser


def _add(commands: Any, command: Callable[[Any], int], help_line: str, text: str) -> argparse.ArgumentParser:
    name = command.__name__.removeprefix("_")
    parser = commands.add_parser(
        name, help=help_line, description=textwrap.dedent(text), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.set_defaults(command=command)
    return parser


def _add_run(commands: Any) -> None:
    text = (
        "Compute the evidence and the posterior of the model in a Python file, and save them.\n\n"
        "The file defines `prior` and `log_likelihood`, and may define `settings`, an nsflow.Settings:\n"
        f"{MODEL_FILE}\n"
        "A likelihood that is not JAX is wrapped: log_likelihood = nsflow.HostLikelihood(function)."
    )
    parser = _add(commands, _run, "compute evidence and posterior of a model", text)
    parser.add_argument("model", metavar="model.py", help="Python file that defines `prior` and `log_likelihood`")
    parser.add_argument("--ess", type=_number(float, 2), metavar="N", help="effective sample size (default: 10000)")
    parser.add_argument(
        "--seed", type=_number(int, 0), default=0, metavar="N", help="same seed, same bits (default: 0)"
    )
    parser.add_argument(
        "--max-calls", type=_number(int, 1), metavar="N", help="largest number of likelihood calls (default: 1000000)"
    )
    parser.add_argument(
        "--output", metavar="RUN", help="where to save: RUN.csv and RUN.json (default: chains/ and the model's name)"
    )
    parser.add_argument(
        "--logz-err", type=_number(float, 0), metavar="X", help="error of logZ to reach as well, in nats (default: any)"
    )
    parser.add_argument(
        "--max-seconds", type=_number(float, 1), metavar="N", help="time after which to stop (default: no limit)"
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="keep the run in RUN.nsflow, and go on from there if it was killed or stopped before",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace what RUN holds already")
    parser.add_argument("--quiet", action="store_true", help="show no progress, print nothing but errors")


def _add_show(commands: Any) -> None:
    text = "Print evidence, parameters, diagnostics and alarms of a saved run."
    parser = _add(commands, _show, "print a saved run", text)
    parser.add_argument("run", metavar="RUN", help="a saved run, such as chains/run")


def _add_plot(commands: Any) -> None:
    text = """
        Plot a saved run.

        triangle  the posterior of each parameter and of each pair
        trace     contour, evidence, effective sample size, calls and time of each step
        weights   the importance weights and their tail, with k-hat
        levels    likelihood against prior volume, and where the posterior is
    """
    parser = _add(commands, _plot, "plot a saved run", text)
    parser.add_argument("run", metavar="RUN", help="a saved run, such as chains/run")
    parser.add_argument("--kind", choices=KINDS, default="triangle", help="default: triangle")
    parser.add_argument(
        "--params", nargs="+", metavar="NAME", help="parameters of the triangle (default: the first 12)"
    )
    parser.add_argument("--output", metavar="FILE", help="PNG, PDF or SVG, as its name ends (default: RUN_KIND.png)")


def _add_compare(commands: Any) -> None:
    text = """
        Print the Bayes factor of two models, in words.

        Both runs must be of the same data: the files do not tell, so nsflow cannot check.
    """
    parser = _add(commands, _compare, "Bayes factor of two saved runs", text)
    parser.add_argument("a", metavar="RUN_A", help="a saved run of one model")
    parser.add_argument("b", metavar="RUN_B", help="a saved run of the other, on the same data")


def _add_report(commands: Any) -> None:
    text = (
        "Write a saved run as one HTML page with its pictures, which needs nothing else: mail it, archive it, print it."
    )
    parser = _add(commands, _report, "write a saved run as one HTML page", text)
    parser.add_argument("run", metavar="RUN", help="a saved run, such as chains/run")
    parser.add_argument("--output", metavar="FILE", help="default: RUN.html")
    parser.add_argument("--title", metavar="TEXT", help="heading (default: the run's name)")


def _number(kind: type[int] | type[float], smallest: int) -> Callable[[str], int | float]:
    """Make a reader of numbers; 1e5 is an integer too."""

    def read(text: str) -> int | float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (smallest <= value < math.inf and (kind is float or value == int(value))):
            raise argparse.ArgumentTypeError(
                f"expected {'a whole' if kind is int else 'a'} number of at least {smallest}; got {text!r}"
            )
        return kind(value)

    return read


# ---- the commands


def _run(arguments: Any) -> int:
    path = Path(arguments.model)
    root = arguments.output or os.path.join("chains", path.stem)
    checkpoint = f"{root.removesuffix('.csv').removesuffix('.json')}.nsflow"
    _demand_place(root, arguments.overwrite or (arguments.resume and os.path.exists(checkpoint)))
    model = _import_model(path)
    options = {
        "seed": arguments.seed,
        "ess": arguments.ess,
        "logZ_err": arguments.logz_err,
        "max_calls": arguments.max_calls,
        "max_seconds": arguments.max_seconds,
        "checkpoint": checkpoint if arguments.resume else None,
    }
    result = _compute(model, path, options | {"progress": not arguments.quiet})
    try:
        result.save(root)  # before a word is printed: of `nsflow run model.py | head` nobody may read it
    except OSError as error:
        # The run may have taken days.
        rescue = os.path.join(tempfile.mkdtemp(prefix="nsflow-"), Path(root).name)
        result.save(rescue)
        if not arguments.quiet:
            print(summary(result))
        return _fail(UNSAVED, f"could not write {root} ({error}). The result is in {rescue}.csv and .json: move it.")
    if not arguments.quiet:
        print(summary(result))
        print(f"\nSaved {root}.csv and .json. Next: nsflow report {shlex.quote(root)}")
    return _code(result)


def _show(arguments: Any) -> int:
    result = _load(arguments.run)
    print(summary(result))
    return _code(result)


def _plot(arguments: Any) -> int:
    result = _load(arguments.run)
    table, _ = files.paths(arguments.run)
    output = Path(arguments.output or table.with_name(f"{table.stem}_{arguments.kind}.png"))
    if output.suffix.lower() not in (".png", ".pdf", ".svg"):
        raise UsageError(f"`--output` expected a name that ends in .png, .pdf or .svg; got {str(output)!r}.")
    if arguments.params and arguments.kind != "triangle":
        raise UsageError(f"`--params` belongs to `--kind triangle`; got `--kind {arguments.kind}`.")
    from nsflow.results.plots import KINDS as figures
    from nsflow.results.plots import save

    options = {"params": arguments.params} if arguments.params else {}
    _demand_file(output)
    try:
        save(figures[arguments.kind](result, **options), output, output.suffix[1:].lower())
    except ValueError as error:
        raise UsageError(str(error)) from error
    print(f"Wrote {output}")
    return FINE


def _compare(arguments: Any) -> int:
    results = [_load(root) for root in (arguments.a, arguments.b)]
    try:
        print(comparison(*results, names=(arguments.a, arguments.b)))
    except ValueError as error:
        raise UsageError(str(error)) from error
    return max(map(_code, results))


def _report(arguments: Any) -> int:
    result = _load(arguments.run)
    table, _ = files.paths(arguments.run)
    output = Path(arguments.output or table.with_suffix(".html"))
    _demand_file(output)
    from nsflow.results.html import render

    try:
        page = render(result, title=arguments.title or table.stem)
    except ImportError as error:
        raise UsageError(str(error)) from error
    output.write_text(page, encoding="utf-8")
    print(f"Wrote {output}")
    return FINE


def _code(result: Results) -> int:
    return FINE if result.finished and not result.alarms else DOUBTFUL


def _load(root: str) -> Results:
    try:
        return load(root)
    except ValueError as error:
        raise UsageError(str(error)) from error


# ---- the model


def _demand_place(root: str, overwrite: bool) -> None:
    """Refuse, before any work, a place where the result could not be saved or would replace another."""
    try:
        paths = files.paths(root)
    except ValueError as error:
        raise UsageError(str(error)) from error
    taken = [str(path) for path in paths if path.exists()]
    if taken and not overwrite:
        raise UsageError(f"{' and '.join(taken)} exist already. Give `--overwrite`, or another `--output`.")
    folder = paths[0].parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(f"{folder} ({error}). Give another `--output`; nothing was computed yet.") from error


def _demand_file(path: Path) -> None:
    """Refuse, before any work, a file that could not be written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise OSError(f"{path} is a folder, or may not be written. Give another `--output`")


def _import_model(path: Path) -> ModuleType:
    """Import a file under its own name, its folder first on the path: as `python model.py`, and workers find it too."""
    if not path.is_file():
        raise UsageError(f"there is no file {path}. Give a Python file that defines `prior` and `log_likelihood`.")
    if path.suffix != ".py":
        raise UsageError(f"expected a Python file, with a name that ends in .py; got {path}.")
    sys.path.insert(0, str(path.resolve().parent))
    name = path.stem if path.stem not in sys.modules else f"{path.stem}_model"
    spec = importlib.util.spec_from_file_location(name, path.resolve())
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise ModelError(f"{path} failed when it was imported:\n\n{_own_traceback(error, path)}") from error
    missing = [wanted for wanted in ("prior", "log_likelihood") if not hasattr(module, wanted)]
    if missing:
        raise UsageError(
            f"{path} expected to define `prior` and `log_likelihood`; it lacks {' and '.join(missing)}. Such as:\n"
            f"{MODEL_FILE}"
        )
    return module


def _compute(model: ModuleType, path: Path, options: dict[str, Any]) -> Results:
    """Run, and tell mistakes of the model's definitions from failures of its code."""
    from nsflow.sampler import run

    if hasattr(model, "settings"):
        options = options | {"settings": model.settings}
    try:
        return run(model.log_likelihood, model.prior, **options)
    except (TypeError, ValueError) as error:
        if error.__cause__ is None and not _own_frames(error, path):
            raise UsageError(f"{path}: {error}") from error  # nsflow's own words
        raise ModelError(f"the model failed:\n\n{_own_traceback(error, path)}") from error
    except OSError as error:
        if not _own_frames(error, path):
            raise  # a checkpoint that cannot be written
        raise ModelError(f"the model failed:\n\n{_own_traceback(error, path)}") from error
    except Exception as error:
        raise ModelError(f"the model failed:\n\n{_own_traceback(error, path)}") from error


def _own_frames(error: BaseException, path: Path) -> list[traceback.FrameSummary]:
    """Frames of the user's code: of their file and of others in its folder, installed packages left out."""
    folder = path.resolve().parent
    frames = traceback.extract_tb(error.__traceback__)
    return [frame for frame in frames if _is_within(frame.filename, folder)]


def _is_within(filename: str, folder: Path) -> bool:
    path = Path(filename)
    others = (Path(__file__).resolve().parent, Path(sysconfig.get_paths()["stdlib"]))
    is_other = "site-packages" in path.parts or any(path.is_relative_to(other) for other in others)
    return path.is_relative_to(folder) and not is_other


def _own_traceback(error: BaseException, path: Path) -> str:
    """Write the traceback of the error behind an error, of the user's own lines alone."""
    chain = [error]
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    origin = next((e for e in reversed(chain) if _own_frames(e, path)), error)
    lines = traceback.format_list(_own_frames(origin, path))
    if isinstance(origin, SyntaxError):
        lines = []  # its last lines show the place
    message = "".join(traceback.format_exception_only(origin))
    what = "" if origin is error else f"\n{error}\n"
    return f"Traceback, of your code alone:\n{''.join(lines)}{message}{what}".rstrip()
