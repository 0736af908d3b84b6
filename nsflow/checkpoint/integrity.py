"""Whether a state that was read from a file is one: types, shapes, ranges, and lengths that belong together."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from nsflow.densities.density import Proposal
from nsflow.densities.gaussian import Gaussian
from nsflow.densities.kernels import Kernels
from nsflow.densities.mixture import Mixture
from nsflow.densities.pushforward import Pushforward
from nsflow.densities.triangular import Bent, Step
from nsflow.densities.wide import Wide
from nsflow.flow.flow import Flow
from nsflow.modes.modes import Mode
from nsflow.nested.draws import Batches
from nsflow.nested.points import Points
from nsflow.nested.state import Phase, Problem, Settings, State, StepInfo
from nsflow.prior.prior import Prior
from nsflow.proposals.estimators import KernelDensity
from nsflow.proposals.meta_proposal import MetaProposal, PriorProposal
from nsflow.proposals.rejection import Thinned
from nsflow.proposals.surrogate import Surrogate, _Interpolation, _Network
from nsflow.results.declaration import conforms, departure
from nsflow.results.results import RESERVED

HUGE = 1e100
Conditions = dict[str, bool]  # what is expected -> whether it is so


def require_whole(saved: Any, problem: Problem, settings: Settings) -> None:
    """Refuse a state that no run can have written.

    Args:
        saved: What should be the state and its trace.
        problem: The problem of this call.
        settings: Its settings.

    Raises:
        ValueError: If it is anything else; the message says in what.
    """
    if not conforms(saved, tuple[State, tuple[StepInfo, ...]]):
        raise ValueError("a state and its trace are expected")
    num_dims = problem.prior.num_dims
    for part in _parts(saved, {}):
        if said := departure(part):
            raise ValueError(said)
    state, trace = saved
    _require(state, _state(state, problem, settings))
    for part in _parts(saved, {}):
        _require(part, _ranges(part, num_dims))
    for component in (*state.components, *(q for b in _batches(state) for q in b.proposal.components)):
        _require(component, {f"points of {num_dims} coordinates": _num_dims(component) in (num_dims, None)})
    for step in trace:
        _require(step, {"a phase": step.phase in list(Phase), "seconds of a run": not abs(step.seconds) > 1e10})


def _require(part: Any, conditions: Conditions) -> None:
    for expected, is_so in conditions.items():
        if not is_so:
            raise ValueError(f"{type(part).__name__} expected {expected}")


def _parts(value: Any, seen: dict[int, Any]) -> Iterator[Any]:
    """Every dataclass and named tuple of ours within a value, once; what the call brings along excepted."""
    if id(value) in seen or isinstance(value, str | int | float | np.ndarray | np.generic | jax.Array | None):
        return
    seen[id(value)] = value  # held, so that its id is not used again
    if isinstance(value, Prior | Settings | Problem):
        return
    children: Sequence[Any] = ()
    if isinstance(value, Mapping):
        children = list(value.values())
    elif isinstance(value, partial | Partial):
        children = value.args
    elif isinstance(value, tuple | list):
        children = value
    elif is_dataclass(value) and not isinstance(value, type) and _is_ours(value):
        children = [getattr(value, part.name) for part in fields(value)]
    if (hasattr(value, "_fields") or is_dataclass(value)) and _is_ours(value):
        yield value
    for child in children:
        yield from _parts(child, seen)


def _is_ours(value: Any) -> bool:
    """Whether a class is nsflow's; the graph of a network is flax's own, and its blueprint was checked."""
    return type(value).__module__.partition(".")[0] == "nsflow"


def _batches(state: State) -> tuple[Batches, ...]:
    return (*state.rounds, *([state.frozen] if state.frozen is not None else []))


def _state(state: State, problem: Problem, settings: Settings) -> Conditions:
    """What holds of every state."""
    num_points, num_components = len(state.points.x), len(state.components)
    names, prior = state.derived, state.problem.prior
    counts = (
        *(state.num_calls, state.num_given, state.num_scouts, state.num_explored, state.num_rounds, state.num_waits),
        *(state.num_restarts, state.num_searches, state.num_outdated, *state.num_draws),
    )
    has_frozen = state.frozen is not None and state.frozen.num_batches > 0
    shares = (state.unseen, state.level_yield, state.beyond, *state.credits)
    drawn_from = [
        k for indices in (state.modes, *state.trainings, *(b.components for b in _batches(state))) for k in indices
    ]
    return {
        "the likelihood of this call": state.problem.likelihood is problem.likelihood,
        "the prior of this call": isinstance(prior, Prior) and prior.shapes == problem.prior.shapes,
        "the prior as its first component": isinstance(next(iter(state.components), None), PriorProposal),
        "draws of each component": len(state.num_draws) == num_components,
        "counts of at least zero": min(counts) >= 0,
        "at least one batch that is planned": state.num_planned >= 1,
        "draws from the prior": 1 <= state.points.num_prior == next(iter(state.num_draws), 0),
        "no more of the prior's points than draws": np.sum(state.points.is_prior) <= state.points.num_prior,
        "no more points than draws": num_points <= sum(state.num_draws),
        "no more scouts than the settings allow": state.num_scouts <= settings.max_scouts,
        "contours": len(state.contours) > 0 and not np.any(np.isnan(state.contours)) and max(state.contours) < np.inf,
        "points above its contours": _has_points_above(state.points, max(state.contours, default=np.inf)),
        "components that exist": set(drawn_from) <= set(range(num_components)) and state.num_given < num_components,
        "points that exist": set(state.climbed) <= set(range(num_points)),
        "positive shares": all(share >= 0 for share in shares) and not np.any(np.isinf(state.credits)),
        "a credit of each round": not (has_frozen and state.credits) or len(state.credits) == len(state.rounds),
        "frozen draws in the last phase": has_frozen or state.phase is not Phase.FINISHED,
        "frozen proposals in the last phases": state.frozen is not None or state.phase is not Phase.FROZEN,
        "rounds with draws": all(b.num_batches >= 1 for b in state.rounds),
        "names that are free": len(set(names)) == len(names) and not {*names} & {*RESERVED, *prior.names},
        "parameters where the likelihood was NaN": all(map(partial(_are_params, prior), state.nan_params)),
    }  # fmt: skip


def _has_points_above(points: Points, contour: float) -> bool:
    inside = points.log_prior_weights > -np.inf
    return bool(np.any((points.log_likelihood >= contour) & (points.log_likelihood > -np.inf) & inside))


def _are_params(prior: Prior, params: dict[str, np.ndarray]) -> bool:
    lengths = {len(value) for value in params.values() if value.ndim > 0}
    shapes = {name: value.shape[1:] for name, value in params.items() if value.ndim > 0}
    return not params or (len(lengths) == 1 and shapes == dict(prior.shapes))


def _ranges(part: Any, num_dims: int) -> Conditions:
    """What holds of every object of a class beyond the types of its fields."""
    match part:
        case Points():
            return {
                f"{num_dims} coordinates": part.x.shape[1] == num_dims and _are_finite(part.x),
                "log-densities": _are_logs(part.log_likelihood, part.log_prior, part.log_flows),
                "weights": part.num_prior < 1 or _are_logs(part.log_posterior_weights),
            }
        case Batches():
            num_draws = sum(part.proposal.num_draws)
            return {
                f"{num_dims} coordinates": part.draws.x.shape[1] == num_dims and _are_finite(part.draws.x),
                "a value of each draw": len(part.log_likelihood) == len(part.draws.x),
                "derived parameters of each draw": _are_columns(part.derived, len(part.draws.x)),
                "components": len(part.components) == len(part.proposal.components) == part.draws.log_q.shape[1],
                "draws of its components": set(np.unique(part.draws.component)) <= set(range(len(part.components))),
                "no more draws than were made": len(part.draws.x) <= part.num_batches * num_draws < 2**53,
                "log-densities": _are_logs(part.log_likelihood, part.log_prior, part.draws.log_Q, part.draws.log_q),
                "weights": _are_logs(part.log_weights),
            }  # fmt: skip
        case MetaProposal():
            return {
                "draws of each component": len(part.components) == len(part.num_draws) > 0,
                "draws": min(part.num_draws) >= 0 and sum(part.num_draws) > 0,
            }
        case Mixture():
            return {
                "a weight of each component": len(part.components) == len(part.weights) > 0,
                "weights that sum to one": min(part.weights) >= 0 and abs(sum(part.weights) - 1) < 1e-6,
            }
        case Gaussian():
            return {"a mean and a scale": _are_finite(part.mean) and _is_scale(part.scale)}
        case Kernels():
            return {
                "centres and scales": _are_finite(part.centres) and len(part.centres) > 0 and _is_scale(part.scales),
                "tails": part.dof >= 1 and 0 <= part.tails < 1,
            }
        case KernelDensity():
            return {
                "centres and weights": _are_finite(part.centres) and bool(min(part.weights) >= 0 < sum(part.weights))
            }
        case Flow():
            return {
                "a mean and a scale": _are_finite(part.mean) and _is_scale(part.scale)
                and np.shape(part.scale) == (part.mean.size,) * 2 and part.mean.ndim == 1,
                "steps": np.ndim(part.num_steps) == 0 and 0 <= int(part.num_steps) <= 10_000,
                "a width": 0 < part.width < np.inf,
                "a velocity": _shape_of(part.velocity, (), np.shape(part.mean)) == np.shape(part.mean),
            }  # fmt: skip
        case Thinned():
            return {
                "a bound": not np.isnan(part.log_bound),
                "chances": 0 <= part.acceptance <= 1 and 0 < part.min_chance <= 1 and part.efficiency >= 0,
            }
        case Surrogate():
            return {
                "coordinates": len(part.squeezed) == len(part.whole.mean) == num_dims,
                "a level": bool(np.isfinite(part.level)) and part.error >= 0,
                "a regression": not isinstance(part.model, _Network) or _shape_of(part.model.field, (num_dims,)) == (),
            }
        case _Interpolation():
            return {
                "points and values": _are_finite(part.points) and _are_finite(part.value) and part.num_nearest > 0
                and part.points.shape == (len(part.value), num_dims),
            }  # fmt: skip
        case Step():
            return {
                "coordinates": part.target != part.source and {part.target, part.source} <= set(range(num_dims)),
                "a spline": len(part.knots) > 1 and all(a < b for a, b in pairwise(part.knots.tolist()))
                and _are_finite(part.knots) and _are_finite(part.curve) and _are_finite(part.log_width),
            }  # fmt: skip
        case Mode():
            return {
                f"{num_dims} coordinates": part.centre.shape == (num_dims,) and _are_finite(part.centre),
                "a scale": _is_scale(part.scale) and bool(np.isfinite(part.log_density)),
                "climbs": part.num_climbs >= 1 and part.basin >= 0 and part.slope >= 0,
            }
    return {}


def _num_dims(proposal: Any) -> int | None:
    """Coordinates of a proposal's points; None where only its own class knows."""
    match proposal:
        case PriorProposal():
            return proposal.prior.num_dims
        case Gaussian() | Flow():
            return proposal.num_dims
        case Kernels() | KernelDensity():
            return proposal.centres.shape[1]
        case Wide() | Pushforward():
            return _num_dims(proposal.map)
        case Thinned() | Bent():
            return _num_dims(proposal.proposal)
        case Mixture():
            inner = {_num_dims(component) for component in proposal.components}
            return inner.pop() if len(inner) == 1 else -1
    return None if isinstance(proposal, Proposal) else -1


def _are_logs(*arrays: np.ndarray) -> bool:
    """Whether no number is NaN or +inf."""
    return all(bool(np.all(array < np.inf)) for array in arrays)


def _are_finite(array: Any) -> bool:
    """Whether no number is infinite or NaN, or so large that its square is; latent space has width one."""
    return isinstance(array, np.ndarray | jax.Array) and bool(np.all(np.abs(array) < HUGE))


def _is_scale(scale: Any) -> bool:
    """Whether these are triangular factors with a positive diagonal."""
    if not _are_finite(scale) or scale.ndim < 2 or scale.shape[-1] != scale.shape[-2]:
        return False
    diagonal = np.diagonal(scale, axis1=-2, axis2=-1)
    return bool(np.all(diagonal > 1 / HUGE)) and not np.any(np.triu(scale, 1))


def _are_columns(derived: Mapping[str, np.ndarray], length: int) -> bool:
    return all(column.dtype == np.float64 and column.shape == (length,) for column in derived.values())


def _shape_of(function: Any, *shapes: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of a network's output; it is traced, not compiled."""
    return jax.eval_shape(function, *(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)).shape
