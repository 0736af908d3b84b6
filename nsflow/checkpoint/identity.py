"""What must be the same for a checkpoint to be of this call: version, seed, settings, prior and likelihood."""

import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import jax
import numpy as np

from nsflow.likelihood.journal import bare
from nsflow.likelihood.likelihood import evaluate
from nsflow.nested.state import Settings, State
from nsflow.nested.warm_start import Start
from nsflow.prior.prior import Prior
from nsflow.results.versions import version_of

FREE = ("ess", "logZ_err", "max_calls", "max_seconds", "max_levels")  # settings that may change from call to call
NUM_COMPARED = 3  # points at which prior and likelihood are compared


def identify(prior: Prior, settings: Settings, seed: int, start: Start | None) -> dict[str, Any]:
    """Describe a run by version, seed, settings, warm start, and the prior at three of its draws.

    Args:
        prior: The prior.
        settings: The settings.
        seed: The seed.
        start: Samples of a warm start.

    Returns:
        What JSON can hold.
    """
    x = np.asarray(prior.latent_sample(jax.random.key(0), NUM_COMPARED))
    params = {name: np.asarray(value) for name, value in prior.forward(x).items()}
    return {
        "version": version_of("nsflow"),
        "seed": seed,
        "settings": {f.name: _text(getattr(settings, f.name)) for f in fields(settings) if f.name not in FREE},
        "parameters": {name: list(shape) for name, shape in prior.shapes.items()},
        "prior": [
            x.ravel().tolist(),
            np.concatenate([value.ravel() for value in params.values()]).tolist(),
            np.asarray(prior.latent_log_prob(x)).tolist(),
        ],
        "start": start.digest() if start else None,
    }


def require_same(folder: Path, there: dict[str, Any], here: dict[str, Any]) -> None:
    """Refuse the checkpoint of another run, and say in what it differs.

    Args:
        folder: The checkpoint.
        there: What :func:`identify` said when it was written.
        here: What it says now.

    Raises:
        ValueError: If they differ.
    """
    for name, what in (("version", "version of nsflow"), ("seed", "seed"), ("parameters", "parameters of the prior")):
        if there.get(name) != here[name]:
            raise _mismatch(folder, f"{what} {here[name]!r}, this call's; got {there.get(name)!r}", name)
    settings = there.get("settings", {})
    for name, value in here["settings"].items():
        if settings.get(name) != value:
            raise _mismatch(folder, f"`{name}` = {value}, this call's; got {settings.get(name)}", "settings")
    if there.get("start") != here["start"]:
        raise _mismatch(folder, "the samples of this call's `start`; got a run that had others, or none", "start")
    same = [np.shape(a) == np.shape(b) and np.allclose(a, b, 1e-9, 1e-12, equal_nan=True)
            for a, b in zip(there["prior"], here["prior"], strict=True)]  # fmt: skip
    if not all(same):
        raise _mismatch(folder, "the prior of this call; got one that differs at its first draws", "prior")


def fingerprint(state: State) -> dict[str, Any]:
    """Evaluate the likelihood again at the first draws: the second values, and how far they are from the first.

    Args:
        state: A run with draws of its prior.

    Returns:
        Rows of the points, values in nats, and their rounding or noise.
    """
    rows = np.argsort(~np.isfinite(state.points.log_likelihood[: state.points.num_prior]), kind="stable")
    rows = rows[:NUM_COMPARED]
    first, second = state.points.log_likelihood[rows], _values(state, rows)
    with np.errstate(invalid="ignore"):
        noise = np.max(np.nan_to_num(np.abs(second - first)), initial=0.0)
    return {"rows": rows.tolist(), "values": second.tolist(), "noise": float(noise)}


def recheck(folder: Path, there: dict[str, Any], state: State) -> None:
    """Refuse the checkpoint of another likelihood.

    Args:
        folder: The checkpoint.
        there: Its fingerprint.
        state: Its run, with the likelihood of this call.

    Raises:
        ValueError: If the likelihood has other values.
    """
    here = _values(state, np.array(there["rows"]))
    require_same_likelihood(folder, np.array(there["values"]), here, there["noise"])


def require_same_likelihood(folder: Path, there: np.ndarray, here: np.ndarray, noise: float) -> None:
    """Compare log-likelihoods up to a thousandth of a nat, their rounding, and ten times their noise.

    Args:
        folder: The checkpoint.
        there: Its values, nats.
        here: Those of this call at the same points.
        noise: How far two evaluations of one likelihood are apart.

    Raises:
        ValueError: If they differ.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        is_near = np.abs(here - there) <= _rounding(there, here) + 10 * noise
    differs = (here != there) & ~is_near & ~(np.isnan(here) & np.isnan(there))
    if np.any(differs):
        i = int(np.argmax(differs))
        difference = f"a log-likelihood of {there[i]} at one of its draws; got {here[i]} there now"
        raise _mismatch(folder, difference, "likelihood")


SLIGHT = 1e-3  # nats by which a likelihood may change unseen: no evidence is known as well


def _rounding(there: np.ndarray, here: np.ndarray) -> np.ndarray:
    """Nats by which one likelihood's values may differ on another machine, or in batches of other sizes.

    Sums of 10^6 terms differ by a thousand spacings of float64, which at -10^9 nats are 10^-4; those of float32, whose
    sums XLA makes in pairs, by a few. Numbers that are all exact in float32 were computed in it, but for one
    in 10^8.
    """
    size = np.maximum(np.abs(there), np.abs(here))
    both = np.concatenate([there, here])
    is_whole = np.all((both == np.round(both)) & (np.abs(both) < 2**23))  # which says nothing
    is_single = np.array_equal(both, both.astype(np.float32).astype(np.float64), equal_nan=True) and not is_whole
    eps = 16 * np.finfo(np.float32).eps if is_single else 1000 * np.finfo(np.float64).eps
    return np.maximum(np.minimum(1e-7 * np.maximum(1.0, size), SLIGHT), np.where(np.isfinite(size), eps * size, 0.0))


def _values(state: State, rows: np.ndarray) -> np.ndarray:
    params = state.problem.prior.forward(state.points.x[rows])
    return evaluate(bare(state.problem.likelihood), params).log_likelihood


def _text(value: Any) -> str:
    """What is shown of a setting; where an object is in memory says nothing."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value))


def _mismatch(folder: Path, difference: str, name: str) -> ValueError:
    return ValueError(
        f"The checkpoint {folder} belongs to another run: expected {difference}. Nothing was changed. Give the same "
        f"{name} to go on with it, or another path for `checkpoint` to start anew."
    )
