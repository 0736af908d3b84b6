"""Random priors, likelihoods and options through `nsflow.run`: each ends in a valid result or in a clear error.

    python benchmarks/fuzz.py --examples 1000 --seed 0

appends one line of counts to benchmarks/results/fuzz.jsonl, and prints whatever ended otherwise.
"""

import argparse
import functools
import json
import re
import signal
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import hypothesis
import hypothesis.strategies as st
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import scipy.stats

import nsflow

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


CLEAR = re.compile(r"\bexpected\b|raised by|must allow")  # not "unexpected keyword argument"


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


def main() -> None:
    """Count how many cases end how."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
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
    @hypothesis.given(cases())
    def every(case):
        start = time.process_time()
        signal.setitimer(signal.ITIMER_PROF, TIME_LIMIT)
        signal.alarm(LONGEST_WAIT)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                counts[attempt(case)] += 1
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
    line = {"seed": arguments.seed, "examples": sum(counts.values()), **dict(sorted(counts.items()))}
    line |= {"longest_seconds": round(longest[0], 1), "seconds": round(time.perf_counter() - start)}
    line |= {"version": nsflow.__version__ if hasattr(nsflow, "__version__") else "0.1.0"}
    print(json.dumps(line))
    with RESULTS.open("a") as file:
        file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
