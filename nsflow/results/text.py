"""Results as plain text: numbers with the digits that their errors leave, parameters, comparisons."""

import math
import textwrap
from typing import NamedTuple

import numpy as np

from nsflow.numerics.arithmetic import with_own_arithmetic
from nsflow.results.diagnostics import advice
from nsflow.results.drawing import as_number, printable
from nsflow.results.results import Results


class Marginal(NamedTuple):
    """Posterior of one parameter."""

    name: str
    mean: str
    deviation: str
    low: str  # 2.5 % of the posterior below
    median: str
    high: str  # 2.5 % above


@with_own_arithmetic
def marginals(result: Results) -> list[Marginal]:
    """Sum up the posterior of every parameter, in digits that its deviation leaves.

    Args:
        result: The result.

    Returns:
        One row a parameter; none if no draw has a weight.

    Example:
        >>> x = np.linspace(-1, 1, 1001)[:, None]
        >>> result = Results(names=("x",), samples=x, log_likelihood=0 * x[:, 0], log_weights=0 * x[:, 0],
        ...                  num_draws=1001, logZ=0.0, logZ_err=0.0, ess=1001.0, num_calls=1001)
        >>> marginals(result)[0][2:]
        ('0.58', '-0.95', '0.00', '0.95')
    """
    alive = np.isfinite(result.log_weights)
    if not alive.any():
        return []
    weights = np.exp(result.log_weights[alive] - result.log_weights[alive].max())
    return [
        _marginal(name, values, weights) for name, values in zip(result.names, result.samples[alive].T, strict=True)
    ]


def _marginal(name: str, values: np.ndarray, weights: np.ndarray) -> Marginal:
    """Sum up one parameter, where it has a value: what a likelihood derives may be NaN."""
    known = np.isfinite(values)
    if not known.any():
        return Marginal(printable(name), *["unknown"] * 5)
    values, weights = values[known], weights[known] / weights[known].sum()
    mean = float(weights @ values)
    deviation = math.sqrt(float(weights @ (values - mean) ** 2))
    order = np.argsort(values)
    middle = np.cumsum(weights[order]) - 0.5 * weights[order]
    quantiles = np.interp((0.025, 0.5, 0.975), middle, values[order])
    return Marginal(printable(name), *(number(float(value), deviation) for value in (mean, deviation, *quantiles)))


def number(value: float, error: float) -> str:
    """Write a number with the digits that its error leaves: two of the error.

    Args:
        value: The number.
        error: Its error or spread, in the same unit.

    Returns:
        The number.

    Example:
        >>> number(3.14159, 0.0123), number(-2415.1023, 0.0127), number(1.5e-12, 2e-13)
        ('3.142', '-2415.102', '1.50e-12')
    """
    if not (math.isfinite(value) and math.isfinite(error) and error > 0):
        return f"{value:.6g}"
    decimals = 1 - math.floor(math.log10(float(f"{error:.1e}")))  # 0.0996 has the digits of 0.10
    if not 0 <= decimals <= 6 or abs(value) >= 1e9:
        digits = max(1, math.floor(math.log10(abs(value) or error)) + decimals)
        return f"{value:.{min(digits, 9)}e}"
    text = f"{value:.{decimals}f}"
    return text.lstrip("-") if float(text) == 0 else text


@with_own_arithmetic
def evidence(result: Results, base10: bool = False) -> str:
    """Write log Z with its error, in nats or as a power of ten."""
    scale = math.log(10) if base10 else 1.0
    value, error = result.logZ / scale, result.logZ_err / scale
    return f"{number(value, error)} +- {number(error, error)}"


@with_own_arithmetic
def summary(result: Results) -> str:
    """Write evidence, parameters, diagnostics and alarms.

    Args:
        result: The result.

    Returns:
        Lines of text, at most 79 wide but for long names and alarms.
    """
    per_sample = f"{result.num_calls / result.ess:.1f}" if result.ess > 0 else "infinitely many"
    lines = [
        f"log Z           {evidence(result)} nats",
        f"                {evidence(result, base10=True)} as a power of ten",
        f"information     {result.information:.2f} nats",
        f"effective size  {result.ess:.0f} of {result.num_draws} draws",
        f"calls           {result.num_calls}, {per_sample} per effective sample",
        f"weights         k-hat {result.khat:.2f}, largest share {result.max_weight_share:.2g}",
    ]
    if math.isfinite(seconds := as_number(result.trace[-1].get("seconds")) if result.trace else math.nan):
        lines.append(f"time            {seconds:.0f} s in {len(result.trace)} steps")
    rows = marginals(result)
    if rows:
        lines += ["", *_table([("parameter", "mean", "deviation", "2.5 %", "median", "97.5 %"), *rows])]
    if not result.finished:
        lines += ["", f"UNFINISHED: {printable(result.stop_reason) or 'no reason given'}"]
    for alarm in result.alarms:
        lines += ["", *textwrap.wrap(f"ALARM: {printable(alarm)}", 79)]
        lines += textwrap.wrap(f"What to do: {advice(alarm)}", 79, initial_indent="  ", subsequent_indent="  ")
    return "\n".join(lines)


def _table(rows: list[tuple[str, ...]]) -> list[str]:
    """Align columns, the first to the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]


# Kass & Raftery (1995), *Bayes Factors*, J. Am. Stat. Assoc. 90, 773, Section 3.2: nats of the log Bayes factor.
SCALE = (
    (1.0, "not worth more than a bare mention"),
    (3.0, "positive evidence"),
    (5.0, "strong evidence"),
    (math.inf, "very strong evidence"),
)


@with_own_arithmetic
def comparison(a: Results, b: Results, names: tuple[str, str]) -> str:
    r"""Write the Bayes factor of two models, in words.

    .. math::
        \log B = \log Z_a - \log Z_b, \qquad \sigma^2 = \sigma_a^2 + \sigma_b^2 .

    Args:
        a: Result of one model.
        b: Result of the other, on the same data; nothing in a result tells whether that is so.
        names: What to call them.

    Returns:
        Lines of text.

    Raises:
        ValueError: If an evidence is not finite.

    References:
        Kass & Raftery (1995), *Bayes Factors*, J. Am. Stat. Assoc. 90, 773, Section 3.2 (the words).
    """
    both = list(zip(names, (a, b), strict=True))
    for name, result in both:
        if not math.isfinite(result.logZ):
            raise ValueError(f"`compare` expected finite evidences; got log Z = {result.logZ} of {name}. Run longer.")
    log_bayes, error = a.logZ - b.logZ, math.hypot(a.logZ_err, b.logZ_err)
    size, width = abs(log_bayes), max(map(len, names))
    better, worse = names if log_bayes >= 0 else names[::-1]
    if size < 2 * error:
        verdict = "The error is too large to tell which of the two the data favour. It falls as ESS^-1/2: raise `ess`."
    else:
        words = next(text for limit, text in SCALE if size < limit)
        low, high = _odds(size - error), _odds(size + error)
        within = f" ({low} to {high} within one standard error)" if low != high else ""
        verdict = (
            f"The data favour {better} over {worse} by {_odds(size)} to 1{within}: {words}, in the words of Kass & "
            f"Raftery (1995). If both were as likely before, the probability of {better} is now {_probability(size)}."
        )
    lines = [
        *(f"log Z of {name:<{width}}  {evidence(result)} nats" for name, result in both),
        "",
        f"log Bayes factor of {names[0]} over {names[1]}:",
        f"{number(log_bayes, error)} +- {number(error, error)} nats",
        "",
        *textwrap.wrap(verdict, 79),
        "",
        "Both runs must be of the same data, all of it: the files do not tell, so nsflow",
        "cannot check.",
    ]
    for name, result in both:
        if not result.finished:
            lines.append(f"WARNING: {name} is unfinished ({printable(result.stop_reason) or 'no reason given'}).")
        lines += [f"WARNING: {name} has an alarm: {printable(alarm)}" for alarm in result.alarms]
    if a.versions.get("nsflow") != b.versions.get("nsflow"):
        lines.append("WARNING: the two were made by different versions of nsflow.")
    return "\n".join(lines)


def _odds(log_bayes: float) -> str:
    return f"{math.exp(log_bayes):.3g}" if log_bayes < math.log(1e5) else f"10^{log_bayes / math.log(10):.1f}"


def _probability(log_bayes: float) -> str:
    """Of the better model; how close to one, where digits would all be nines."""
    rest = 1 / (1 + math.exp(min(log_bayes, 700.0)))
    return f"{1 - rest:.4f}" if rest > 1e-3 else f"1 - {rest:.1e}"
