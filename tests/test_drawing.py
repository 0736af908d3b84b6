"""What can be shown: no control characters, no label that matplotlib cannot set, no column without a width."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from nsflow.results.drawing import as_number, printable, settable, spread, steady


@pytest.mark.parametrize("sign", ["\x1b", "\x00", "\x07", "\x7f", "\x9b", "\r", "\n", "\u202e", "\u2028", "\ud800"])
def test_control_characters_are_escaped(sign):
    shown = printable(f"a{sign}b")
    assert shown == f"a{sign.encode('unicode_escape').decode()}b"
    assert shown.isprintable()


def test_other_signs_stay():
    assert printable("Ω_m, 质量 é") == "Ω_m, 质量 é"
    assert printable("a\nb\x1b", kept="\n") == "a\nb\\x1b"


LABELS = {
    r"$\alpha_0$": r"$\alpha_0$",
    r"$\log_{10}(M / \mathrm{kg})$ of it": r"$\log_{10}(M / \mathrm{kg})$ of it",
    "price in $": "price in $",
    r"$\input{/etc/passwd}$": r"\input{/etc/passwd}",
    r"$\nosuchmacro$": r"\nosuchmacro",
    "$" + "{" * 20 + "a" + "}" * 20 + "$": "{" * 20 + "a" + "}" * 20,
    "$" + r"\frac{" * 20 + "a" + "}{b}" * 20 + "$": r"\frac{" * 20 + "a" + "}{b}" * 20,
    r"$a$ and $\frac$": r"\$a\$ and \$\frac\$",
    "$" + "{" * 2000 + "$": "$" + "{" * 296 + "...",
    "a\x1b[2J": r"a\x1b[2J",
}


@pytest.mark.parametrize("label", LABELS, ids=lambda label: repr(label[:20]))
def test_labels_that_cannot_be_set_are_plain_text(label, tmp_path):
    shown = settable(label)
    assert shown == LABELS[label]
    figure = Figure()
    figure.subplots().set_xlabel(shown)
    figure.savefig(tmp_path / "figure.svg")


def test_constants_get_a_width_and_nothing_else_does():
    x = np.array([1.0, 2.0, np.nan])
    assert spread(x) is x
    assert spread(np.array([np.nan])).shape == (1,)
    for value in (0.0, 3.0, -1e9):
        column = spread(np.full(1000, value))
        assert 0 < np.std(column) <= 2e-3 * max(abs(value), 1.0)
        assert abs(np.mean(column) - value) < 1e-3 * max(abs(value), 1.0)


def test_random_numbers_of_the_caller_stay():
    np.random.seed(3)
    expected = np.random.random(2)
    np.random.seed(3)
    first = np.random.random()
    with steady():
        inside = np.random.random()
    assert [first, np.random.random()] == expected.tolist()
    with steady():
        assert np.random.random() == inside


def test_numbers_of_a_stranger():
    assert [as_number(value) for value in (1, 2.5, True)] == [1.0, 2.5, 1.0]
    assert all(np.isnan(as_number(value)) for value in (None, "1", [1], 1e308, 10**400, np.inf, np.nan, -(10**400)))
