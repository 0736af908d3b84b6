"""Print likelihood calls an effective sample, by problem and sampler, from `benchmarks/results/evidence.jsonl`.

Means over the seeds of runs to an effective sample size of 10 000 with free likelihoods. A run that is off by more than
3.5 of its quoted errors and carries no alarm makes a cell "wrong".
"""

import json
from collections import defaultdict
from pathlib import Path

import numpy as np

RESULTS = Path(__file__).resolve().parent.parent / "benchmarks" / "results" / "evidence.jsonl"
PROBLEMS = {
    "shells-2": "two shells, 2-d",
    "rosenbrock-2": "Rosenbrock, 2-d",
    "eggbox-2": "eggbox, 2-d",
    "mixture-5": "four Gaussians, 5-d",
    "gauss-10": "correlated Gaussian, 10-d",
    "loggamma-10": "log-gammas, 10-d",
    "shells-10": "two shells, 10-d",
    "funnel-10": "Neal's funnel, 10-d",
    "rosenbrock-10": "Rosenbrock, 10-d",
    "gauss-32": "correlated Gaussian, 32-d",
}
SAMPLERS = {
    "nsflow": "nsflow",
    "nautilus": "nautilus",
    "i-nessai": "i-nessai",
    "dynesty": "dynesty",
    "blackjax-nss": "blackjax NSS",
}
WRONG = 3.5  # quoted errors


def table() -> str:
    """The table as Markdown."""
    cells: dict[tuple[str, str], list[dict]] = defaultdict(list)
    for line in RESULTS.read_text().splitlines():
        row = json.loads(line)
        if row["cost"] == 0 and row["ess_target"] == 10_000:
            cells[row["problem"], row["sampler"]].append(row)
    lines = ["| problem | " + " | ".join(SAMPLERS.values()) + " |", "|---|" + "---|" * len(SAMPLERS)]
    for problem, title in PROBLEMS.items():
        lines.append("| " + " | ".join([title, *(cell(cells[problem, sampler]) for sampler in SAMPLERS)]) + " |")
    return "\n".join(lines)


def cell(rows: list[dict]) -> str:
    """Calls an effective sample of some runs, or why there are none."""
    if not rows:
        return ""
    finished = [row for row in rows if "timeout_s" not in row]
    if not finished:
        return "none in time"
    ratio = np.mean([row["num_calls"] / row["ess"] for row in finished])
    pulls = [
        abs(row["logZ_error"]) / row["logZ_err"]
        for row in finished
        if not row.get("alarms") and row.get("finished", True)
    ]
    return (f"{ratio:.1f}" if ratio < 100 else f"{ratio:.0f}") + (", wrong" if max(pulls, default=0) > WRONG else "")


if __name__ == "__main__":
    print(table())
