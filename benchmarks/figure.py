"""Draw likelihood calls against effective sample size, one panel a problem, from `results/evidence.jsonl`.

python benchmarks/figure.py [docs/images/calls.svg]
"""

import sys
from collections import defaultdict

import matplotlib
import numpy as np
from evidence import load

PANELS = ("gauss-10", "loggamma-10", "mixture-5", "shells-10", "funnel-10", "rosenbrock-10")
MARKERS = {
    "nsflow": "o",
    "nautilus": "s",
    "i-nessai": "^",
    "pocomc": "v",
    "dynesty": "D",
    "ultranest": "P",
    "blackjax-nss": "X",
}


def main() -> None:
    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    cells = defaultdict(list)
    for row in load():
        if "timeout_s" not in row and row["cost"] == 0:
            cells[row["problem"], row["sampler"], row["ess_target"]].append((row["ess"], row["num_calls"]))
    figure, axes = plt.subplots(2, 3, figsize=(9, 6), sharex=True, sharey=True, layout="constrained")
    for axis, problem in zip(axes.flat, PANELS, strict=True):
        for i, (sampler, marker) in enumerate(MARKERS.items()):
            means = sorted(tuple(np.mean(v, axis=0)) for (p, s, _), v in cells.items() if (p, s) == (problem, sampler))
            if means:
                axis.loglog(*np.transpose(means), marker, color=f"C{i}", linestyle="-", label=sampler)
        axis.axline((1e3, 1e3), (1e4, 1e4), color="0.7", linewidth=0.8)  # one call for each effective sample
        axis.set_title(problem)
    for axis in axes[1]:
        axis.set_xlabel("effective sample size")
    for axis in axes[:, 0]:
        axis.set_ylabel("likelihood calls")
    handles = {label: h for axis in axes.flat for h, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=len(handles))
    matplotlib.rcParams |= {
        "svg.hashsalt": "nsflow",
        "svg.fonttype": "none",
    }
    figure.savefig(sys.argv[1] if len(sys.argv) > 1 else "docs/images/calls.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
