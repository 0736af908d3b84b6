"""The loop: a ladder of contours, posterior rounds, and fresh draws from frozen proposals."""

import enum
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array
from scipy.special import logsumexp

from nsflow import evidence, flow, likelihood
from nsflow.evidence import Evidence, log_evidence
from nsflow.flow import Flow
from nsflow.likelihood import Likelihood
from nsflow.points import Contour, Points, evidence_share, join, next_contour, truncate
from nsflow.prior import Prior
from nsflow.proposal import Draws, MetaProposal, PriorProposal, optimal_weights
from nsflow.train import Training
from nsflow.velocity import Architecture


@dataclass(frozen=True)
class Settings:
    """Options of the sampler; the defaults are meant for every problem.

    Args:
        ess: Effective sample size at which a run is finished.
        max_calls: Likelihood calls after which it ends all the same, marked unfinished.
        num_prior: Draws from the prior at the start.
        num_live: Draws of each level of the ladder: the safety knob.
        compression: Largest and smallest log of the prior mass that one level keeps of the one before.
        prior_share: Share of the prior among the draws of each level and round.
        rounds: Draws of the posterior rounds as a share of `ess`; the last one only weighs the mixture.
        max_restarts: How often an alarm in the frozen phase leads back to training.
        ladder: Training of the levels.
        posterior: Training of the posterior rounds.
    """

    ess: float = 10_000
    max_calls: int = 1_000_000
    num_prior: int = 2000
    num_live: int = 1000
    compression: tuple[float, float] = (-2.0, -0.7)
    prior_share: float = 0.05
    rounds: tuple[float, ...] = (0.1, 0.2, 0.1)
    max_restarts: int = 2
    ladder: Training = field(
        default_factory=lambda: Training(
            architecture=Architecture(width=64), num_steps=600, steps_per_score=150, patience=1, held_out=0.2
        )
    )
    posterior: Training = field(default_factory=Training)


class Problem(NamedTuple):
    """What is to be computed: the likelihood of the data and the prior of its parameters."""

    likelihood: Likelihood
    prior: Prior


class Phase(enum.StrEnum):
    """Where a run is."""

    LADDER = "ladder"
    POSTERIOR = "posterior"
    FROZEN = "frozen"
    FINISHED = "finished"


class Frozen(NamedTuple):
    """Fresh draws of proposals that are no longer trained: what the headline rests on."""

    proposal: MetaProposal
    indices: tuple[int, ...]  # which components of the state the proposal mixes
    draws: Draws
    log_likelihood: np.ndarray  # (n,)
    log_weights: np.ndarray  # (n,), log of likelihood times prior over Q, nats
    num_batches: int

    @property
    def num_draws(self) -> np.ndarray:
        """Draws of each component, dropped ones included."""
        return self.num_batches * np.asarray(self.proposal.num_draws)


@dataclass(frozen=True)
class State:
    """Everything that the next step needs."""

    problem: Problem
    settings: Settings
    phase: Phase
    points: Points
    components: tuple[Any, ...]  # the prior, then every flow in the order of training
    num_draws: tuple[int, ...]  # draws of each component in `points`
    contour: float  # nats
    num_levels: int  # flows of the ladder
    waited: int  # batches since the contour moved
    round: int
    frozen: Frozen | None
    restarts: int
    num_calls: int
    nan_params: tuple[dict[str, np.ndarray], ...]
    alarms: tuple[str, ...] = ()


class StepInfo(NamedTuple):
    """What one step did."""

    phase: str
    num_calls: int  # so far
    contour: float  # nats
    logZ: float  # nats; a guide only, but for the frozen phase
    ess: float  # of the same points
    log_prob: float  # held-out log-density of the flow trained in this step, nats; NaN if none was
    gaussian: bool  # whether that flow is a Gaussian


# ------------------------------------------------------------- the loop


def init(key: Array, problem: Problem, settings: Settings = Settings()) -> State:  # noqa: B008
    prior = PriorProposal(problem.prior)
    x, log_prior = prior.sample_and_log_prob(key, settings.num_prior)
    checked = likelihood.check(problem.likelihood, _rows(problem.prior.forward(x), slice(0, 3)))
    result = likelihood.evaluate(problem.likelihood, problem.prior.forward(x))
    likelihood.require_finite(result.log_likelihood)
    return State(
        problem=problem,
        settings=settings,
        phase=Phase.LADDER,
        points=Points(x, result.log_likelihood, log_prior, np.full(len(x), -np.inf), settings.num_prior),
        components=(prior,),
        num_draws=(settings.num_prior,),
        contour=-np.inf,
        num_levels=0,
        waited=0,
        round=0,
        frozen=None,
        restarts=0,
        num_calls=len(x) + checked,
        nan_params=(result.nan_params,),
    )


def step(key: Array, state: State) -> tuple[State, StepInfo]:
    return {Phase.LADDER: _climb, Phase.POSTERIOR: _refine, Phase.FROZEN: _draw_frozen}[state.phase](key, state)


def _climb(key: Array, state: State) -> tuple[State, StepInfo]:
    """One level of the ladder: raise the contour, train on the points above it, draw."""
    settings, points = state.settings, state.points
    d = state.problem.prior.num_dims
    contour = next_contour(points, state.contour, compression=settings.compression, min_ess=max(100.0, 25.0 * d))
    if evidence_share(points, contour.log_likelihood) < 0.5 or contour.log_mass > -0.1:
        return _refine(key, replace(state, phase=Phase.POSTERIOR))
    above = points.log_likelihood >= contour.log_likelihood
    training_set = points.select(above)
    key_fit, key_draw = jax.random.split(key)
    new, info = flow.fit(
        key_fit,
        training_set.x,
        truncate(training_set.log_prior_weights),
        training=settings.ladder,
        initial=_warm_start(state, settings.ladder),
    )
    state = _add(replace(state, contour=contour.log_likelihood, num_levels=state.num_levels + 1), new)
    num_prior = int(settings.prior_share * settings.num_live)
    state = _draw(key_draw, state, {0: num_prior, len(state.components) - 1: settings.num_live - num_prior}, above)
    return state, _info(state, state.points.log_posterior_weights, info)


def _refine(key: Array, state: State) -> tuple[State, StepInfo]:
    """One posterior round: train on all points with posterior weights, draw; after the last, freeze the mixture."""
    settings = state.settings
    log_weights = state.points.log_posterior_weights
    significant = log_weights > np.max(log_weights) - 12.0
    training_set = state.points.select(significant)
    key_fit, key_draw = jax.random.split(key)
    new, info = flow.fit(
        key_fit,
        training_set.x,
        truncate(training_set.log_posterior_weights),
        training=settings.posterior,
        initial=_warm_start(state, settings.posterior),
    )
    state = _add(state, new)
    size = int(max(500, settings.rounds[state.round] * settings.ess))
    num_prior, num_broad = int(settings.prior_share * size), int(2 * settings.prior_share * size)
    counts = {0: num_prior, state.num_levels: num_broad}
    last = len(state.components) - 1
    counts = {k: n for k, n in counts.items() if k < last} if state.num_levels else {0: num_prior}
    counts[last] = size - sum(counts.values())
    before = len(state.points.x)
    state = _draw(key_draw, state, counts, significant)
    state = replace(state, round=state.round + 1)
    info = _info(state, state.points.log_posterior_weights, info)
    if state.round == len(settings.rounds):
        state = _freeze(state, state.points.select(np.arange(len(state.points.x)) >= before))
    return state, info


def _freeze(state: State, pilot: Points) -> State:
    """Weigh the mixture of the frozen phase on points that trained none of its components."""
    last = len(state.components) - 1
    indices = tuple(sorted({0, state.num_levels, max(last - 1, 0), last}))
    proposal = MetaProposal(tuple(state.components[k] for k in indices), (1,) * len(indices))
    log_q = proposal.log_prob_each(pilot.x)
    floor = np.array([0.01 if k == 0 else 0.02 if k == state.num_levels else 0.0 for k in indices])
    log_Q = pilot.log_prior - pilot.log_prior_weights
    alpha = optimal_weights(log_q, pilot.log_likelihood + pilot.log_prior, log_Q, floor=floor)
    size = int(np.clip(state.settings.ess / 10, 200, 2000))
    counts = {k: round(size * a) for k, a in zip(indices, alpha, strict=True) if size * a >= 2}
    indices = tuple(counts)
    proposal = MetaProposal(tuple(state.components[k] for k in indices), tuple(counts.values()))
    d, j = pilot.x.shape[1], len(indices)
    empty = Draws(np.zeros((0, d)), np.zeros(0, int), np.zeros(0), np.zeros((0, j)))
    frozen = Frozen(proposal, indices, empty, np.zeros(0), np.zeros(0), 0)
    return replace(state, phase=Phase.FROZEN, frozen=frozen)


def _draw_frozen(key: Array, state: State) -> tuple[State, StepInfo]:
    """One batch of the frozen phase."""
    old = state.frozen
    draws = old.proposal.sample(key)
    result = _evaluate(state, draws.x)
    log_prior = np.asarray(state.problem.prior.latent_log_prob(draws.x))
    frozen = old._replace(
        draws=Draws(*(np.concatenate(pair) for pair in zip(old.draws, draws, strict=True))),
        log_likelihood=np.concatenate([old.log_likelihood, result.log_likelihood]),
        log_weights=np.concatenate([old.log_weights, result.log_likelihood + log_prior - draws.log_Q]),
        num_batches=old.num_batches + 1,
    )
    state = replace(
        state,
        frozen=frozen,
        num_calls=state.num_calls + len(draws.x),
        nan_params=(*state.nan_params, result.nan_params),
    )
    estimate = headline(state)
    if estimate.ess >= state.settings.ess:
        state = replace(state, phase=Phase.FINISHED)
    return state, StepInfo("frozen", state.num_calls, state.contour, estimate.logZ, estimate.ess, np.nan, False)


def headline(state: State) -> Evidence:
    frozen = state.frozen
    return log_evidence(frozen.log_weights, frozen.draws.component, frozen.num_draws)


# ------------------------------------------------------------- bookkeeping


def _warm_start(state: State, training: Training) -> Flow | None:
    return None


def _add(state: State, new: Flow) -> State:
    return replace(state, components=(*state.components, new), num_draws=(*state.num_draws, 0))


def _evaluate(state: State, x: np.ndarray) -> likelihood.Evaluation:
    return likelihood.evaluate(state.problem.likelihood, state.problem.prior.forward(x))


def _rows(params: dict[str, Any], rows: slice) -> dict[str, Any]:
    return {name: np.asarray(value)[rows] for name, value in params.items()}


WINDOW = 3


def _draw(key: Array, state: State, counts: dict[int, int], active: np.ndarray) -> State:
    """Draw from some components, evaluate, and update the counted density of new and active old points."""
    components = state.components
    proposal = MetaProposal(tuple(components[k] for k in counts), tuple(counts.values()))
    draws = proposal.sample(key)
    result = _evaluate(state, draws.x)
    totals = np.array(state.num_draws)
    for k, n in counts.items():
        totals[k] += n
    log_q = dict(zip(counts, draws.log_q.T, strict=True))
    recent = [k for k in range(max(1, len(components) - WINDOW), len(components)) if k not in counts]
    if recent:
        others = MetaProposal(tuple(components[k] for k in recent), (1,) * len(recent))
        log_q |= dict(zip(recent, others.log_prob_each(draws.x).T, strict=True))
    log_prior = log_q.pop(0)
    log_flows = logsumexp([np.log(totals[k]) + q for k, q in log_q.items() if totals[k] > 0], axis=0)
    points = state.points
    old = points.log_flows.copy()
    for k, n in counts.items():
        if k > 0:
            q = MetaProposal((components[k],), (n,)).log_prob_each(points.x[active])[:, 0]
            old[active] = np.logaddexp(old[active], np.log(n) + q)
    points = points._replace(log_flows=old, num_prior=int(totals[0]))
    new = Points(draws.x, result.log_likelihood, log_prior, log_flows, int(totals[0]))
    return replace(
        state,
        points=join(points, new),
        num_draws=tuple(int(n) for n in totals),
        num_calls=state.num_calls + len(draws.x),
        nan_params=(*state.nan_params, result.nan_params),
    )


def _info(state: State, log_weights: np.ndarray, fitted: flow.FlowInfo) -> StepInfo:
    return StepInfo(
        str(state.phase),
        state.num_calls,
        state.contour,
        float(logsumexp(log_weights)),
        evidence.effective_sample_size(log_weights),
        fitted.log_prob,
        fitted.is_gaussian,
    )
