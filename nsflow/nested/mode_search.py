"""One search for modes: climbs from some points, and what the maxima they end on ask for."""

from dataclasses import replace
from typing import NamedTuple

import numpy as np
from scipy.spatial import KDTree

from nsflow.modes.modes import MAX_EVALUATIONS, Mode, Target, ascend, measure, news, sharpen, unmet
from nsflow.nested.points import Points
from nsflow.nested.state import State, log_mixture

NUM_CLIMBERS = 5  # ascents between two looks at the components, whose densities are cheaper for many points at once
MIN_SHARE = 1e-3  # of the evidence, by Laplace's approximation, that makes a mode worth a component
PATIENCE = 1000.0  # draws from the prior for each that hits a mode once, times the share of the evidence that it has
PATIENT = 10  # differences without a gain after which a climb by them ends: across 1e-10 of the prior 113 were in vain
ENDLESS = 100.0  # nats of a ratio beyond which it is as large as can be; a mode of 1000 sigma more would overflow
MISSED = 0.5  # effective points with which a mode counts as missed
UNMET = 0.02  # share of the evidence in unmet modes that is looked for: three of many climbs met one that has it all
NEWS = 0.05  # chance of a new mode below which draws and their maxima find more than further climbs do
MIN_COVERAGE = 20.0  # effective points without which a mode counts as lost: of the eggbox's, one with 8 stayed lost


class Search(NamedTuple):
    """What climbing found."""

    modes: tuple[Mode, ...]  # all maxima, those known before first
    lost: tuple[Mode, ...]  # new ones that matter and that hardly any point covers
    num_scouts: float  # draws from the prior that those among them ask for that no point covers
    num_calls: int
    climbed: tuple[int, ...] = ()  # starts, as indices of points


def search(
    state: State, starts: dict[int, float], *, max_calls: int | None = None, is_exploring: bool = False
) -> Search:
    """Climb from one start after the other, until it has been in vain for long, or those met are met often enough.

    Args:
        state: A run.
        starts: Indices of points, each with the number of draws of the prior in its basin; zero if it is not known.
        max_calls: Likelihood calls that the climbs will not exceed; a batch if left out.
        is_exploring: Whether to go on until no mode may be unmet.

    Returns:
        What was found.
    """
    target = Target(state.problem.likelihood, state.problem.prior, max_calls=max_calls or batch_size(state))
    logZ = log_evidence(state)
    reach = _reach(state.points, list(starts))
    patience = MAX_EVALUATIONS if target.is_traced else PATIENT
    found = Search(state.summits, (), 0, 0)
    calls_at_find = 0
    for i in range(0, len(starts), NUM_CLIMBERS):
        is_vain = target.num_calls - calls_at_find > batch_size(state) // 4
        is_enough = unmet_share(replace(state, summits=found.modes)) == 0 if is_exploring else is_vain
        if is_enough or target.is_exhausted:
            break
        modes, climbed = list(found.modes), list[int]()
        for start in list(starts)[i : i + NUM_CLIMBERS]:
            climbed.append(start)
            centre, log_density = ascend(target, state.points.x[start], reach[start], patience=patience)
            k = next((k for k, mode in enumerate(modes) if mode.contains(centre, log_density)), None)
            is_new = k is None and log_density > -np.inf
            mode = measure(target, centre, log_density, state.problem.prior.step_widths(centre)) if is_new else None
            if mode is not None and (sharp := sharpen(target, mode)) is not mode:
                k = next((k for k, known in enumerate(modes) if known.contains(sharp.centre, sharp.log_density)), None)
                mode = sharp if k is None else None
            if target.is_exhausted:  # its values are no longer the likelihood's
                break
            if k is not None:
                num_climbs, basin = modes[k].num_climbs + 1, modes[k].basin + starts[start]
                modes[k] = modes[k]._replace(num_climbs=num_climbs, basin=basin)
            if mode is not None:
                modes.append(mode._replace(basin=starts[start]))
        known, new = modes[: len(found.modes)], modes[len(found.modes) :]
        num_effective = coverage(state, new)
        share = np.exp(np.minimum([mode.log_evidence - logZ for mode in new], ENDLESS))
        matters, is_stray = share > MIN_SHARE, num_effective < MISSED
        is_stray &= np.array([mode.is_settled for mode in new], bool)
        basins = np.array([mode.basin for mode in new])
        is_asking = matters & is_stray & (basins > 0)
        wanted = PATIENCE * share[is_asking] * state.points.num_prior / basins[is_asking]
        new = [mode._replace(is_stray=bool(s)) for mode, s in zip(new, is_stray, strict=True)]
        is_lost = matters & (num_effective < MIN_COVERAGE)
        lost = tuple(mode for mode, s in zip(new, is_lost, strict=True) if s)
        found = Search(
            (*known, *new),
            (*found.lost, *lost),
            max(found.num_scouts, *wanted, 0.0),
            target.num_calls,
            (*found.climbed, *climbed),
        )
        calls_at_find = target.num_calls if lost else calls_at_find
    return found


def unmet_share(state: State) -> float:
    """Share of the evidence that may lie in modes that no climb has met; zero if it is small or few climbs meet any.

    Args:
        state: A run.

    Returns:
        The share.
    """
    share = unmet(state.summits, log_evidence(state))
    return share if share > UNMET and news(state.summits) > NEWS else 0.0


def batch_size(state: State) -> int:
    """Calls that one search may spend on ascents, a quarter of them in vain; and draws of one batch."""
    return max(1000, round(0.2 * state.settings.ess))


def log_evidence(state: State) -> float:
    """Log-evidence by all points so far, nats."""
    return float(np.logaddexp.reduce(state.points.log_posterior_weights))


def _reach(points: Points, starts: list[int]) -> dict[int, float]:
    """Half of the way from each start to the draw of the prior next to it: a maximum among draws reaches further."""
    distances = KDTree(points.x[points.is_prior]).query(points.x[starts], 2)[0] if starts else np.zeros((0, 2))
    return dict(zip(starts, (distances[:, 1] / 2).tolist(), strict=True))


def coverage(state: State, modes: list[Mode]) -> np.ndarray:
    """Effective points that the draws so far should have in each mode: its evidence over the weight of one on top.

    Args:
        state: A run.
        modes: The modes.

    Returns:
        The numbers, shape ``(m,)``.
    """
    if not modes:
        return np.zeros(0)
    centres = np.stack([mode.centre for mode in modes])
    log_prior = np.asarray(state.problem.prior.latent_log_prob(centres))
    log_Q = np.logaddexp(log_mixture(state, centres), np.log(state.points.num_prior) + log_prior)
    log_coverage = [mode.log_evidence - (mode.log_density - q) for mode, q in zip(modes, log_Q, strict=True)]
    return np.exp(np.minimum(log_coverage, ENDLESS))
