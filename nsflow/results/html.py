"""One HTML page of a result, with its pictures inside."""

import base64
import io
import json
import math
import re
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from nsflow.numerics.arithmetic import with_own_arithmetic
from nsflow.results.diagnostics import advice, diagnostics
from nsflow.results.drawing import as_number, printable
from nsflow.results.plots import KINDS, save
from nsflow.results.results import MAX_PLOT_PARAMS, Results
from nsflow.results.text import evidence, marginals, number

MAX_STEPS = 60  # rows of the trace; of a longer run the middle is left out


class Picture(NamedTuple):
    """A figure as the page holds it, or why there is none."""

    kind: str
    title: str
    caption: str
    light: str  # data URI
    dark: str
    failure: str = ""


CAPTIONS = {
    "triangle": (
        "Posterior",
        "Density of each parameter, and the regions that hold 68 % and 95 % of the posterior of each pair.",
    ),
    "trace": (
        "The run",
        "Step by step. Before the frozen phase evidence and ESS are those of the points that train the proposals, a "
        "guide only; in it, those of the draws that the result rests on.",
    ),
    "weights": (
        "Weights",
        "Left: importance weights of the draws, sorted. Right: the share of draws above a weight, with the generalised "
        "Pareto distribution whose shape is k-hat.",
    ),
    "levels": (
        "Levels",
        "Likelihood against the prior volume above it, from the prior at the left to the peak at the right, and where "
        "the posterior is.",
    ),
}


@with_own_arithmetic
def render(result: Results, title: str) -> str:
    """Write the page.

    Args:
        result: The result.
        title: Its heading.

    Returns:
        HTML that needs no other file, no network and no script.

    Raises:
        ImportError: If jinja2 is not installed.
    """
    try:
        from jinja2 import Environment, PackageLoader, StrictUndefined
    except ImportError as error:
        raise ImportError("`nsflow report` needs jinja2: pip install 'nsflow[terminal]'") from error
    # Names come from the user, or from the file of a stranger: everything is escaped.
    pages = Environment(
        loader=PackageLoader("nsflow.results"),
        autoescape=True,
        finalize=_visible,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return pages.get_template("report.html").render(
        title=title,
        result=result,
        is_trusted=result.finished and not result.alarms,
        nats=evidence(result).replace("+-", "±"),
        powers=evidence(result, base10=True).replace("+-", "±"),
        alarms=[(alarm, _marked(advice(alarm))) for alarm in result.alarms],
        diagnostics=[d._replace(healthy=_typeset(d.healthy)) for d in diagnostics(result)],
        marginals=marginals(result),
        pictures={kind: _picture(result, kind) for kind in KINDS},
        max_params=MAX_PLOT_PARAMS,
        steps=_steps(result),
        seconds=_seconds(result),
        settings={name: _shown(value) for name, value in result.settings.items()},
        versions=result.versions,
        version=result.versions.get("nsflow", ""),
        date=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )


def _visible(value: Any) -> Any:
    """Escape the control characters of a text, before its HTML is."""
    if isinstance(value, str) and not hasattr(value, "__html__"):
        return printable(value, kept="\N{NO-BREAK SPACE}")
    return value


def _marked(text: str) -> list[tuple[str, bool]]:
    """Split at backquotes: pieces of text, and whether each is code."""
    return [(piece, i % 2 == 1) for i, piece in enumerate(text.split("`"))]


def _typeset(text: str) -> str:
    return re.sub(r" %", "\N{NO-BREAK SPACE}%", text)


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _picture(result: Results, kind: str) -> Picture:
    title, caption = CAPTIONS[kind]
    try:
        light, dark = (_uri(result, kind, dark) for dark in (False, True))
    except (ValueError, ArithmeticError) as error:  # no draw of positive weight, no volumes, no trace
        return Picture(kind, title, caption, "", "", str(error))
    return Picture(kind, title, caption, light, dark)


def _uri(result: Results, kind: str, dark: bool) -> str:
    """Encode a picture: lines that stay sharp on paper; but 66 panels of contours are a megabyte of them."""
    suffix, media = ("png", "image/png") if kind == "triangle" else ("svg", "image/svg+xml")
    file = io.BytesIO()
    save(KINDS[kind](result, dark=dark), file, suffix, dpi=110)
    return f"data:{media};base64,{base64.b64encode(file.getvalue()).decode()}"


def _seconds(result: Results) -> str:
    seconds = as_number(result.trace[-1].get("seconds")) if result.trace else math.nan
    return str(timedelta(seconds=round(seconds))) if abs(seconds) < 1e13 else ""


def _steps(result: Results) -> list[dict[str, str] | None]:
    """Rows of the trace; None where some are left out."""
    rows: list[dict[str, str] | None] = [_step(i + 1, step) for i, step in enumerate(result.trace)]
    if len(rows) > MAX_STEPS:
        rows[MAX_STEPS // 2 : -MAX_STEPS // 2] = [None]
    return rows


def _step(i: int, step: dict[str, Any]) -> dict[str, str]:
    def value(name: str) -> float:
        return as_number(step.get(name))

    def show(name: str, digits: int) -> str:
        return f"{value(name):.{digits}f}" if math.isfinite(value(name)) else "\N{EN DASH}"

    error = value("logZ_err")
    return {
        "number": str(i),
        "phase": str(step.get("phase", "")),
        "contour": show("contour", 2),
        "logZ": number(value("logZ"), error) if math.isfinite(value("logZ")) else "\N{EN DASH}",
        "error": number(error, error) if math.isfinite(error) else "\N{EN DASH}",
        "ess": show("ess", 0),
        "calls": show("num_calls", 0),
        "seconds": show("seconds", 1),
    }
