"""Independent runs of one problem, joined into one result."""

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, no_type_check

import numpy as np

from nsflow.checkpoint.checkpoint import load_state
from nsflow.importance.evidence import Evidence
from nsflow.importance.pareto import pareto_khat
from nsflow.importance.weights import effective_sample_size
from nsflow.likelihood.journal import Journal, Recorded
from nsflow.likelihood.likelihood import Likelihood, as_likelihood
from nsflow.nested.draws import Batches, pool
from nsflow.nested.state import Phase, Problem, Settings, State
from nsflow.nested.summary import limit_alarms, weight_alarms
from nsflow.numerics.arguments import instance, shown
from nsflow.numerics.precision import float64
from nsflow.prior.periodic import turn
from nsflow.prior.prior import Prior
from nsflow.results.results import Results


@no_type_check  # its own messages come before a run-time checker's
@float64
def merge(
    runs: Sequence[Results | str | os.PathLike[str]],
    *,
    log_likelihood: Callable[..., Any] | Likelihood | None = None,
    prior: Prior | None = None,
    settings: Settings = Settings(),  # noqa: B008
) -> Results:
    r"""Join independent runs of the same problem, which differ in their seeds.

    Of results, each run's evidence counts in proportion to the number :math:`n_r` of its evaluated draws,

    .. math::
        \hat Z = \sum_r p_r \hat Z_r, \qquad p_r = n_r / \sum_s n_s, \qquad
        \sigma^2 = \sum_r p_r^2 \sigma_r^2 .

    Every :math:`\hat Z_r` is unbiased and so is their average, as long as the shares do not look at the weights: shares
    by the quoted errors or sample sizes would favour a run that no heavy weight has met, and be low for it.

    Of checkpoints the proposals are at hand as well. Then every frozen draw is weighed by the union of all frozen
    mixtures,

    .. math::
        \hat Z = \frac1N \sum_r \sum_i \frac{L(x_{ri})\,\pi(x_{ri})}{Q(x_{ri})}, \qquad
        Q = \sum_r \frac{N_r}{N} Q_r,

    the balance heuristic: what one run proposes well needs no heavy weights from another that missed it. It is unbiased
    since no draw has trained any of the :math:`Q_r`: its own was frozen before, and the others are independent. Draws
    of the posterior rounds, which trained their own run's Q, keep the densities of their own time and count for as many
    draws of the union as the second moments of the weights say. The union's draws decide that, so that the rounds of a
    run that has missed something hardly count.

    Args:
        runs: At least two results, or at least two paths of checkpoints.
        log_likelihood: The likelihood, for checkpoints; it is called at three points of each.
        prior: The prior, for checkpoints.
        settings: The settings of the runs, for checkpoints.

    Returns:
        The merged result. Runs that disagree by more than four errors are an alarm.

    Raises:
        TypeError: If there is anything but results or paths, or the problem of checkpoints is missing.
        ValueError: If there are fewer than two, they have different parameters, are the same run, or a checkpoint is
            not of this problem or has no frozen draws yet.

    Example:
        >>> x = np.linspace(-1, 1, 500)[:, None]
        >>> one, two = (Results(names=("x",), samples=x, log_likelihood=0 * x[:, 0], log_weights=0 * x[:, 0] + logZ,
        ...             num_draws=500, logZ=logZ, logZ_err=0.1, ess=500.0, num_calls=500) for logZ in (0.0, 0.1))
        >>> print(f"{merge([one, two]).logZ:.3f} +- {merge([one, two]).logZ_err:.3f}")
        0.051 +- 0.071

    References:
        Veach & Guibas (1995), *Optimally Combining Sampling Techniques for Monte Carlo Rendering*, Eq. 9.
    """
    if isinstance(runs, str | bytes) or not isinstance(runs, Sequence) or len(runs) < 2:
        raise ValueError(
            f"`merge` expected at least two runs; got {shown(runs)}. Give a list of results, or of checkpoints."
        )
    instance(Settings, "nsflow.Settings")("`merge` for its `settings`", settings)
    if all(isinstance(run, Results) for run in runs):
        return _pooled(runs)
    if not all(isinstance(run, str | os.PathLike) for run in runs):
        kinds = sorted({type(run).__name__ for run in runs})
        raise TypeError(f"`merge` expected results only or paths of checkpoints only; got {kinds}.")
    if log_likelihood is None or not isinstance(prior, Prior):
        raise TypeError("`merge` expected `log_likelihood` and `prior` beside checkpoints, as `run` takes them.")
    problem = Problem(Recorded(as_likelihood(log_likelihood), Journal()), prior)
    loaded = [load_state(run, problem, settings) for run in runs]
    seeds = [seed for _, seed in loaded]
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"`merge` expected independent runs, of different seeds; got seeds {seeds}.")
    return _union([state for state, _ in loaded], seeds)


def _pooled(results: Sequence[Results]) -> Results:
    first = results[0]
    for i, result in enumerate(results):
        if result.names != first.names:
            raise ValueError(f"`merge` expected runs of the same parameters; got {first.names} and {result.names}.")
        if any(np.array_equal(result.log_weights, other.log_weights) for other in results[:i]):
            raise ValueError(
                f"`merge` expected independent runs; run {i} is the same as an earlier one. Change the seed."
            )
    num_draws = sum(result.num_draws for result in results)
    shares = np.array([len(result.log_weights) for result in results])
    shares = shares / np.sum(shares)
    # The mean of the weights over all draws is the evidence: a run's own mean, times its share.
    log_weights = np.concatenate(
        [r.log_weights + np.log(p * num_draws / r.num_draws) for r, p in zip(results, shares, strict=True)]
    )
    log_terms = np.array([r.logZ + np.log(p) for r, p in zip(results, shares, strict=True)])
    logZ = np.logaddexp.reduce(log_terms)
    estimate = Evidence(
        logZ=float(logZ),
        logZ_err=float(np.sqrt(np.sum((np.exp(log_terms - logZ) * [r.logZ_err for r in results]) ** 2))),
        ess=effective_sample_size(log_weights),
        khat=pareto_khat(log_weights, num_draws),
        max_weight_share=float(np.exp(np.max(log_weights) - np.logaddexp.reduce(log_weights))),
    )
    alarms = [f"run {i}: {alarm}" for i, result in enumerate(results) for alarm in result.alarms]
    return Results(
        names=first.names,
        labels=first.labels,
        derived=first.derived,
        samples=np.concatenate([result.samples for result in results]),
        log_likelihood=np.concatenate([result.log_likelihood for result in results]),
        log_weights=log_weights,
        num_draws=num_draws,
        num_calls=sum(result.num_calls for result in results),
        finished=all(result.finished for result in results),
        stop_reason=f"merged from {len(results)} results",
        alarms=(*alarms, *_disagreements([(r.logZ, r.logZ_err) for r in results])),
        settings={"runs": [{"seed": result.seed, **result.settings} for result in results]},
        versions=first.versions,
        **estimate._asdict(),
    )


def _union(states: Sequence[State], seeds: Sequence[int]) -> Results:
    frozen: list[tuple[Batches, Prior]] = []
    for state, seed in zip(states, seeds, strict=True):
        if state.frozen is None or state.frozen.num_batches == 0:
            raise ValueError(
                f"`merge` expected runs that have reached their last phase; that of seed {seed} has not yet."
            )
        frozen.append((state.frozen, state.problem.prior))
    rounds = [(b, state.problem.prior) for state in states for b in state.rounds]
    log_ratio = np.concatenate([_log_ratio(b.draws.x, prior, frozen) for b, prior in frozen])
    log_weights = np.concatenate([b.log_likelihood for b, _ in frozen]) - log_ratio
    credits = [1.0] * len(frozen)
    for one in rounds:
        log_M = np.concatenate([_log_ratio(b.draws.x, prior, [one]) for b, prior in frozen])
        log_moment = np.logaddexp.reduce(2 * log_weights + log_ratio - log_M)
        credits.append(float(np.exp(np.logaddexp.reduce(2 * log_weights) - log_moment)))
    batches, priors = [b for b, _ in (*frozen, *rounds)], [prior for _, prior in (*frozen, *rounds)]
    fresh = pool(batches, credits)
    # The frozen draws are pooled as the one mixture that they are: their own weights give way to those of the union.
    scale = np.sum(fresh.num_draws) / sum(c * np.sum(b.num_draws) for b, c in zip(batches, credits, strict=True))
    fresh.log_weights[: len(log_weights)] = log_weights + np.log(scale)
    estimate = fresh.estimate()
    params = np.concatenate([p.flatten(p.forward(b.draws.x)) for b, p in zip(batches, priors, strict=True)])
    limits = limit_alarms(priors[0], fresh.x, fresh.log_weights)  # the same wherever circles are cut open
    return Results(
        names=(*priors[0].names, *fresh.derived),
        labels=(*priors[0].labels, *fresh.derived),
        derived=tuple(fresh.derived),
        samples=np.column_stack([params, *fresh.derived.values()]),
        log_likelihood=fresh.log_likelihood,
        log_weights=fresh.log_weights,
        num_draws=int(np.sum(fresh.num_draws)),
        num_calls=sum(state.num_calls for state in states),
        finished=all(state.phase is Phase.FINISHED for state in states),
        stop_reason=f"merged from {len(states)} checkpoints",
        alarms=(*weight_alarms(estimate), *limits, *_disagreements([b.estimate()[:2] for b, _ in frozen])),
        settings={"runs": [{"seed": seed, **asdict(s.settings)} for s, seed in zip(states, seeds, strict=True)]},
        **estimate._asdict(),
    )


def _log_ratio(x: np.ndarray, prior: Prior, batches: Sequence[tuple[Batches, Prior]]) -> np.ndarray:
    """Log of Q / pi at latent points of one run; each run has cut the circles of periodic parameters open elsewhere."""
    total = sum(int(np.sum(b.num_draws)) for b, _ in batches)
    terms = []
    for b, other in batches:
        turns = prior.phases - other.phases
        seen = np.where(other.is_periodic, turn(x, turns), x) if np.any(turns) else x
        log_Q = b.proposal.log_prob(seen) - np.asarray(other.latent_log_prob(seen))
        terms.append(np.log(np.sum(b.num_draws) / total) + log_Q)
    return np.logaddexp.reduce(terms, axis=0)


def _disagreements(estimates: Sequence[tuple[float, ...]]) -> list[str]:
    """Pairs of runs whose evidences differ by more than four errors."""
    alarms = []
    for i, (logZ, error) in enumerate(estimates):
        for j, (other, other_error) in enumerate(estimates[:i]):
            if abs(logZ - other) > 4 * np.hypot(error, other_error):
                alarms.append(f"runs {j} and {i} disagree: logZ = {other:.3f} and {logZ:.3f}; one has missed something")
    return alarms
