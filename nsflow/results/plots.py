"""Pictures of a result: posterior, the run, its weights, its levels. Each is a function from results to a figure."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, no_type_check

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter
from scipy.stats import gaussian_kde

from nsflow.importance.pareto import pareto_tail
from nsflow.numerics.arguments import instance, texts, truth
from nsflow.numerics.arithmetic import with_own_arithmetic
from nsflow.results.drawing import as_number, settable, spread, steady
from nsflow.results.results import MAX_KERNELS, MAX_PLOT_PARAMS, Results

# Okabe & Ito (2008): told apart with any colour vision.
BLUE, ORANGE, GREEN, VERMILLION, PURPLE, SKY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9"
PHASES = {"ladder": SKY, "scouting": PURPLE, "posterior": ORANGE, "frozen": GREEN}
SCALES = (1.0, 0.5, 0.25, 0.125)  # kernel widths that are tried
STYLE: dict[Any, Any] = {
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.labelsize": 10,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "font.size": 9,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.5,
    "text.usetex": False,  # LaTeX obeys what the labels of a stranger's file say
}
PAPER: dict[Any, Any] = {
    "text.color": "#222222",
    "axes.edgecolor": "#444444",
    "axes.labelcolor": "#222222",
    "axes.facecolor": "white",
    "figure.facecolor": "white",
    "xtick.color": "#222222",
    "ytick.color": "#222222",
}
DARK: dict[Any, Any] = {
    "text.color": "#e6e6e6",
    "axes.edgecolor": "#a0a0a0",
    "axes.labelcolor": "#e6e6e6",
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "xtick.color": "#c8c8c8",
    "ytick.color": "#c8c8c8",
}


@contextmanager
def _style(dark: bool) -> Iterator[tuple[str, str, str]]:
    """Draw in nsflow's style; yield the colours of data, of what is compared with them, and of marks."""
    with rc_context(STYLE | (DARK if dark else PAPER)):
        # By value: a line of colour "C0" takes the colour that is the first when the figure is saved.
        yield (SKY, ORANGE, GREEN) if dark else (BLUE, VERMILLION, GREEN)


@no_type_check  # its own messages come before a run-time checker's
@with_own_arithmetic
def triangle(result: Results, params: Sequence[str] | None = None, dark: bool = False) -> Figure:
    """Plot the posterior: densities of each parameter, and of each pair their 68 % and 95 % regions.

    Args:
        result: A result with at least one draw of positive weight.
        params: Columns to plot; default all that have a value at every draw, or the first twelve of more.
        dark: Colours for a dark page.

    Returns:
        The figure.

    Raises:
        ValueError: If a name is not a column, a column is not a number somewhere, or no draw has a weight.
    """
    _check("triangle", result, dark)
    from anesthetic import make_2d_axes
    from anesthetic.plot import kde_contour_plot_2d, kde_plot_1d

    draws = result.posterior(min(max(int(result.ess), 1000), MAX_KERNELS))
    known = [name for name in result.names if np.isfinite(draws[name]).all()]  # what a likelihood derives may be NaN
    names = known[:MAX_PLOT_PARAMS] if params is None else list(texts("`params`", params))
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        raise ValueError(f"`params` expected names among {tuple(known)}; got {unknown or names}.")
    draws = {name: spread(draws[name], seed) for seed, name in enumerate(names)}
    scales: dict[str, Any] = {name: _bandwidth_scale(draws[name]) for name in names}
    size = float(np.clip(1.15 * len(names) + 0.9, 4.5, 13))
    frames: dict[Any, Any] = {"axes.grid": False, "axes.spines.right": True, "axes.spines.top": True}
    with _style(dark) as (blue, _, _), rc_context(frames), steady():
        figure = Figure(figsize=(size, size))
        labels = dict(zip(result.names, map(settable, result.labels), strict=True))
        _, axes = make_2d_axes(names, labels=labels, fig=figure, upper=False)
        # anesthetic's frames plot all panels at once, through pandas, whose care for shared axes takes 40 of 70 seconds
        # of twelve parameters; and smooth all alike.
        for j, x in enumerate(names):
            fill = False if dark else blue  # its shades end in white
            kde_plot_1d(axes.loc[x, x].twin, draws[x], color=blue, facecolor=fill, bw_scale=scales[x])
            for y in names[j + 1 :]:
                options: dict[str, Any] = {"facecolor": "none", "edgecolor": blue} if dark else {"color": blue}
                options["bw_scale"] = min(scales[x], scales[y])
                kde_contour_plot_2d(axes.loc[y, x], draws[x], draws[y], **options)
        for name in names:
            axes.loc[names[-1], name].xaxis.set_major_locator(MaxNLocator(3, prune="both"))
            axes.loc[name, names[0]].yaxis.set_major_locator(MaxNLocator(3, prune="both"))
        figure.subplots_adjust(left=0.8 / size, bottom=0.8 / size, right=1 - 0.1 / size, top=1 - 0.1 / size)
        figure.align_labels()
    return figure


def _check(owner: str, result: Any, dark: Any) -> None:
    instance(Results, "an nsflow.Results")(f"`{owner}`", result)
    truth(f"`{owner}` for its `dark`", dark)


def _bandwidth_scale(values: np.ndarray) -> float:
    """Kernel width over Scott's that gives held-out draws the best density: his is one mode's, and blurs several."""
    distinct = np.random.default_rng(0).permutation(np.unique(values))[:2000]
    if len(distinct) < 100:
        return 1.0
    half = len(distinct) // 2
    kde = gaussian_kde(distinct[:half])
    scott, scores = float(kde.scotts_factor()), []
    for scale in SCALES:
        kde.set_bandwidth(scott * scale)
        scores.append(np.mean(np.log(np.maximum(kde(distinct[half:]), 1e-300))))
    # One that is better by less than 0.02 nats is so by chance.
    return SCALES[int(np.argmax(np.array(scores) - 0.02 * np.arange(len(SCALES))))]


@no_type_check  # its own messages come before a run-time checker's
@with_own_arithmetic
def trace(result: Results, dark: bool = False) -> Figure:
    """Plot the run step by step: contour, evidence, effective sample size, likelihood calls and time; phases shaded.

    Args:
        result: A result with a trace.
        dark: Colours for a dark page.

    Returns:
        The figure.

    Raises:
        ValueError: If the result has no trace.
    """
    _check("trace", result, dark)
    if not result.trace:
        raise ValueError("`trace` expected a result with a trace; this one has none: it was not made by `nsflow.run`.")
    column = {name: np.array([as_number(step.get(name)) for step in result.trace]) for name in TRACED}
    has_times = bool(np.isfinite(column["seconds"]).any())
    steps = np.arange(1, len(result.trace) + 1)
    with _style(dark) as (blue, red, green):
        figure = Figure(figsize=(7.2, 7.6 if has_times else 6.2), layout="constrained")
        panels: list[Axes] = list(figure.subplots(5 if has_times else 4, sharex=True))
        _plot_steps(panels[0], steps, column["contour"], "contour\nlog L (nats)", blue)
        panels[0].set_ylim(_range(column["contour"]))
        _plot_steps(panels[1], steps, column["logZ"], "log Z (nats)", blue)
        low, high = column["logZ"] - column["logZ_err"], column["logZ"] + column["logZ_err"]
        panels[1].fill_between(steps, low, high, color=blue, alpha=0.25, linewidth=0)
        panels[1].ticklabel_format(useOffset=False)
        # The first levels know nothing of the evidence: where they are far off, the later ones set the scale.
        late = slice(len(steps) // 3, None)
        panels[1].set_ylim(_range(np.concatenate([low[late], high[late], column["logZ"][late]])))
        _plot_steps(panels[2], steps, column["ess"], "ESS", blue)
        panels[2].set_yscale("log")
        _label_short(panels[2].yaxis, np.min(column["ess"]), np.max(column["ess"]))
        target = as_number(result.settings.get("ess"))
        if np.isfinite(target):
            panels[2].axhline(target, color=red, linestyle="--", linewidth=1)
            panels[2].annotate(
                "target", (0, target), xycoords=("axes fraction", "data"), xytext=(4, -3), textcoords="offset points",
                va="top", color=red,
            )  # fmt: skip
        _plot_steps(panels[3], steps, column["num_calls"] / 1000, "likelihood calls\n(thousands)", blue)
        panels[3].set_ylim(bottom=0)
        if has_times:
            _plot_steps(panels[4], steps, column["seconds"], "time (s)", blue)
            panels[4].set_ylim(bottom=0)
        panels[-1].set_xlabel("step")
        panels[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
        panels[-1].set_xlim(0.5, len(steps) + 0.5)
        _shade_phases(panels, [settable(str(step.get("phase", ""))) for step in result.trace])
        figure.align_ylabels()
    return figure


TRACED = ("contour", "logZ", "logZ_err", "ess", "num_calls", "seconds")


def _plot_steps(axes: Axes, steps: np.ndarray, values: np.ndarray, label: str, colour: str) -> None:
    axes.plot(steps, values, color=colour, marker="o", markersize=3 if len(steps) < 80 else 0)
    axes.set_ylabel(label)


def _label_short(axis: Axis, low: float, high: float) -> None:
    """Label a short logarithmic axis: powers of ten alone would leave it without numbers."""
    if high < 100 * low:
        axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high > 10 * low else (1, 1.5, 2, 3, 5, 7)))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter(NullFormatter())


def _range(values: np.ndarray) -> tuple[float, float] | None:
    """Limits that hold the finite values, with a margin; None if there are none."""
    finite = values[np.isfinite(values)]
    if len(finite) == 0:
        return None
    margin = 0.08 * np.ptp(finite) or 0.5
    return float(finite.min() - margin), float(finite.max() + margin)


def _shade_phases(panels: Sequence[Axes], phases: Sequence[str]) -> None:
    """Colour the ground by phase, and name each stretch above the first panel where there is room."""
    starts = [i for i in range(len(phases)) if i == 0 or phases[i] != phases[i - 1]]
    for start, end in zip(starts, [*starts[1:], len(phases)], strict=True):
        for panel in panels:
            panel.axvspan(start + 0.5, end + 0.5, color=PHASES.get(phases[start], "0.5"), alpha=0.16, linewidth=0)
    # A legend, not names on the ground: scouting is often one step wide.
    patches = [Patch(color=PHASES.get(name, "0.5"), alpha=0.35, label=name) for name in dict.fromkeys(phases)]
    panels[0].legend(handles=patches, loc="lower left", bbox_to_anchor=(0, 1), ncols=len(patches), borderaxespad=0.2)


@no_type_check  # its own messages come before a run-time checker's
@with_own_arithmetic
def weights(result: Results, dark: bool = False) -> Figure:
    """Plot the importance weights, sorted, and their tail with the generalised Pareto distribution of k-hat.

    Args:
        result: A result with at least one draw of positive weight.
        dark: Colours for a dark page.

    Returns:
        The figure.

    Raises:
        ValueError: If no draw has a weight.
    """
    _check("weights", result, dark)
    alive = result.log_weights[np.isfinite(result.log_weights)]
    if len(alive) == 0:
        raise ValueError("`weights` expected at least one draw of positive weight; all have weight zero.")
    log_mean = np.logaddexp.reduce(alive) - np.log(result.num_draws)
    relative = np.exp(np.sort(alive)[::-1] - log_mean)
    rank = np.arange(1, len(relative) + 1) / result.num_draws
    tail = pareto_tail(result.log_weights, result.num_draws)
    with _style(dark) as (blue, red, green):
        figure = Figure(figsize=(7.2, 3.3), layout="constrained")
        left, right = figure.subplots(1, 2)
        left.plot(100 * rank, relative, color=blue)
        left.set_yscale("log")
        left.set_ylim(bottom=max(relative[-1], 1e-6 * relative[0]), top=2 * relative[0])
        left.axhline(1, color=green, linewidth=1, linestyle=":", label="mean")
        left.legend(loc="upper right")
        left.set_title("all draws")
        left.set_xlabel("draws of larger weight (%)")
        left.set_ylabel("weight / mean weight")
        left.set_xlim(0, 100)
        shown = relative[: 4 * tail.size if tail else None]
        right.step(shown, rank[: len(shown)], where="pre", color=blue, label="draws")
        if tail and np.isfinite(tail.shape):
            threshold, scale = np.exp(tail.log_threshold - log_mean), np.exp(tail.log_scale - log_mean)
            grid = np.geomspace(threshold, max(2 * relative[0], 1.1 * threshold), 200)
            inside = 1 + tail.shape * (grid - threshold) / scale
            with np.errstate(divide="ignore"):
                log_survival = -np.log(np.maximum(inside, 0)) / tail.shape
            fit = tail.size / result.num_draws * np.exp(log_survival)
            right.plot(grid, np.where(inside > 0, fit, np.nan), color=red, linestyle="--", label="generalised Pareto")
            right.axvline(threshold, color=green, linewidth=1, linestyle=":", label="start of the tail")
        khat = "none" if tail is None else f"{tail.khat:.2f}"
        right.set_title(f"largest weights, k-hat = {khat}")
        right.set_xscale("log")
        right.set_yscale("log")
        right.set_ylim(bottom=0.5 / result.num_draws)
        _label_short(right.xaxis, shown[-1], shown[0])
        right.set_xlabel("weight / mean weight")
        right.set_ylabel("share of draws above")
        right.legend(loc="lower left")
    return figure


@no_type_check  # its own messages come before a run-time checker's
@with_own_arithmetic
def levels(result: Results, dark: bool = False) -> Figure:
    r"""Plot the likelihood against the prior volume X above it, and the posterior mass per nat of log X.

    The ladder's contours are dots on the curve; the prior is at the left, the peak of the likelihood at the right.

    Args:
        result: A result whose draws cover the prior.
        dark: Colours for a dark page.

    Returns:
        The figure.

    Raises:
        ValueError: If no draw has a weight, or no volumes are known; see :meth:`Results.to_nested_samples`.
    """
    _check("levels", result, dark)
    nested = result.to_nested_samples()
    depth, log_likelihood = -nested.logX().to_numpy(), nested["logL"].to_numpy()
    mass = nested.get_weights() / nested.get_weights().sum()
    alive = np.isfinite(log_likelihood)
    depth, log_likelihood, mass = depth[alive], log_likelihood[alive], mass[alive]
    end = float(depth[np.searchsorted(np.cumsum(mass), 1 - 1e-4).clip(0, len(depth) - 1)]) + 2
    with _style(dark) as (blue, red, green):
        figure = Figure(figsize=(7.2, 5), layout="constrained")
        above, below = figure.subplots(2, sharex=True)
        top = log_likelihood[-1]
        below_top = log_likelihood < top
        above.plot(depth[below_top], top - log_likelihood[below_top], color=blue)
        contours = np.unique([as_number(step.get("contour")) for step in result.trace])  # NaN is on no side of the next
        contours = contours[contours < log_likelihood[below_top].max(initial=-np.inf)]
        at = np.interp(contours, log_likelihood, depth)
        above.plot(at, top - contours, "o", color=red, markersize=4, label="contours of the ladder")
        above.set_yscale("log")
        above.invert_yaxis()
        above.set_ylabel("below the peak,\nlog L$_{max}$ - log L (nats)")
        above.legend(loc="lower right")
        edges = np.linspace(0, end, 81)
        density = np.histogram(depth, edges, weights=mass)[0] / np.diff(edges)
        below.stairs(density, edges, fill=True, color=blue, alpha=0.35)
        below.stairs(density, edges, color=blue)
        information = f"information {result.information:.2f} nats"
        below.axvline(result.information, color=red, linestyle="--", linewidth=1, label=information)
        below.legend(loc="upper right")
        below.set_ylabel("posterior mass\nper nat of log X")
        below.set_ylim(bottom=0)
        below.set_xlim(0, end)
        below.set_xlabel("compression of the prior, -log X (nats)")
        figure.align_ylabels()
    return figure


KINDS: dict[str, Callable[..., Figure]] = {"triangle": triangle, "trace": trace, "weights": weights, "levels": levels}


@with_own_arithmetic
def save(figure: Figure, file: Any, suffix: str, dpi: int = 160) -> None:
    """Write a figure: the same result gives the same bytes.

    Args:
        figure: The figure.
        file: Path or binary file.
        suffix: "png", "pdf" or "svg".
        dpi: Pixels an inch.
    """
    dates = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
    with rc_context({"svg.hashsalt": "nsflow", "pdf.fonttype": 42}):  # and text in a PDF stays text
        figure.savefig(file, format=suffix, dpi=dpi, metadata=dates.get(suffix))
