"""Pools of every kind, and workers that raise, die or hang."""

import concurrent.futures
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from functools import partial

import jax
import numpy as np
import numpyro.distributions as dist
import pytest

import nsflow
from nsflow.likelihood.host import HostLikelihood
from nsflow.likelihood.likelihood import evaluate
from nsflow.likelihood.workers import Workers
from nsflow.numerics.errors import LikelihoodError, Lost

PARAMS = {"a": np.arange(6.0)}
SPAWN = multiprocessing.get_context("spawn")
QUICK = multiprocessing.get_context("forkserver")  # imports once, where spawned processes import JAX for seconds each
QUICK.set_forkserver_preload(["tests.test_workers"])


def square(params):
    return -(params["a"] ** 2)


def first_time(folder, params):
    """Whether a point is met for the first time, by any process."""
    try:
        os.close(os.open(f"{folder}/{params['a']}", os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


def raises_once(folder, params):
    if params["a"] == 3 and first_time(folder, params):
        raise OSError("no licence")
    return square(params)


def dies_once(folder, params):
    if params["a"] == 3 and first_time(folder, params):
        os._exit(7)
    return square(params)


def hangs_once(folder, params):
    if params["a"] == 3 and first_time(folder, params):
        time.sleep(600)
    return square(params)


def always(trouble, params):
    if params["a"] == 3:
        trouble()
    return square(params)


class TwoArgumentsError(Exception):
    """Cannot be unpickled: a multiprocessing pool hangs for ever on it."""

    def __init__(self, code, text):
        super().__init__(f"{code}: {text}")


def raise_strange():
    raise TwoArgumentsError(3, "odd")


MAKERS = {
    "executor": partial(concurrent.futures.ProcessPoolExecutor, 2, mp_context=QUICK),
    "pool": partial(QUICK.Pool, 2),
}


@pytest.fixture(scope="module", params=MAKERS)
def maker(request):
    """One likelihood's pool that dies costs the others nothing; each is made anew where that is needed."""
    return MAKERS[request.param]


@pytest.mark.parametrize("trouble", [raises_once, dies_once, hangs_once])
def test_a_worker_in_trouble_once_is_tried_again(maker, trouble, tmp_path):
    """Also where the pool is ready made: an executor is replaced, a multiprocessing pool replaces its workers."""
    timeout = 1.5 if trouble is hangs_once else None
    pool = maker()
    pool.map(abs, [1.0, 2.0])  # start the workers
    likelihood = HostLikelihood(partial(trouble, str(tmp_path)), pool=pool, timeout=timeout)
    likelihood.workers._has_answered = True  # no minute for a start
    np.testing.assert_array_equal(evaluate(likelihood, PARAMS).log_likelihood, square(PARAMS))
    assert os.listdir(tmp_path) == ["3.0"]
    pool.terminate() if hasattr(pool, "terminate") else pool.shutdown()


@pytest.mark.parametrize(
    ("trouble", "match"),
    [
        (partial(os._exit, 7), r"tried 2 times: (a worker.*died with exit code 7|BrokenProcessPool).*'a': \[3.0\]"),
        (raise_strange, r"TwoArgumentsError: 3: odd.*at \{'a': 3.0\}"),
    ],
    ids=["dies", "raises"],
)
def test_lasting_trouble_is_reported_with_the_point(maker, trouble, match):
    """Here the pool is made, made again and ended by the likelihood."""
    with pytest.raises(LikelihoodError, match=match):
        evaluate(HostLikelihood(partial(always, trouble), pool=maker, retries=1), PARAMS)


def ignores_its_end(params):
    """A worker that cannot be asked to end, as under libraries that block signals."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if params["a"] == 3:
        time.sleep(600)
    return square(params)


def test_workers_that_ignore_their_end_are_killed(maker):
    """A multiprocessing pool waited for them for ever."""
    likelihood = HostLikelihood(ignores_its_end, pool=maker, timeout=0.3, retries=0)
    processes = workers_of(likelihood.workers.pool)
    likelihood.workers._has_answered = True
    began = time.monotonic()
    with pytest.raises(LikelihoodError, match=r"no answer within 0.3 seconds, at \{'a': \[3.0\]\}"):
        evaluate(likelihood, PARAMS)
    assert time.monotonic() - began < 20
    for process in processes:
        process.join(5)
        assert not process.is_alive()


def workers_of(pool):
    """The processes of a pool, started."""
    if hasattr(pool, "submit"):
        pool.submit(abs, -1).result()
        return list(pool._processes.values())
    return list(pool._pool)


def test_a_pool_that_a_run_made_ends_with_it(maker):
    made = []

    def make():
        made.append(maker())
        return made[-1]

    settings = nsflow.Settings(ess=100, num_prior=100, num_live=100, proposal=nsflow.KernelEstimator())
    likelihood = HostLikelihood(square, vectorized=True, pool=make)
    processes = workers_of(likelihood.workers.pool)
    result = nsflow.run(likelihood, prior(), settings=settings)
    for process in processes:
        process.join(5)
        assert not process.is_alive()
    assert result == nsflow.run(HostLikelihood(square, vectorized=True), prior(), settings=settings)
    np.testing.assert_array_equal(evaluate(likelihood, PARAMS).log_likelihood, square(PARAMS))  # by a new one
    assert len(made) == 2


FORKS = """
import os, sys
import numpy as np
from nsflow.likelihood.host import HostLikelihood, evaluate_host

def function(params):
    child = os.fork()
    if child == 0 and params["a"] == 0:
        sys.exit(3)
    if child:
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
    return 0.0

evaluate_host(HostLikelihood(function), {"a": np.arange(2.0)})
print("done")
"""


def test_a_fork_that_comes_back_from_a_likelihood_goes_no_further():
    """It went on as a second run of the same script."""
    ended = subprocess.run([sys.executable, "-c", FORKS], capture_output=True, text=True, check=True, timeout=60)
    assert ended.stdout.split() == ["3", "0", "done"]


FORK = multiprocessing.get_context("fork")


@pytest.mark.parametrize(
    "make",
    [partial(FORK.Pool, 1), partial(concurrent.futures.ProcessPoolExecutor, 1, mp_context=FORK)],
    ids=["pool", "executor"],
)
def test_forks_of_a_process_with_jax_are_warned_of_once(make):
    nsflow.Prior({"a": dist.Uniform(0.0, 1.0)}).sample(jax.random.key(0), 1)  # JAX has started
    likelihood = HostLikelihood(square, vectorized=True, pool=make)
    with pytest.warns(RuntimeWarning, match="which has threads.*spawn") as caught:
        evaluate(likelihood, PARAMS)
    assert len(caught) == 1
    evaluate(likelihood, PARAMS)
    likelihood.workers._end()


FORKED_BEFORE = """
import multiprocessing
import warnings
import jax
import numpy as np
from nsflow.likelihood.host import HostLikelihood, evaluate_host

def function(params):
    return -params["a"]

with multiprocessing.get_context("fork").Pool(1) as pool:
    jax.devices()
    warnings.simplefilter("error")
    print(evaluate_host(HostLikelihood(function, pool=pool), {"a": np.arange(2.0)}).log_likelihood)
"""


def test_forks_of_a_process_before_jax_are_fine():
    command = [sys.executable, "-c", FORKED_BEFORE]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (ended.stdout, ended.stderr) == ("[-0. -1.]\n", "")


def test_a_thread_that_hangs_is_reported_with_the_point():
    release = multiprocessing.Event()
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        likelihood = HostLikelihood(partial(always, release.wait), pool=pool, timeout=0.2, retries=1)
        likelihood.workers._has_answered = True
        with pytest.raises(LikelihoodError, match=r"no answer within 0.2 seconds, at \{'a': \[3.0\]\}"):
            evaluate(likelihood, PARAMS)
        release.set()


def test_workers_may_take_a_minute_to_start():
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        workers = Workers(pool, timeout=0.1)
        assert workers.map(time.sleep, [0.4]) == [None]
        (lost,) = workers.map(time.sleep, [0.4])
    assert isinstance(lost, Lost)
    assert lost.params == 0.4


def test_a_pool_that_was_closed_is_reported():
    pool = concurrent.futures.ThreadPoolExecutor(1)
    pool.shutdown()
    with pytest.raises(LikelihoodError, match="cannot schedule new futures after shutdown"):
        evaluate(HostLikelihood(square, pool=pool), PARAMS)


def test_a_task_that_cannot_be_sent_is_reported(maker):
    with pytest.raises(LikelihoodError, match="ickle"):
        evaluate(HostLikelihood(lambda params: square(params), pool=maker, retries=0), PARAMS)


@pytest.mark.parametrize(
    "pool", [concurrent.futures.ThreadPoolExecutor, lambda: concurrent.futures.ThreadPoolExecutor(2)]
)
def test_pools_may_be_given_as_what_makes_them(pool):
    likelihood = HostLikelihood(square, pool=pool)
    np.testing.assert_array_equal(evaluate(likelihood, PARAMS).log_likelihood, square(PARAMS))
    assert likelihood.workers.pool is likelihood.workers.pool


class MapOnly:
    map = staticmethod(map)


@pytest.mark.parametrize(
    ("keywords", "error", "match"),
    [
        ({"pool": MapOnly(), "timeout": 1.0}, ValueError, "only has `map`. Leave out `timeout`"),
        ({"timeout": 1.0}, ValueError, "`pool` beside `timeout`=1.0"),
        ({"pool": MapOnly(), "timeout": -1.0}, ValueError, "`timeout` expected a positive number of seconds; got -1.0"),
        ({"retries": -1}, ValueError, "`retries` expected an integer of at least 0; got -1"),
        ({"retries": 1.5}, ValueError, "`retries` expected an integer .*; got 1.5"),
        ({"pool": "four"}, TypeError, "or a function that makes one; got 'four'"),
    ],
)
def test_wrong_options_are_explained(keywords, error, match):
    with pytest.raises(error, match=match):
        HostLikelihood(square, **keywords)


def test_a_function_that_makes_no_pool_is_explained():
    with pytest.raises(LikelihoodError, match="`pool` to make a pool with a `map` method; it made 3"):
        evaluate(HostLikelihood(square, pool=lambda: 3), PARAMS)


# ---- a run keeps what it has


def prior():
    """Not at import: workers are forked from a process that has imported this module, and must not have used JAX."""
    return nsflow.Prior({"a": dist.Uniform(-5.0, 5.0)})


LOG_Z = np.log(np.sqrt(2 * np.pi) * 0.1 / 10)


class FailsLate:
    """A Gaussian of width 0.1 that has had enough after so many points."""

    def __init__(self, num_points, trouble):
        self.num_left, self.trouble = num_points, trouble

    def __call__(self, params):
        self.num_left -= len(params["a"])
        values = -0.5 * (params["a"] / 0.1) ** 2
        return values if self.num_left > 0 else self.trouble(values)


def raise_late(values):
    raise FloatingPointError(f"solver diverged for {len(values)} points")


LATE = {
    "raises": (raise_late, "FloatingPointError: solver diverged"),
    "plus infinity": (lambda values: np.where(values == values.max(), np.inf, values), r"\+inf at \{'a': \["),
    "wrong shape": (lambda values: values[1:], r"expected to return shape \(\d+,\)"),
    "no number": (lambda values: None, "expected to return real numbers; got NoneType"),  # noqa: ARG005
}


@pytest.mark.parametrize("num_points", [1500, 6000], ids=["ladder", "frozen"])
@pytest.mark.parametrize(("trouble", "match"), LATE.values(), ids=LATE)
def test_a_late_failure_loses_no_earlier_work(trouble, match, num_points):
    likelihood = HostLikelihood(FailsLate(num_points, trouble), vectorized=True, retries=0)
    result = nsflow.run(likelihood, prior(), ess=20_000)
    assert not result.finished
    assert pytest.approx(0, abs=1500) == num_points - result.num_calls
    assert len(result.samples) > 100
    assert all(re.search(match, text) for text in (result.stop_reason, result.alarms[-1]))
    if num_points == 6000:
        assert abs(result.logZ - LOG_Z) < 4 * result.logZ_err


def dies_near_the_top(folder, params):
    if np.min(np.abs(params["a"])) < 0.01 and first_time(folder, {"a": "top"}):
        os._exit(7)
    return square(params)


def test_a_worker_that_dies_in_a_run_costs_nothing(tmp_path):
    """The same result to the bit as from a run in peace."""
    settings = nsflow.Settings(ess=500, num_prior=500, num_live=200)
    mortal = partial(dies_near_the_top, str(tmp_path))
    with concurrent.futures.ProcessPoolExecutor(2, mp_context=SPAWN) as pool:
        result = nsflow.run(HostLikelihood(mortal, vectorized=True, pool=pool), prior(), settings=settings)
    assert os.listdir(tmp_path) == ["top"]
    assert result == nsflow.run(HostLikelihood(square, vectorized=True), prior(), settings=settings)


NUM_CALLS = iter(range(10**6))  # of a worker; one alone may make all of the first 503


def presses_control_c(folder, params):
    """A terminal sends SIGINT to its whole group; here after the draws of the prior, when both workers are at work."""
    first_time(folder, {"a": os.getpid()})
    if next(NUM_CALLS) > 600 and len(os.listdir(folder)) == 2 and first_time(folder, {"a": "pressed"}):
        os.killpg(0, signal.SIGINT)
    return square(params)


def run_interrupted(name, folder):
    """What the test below runs as a process of its own, as a shell's foreground: those behind it ignore SIGINT."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with MAKERS[name]() as pool:
        likelihood = HostLikelihood(partial(presses_control_c, folder), pool=pool)
        result = nsflow.run(likelihood, prior(), settings=nsflow.Settings(ess=500, num_prior=500, num_live=200))
    print(result.stop_reason, os.path.exists(f"{folder}/pressed"))


@pytest.mark.parametrize("name", MAKERS)
def test_control_c_reaches_the_run_and_not_its_workers(name, tmp_path):
    code = f"from tests.test_workers import run_interrupted; run_interrupted({name!r}, {str(tmp_path)!r})"
    command = [sys.executable, "-c", code]
    ended = subprocess.run(command, start_new_session=True, capture_output=True, text=True, timeout=300, check=False)
    assert ended.stdout == "interrupted True\n", ended.stderr
    assert "Traceback" not in ended.stderr
