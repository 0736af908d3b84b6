import contextlib
import copy
import dataclasses
import json
import math
import os
import pickle
import subprocess
import sys
from pathlib import Path

import anesthetic
import matplotlib
import numpy as np
import numpyro.distributions as dist
import pytest
from scipy import stats
from scipy.special import logsumexp

import nsflow
from nsflow.results import files
from nsflow.results.results import Results, load

matplotlib.use("Agg")

HALF, SCALE = 5.0, 0.5  # a Gaussian of standard deviation 0.5 in the box [-5, 5]^d, ten deviations from any edge
SIGMAS = 5  # a correct module fails a statistical check here with probability 6e-7


def headline(log_weights, num_draws, **kwargs):
    """The importance estimate from all draws, as `evidence` makes it."""
    logZ = float(logsumexp(log_weights)) - math.log(num_draws)
    ess = math.exp(2 * logsumexp(log_weights) - logsumexp(2 * log_weights))
    logZ_err = math.sqrt(max(num_draws / ess - 1, 0) / (num_draws - 1))
    numbers = dict(logZ=logZ, logZ_err=logZ_err, ess=ess, num_calls=2 * num_draws, num_draws=num_draws)
    return numbers | dict(log_weights=log_weights) | kwargs


def gaussian_run(seed=0, d=4, n=10_000, alpha=0.1, zero=False, **kwargs):
    """Draws from `alpha` prior + a Gaussian 1.3 times wider than the posterior; `zero`: L = 0 in a quarter."""
    rng = np.random.default_rng(seed)
    k = int(alpha * n)
    x = np.concatenate([rng.uniform(-HALF, HALF, (k, d)), rng.normal(0, 1.3 * SCALE, (n - k, d))])
    log_prior = -d * math.log(2 * HALF)
    log_q = np.logaddexp(math.log(alpha) + log_prior, math.log1p(-alpha) + stats.norm.logpdf(x, 0, 1.3 * SCALE).sum(1))
    logL = stats.norm.logpdf(x, 0, SCALE).sum(1)
    if zero:
        logL = np.where((x[:, 0] > 0) & (x[:, 1] > 0), -np.inf, logL)
    names = tuple(f"x{i}" for i in range(d))
    return Results(names=names, samples=x, log_likelihood=logL, **headline(logL + log_prior - log_q, n, **kwargs))


def small(**kwargs):
    """Five draws, with what is awkward in a file: weight zero, a draw outside the prior, long and denormal numbers."""
    defaults = dict(
        names=("a", 'b,"c"'),
        labels=(r"\alpha", "b, or c"),
        samples=np.array([[0.1 + 0.2, 1 / 3], [5e-324, -1e300], [-0.0, 2.5], [np.pi, 1e-17], [1e6 + 1e-9, 7.0]]),
        log_likelihood=np.array([-1.5, -1e6 - 1 / 7, -np.inf, -0.25, -3.0]),
        log_weights=np.array([-1.5 + 1 / 3, -1e6, -np.inf, -2.25, -np.inf]),
        num_draws=6, logZ=-2.9, logZ_err=np.inf, ess=1.5, num_calls=12, finished=False, stop_reason="max_calls",
        alarms=("k-hat is 0.9",), settings={"ess": np.int64(10), "levels": (1, 2), "pool": len, "top": -np.inf},
        versions={"jax": "0.10.2"}, trace=[{"phase": "ladder", "contour": np.float64(-np.inf)}, {"phase": "frozen"}],
    )  # fmt: skip
    return Results(**(defaults | kwargs))


# ---- draws


def test_posterior_comes_with_its_log_likelihoods_where_asked():
    result = gaussian_run(n=1000)
    plain, full = result.posterior(50, seed=3), result.posterior(50, seed=3, with_logL=True)
    assert tuple(plain) == result.names
    assert tuple(full) == (*result.names, "logL")
    for name in result.names:
        np.testing.assert_array_equal(full[name], plain[name])
    expected = sum(stats.norm.logpdf(full[name], 0, SCALE) for name in result.names)
    np.testing.assert_allclose(full["logL"], expected, rtol=1e-12)


def test_the_best_draw_is_the_highest_inside_the_prior():
    result = small()
    assert result.best == {"a": np.pi, 'b,"c"': 1e-17, "logL": -0.25}
    outside = small(log_weights=np.array([-1.5, -1e6, -np.inf, -np.inf, -np.inf]))  # its best two are outside
    assert outside.best == {"a": 0.1 + 0.2, 'b,"c"': 1 / 3, "logL": -1.5}
    with pytest.raises(ValueError, match="`best` expected at least one draw of positive weight"):
        _ = small(log_weights=np.full(5, -np.inf)).best


@pytest.mark.parametrize("send", [copy.copy, copy.deepcopy, lambda result: pickle.loads(pickle.dumps(result))])
def test_copies_of_a_result_are_equal_and_read_only(send):
    result = small()
    sent = send(result)
    assert sent == result
    with pytest.raises(ValueError, match="read-only"):
        sent.samples[0, 0] = 1.0


# ---- closed forms


def test_weighted_samples_have_the_moments_of_the_posterior():
    result = gaussian_run()
    samples = result.to_anesthetic()
    tolerance = SIGMAS / math.sqrt(result.ess)
    for name in result.names:
        assert abs(samples[name].mean()) < tolerance * SCALE
        assert abs(samples[name].std() - SCALE) < tolerance * SCALE
    truth = -4 * math.log(2 * HALF)
    assert abs(result.logZ - truth) < SIGMAS * result.logZ_err
    # <log L> = -d/2 (1 + log 2 pi s^2) for a Gaussian likelihood inside the box; its variance is d/2.
    information = -2 * (1 + math.log(2 * math.pi * SCALE**2)) - truth
    assert abs(result.information - information) < SIGMAS * math.sqrt(2 / result.ess + result.logZ_err**2)


@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("d", [4, 10])
@pytest.mark.parametrize("n", [1000, 10_000])
def test_nested_samples_agree_with_the_headline(zero, d, n):
    result = gaussian_run(seed=d + n, d=d, n=n, zero=zero)
    nested = result.to_nested_samples()
    assert abs(nested.logZ() - result.logZ) < 0.05 * result.logZ_err
    assert abs(nested.D_KL() - result.information) < 0.05 * math.sqrt(d / 2 / result.ess) + 0.05 * result.logZ_err
    assert abs(nested.d_G() - d) < SIGMAS * d * math.sqrt(20 / result.ess)


def test_zero_likelihood_keeps_its_prior_volume():
    """A quarter of the prior: logZ is log 3/4 lower, where dropping those draws would leave it too high by 0.29."""
    result = gaussian_run(zero=True)
    nested = result.to_nested_samples()
    assert len(nested) == len(result.samples)
    assert abs(nested.logZ() - (-4 * math.log(2 * HALF) + math.log(0.75))) < SIGMAS * result.logZ_err
    prior = nested.set_beta(0)
    weights = prior.get_weights()
    dead = np.isneginf(prior.logL.to_numpy())
    # 1 000 prior draws, and the deficit of the other 750's weights, of at most 1 / alpha and so variance < 10 / n.
    assert abs(weights[dead].sum() / weights.sum() - 0.25) < SIGMAS * math.sqrt(0.75 * 10 / 10_000)
    assert (nested.get_weights()[dead] == 0).all()


def test_volumes_are_those_of_the_contours():
    """In two dimensions the prior mass within radius r is pi r^2 / (2 * 5)^2."""
    result = gaussian_run(d=2, n=40_000)
    nested = result.to_nested_samples()
    r2 = (nested[["x0", "x1"]].to_numpy() ** 2).sum(1)
    for radius in (0.2, 0.5, 1.0, 2.0, 4.0):
        i = int(np.searchsorted(-r2, -(radius**2)))
        assert nested.logX().to_numpy()[i] == pytest.approx(math.log(math.pi * radius**2 / 100), abs=0.2)
    assert (np.diff(nested.logX().to_numpy()) < 0).all()


@pytest.mark.parametrize("factor", [0.95, 1.05])
def test_prior_of_nested_samples_is_the_prior(factor):
    """With prior draws worth 5 % too little or too much, the prior still comes out normalised, uniform and smooth."""
    run = gaussian_run()
    log_weights = run.log_weights.copy()
    log_weights[:1000] += math.log(factor)
    nested = dataclasses.replace(run, log_weights=log_weights).to_nested_samples()
    assert abs(nested.logZ() - run.logZ) < 0.05 * run.logZ_err
    assert np.exp(nested.logdX()).sum() == pytest.approx(1, abs=1e-3)
    prior = nested.set_beta(0)
    assert prior.get_weights().max() / prior.get_weights().sum() < 0.01
    for name in run.names:
        assert abs(prior[name].mean()) < SIGMAS * HALF / math.sqrt(3 * 1000)
        assert abs(prior[name].std() - HALF / math.sqrt(3)) < SIGMAS * HALF / math.sqrt(3 * 1000)


def test_constant_likelihood_has_evidence_one():
    """The mean of the weights is noisy here; volumes that fill the prior are not."""
    run = gaussian_run(d=1)
    log_v = run.log_weights - run.log_likelihood
    flat = Results(names=("x",), samples=run.samples, log_likelihood=np.zeros(10_000), **headline(log_v, 10_000))
    assert flat.to_nested_samples().logZ() == pytest.approx(0, abs=1e-3)


def test_nested_error_bar_is_wider_than_the_headline():
    result = gaussian_run()
    np.random.seed(0)
    assert result.to_nested_samples().logZ(200).std() > 5 * result.logZ_err


def test_bootstrap_has_the_error_of_the_headline():
    result = gaussian_run(zero=True)
    table = result.to_nested_samples().stats(result.bootstrap_log_weights(1000))
    assert table.logZ.std() / result.logZ_err == pytest.approx(1, abs=SIGMAS / math.sqrt(2 * 1000))
    assert abs(table.logZ.mean() - result.logZ) < SIGMAS * result.logZ_err / math.sqrt(1000)
    assert abs(table.D_KL.mean() - result.information) < 0.01
    assert abs(table.d_G.mean() - 4) < 0.5


@pytest.mark.parametrize("num_draws", [500, 1000])
def test_bootstrap_counts_draws_without_a_row(num_draws):
    """Equal weights: no error at all if every draw has one, and that of a coin if half of them have none."""
    n = 500
    numbers = headline(np.zeros(n), num_draws)
    result = Results(names=("x",), samples=np.linspace(0, 1, n)[:, None], log_likelihood=np.zeros(n), **numbers)
    spread = logsumexp(result.bootstrap_log_weights(1000).to_numpy(), axis=0).std()
    assert spread == pytest.approx(result.logZ_err, rel=SIGMAS / math.sqrt(2 * 1000), abs=1e-8)
    table = result.bootstrap_log_weights(3, seed=1)
    assert table.equals(result.bootstrap_log_weights(3, seed=1))
    assert not table.equals(result.bootstrap_log_weights(3, seed=2))


def test_bootstrap_rows_are_those_of_the_nested_samples():
    result = small()
    nested, table = result.to_nested_samples(), result.bootstrap_log_weights(4)
    assert nested.logL.tolist() == [-np.inf, -1e6 - 1 / 7, -1.5, -0.25]  # the draw outside the prior is left out
    assert np.isneginf(table.to_numpy()).any(axis=1).tolist() == [True, False, False, False]


def test_volumes_survive_deep_compression():
    """exp(-2000) is no double: volumes must stay logarithms. L rises as X falls."""
    log_x = -np.arange(1.0, 4001) / 2
    logL = -1.3 * log_x
    log_v = log_x + math.log(1 - math.exp(-0.5)) + math.log(4000) + 0.5
    result = Results(names=("x",), samples=log_x[:, None], log_likelihood=logL, **headline(log_v + logL, 4000))
    nested = result.to_nested_samples()
    assert np.isfinite(nested.logX()).all()
    assert nested.logX().to_numpy()[::500] == pytest.approx((log_x + 0.5 + math.log(0.5 + 0.5 * math.exp(-0.5)))[::500])


def test_negligible_draws_do_not_break_anesthetic():
    """A prior mass of e^-60 at low likelihood cannot lower the volume by a double's precision."""
    run = gaussian_run(n=1000)
    log_weights = run.log_weights.copy()
    log_weights[np.argsort(run.log_likelihood)[10:30]] -= 60
    result = dataclasses.replace(run, log_weights=log_weights)
    nested = result.to_nested_samples()
    assert np.isfinite(nested.logw()).all()
    assert nested.logZ() == pytest.approx(run.logZ, abs=0.05 * run.logZ_err)


# ---- posterior samples


def test_posterior_is_equally_weighted_and_shuffled():
    result = gaussian_run()
    draws = result.posterior(5000, seed=3)
    assert list(draws) == list(result.names)
    shares = np.exp(result.log_weights - logsumexp(result.log_weights))
    values, counts = np.unique(draws["x0"], return_counts=True)
    rows = np.searchsorted(np.sort(result.samples[:, 0]), values)
    expected = 5000 * shares[np.argsort(result.samples[:, 0])][rows]
    assert (abs(counts - expected) < 1).all()  # systematic: rounded up or down
    assert len(result.posterior()["x0"]) == int(result.ess)
    # The rows came in two blocks, prior then flow: in draw order the first thousand would be nearly all from the first.
    assert abs(draws["x0"][:1000].std() - SCALE) < SIGMAS * SCALE / math.sqrt(1000)
    order = np.argsort(np.argsort(result.samples[:, 0]))[np.searchsorted(np.sort(result.samples[:, 0]), draws["x0"])]
    assert abs(np.corrcoef(order[1:], order[:-1])[0, 1]) < SIGMAS / math.sqrt(5000)
    joint = {tuple(x) for x in result.samples}
    assert all(tuple(x) in joint for x in np.stack(list(draws.values()), 1)[:50])
    assert (result.posterior(50, seed=3)["x1"] == result.posterior(50, seed=3)["x1"]).all()
    assert (result.posterior(50, seed=3)["x1"] != result.posterior(50, seed=4)["x1"]).any()


def test_posterior_order_does_not_follow_the_draws():
    """Draws sorted by the parameter: without the shuffle the samples would be sorted too."""
    x = np.linspace(0, 1, 2000)
    result = Results(names=("x",), samples=x[:, None], log_likelihood=0 * x, **headline(0 * x, 2000))
    draws = result.posterior(2000)["x"]
    assert abs(np.corrcoef(draws[1:], draws[:-1])[0, 1]) < SIGMAS / math.sqrt(2000)


# ---- anesthetic


def test_to_anesthetic_drops_weight_zero_and_keeps_labels():
    result = small()
    samples = result.to_anesthetic()
    assert type(samples) is anesthetic.MCMCSamples
    assert samples.get_weights().tolist() == [1.0, math.exp(-2.25 - (-1.5 + 1 / 3))]
    assert samples.logL.tolist() == [-1.5, -0.25]
    assert samples.get_labels().tolist() == [r"$\alpha$", "b, or c", r"$\ln\mathcal{L}$"]
    assert np.isfinite(samples.std()).all()
    assert samples.neff() > 1


@pytest.mark.parametrize(
    ("given", "shown"),
    [((), "log_m"), (("log_m",), "log_m"), (("mass",), "mass"), ((r"m_\odot",), r"$m_\odot$"), (("$m$",), "$m$")],
)
def test_only_tex_gets_dollar_signs(given, shown):
    result = Results(
        names=("log_m",), labels=given, samples=np.ones((3, 1)), log_likelihood=np.zeros(3), **headline(np.zeros(3), 3)
    )
    assert result.labels == (shown,)
    assert result.to_anesthetic().get_label("log_m") == shown


def test_nested_samples_survive_files(tmp_path):
    nested = gaussian_run(n=1000, zero=True).to_nested_samples()
    nested.to_csv(tmp_path / "nested.csv")
    read = anesthetic.read_chains(tmp_path / "nested")
    assert type(read) is anesthetic.NestedSamples
    assert read.logZ() == pytest.approx(nested.logZ(), abs=1e-9)
    assert read.set_beta(0.3).logZ() == pytest.approx(nested.set_beta(0.3).logZ(), abs=1e-9)
    assert read.get_labels().tolist() == ["x0", "x1", "x2", "x3", r"$\ln\mathcal{L}$", r"$n_\mathrm{live}$"]
    assert nested.root is None
    assert len(nested.prior_points()) > 0


def test_plots():
    run = gaussian_run(d=3, n=1000, zero=True)
    result = dataclasses.replace(run, labels=(r"\theta_0", "x1", "x2"))
    axes = result.plot_2d()
    assert axes.shape == (3, 3)
    assert axes.loc["x2", "x0"].get_xlabel() == r"$\theta_0$"
    again = result.plot_2d(["x0", "logL"], kind="scatter", label="run")
    assert list(again.columns) == ["x0", "logL"]
    assert result.plot_2d(axes=axes, kinds={"lower": "scatter_2d"}) is axes
    with pytest.raises(ValueError, match=r"`params` expected names among .*got \['y'\]"):
        result.plot_2d(["y"])
    matplotlib.pyplot.close("all")


def test_plot_of_many_parameters_shows_the_first_twelve(monkeypatch):
    shown = []
    monkeypatch.setattr(anesthetic.MCMCSamples, "plot_2d", lambda _, axes, **kwargs: shown.append((axes, kwargs)))
    gaussian_run(d=14, n=100).plot_2d()
    assert shown == [([f"x{i}" for i in range(12)], {"kind": "kde"})]


def test_import_leaves_pandas_alone():
    code = "import sys, nsflow.results; print('anesthetic' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


# ---- files


def bits(result):
    return [getattr(result, name).tobytes() for name in ("samples", "log_likelihood", "log_weights")]


@pytest.mark.parametrize("make", [small, gaussian_run, lambda: small(labels=("a\nb", "ü"), settings={"x": {"$y": 1}})])
def test_saved_result_comes_back_bit_for_bit(tmp_path, make):
    result = make()
    result.save(tmp_path / "deep" / "er" / "run")
    assert sorted(p.name for p in (tmp_path / "deep" / "er").iterdir()) == ["run.csv", "run.json"]
    again = load(tmp_path / "deep" / "er" / "run")
    assert again == result
    assert bits(again) == bits(result)
    assert repr(again) == repr(result)
    for f in dataclasses.fields(Results):
        assert type(getattr(again, f.name)) is type(getattr(result, f.name))


def test_json_is_strict(tmp_path):
    small().save(tmp_path / "run")

    def refuse(token):
        raise AssertionError(token)

    header = json.loads((tmp_path / "run.json").read_text(), parse_constant=refuse)
    assert header["logZ"] == -2.9
    assert header["khat"] == {"$float": "nan"}
    assert header["settings"] == {"ess": 10, "levels": [1, 2], "pool": repr(len), "top": {"$float": "-inf"}}


def test_read_chains_reads_the_csv(tmp_path):
    result = gaussian_run(n=2000, zero=True)
    result = dataclasses.replace(result, labels=(r"\theta", "x1", "x2", "x3"))
    result.save(tmp_path / "run")
    read, direct = anesthetic.read_chains(tmp_path / "run"), result.to_anesthetic()
    assert type(read) is anesthetic.MCMCSamples
    assert read.get_label("x0") == r"$\theta$"
    assert read.get_weights() == pytest.approx(np.exp(result.log_weights - result.log_weights.max()))
    assert read.logL.to_numpy() == pytest.approx(result.log_likelihood)
    assert read.log_weights.to_numpy() == pytest.approx(result.log_weights)
    names = list(result.names)
    assert read[names].mean().to_numpy() == pytest.approx(direct[names].mean().to_numpy())
    assert read.neff() == pytest.approx(direct.neff())
    assert read[["x0", "x1"]].plot_2d(kind="kde").shape == (2, 2)
    matplotlib.pyplot.close("all")


@pytest.mark.parametrize("given", ["run", "run.csv", "run.json"])
@pytest.mark.parametrize("kind", [str, Path])
def test_root_may_carry_a_suffix(tmp_path, given, kind):
    small().save(kind(tmp_path / given))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run.csv", "run.json"]
    assert load(kind(tmp_path / given)) == small()


def test_other_dots_belong_to_the_name(tmp_path):
    small().save(tmp_path / "beta_0.5")
    small(logZ=1.0).save(tmp_path / "beta_0.7")
    assert load(tmp_path / "beta_0.5") == small()
    assert len(anesthetic.read_chains(tmp_path / "beta_0.5.csv")) == 5


def test_interrupted_save_leaves_the_old_files(tmp_path, monkeypatch):
    small().save(tmp_path / "run")

    def full(_):
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        gaussian_run(n=100).save(tmp_path / "run")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run.csv", "run.json"]
    assert load(tmp_path / "run") == small()


@pytest.mark.parametrize("n", [0, 3])
def test_run_without_evidence_can_be_kept_but_not_used(tmp_path, n):
    nothing = np.full(n, -np.inf)
    result = Results(
        names=("x",), samples=np.ones((n, 1)), log_likelihood=nothing, log_weights=nothing, num_draws=n, logZ=-np.inf,
        logZ_err=np.inf, ess=0.0, num_calls=n, finished=False, stop_reason="max_calls",
    )  # fmt: skip
    assert "infinitely many per effective sample" in repr(result)
    assert math.isnan(result.information)
    result.save(tmp_path / "run")
    assert load(tmp_path / "run") == result
    for method in (result.posterior, result.to_anesthetic, result.to_nested_samples, result.plot_2d):
        with pytest.raises(ValueError, match=rf"at least one draw of positive weight; all {n} .*\(max_calls\)"):
            method()


def test_derived_parameters_without_a_value_come_back(tmp_path):
    """A likelihood that returns -inf alone has not derived any; anesthetic reads them as NaN, too."""
    prior = nsflow.Prior({"x": dist.Uniform(-5.0, 5.0)})

    def some(p):
        x = p["x"]
        return -np.inf if x < -1 else (-0.5 * x**2, {"square": x**2})

    result = nsflow.run(nsflow.HostLikelihood(some), prior, ess=100, settings=nsflow.Settings(num_prior=300))
    missing = np.isnan(result.samples[:, 1])
    assert 0 < np.sum(missing) < len(missing)
    result.save(tmp_path / "run")
    again = load(tmp_path / "run")
    assert again == result
    np.testing.assert_array_equal(again.samples, result.samples)
    chains = anesthetic.read_chains(tmp_path / "run")
    # pandas' reader errs in the last bit.
    np.testing.assert_allclose(chains["square"].to_numpy(), result.samples[:, 1], rtol=1e-11, equal_nan=True)
    again.plot_2d()
    matplotlib.pyplot.close("all")


def test_nan_of_either_sign_comes_back(tmp_path):
    samples = np.array([[0.0, np.nan], [1.0, -np.nan], [2.0, 1.0], [3.0, np.copysign(np.nan, -1)], [4.0, 0.0]])
    result = small(samples=samples, derived=('b,"c"',))
    result.save(tmp_path / "run")
    assert load(tmp_path / "run") == result
    edit(tmp_path / "run.csv", ",2.0,1.0,", ",2.0,,")  # a number that was lost is not taken for NaN
    with pytest.raises(ValueError, match="they have changed"):
        load(tmp_path / "run")


STRANGE = [
    ("names", "ab"), ("names", [1, 2]), ("labels", None), ("alarms", [1]), ("alarms", "text"), ("finished", 1),
    ("stop_reason", None), ("logZ", "x"), ("logZ", 10**25), ("ess", None), ("num_calls", 10**25), ("num_draws", 1.5),
    ("seed", "0"), ("settings", []), ("versions", {"a": 1}), ("trace", [1]), ("trace", {}), ("columns", []),
    ("labels", ["a"]), ("derived", ["zzz"]), ("num_draws", -1), ("names", ["logL", "b"]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), STRANGE, ids=str)
def test_strange_headers_are_refused(name, value, tmp_path):
    small().save(tmp_path / "run")
    document = json.loads((tmp_path / "run.json").read_text())
    (tmp_path / "run.json").write_text(json.dumps(document | {name: value}))
    with pytest.raises(ValueError, match="`load` expected"):
        load(tmp_path / "run")


@pytest.mark.parametrize("suffix", [".csv", ".json"])
def test_pipes_and_folders_in_the_place_of_files_are_refused(suffix, tmp_path):
    small().save(tmp_path / "run")
    file = tmp_path / f"run{suffix}"
    (tmp_path / "kept").write_bytes(file.read_bytes())
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(FileNotFoundError, match="`load` expected a saved result"):
        load(tmp_path / "run")
    with pytest.raises(OSError, match="it is no file but a link, pipe"):
        files.read_bytes(file)
    file.unlink()
    file.symlink_to(tmp_path / "kept")  # a user's own link is fine
    assert load(tmp_path / "run") == small()


@pytest.mark.parametrize("depth", [500, 100_000])
def test_lists_without_end_are_refused(depth, tmp_path):
    small().save(tmp_path / "run")
    edit(tmp_path / "run.json", '"settings": {', f'"settings": {{"deep": {"[" * depth}{"]" * depth}, ')
    with contextlib.suppress(ValueError):
        load(tmp_path / "run")


@pytest.mark.parametrize("root", [5, b"run", None], ids=str)
@pytest.mark.parametrize("call", [load, lambda root: small().save(root)], ids=["load", "save"])
def test_what_is_no_path_is_refused(call, root):
    with pytest.raises(TypeError, match=r"`root` expected a path, as a string or a pathlib\.Path"):
        call(root)


@pytest.mark.parametrize("ess", [1e308, np.nan, np.inf, -1.0])
def test_number_of_posterior_draws_is_bounded(ess):
    assert 1 <= len(small(ess=ess).posterior()["a"]) <= 5


def test_control_characters_are_not_printed():
    evil = "x\x1b[2J"
    shown = repr(small(names=(evil, "b"), labels=(), alarms=(evil,), stop_reason=evil))
    assert "\x1b" not in shown
    assert shown.count(r"x\x1b[2J") == 3


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def mix_with_another_run(table, _):
    gaussian_run(n=50).save(table.with_name("other"))
    table.with_name("other.csv").replace(table)


@pytest.mark.parametrize(
    ("damage", "error", "match"),
    [
        (lambda c, _: c.unlink(), FileNotFoundError, r"no file .*run\.csv"),
        (lambda _, j: j.unlink(), FileNotFoundError, r"no file .*run\.json"),
        (lambda _, j: j.write_text(j.read_text()[:200]), ValueError, r"expected JSON in .*damaged or cut short"),
        (lambda _, j: j.write_bytes(b"\xff\xfe"), ValueError, r"expected JSON in .*damaged or cut short"),
        (lambda _, j: j.write_text("[1]"), ValueError, r"some other JSON file"),
        (lambda _, j: j.write_text("{}"), ValueError, r"some other JSON file"),
        (lambda _, j: edit(j, '"format_version": 1', '"format_version": 2'), ValueError, r"version 1 .*got 2"),
        (lambda _, j: edit(j, '"logZ_err"', '"logZ_error"'), ValueError, r"expected 'logZ_err' in .*run\.json"),
        (lambda _, j: edit(j, '"digest"', '"checksum"'), ValueError, r"expected \['digest'\] in .*run\.json"),
        (lambda c, _: edit(c, "0.3333333333333333", "0.5"), ValueError, r"they have changed"),
        (lambda c, _: edit(c, ",,a,", ",,q,"), ValueError, r"got 5 rows of \['q'"),
        (lambda c, _: edit(c, "0.3333333333333333", "x"), ValueError, r"a number in every cell of .*run\.csv"),
        (lambda c, _: c.write_text(c.read_text()[:-40]), ValueError, r"a number in every cell of|expected 5 rows"),
        (lambda c, _: c.write_text("\n".join(c.read_text().splitlines()[:-1])), ValueError, r"expected 5 .*got 4 rows"),
        (lambda c, _: c.write_text(""), ValueError, r"expected 5 rows .*got 0 rows"),
        (mix_with_another_run, ValueError, "from different runs"),
    ],
)  # fmt: skip
def test_damaged_files_are_refused(tmp_path, damage, error, match):
    small().save(tmp_path / "run")
    damage(tmp_path / "run.csv", tmp_path / "run.json")
    with pytest.raises(error, match=match):
        load(tmp_path / "run")


@pytest.mark.parametrize("root", ["", ".", "..", "/"])
def test_root_must_name_a_file(root):
    with pytest.raises(ValueError, match="`root` expected the path of a run"):
        small().save(root)


# ---- the object


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"samples": np.ones((4, 2))}, r"`samples` expected shape \(5, 2\); got \(4, 2\)"),
        ({"log_weights": np.ones(4)}, r"`log_weights` expected shape \(5,\); got \(4,\)"),
        ({"log_likelihood": np.ones((5, 1))}, r"`log_likelihood` expected shape \(5,\); got \(5, 1\)"),
        ({"log_likelihood": np.array([np.nan, 0, 0, 0, 0])}, "`log_likelihood` expected finite values or -inf"),
        ({"log_weights": np.array([np.inf, 0, 0, 0, 0])}, "`log_weights` expected finite values or -inf"),
        ({"log_weights": np.zeros(5)}, "`log_weights` expected -inf wherever"),
        ({"num_draws": 4}, "`num_draws` expected at least the 5 draws in `samples`; got 4"),
        ({"names": ("a", "a")}, r"`names` expected distinct columns .*got \['a'\]"),
        ({"names": ("a", "logL")}, r"`names` expected distinct columns .*got \['logL'\]"),
        ({"labels": ("a",)}, r"`labels` expected one for each of .*got \('a',\)"),
    ],
)
def test_wrong_arguments(change, match):
    with pytest.raises(ValueError, match=match):
        small(**change)


@pytest.mark.parametrize("method", ["posterior", "bootstrap_log_weights"])
def test_wrong_number_of_samples(method):
    with pytest.raises(ValueError, match="`num_samples` expected a positive number .*got 0"):
        getattr(small(), method)(0)


@pytest.mark.parametrize("shift", [-10.0, 10.0])
def test_draws_that_do_not_cover_the_prior_have_no_volumes(shift):
    run = gaussian_run(n=1000)
    moved = dataclasses.replace(run, log_weights=run.log_weights + shift)
    with pytest.raises(ValueError, match=r"prior mass, .*, is 1; got .* use `to_anesthetic`"):
        moved.to_nested_samples()


def test_results_are_immutable():
    x = np.zeros((3, 1))
    result = Results(names=("x",), samples=x, log_likelihood=np.zeros(3), **headline(np.zeros(3), 3))
    x[0] = 1
    assert result.samples[0] == 0
    with pytest.raises(ValueError, match="read-only"):
        result.log_weights[0] = 1
    assert small().settings == {"ess": 10, "levels": [1, 2], "pool": repr(len), "top": -math.inf}
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.logZ = 0.0


def test_equality_is_that_of_every_number():
    assert small() == small()
    assert small() != small(logZ=-2.8)
    assert small() != small(khat=0.5)
    assert small() != small(trace=[])
    assert small() != small(samples=np.ones((5, 2)))
    assert small(samples=np.full((5, 2), np.nan)) == small(samples=np.full((5, 2), np.nan))
    assert small() != 1


def test_repr_says_what_matters():
    shown = repr(small(khat=0.91, max_weight_share=0.5))
    for text in (
        "logZ         -2.9000 +- inf nats", "ESS          2 of 5 draws", "calls        12, 8.0 per effective sample",
        "k-hat 0.91, largest share 0.5", "UNFINISHED   max_calls", "ALARM        k-hat is 0.9", "2 parameters: a, b",
    ):  # fmt: skip
        assert text in shown
    calm = repr(gaussian_run(d=8, n=100))
    assert "UNFINISHED" not in calm
    assert "ALARM" not in calm
    assert "8 parameters: x0, x1, x2, x3, x4, x5, ...\n" in calm


def test_plain_never_refuses():
    class Odd:
        def __repr__(self):
            return "Odd()"

    given = {"a": np.array([1.0, np.nan]), 3: (True, np.bool_(False), None), "odd": [Odd()], "complex": np.array([1j])}
    assert repr(files.plain(given)) == repr(
        {"a": [1.0, math.nan], "3": [True, False, None], "odd": ["Odd()"], "complex": "array([0.+1.j])"}
    )
