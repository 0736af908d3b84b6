"""Last phase: fresh draws from frozen proposals, on which alone the headline rests."""

from dataclasses import replace

import numpy as np
from jaxtyping import Array

from nsflow.evidence import Evidence
from nsflow.likelihood import evaluate
from nsflow.proposal import Draws
from nsflow.state import Frozen, Phase, State, StepInfo, reclaim
from nsflow.thinning import at_most, expected_calls


def draw_frozen(key: Array, state: State) -> tuple[State, StepInfo]:
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


def largest_batch(state: State) -> int:
    """Likelihood calls that one batch will not exceed."""
    assert state.frozen is not None
    return at_most(expected_calls(state.frozen.proposal))


def _plan(frozen: Frozen, ess: float, target: int | float) -> Frozen:
    """Decide how many batches to draw before the target is looked at again: to the target, at most four times as many.

    A run that looked after each batch would stop when no heavy weight has come for a while: low by
    mu_3 / (n (1 + cv^2)), where mu_3 is the third moment of the weights over their mean.
    """
    wanted = np.ceil(1.02 * frozen.num_batches * target / max(ess, 1.0))
    return frozen._replace(num_planned=int(np.clip(wanted, frozen.num_batches + 1, 4 * frozen.num_batches)))


def _needs_training(frozen: Frozen, estimate: Evidence) -> bool:
    """Whether the weights say that the mixture misses something.

    Asking seldom matters: a run that stops at the first heavy weight throws away the very draw that would have
    corrected its evidence upwards, and the next frozen phase must find it again.
    """
    efficiency = estimate.ess / (frozen.num_batches * expected_calls(frozen.proposal))
    return bool((estimate.khat > 0.7 and estimate.max_weight_share > 0.01) or efficiency < 0.1)


def _restart(state: State) -> State:
    """Give the frozen draws to training and repeat the last two rounds."""
    log_weights = state.points.log_posterior_weights
    state = reclaim(state, log_weights > np.logaddexp.reduce(log_weights) - np.log(100 * len(log_weights)))
    num_rounds = max(0, state.settings.max_rounds - 2)
    return replace(state, phase=Phase.POSTERIOR, num_rounds=num_rounds, num_restarts=state.num_restarts + 1)
