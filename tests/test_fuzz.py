"""A few of the cases of `benchmarks/fuzz.py`, always the same ones, and those that once ended badly."""

import runpy
import subprocess
import sys
from pathlib import Path

import hypothesis
import numpy as np
import pytest
from jaxtyping import TypeCheckError

import nsflow

PATH = Path(__file__).parent.parent / "benchmarks" / "fuzz.py"
FUZZ = runpy.run_path(str(PATH))
QUIET = {"fault": "none", "share": 0.0, "late": 0, "derived": False, "vectorized": True}


@hypothesis.settings(
    max_examples=30,
    derandomize=True,
    database=None,
    deadline=None,
    phases=[hypothesis.Phase.generate],
    suppress_health_check=list(hypothesis.HealthCheck),
)
@hypothesis.given(FUZZ["cases"]())
def test_every_case_ends_in_a_result_or_a_clear_error(case):
    FUZZ["attempt"](case)


def case(prior="uniform", behaviour=(), calls=(), settings=(), seed=0):
    """A case like any other but for what is given."""
    plain = {"shape": "gaussian", "scale": 1.0, "offset": 0.0, **QUIET}
    return FUZZ["Case"](
        prior,
        FUZZ["Behaviour"](**plain | dict(behaviour)),
        {"ess": 50, "max_calls": 10_000, "seed": 0} | dict(calls),
        dict(settings),
        {},
        seed,
    )


@pytest.mark.parametrize("fault", sorted(set(FUZZ["FAULTS"]) - {"none", "nan", "-inf", "+inf", "huge", "-huge"}))
@pytest.mark.parametrize("vectorized", [True, False], ids=["vectorized", "points"])
def test_every_wrong_output_is_refused_at_once_or_ends_the_run(fault, vectorized):
    behaviour = {"fault": fault, "share": 1.0, "vectorized": vectorized}
    if fault == "exit":
        assert FUZZ["attempt"](case(behaviour=behaviour)) == "left"
        return
    harmless = not vectorized and fault == "column"  # an array of one number
    assert FUZZ["attempt"](case(behaviour=behaviour)) == ("finished" if harmless else "clear error")
    late = FUZZ["attempt"](case(behaviour=behaviour | {"late": 300}, calls={"ess": 500}, settings={"num_prior": 100}))
    assert late == ("finished" if harmless else "failed late")


def test_a_mode_far_above_what_the_ladder_saw_overflows_nothing():
    """Of a run that is stopped by a failure after its first climb; warnings are errors here."""
    behaviour = {"scale": 1000.0, "offset": 1.0, "fault": "object", "share": 0.99, "late": 1000, "derived": True}
    calls = {"max_calls": 2500, "ess": 138.84723834457063, "seed": 24081}
    assert FUZZ["attempt"](case("normal", behaviour, calls)) in ("failed late", "capped")


@hypothesis.settings(
    max_examples=10,
    derandomize=True,
    database=None,
    deadline=None,
    phases=[hypothesis.Phase.generate],
    suppress_health_check=list(hypothesis.HealthCheck),
)
@hypothesis.given(FUZZ["spoilt"]())
def test_every_spoilt_checkpoint_ends_in_a_result_or_a_clear_error(case):
    FUZZ["attempt_checkpoint"](case)


SPOILT = [
    ("finished", "array", 166, "clear error"),  # a Gaussian of 1e308
    ("frozen", "array", 14325, "clear error"),
    ("first draws", "number", 200, "clear error"),  # a contour above every point
    ("ladder", "none", 0, "same result"),
    ("finished", "link", 0, "clear error"),
    ("finished", "pipe", 1, "clear error"),
    ("finished", "name", 0, "clear error"),
]


@pytest.mark.parametrize(("base", "way", "place", "end"), SPOILT)
def test_spoilt_checkpoints_that_once_ended_badly(base, way, place, end):
    assert FUZZ["attempt_checkpoint"](FUZZ["Spoilt"](base, way, place, 200, 50)) == end


def test_the_verdict_is_no_rubber_stamp():
    """A bare error from inside is not taken for a clear one."""
    with pytest.raises(TypeError, match="unexpected keyword argument"):
        FUZZ["attempt"](case(settings={"no such option": np.nan}))


@hypothesis.settings(
    max_examples=60,
    derandomize=True,
    database=None,
    deadline=None,
    phases=[hypothesis.Phase.generate],
    suppress_health_check=list(hypothesis.HealthCheck),
)
@hypothesis.given(FUZZ["wrong_calls"]())
def test_every_wrong_call_is_taken_or_refused_clearly(call):
    try:
        FUZZ["attempt_call"](call)
    except TypeCheckError:  # of the run-time checker that is on in tests alone
        hypothesis.assume(False)


CONSTRUCTORS = ("Settings", "Training", "Architecture", "LinearPath", "FlowMatching", "Results", "HostLikelihood")


def test_every_option_says_what_it_expected():
    """Each field of each option with each wrong value, without the run-time checker, whose refusals come first."""
    code = f"""if True:
        import runpy
        fuzz = runpy.run_path({str(PATH)!r})
        for name in {CONSTRUCTORS}:
            verdicts = [
                fuzz["attempt_call"](fuzz["WrongCall"](name, place, value))
                for place in range(len(fuzz["WRONG_CALLS"][name]()[1])) for value in fuzz["BAD"]
            ]
            assert verdicts.count("clear error") > 0.7 * len(verdicts), name
    """
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, capture_output=True, text=True)


def test_the_verdict_on_calls_is_no_rubber_stamp(monkeypatch):
    """A bare error from inside is not taken for a clear one."""
    call = lambda x: x["no such key"]  # noqa: E731
    monkeypatch.setitem(FUZZ["WRONG_CALLS"], "broken", lambda: (call, {"x": {}}))
    with pytest.raises(TypeError, match="not subscriptable"):
        FUZZ["attempt_call"](FUZZ["WrongCall"]("broken", 0, "None"))


@hypothesis.settings(
    max_examples=8,
    derandomize=True,
    database=None,
    deadline=None,
    phases=[hypothesis.Phase.generate],
    suppress_health_check=list(hypothesis.HealthCheck),
)
@hypothesis.given(FUZZ["families"]())
def test_every_prior_carries_its_density_or_is_refused_clearly(case):
    FUZZ["attempt_prior"](case)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("Pareto", (0.1, 0.1)),  # overflowed at z = 9
        ("shifted gamma", (0.1, 11.4)),  # rounding next to an edge looked like noise of the density
        ("InverseGamma", (0.012, 71.0)),  # a scale of which the smallest double was no part
        ("mixture", (30.0, 1.0, 0.01)),  # with a gap that no draw fills
    ],
)
def test_priors_that_once_ended_badly(name, arguments):
    assert FUZZ["attempt_prior"](FUZZ["Family"](name, arguments)) == "right"


def test_the_verdict_on_priors_is_no_rubber_stamp(monkeypatch):
    """A density that is twice the law's is seen."""
    monkeypatch.setattr(nsflow.Prior, "latent_log_prob", lambda self, z: np.log(2) - 0.5 * np.sum(z**2, axis=-1))
    with pytest.raises(AssertionError):
        FUZZ["attempt_prior"](FUZZ["Family"]("Gamma", (2.0, 1.0)))
