"""The code of docs/guides/running.md runs, and prints what the page says."""

import re
from pathlib import Path

import numpy as np

PAGE = Path(__file__).resolve().parent.parent / "docs" / "guides" / "running.md"


def test_page_runs_and_prints_what_it_says(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code = "".join(re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL))
    scope: dict = {}
    exec(code, scope)
    printed = capsys.readouterr().out.splitlines()
    said = re.findall(r"print\(.*\)  # (.*)", code)
    assert len(printed) == len(said) == 7
    for line, wanted in zip(printed, said, strict=True):
        assert line.startswith(wanted.removesuffix(" ..."))
    for name in ("both", "union", "more", "warm"):
        result = scope[name]
        logZ = np.log(2 * np.pi * 0.3**2 / 100)
        assert abs(result.logZ - logZ) < 5 * result.logZ_err
