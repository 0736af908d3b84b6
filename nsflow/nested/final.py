"""Last phase: draws from frozen proposals, until they and those of the posterior rounds reach the target."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Array

from nsflow.importance.evidence import Evidence, is_heavy
from nsflow.importance.weights import truncate
from nsflow.nested.draws import Batches
from nsflow.nested.scouting import unexplained
from nsflow.nested.state import Phase, Settings, State, StepInfo, extend, learn
from nsflow.proposals.rejection import at_most, expected_calls

POOR = 0.1  # efficiency of the frozen draws below which more training is tried, and an alarm sounds if that is no help
NUM_CHECKED = 1000  # training points at which the density of the frozen mixture is looked at


def draw_frozen(key: Array, state: State) -> tuple[State, StepInfo]:
    """Draw one batch or few; when those planned are drawn, finish, plan more, or go back to training."""
    assert state.frozen is not None
    state, frozen = extend(key, state, state.frozen, _num_at_once(state))
    state = replace(state, frozen=frozen)
    if frozen.num_batches < state.num_planned:
        return state, _describe(state)
    own = frozen.estimate()
    if state.num_restarts < state.settings.max_restarts and _needs_training(frozen, own):
        return _restart(state), _describe(state)
    if not state.credits:
        state = replace(state, credits=_credits(state.rounds, frozen))
    info = _describe(state)
    missing = _missing(state.settings, info.ess, info.logZ_err)
    if missing > 0:
        return replace(state, num_planned=_plan(frozen.num_batches, own.ess, missing)), info
    if state.num_restarts < state.settings.max_restarts and _is_alarming(state):
        return _restart(state), info
    return replace(state, phase=Phase.FINISHED), info


def reopen(state: State) -> State:
    """Take up a finished run again where its settings ask for more by now."""
    assert state.frozen is not None
    now, frozen = _describe(state), state.frozen
    missing = _missing(state.settings, now.ess, now.logZ_err)
    if missing <= 0:
        return state
    return replace(state, phase=Phase.FROZEN, num_planned=_plan(frozen.num_batches, frozen.estimate().ess, missing))


def _missing(settings: Settings, ess: float, logZ_err: float) -> float:
    """Effective samples that the targets still ask for: the error falls with the root of their number."""
    missing = settings.ess - ess
    if settings.logZ_err is None:
        return missing
    return max(missing, max(ess, 1.0) * ((logZ_err / settings.logZ_err) ** 2 - 1))


def _describe(state: State) -> StepInfo:
    """What a batch did, as the draws that count see it: the last one says what the result will."""
    assert state.fresh is not None
    now = state.fresh.estimate()
    held_out = float("nan")
    return StepInfo(
        str(Phase.FROZEN), state.num_calls, state.contours[-1], now.logZ, now.ess, held_out, False, now.logZ_err
    )


def _credits(rounds: Sequence[Batches], frozen: Batches) -> tuple[float, ...]:
    r"""Worth of a draw of each round in frozen draws: the ratio of the weights' second moments.

    .. math:: c_r = \frac{E_Q[f^2 / Q^2]}{E_Q[f^2 / (Q M_r)]}, \qquad f = L \pi,

    where M_r is the mixture of round r and Q the frozen one, whose draws alone decide. A round that judged itself would
    be left out when a heavy weight has come, and the evidence would be low by it.
    """
    log_weights, draws = frozen.log_weights, frozen.draws
    own = np.logaddexp.reduce(2 * log_weights)
    if own == -np.inf:  # no evidence in the frozen draws tells nothing of the rounds
        return (1.0,) * len(rounds)
    moments = [np.logaddexp.reduce(2 * log_weights + draws.log_Q - r.proposal.log_prob(draws.x)) for r in rounds]
    return tuple(float(np.exp(own - moment)) for moment in moments)


def _num_at_once(state: State) -> int:
    """Batches of one step: a twentieth of those drawn.

    A step copies and looks at all draws: one batch at a time, a call took 17 microseconds after a million of them
    instead of 2.
    """
    assert state.frozen is not None
    num_batches = state.frozen.num_batches
    return int(np.clip(num_batches // 20, 1, max(1, state.num_planned - num_batches)))


def largest_batch(state: State) -> int:
    """Likelihood calls that one step will not exceed."""
    assert state.frozen is not None
    return at_most(_num_at_once(state) * expected_calls(state.frozen.proposal))


def _plan(num_batches: int, ess: float, missing: int | float) -> int:
    """Decide after how many batches to look at the target again: when it should be met, at most twice as many.

    A run that looked after each batch would stop when no heavy weight has come for a while: low by
    mu_3 / (n (1 + cv^2)), where mu_3 is the third moment of the weights over their mean.
    """
    wanted = num_batches * (1 + 1.02 * missing / max(ess, 1.0))
    return int(np.clip(np.ceil(wanted), num_batches + 1, 2 * num_batches))


def _needs_training(frozen: Batches, estimate: Evidence) -> bool:
    """Whether the weights say that the mixture misses something.

    Asking seldom matters: what a run does at its first heavy weight depends on the weights that it averages.
    """
    num_calls = frozen.num_batches * expected_calls(frozen.proposal)
    share = estimate.max_weight_share
    # A few hundred draws of light tails have a k-hat of 0.5 by chance as often as not.
    is_heavy = (estimate.khat > 0.7 and share > 0.02) or (estimate.khat > 0.5 and share > 0.005 and num_calls > 4000)
    return bool(is_heavy or estimate.ess < POOR * num_calls)


def _is_alarming(state: State) -> bool:
    """Whether the result would have an alarm for heavy weights, which training on all draws so far may cure.

    Kernels on a few hundred points leave gaps beside an edge of zero likelihood: one run in eight of half Gaussians
    ended with draws there that counted for tens.
    """
    assert state.fresh is not None
    return is_heavy(state.fresh.estimate())


def unproposed(state: State, estimate: Evidence) -> float:
    r"""Share of the evidence seen in training that lies where hardly any of the frozen draws can.

    .. math:: \sum_i W_i \, 1\Bigl[\frac{f(x_i)}{Q(x_i)} > c \hat Z\Bigr], \qquad c = \max(100, \mathrm{ESS} / 50),

    with the training points' posterior weights W. One draw there would carry the evidence of c ordinary ones. The
    weights of the draws cannot tell, as those that would are not drawn: a funnel without its neck had a k-hat of 0.25.

    Args:
        state: A run with frozen draws.
        estimate: The evidence of these.

    Returns:
        The share, zero if it is less than 0.01 beyond twice its error.
    """
    assert state.frozen is not None
    log_weights = truncate(state.points.log_posterior_weights)
    weights = np.exp(log_weights - np.logaddexp.reduce(log_weights))
    ess = 1 / np.sum(weights**2)
    # Systematic resampling: a thousand densities of a flow take a second.
    places = (np.arange(NUM_CHECKED) + 0.5) / NUM_CHECKED
    rows = np.searchsorted(np.cumsum(weights) / np.sum(weights), places)
    counts = np.bincount(rows, minlength=len(weights))
    points = state.points.select(counts > 0)
    log_ratio = points.log_likelihood + points.log_prior - state.frozen.proposal.log_prob(points.x) - estimate.logZ
    is_rare = log_ratio > np.log(max(100, estimate.ess / 50))
    share = np.sum(counts[counts > 0][is_rare]) / NUM_CHECKED
    return float(share) if share > 0.01 + 2 * np.sqrt(share / min(ess, NUM_CHECKED)) else 0.0


def _restart(state: State) -> State:
    """Give the frozen draws to training and make one or two rounds more, after a climb if one met an unknown mode."""
    frozen = state.frozen
    assert frozen is not None
    state = learn(state, frozen, state.points.matters)
    state = replace(state, rounds=(*state.rounds, frozen), frozen=None)
    num_rounds = max(0, state.settings.max_rounds - 2)
    phase = Phase.SCOUTING if unexplained(state) else Phase.POSTERIOR
    return replace(state, phase=phase, num_rounds=num_rounds, num_restarts=state.num_restarts + 1)
