"""The loop: a ladder of contours, scouting, posterior rounds, and draws from frozen proposals."""

import os
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any, no_type_check

import jax
import numpy as np
from jaxtyping import Array
from scipy import special

from nsflow.checkpoint.checkpoint import opened
from nsflow.likelihood.host import HostLikelihood
from nsflow.likelihood.journal import Journal, Recorded, Stopped
from nsflow.likelihood.likelihood import Likelihood, as_likelihood, check, evaluate_until, require_finite, require_free
from nsflow.likelihood.signals import Interrupt, listen
from nsflow.nested.components import fit_cheap
from nsflow.nested.final import draw_frozen, largest_batch, reopen
from nsflow.nested.levels import climb, largest_level, outlook
from nsflow.nested.points import Points
from nsflow.nested.progress import Listener, check_progress, watching
from nsflow.nested.rounds import largest_round, refine
from nsflow.nested.scouting import largest_search, scout
from nsflow.nested.state import Phase, Problem, Settings, State, StepInfo, draw
from nsflow.nested.summary import summarise
from nsflow.nested.warm_start import Start, as_start
from nsflow.numerics.arguments import instance, integer, require_key, shown
from nsflow.numerics.errors import LikelihoodError
from nsflow.numerics.precision import float64
from nsflow.prior.periodic import emptiest, turn
from nsflow.prior.prior import Prior
from nsflow.proposals.estimators import AbstractEstimator
from nsflow.proposals.meta_proposal import PriorProposal
from nsflow.results.results import Results


@no_type_check  # its own messages come before a run-time checker's
@float64
def init(key: Array, problem: Problem, settings: Settings = Settings(), start: Start | None = None) -> State:  # noqa: B008
    """Check the likelihood on a few points of the prior, then draw the first points.

    Args:
        key: JAX random key.
        problem: Likelihood and prior.
        settings: Options.
        start: Samples to which a first component is fitted; see `run`.

    Returns:
        The state that `step` takes.

    Raises:
        TypeError: If the likelihood cannot be called or traced, or returns anything but one real number a point, or
            an argument is of the wrong kind.
        ValueError: If it is -inf at every point, or +inf at any.
    """
    require_key("init", key)
    instance(Problem, "an nsflow.Problem of a likelihood and a prior")("`init` for its `problem`", problem)
    _require_prior("init", problem.prior)
    instance(Settings, "nsflow.Settings")("`init` for its `settings`", settings)
    if start is not None and not isinstance(start, Start):
        start = as_start(start, problem.prior)
    if not isinstance(problem.likelihood, Recorded):
        problem = problem._replace(likelihood=as_likelihood(problem.likelihood))
    settings.require_memory(problem.prior.num_dims)
    state, reason = _first_draws(key, problem, settings)
    if reason:
        raise Stopped(reason)
    return state if start is None else _warm(key, state, start)


def _first_draws(key: Array, problem: Problem, settings: Settings) -> tuple[State, str]:
    """Evaluate draws from the prior: all, or those before the journal had a reason to stop, and the reason.

    Raises:
        Stopped: If those are too few to tell anything.
    """
    prior = PriorProposal(problem.prior)
    num_prior = settings.num_first(problem.prior.num_dims)
    x, _ = prior.sample_and_log_prob(key, num_prior)
    params = problem.prior.forward(x)
    num_checked = check(problem.likelihood, {name: np.asarray(value)[:3] for name, value in params.items()})
    result, reason = evaluate_until(problem.likelihood, params)
    if reason and np.sum(np.isfinite(result.log_likelihood)) < FEWEST:
        raise Stopped(reason)
    require_finite(result.log_likelihood)
    require_free(tuple(result.derived), problem.prior.names)
    num_prior = len(result.log_likelihood)
    problem, x = _cut_circles(problem, x[:num_prior], result.log_likelihood)
    log_prior = np.asarray(problem.prior.latent_log_prob(x))
    state = State(
        problem=problem,
        settings=settings,
        phase=Phase.LADDER,
        points=Points(x, result.log_likelihood, log_prior, np.full(len(x), -np.inf), np.ones(len(x), bool), num_prior),
        components=(PriorProposal(problem.prior),),
        num_draws=(num_prior,),
        num_calls=len(x) + num_checked,
        nan_params=(result.nan_params,),
        derived=tuple(result.derived),
    )
    return state, reason


def _warm(key: Array, state: State, start: Start) -> State:
    """Add a component on given samples and draw from it as from what climbs find, with its exact density in Q.

    Where it does propose the posterior, the ladder climbs in the smaller levels that it takes beyond the posterior.
    """
    key_fit, key_draw = jax.random.split(jax.random.fold_in(key, 0))
    component = fit_cheap(key_fit, state, *start.latent(state.problem.prior))
    index = len(state.components)
    state = replace(state.add(component), modes=(index,), num_given=1)
    return draw(key_draw, state, {index: outlook(state)[0]}, np.ones(len(state.points.x), bool))


def _cut_circles(problem: Problem, x: np.ndarray, log_likelihood: np.ndarray) -> tuple[Problem, np.ndarray]:
    """Turn periodic parameters so that their ends lie where the first draws from the prior have the lowest likelihood.

    With an angle whose posterior lay across its ends a run in 8-d took 6.0 calls for an effective sample, and 3.3 so.
    """
    old = problem.prior
    if not np.any(old.is_periodic):
        return problem, x
    u = special.ndtr(x)
    turns = np.array([emptiest(c, log_likelihood) * is_on for c, is_on in zip(u.T, old.is_periodic, strict=True)])
    new = old.turn(old.phases + turns)
    return Problem(problem.likelihood, new), np.where(old.is_periodic, turn(x, -turns), x)


@no_type_check  # its own messages come before a run-time checker's
@float64
def step(key: Array, state: State) -> tuple[State, StepInfo]:
    """Make one level, one search, one posterior round or one frozen batch.

    Args:
        key: JAX random key.
        state: From `init` or an earlier step; not finished.

    Returns:
        ``(state, info)``: the next state and what happened.

    Raises:
        TypeError: If the key or the state is of the wrong kind.
        ValueError: If the run is finished.
    """
    require_key("step", key)
    instance(State, "the state that `init` or `step` returned")("`step` for its `state`", state)
    if state.phase not in PHASES:
        raise ValueError("`step` expected a run that is not finished. Take its result, or `init` another one.")
    return PHASES[state.phase](key, state)


FEWEST = 2  # possible draws from the prior that a result rests on; one tells no error
EARLY = 10  # draws from the prior that `max_seconds` allows in any case


PHASES: dict[Phase, Callable[[Array, State], tuple[State, StepInfo]]] = {
    Phase.LADDER: climb,
    Phase.SCOUTING: scout,
    Phase.POSTERIOR: refine,
    Phase.FROZEN: draw_frozen,
}


def next_batch(state: State) -> int:
    """Number of likelihood calls that the next step will not exceed."""
    return LARGEST[state.phase](state)


LARGEST: dict[Phase, Callable[[State], int]] = {
    Phase.LADDER: largest_level,
    Phase.SCOUTING: largest_search,
    Phase.POSTERIOR: largest_round,
    Phase.FROZEN: largest_batch,
}


def stop_reason(state: State) -> str:
    """Why a run makes no further step.

    Args:
        state: The run.

    Returns:
        The target or the cap that was reached, or the empty string.
    """
    settings = state.settings
    if state.phase is Phase.FINISHED:
        return "ess reached" if settings.logZ_err is None else "ess and logZ_err reached"
    if state.num_calls + next_batch(state) > settings.max_calls:
        return "max_calls reached"
    if settings.max_levels and state.phase is Phase.LADDER and len(state.contours) > settings.max_levels:
        return "max_levels reached"
    return ""


@no_type_check  # its own messages come before a run-time checker's
@float64
def run(
    log_likelihood: Callable[..., Any] | Likelihood,
    prior: Prior,
    *,
    seed: int = 0,
    ess: int | float | None = None,
    logZ_err: float | None = None,
    max_calls: int | None = None,
    max_seconds: float | None = None,
    max_levels: int | None = None,
    proposal: AbstractEstimator | None = None,
    start: Results | Mapping[str, Any] | np.ndarray | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: bool | Listener = True,
    settings: Settings = Settings(),  # noqa: B008
) -> Results:
    r"""Compute evidence and posterior.

    A ladder of likelihood contours finds the posterior, scouts look for modes that it lost, and a few rounds train
    flows on it. Draws that trained none of what proposed them, those of the rounds and those of the mixture Q that is
    frozen after them, give the result,

    .. math::
        \hat Z = \frac1N \sum_i \frac{L(x_i)\,\pi(x_i)}{Q(x_i)}, \qquad x_i \sim Q.

    Args:
        log_likelihood: JAX function of one point, a dict of the prior's parameters, to the log-likelihood in nats; or
            :class:`nsflow.HostLikelihood` around any Python function.
        prior: The prior.
        seed: Seed of all random numbers: same seed, same bits.
        ess: Effective sample size to reach; `settings.ess` if left out.
        logZ_err: Error of logZ to reach as well, nats; `settings.logZ_err` if left out.
        max_calls: Largest number of likelihood calls; `settings.max_calls` if left out.
        max_seconds: Wall-clock seconds of this call after which it returns; `settings.max_seconds` if left out.
        max_levels: Largest number of the ladder's levels; `settings.max_levels` if left out.
        proposal: What is fitted to the posterior and proposes, such as :class:`nsflow.GaussianMixtureEstimator`;
            `settings.proposal` if left out, kernels, Gaussians and flows by default.
        start: Samples that may resemble the posterior, such as the :class:`nsflow.Results` of another model with the
            same parameters, a dict of them, or an array with a column for each of ``prior.names``. One more component
            of Q is fitted to them. With samples of something else a run takes more calls, and its evidence is as right.
        checkpoint: Folder in which the run is kept, such as ``"run.nsflow"``. What is killed goes on from there to the
            same bits when it is called again, and what is finished is returned at once, or extended to a larger `ess`.
        progress: What is shown of the run: True for a display on an interactive terminal (and nothing in a batch job),
            False for none, or a function that is called with the :class:`nsflow.Progress` of every step. Each step is
            a line of the logger "nsflow" as well, at level INFO.
        settings: Further options.

    Returns:
        The result: evidence with its error, weighted posterior, diagnostics. One that a cap ended is marked unfinished
        and rests on what was drawn until then; `stop_reason` says which cap. So is one whose likelihood failed after
        the first draws from the prior, with the failure and its parameters as the reason for stopping.

    Raises:
        TypeError: If the likelihood, prior or an option is of the wrong kind.
        ValueError: If an option is out of range, the likelihood is unusable (see `init`), or the checkpoint is damaged
            or another run's.
        OSError: If the checkpoint cannot be written at the start; later that is a warning.

    Example:
        >>> import numpyro.distributions as dist
        >>> prior = Prior({"a": dist.Uniform(-5, 5)})
        >>> result = run(lambda p: -0.5 * p["a"] ** 2, prior, ess=500)
        >>> bool(abs(result.logZ - np.log(np.sqrt(2 * np.pi) / 10)) < 5 * result.logZ_err)
        True
    """
    _require_prior("run", prior)
    instance(Settings, "nsflow.Settings")("`run` for its `settings`", settings)
    seed = integer(0, 2**32 - 1)("`run` for its `seed`", seed)
    check_progress(progress)
    given = {
        "ess": ess,
        "logZ_err": logZ_err,
        "max_calls": max_calls,
        "max_seconds": max_seconds,
        "max_levels": max_levels,
        "proposal": proposal,
    }
    settings = replace(settings, **{name: value for name, value in given.items() if value is not None})
    given_start = None if start is None else as_start(start, prior)
    num_prior = settings.num_first(prior.num_dims)
    if settings.max_calls < num_prior + 3:
        raise ValueError(
            f"`max_calls` must allow the {num_prior} first draws from the prior; got {settings.max_calls}. "
            "Raise it, or lower `Settings.num_prior`."
        )
    settings.require_memory(prior.num_dims)
    interrupt = Interrupt()
    try:
        return _run(
            as_likelihood(log_likelihood), prior, int(seed), settings, given_start, checkpoint, progress, interrupt
        )
    except Stopped:  # by a signal, before there was anything to return
        interrupt.hand_on()
        raise KeyboardInterrupt("nsflow.run was interrupted before its first draws.") from None
    except KeyboardInterrupt as error:
        # Most tracebacks are from inside of a compiler, and fill screens; the message says where it was.
        raise error.with_traceback(None) from None


def _run(
    likelihood: Likelihood,
    prior: Prior,
    seed: int,
    settings: Settings,
    start: Start | None,
    checkpoint: Any,
    progress: bool | Listener,
    early: Interrupt,
) -> Results:
    """Do what `run` says, with options that have been looked at; `early` notes signals within the first draws.

    Raises:
        Stopped: If a signal came before two of them had a likelihood.
        ValueError: If `max_seconds` had passed by then.
    """
    deadline = time.monotonic() + (settings.max_seconds or np.inf)
    key, journal = jax.random.key(seed), Journal()
    problem = Problem(Recorded(likelihood, journal), prior)
    opening = nullcontext((None, None)) if checkpoint is None else opened(checkpoint, problem, settings, seed, start)
    showing = watching(progress, settings, lambda: journal.num_calls)
    with _workers(likelihood), opening as (store, saved), showing as report:
        began = time.monotonic() - (saved[1][-1].seconds if saved and saved[1] else 0.0)
        if saved is None:
            state, reason = _begin(key, problem, settings, start, journal, deadline, early)
            if reason:  # the journal holds what the state lacks
                return summarise(state, [], seed, reason)
            saved = state, []
        state, trace = saved
        state, failure, reason = reopen(state) if state.phase is Phase.FINISHED else state, None, ""
        with listen() as interrupt:
            journal.stop = partial(_must_stop, interrupt, deadline)
            try:
                journal.begin_step()
                while not (reason := stop_reason(state) or journal.stop()):
                    if store:
                        store.offer(state, trace)
                    new, info = step(jax.random.fold_in(key, len(trace) + 1), state)
                    info = info._replace(seconds=time.monotonic() - began)
                    # At once: an exception of a signal's handler between the two would repeat a step's random numbers.
                    state, trace = new, [*trace, info]
                    journal.begin_step()
                    report(trace)
            except Stopped as stopped:
                reason = str(stopped)
            except LikelihoodError as error:
                failure = str(error)
            finally:
                if store:
                    store.save(state, trace)
    # What a step had evaluated when it was left is no part of the result, but has been paid for.
    state = replace(state, num_calls=state.num_calls + journal.num_calls)
    return summarise(state, trace, seed, reason, failure)


def _workers(likelihood: Likelihood) -> AbstractContextManager[None]:
    """While the block runs, the workers of a pool that the likelihood makes."""
    workers = likelihood.workers if isinstance(likelihood, HostLikelihood) else None
    return workers.in_use() if workers else nullcontext()


def _begin(
    key: Array,
    problem: Problem,
    settings: Settings,
    start: Start | None,
    journal: Journal,
    deadline: float,
    early: Interrupt,
) -> tuple[State, str]:
    """Make the first state, or one of the draws that there was time for, and say why it has no more."""
    with listen(early, to_all=False):  # handlers of the caller's own may leave: there is hardly a result to return
        journal.stop = lambda: _must_stop(early, deadline if journal.num_calls >= EARLY else np.inf)
        try:
            state, reason = _first_draws(key, problem, settings)
        except Stopped:
            if early.received:
                raise
            raise ValueError(
                f"`max_seconds` expected time for {FEWEST} draws from the prior with a likelihood above zero; got "
                f"{settings.max_seconds}, in which {journal.num_calls} were evaluated. Raise it, or narrow the prior; "
                "a `checkpoint` keeps what was evaluated."
            ) from None
        journal.begin_step()
        if start is not None and not reason:
            try:
                return _warm(key, state, start), ""
            except Stopped as stopped:
                reason = str(stopped)
    return replace(state, num_calls=state.num_calls + journal.num_calls), reason


def _require_prior(owner: str, prior: Any) -> None:
    if not isinstance(prior, Prior):
        raise TypeError(
            f"`{owner}` expected `prior` to be an nsflow.Prior; got {shown(prior)}. Wrap it: nsflow.Prior({{...}})."
        )


def _must_stop(interrupt: Interrupt, deadline: float) -> str:
    """Why a run is left, even within a step; the empty string if it is not."""
    if interrupt.received:
        return "interrupted"
    return "max_seconds reached" if time.monotonic() >= deadline else ""
