"""What is shown must run: the code of the README and the example on real data."""

import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from scipy.special import logsumexp

import nsflow

ROOT = Path(__file__).resolve().parent.parent
EXAMPLE = ROOT / "examples" / "diabetes.py"
FALSE_ALARM = 1e-5  # chance that a correct nsflow fails the comparison with the exact evidence


def test_readme_code_runs():
    code = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert code is not None
    scope: dict = {}
    exec(code[1], scope)
    grid = np.linspace(-5, 5, 20001)
    inner = np.trapezoid(np.exp(-0.5 * np.sin(3 * grid) ** 2 / 0.01), grid) / 10
    total = 10.0**2 + 0.01
    exact = np.log(inner) + stats.norm.logpdf(1, 0, np.sqrt(total)) + 0.5 * np.log(2 * np.pi * 0.01)
    result = scope["result"]
    assert abs(result.logZ - exact) < stats.norm.isf(FALSE_ALARM / 2) * result.logZ_err + 1e-6
    assert result.logZ_err < 0.05


def test_exact_evidence_of_the_example_agrees_with_a_grid():
    """The algebra beside which nsflow is printed, against the plain likelihood summed over three parameters."""
    example = runpy.run_path(str(EXAMPLE))
    x, y = example["data"](("bmi",))
    design = np.column_stack([np.ones(len(y)), x[:, 0]])
    best, (square,) = np.linalg.lstsq(design, y, rcond=None)[:2]
    noise = np.sqrt(square / len(y))
    # Nine deviations either side leave out 1e-18 of the mass; on so smooth a function the plain sum is exact.
    steps = np.linspace(-9, 9, 121)
    intercept, slope = (value + noise / np.sqrt(len(y)) * steps for value in best)
    log_noise = np.log(noise) + steps / np.sqrt(2 * len(y))
    a, b = intercept[:, None], slope[None, :]
    squares = np.sum(y**2) - 2 * (a * np.sum(y) + b * np.sum(y * x[:, 0])) + len(y) * (a**2 + b**2)
    low, high = np.log(example["NOISE"])
    log_prior = stats.norm.logpdf(a, *example["INTERCEPT"]) + stats.norm.logpdf(b, 0, example["SLOPE"])
    log_terms = log_prior - 0.5 * squares / np.exp(2 * log_noise[:, None, None])
    log_terms -= len(y) * (log_noise + 0.5 * np.log(2 * np.pi))[:, None, None] + np.log(high - low)
    volume = np.prod([grid[1] - grid[0] for grid in (intercept, slope, log_noise)])
    assert example["exact_log_evidence"](x, y) == pytest.approx(logsumexp(log_terms) + np.log(volume), abs=1e-8)


def test_diabetes_example_runs_and_agrees_with_gaussian_algebra(tmp_path):
    """As a user starts it: a process of its own."""
    command = [sys.executable, str(EXAMPLE), "--output", str(tmp_path), "--ess", "1000"]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    rows = re.findall(r"(-\d+\.\d+) \+- (\d+\.\d+)\s+(-\d+\.\d+)", printed)
    assert len(rows) == 2
    for logZ, error, exact in np.array(rows, float):
        assert abs(logZ - exact) < stats.norm.isf(FALSE_ALARM / 4) * error
        assert error < 0.05
    for name, row in (("diabetes", rows[0]), ("diabetes_five", rows[1])):
        assert f"{nsflow.load(tmp_path / name).logZ:.4f}" == row[0]
    assert (tmp_path / "diabetes.png").stat().st_size > 10_000


@pytest.mark.slow
def test_blackjax_example_runs_and_both_scripts_agree_with_gaussian_algebra(tmp_path):
    command = [sys.executable, str(ROOT / "examples" / "blackjax_drop_in.py"), "--output", str(tmp_path)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    (exact,) = re.findall(r"exact log-evidence (-\d+\.\d+)", printed)
    rows = np.array(re.findall(r"(-\d+\.\d+) \+- (\d+\.\d+) +-?\d+\.\d+ +(\d+) ", printed), float)
    assert rows.shape == (2, 3)
    (logZ, error, calls), (own_logZ, own_error, own_calls) = rows
    for value, sigma in ((logZ, error), (own_logZ, own_error)):
        assert abs(value - float(exact)) < stats.norm.isf(FALSE_ALARM / 4) * sigma
    assert own_error < 0.3
    assert own_calls < calls / 15
    assert "ALARM" not in printed
    assert (tmp_path / "blackjax-drop-in.png").stat().st_size > 5_000


@pytest.mark.slow
def test_two_moons_example_judges_every_method(tmp_path):
    """Densities lie between the Gaussian and the truth; draws lie on the moons, half of them on each."""
    command = [sys.executable, str(ROOT / "examples" / "two_moons.py"), "--quick", "--output", str(tmp_path)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    rows = re.findall(r"^(\S.*?) {2,}(-?\d+\.\d+)? +(\d\.\d+) +(\d\.\d+)$", printed, re.MULTILINE)
    table = {name: [float(value or "nan") for value in values] for name, *values in rows}
    assert len(table) == 15
    assert table["data"][1:] == pytest.approx([0.99, 0.5], abs=0.05)
    truth, gaussian = table["data"][0], table["Gaussian"][0]
    assert truth - gaussian > 0.8
    for name, (log_prob, on_moons, upper) in table.items():
        if name in ("data", "Gaussian"):
            continue
        assert np.isnan(log_prob) or gaussian + 0.3 < log_prob < truth + 0.02, name
        assert on_moons > 0.65, name  # the Gaussian's share is 0.57
        assert upper == pytest.approx(0.5, abs=0.15), name  # the score near the data knows little of the modes' weights
    assert np.sum(np.isnan([row[0] for row in table.values()])) == 4
    assert table["Gaussian"][1] < 0.6
    assert (tmp_path / "two-moons.png").stat().st_size > 10_000
