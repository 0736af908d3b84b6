"""Random priors, likelihoods and options through `nsflow.run`: each ends in a valid result or in a clear error.

    python benchmarks/fuzz.py --examples 1000 --seed 0
    python benchmarks/fuzz.py --kind checkpoints  # as a stranger may have spoilt them

appends one line of counts to benchmarks/results/fuzz.jsonl, and prints whatever ended otherwise.
"""

import argparse
import dataclasses
import functools
import json
import os
import re
import shutil
import signal
import struct
import tempfile
import time
import warnings
import zlib
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import scipy.stats

import nsflow
from nsflow.adapters import blackjax
from nsflow.checkpoint.manifest import digest_of
from nsflow.flow.objective import FlowMatching
from nsflow.flow.path import LinearPath
from nsflow.flow.velocity import Architecture
from nsflow.likelihood.journal import HEADER, MAGIC

TIME_LIMIT = 120  # seconds of the processor that one example may take
LONGEST_WAIT = 1200  # seconds on the wall
RESULTS = Path(__file__).parent / "results" / "fuzz.jsonl"


# ---- priors: few of them, since each compiles

PRIORS = {
    "uniform": lambda: {"a": dist.Uniform(-1.0, 2.0)},
    "normal": lambda: {"a": dist.Normal(3.0, 1e-3), "b": dist.Normal(0.0, 1e6)},
    "tails": lambda: {"a": dist.Cauchy(0.0, 1.0), "b": dist.LogUniform(1e-30, 1e30)},
    "edges": lambda: {"a": dist.Exponential(1.0), "b": dist.Beta(0.5, 0.5)},
    "integers": lambda: {"a": dist.Poisson(2.0), "b": dist.DiscreteUniform(0, 3), "c": dist.Uniform(0.0, 1.0)},
    "only integers": lambda: {"a": dist.Bernoulli(0.2)},
    "angle": lambda: {"a": nsflow.Periodic(dist.Uniform(0.0, 6.28)), "b": dist.Normal(0.0, 1.0)},
    "vector": lambda: {"a": dist.Normal(0.0, 1.0).expand([3])},
    "simplex": lambda: {"a": dist.Dirichlet(jnp.ones(3))},
    "scipy": lambda: {"a": scipy.stats.gamma(2.0)},
}
WRONG_PRIORS = {
    "none": lambda: {},
    "improper": lambda: {"a": dist.ImproperUniform(dist.constraints.real, (), ())},
    "infinite": lambda: {"a": dist.Uniform(0.0, np.inf)},
    "upside down": lambda: {"a": dist.Uniform(1.0, 0.0)},
    "taken name": lambda: {"logL": dist.Normal(0.0, 1.0)},
    "number for a name": lambda: {1: dist.Normal(0.0, 1.0)},
    "tuple": lambda: {"a": (0.0, 1.0)},
    "class": lambda: {"a": dist.Normal},
    "list": lambda: [dist.Normal(0.0, 1.0)],
    "point": lambda: {"a": dist.Delta(1.0)},
    "periodic integer": lambda: {"a": nsflow.Periodic(dist.Poisson(1.0))},
}


@functools.cache
def prior_of(name: str) -> nsflow.Prior:
    return nsflow.Prior(PRIORS[name]())


# ---- likelihoods


class Behaviour(NamedTuple):
    """What a likelihood does with its points."""

    shape: str
    scale: float  # nats
    offset: float  # nats
    fault: str
    share: float  # of the points that have the fault
    late: int  # calls before which there is no fault
    derived: bool
    vectorized: bool


SHAPES = {
    "gaussian": lambda z, _: -0.5 * np.sum(z**2, axis=1),
    "narrow": lambda z, _: -0.5 * np.sum((z - 0.3) ** 2, axis=1) * 1e6,
    "constant": lambda z, _: np.zeros(len(z)),
    "plateaus": lambda z, _: np.floor(-np.sum(z**2, axis=1)),
    "step": lambda z, _: np.where(z[:, 0] > 0.5, 0.0, -10.0),
    "spike": lambda z, _: np.where(np.abs(z[:, 0] - 0.2) < 1e-3, 10.0, 0.0),
    "noise": lambda z, rng: -0.5 * np.sum(z**2, axis=1) + rng.normal(size=len(z)),
    "only noise": lambda z, rng: rng.normal(size=len(z)) * 10,
    "pole": lambda z, _: -np.log(np.abs(z[:, 0]) + 1e-300),
    "comb": lambda z, _: 10 * np.cos(50 * z[:, 0]),
    "heavy tails": lambda z, _: -np.log1p(np.sum(z**2, axis=1)),
}
FAULTS = ("none",) * 10 + ("nan", "-inf", "-inf", "+inf", "raise", "exit", "huge", "-huge")
FAULTS += (
    "none returned",
    "text",
    "complex",
    "boolean",
    "short",
    "long",
    "column",
    "ragged",
    "dict",
    "object",
    "empty",
)


class Likelihood:
    """A function of parameters with a behaviour; it maps them to the same few numbers whatever the prior."""

    def __init__(self, behaviour: Behaviour, seed: int) -> None:
        self.behaviour, self.rng, self.num_calls = behaviour, np.random.default_rng(seed), 0

    def __call__(self, params):
        b = self.behaviour
        columns = [
            np.atleast_1d(v).reshape(-1, 1) if not b.vectorized else v.reshape(len(v), -1) for v in params.values()
        ]
        z = np.concatenate([c.reshape(1, -1) if not b.vectorized else c for c in columns], axis=1)
        z = np.arctan(z) if np.max(np.abs(z)) > 100 else z
        self.num_calls += len(z)
        with np.errstate(all="ignore"):
            values = b.offset + b.scale * SHAPES[b.shape](z, self.rng)
        faulty = self.rng.random(len(z)) < b.share
        if b.fault != "none" and self.num_calls > b.late and np.any(faulty):
            values = self.fault(values, faulty)
        if not b.vectorized and isinstance(values, np.ndarray) and values.shape == (1,):
            values = values[0]
        return (values, {"d": values}) if b.derived else values

    def fault(self, values, faulty):
        """Break the values, or more than them."""
        name = self.behaviour.fault
        numbers = {"nan": np.nan, "-inf": -np.inf, "+inf": np.inf, "huge": 1e308, "-huge": -1e308}
        if name in numbers:
            return np.where(faulty, numbers[name], values)
        if name == "raise":
            raise ZeroDivisionError("the solver divided by zero")
        if name == "exit":
            raise SystemExit(1)
        wrong = {
            "none returned": None, "text": "0.0", "complex": values * 1j, "boolean": values > 0, "short": values[:-1],
            "long": np.append(values, [0.0, 0.0]), "column": values[:, None, None], "ragged": [[0.0], [0.0, 1.0]],
            "dict": {"logL": values}, "object": object(), "empty": np.zeros(0),
        }  # fmt: skip
        return wrong[name]


# ---- options

SEEDS = st.one_of(st.integers(0, 2**32 - 1), st.sampled_from([-1, 1.5, None, "0", True, 2**32]))
WRONG_NUMBERS = st.sampled_from([0, -1, np.nan, np.inf, "1", [], True])  # None is left out, and so the default


def mostly(right, wrong, share=100):
    """A right value, and a wrong one now and then."""
    return st.integers(0, share).flatmap(lambda i: wrong if i == 0 else right)


CALLS = {
    "ess": mostly(st.one_of(st.integers(2, 100), st.floats(2, 300)), WRONG_NUMBERS),
    "max_calls": mostly(st.one_of(st.integers(300, 2000), st.integers(2500, 8000)), WRONG_NUMBERS),
    "seed": mostly(st.integers(0, 2**32 - 1), SEEDS),
}
SETTINGS = {
    "num_prior": mostly(st.integers(100, 300), WRONG_NUMBERS),
    "num_live": mostly(st.integers(100, 200), WRONG_NUMBERS),
    "compression": mostly(
        st.sampled_from([(-2.0, -0.7), (-5.0, -0.1), (-1e-3, -1e-6), (-50.0, -20.0)]),
        st.sampled_from([(0.0, 1.0), (-1.0,), None, (np.nan, -1.0), "ab"]),
    ),
    "max_scouts": mostly(st.integers(0, 2000), WRONG_NUMBERS),
    "prior_share": mostly(st.floats(1e-6, 0.5), WRONG_NUMBERS),
    "kernel_dims": mostly(st.sampled_from([0, 1, 6]), WRONG_NUMBERS),
    "rounds": mostly(st.sampled_from([(0.5,), (0.1, 0.2), (1e-9,), (5.0,)]), st.sampled_from([(), (0.0,), (-1.0,), 3])),
    "max_rounds": mostly(st.integers(1, 3), WRONG_NUMBERS),
    "max_restarts": mostly(st.integers(0, 2), WRONG_NUMBERS),
}  # fmt: skip


KINDS = (ValueError, TypeError, LookupError, ZeroDivisionError, RuntimeError)


CLEAR = re.compile(r"\bexpected\b|raised by|must allow|failed when JAX traced it")  # not "unexpected keyword argument"


class Case(NamedTuple):
    """One call of `nsflow.run`."""

    prior: str
    behaviour: Behaviour
    calls: dict
    settings: dict
    host: dict
    seed: int


def behaviours():
    """Every shape at every scale with every fault."""
    scales = st.sampled_from([1.0, 1.0, 1.0, 0.0, 1e-12, 1e-3, 1e3, 1e6, 1e12, 1e300, -1.0])
    offsets = st.sampled_from([0.0, 0.0, 1.0, -1e3, 1e6, -1e10, 1e15, 1e300])
    shares = st.sampled_from([1e-3, 0.01, 0.1, 0.5, 0.99, 1.0])
    return st.builds(
        Behaviour, st.sampled_from(sorted(SHAPES)), scales, offsets, st.sampled_from(FAULTS), shares,
        st.sampled_from([0, 3, 300, 600, 1000]), st.booleans(), st.booleans(),
    )  # fmt: skip


def cases():
    """All of them."""
    priors = mostly(st.sampled_from(sorted(PRIORS)), st.sampled_from(sorted(WRONG_PRIORS)), 20)
    host = st.fixed_dictionaries({}, optional={"retries": mostly(st.integers(0, 2), WRONG_NUMBERS)})
    return st.builds(
        Case, priors, behaviours(), st.fixed_dictionaries(CALLS), st.fixed_dictionaries({}, optional=SETTINGS), host,
        st.integers(0, 2**16),
    )  # fmt: skip


# ---- wrong calls: every public function and class, with one argument that is wrong

POINTS = np.random.default_rng(0).normal(size=(60, 2))
WEIGHTS = np.zeros(60)
LOW = np.linspace(-1.0, 0.0, 60)
QUICK = {"num_steps": 2, "steps_per_score": 1, "batch_size": 8, "integration_steps": 1}
SMALL = {"num_prior": 100, "num_live": 100}
BAD = {
    "None": lambda: None, "True": lambda: True, "text": lambda: "x", "bytes": lambda: b"x", "object": object,
    "class": lambda: dict, "function": lambda: lambda *_, **__: 0.0, "-1": lambda: -1, "0": lambda: 0, "1": lambda: 1,
    "2.5": lambda: 2.5, "nan": lambda: np.nan, "inf": lambda: np.inf, "complex": lambda: 1j, "1e308": lambda: 1e308,
    "10**12": lambda: 10**12, "10**400": lambda: 10**400, "list": list, "dict": dict, "tuple": tuple,
    "strings": lambda: ["a", "b"], "numbers": lambda: [1, 2.0], "nones": lambda: [None],
    "dict of None": lambda: {"a": None},
    "dict of text": lambda: {"a": "x"}, "ragged": lambda: [[1.0, 2.0], [3.0]], "no rows": lambda: np.zeros((0, 2)),
    "no columns": lambda: np.zeros((60, 0)), "cube": lambda: np.zeros((2, 3, 4)), "vector": lambda: np.zeros(60),
    "array of text": lambda: np.array([["a", "b"]]), "array of objects": lambda: np.array([object()]),
    "array of nan": lambda: np.full((60, 2), np.nan), "complex array": lambda: np.ones((60, 2)) * 1j,
    "tiny": lambda: POINTS * 1e-320, "huge": lambda: POINTS * 1e300, "constant": lambda: np.ones((60, 2)),
    "twice": lambda: POINTS[:, :1] * np.ones(2), "one weight": lambda: np.where(np.arange(60) == 7, 0.0, -1e6),
    "generator": lambda: (i for i in range(3)), "key": lambda: jax.random.key(0),
    "keys": lambda: jax.random.split(jax.random.key(0)),
    "prior": lambda: prior_of("normal"), "result": lambda: made_result(), "settings": nsflow.Settings,
    "training": nsflow.Training, "mask": lambda: np.ma.masked,
}  # fmt: skip


def quadratic(params):
    """A likelihood of JAX for the normal prior below."""
    return -0.5 * jnp.sum(jnp.square(params["a"]))


@functools.cache
def vector_prior():
    return nsflow.Prior({"a": dist.Normal(0.0, 1.0).expand([2])})


@functools.cache
def made_result():
    return nsflow.Results(
        names=("a", "b"), samples=POINTS, log_likelihood=LOW, log_weights=LOW, num_draws=60, logZ=-0.5, logZ_err=0.1,
        ess=50.0, num_calls=60, trace=[{"phase": "ladder", "contour": -1.0, "num_calls": 60, "ess": 50.0}],
    )  # fmt: skip


@functools.cache
def made_flow():
    return nsflow.Flow.from_velocity(lambda _, x: -x, 2, num_steps=1)


@functools.cache
def made_state():
    return nsflow.init(jax.random.key(0), nsflow.Problem(nsflow.HostLikelihood(quadratic), vector_prior()),
                       nsflow.Settings(**SMALL))  # fmt: skip


def key():
    return jax.random.key(0)


def few(**options):
    """Arguments of `nsflow.run` that end it soon."""
    small = nsflow.Settings(**SMALL, proposal=nsflow.GaussianEstimator())
    return {"log_likelihood": quadratic, "prior": vector_prior(), "ess": 20, "max_calls": 600, "progress": False,
            "settings": small} | options  # fmt: skip


def fields_of(cls, **values):
    """Every field of a dataclass, at its default or as given."""
    instance = cls(**values)
    return {name.name: getattr(instance, name.name) for name in dataclasses.fields(cls)}


def weighted():
    return {"key": key(), "points": POINTS, "log_weights": WEIGHTS}


def norm(x):
    """A density in the coordinates of blackjax."""
    return -0.5 * jnp.sum(x**2)


LEARNER = blackjax.Learner(Architecture(8, 1, (), (1.0,)), num_steps=2, first_rounds=1, batch_size=8, pool_size=1)
STEPS = {
    "num_inner_steps": 2, "num_delete": 5, "inner_kernel": blackjax.IndependenceMH(), "learner": LEARNER,
    "train_every": 0.3,
}  # fmt: skip


@functools.cache
def sampler():
    return blackjax.as_top_level_api(norm, norm, **STEPS)


@functools.cache
def started():
    return sampler().init(jnp.asarray(POINTS, jnp.float32))


# name -> the function and good values of its arguments
WRONG_CALLS = {
    "Prior": lambda: (nsflow.Prior, {"distributions": {"a": dist.Normal(0.0, 1.0)}}),
    "Prior of": lambda: (lambda **d: nsflow.Prior(d), {"a": dist.Normal(0.0, 1.0)}),
    "Prior of periodic": lambda: (lambda distribution: nsflow.Prior({"a": nsflow.Periodic(distribution)}),
                                  {"distribution": dist.Uniform(0.0, 1.0)}),
    "Prior.sample": lambda: (vector_prior().sample, {"key": key(), "num_samples": 5}),
    "Prior.latent_sample": lambda: (vector_prior().latent_sample, {"key": key(), "num_samples": 5}),
    "Prior.forward": lambda: (vector_prior().forward, {"z": POINTS}),
    "Prior.inverse": lambda: (vector_prior().inverse, {"params": {"a": POINTS}}),
    "Prior.log_prob": lambda: (vector_prior().log_prob, {"params": {"a": POINTS}}),
    "Prior.log_prob of": lambda: (lambda **p: vector_prior().log_prob(p), {"a": POINTS}),
    "Prior.latent_log_prob": lambda: (vector_prior().latent_log_prob, {"z": POINTS}),
    "Prior.flatten": lambda: (vector_prior().flatten, {"params": {"a": POINTS}}),
    "Prior.turn": lambda: (vector_prior().turn, {"phases": np.zeros(2)}),
    "Prior.step_widths": lambda: (vector_prior().step_widths, {"z": np.zeros(2)}),
    "HostLikelihood": lambda: (nsflow.HostLikelihood, {"function": quadratic, "vectorized": False, "pool": None,
                                                       "num_chunks": None, "timeout": None, "retries": 2}),
    "JaxLikelihood": lambda: (nsflow.JaxLikelihood, {"function": quadratic, "mesh": None}),
    "Settings": lambda: (nsflow.Settings, fields_of(nsflow.Settings)),
    "Training": lambda: (nsflow.Training, fields_of(nsflow.Training)),
    "Architecture": lambda: (Architecture, fields_of(Architecture)),
    "LinearPath": lambda: (LinearPath, fields_of(LinearPath)),
    "FlowMatching": lambda: (FlowMatching, fields_of(FlowMatching, path=LinearPath())),
    "GaussianMixtureEstimator": lambda: (nsflow.GaussianMixtureEstimator, {"num_components": (1, 2)}),
    "KernelEstimator": lambda: (nsflow.KernelEstimator, {"max_centres": 100}),
    "FlowEstimator": lambda: (nsflow.FlowEstimator, {"training": nsflow.Training(), "wide": True}),
    "GaussianEstimator.fit": lambda: (nsflow.GaussianEstimator().fit, weighted()),
    "GaussianMixtureEstimator.fit": lambda: (nsflow.GaussianMixtureEstimator((1, 2)).fit, weighted()),
    "KernelEstimator.fit": lambda: (nsflow.KernelEstimator().fit, weighted()),
    "FlowEstimator.fit": lambda: (nsflow.FlowEstimator(nsflow.Training(**QUICK)).fit, weighted()),
    "fit": lambda: (nsflow.fit, weighted() | {"training": nsflow.Training(**QUICK)}),
    "Flow": lambda: (lambda **f: nsflow.Flow(**f).log_prob(POINTS), fields_of(nsflow.Flow, **vars(made_flow()))),
    "Flow.from_velocity": lambda: (nsflow.Flow.from_velocity, {"velocity": lambda _, x: -x, "num_dims": 2,
                                                               "num_steps": 1}),
    "Flow.sample": lambda: (made_flow().sample, {"key": key(), "num_samples": 3}),
    "Flow.sample_and_log_prob": lambda: (made_flow().sample_and_log_prob, {"key": key(), "num_samples": 3}),
    "Flow.log_prob": lambda: (made_flow().log_prob, {"x": POINTS}),
    "Flow.forward": lambda: (made_flow().forward, {"z": POINTS}),
    "Flow.inverse": lambda: (made_flow().inverse, {"x": POINTS, "max_steps": 5}),
    "EnergyModel.fit": lambda: (nsflow.EnergyModel.fit, weighted() | {"time": 0.95,
                                                                "training": nsflow.Training(**QUICK)}),
    "Results": lambda: (nsflow.Results, fields_of(nsflow.Results, **vars(made_result()))),
    "Results.posterior": lambda: (made_result().posterior, {"num_samples": 5, "seed": 0}),
    "Results.bootstrap": lambda: (made_result().bootstrap_log_weights, {"num_samples": 5, "seed": 0}),
    "Results.plot_2d": lambda: (made_result().plot_2d, {"params": ["a"]}),
    "merge": lambda: (nsflow.merge, {"runs": [made_result(), shifted_result()], "log_likelihood": None, "prior": None,
                                     "settings": nsflow.Settings()}),
    "init": lambda: (nsflow.init, {"key": key(), "problem": made_state().problem, "settings": nsflow.Settings(**SMALL),
                                   "start": None}),
    "init of": lambda: (lambda **p: nsflow.init(key(), nsflow.Problem(**p), nsflow.Settings(**SMALL)),
                        made_state().problem._asdict()),
    "step": lambda: (nsflow.step, {"key": key(), "state": made_state()}),
    "run": lambda: (nsflow.run, few(seed=0, logZ_err=None, max_seconds=None, max_levels=None, proposal=None,
                                       start=None)),
    "run from": lambda: (lambda **start: nsflow.run(**few(start=start)), {"a": POINTS}),
    "plots.triangle": lambda: (nsflow.plots.triangle, {"result": made_result(), "params": ["a"], "dark": False}),
    "plots.trace": lambda: (nsflow.plots.trace, {"result": made_result(), "dark": False}),
    "plots.weights": lambda: (nsflow.plots.weights, {"result": made_result(), "dark": False}),
    "plots.levels": lambda: (nsflow.plots.levels, {"result": made_result(), "dark": False}),
    "Learner": lambda: (blackjax.Learner, fields_of(blackjax.Learner)),
    "IndependenceMH": lambda: (blackjax.IndependenceMH, fields_of(blackjax.IndependenceMH)),
    "LatentSlice": lambda: (blackjax.LatentSlice, fields_of(blackjax.LatentSlice)),
    "Mixture": lambda: (blackjax.Mixture, fields_of(blackjax.Mixture)),
    "blackjax": lambda: (blackjax.as_top_level_api, {"logprior_fn": norm, "loglikelihood_fn": norm, **STEPS}),
    "blackjax.build_kernel": lambda: (blackjax.build_kernel, {"init_state_fn": norm, **STEPS}),
    "blackjax.init": lambda: (sampler().init, {"position": POINTS, "rng_key": key()}),
    "blackjax.retrain": lambda: (
        blackjax.retrain, {"rng_key": key(), "state": started(), "learner": LEARNER, "num_rounds": 1}
    ),
    "blackjax.finalise": lambda: (blackjax.finalise, {"state": started(), "dead": []}),
    "blackjax.add_modes": lambda: (
        blackjax.add_modes,
        {"state": started(), "prior_draws": POINTS, "logprior_fn": norm, "loglikelihood_fn": norm, "max_calls": 20},
    ),
}  # fmt: skip


@functools.cache
def shifted_result():
    return dataclasses.replace(made_result(), log_weights=LOW + 0.1, logZ=-0.4)


class WrongCall(NamedTuple):
    """One argument of one function, and what is given in its place."""

    function: str
    place: int  # of the argument among all
    value: str


def wrong_calls():
    """Every argument of every function with every value."""
    return st.builds(WrongCall, st.sampled_from(sorted(WRONG_CALLS)), st.integers(0, 50), st.sampled_from(sorted(BAD)))


def attempt_call(case: WrongCall) -> str:
    """Make the call, and say whether the value was taken or refused.

    Raises:
        Exception: If it was refused by an error that does not say what was expected.
    """
    function, arguments = WRONG_CALLS[case.function]()
    name = list(arguments)[case.place % len(arguments)]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # JAX's, of generators
            function(**arguments | {name: BAD[case.value]()})
    except (*KINDS, OSError) as error:
        if not CLEAR.search(str(error)):
            raise
        return "clear error"
    return "taken"


# ---- verdicts


def attempt(case: Case) -> str:
    """Run one case and say how it ended.

    Raises:
        Exception: If that is neither a valid result nor a clear error.
    """
    try:
        prior = prior_of(case.prior) if case.prior in PRIORS else nsflow.Prior(WRONG_PRIORS[case.prior]())
        likelihood = Likelihood(case.behaviour, case.seed)
        host = nsflow.HostLikelihood(likelihood, vectorized=case.behaviour.vectorized, **case.host)
        small = {"num_prior": 100, "num_live": 100, "proposal": nsflow.KernelEstimator()}
        settings = nsflow.Settings(**(small | case.settings))
        result = nsflow.run(host, prior, settings=settings, **case.calls)
    except SystemExit:
        if case.behaviour.fault != "exit":
            raise
        return "left"  # a host that leaves is let go
    except KINDS as error:
        if not CLEAR.search(str(error)):
            raise
        return "clear error"
    repr(result)
    assert result.num_calls <= (case.calls["max_calls"] or settings.max_calls)
    assert not np.isnan(result.logZ)
    assert result.logZ < np.inf
    assert np.all(np.isfinite(result.samples[:, : len(prior.names)]))
    assert result.finished or result.stop_reason
    return "finished" if result.finished else "failed late" if CLEAR.search(result.stop_reason) else "capped"


# ---- checkpoints of a stranger


class Spoilt(NamedTuple):
    """A checkpoint and what a stranger has done to it."""

    base: str
    way: str
    place: int  # which of the values, files or bytes; counted round
    value: Any
    ess: int  # of the call that takes it up


HOSTILE = [
    *(None, True, False, 0, 1, -1, 2, 3, 7, 1.5, -0.5, 1e12, 10**12, 10**25, 1e308, -1e308, float("nan"), float("inf")),
    *(
        "",
        "a",
        "../victim",
        "/etc/passwd",
        "journal-1",
        "segment-1",
        "\x1b[2J",
        "\0",
        [],
        {},
        [[]],
        [0],
        [0, 1],
        [None],
    ),
    *({"a": 1}, ["value", 1e12], ["value", None], ["value", "a"], ["tuple", []], ["dict", [], []], ["list", [0, 0]]),
    *(["given", "settings"], ["given", "problem.prior"], ["given", "problem.likelihood"], ["phase", "frozen"]),
    *(["array", "<f8", [2], "00" * 16], ["array", "<f8", [0], ""], ["array", "<i8", [3, 0], ""], ["phase", "finished"]),
    ["array", "<f8", [1], "000000000000f87f"],
]
NAMES = [
    "{victim}",
    "../victim",
    "./journal-1",
    "journal-0",
    "journal-9999999999999",
    "lock",
    "manifest",
    "",
    "/",
    "..",
]
RECORDS = [
    (b"[", 1, 1),
    (b"[]", 1, 0),
    (b'["a"]', 0, 1),
    (b'["a"]', 1, 2),
    (b'["a","a"]', 1, 2),
    (b"[1]", 1, 1),
    (b"{}", 1, 1),
]
WAYS = ("head", "node", "within a node", "part", "number", "array", "name", "bytes", "cut", "record")
WAYS += ("link", "dangling link", "pipe", "folder", "none")


def spoilt():
    """Every way at every place."""
    values = st.one_of(st.sampled_from(HOSTILE), st.integers(-3, 300), st.floats(width=64))
    return st.builds(
        Spoilt, st.sampled_from(["first draws", "ladder", "frozen", "finished"]), st.sampled_from(WAYS),
        st.integers(0, 2**16), values, st.sampled_from([50, 50, 120]),
    )  # fmt: skip


def _steps_like(p):
    return -0.5 * (p["a"] * p["a"] + p["b"] * p["b"]) / 0.3**2


def _go_on(path, ess=50, **options):
    prior, settings = _box(), nsflow.Settings(num_prior=100, num_live=100, proposal=nsflow.KernelEstimator())
    likelihood = nsflow.HostLikelihood(_steps_like, vectorized=True)
    return nsflow.run(likelihood, prior, ess=ess, settings=settings, checkpoint=path, progress=False, **options)


@functools.cache
def _box():
    return nsflow.Prior({"a": dist.Uniform(-5.0, 5.0), "b": dist.Uniform(-5.0, 5.0)})


@functools.cache
def whole_result(ess: int):
    """What every base leads to."""
    return _go_on(None, ess)


@functools.cache
def base_of(name: str) -> dict[str, bytes]:
    """Files of a checkpoint that stands somewhere."""
    num_calls = [info["num_calls"] for info in whole_result(50).trace]
    caps = {"first draws": 104, "ladder": num_calls[1], "frozen": num_calls[-1] - 1, "finished": 10**6}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run"
        _go_on(path, max_calls=caps[name])
        return {file.name: file.read_bytes() for file in path.iterdir()}


def _places(value, path=()):
    """Every place in a JSON value."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from _places(item, (*path, key))


def _replaced(value, path, new):
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = _replaced(copy[path[0]], path[1:], new)
    return copy


def spoil(case: Spoilt, path: Path, victim: Path) -> None:
    """Do it."""
    head, nodes, _ = (path / "manifest").read_text().split("\n")
    head, nodes, file = (
        json.loads(head),
        json.loads(nodes),
        sorted(path.iterdir())[case.place % 4 % len(list(path.iterdir()))],
    )
    if case.way == "head":
        places = [place for place in _places(head) if place]
        head = _replaced(head, places[case.place % len(places)], case.value)
    elif case.way == "node" and nodes:
        nodes[case.place % len(nodes)] = case.value
    elif case.way == "within a node" and nodes:
        places = [place for place in _places(nodes) if len(place) > 1]
        nodes = _replaced(nodes, places[case.place % len(places)], case.value)
    elif case.way == "part":  # another part of the file in the place of one of an object
        items = [node[-1] for node in nodes if node[0] in ("object", "tuple", "dict") and node[-1]]
        if items:
            chosen = items[case.place % len(items)]
            chosen[case.place // 7 % len(chosen)] = case.place // 3 % len(nodes)
    elif case.way == "number":
        numbers = [node for node in nodes if node[0] == "value"]
        if numbers:
            numbers[case.place % len(numbers)][1] = case.value
    elif case.way == "array":  # a number of a short one
        arrays = [
            node for node in nodes if node[0] in ("array", "jax", "scalar") and isinstance(node[3], str) and node[3]
        ]
        if arrays:
            chosen = arrays[case.place % len(arrays)]
            wrong = struct.pack("<d", [np.nan, np.inf, -np.inf, 1e308, 0.0, -1.0][case.place // 5 % 6]).hex()
            chosen[3] = (wrong + chosen[3][16:])[: len(chosen[3])]
    elif case.way == "name":
        name = NAMES[case.place % len(NAMES)].format(victim=victim)
        if case.place % 2:
            head["segments"] = {name: [key for keys in head["segments"].values() for key in keys]}
        else:
            head["journal"] = name
    elif case.way in ("bytes", "cut"):
        data = bytearray(file.read_bytes())
        at = case.place % (len(data) + 1)
        file.write_bytes(data[:at] + (b"" if case.way == "cut" else b"\x00\xff" + data[at + 1 :]))
    elif case.way == "record":
        names, num_rows, num_columns = RECORDS[case.place % len(RECORDS)]
        body = names + bytes(num_rows * (16 + 8 * num_columns))
        with (path / head["journal"]).open("ab") as journal:
            journal.write(HEADER.pack(MAGIC, num_rows, num_columns, len(names), zlib.crc32(body)) + body)
    elif case.way != "none":
        file.unlink()
        make = {
            "link": lambda: file.symlink_to(victim),
            "dangling link": lambda: file.symlink_to(victim.with_name("new")),
        }
        make |= {"pipe": lambda: os.mkfifo(file), "folder": file.mkdir}
        make[case.way]()
    if case.way in ("head", "node", "within a node", "part", "number", "array", "name"):
        text = json.dumps(head) + "\n" + json.dumps(nodes)
        (path / "manifest").write_text(text + "\n" + digest_of(text))


def attempt_checkpoint(case: Spoilt) -> str:
    """Take up one spoilt checkpoint and say how it ended; no file beside it may change.

    Raises:
        Exception: If that is neither a valid result nor a clear error.
    """
    folder = Path(tempfile.mkdtemp(prefix="nsflow-fuzz-"))
    try:
        path, victim = folder / "run", folder / "victim"
        path.mkdir()
        victim.write_bytes(base_of(case.base)["manifest"])
        for name, data in base_of(case.base).items():
            (path / name).write_bytes(data)
        spoil(case, path, victim)
        try:
            result = _go_on(path, case.ess, max_calls=20_000)
        except (ValueError, OSError) as error:
            if not re.search(r"damaged|expected|format version", str(error)):
                raise
            verdict = "clear error"
        else:
            assert result.finished or result.stop_reason
            is_same = _have_same_draws(result, whole_result(50))
            assert is_same or case.way != "none" or case.ess != 50, (
                "a checkpoint that nobody has spoilt gave another result"
            )
            verdict = "same result" if is_same else "another result"
        assert victim.read_bytes() == base_of(case.base)["manifest"]
        assert {entry.name for entry in folder.iterdir()} == {"run", "victim"}
        return verdict
    finally:
        shutil.rmtree(folder)


def _have_same_draws(a, b):
    return all(getattr(a, name).tobytes() == getattr(b, name).tobytes() for name in ("samples", "log_weights"))


# ---- priors: the map from N(0, I) carries its density, also of sparse ones and in far tails


class Family(NamedTuple):
    """One prior of a family."""

    name: str
    arguments: tuple[float, ...]


FAMILIES = {
    "Beta": (2, lambda a, b: dist.Beta(a, b)),
    "scipy beta": (2, lambda a, b: scipy.stats.beta(a, b)),
    "Gamma": (2, lambda a, b: dist.Gamma(a, b)),
    "InverseGamma": (2, lambda a, b: dist.InverseGamma(a, b)),
    "shifted gamma": (2, lambda a, b: scipy.stats.gamma(a, loc=b)),
    "StudentT": (3, lambda a, b, c: dist.StudentT(a, b, c)),
    "Kumaraswamy": (2, lambda a, b: dist.Kumaraswamy(a, b)),
    "LogNormal": (1, lambda a: dist.LogNormal(0.0, a)),
    "Weibull": (2, lambda a, b: dist.Weibull(a, b)),
    "Pareto": (2, lambda a, b: dist.Pareto(a, b)),
    "truncated above": (3, lambda a, b, c: dist.TruncatedNormal(a, b, low=c)),
    "truncated twice": (3, lambda a, b, c: dist.TruncatedNormal(a, b, low=c, high=c + a)),
    "truncated t": (2, lambda a, b: dist.TruncatedDistribution(dist.StudentT(a, 0.0, 1.0), low=b)),
    "scipy truncated": (2, lambda a, b: scipy.stats.truncnorm(a, a + b)),
    "mixture": (
        3,
        lambda a, b, c: dist.MixtureSameFamily(
            dist.Categorical(np.array([0.5, 0.5])), dist.Normal(np.array([0.0, a]), np.array([b, c]))
        ),
    ),
    "Dirichlet": (3, lambda *a: dist.Dirichlet(np.array(a))),
}


def families():
    """Every family with arguments of any size, a few impossible."""
    sizes = st.floats(-2.0, 2.0).map(lambda x: float(10**x))
    numbers = mostly(sizes, st.sampled_from([0.0, -1.0, 1e-300, 1e300, np.nan]), 50)
    return st.sampled_from(sorted(FAMILIES)).flatmap(
        lambda name: st.builds(Family, st.just(name), st.tuples(*[numbers] * FAMILIES[name][0]))
    )


def attempt_prior(case: Family) -> str:
    r"""Ask for :math:`f(x(z))\,|dx/dz| = \phi(z)` where doubles can tell, and for values inside everywhere."""
    try:
        prior = nsflow.Prior({"a": FAMILIES[case.name][1](*case.arguments)})
    except KINDS as error:
        if not CLEAR.search(str(error)) and "invalid" not in str(error):  # numpyro's own, before ours
            raise
        return "clear error"
    if not prior.traceable:
        return "by the library's own quantiles"
    z = np.array([-37.0, -9.0, -5.0, -2.0, -0.5, 0.3, 1.0, 3.0, 6.0, 9.0, 37.0])[:, None] * np.ones(prior.num_dims)
    with jax.enable_x64(True):
        free = (lambda z: prior.forward(z)["a"][:2]) if prior.num_dims == 2 else (lambda z: prior.forward(z)["a"][None])
        x = np.asarray(prior.forward(z)["a"])
        slope = np.asarray(jax.vmap(jax.jacfwd(free))(jnp.asarray(z)))
    assert np.all(np.isfinite(x))
    density = np.asarray(prior.log_prob({"a": x}))
    with np.errstate(all="ignore"):
        error = density + np.linalg.slogdet(slope)[1] - np.asarray(prior.latent_log_prob(z))
    is_told = np.isfinite(error) & (density > -600)
    if prior.num_dims > 1:
        is_told &= x.min(axis=1) > 1e-290
    else:
        low, high = np.min(x), np.max(x)
        x = np.clip(x, -1e140, 1e140)
        is_told &= (x - low > 1e-6 * max(1.0, abs(low))) & (high - x > 1e-6 * max(1.0, abs(high))) & (np.abs(x) < 1e140)
    assert np.all(np.abs(error[is_told]) < 1e-4), error[is_told]
    return "right" if np.any(is_told) else "too near to edges to tell"


# ---- all kinds

KINDS_OF_CASES = {
    "runs": (cases, attempt),
    "calls": (wrong_calls, attempt_call),
    "priors": (families, attempt_prior),
    "checkpoints": (spoilt, attempt_checkpoint),
}  # fmt: skip


def main() -> None:
    """Count how many cases end how."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", choices=sorted(KINDS_OF_CASES), default="runs")
    arguments = parser.parse_args()
    strategy, verdict = KINDS_OF_CASES[arguments.kind]
    counts, failures, longest = Counter(), [], [0.0]

    def too_long(*_):
        raise TimeoutError(f"more than {TIME_LIMIT} seconds, or {LONGEST_WAIT} on the wall")

    signal.signal(signal.SIGALRM, too_long)
    signal.signal(signal.SIGPROF, too_long)

    @hypothesis.seed(arguments.seed)
    @hypothesis.settings(
        max_examples=arguments.examples, database=None, deadline=None, phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )  # fmt: skip
    @hypothesis.given(strategy())
    def every(case):
        start = time.process_time()
        signal.setitimer(signal.ITIMER_PROF, TIME_LIMIT)
        signal.alarm(LONGEST_WAIT)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                counts[verdict(case)] += 1
        except BaseException as error:
            counts["neither"] += 1
            failures.append(f"{type(error).__name__}: {error}")
            print(case, failures[-1][:500], sep="\n", flush=True)
            if isinstance(error, KeyboardInterrupt):
                raise
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.alarm(0)
            longest[0] = max(longest[0], time.process_time() - start)

    start = time.perf_counter()
    every()
    line = {
        "kind": arguments.kind,
        "seed": arguments.seed,
        "examples": sum(counts.values()),
        **dict(sorted(counts.items())),
    }
    line |= {"longest_seconds": round(longest[0], 1), "seconds": round(time.perf_counter() - start)}
    line |= {"version": nsflow.__version__ if hasattr(nsflow, "__version__") else "0.1.0"}
    print(json.dumps(line))
    with RESULTS.open("a") as file:
        file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
