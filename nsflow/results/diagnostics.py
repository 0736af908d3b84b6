"""What the numbers of a result say about it, and what to do about its alarms, in plain words."""

from typing import NamedTuple

from nsflow.importance.evidence import is_heavy
from nsflow.results.results import Results


class Diagnostic(NamedTuple):
    """One number of a result, with what it means."""

    name: str
    value: str
    is_healthy: bool
    healthy: str  # the range
    meaning: str


def diagnostics(result: Results) -> list[Diagnostic]:
    """List what tells whether a result can be trusted.

    Args:
        result: The result.

    Returns:
        The diagnostics, the most important first.

    Example:
        >>> import numpy as np
        >>> n = 400
        >>> result = Results(names=("x",), samples=np.zeros((n, 1)), log_likelihood=np.zeros(n),
        ...                  log_weights=np.zeros(n), num_draws=n, logZ=0.0, logZ_err=0.1, ess=400.0, num_calls=n,
        ...                  khat=0.9, max_weight_share=0.04)
        >>> [d.name for d in diagnostics(result) if not d.is_healthy]
        ['k-hat']
    """
    given = result.settings.get("ess")
    target = float(given) if isinstance(given, int | float) and not isinstance(given, bool) else None
    share, per_sample = result.max_weight_share, result.num_calls / result.ess if result.ess > 0 else float("inf")
    heaviest = share * result.ess
    return [
        Diagnostic(
            "effective sample size",
            f"{result.ess:.0f}",
            result.ess >= (100 if target is None else target),
            "at least some hundreds" if target is None else f"at least the target, {target:.0f}",
            "How many equally weighted posterior samples the draws are worth. Means are known to a deviation over its "
            "square root.",
        ),
        Diagnostic(
            "error of log Z",
            f"{result.logZ_err:.4f} nats",
            result.logZ_err < 0.3,
            "below 0.3 nats",
            "One standard deviation, from draws that trained none of what proposed them. Where it is larger, log Z is "
            "not normally distributed.",
        ),
        Diagnostic(
            "k-hat",
            f"{result.khat:.2f}",
            not is_heavy(result),
            f"below 0.5; higher only while no draw moves log Z by 0.3 errors (the heaviest counts for {heaviest:.1f})",
            "How heavy the tail of the weights is. Above 0.5 they have no variance, above 0.7 the error cannot be "
            "trusted: draws that would count for much have hardly been met.",
        ),
        Diagnostic(
            "largest weight",
            f"{share:.2%} of the evidence",
            not share > 0.05,
            "below 5 %",
            "Share of the heaviest draw. Where one draw carries a visible part, another run would not have it.",
        ),
        Diagnostic(
            "calls per effective sample",
            f"{per_sample:.1f}",
            per_sample < 100,
            "1 to 10; up to 100 for hard problems",
            "Price of a sample, training included. A high one says that the proposals fit badly.",
        ),
    ]


# Beginnings and middles of the sentences of nsflow.summary; a test compares both lists.
ADVICE = (
    (
        "stopped by a failure",
        "Mend the likelihood at the parameters that the message names, and run again. The numbers are those of the "
        "draws before it.",
    ),
    (
        "no fresh draws",
        "The run was stopped before it could draw independently of its training. Let it make more likelihood calls.",
    ),
    (
        "k-hat",
        "Run again with a larger `ess`, or with `Settings(num_live=...)` doubled, and compare log Z of several seeds. "
        "Look at the triangle for a tail or an edge that proposals may cut off; another parameter, such as a "
        "logarithm, often helps.",
    ),
    (
        "one draw carries",
        "The evidence rests on a lucky draw. Run again with another seed and a larger `ess`; if log Z differs by more "
        "than the errors, double `Settings(num_live=...)`.",
    ),
    (
        "only the prior proposes",
        "A region of the posterior was found by chance alone. Raise `Settings(num_prior=..., num_live=...)`, or narrow "
        "the prior to what is possible.",
    ),
    (
        "of the final draws count",
        "The proposals fit the posterior badly, and log Z may be low by what they hardly reach. Take parameters in "
        "which the posterior is less curved, or double `Settings(num_live=...)`, and compare several seeds.",
    ),
    (
        "of the evidence seen in training lies where",
        "The frozen proposals do not reach all of the posterior: log Z is low by about that share. Double "
        "`Settings(num_live=...)` or raise `Settings(max_rounds=...)`.",
    ),
    (
        "a posterior round missed",
        "Evidence was found late, so more may be missing. Run again with another seed and `Settings(num_live=...)` "
        "doubled, until two runs agree.",
    ),
    (
        "goes on where hardly any draw",
        "The posterior is a narrow, curved ridge, and log Z is low by its end. Take parameters in which it is less "
        "curved, or double `Settings(num_live=...)`, and compare several seeds.",
    ),
    (
        "the ladder stopped where",
        "A narrow peak may lie above the last contour. Raise `Settings(num_live=...)` and compare the highest log L.",
    ),
    (
        "so few climbs met a mode",
        "The posterior has many narrow modes, and one like those found may be lost. Raise `Settings(max_scouts=...)`, "
        "order parameters that can be swapped, and compare several seeds.",
    ),
    (
        "the prior of",
        "Numbers further out in that tail of the prior cannot be told apart. Use a distribution whose tail is exact "
        "(most of numpyro's are), widen the prior, or let the tail of a transform be where u goes to 0: `isf(u)` in "
        "the place of `ppf(u)`.",
    ),
    (
        "the likelihood had the same value",
        "Nothing was learned of the parameters. If the likelihood is not meant to be constant, no draw met parameters "
        "that it can tell apart, and log Z is what it says of impossible ones: narrow the prior, or return log L = "
        "-inf there.",
    ),
    (
        "first draws from the prior were evaluated",
        "The run was stopped in its first draws, and log Z is a guess. Give it more time, or go on from its "
        "checkpoint.",
    ),
    (
        "the likelihood was NaN",
        "Those points count as impossible. If that is not what you mean, mend the likelihood there, and run again.",
    ),
)
OTHERWISE = "Run again with another seed, and trust neither run unless both agree within their errors."


def advice(alarm: str) -> str:
    """Say what to do about an alarm.

    Args:
        alarm: One of `Results.alarms`.

    Returns:
        One or two sentences.

    Example:
        >>> advice("the likelihood was NaN at 3 points, counted as -inf")[:36]
        'Those points count as impossible. If'
    """
    return next((text for sign, text in ADVICE if sign in alarm), OTHERWISE)
