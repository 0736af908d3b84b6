"""What is shown must run: the code of the README and the example on real data."""

import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

ROOT = Path(__file__).resolve().parent.parent
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


def test_diabetes_example_agrees_with_gaussian_algebra(tmp_path, monkeypatch, capsys):
    pytest.importorskip("sklearn")
    monkeypatch.setattr(sys, "argv", ["diabetes.py", "--output", str(tmp_path), "--ess", "1000"])
    runpy.run_path(str(ROOT / "examples" / "diabetes.py"), run_name="__main__")
    printed = capsys.readouterr().out
    rows = re.findall(r"(-\d+\.\d+) \+- (\d+\.\d+)\s+(-\d+\.\d+)", printed)
    assert len(rows) == 2
    for logZ, error, exact in np.array(rows, float):
        assert abs(logZ - exact) < stats.norm.isf(FALSE_ALARM / 4) * error
        assert error < 0.05
    for name in ("diabetes.csv", "diabetes.json", "diabetes.png"):
        assert (tmp_path / name).stat().st_size > 0
