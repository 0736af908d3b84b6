"""SIGKILL at random moments: five of what `benchmarks/kills.py` does by the hundred."""

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parent.parent / "benchmarks" / "kills.py"


def test_killed_runs_have_the_same_bits_and_leave_no_stray_files(tmp_path):
    output = tmp_path / "kills.json"
    subprocess.run([sys.executable, str(SCRIPT), "--kills", "5", "--output", str(output)], check=True)
    found = json.loads(output.read_text())
    assert found["kills"] == 5
    assert found["identical"] == found["runs"]
    assert found["stray_files"] == 0
