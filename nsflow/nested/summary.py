"""From a state to a result, with its alarms."""

from collections.abc import Sequence
from dataclasses import asdict

import numpy as np
from jaxtyping import Float
from scipy import special

from nsflow.importance.evidence import Evidence, is_heavy, log_evidence
from nsflow.nested.final import POOR, unproposed
from nsflow.nested.mode_search import unmet_share
from nsflow.nested.points import LARGEST, share_of_excess
from nsflow.nested.state import Phase, State, StepInfo
from nsflow.prior.prior import Prior
from nsflow.results.results import Results
from nsflow.results.versions import version_of

BEYOND = 1e-3  # share of the posterior where a prior's map ends: an error of log Z of the same size
UNSEEN = 0.1  # share of the evidence that may lie above the ladder's end and the highest draws
NUM_HIGHEST = 100  # of these
UNFOLLOWED = 0.005  # share of the evidence on a ridge beyond the draws: half of the error at an ESS of 10 000


def summarise(
    state: State,
    trace: Sequence[StepInfo] = (),
    seed: int | None = None,
    stop_reason: str = "",
    failure: str | None = None,
) -> Results:
    """Turn a state into a result, finished or not.

    Args:
        state: The run.
        trace: What each step did.
        seed: The seed, for the record.
        stop_reason: Why the run ended.
        failure: What ended the run before its time.

    Returns:
        The result. Without a posterior round it rests on the training points, and says so in its alarms.
    """
    prior, fresh = state.problem.prior, state.fresh
    if fresh is not None:
        x, log_likelihood, log_weights = fresh.x, fresh.log_likelihood, fresh.log_weights
        derived = fresh.derived
        num_draws, estimate = int(np.sum(fresh.num_draws)), fresh.estimate()
    else:
        num_draws = sum(state.num_draws)
        x, log_likelihood = state.points.x, state.points.log_likelihood
        log_weights = state.points.log_posterior_weights + np.log(num_draws)
        estimate = log_evidence(log_weights, num_draws=np.array([num_draws]))
        derived = dict.fromkeys(state.derived, np.full(len(x), np.nan))  # training points do not carry them
    return Results(
        names=(*prior.names, *derived),
        labels=(*prior.labels, *derived),
        derived=tuple(derived),
        samples=np.column_stack([prior.flatten(prior.forward(x)), *derived.values()]),
        log_likelihood=log_likelihood,
        log_weights=log_weights,
        num_draws=num_draws,
        num_calls=state.num_calls,
        finished=state.phase is Phase.FINISHED,
        stop_reason=failure or stop_reason,
        alarms=(
            *_alarms(state, estimate),
            *limit_alarms(prior, x, log_weights),
            *([f"the run was stopped by a failure: {failure}"] if failure else []),
        ),
        seed=seed,
        settings=asdict(state.settings),
        versions={name: version_of(name) for name in ("nsflow", "jax", "flax", "optax", "numpyro")},
        trace=[info._asdict() for info in trace],
        **estimate._asdict(),
    )


def _alarms(state: State, estimate: Evidence) -> tuple[str, ...]:
    """What a reader must know before trusting the evidence."""
    alarms = []
    num_first = state.settings.num_first(state.problem.prior.num_dims)
    if state.points.num_prior < num_first:
        alarms.append(f"only {state.points.num_prior} of {num_first} first draws from the prior were evaluated")
    if state.fresh is None:
        alarms.append("no fresh draws: logZ rests on points that trained their own proposals, biased low by them")
    alarms += weight_alarms(estimate)
    if state.frozen is not None and state.frozen.num_batches > 0:
        share, num_draws = state.frozen.shares[0], state.frozen.proposal.num_draws
        # A prior that is a large part of the mixture was chosen for it: the likelihood says little there.
        if share > max(0.05, 5 * num_draws[0] / sum(num_draws)):
            alarms.append(f"only the prior proposes {share:.0%} of the evidence: the flows miss it")
        efficiency = state.frozen.efficiency
        if efficiency < POOR:
            alarms.append(f"only {efficiency:.1%} of the final draws count: evidence may be missing where few are made")
        unproposed_share = unproposed(state, estimate)
        if unproposed_share > 0:
            alarms.append(f"{unproposed_share:.0%} of the evidence seen in training lies where hardly any draw can")
    # Rounds before a ridge was found lacked it; those after it say whether it was all that they lacked.
    missed = max((_lacks(r.estimate(), estimate) for r in state.rounds[state.num_outdated :]), default=0.0)
    if missed > 0:
        alarms.append(f"a posterior round missed {missed:.0%} of the evidence found later: more may be missing")
    if state.beyond > UNFOLLOWED:
        alarms.append(f"a ridge with {state.beyond:.1%} of the evidence goes on where hardly any draw is made")
    unseen = min(state.unseen, _above_draws(state)) if state.unseen > UNSEEN else 0.0
    if unseen > UNSEEN:
        alarms.append(f"the ladder stopped where {unseen:.0%} of the evidence may lie above it: a spike may be lost")
    unmet = unmet_share(state)
    if unmet > 0:
        alarms.append(f"so few climbs met a mode that {unmet:.0%} of the evidence may lie in others like it")
    only = _only_value(state)
    if only is not None:
        value = f"{only + 0.0:.10g}"  # of -0 as of 0
        alarms.append(f"the likelihood had the same value, log L = {value}, at every draw that it did not exclude")
    num_nan = sum(len(next(iter(params.values()))) for params in state.nan_params if params)
    if num_nan:
        alarms.append(f"the likelihood was NaN at {num_nan} points, counted as -inf")
    return tuple(alarms)


def _above_draws(state: State) -> float:
    """Share of the evidence that may lie above the final draws: they may have seen what the ladder ended below.

    Their highest ones are looked at as the ladder's were: how much would their prior mass hold, had it the highest
    likelihood ever met? A ladder on a Gaussian of width 1e-9 ends where its points are as close as those of a pole are.
    """
    fresh = state.fresh
    if fresh is None:
        return 1.0
    order = np.argsort(-fresh.log_likelihood, kind="stable")[:NUM_HIGHEST]
    log_mass = (fresh.log_weights - fresh.log_likelihood)[order]
    highest = max(np.max(fresh.log_likelihood), np.max(state.points.log_likelihood))
    log_weights = [highest + np.logaddexp.reduce(log_mass), np.logaddexp.reduce(fresh.log_weights[order])]
    potential, share = np.exp(np.minimum(log_weights - np.logaddexp.reduce(fresh.log_weights), LARGEST))
    return share_of_excess(potential - share)


def _only_value(state: State) -> float | None:
    """The one finite value of log L that all draws have; None if they have several, or there is but one draw."""
    log_likelihood = state.points.log_likelihood
    if state.fresh is not None:
        log_likelihood = np.concatenate([log_likelihood, state.fresh.log_likelihood])
    finite = log_likelihood[log_likelihood > -np.inf]
    return float(finite[0]) if len(finite) > 1 and np.ptp(finite) == 0 else None


def weight_alarms(estimate: Evidence) -> list[str]:
    """What the weights alone tell.

    Args:
        estimate: The evidence.

    Returns:
        The alarms.
    """
    alarms = []
    if is_heavy(estimate):
        heaviest = estimate.max_weight_share * estimate.ess
        alarms.append(
            f"k-hat = {estimate.khat:.2f}, and the heaviest draw counts for {heaviest:.0f}: "
            "the weights' tail is too heavy for the quoted error"
        )
    if estimate.max_weight_share > 0.05:
        alarms.append(f"one draw carries {estimate.max_weight_share:.0%} of the evidence")
    return alarms


def limit_alarms(prior: Prior, x: Float[np.ndarray, "n d"], log_weights: Float[np.ndarray, " n"]) -> list[str]:
    """Which parameters have posterior where the prior's map to their values ends.

    Args:
        prior: The prior.
        x: Latent points, shape ``(n, d)``.
        log_weights: Their posterior weights, nats, shape ``(n,)``.

    Returns:
        The alarms.
    """
    log_total = np.logaddexp.reduce(log_weights)
    weights = np.exp(log_weights - log_total) if log_total > -np.inf else np.zeros(len(x))
    alarms = []
    for name, low, high, z in zip(prior.latent_names, *prior.latent_limits, x.T, strict=True):
        for side, limit, is_beyond in (("lower", low, z < low), ("upper", high, z > high)):
            share = float(weights @ is_beyond)
            if share > BEYOND:
                alarms.append(
                    f"the prior of {name!r} ends in its {side} tail of {special.ndtr(-abs(limit)):.0e}: {share:.1%} of "
                    "the posterior lies beyond, where log Z is wrong"
                )
    return list(dict.fromkeys(alarms))


def _lacks(early: Evidence, late: Evidence) -> float:
    """Share of the evidence that an early estimate lacks; zero unless that is four times its error."""
    lack = late.logZ - early.logZ
    return float(-np.expm1(-lack)) if lack > max(0.05, 4 * np.hypot(early.logZ_err, late.logZ_err)) else 0.0
