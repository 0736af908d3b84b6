"""Checkpoints: the same bits after any interruption, refusals that say why, and files that cannot run code."""

import errno
import io
import json
import os
import pickle
import re
import struct
import subprocess
import sys
import time
import tokenize
import zlib
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from safetensors.numpy import save_file
from scipy import special

import nsflow
from nsflow.checkpoint import checkpoint, codec, identity, manifest
from nsflow.densities.bases import EdgedBall
from nsflow.densities.gaussian import Gaussian
from nsflow.densities.kernels import Kernels
from nsflow.densities.mixture import Mixture
from nsflow.densities.pushforward import Pushforward
from nsflow.densities.wide import Wide
from nsflow.diffusion.action_matching import ActionMatching
from nsflow.diffusion.energy import Conservative
from nsflow.diffusion.process import ProcessPath, VariancePreserving
from nsflow.diffusion.score_matching import DenoisingScoreMatching
from nsflow.flow.flow import Flow
from nsflow.flow.objective import FlowMatching
from nsflow.flow.path import AbstractPath, LinearPath, TrigonometricPath
from nsflow.flow.velocity import Architecture
from nsflow.likelihood import journal
from nsflow.nested.state import Problem
from nsflow.numerics.storable import STORABLE
from nsflow.proposals.estimators import KernelDensity
from nsflow.proposals.rejection import Thinned
from nsflow.proposals.surrogate import Surrogate, _interpolate, _Network, _zero
from nsflow.results import files

PRIOR = nsflow.Prior({"x": dist.Uniform(-5, 5), "y": dist.Uniform(-5, 5)})
SMALL = Architecture(width=8, depth=1)


def gaussian(p):
    # Squares as products: a power of an array rounds otherwise than one of a number, by a bit in one of 3000 points.
    return -0.5 * (p["x"] * p["x"] + p["y"] * p["y"]) / 0.3**2


class Killed(BaseException):
    """Ends a run as a kill does: nothing is caught, nothing is tidied."""


def run(path=None, function=gaussian, vectorized=True, prior=PRIOR, **options):
    likelihood = nsflow.HostLikelihood(function, vectorized=vectorized)
    return nsflow.run(likelihood, prior, checkpoint=path, **{"ess": 500, **options})


def until_done(start):
    """Start again after each kill; the result, and how many starts it took."""
    for number in range(1, 40):
        try:
            return start(), number
        except Killed:
            pass
    raise AssertionError("no end of kills")


@pytest.fixture(scope="module")
def whole():
    return run()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    path = tmp_path_factory.mktemp("finished") / "run.nsflow"
    run(path)
    return path


@pytest.fixture
def copy(finished, tmp_path):
    """A finished checkpoint that may be spoilt."""
    path = tmp_path / "run.nsflow"
    path.mkdir()
    for file in finished.iterdir():
        (path / file.name).write_bytes(file.read_bytes())
    return path


@pytest.mark.parametrize("interval", [0.0, 1e9])
def test_resumed_run_has_the_same_bits_and_makes_no_call_twice(interval, whole, tmp_path, monkeypatch):
    """Killed in every 700th call, with a checkpoint after each step and with those after a phase only."""
    monkeypatch.setattr(checkpoint, "INTERVAL", interval)
    path, calls = tmp_path / "run.nsflow", []

    def dying(p):
        calls.append(p)
        if len(calls) % 700 == 0:
            raise Killed
        return gaussian(p)

    result, starts = until_done(lambda: run(path, dying, vectorized=False))
    assert starts > 5
    assert result == whole
    # A start compares three or four points. A kill costs the piece at work: a batch, as calls are cheap.
    assert len(calls) - result.num_calls <= starts * (4 + 600)
    names = sorted(p.name for p in path.iterdir())
    assert all(re.fullmatch(r"lock|manifest|journal-\d+|segment-\d+", name) for name in names)
    assert sum(name.startswith("journal") for name in names) == 1


def test_finished_run_is_returned_at_once_and_extended(whole, copy):
    calls = []

    def counted(p):
        calls.append(len(p["x"]))
        return gaussian(p)

    assert run(copy, counted) == whole
    assert sum(calls) == 3
    more = run(copy, counted, ess=1500)
    assert more.ess >= 1500
    assert more.num_calls - whole.num_calls == sum(calls) - 6
    assert np.array_equal(more.samples[: len(whole.samples)], whole.samples)  # what it had is part of it
    assert abs(more.logZ - np.log(2 * np.pi * 0.09 / 100)) < 5 * more.logZ_err
    sharper = run(copy, counted, logZ_err=0.015)
    assert sharper.logZ_err <= 0.015


def test_signal_writes_a_checkpoint_that_goes_on_to_the_same_bits(whole, tmp_path):
    """Two signals in the middle of batches: what these have evaluated is not evaluated again."""
    path, calls = tmp_path / "run.nsflow", []

    def signalling(p):
        calls.append(p)
        if len(calls) in (1700, 2300):
            os.kill(os.getpid(), 15)
        return gaussian(p)

    for _ in range(2):
        interrupted = run(path, signalling, vectorized=False)
        assert interrupted.stop_reason == "interrupted"
    assert run(path, signalling, vectorized=False) == whole
    assert len(calls) == whole.num_calls + 3 * 3  # three starts compare three points each


def test_run_killed_in_its_first_draws_is_known_by_their_values(whole, tmp_path):
    path, calls = tmp_path / "run.nsflow", []

    def dying(p):
        calls.append(p)
        if len(calls) == 500:
            raise Killed
        return gaussian(p)

    with pytest.raises(Killed):
        run(path, dying, vectorized=False)
    with pytest.raises(ValueError, match="a log-likelihood of"):
        run(path, lambda p: gaussian(p) - 1e-3, vectorized=False)
    assert run(path) == whole


class Disk:
    """What a power cut leaves: the bytes of files, and the names in a folder, as they were last forced to disk."""

    def __init__(self, folder):
        self.folder, self.contents, self.names, self.snapshots = folder, {}, {}, []

    def sync(self, descriptor):
        inode = os.fstat(descriptor).st_ino
        self.snapshots.append(self._files(self._listed()))  # the newest names may be on disk before they are forced to
        if os.path.samestat(os.fstat(descriptor), os.stat(self.folder)):
            self.names = self._listed()
        elif not os.path.isdir(f"/proc/self/fd/{descriptor}"):
            self.contents[inode] = Path(f"/proc/self/fd/{descriptor}").read_bytes()
        self.snapshots.append(self._files(self.names))

    def _listed(self):
        return {entry.name: entry.stat().st_ino for entry in self.folder.iterdir()} if self.folder.is_dir() else {}

    def _files(self, names):
        return {name: self.contents.get(inode, b"") for name, inode in names.items()}


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="reads files through /proc")
def test_power_cut_leaves_a_checkpoint_that_goes_on_to_the_same_bits(whole, tmp_path, monkeypatch):
    """Whatever was not forced to disk is lost: here at twelve of the moments at which something was forced there."""
    monkeypatch.setattr(checkpoint, "INTERVAL", 0.0)
    monkeypatch.setattr(checkpoint, "SYNC", 0.0)
    disk = Disk(tmp_path / "run.nsflow")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", disk.sync)
        run(disk.folder)
    count = len(disk.snapshots)
    for number in np.linspace(count // 20, count - 1, 12).astype(int):
        left, calls = tmp_path / str(number), []
        left.mkdir()
        for name, content in disk.snapshots[number].items():
            (left / name).write_bytes(content)
        assert run(left, lambda p, calls=calls: calls.append(len(p["x"])) or gaussian(p)) == whole
        assert sum(calls) <= whole.num_calls * (1 - number / count) + 1000  # two pieces, and three points compared


def test_capped_run_goes_on_when_the_cap_is_raised(whole, tmp_path):
    path = tmp_path / "run.nsflow"
    capped = run(path, max_calls=2500)
    assert capped.stop_reason == "max_calls reached"
    assert run(path, max_calls=2500) == capped
    result = run(path)
    assert (result.logZ, result.num_calls) == (whole.logZ, whole.num_calls)


def test_circles_and_derived_parameters_come_back_and_merge(tmp_path, monkeypatch):
    """An angle whose posterior lies across its ends; each run cuts its circle open elsewhere."""
    monkeypatch.setattr(checkpoint, "INTERVAL", 0.0)
    prior = nsflow.Prior({"phi": nsflow.Periodic(dist.Uniform(0, 2 * np.pi)), "y": dist.Uniform(-5, 5)})
    calls = []

    def dying(p):
        calls.append(p)
        if len(calls) % 900 == 0:
            raise Killed
        return 10 * (np.cos(p["phi"]) - 1) - 0.5 * p["y"] ** 2 / 0.3**2, {"square": p["y"] ** 2}

    paths = [tmp_path / "0", tmp_path / "1"]
    whole = run(None, lambda p: dying(p) if len(calls) % 900 != 899 else calls.append(p) or dying(p), False, prior)
    result, starts = until_done(lambda: run(paths[0], dying, False, prior))
    assert starts > 2
    assert result == whole
    np.testing.assert_allclose(result.samples[:, 2], result.samples[:, 1] ** 2)
    until_done(lambda: run(paths[1], dying, False, prior, seed=1))
    merged = nsflow.merge(paths, log_likelihood=nsflow.HostLikelihood(lambda p: dying(p)[0]), prior=prior)
    logZ = np.log(special.ive(0, 10) * 0.3 * np.sqrt(2 * np.pi) / 10)
    assert abs(merged.logZ - logZ) < 5 * merged.logZ_err
    assert merged.logZ_err < 0.04
    np.testing.assert_allclose(merged.samples[:, 2], merged.samples[:, 1] ** 2)


def curved(p):
    """A banana in seven dimensions."""
    z = p["z"]
    return -0.5 * (jnp.sum((z[1:] - 0.3 * z[0] ** 2) ** 2) / 0.2**2 + (z[0] - 1) ** 2)


@pytest.mark.parametrize(
    "proposal", [None, pytest.param(nsflow.GaussianMixtureEstimator((1, 2)), marks=pytest.mark.slow)]
)
def test_resumed_networks_have_the_same_bits(proposal, tmp_path, monkeypatch):
    """Flows, surrogate networks and mixtures of levels, killed after every eighth step."""
    monkeypatch.setattr(checkpoint, "INTERVAL", 0.0)
    prior = nsflow.Prior({"z": dist.Uniform(-4, 4).expand([7])})
    training = nsflow.Training(architecture=Architecture(width=16, depth=1), num_steps=200, integration_steps=4)
    settings = nsflow.Settings(ess=400, rounds=(1.0,), max_rounds=1, max_restarts=0, training=training)
    settings = replace(settings, proposal=proposal)
    whole = nsflow.run(curved, prior, settings=settings)
    path, offer, count = tmp_path / "run.nsflow", checkpoint.Checkpoint.offer, [0]

    def dying(self, state, trace):
        offer(self, state, trace)
        count[0] += 1
        if count[0] % 8 == 0:
            raise Killed

    monkeypatch.setattr(checkpoint.Checkpoint, "offer", dying)
    result, starts = until_done(lambda: nsflow.run(curved, prior, settings=settings, checkpoint=path))
    assert starts > 2
    assert result == whole


# ------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": 1}, "expected seed 1, this call's; got 0"),
        ({"settings": nsflow.Settings(num_live=700)}, "expected `num_live` = 700, this call's; got None"),
        ({"proposal": nsflow.GaussianEstimator()}, "expected `proposal` = GaussianEstimator"),
        ({"function": lambda p: gaussian(p) - 1e-3}, "a log-likelihood of"),
        ({"prior": nsflow.Prior({"x": dist.Uniform(-5, 5), "z": dist.Uniform(-5, 5)})}, "parameters of the prior"),
        ({"prior": nsflow.Prior({"x": dist.Uniform(-5, 5), "y": dist.Uniform(-5, 5.001)})}, "the prior of this call"),
    ],
)
def test_another_run_is_refused(options, message, copy):
    before = {file.name: file.read_bytes() for file in copy.iterdir()}
    with pytest.raises(ValueError, match=re.escape(message)):
        run(copy, **options)
    assert {file.name: file.read_bytes() for file in copy.iterdir()} == before


def test_another_version_is_refused(copy, monkeypatch):
    monkeypatch.setattr(identity, "version_of", lambda _: "9.9")
    with pytest.raises(ValueError, match=r"expected version of nsflow '9.9', this call's; got '"):
        run(copy)
    monkeypatch.undo()
    monkeypatch.setattr(manifest, "FORMAT_VERSION", 9)
    with pytest.raises(ValueError, match="format version 2, and this nsflow reads version 9"):
        run(copy)


def spoil(how):
    def spoiled(path):
        segment = next(path.glob("segment-*"))
        manifest = path / "manifest"
        if how == "short manifest":
            manifest.write_bytes(manifest.read_bytes()[:-100])
        elif how == "changed manifest":
            manifest.write_bytes(manifest.read_bytes().replace(b"frozen", b"frozem", 1))
        elif how == "no manifest":
            manifest.unlink()
        elif how == "short segment":
            segment.write_bytes(segment.read_bytes()[:-100])
        elif how == "changed segment":
            data = bytearray(segment.read_bytes())
            data[-5] ^= 1
            segment.write_bytes(data)
        elif how == "no segment":
            segment.unlink()

    return spoiled


@pytest.mark.parametrize(
    "how", ["short manifest", "changed manifest", "no manifest", "short segment", "changed segment", "no segment"]
)
def test_damage_is_refused(how, copy):
    spoil(how)(copy)
    with pytest.raises(ValueError, match="is damaged or cut short"):
        run(copy)


def test_nothing_else_is_written_over(tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.tex").write_text("mine")
    for name in ("file", "folder"):
        with pytest.raises(ValueError, match="there is something else"):
            run(tmp_path / name)
    assert (tmp_path / "file").read_text() == "mine"
    assert [p.name for p in (tmp_path / "folder").iterdir()] == ["thesis.tex"]


def test_folder_that_cannot_be_made_is_refused_before_any_call(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "run.nsflow", Path("/proc/nowhere/run.nsflow")):
        with pytest.raises(OSError, match="expected a folder that can be written"):
            run(path, function=None or (lambda p: pytest.fail("called")))


def test_full_disk_is_a_warning_and_the_run_keeps_its_result(whole, tmp_path, monkeypatch):
    """The disk is full for a while; when there is room again the checkpoint is whole."""
    monkeypatch.setattr(checkpoint, "INTERVAL", 0.0)
    write, written = checkpoint.write_bytes, []

    def full(path, data):
        written.append(path)
        if 6 < len(written) < 9:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(path, data)

    for module in (checkpoint, manifest):
        monkeypatch.setattr(module, "write_bytes", full)
    with pytest.warns(RuntimeWarning, match="No space left on device"):
        assert run(tmp_path / "run.nsflow") == whole
    assert len(written) > 9
    monkeypatch.undo()
    assert run(tmp_path / "run.nsflow", lambda p: gaussian(p)) == whole


HOLD = (
    "import fcntl, sys; f = open(sys.argv[1], 'ab'); fcntl.lockf(f, fcntl.LOCK_EX); print('held', flush=True); input()"
)


def test_checkpoint_in_use_is_refused(copy):
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(copy / "lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(ValueError, match="in use by another process"):
            run(copy)
        other.communicate("\n")


def test_checkpoint_in_use_by_a_run_of_this_process_is_refused(copy, whole):
    """File locks are a process's, and are lost when it closes any of its descriptors of the file."""
    refused = []

    def again(p):
        with pytest.raises(ValueError, match="in use by another run of this process"):
            run(copy)
        code = HOLD.replace("LOCK_EX", "LOCK_EX | fcntl.LOCK_NB")
        other = subprocess.run([sys.executable, "-c", code, copy / "lock"], input="", capture_output=True, text=True)
        refused.append("BlockingIOError" in other.stderr)
        return gaussian(p)

    assert run(copy, again) == whole  # three points are compared
    assert refused == [True]
    assert run(copy) == whole  # it was given back


@pytest.mark.parametrize(
    ("path", "error", "message"),
    [
        (5, TypeError, "`checkpoint` expected a path, as a string or a pathlib.Path; got 5"),
        (True, TypeError, "`checkpoint` expected a path"),
        (b"run", TypeError, "`checkpoint` expected a path"),
        (io.BytesIO(), TypeError, "`checkpoint` expected a path"),
        ("a\0b", ValueError, "`checkpoint` expected the path of a file"),
        ("\ud800", ValueError, "`checkpoint` expected the path of a file"),
        ("a" * 300, OSError, "`checkpoint` expected a name that the file system takes; got 300 characters"),
        ("a" * 250, OSError, "`checkpoint` expected"),
        ("", ValueError, "`checkpoint` expected the path of a folder"),
    ],
    ids=["number", "truth", "bytes", "file", "NUL", "surrogate", "long name", "long path", "nothing"],
)
def test_what_is_no_path_is_refused(path, error, message, tmp_path, monkeypatch):
    if path == "a" * 250:
        path = "/".join(["a" * 250] * 20)  # of which no part is too long
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=re.escape(message)):
        run(path, lambda p: pytest.fail("called"))
    assert list(tmp_path.iterdir()) == []


def test_home_is_expanded(copy, whole, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(copy.parent))
    assert run("~/run.nsflow") == whole
    monkeypatch.chdir(tmp_path)
    assert not (tmp_path / "~").exists()
    whole.save("~/result")
    assert nsflow.load("~/result.json") == whole == nsflow.load(tmp_path / "result")


@pytest.mark.parametrize("size", [1.0, 1e3, 1e6, 1e9, 1e12])
@pytest.mark.parametrize("change", [20.0, 0.5])
def test_likelihoods_are_compared_in_nats(size, change):
    there = -size * np.pi * np.array([0.3, 0.4, 0.5])
    with pytest.raises(ValueError, match="a log-likelihood of"):
        identity.require_same_likelihood(Path("x"), there, there - change, noise=0.0)
    identity.require_same_likelihood(Path("x"), there, there * (1 + 100 * np.finfo(float).eps), noise=0.0)
    single = there.astype(np.float32)
    with np.errstate(over="ignore"):
        rounded = np.nextafter(np.nextafter(single, np.float32(0)), np.float32(0))
    identity.require_same_likelihood(Path("x"), single.astype(float), rounded.astype(float), noise=0.0)
    identity.require_same_likelihood(Path("x"), there, there - change, noise=change)  # it is noisy


def test_large_likelihood_whose_constant_changed_is_another(tmp_path):
    path = tmp_path / "run.nsflow"
    run(path, lambda p: gaussian(p) - 1e9, max_calls=1500)
    with pytest.raises(ValueError, match="a log-likelihood of"):
        run(path, lambda p: gaussian(p) - 1e9 - 20, max_calls=1500)
    with pytest.raises(ValueError, match="a log-likelihood of"):
        nsflow.merge([path, path], log_likelihood=nsflow.HostLikelihood(lambda p: gaussian(p) - 1e9 - 20), prior=PRIOR)


class Opaque(nsflow.AbstractEstimator):
    """Fits a density of a class that no checkpoint knows."""

    def fit(self, key, points, log_weights):  # noqa: ARG002
        return OpaqueDensity(Gaussian.fit(points, log_weights))


@dataclass(frozen=True)
class OpaqueDensity:
    gaussian: Gaussian

    def sample_and_log_prob(self, key, num_samples):
        return self.gaussian.sample_and_log_prob(key, num_samples)

    def log_prob(self, x):
        return self.gaussian.log_prob(x)


def test_densities_of_unknown_classes_are_refused_before_any_call(tmp_path):
    path = tmp_path / "run.nsflow"
    with pytest.raises(TypeError, match="an object of class .*OpaqueDensity.*nsflow.storable"):
        run(path, lambda p: pytest.fail("called"), proposal=Opaque())
    assert not path.exists()
    nsflow.storable("opaque density of the tests")(OpaqueDensity)
    assert run(path, proposal=Opaque(), max_calls=1500).stop_reason == "max_calls reached"


def test_tags_belong_to_one_class_or_function():
    with pytest.raises(TypeError, match="a dataclass, a named tuple or a function; got <class 'int'>"):
        nsflow.storable("int")(int)
    with pytest.raises(TypeError, match="expected a name.*got <class"):
        nsflow.storable(OpaqueDensity)
    with pytest.raises(ValueError, match="a tag of its own for .*OpaqueDensity; 'gaussian' is nsflow.*Gaussian"):
        nsflow.storable("gaussian")(OpaqueDensity)


def test_files_name_no_module():
    """A file holds tags alone, so that classes and functions may move."""
    everything = {tag: thing for tag, thing in STORABLE.items() if thing.__module__.startswith("nsflow")}
    assert len(everything) > 40
    assert all("." not in tag and "nsflow" not in tag for tag in everything)


# ------------------------------------------------------------- the codec


def whole_again(value, settings=None):
    """Write a value, read it, and write it once more: the same nodes and blocks."""
    problem = Problem(None, PRIOR)
    given = codec.given_by(problem, settings or nsflow.Settings())
    encoder = codec.Encoder(given)
    root = encoder.encode(value)
    nodes = [json.loads(node) for node in encoder.nodes]
    again = codec.decode(nodes, root, given, encoder.blocks.__getitem__)
    second = codec.Encoder(given)
    assert second.encode(again) == root
    assert (second.nodes, second.blocks) == (encoder.nodes, encoder.blocks)
    return again


class Bent(AbstractPath):
    """A path of the user's own: the call that resumes brings it along."""

    def alpha(self, t):
        return t**2

    def sigma(self, t):
        return 1 - t


def flow_of(objective):
    field = objective.init(jax.random.key(0), 2, SMALL)
    leaves, structure = jax.tree.flatten(field)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    leaves = [0.1 * jax.random.normal(k, leaf.shape, leaf.dtype) for k, leaf in zip(keys, leaves, strict=True)]
    velocity = objective.velocity(jax.tree.unflatten(structure, leaves))
    return Flow(velocity, np.ones(2), np.eye(2), np.int32(3), objective.path.width)


OBJECTIVES = [
    FlowMatching(LinearPath()),
    FlowMatching(Bent()),
    DenoisingScoreMatching(ProcessPath(VariancePreserving())),
    Conservative(DenoisingScoreMatching(TrigonometricPath())),
    ActionMatching(LinearPath()),
]


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda o: type(o).__name__ + type(o.path).__name__)
def test_flows_of_every_objective_come_back(objective):
    flow = flow_of(objective)
    again = whole_again(flow, nsflow.Settings(training=nsflow.Training(objective=objective)))
    z = np.random.default_rng(0).normal(size=(5, 2))
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        assert np.array_equal(flow.forward(z), again.forward(z))


def test_every_other_part_comes_back():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 2))
    gaussian = Gaussian.fit(x)
    network = _Network(SMALL.init_potential(jax.random.key(0), 2))
    surrogates = [
        Surrogate(np.array([True, False]), gaussian, 1.5, m) for m in (_interpolate(x, x[:, 0]), network, _zero)
    ]
    parts = [
        Wide(gaussian),
        Pushforward(gaussian, EdgedBall()),
        Kernels.fit(jax.random.key(0), x, np.zeros(300)),
        KernelDensity(x, rng.random(300)),
        Mixture((gaussian, Wide(gaussian)), (0.25, 0.75)),
        *(Thinned(gaussian, s, PRIOR, np.float64(-1.0), 0.5) for s in surrogates),
    ]
    for part in parts:
        again = whole_again(part)
        with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
            assert np.array_equal(part.log_prob(x), again.log_prob(x), equal_nan=True)
    whole_again(
        [None, True, 1, 2**70, 1.5, -np.inf, "a", (), {"b": np.float32(2)}, np.arange(3, dtype=np.int8), jnp.ones(3)]
    )


def test_grown_array_costs_its_new_blocks_only():
    x = np.random.default_rng(0).normal(size=100_000)
    first = codec.Encoder({})
    first.encode(x)
    second = codec.Encoder({}, first.blocks)
    second.encode(np.append(x, [1.0]))
    assert (
        sum(len(b) for b in second.blocks.values() if b) < 2 * codec.BLOCK < sum(len(b) for b in first.blocks.values())
    )


def test_journal_forgets_a_record_cut_short_and_keeps_those_before():
    rows = np.arange(10.0)[:, None]
    pieces = []
    writing = journal.Journal(pieces.append)
    values = writing.recall(rows, lambda piece: {"log_likelihood": rows[piece, 0] ** 2}, unit=4, grows=False)
    known, end = journal.read(b"".join(pieces)[:-3])
    assert end == len(pieces[0] + pieces[1])
    changed = bytearray(b"".join(pieces))
    changed[len(pieces[0]) + len(pieces[1]) - 1] ^= 1
    assert journal.read(bytes(changed))[1] == len(pieces[0])
    calls = []

    def compute(piece):
        calls.append(piece)
        return {"log_likelihood": rows[piece, 0] ** 2, "derived": rows[piece, 0]}

    again = journal.Journal(known=known).recall(rows, compute, unit=4, grows=False)
    assert calls == [slice(8, 10)]
    assert np.array_equal(again["log_likelihood"], values["log_likelihood"])
    assert np.array_equal(again["derived"], [np.nan] * 8 + [8.0, 9.0], equal_nan=True)


# ------------------------------------------------------------- strangers' files


class Malicious:
    """Unpickling this leaves a file behind."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def rewrite(path, change):
    """Write a manifest anew, with a right checksum."""
    head, nodes, _ = (path / "manifest").read_text().split("\n")
    head, nodes = change(json.loads(head), json.loads(nodes))
    text = json.dumps(head) + "\n" + json.dumps(nodes)
    (path / "manifest").write_text(text + "\n" + manifest.digest_of(text))


EVIL_NODES = [
    ["object", "os.system", ["command"], [0]],
    ["object", "nsflow.checkpoint.codec.Encoder", ["given"], [0]],
    ["object", "velocity", ["command"], [0]],
    ["function", "gaussian"],
    ["function", "os.system"],
    ["function", "builtins.eval"],
    ["partial", 0, []],
    ["Partial", 0, [0]],
    ["array", "|O", [1], "80"],
    ["array", "V8", [1], "80"],
    ["given", "__builtins__"],
    ["eval", "1"],
]


@pytest.mark.parametrize("node", EVIL_NODES, ids=str)
def test_manifest_builds_nothing_but_what_is_listed(node, copy):
    def change(head, _):
        return {**head, "root": 1}, [["value", "touch pwned"], node]

    rewrite(copy, change)
    with pytest.raises(ValueError, match="is damaged or cut short"):
        run(copy)


@pytest.mark.parametrize("name", ["manifest", "segment", "journal"])
@pytest.mark.parametrize("kind", ["pickle", "npz", "npy"])
def test_pickles_in_a_checkpoint_are_not_run(name, kind, copy, tmp_path):
    mark, data = tmp_path / "pwned", io.BytesIO()
    objects = np.array([Malicious(mark)], dtype=object)
    if kind == "pickle":
        pickle.dump(Malicious(mark), data)
    else:
        {"npz": np.savez, "npy": np.save}[kind](data, objects, allow_pickle=True)
    next(copy.glob(f"{name}*")).write_bytes(data.getvalue())
    if name == "journal":
        run(copy)  # no whole record
    else:
        with pytest.raises(ValueError, match="is damaged or cut short"):
            run(copy)
    assert not mark.exists()
    with open(next(p for p in [tmp_path / "proof"]), "wb") as proof:
        pickle.dump(Malicious(mark), proof)
    pickle.loads((tmp_path / "proof").read_bytes()).close()
    assert mark.exists()  # the file would have done it


@pytest.mark.parametrize("suffix", [".csv", ".json"])
def test_pickles_in_a_chain_are_not_run(suffix, whole, tmp_path):
    whole.save(tmp_path / "run")
    (tmp_path / f"run{suffix}").write_bytes(pickle.dumps(Malicious(tmp_path / "pwned")))
    with pytest.raises(ValueError, match="`load` expected"):
        nsflow.load(tmp_path / "run")
    assert not (tmp_path / "pwned").exists()


def test_segment_of_other_blocks_is_refused(copy):
    segment = next(copy.glob("segment-*"))
    save_file({"0" * 32: np.zeros(8, np.uint8)}, segment)
    with pytest.raises(ValueError, match="is damaged or cut short"):
        run(copy)


def beside(path):
    """A file beside a checkpoint that a stranger may be after."""
    victim = path.parent / "victim"
    victim.write_bytes(b"mine" * 100)
    return victim


def unharmed(victim):
    names = {entry.name for entry in victim.parent.iterdir()} - {"run.nsflow"}
    return victim.read_bytes() == b"mine" * 100 and names == {"victim"}


@pytest.mark.parametrize(
    "name", ["{}", "../victim", "./journal-3", "lock", "journal-0", "journal-\u0663", "journal-3/"]
)
@pytest.mark.parametrize("what", ["journal", "segments"])
def test_manifest_names_no_file_outside_its_folder(what, name, copy):
    victim = beside(copy)
    name = name.format(victim)

    def change(head, nodes):
        return head | {what: {name: []} if what == "segments" else name}, nodes

    rewrite(copy, change)
    with pytest.raises(ValueError, match=r"is damaged or cut short .*expected"):
        run(copy)
    assert unharmed(victim)


@pytest.mark.parametrize("kind", ["link", "dangling link", "pipe", "folder"])
@pytest.mark.parametrize("name", ["manifest", "lock", "journal", "segment"])
def test_only_files_are_opened(name, kind, copy):
    """A pipe hung for ever, and what a link led to was made or cut off."""
    victim, file = beside(copy), next(copy.glob(f"{name}*"))
    file.unlink()
    if kind == "pipe":
        os.mkfifo(file)
    elif kind == "folder":
        file.mkdir()
    else:
        file.symlink_to(victim if kind == "link" else victim.with_name("new"))
    with pytest.raises(ValueError, match="is damaged or cut short .it is no file but a link, pipe, device or folder"):
        run(copy)
    assert unharmed(victim)


def test_links_are_not_followed_where_they_come_late(tmp_path):
    """After the folder was looked at: what opens a file does not follow one either."""
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / "link").symlink_to(victim)
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "pipe"):
        with pytest.raises(ValueError, match="is damaged"):
            manifest.read_bytes(tmp_path / name)
        with pytest.raises(OSError, match="link"):
            os.close(files.open_regular(tmp_path / name, os.O_RDWR))
    assert victim.read_text() == "mine"


def test_copy_of_hard_links_is_not_written_to(copy, tmp_path):
    journal_file = next(copy.glob("journal-*"))
    with journal_file.open("ab") as file:
        file.write(b"cut short")
    kept = tmp_path / "backup"
    os.link(journal_file, kept)
    run(copy)
    assert kept.read_bytes().endswith(b"cut short")


def piece(names, num_rows=1, num_columns=1):
    """A record with a right checksum."""
    body = names + bytes(num_rows * (journal.DIGEST + 8 * num_columns))
    return struct.pack("<4sIIII", b"nsfj", num_rows, num_columns, len(names), zlib.crc32(body)) + body


RECORDS = [
    piece(b"["),
    piece(b"[" * 100_000),
    piece(b"{}"),
    piece(b'["a", "b"]'),
    piece(b'["a"]', 0),
    piece(b"[]", 1, 0),
]
RECORDS += [piece(b'["a", "a"]', 1, 2), piece(b"[1]"), piece(b"\xff")]


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: str(record[20:30]))
def test_records_that_nobody_wrote_are_refused(record, copy):
    with next(copy.glob("journal-*")).open("ab") as file:
        file.write(record)
    with pytest.raises(ValueError, match="journal-[0-9]+ is damaged or cut short"):
        run(copy)


def test_known_values_of_other_columns_are_not_taken():
    rows, pieces = np.arange(4.0)[:, None], []
    journal.Journal(pieces.append).recall(rows, lambda piece: {"value": rows[piece, 0]})
    known, _ = journal.read(b"".join(pieces))
    again = journal.Journal(known=known).recall(rows, lambda piece: {"log_likelihood": 2 * rows[piece, 0]})
    assert again["log_likelihood"].tolist() == [0, 2, 4, 6]


def test_many_small_records_are_read_in_linear_time():
    """300 000 took more than five minutes."""
    data = journal.record([bytes(journal.DIGEST)], {"log_likelihood": np.zeros(1)}) * 100_000
    began = time.process_time()
    assert journal.read(data)[1] == len(data)
    assert time.process_time() - began < 5


def restate(path, name, *nodes):
    """Set a field of the state; the last node is its value, and may refer to those before from `{0}` on."""

    def change(head, old):
        first = len(old)
        new = [
            json.loads(json.dumps(node).replace('"{0}"', str(first)).replace('"{1}"', str(first + 1))) for node in nodes
        ]
        root = old[head["root"]]
        state = next(i for i in root[1] if old[i][0] == "object" and old[i][1] == "state")
        _, cls, names, items = old[state]
        items = [len(old) + len(new) - 1 if n == name else item for n, item in zip(names, items, strict=True)]
        nodes_now = [*old, *new, ["object", cls, names, items]]
        rest = [len(nodes_now) - 1 if i == state else i for i in root[1]]
        return head | {"root": len(nodes_now)}, [*nodes_now, [root[0], rest]]

    rewrite(path, change)


FALSE = [  # no message of what a run-time checker of these tests refuses first
    ("num_scouts", "no more scouts than", ["value", 10**12]),
    ("num_calls", "", ["value", 1e12]),
    ("num_calls", "", ["value", 10**25]),
    ("num_calls", "counts of at least zero", ["value", -1]),
    ("nan_params", "", ["value", None]),
    ("nan_params", "", ["value", None], ["tuple", ["{0}"]]),
    ("num_draws", "draws of each component", ["tuple", []]),
    ("contours", "contours", ["tuple", []]),
    ("contours", "contours", ["value", float("nan")], ["tuple", ["{0}"]]),
    ("components", "the prior as its first component", ["tuple", []]),
    ("components", "", ["value", 1], ["tuple", ["{0}"]]),
    ("contours", "points above its contours", ["value", 200.0], ["tuple", ["{0}"]]),
    ("modes", "components that exist", ["value", 10**6], ["tuple", ["{0}"]]),
    ("climbed", "points that exist", ["value", -1], ["tuple", ["{0}"]]),
    ("frozen", "frozen draws", ["value", None]),
    ("points", "", ["value", 0]),
    ("problem", "", ["value", 0]),
    ("derived", "names that are free", ["value", "x"], ["tuple", ["{0}"]]),
    ("unseen", "positive shares", ["value", float("nan")]),
    ("phase", "", ["value", "ladder"]),
    ("num_planned", "at least one batch", ["value", 0]),
]


@pytest.mark.parametrize("false", FALSE, ids=lambda false: f"{false[0]}-{false[-1][1]}")
def test_values_of_a_state_are_checked(false, copy):
    name, message, *nodes = false
    restate(copy, name, *nodes)
    with pytest.raises(ValueError, match=f"manifest is damaged or cut short (?s:.*){message}"):
        run(copy)


def test_a_true_value_of_a_state_is_taken(copy, whole):
    """The way in which the others are made is no mistake in itself."""
    restate(copy, "num_calls", ["value", whole.num_calls + 1])
    assert run(copy).num_calls == whole.num_calls + 1


@pytest.mark.parametrize("field", ["x", "log_likelihood", "log_prior", "log_flows", "is_prior"])
def test_arrays_of_a_state_agree_in_length(field, copy):
    def change(head, nodes):
        points = next(node for node in nodes if node[0] == "object" and node[1] == "points")
        nodes[points[3][points[2].index(field)]] = ["array", "|b1" if field == "is_prior" else "<f8", [1], "00" * 8]
        if field == "is_prior":
            nodes[points[3][points[2].index(field)]][3] = "00"
        return head, nodes

    rewrite(copy, change)
    with pytest.raises(ValueError, match="Points.*expected.*"):
        run(copy)


WORDS = {
    "pickle",
    "allow_pickle",
    "dill",
    "cloudpickle",
    "joblib",
    "marshal",
    "shelve",
    "eval",
    "exec",
    "yaml",
    "__import__",
    "import_module",
}


def test_load_paths_hold_no_word_that_runs_code():
    root = Path(nsflow.__file__).parent
    sources = [*(root / "checkpoint").glob("*.py"), root / "likelihood" / "journal.py"]
    sources += [root / "results" / name for name in ("files.py", "results.py")]
    assert len(sources) >= 8
    for source in sources:
        tokens = tokenize.generate_tokens(io.StringIO(source.read_text()).readline)
        names = {token.string for token in tokens if token.type == tokenize.NAME}
        assert not names & (WORDS), source
