"""What a run is made of: its problem, its settings, and all that the next step needs to know."""

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import NamedTuple, no_type_check

import jax
import numpy as np
from jaxtyping import Array, Bool, Float

from nsflow.densities.density import Proposal, log_prob
from nsflow.flow.flow import FlowInfo
from nsflow.flow.training import Training
from nsflow.importance.weights import effective_sample_size
from nsflow.likelihood.batch import join_derived
from nsflow.likelihood.likelihood import Likelihood, evaluate
from nsflow.modes.modes import Mode
from nsflow.nested.draws import Batches, Fresh, pool
from nsflow.nested.points import Points, join
from nsflow.numerics.arguments import Rule, instance, integer, optional, real, require_memory, settle, several
from nsflow.numerics.storable import storable
from nsflow.prior.prior import Prior
from nsflow.proposals.estimators import AbstractEstimator
from nsflow.proposals.meta_proposal import Draws, MetaProposal

NUM_COPIES = 6  # of the draws, while one batch is mapped, evaluated and joined to the others
NUM_COLUMNS = 8  # of a draw beside its coordinates


def _at_least(smallest: int) -> Rule:
    """Rule of a number with a lower bound."""
    return real(lambda x: smallest <= x < np.inf, f"a finite number of at least {smallest}")


def _positive(unit: str) -> Rule:
    """Rule of a number that may be left out."""
    return optional(real(lambda x: 0 < x < np.inf, f"a positive, finite number of {unit}, or None"))


RULES = {
    "ess": _at_least(2),
    "logZ_err": _positive("nats"),
    "max_calls": _at_least(1),
    "max_seconds": _positive("seconds"),
    "max_levels": optional(_at_least(1)),
    "num_prior": optional(integer(100)),
    "num_live": optional(integer(100)),
    "compression": several(
        real(lambda x: -np.inf < x < 0, "a negative number"),
        "two rising negative numbers",
        lambda items: len(items) == 2 and items[0] < items[1],
    ),
    "max_scouts": integer(0),
    "prior_share": real(lambda x: 0 < x <= 0.5, "a number in (0, 0.5]"),
    "kernel_dims": integer(0),
    "rounds": several(real(lambda x: 0 < x < np.inf, "a positive share"), "at least one positive share of `ess`", bool),
    "max_rounds": integer(1),
    "max_restarts": integer(0),
    "training": instance(Training, "an nsflow.Training"),
    "proposal": optional(
        instance(AbstractEstimator, "an nsflow.AbstractEstimator, which fits a density to weighted points")
    ),
}


@no_type_check  # its own messages come before a run-time checker's
@dataclass(frozen=True)
class Settings:
    """Options of the sampler; the defaults are meant for every problem.

    Args:
        ess: Effective sample size of fresh draws at which a run is finished.
        logZ_err: Error of the evidence, in nats, that a run must reach as well to be finished; any if left out.
        max_calls: Likelihood calls that a run never exceeds; one that would is returned unfinished.
        max_seconds: Wall-clock seconds of one call of `run` after which it returns unfinished; no limit if left out.
        max_levels: Levels of the ladder after which a run returns unfinished; no limit if left out.
        num_prior: Draws from the prior at the start. If left out 500 a dimension, and 2000 at most.
        num_live: Draws of each level of the ladder: the safety knob. If left out 600 in the dimensions of the kernels,
            beyond them 200 and 20 a dimension, at least 400. Beyond the posterior levels take a third and a half of it.
        compression: Logs of the smallest and the largest share of the prior mass that a level keeps, in nats.
        max_scouts: Largest number of draws from the prior in the search for modes that the ladder lost, and of calls of
            climbs from any of these where few climbs meet a mode twice.
        prior_share: Share of the prior among the draws of each level and round.
        kernel_dims: Largest dimension in which kernels propose on the levels; beyond it Gaussians do.
        rounds: Draws of the posterior rounds as shares of `ess`. Their draws count towards it. A round follows only
            while it promises to save a twentieth of all draws.
        max_rounds: Largest number of posterior rounds where most draws are still wasted; the last size is repeated.
        max_restarts: How often an alarm in the frozen phase leads back to training.
        training: How the flows of the posterior rounds are trained.
        proposal: What proposes in the posterior rounds instead of kernels, a Gaussian and flows: a
            :class:`nsflow.AbstractEstimator`. The prior, a broad level and scouted modes stay beside it.

    Raises:
        TypeError: If `training` is no :class:`nsflow.Training`, or `proposal` not an estimator.
        ValueError: If a value is out of range.

    Example:
        >>> Settings(ess=1000).max_calls
        1000000
    """

    ess: int | float = 10_000
    logZ_err: int | float | None = None
    max_calls: int | float = 1_000_000
    max_seconds: int | float | None = None
    max_levels: int | float | None = None
    num_prior: int | None = None
    num_live: int | None = None
    compression: tuple[float, float] = (-2.0, -0.7)
    max_scouts: int = 20_000
    prior_share: float = 0.05
    kernel_dims: int = 6
    rounds: tuple[float, ...] = (0.06, 0.12, 0.2)
    max_rounds: int = 10
    max_restarts: int = 2
    training: Training = field(default_factory=Training)
    proposal: AbstractEstimator | None = None

    def __post_init__(self) -> None:
        """Refuse values that no run could use."""
        settle(self, RULES)

    def num_first(self, num_dims: int) -> int:
        """Draws from the prior at the start in so many dimensions."""
        return self.num_prior or min(2000, 500 * num_dims)

    def require_memory(self, num_dims: int) -> None:
        """Refuse sizes of which this machine could not hold the draws in so many dimensions.

        Raises:
            ValueError: If the draws that an option asks for do not fit.
        """
        for name in ("num_prior", "num_live", "ess"):
            wanted = min(getattr(self, name) or 0, self.max_calls)
            require_memory(f"`{name}`", wanted, NUM_COPIES * 8 * (num_dims + NUM_COLUMNS))


PRIOR = 0  # index of the prior among the components of a state


@storable("problem")
class Problem(NamedTuple):
    """What is to be computed: the likelihood of the data and the prior of its parameters."""

    likelihood: Likelihood
    prior: Prior


class Phase(enum.StrEnum):
    """Where a run is."""

    LADDER = "ladder"
    SCOUTING = "scouting"
    POSTERIOR = "posterior"
    FROZEN = "frozen"
    FINISHED = "finished"


@storable("state")
@dataclass(frozen=True)
class State:
    """Everything that the next step needs. Steps return a new one; none is ever changed."""

    problem: Problem
    settings: Settings
    phase: Phase
    points: Points  # of the ladder and the posterior rounds
    components: tuple[Proposal, ...]  # the prior, then every flow in the order of training
    num_draws: tuple[int, ...]  # draws of each component among `points`
    num_calls: int
    nan_params: tuple[dict[str, np.ndarray], ...]  # parameters at which the likelihood was NaN
    contours: tuple[float, ...] = (-np.inf,)  # nats; component k of the ladder was trained above contour k
    trainings: tuple[tuple[int, ...], ...] = ()  # components that were trained together, in order
    has_looked_ahead: bool = False  # whether climbs have been made before the ladder
    unseen: float = 0.0  # share of the evidence that may lie above the ladder's end beyond what was seen there
    level_yield: float = 1.0  # share of the last level's draws above its contour
    modes: tuple[int, ...] = ()  # components on modes that scouting found
    summits: tuple[Mode, ...] = ()  # maxima that scouting has measured
    climbed: tuple[int, ...] = ()  # points from which scouting has climbed
    num_given: int = 0  # components before the ladder's, of a warm start or on maxima found ahead of it
    num_scouts: int = 0  # draws from the prior at which scouting ends if it finds nothing more
    num_explored: int = 0  # likelihood calls of climbs that were made in the place of such draws
    num_rounds: int = 0  # posterior rounds made
    num_waits: int = 0  # batches drawn since the contour last moved
    num_restarts: int = 0
    num_searches: int = 0  # searches for ridges made
    num_outdated: int = 0  # rounds made before the last ridge was found
    beyond: float = 0.0  # share of the evidence that the last of them saw where hardly any draw is made
    rounds: tuple[Batches, ...] = ()  # draws of the posterior rounds, as their proposals were then
    credits: tuple[float, ...] = ()  # how much a draw of each round counts, where a frozen one counts for one
    frozen: Batches | None = None
    derived: tuple[str, ...] = ()  # names of what the likelihood returned for the first draws beside log L
    num_planned: int = 1  # batches of the frozen phase after which the target is looked at next

    @property
    def fresh(self) -> Fresh | None:
        """Draws that did not train what proposed them; before the frozen phase those of the last round."""
        if self.frozen is not None and self.frozen.num_batches > 0:
            credits = self.credits or (0.0,) * len(self.rounds)
            return pool((*self.rounds, self.frozen), (*credits, 1.0))
        return pool(self.rounds[-1:], (1.0,)) if self.rounds else None

    def add(self, *new: Proposal) -> "State":
        """Append components, not yet drawn from."""
        return replace(self, components=(*self.components, *new), num_draws=(*self.num_draws, *(0 for _ in new)))

    def add_trained(self, *trained: Proposal) -> "State":
        """Append components that were trained together."""
        indices = tuple(range(len(self.components), len(self.components) + len(trained)))
        return replace(self.add(*trained), trainings=(*self.trainings, indices))

    @property
    def newest(self) -> tuple[int, ...]:
        """Components trained last; the prior before any is."""
        return self.trainings[-1] if self.trainings else (PRIOR,)


def draw_mode(key: Array, state: State, component: Proposal, num_draws: int) -> State:
    """Put a component on modes that hardly any point covers, and draw from it."""
    index = len(state.components)
    state = replace(state.add(component), modes=(*state.modes, index))
    return draw(key, state, {index: num_draws}, np.ones(len(state.points.x), bool))


def draw(key: Array, state: State, num_draws: dict[int, int], active: Bool[np.ndarray, " n"]) -> State:
    """Draw from some components, evaluate the likelihood, and join the points to the others.

    Args:
        key: JAX random key.
        state: The run.
        num_draws: Component -> number of draws.
        active: Old points that still matter, whose counted density learns of components drawn from for the first time.

    Returns:
        The run with its new points at the end of `points`.
    """
    state, batch = extend(key, state, no_batches(state, num_draws))
    return learn(state, batch, active)


def no_batches(state: State, num_draws: dict[int, int]) -> Batches:
    """Nothing yet of batches with so many draws of some components."""
    nothing, num_dims = np.zeros(0), state.problem.prior.num_dims
    draws = Draws(np.zeros((0, num_dims)), np.zeros(0, int), nothing, np.zeros((0, len(num_draws))))
    proposal = MetaProposal.of(state.components, tuple(num_draws), tuple(num_draws.values()))
    return Batches(proposal, tuple(num_draws), 0, draws, nothing, nothing)


def extend(key: Array, state: State, old: Batches, num_batches: int = 1) -> tuple[State, Batches]:
    """Draw further batches, one if not said otherwise, and count their likelihood calls."""
    keys = [key] if num_batches == 1 else list(jax.random.split(key, num_batches))
    parts = [old.proposal.sample(k) for k in keys]
    draws = Draws(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))
    result = evaluate(state.problem.likelihood, state.problem.prior.forward(draws.x))
    log_prior = np.asarray(state.problem.prior.latent_log_prob(draws.x))
    new = old._replace(
        num_batches=old.num_batches + num_batches,
        draws=Draws(*(np.concatenate(pair) for pair in zip(old.draws, draws, strict=True))),
        log_likelihood=np.concatenate([old.log_likelihood, result.log_likelihood]),
        log_prior=np.concatenate([old.log_prior, log_prior]),
        derived=join_derived([(len(old.log_prior), old.derived), (len(log_prior), result.derived)]),
    )
    state = replace(state, num_calls=state.num_calls + len(draws.x), nan_params=(*state.nan_params, result.nan_params))
    return state, new


def learn(state: State, batches: Batches, active: Bool[np.ndarray, " n"]) -> State:
    """Join draws to the training points."""
    num_draws = dict(zip(batches.components, (int(n) for n in batches.num_draws), strict=True))
    state = count(state, num_draws, active)
    log_q = dict(zip(batches.components, batches.draws.log_q.T, strict=True))
    mixture = log_mixture(state, batches.draws.x, log_q)
    is_prior = np.array(batches.components)[batches.draws.component] == PRIOR
    num_prior = state.points.num_prior
    new = Points(batches.draws.x, batches.log_likelihood, batches.log_prior, mixture, is_prior, num_prior)
    return replace(state, points=join(state.points, new))


def count(state: State, num_draws: dict[int, int], active: Bool[np.ndarray, " n"]) -> State:
    """Book draws on their components, and tell the active old points of components drawn from for the first time.

    Later draws from a component of the ladder change the counted density there by a few per cent: not worth its price.
    """
    totals = list(state.num_draws)
    points = state.points
    log_flows = points.log_flows.copy()
    for k, n in num_draws.items():
        if totals[k] == 0 and n > 0:
            log_q = log_prob(state.components[k], points.x[active])
            log_flows[active] = np.logaddexp(log_flows[active], np.log(n) + log_q)
        totals[k] += n
    return replace(state, points=points._replace(log_flows=log_flows, num_prior=totals[PRIOR]), num_draws=tuple(totals))


def log_mixture(
    state: State, x: Float[np.ndarray, "n d"], log_q: Mapping[int, Float[np.ndarray, " n"]] = MappingProxyType({})
) -> Float[np.ndarray, " n"]:
    """Sum the densities of the components but the prior, each times its draws, at new points.

    Args:
        state: The run.
        x: Points, shape ``(n, d)``.
        log_q: Densities that are at hand already, in nats.

    Returns:
        Log of the sum, in nats, shape ``(n,)``.
    """
    log_q = {k: q for k, q in log_q.items() if k != PRIOR}
    for k in range(PRIOR + 1, len(state.components)):
        if k not in log_q and state.num_draws[k] > 0:
            log_q[k] = log_prob(state.components[k], x)
    terms = [np.log(state.num_draws[k]) + q for k, q in log_q.items() if state.num_draws[k] > 0]
    return np.logaddexp.reduce(terms, axis=0) if terms else np.full(len(x), -np.inf)


@storable("step")
class StepInfo(NamedTuple):
    """What one step did."""

    phase: str
    num_calls: int  # so far
    contour: float  # nats
    logZ: float  # nats; before the frozen phase a guide only, biased by training
    ess: float  # of the same points
    held_out: float  # log-density of held-out points under the flow trained in this step, nats; NaN if none was
    is_gaussian: bool  # whether that flow is a Gaussian
    logZ_err: float = float("nan")  # nats, of the same points
    seconds: float = float("nan")  # since the run began


def describe(phase: Phase, state: State, fitted: FlowInfo | None = None) -> StepInfo:
    """What a step of the training phases did, as its points see it."""
    log_weights = state.points.log_posterior_weights
    ess = effective_sample_size(log_weights)
    held_out, is_gaussian = (fitted.log_prob, fitted.is_gaussian) if fitted else (float("nan"), False)
    return StepInfo(
        str(phase),
        state.num_calls,
        state.contours[-1],
        float(np.logaddexp.reduce(log_weights)),
        ess,
        held_out,
        is_gaussian,
        logZ_err=float(np.sqrt(max(1 / ess - 1 / len(log_weights), 0.0))) if ess > 0 else float("inf"),
    )
