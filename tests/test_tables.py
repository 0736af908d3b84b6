"""Results in words: digits, quantiles, Bayes factors, and advice for every alarm there is."""

import ast
import inspect
import math

import numpy as np
import pytest

from nsflow.nested import summary as summary_module
from nsflow.results.diagnostics import OTHERWISE, advice, diagnostics
from nsflow.results.drawing import printable
from nsflow.results.results import Results
from nsflow.results.text import comparison, evidence, marginals, number, summary


def result(n=20_001, **kwargs):
    """Evenly spaced draws of a normal parameter, weighted by their density, and of a shifted copy of it."""
    x = np.linspace(-8, 8, n)
    log_weights = -0.5 * x**2
    defaults = dict(
        names=("x", "y"), samples=np.stack([x, 1e4 + 0.01 * x], axis=1), log_likelihood=log_weights,
        log_weights=log_weights, num_draws=n, logZ=-10.0, logZ_err=0.0123, ess=5000.0, num_calls=2 * n, khat=0.1,
        max_weight_share=1e-4, settings={"ess": 5000}, versions={"nsflow": "0.1.0"},
    )  # fmt: skip
    return Results(**(defaults | kwargs))


# ---- closed forms


def test_marginals_are_those_of_a_normal():
    x, y = marginals(result())
    assert x == ("x", "0.0", "1.0", "-2.0", "0.0", "2.0")
    assert y == ("y", "10000.000", "0.010", "9999.980", "10000.000", "10000.020")
    assert marginals(result(log_weights=np.full(20_001, -np.inf))) == []


def test_what_the_likelihood_did_not_derive_is_unknown():
    samples = result().samples.copy()
    samples[:, 1] = np.nan
    assert marginals(result(samples=samples, derived=("y",)))[1] == ("y", *["unknown"] * 5)
    samples[::2, 1] = samples[::2, 0]
    assert marginals(result(samples=samples, derived=("y",)))[1][1:] == marginals(result())[0][1:]


@pytest.mark.parametrize(
    ("value", "error", "shown"),
    [
        (1.23456, 0.1, "1.23"),
        (1.23456, 0.0996, "1.23"),
        (-0.0001, 0.1, "0.00"),
        (123456.0, 2300.0, "1.235e+05"),
        (3.0e-9, 2e-11, "3.000e-09"),
        (1.0, 0.0, "1"),
        (-np.inf, 1.0, "-inf"),
        (2.5, np.inf, "2.5"),
        (np.nan, 0.1, "nan"),
    ],
)
def test_numbers_have_two_digits_of_their_error(value, error, shown):
    assert number(value, error) == shown


def test_evidence_in_nats_and_as_a_power_of_ten():
    assert evidence(result()) == "-10.000 +- 0.012"
    assert evidence(result(), base10=True) == "-4.3429 +- 0.0053"


# ---- comparison


def test_bayes_factor_and_its_odds():
    """log B = 2 with an error of 5 %: odds of e^2 = 7.39, from e^1.95 = 7.03 to e^2.05 = 7.77."""
    text = " ".join(comparison(result(logZ_err=0.03), result(logZ=-12.0, logZ_err=0.04), ("a", "b")).split())
    assert "log Bayes factor of a over b: 2.000 +- 0.050 nats" in text
    assert "favour a over b by 7.39 to 1 (7.03 to 7.77 within one standard error): positive evidence" in text
    assert "the probability of a is now 0.8808" in text
    assert "WARNING" not in text


def test_the_better_model_comes_first_and_large_odds_are_powers_of_ten():
    text = " ".join(comparison(result(logZ=-2000.0), result(), ("a", "b")).split())
    assert "over b: -1990.000" in text
    assert f"favour b over a by 10^{1990 / math.log(10):.1f} to 1" in text
    assert "very strong evidence" in text


def test_a_difference_within_the_errors_decides_nothing():
    text = comparison(result(), result(logZ=-10.02), ("a", "b"))
    assert "error is too large to tell" in text
    assert "favour a" not in text


def test_comparisons_warn_of_what_may_be_wrong():
    bad = result(alarms=("k-hat = 0.9",), finished=False, stop_reason="max_calls reached", versions={"nsflow": "0.2"})
    text = comparison(result(), bad, ("a", "b"))
    assert "WARNING: b has an alarm: k-hat = 0.9" in text
    assert "WARNING: b is unfinished (max_calls reached)" in text
    assert "different versions" in text
    assert "same data" in text
    with pytest.raises(ValueError, match="expected finite evidences; got log Z = -inf of b"):
        comparison(result(), result(logZ=-np.inf), ("a", "b"))


# ---- text


def test_summary_has_alarms_with_what_to_do():
    text = summary(result(alarms=("one draw carries 12% of the evidence",), finished=False, stop_reason="max_calls"))
    assert "ALARM: one draw carries 12% of the evidence\n  What to do: The evidence rests on a lucky draw." in text
    assert "UNFINISHED: max_calls" in text
    assert "-10.000 +- 0.012 nats" in text


def test_names_cannot_command_a_terminal():
    text = summary(result(names=("x\x1b[2J", "y"), alarms=("\x1b]0;owned\x07",)))
    assert "\x1b" not in text
    assert r"x\x1b[2J" in text
    assert printable("Ω_m, 质量") == "Ω_m, 质量"


def test_a_result_without_weights_is_summed_up():
    empty = result(log_weights=np.full(20_001, -np.inf), logZ=-np.inf, logZ_err=np.inf, ess=0.0, khat=np.inf)
    assert "infinitely many per effective sample" in summary(empty)


# ---- diagnostics and advice


def alarms_in(source):
    """Every sentence that is appended or stands in a list of its own, with 1 for each number in it."""
    for node in ast.walk(ast.parse(source)):
        is_append = isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "append"
        for sentence in node.args if is_append else node.elts if isinstance(node, ast.List) else []:
            if isinstance(sentence, ast.JoinedStr | ast.Constant):
                parts = sentence.values if isinstance(sentence, ast.JoinedStr) else [sentence]
                yield "".join(str(part.value) if isinstance(part, ast.Constant) else "1" for part in parts)


def test_every_alarm_has_advice_of_its_own():
    sentences = list(alarms_in(inspect.getsource(summary_module)))
    assert len(sentences) >= 9
    texts = [advice(sentence) for sentence in sentences]
    assert OTHERWISE not in texts
    assert len(set(texts)) == len(texts)
    assert advice("something new") == OTHERWISE


@pytest.mark.parametrize(
    ("numbers", "name"),
    [
        ({"ess": 4999.0}, "effective sample size"),
        ({"logZ_err": 0.4}, "error of log Z"),
        ({"khat": 0.8, "max_weight_share": 0.006}, "k-hat"),
        ({"max_weight_share": 0.06}, "largest weight"),
        ({"num_calls": 1_000_000}, "calls per effective sample"),
    ],
)
def test_each_diagnostic_sees_its_own_illness(numbers, name):
    assert all(d.is_healthy for d in diagnostics(result()))
    assert [d.name for d in diagnostics(result(**numbers)) if not d.is_healthy] == [name]
