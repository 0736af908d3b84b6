"""The loop: a ladder of contours, posterior rounds, and fresh draws from frozen proposals."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from typing import Any, NamedTuple, no_type_check

import jax
import numpy as np
from jaxtyping import Array

from nsflow import flow
from nsflow.evidence import Evidence, effective_sample_size, log_evidence
from nsflow.flow import FlowInfo
from nsflow.kernels import Kernels
from nsflow.likelihood import Likelihood, as_likelihood, check, evaluate, require_finite
from nsflow.points import Points, evidence_share, next_contour, truncate
from nsflow.precision import float64
from nsflow.prior import Prior
from nsflow.proposal import Draws, MetaProposal, PriorProposal, Proposal, optimal_weights
from nsflow.results import Results
from nsflow.state import PRIOR, Frozen, Phase, Problem, Settings, State, draw, reclaim
from nsflow.train import Training

PRIOR_FLOOR = 0.01  # least share of the prior in the frozen mixture: it bounds every weight
BROAD_FLOOR = 0.03  # and of the broad level, which bounds them where the posterior has tails


class StepInfo(NamedTuple):
    """What one step did."""

    phase: str
    num_calls: int  # so far
    contour: float  # nats
    logZ: float  # nats; before the frozen phase a guide only, biased by training
    ess: float  # of the same points
    held_out: float  # log-density of held-out points under the flow trained in this step, nats; NaN if none was
    is_gaussian: bool  # whether that flow is a Gaussian


@float64
def init(key: Array, problem: Problem, settings: Settings = Settings()) -> State:  # noqa: B008
    """Check the likelihood on a few points of the prior, then draw the first points.

    Args:
        key: JAX random key.
        problem: Likelihood and prior.
        settings: Options.

    Returns:
        The state that `step` takes.

    Raises:
        TypeError: If the likelihood cannot be called or traced, or returns anything but one real number a point.
        ValueError: If it is -inf at every point, or +inf at any.
    """
    prior = PriorProposal(problem.prior)
    x, log_prior = prior.sample_and_log_prob(key, settings.num_prior)
    params = problem.prior.forward(x)
    num_checked = check(problem.likelihood, {name: np.asarray(value)[:3] for name, value in params.items()})
    result = evaluate(problem.likelihood, params)
    require_finite(result.log_likelihood)
    return State(
        problem=problem,
        settings=settings,
        phase=Phase.LADDER,
        points=Points(x, result.log_likelihood, log_prior, np.full(len(x), -np.inf), settings.num_prior),
        components=(prior,),
        num_draws=(settings.num_prior,),
        num_calls=len(x) + num_checked,
        nan_params=(result.nan_params,),
    )


@float64
def step(key: Array, state: State) -> tuple[State, StepInfo]:
    """Make one level, one posterior round or one frozen batch.

    Args:
        key: JAX random key.
        state: From `init` or an earlier step; not finished.

    Returns:
        ``(state, info)``: the next state and what happened.
    """
    if state.phase is Phase.LADDER:
        return _climb(key, state)
    if state.phase is Phase.POSTERIOR:
        return _refine(key, state)
    return _draw_frozen(key, state)


def next_batch(state: State) -> int:
    """Largest number of likelihood calls that the next step can make."""
    if state.phase is Phase.LADDER:
        return max(_level_size(state), _round_size(state))
    if state.phase is Phase.POSTERIOR:
        return _round_size(state)
    return sum(state.frozen.proposal.num_draws) if state.frozen else 0


@no_type_check  # its own messages come before a run-time checker's
@float64
def run(
    log_likelihood: Callable[..., Any] | Likelihood,
    prior: Prior,
    *,
    seed: int = 0,
    ess: int | float | None = None,
    max_calls: int | None = None,
    settings: Settings = Settings(),  # noqa: B008
) -> Results:
    r"""Compute evidence and posterior.

    A ladder of likelihood contours finds the posterior, a few rounds train flows on it, and fresh draws from the
    frozen mixture Q of flows and prior give the result,

    .. math::
        \hat Z = \frac1N \sum_i \frac{L(x_i)\,\pi(x_i)}{Q(x_i)}, \qquad x_i \sim Q.

    Args:
        log_likelihood: JAX function of one point, a dict of the prior's parameters, to the log-likelihood in nats; or
            :class:`nsflow.HostLikelihood` around any Python function.
        prior: The prior.
        seed: Seed of all random numbers: same seed, same bits.
        ess: Effective sample size to reach; `settings.ess` if left out.
        max_calls: Largest number of likelihood calls; `settings.max_calls` if left out.
        settings: Further options.

    Returns:
        The result: evidence with its error, weighted posterior, diagnostics.

    Raises:
        TypeError: If the likelihood, prior or an option is of the wrong kind.
        ValueError: If an option is out of range, or the likelihood is unusable; see `init`.

    Example:
        >>> import numpyro.distributions as dist
        >>> prior = Prior({"a": dist.Uniform(-5, 5)})
        >>> result = run(lambda p: -0.5 * p["a"] ** 2, prior, ess=500)
        >>> bool(abs(result.logZ - np.log(np.sqrt(2 * np.pi) / 10)) < 5 * result.logZ_err)
        True
    """
    if not isinstance(prior, Prior):
        raise TypeError(f"`run` expected `prior` to be an nsflow.Prior; got {prior!r}. Wrap it: nsflow.Prior({{...}}).")
    if not isinstance(settings, Settings):
        raise TypeError(f"`run` expected `settings` to be nsflow.Settings; got {settings!r}.")
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or not 0 <= seed < 2**32:
        raise ValueError(f"`run` expected `seed` to be an integer from 0 to 2**32 - 1; got {seed!r}.")
    given = {name: value for name, value in (("ess", ess), ("max_calls", max_calls)) if value is not None}
    settings = replace(settings, **given)
    if settings.max_calls < settings.num_prior + 3:
        raise ValueError(
            f"`max_calls` must allow the {settings.num_prior} first draws from the prior; got {settings.max_calls}. "
            "Raise it, or lower `Settings.num_prior`."
        )
    key = jax.random.key(seed)
    state = init(key, Problem(as_likelihood(log_likelihood), prior), settings)
    trace = []
    while state.phase is not Phase.FINISHED and state.num_calls + next_batch(state) <= settings.max_calls:
        state, info = step(jax.random.fold_in(key, len(trace) + 1), state)
        trace.append(info)
    return summarise(state, trace, int(seed))


# ------------------------------------------------------------- phase 1: the ladder


def _climb(key: Array, state: State) -> tuple[State, StepInfo]:
    """Raise the contour, train on the points above it, draw."""
    settings, points = state.settings, state.points
    num_dims = state.problem.prior.num_dims
    min_ess = 1000.0 if _num_trained(state) == 2 else 25.0 * num_dims
    contour = next_contour(points, state.contours[-1], compression=settings.compression, min_ess=min_ess)
    above = points.log_likelihood >= contour.log_likelihood
    if np.sum(above) <= 2 * num_dims or (contour.ess < 0.25 * min_ess and state.num_waits < 2):
        return _wait(key, state, above)
    if evidence_share(points, contour.log_likelihood) < 0.5 or contour.log_mass > -0.1:
        return _refine(key, replace(state, phase=Phase.POSTERIOR))
    chosen = points.select(above)
    key_fit, key_draw = jax.random.split(key)
    trained, info = _train(key_fit, state, chosen.x, chosen.log_prior_weights, settings.ladder)
    state = replace(
        state,
        contours=state.contours + (contour.log_likelihood,) * len(trained),
        # The level before adds about a fifth to the density of new points; those before it less than a twentieth.
        overlap=max(1, len(state.components) - len(trained)),
        num_waits=0,
    ).add(*trained)
    state = draw(key_draw, state, _share(state, _level_size(state), len(trained)), above)
    return state, _info(Phase.LADDER, state, info)


def _wait(key: Array, state: State, active: np.ndarray) -> tuple[State, StepInfo]:
    """Draw once more from the newest component: too few effective points lie above the contour."""
    state = replace(state, num_waits=state.num_waits + 1)
    num_newest = 0 if len(state.components) == 1 else _num_trained(state)
    state = draw(key, state, _share(state, _level_size(state), num_newest), active)
    return state, _info(Phase.LADDER, state, None)


# ------------------------------------------------------------- phase 2: posterior rounds


def _refine(key: Array, state: State) -> tuple[State, StepInfo]:
    """Train on all points with posterior weights, draw; after the last round, freeze."""
    settings = state.settings
    log_weights = state.points.log_posterior_weights
    # Points of a weight below 1 % of the average are most of the ladder and none of the posterior.
    chosen = log_weights > np.logaddexp.reduce(log_weights) - np.log(100 * len(log_weights))
    key_fit, key_draw = jax.random.split(key)
    trained, info = _train(key_fit, state, state.points.x[chosen], log_weights[chosen], settings.posterior)
    num_before = len(log_weights)
    num_draws = _share(state.add(*trained), _round_size(state), len(trained))
    state = draw(key_draw, state.add(*trained), num_draws, chosen)
    state = replace(state, num_rounds=state.num_rounds + 1)
    if state.num_rounds >= len(settings.rounds):
        fresh = np.arange(len(state.points.x)) >= num_before
        efficiency, frozen = _freeze(state, state.points.select(fresh), num_draws)
        if efficiency > 0.5 or state.num_rounds >= len(settings.rounds) + settings.max_extra_rounds:
            state = replace(state, phase=Phase.FROZEN, frozen=frozen)
    return state, _info(Phase.POSTERIOR, state, info)


def _level_size(state: State) -> int:
    return state.settings.num_live or 1000 * _num_trained(state)


def _round_size(state: State) -> int:
    """The planned rounds, then extra ones as large as the largest."""
    rounds = state.settings.rounds
    share = rounds[state.num_rounds] if state.num_rounds < len(rounds) else max(rounds)
    return max(500, round(share * state.settings.ess))


def _broad(state: State) -> int:
    """Highest level of the ladder that leaves out less than a thousandth of the evidence; the prior if none does."""
    levels = range(len(state.contours) - 1, 0, -1)
    return next((k for k in levels if evidence_share(state.points, state.contours[k]) > 0.999), PRIOR)


def _share(state: State, size: int, num_newest: int) -> dict[int, int]:
    """Share a batch between the prior, a broad level and the newest components, most of it to the flow at the end."""
    last = len(state.components) - 1
    num_prior = round(state.settings.prior_share * size)
    shares = {PRIOR: num_prior} | ({_broad(state): num_prior} if state.phase is Phase.POSTERIOR else {})
    shares |= dict.fromkeys(range(last + 1 - num_newest, last), round(0.4 * size))
    shares[last] = shares.get(last, 0) + size - sum(shares.values())
    return shares


def _num_trained(state: State) -> int:
    """Number of components trained together: kernels, where they help, and a flow."""
    return 2 if state.problem.prior.num_dims <= state.settings.kernel_dims else 1


def _train(
    key: Array, state: State, x: np.ndarray, log_weights: np.ndarray, training: Training
) -> tuple[list[Proposal], FlowInfo]:
    """Fit kernels, in few dimensions, and a flow."""
    key_kernels, key_flow = jax.random.split(key)
    log_weights = truncate(log_weights)
    new, info = flow.fit(key_flow, x, log_weights, training=training)
    kernels = [Kernels.fit(key_kernels, x, log_weights)] if _num_trained(state) == 2 else []
    return [*kernels, new], info


# ------------------------------------------------------------- phase 3: frozen proposals


def _freeze(state: State, pilot: Points, num_draws: dict[int, int]) -> tuple[float, Frozen]:
    """Weigh the frozen mixture on fresh points that trained none of its components; predict its ESS per draw."""
    newest, broad = len(state.components), _broad(state)
    candidates = sorted({PRIOR, broad, *num_draws, *range(max(newest - 2 * _num_trained(state), 0), newest)})
    floor = [PRIOR_FLOOR if k == PRIOR else BROAD_FLOOR if k == broad else 0.0 for k in candidates]
    log_q = MetaProposal.of(state.components, candidates).log_prob_each(pilot.x)
    log_target = pilot.log_likelihood + pilot.log_prior
    drawn = np.array([num_draws.get(k, 0) for k in candidates])
    log_Q = MetaProposal.of(state.components, candidates, drawn).mix(log_q)
    weights = optimal_weights(log_q, log_target, log_Q, floor=np.array(floor))
    log_moment = 2 * log_target - log_Q - np.logaddexp.reduce(log_q + np.log(weights), axis=1)
    efficiency = np.exp(
        2 * np.logaddexp.reduce(log_target - log_Q) - np.logaddexp.reduce(log_moment) - np.log(len(log_Q))
    )
    # A component of less than 5 % beyond its floor gains less than the evaluation of its density costs.
    kept = [(k, w) for k, w, f in zip(candidates, weights, floor, strict=True) if f > 0 or w > 0.05]
    size = np.clip(state.settings.ess / 10, 200, 2000) / sum(w for _, w in kept)
    indices = tuple(k for k, _ in kept)
    proposal = MetaProposal.of(state.components, indices, tuple(max(2, round(size * w)) for _, w in kept))
    nothing = np.zeros(0)
    draws = Draws(np.zeros((0, pilot.x.shape[1])), np.zeros(0, int), nothing, np.zeros((0, len(kept))))
    return float(efficiency), Frozen(proposal, indices, 0, 1, draws, nothing, nothing)


def _draw_frozen(key: Array, state: State) -> tuple[State, StepInfo]:
    """Draw one batch; when those planned are drawn, finish, plan more, or go back to training."""
    old = state.frozen
    assert old is not None
    draws = old.proposal.sample(key)
    result = evaluate(state.problem.likelihood, state.problem.prior.forward(draws.x))
    log_prior = np.asarray(state.problem.prior.latent_log_prob(draws.x))
    frozen = old._replace(
        num_batches=old.num_batches + 1,
        draws=Draws(*(np.concatenate(pair) for pair in zip(old.draws, draws, strict=True))),
        log_likelihood=np.concatenate([old.log_likelihood, result.log_likelihood]),
        log_prior=np.concatenate([old.log_prior, log_prior]),
    )
    state = replace(
        state,
        frozen=frozen,
        num_calls=state.num_calls + len(draws.x),
        nan_params=(*state.nan_params, result.nan_params),
    )
    estimate = frozen.estimate()
    info = StepInfo(
        str(Phase.FROZEN), state.num_calls, state.contours[-1], estimate.logZ, estimate.ess, float("nan"), False
    )
    if frozen.num_batches < frozen.num_planned:
        return state, info
    if state.num_restarts < state.settings.max_restarts and _needs_training(frozen, estimate):
        return _restart(state), info
    if estimate.ess >= state.settings.ess:
        return replace(state, phase=Phase.FINISHED), info
    return replace(state, frozen=_plan(frozen, estimate.ess, state.settings.ess)), info


def _plan(frozen: Frozen, ess: float, target: int | float) -> Frozen:
    """Decide how many batches to draw before the target is looked at again: to the target, at most four times as many.

    A run that looked after each batch would stop when no heavy weight has come for a while: low by
    mu_3 / (n (1 + cv^2)), where mu_3 is the third moment of the weights over their mean.
    """
    wanted = np.ceil(1.05 * frozen.num_batches * target / max(ess, 1.0))
    return frozen._replace(num_planned=int(np.clip(wanted, frozen.num_batches + 1, 4 * frozen.num_batches)))


def _needs_training(frozen: Frozen, estimate: Evidence) -> bool:
    """Whether the weights say that the mixture misses something.

    Asking seldom matters: a run that stops at the first heavy weight throws away the very draw that would have
    corrected its evidence upwards, and the next frozen phase must find it again.
    """
    efficiency = estimate.ess / np.sum(frozen.num_draws)
    return bool((estimate.khat > 0.7 and estimate.max_weight_share > 0.01) or efficiency < 0.1)


def _restart(state: State) -> State:
    """Give the frozen draws to training and repeat the last two rounds."""
    log_weights = state.points.log_posterior_weights
    state = reclaim(state, log_weights > np.logaddexp.reduce(log_weights) - np.log(100 * len(log_weights)))
    num_rounds = max(0, len(state.settings.rounds) - 2)
    return replace(state, phase=Phase.POSTERIOR, num_rounds=num_rounds, num_restarts=state.num_restarts + 1)


# ------------------------------------------------------------- the result


def summarise(state: State, trace: Sequence[StepInfo] = (), seed: int | None = None) -> Results:
    """Turn a state into a result, finished or not.

    Args:
        state: The run.
        trace: What each step did.
        seed: The seed, for the record.

    Returns:
        The result. Without a frozen phase it rests on the training points, and says so in its alarms.
    """
    prior, frozen = state.problem.prior, state.frozen
    if frozen is not None and frozen.num_batches > 0:
        x, log_likelihood, log_weights = frozen.draws.x, frozen.log_likelihood, frozen.log_weights
        num_draws, estimate = int(np.sum(frozen.num_draws)), frozen.estimate()
    else:
        num_draws = sum(state.num_draws)
        x, log_likelihood = state.points.x, state.points.log_likelihood
        log_weights = state.points.log_posterior_weights + np.log(num_draws)
        estimate = log_evidence(log_weights, num_draws=np.array([num_draws]))
    finished = state.phase is Phase.FINISHED
    return Results(
        names=prior.names,
        samples=prior.flatten(prior.forward(x)),
        log_likelihood=log_likelihood,
        log_weights=log_weights,
        num_draws=num_draws,
        num_calls=state.num_calls,
        finished=finished,
        stop_reason="ess reached" if finished else "max_calls reached",
        alarms=_alarms(state, estimate),
        seed=seed,
        settings=asdict(state.settings),
        versions={name: version(name) for name in ("nsflow", "jax", "flax", "optax", "numpyro")},
        trace=[info._asdict() for info in trace],
        **estimate._asdict(),
    )


def _alarms(state: State, estimate: Evidence) -> tuple[str, ...]:
    """What a reader must know before trusting the evidence."""
    alarms = []
    if state.frozen is None or state.frozen.num_batches == 0:
        alarms.append("no fresh draws: logZ rests on points that trained their own proposals, biased low by them")
    if estimate.khat > 0.7:
        alarms.append(f"k-hat = {estimate.khat:.2f} > 0.7: the weights' tail is too heavy for the quoted error")
    if estimate.max_weight_share > 0.05:
        alarms.append(f"one draw carries {estimate.max_weight_share:.0%} of the evidence")
    if state.frozen is not None and state.frozen.num_batches > 0:
        share = _prior_share(state.frozen)
        if share > 0.05:
            alarms.append(f"draws from the prior carry {share:.0%} of the evidence: the flows miss part of it")
    num_nan = sum(len(next(iter(params.values()))) for params in state.nan_params if params)
    if num_nan:
        alarms.append(f"the likelihood was NaN at {num_nan} points, counted as -inf")
    return tuple(alarms)


def _prior_share(frozen: Frozen) -> float:
    """Share of the evidence carried by draws from the prior beyond what their share of Q explains."""
    weights = np.exp(frozen.log_weights - np.max(frozen.log_weights))
    expected = frozen.proposal.num_draws[0] / sum(frozen.proposal.num_draws)
    expected *= np.exp(np.minimum(frozen.draws.log_q[:, 0] - frozen.draws.log_Q, 700.0))
    from_prior = frozen.draws.component == 0
    return float((np.sum(weights[from_prior]) - np.sum(weights * expected)) / np.sum(weights))


def _info(phase: Phase, state: State, fitted: FlowInfo | None) -> StepInfo:
    log_weights = state.points.log_posterior_weights
    held_out, is_gaussian = (fitted.log_prob, fitted.is_gaussian) if fitted else (float("nan"), False)
    return StepInfo(
        str(phase),
        state.num_calls,
        state.contours[-1],
        float(np.logaddexp.reduce(log_weights)),
        effective_sample_size(log_weights),
        held_out,
        is_gaussian,
    )
