"""What a nested sampling run with draws of known density amounts to: a second evidence, and tests of the first."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from nsflow.importance.pareto import pareto_khat

WINDOW = 0.7  # nats of compression that share the draws of one estimate
NUM_VOLUMES = 1000  # simulated prior volumes behind the classical error
SMALLEST_P = 1e-3  # of the insertion ranks
LARGEST_PULL = 3.5  # between the two evidences
LEAST_UNIQUE = 0.5  # share of distinct live points
LARGEST_KHAT = 0.5  # beyond it weights have an infinite variance


class Evidence(NamedTuple):
    """An evidence with its error."""

    logZ: float  # nats
    logZ_err: float  # nats
    khat: float  # tail index of the weights in each shell, averaged by its evidence


class LostMode(NamedTuple):
    """A maximum around which a run has less of the evidence than there is."""

    position: Any  # PyTree of one particle
    share: float  # of the evidence, by Laplace's approximation
    found: float  # share of the evidence that the run's samples have there


@dataclass(frozen=True)
class NestedResult:
    """A finished nested sampling run.

    Attributes
    ----------
    samples
        `anesthetic.NestedSamples`; the births of prior draws are NaN.
    logZ, logZ_err
        The classical evidence with its error from simulated prior volumes, nats.
    importance_logZ, importance_logZ_err
        That of the flow's draws, nats; :func:`importance_evidence`.
    num_calls
        Likelihood evaluations, those of the first live points and of searches for modes included.
    acceptance
        Mean share of accepted moves.
    khat
        Tail index of the weights of the flow's draws; beyond 0.5 these have an infinite variance.
    unique_fraction
        Smallest share of distinct live points.
    insertion_p_value, worst_insertion_p_value
        Of all insertion ranks, and of the worst stretch of as many as there are live points.
    num_dropped
        Points left out of `samples`, since nothing above their contour was found for them.
    lost_modes
        Of those known to :func:`nsflow.adapters.blackjax.add_modes` or found by `find_lost_modes`; empty unless one of
        these was called.
    alarms
        Reasons not to trust the evidence. One in a thousand correct runs has an insertion p-value below 1e-3, one in
        two thousand two evidences 3.5 errors apart.
    """

    samples: Any
    logZ: float
    logZ_err: float
    importance_logZ: float
    importance_logZ_err: float
    num_calls: int
    khat: float
    acceptance: float
    unique_fraction: float
    insertion_p_value: float
    worst_insertion_p_value: float
    num_dropped: int = 0
    lost_modes: tuple[LostMode, ...] = ()

    @property
    def alarms(self) -> tuple[str, ...]:
        """Reasons not to trust the evidence."""
        alarms = []
        error = np.hypot(self.logZ_err, self.importance_logZ_err)
        if not abs(self.logZ - self.importance_logZ) <= LARGEST_PULL * error:
            alarms.append("the classical evidence and that of the flow's draws disagree")
        if self.khat > LARGEST_KHAT:
            alarms.append(f"k-hat = {self.khat:.2f}: the flow's draws miss evidence, and their error is too small")
        if min(self.insertion_p_value, self.worst_insertion_p_value) < SMALLEST_P:
            alarms.append("insertion ranks are not uniform: make more inner steps")
        if self.unique_fraction < LEAST_UNIQUE:
            alarms.append(f"only {self.unique_fraction:.0%} of the live points were distinct: use a Mixture")
        if self.num_dropped:
            alarms.append(f"{self.num_dropped} points did not exceed their contour and were dropped: a plateau?")
        alarms += [
            f"a mode with {mode.share:.0%} of the evidence was lost, the run has {mode.found:.0%} there: "
            "use add_modes, more live points, or nsflow.run"
            for mode in self.lost_modes
        ]
        return tuple(alarms)

    def __str__(self) -> str:
        lines = [
            f"logZ           {self.logZ:.3f} +- {self.logZ_err:.3f} nats (live points)",
            f"               {self.importance_logZ:.3f} +- {self.importance_logZ_err:.3f} nats (the flow's draws)",
            f"calls          {self.num_calls}, acceptance {self.acceptance:.2f}, unique {self.unique_fraction:.2f}",
            f"k-hat          {self.khat:.2f}, of the weights of the flow's draws",
            f"insertion test p = {self.insertion_p_value:.2g}, worst stretch {self.worst_insertion_p_value:.2g}",
        ]
        return "\n".join(lines + [f"ALARM          {alarm}" for alarm in self.alarms])


def importance_evidence(
    prior_log_likelihood: Float[np.ndarray, " num_live"],
    contours: Float[np.ndarray, " num_steps"],
    log_likelihood: Float[np.ndarray, "num_steps n"],
    log_weight: Float[np.ndarray, "num_steps n"],
    compression: float,
) -> Evidence:
    r"""Sum the evidence over shells of likelihood, each by the draws of the flows trained just below it.

    .. math::
        \hat Z = \sum_j \frac{1}{N_j} \sum_{i \in j} 1[L_j < L_i \le L_{j+1}] \, \frac{L_i\, \pi(x_i)}{q_{s(i)}(x_i)} ,

    where the N_j draws of shell j come from the steps of the window that ends at its lower contour. The lowest shell
    has the draws from the prior, the highest no upper bound. No prior volume is estimated by counting, so the error is
    that of the weights, a fraction of nested sampling's.

    Parameters
    ----------
    prior_log_likelihood
        Of the first live points, nats.
    contours
        The contour of each step, nats.
    log_likelihood
        Of the draws of each step, nats.
    log_weight
        Log prior minus log flow density of each, nats; -inf for weight zero, NaN where none was drawn.
    compression
        Log prior volume that one step removes, nats.

    Returns
    -------
    The evidence; -inf with an infinite error where no draw carries any.

    Examples
    --------
    >>> flat = np.zeros((4, 5))
    >>> importance_evidence(np.zeros(10), np.full(4, -1.0), flat, flat, 0.1)[:2]
    (0.0, 0.0)

    References
    ----------
    Owen & Zhou (2000), "Safe and effective importance sampling", Section 2, for importance sampling in strata.
    """
    window = max(1, round(WINDOW / compression))
    ends = np.arange(window, len(contours) + 1, window)
    ends = ends if len(ends) else np.array([len(contours)])
    bounds = np.append(contours[ends - 1], np.inf)
    starts = np.append(0, ends[:-1])
    shells = [_shell(prior_log_likelihood, np.zeros_like(prior_log_likelihood), -np.inf, bounds[0])]
    for start, end, low, high in zip(starts, ends, bounds[:-1], bounds[1:], strict=True):
        rows = slice(start, end)
        shells.append(_shell(log_likelihood[rows].ravel(), log_weight[rows].ravel(), low, high))
    log_means, log_errors, khats = np.transpose(shells)
    logZ = float(np.logaddexp.reduce(log_means))
    if logZ == -np.inf:
        return Evidence(-np.inf, np.inf, np.nan)
    error = float(np.exp(0.5 * np.logaddexp.reduce(2 * log_errors) - logZ))
    # Too few weights for a tail have a k-hat of +inf, equal ones of -inf; neither may decide the average alone.
    return Evidence(logZ, error, float(np.nansum(np.exp(log_means - logZ) * np.clip(khats, 0, 1))))


def _shell(log_likelihood: np.ndarray, log_weight: np.ndarray, low: float, high: float) -> tuple[float, float, float]:
    """Log of the evidence between two contours, log of its standard error, and the tail of the weights above both."""
    is_drawn = ~np.isnan(log_weight)
    is_within = is_drawn & (log_likelihood > low) & (log_likelihood <= high)
    num_draws = np.sum(is_drawn)
    terms = np.where(is_within, log_likelihood + log_weight, -np.inf)[is_drawn]
    top = np.max(terms, initial=-np.inf)
    if top == -np.inf:
        return -np.inf, -np.inf, np.nan
    scaled = np.exp(terms - top)
    error = np.std(scaled) / np.sqrt(num_draws)
    khat = pareto_khat(log_weight[is_drawn & (log_likelihood > low)])
    return float(top + np.log(np.mean(scaled))), float(top + np.log(error)) if error > 0 else -np.inf, khat


def insertion_p_values(ranks: Float[np.ndarray, " n"], num_live: int) -> tuple[float, float]:
    """P-values of uniform insertion ranks: of all of them, and of the worst stretch of `num_live`.

    Parameters
    ----------
    ranks
        Ranks in (0, 1), in order of birth.
    num_live
        Number of live points.

    Returns
    -------
    The p-value of the Kolmogorov-Smirnov test of all ranks, and that of the worst stretch, corrected for their number.

    Examples
    --------
    >>> whole, worst = insertion_p_values(np.random.default_rng(0).random(2000), 500)
    >>> bool(whole > 0.01 and worst > 0.01)
    True

    References
    ----------
    Fowlie, Handley & Su (2020), "Nested sampling cross-checks using order statistics", Sections 3 and 4.
    """
    from anesthetic.utils import insertion_p_value

    index = np.minimum((ranks * num_live).astype(int), num_live - 1)
    whole = insertion_p_value(index, num_live)["p-value"]
    return float(whole), float(insertion_p_value(index, num_live, batch=1)["p-value"])


def nested_samples(position: Any, log_likelihood: Any, log_likelihood_birth: Any) -> Any:
    """An `anesthetic.NestedSamples` of dead and final live points, of those that lie above their birth.

    Parameters
    ----------
    position
        PyTree of parameters, one row a point.
    log_likelihood
        Of each point, nats.
    log_likelihood_birth
        Contour that each was drawn above, nats; NaN for draws from the prior.

    Returns
    -------
    The samples, with a column for each scalar of the tree.
    """
    import anesthetic

    leaves = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(position)]
    table = np.concatenate([leaf.reshape(len(leaf), -1) for leaf in leaves], axis=1)
    is_valid = ~(log_likelihood <= log_likelihood_birth)  # births of prior draws are NaN
    samples = anesthetic.NestedSamples(
        table[is_valid],
        columns=column_names(jax.tree.map(lambda leaf: leaf[0], position)),
        logL=np.asarray(log_likelihood, np.float64)[is_valid],
        logL_birth=np.asarray(log_likelihood_birth, np.float64)[is_valid],
    )
    samples.root = None  # `to_hdf` asks for it
    return samples


def column_names(position: Any) -> list[str]:
    """Names of the columns of a PyTree of parameters: its keys, with an index where a leaf is an array.

    Examples
    --------
    >>> column_names({"a": np.zeros(()), "b": np.zeros(2)})
    ['a', 'b[0]', 'b[1]']
    >>> column_names(np.zeros(2))
    ['x[0]', 'x[1]']
    """
    names = []
    for path, leaf in jax.tree_util.tree_flatten_with_path(position)[0]:
        name = jax.tree_util.keystr(path, simple=True, separator=".") or "x"
        index = ["[" + ",".join(map(str, i)) + "]" for i in np.ndindex(leaf.shape)] if leaf.ndim else [""]
        names += [name + suffix for suffix in index]
    return names
