"""Pictures: what is drawn is what the result says, in files that open, without a trace in matplotlib's own state."""

import math

import anesthetic
import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import numpyro.distributions as dist
import pytest
from matplotlib.colors import to_hex
from matplotlib.text import Text
from scipy import stats

import nsflow
from nsflow import plots
from nsflow.importance.evidence import log_evidence
from nsflow.importance.pareto import pareto_tail
from nsflow.results.results import Results

BOX = 5.0  # the prior is uniform in [-5, 5]^2
WIDTH = 0.5  # standard deviation of the likelihood
TRACE = [
    dict(phase="ladder", num_calls=1000, contour=-6.0, logZ=-8.0, logZ_err=0.5, ess=20.0, seconds=1.0),
    dict(phase="ladder", num_calls=1500, contour=-2.0, logZ=-4.9, logZ_err=0.2, ess=80.0, seconds=1.2),
    dict(phase="scouting", num_calls=1600, contour=-2.0, logZ=-4.9, logZ_err=0.2, ess=80.0, seconds=1.3),
    dict(phase="posterior", num_calls=2000, contour=-2.0, logZ=-4.7, logZ_err=0.1, ess=200.0, seconds=2.0),
    dict(phase="frozen", num_calls=3000, contour=-2.0, logZ=-4.65, logZ_err=0.05, ess=900.0, seconds=2.1),
    dict(phase="frozen", num_calls=4000, contour=-2.0, logZ=-4.62, logZ_err=0.03, ess=1900.0, seconds=2.2),
]


def gaussian(n=4000, seed=0, **kwargs):
    """Draws of a tenth of the prior and nine of a wider Gaussian, with exact weights."""
    rng = np.random.default_rng(seed)
    x = np.concatenate([rng.uniform(-BOX, BOX, (n // 10, 2)), rng.normal(0, 1.3 * WIDTH, (n - n // 10, 2))])
    log_prior = -2 * math.log(2 * BOX)
    broad = stats.norm.logpdf(x, 0, 1.3 * WIDTH).sum(1)
    log_q = np.logaddexp(math.log(0.1) + log_prior, math.log(0.9) + broad)
    logL = stats.norm.logpdf(x, 0, WIDTH).sum(1)
    defaults = dict(
        names=("a", "b"), labels=(r"\alpha", "b"), samples=x, log_likelihood=logL,
        log_weights=logL + log_prior - log_q, num_draws=n, num_calls=n, trace=TRACE, settings={"ess": 1000},
        **log_evidence(logL + log_prior - log_q)._asdict(),
    )  # fmt: skip
    return Results(**(defaults | kwargs))


@pytest.fixture(scope="module")
def result():
    return gaussian()


def lines(axes):
    return {line.get_label(): line.get_xydata() for line in axes.lines}


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("kind", plots.KINDS)
def test_every_kind_is_written_and_leaves_matplotlib_as_it_was(kind, dark, result, tmp_path):
    before = dict(mpl.rcParams)
    figure = plots.KINDS[kind](result, dark=dark)
    for suffix, magic in (("png", b"\x89PNG"), ("pdf", b"%PDF"), ("svg", b"<?xml")):
        path = tmp_path / f"figure.{suffix}"
        plots.save(figure, path, suffix)
        assert path.read_bytes().startswith(magic)
        assert path.stat().st_size > 5000
    assert dict(mpl.rcParams) == before
    assert plt.get_fignums() == []  # nothing that pyplot would keep in memory or show
    ink = {to_hex(text.get_color()) for axes in figure.axes for text in (axes.xaxis.label, axes.yaxis.label)}
    assert ink == {"#e6e6e6" if dark else "#222222"}


def test_the_triangle_has_the_densities_of_the_posterior(result):
    figure = plots.triangle(result)
    labels = {axes.get_xlabel() for axes in figure.axes} | {axes.get_ylabel() for axes in figure.axes}
    assert {r"$\alpha$", "b"} <= labels
    (curve, *_) = [axes.lines[0].get_xydata() for axes in figure.axes if axes.lines]
    x, density = curve.T
    # Within 5 standard errors of a kernel density of 1300 effective draws, of order 4 % at the peak.
    assert abs(x[density.argmax()]) < 0.3 * WIDTH
    inside = x[density > math.exp(-0.5)]
    assert inside[-1] - inside[0] == pytest.approx(2 * WIDTH, rel=0.2)


def test_labels_of_the_prior_reach_the_triangle_the_frames_and_the_files(tmp_path):
    prior = nsflow.Prior({"a": dist.Normal(0, 1), "b": dist.Normal(0, 1)}, labels={"a": r"$\alpha$"})
    likelihood = nsflow.HostLikelihood(lambda p: (-0.5 * p["a"] ** 2, {"c": 2.0 * p["b"]}), vectorized=True)
    result = nsflow.run(likelihood, prior, ess=50, settings=nsflow.Settings(num_prior=100), progress=False)
    assert result.labels == (r"$\alpha$", "b", "c")
    figure = plots.triangle(result)
    labels = {axes.get_xlabel() for axes in figure.axes} | {axes.get_ylabel() for axes in figure.axes}
    assert {r"$\alpha$", "b"} <= labels
    assert result.to_anesthetic().get_label("a") == r"$\alpha$"
    result.save(tmp_path / "run")
    assert nsflow.load(tmp_path / "run").labels == result.labels
    assert anesthetic.read_chains(str(tmp_path / "run")).get_label("a") == r"$\alpha$"


def test_kernels_are_as_wide_as_the_modes():
    rng = np.random.default_rng(0)
    assert plots._bandwidth_scale(rng.normal(size=4000)) == 1
    apart = np.concatenate([rng.normal(-5, 0.2, 2000), rng.normal(5, 0.2, 2000)])
    assert plots._bandwidth_scale(apart) <= 0.125
    assert plots._bandwidth_scale(np.repeat([1.0, 2.0], 1000)) == 1  # integers are no density


def test_labels_of_a_file_never_reach_latex(result):
    """It would do what they say, such as \\input another file."""
    with mpl.rc_context({"text.usetex": True}):
        figures = [draw(result) for draw in plots.KINDS.values()]
    assert not any(text.get_usetex() for figure in figures for text in figure.findobj(Text))


def test_the_trace_is_that_of_the_run_with_units(result):
    panels = plots.trace(result).axes
    assert [axes.get_ylabel() for axes in panels] == [
        "contour\nlog L (nats)",
        "log Z (nats)",
        "ESS",
        "likelihood calls\n(thousands)",
        "time (s)",
    ]
    for axes, name, scale in zip(
        panels, ("contour", "logZ", "ess", "num_calls", "seconds"), (1, 1, 1, 1e-3, 1), strict=True
    ):
        assert axes.lines[0].get_xydata() == pytest.approx(
            np.array([(i + 1, scale * step[name]) for i, step in enumerate(TRACE)])
        )
    legend = panels[0].get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["ladder", "scouting", "posterior", "frozen"]
    spans = [(p.get_x(), p.get_x() + p.get_width()) for p in panels[0].patches]
    assert spans == [(0.5, 2.5), (2.5, 3.5), (3.5, 4.5), (4.5, 6.5)]
    low, high = panels[1].get_ylim()
    assert -5.3 < low < -5.1  # the first level, at -8, knows nothing and does not set the scale
    assert high > -4.59


def test_a_trace_without_times_and_errors_is_drawn_too():
    old = [{name: value for name, value in step.items() if name not in ("seconds", "logZ_err")} for step in TRACE]
    assert len(plots.trace(gaussian(trace=old)).axes) == 4


def test_weights_are_sorted_and_their_tail_is_that_of_khat(result):
    left, right = plots.weights(result).axes
    share, weight = left.lines[0].get_xydata().T
    assert (np.diff(weight) <= 0).all()
    assert share[-1] == 100
    assert weight.mean() == pytest.approx(1)
    assert right.get_title(loc="left") == f"largest weights, k-hat = {result.khat:.2f}"
    tail = pareto_tail(result.log_weights, result.num_draws)
    assert tail is not None
    drawn = lines(right)
    threshold, survival = drawn["generalised Pareto"][0]
    assert survival == pytest.approx(tail.size / result.num_draws)
    assert drawn["start of the tail"][0, 0] == pytest.approx(threshold)
    # The fit is one of these draws: within 5 deviations of the number of them above.
    for weight in np.quantile(drawn["draws"][: tail.size, 0], [0.3, 0.7]):
        expected = np.interp(weight, *drawn["generalised Pareto"].T) * result.num_draws
        number = np.interp(weight, *drawn["draws"][::-1].T) * result.num_draws
        assert abs(number - expected) < 5 * math.sqrt(expected)


def test_equal_weights_have_no_tail_to_fit():
    n = 1000
    flat = gaussian(log_weights=np.zeros(4000) - 1.0, khat=-np.inf)
    assert "generalised Pareto" not in lines(plots.weights(flat).axes[1])
    few = Results(
        names=("x",), samples=np.zeros((3, 1)), log_likelihood=np.zeros(3), log_weights=np.array([0.0, -1.0, -np.inf]),
        num_draws=n, logZ=0.0, logZ_err=1.0, ess=1.5, num_calls=n,
    )  # fmt: skip
    assert plots.weights(few).axes[1].get_title(loc="left") == "largest weights, k-hat = none"


def test_levels_are_those_of_a_gaussian(result):
    """log L_max - log L = r^2 / 2 s^2 within the volume X = pi r^2 / 100; the mass per nat of log X is u e^-u."""
    above, below = plots.levels(result).axes
    depth, gap = above.lines[0].get_xydata().T
    # Against the highest draw, not the peak: 2000 draws are within 0.01 of it.
    expected = 100 / (2 * math.pi * WIDTH**2) * np.exp(-depth)
    middle = (depth > 4.5) & (depth < 8)
    assert gap[middle] == pytest.approx(expected[middle], rel=0.15, abs=0.02)
    contours = above.lines[1].get_xydata()
    assert contours[:, 1] == pytest.approx(result.log_likelihood.max() - np.array([-6.0, -2.0]))
    stairs = below.patches[0].get_data()
    widths = np.diff(stairs.edges)
    assert np.sum(stairs.values * widths) == pytest.approx(1, abs=1e-3)
    centre = 0.5 * (stairs.edges[1:] + stairs.edges[:-1])
    u = 100 / (2 * math.pi * WIDTH**2) * np.exp(-centre)
    assert np.sum(np.abs(stairs.values - u * np.exp(-u)) * widths) < 0.15
    assert "information" in below.get_legend().get_texts()[0].get_text()
    assert below.get_xlabel() == "compression of the prior, -log X (nats)"


@pytest.mark.parametrize("kind", ["triangle", "weights", "levels"])
def test_a_result_without_weights_has_no_picture(kind):
    empty = gaussian(log_weights=np.full(4000, -np.inf))
    with pytest.raises(ValueError, match="expected at least one draw of positive weight"):
        plots.KINDS[kind](empty)


def test_a_result_without_a_trace_has_no_picture_of_it():
    with pytest.raises(ValueError, match="`trace` expected a result with a trace"):
        plots.trace(gaussian(trace=[]))


def test_unknown_columns_are_refused(result):
    with pytest.raises(ValueError, match=r"`params` expected names among \('a', 'b'\); got \['c'\]"):
        plots.triangle(result, ["a", "c"])


def test_columns_that_are_no_numbers_are_left_out(result):
    samples = np.column_stack([result.samples, np.full(4000, np.nan)])
    derived = gaussian(samples=samples, names=("a", "b", "c"), labels=(), derived=("c",))
    assert {axes.get_xlabel() for axes in plots.triangle(derived).axes} <= {"a", "b", ""}
    with pytest.raises(ValueError, match=r"expected names among \('a', 'b'\); got \['c'\]"):
        plots.triangle(derived, ["c"])


INTEGERS = {
    "poisson 2": lambda rng: rng.poisson(20.0, (300, 2)),
    "poisson 1": lambda rng: rng.poisson(20.0, (3000, 2)),
    "coins 0": lambda rng: rng.integers(0, 2, (500, 2)),
    "constant 0": lambda rng: np.column_stack([rng.normal(size=500), np.ones(500), rng.normal(size=500)]),
    "constants 0": lambda rng: np.tile([0.0, 7.0], (500, 1)),
}


def weighted(samples, **kwargs):
    """Draws with weights that tell none of them from the others."""
    log_weights = 0.3 * np.random.default_rng(0).normal(size=len(samples))
    names = tuple("abc"[: samples.shape[1]])
    return Results(
        names=names, samples=samples, log_likelihood=log_weights, log_weights=log_weights, num_draws=len(samples),
        logZ=0.0, logZ_err=0.1, ess=400.0, num_calls=len(samples), **kwargs,
    )  # fmt: skip


@pytest.mark.parametrize("kind", INTEGERS)
def test_integers_and_constants_are_drawn(kind, tmp_path):
    rng = np.random.default_rng(int(kind.split()[1]))
    result = weighted(INTEGERS[kind](rng).astype(float))
    np.random.seed(1)
    state = np.random.get_state()[1].tolist()
    plots.save(plots.triangle(result), tmp_path / "triangle.png", "png")
    axes = result.plot_2d()
    assert np.random.get_state()[1].tolist() == state
    plt.close("all")
    for name in result.names:
        low, high = axes.loc[name, name].get_xlim()
        assert low <= np.mean(result.samples[:, result.names.index(name)]) <= high


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("share", [0.3, 1.0])
def test_derived_columns_without_values_are_drawn_where_they_are_asked_for(wrong, share):
    rng = np.random.default_rng(0)
    samples = rng.normal(size=(500, 3))
    samples[: int(share * 500), 2] = wrong
    result = weighted(samples, derived=("c",))
    assert list(result.plot_2d().columns) == ["a", "b"]
    if share < 1:
        assert list(result.plot_2d(["a", "c"]).columns) == ["a", "c"]
    else:
        with pytest.raises(ValueError, match=r"`params` expected names among .*'b', 'logL'\); got \['c'\]"):
            result.plot_2d(["a", "c"])
    plt.close("all")


@pytest.mark.parametrize("label", [r"\input{x}", r"\nosuchmacro", "{" * 2000, r"\frac{" * 40 + "a" + "}{b}" * 40])
def test_labels_that_are_no_tex_are_shown_as_they_stand(label, tmp_path):
    result = gaussian(labels=(label, "b"))
    plots.save(plots.triangle(result), tmp_path / "triangle.png", "png")
    result.plot_2d()
    plt.gcf().savefig(tmp_path / "corner.png")
    plt.close("all")


@pytest.mark.parametrize("value", [1e308, 10**400, [1]], ids=["large", "larger", "list"])
@pytest.mark.parametrize("name", plots.TRACED)
def test_a_trace_of_no_numbers_is_drawn_without_them(name, value, tmp_path):
    result = gaussian(trace=[*TRACE, TRACE[-1] | {name: value, "phase": "$\\x\x1b$"}], settings={"ess": value})
    plots.save(plots.trace(result), tmp_path / "trace.svg", "svg")
    plots.levels(result)
