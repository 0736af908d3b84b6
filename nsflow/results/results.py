"""What a run returns: evidence, weighted samples, anesthetic frames, files, summary."""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, get_type_hints, no_type_check

import numpy as np
from jaxtyping import Float64

from nsflow.numerics.arguments import (
    NUMBER,
    Rule,
    instance,
    integer,
    optional,
    require_array,
    require_memory,
    scalar,
    settle,
    several,
    shown,
    texts,
    truth,
)
from nsflow.numerics.arithmetic import with_own_arithmetic
from nsflow.results import files
from nsflow.results.declaration import conforms
from nsflow.results.drawing import printable, settable, spread, steady
from nsflow.results.volumes import num_live

# Columns that the frames and the CSV file add to the parameters'; "weights" is the name of anesthetic's index.
RESERVED = ("logL", "log_weights", "nlive", "weights")
ARRAYS = ("samples", "log_likelihood", "log_weights")
MAX_KERNELS = 4000  # of a density: more cannot be seen, and 66 panels of them take 10 seconds
MAX_PLOT_PARAMS = 12  # 66 panels of two parameters; more cannot be read


RULES: dict[str, Rule] = {
    **dict.fromkeys(("names", "labels", "derived", "alarms"), texts),
    **dict.fromkeys(ARRAYS, require_array),
    **dict.fromkeys(("logZ", "logZ_err", "ess", "khat", "max_weight_share"), NUMBER),
    **dict.fromkeys(("num_draws", "num_calls"), integer(0)),
    "finished": truth,
    "stop_reason": instance(str, "a string"),
    "seed": optional(integer(0)),
    "settings": instance(Mapping, "a dict"),
    "versions": instance(Mapping, "a dict"),
    "trace": several(instance(Mapping, "a dict"), "a list of dicts"),
}


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Results:
    r"""Evidence and weighted posterior samples of a run.

    The draws :math:`x_i` come from a proposal of known density Q and carry importance weights, so that

    .. math::
        \hat Z = \frac1N \sum_i w_i, \qquad w_i = \frac{L(x_i)\,\pi(x_i)}{Q(x_i)}, \qquad p_i = w_i / \sum_j w_j .

    Results are immutable: the arrays are read-only copies. Two of them are equal if every number is, NaN included,
    and the wall-clock times of the trace not.

    Args:
        names: Column names of the k parameters, the derived ones last.
        labels: Labels for plots; default the names. TeX such as ``r"\alpha_0"`` may come with or without its ``$``.
        samples: Physical parameters of every draw the headline rests on, shape ``(n, k)``.
        log_likelihood: Nats, shape ``(n,)``; ``-inf`` where the likelihood is zero.
        derived: Those of the names that the likelihood derived from the parameters; NaN where it did not.
        log_weights: Log of w in nats, shape ``(n,)``, unnormalised; ``-inf`` for weight zero.
        num_draws: Draws N behind the headline. It exceeds n by those that were not evaluated, which have weight zero.
        logZ: Log-evidence in nats.
        logZ_err: Its standard error in nats.
        ess: Effective number of posterior samples.
        num_calls: Likelihood calls of the whole run.
        khat: Tail index of the weights (Pareto-smoothed importance sampling); above 0.7 the error is not to be trusted.
        max_weight_share: Largest p.
        finished: Whether the run reached its target.
        stop_reason: Why it ended.
        alarms: What the diagnostics found, one sentence each.
        seed: Seed of the run.
        settings: Options of the run. Here and in `versions` and `trace`, what JSON cannot hold is kept as its `repr`.
        versions: Package name -> version.
        trace: One dict per step: phase, num_calls, contour and so on.

    Raises:
        TypeError: If a value is of the wrong kind.
        ValueError: If shapes disagree, a name is taken, or a log-likelihood or log-weight is NaN or ``+inf``.

    Example:
        >>> x = np.random.default_rng(0).uniform(-5, 5, (4000, 1))
        >>> logL = -0.5 * x[:, 0]**2
        >>> result = Results(names=("x",), samples=x, log_likelihood=logL, log_weights=logL, num_draws=4000,
        ...                  logZ=-1.39, logZ_err=0.02, ess=1400.0, num_calls=4000)
        >>> print(f"{result.information:.2f}")
        0.89
        >>> result.posterior(100)["x"].shape
        (100,)
    """

    names: tuple[str, ...]
    labels: tuple[str, ...] = ()
    derived: tuple[str, ...] = ()
    samples: np.ndarray
    log_likelihood: np.ndarray
    log_weights: np.ndarray
    num_draws: int
    logZ: float
    logZ_err: float
    ess: float
    num_calls: int
    khat: float = math.nan
    max_weight_share: float = math.nan
    finished: bool = True
    stop_reason: str = ""
    alarms: tuple[str, ...] = ()
    seed: int | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    trace: list[dict[str, Any]] = field(default_factory=list)

    @with_own_arithmetic
    def __post_init__(self) -> None:
        settle(self, RULES)
        names, labels = self.names, self.labels or self.names
        if len(labels) != len(names):
            raise ValueError(f"`labels` expected one for each of {names}; got {labels}. Give all of them, or none.")
        clean: dict[str, Any] = {"labels": tuple(map(_label, names, labels))}
        for name in ARRAYS:
            clean[name] = np.array(getattr(self, name))
            clean[name][np.isnan(clean[name])] = np.nan  # of one sign, as a file brings it back
            clean[name].setflags(write=False)
        for name in ("logZ", "logZ_err", "ess", "khat", "max_weight_share"):
            clean[name] = float(getattr(self, name))
        for name in ("settings", "versions", "trace"):
            clean[name] = files.plain(getattr(self, name))
        for name, value in clean.items():
            object.__setattr__(self, name, value)
        _check(self)

    @property
    @with_own_arithmetic
    def information(self) -> float:
        r"""Posterior information :math:`D_{KL} = \sum_i p_i \log L_i - \log Z` in nats; NaN without any weight."""
        alive = np.isfinite(self.log_weights)
        return float(self._shares()[alive] @ self.log_likelihood[alive]) - self.logZ if alive.any() else math.nan

    @property
    @with_own_arithmetic
    def best(self) -> dict[str, float]:
        """The draw with the highest log L inside the prior: column name -> value, and ``logL`` in nats.

        It is a draw, not the maximum, which is higher by a nat or more in many dimensions.

        Raises:
            ValueError: If no draw has a weight.
        """
        self._demand_weights("best")
        row = int(np.argmax(np.where(np.isfinite(self.log_weights), self.log_likelihood, -np.inf)))
        values = dict(zip(self.names, self.samples[row].tolist(), strict=True))
        return values | {"logL": float(self.log_likelihood[row])}

    @no_type_check  # its own messages come before a run-time checker's
    @with_own_arithmetic
    def posterior(
        self, num_samples: int | None = None, seed: int = 0, with_logL: bool = False
    ) -> dict[str, Float64[np.ndarray, " num"]]:
        """Draw equally weighted posterior samples, in random order.

        Systematic resampling: draw i appears ``num * p_i`` times, rounded up or down, so that points repeat no more
        than their weights demand. The order is shuffled: autocorrelation estimates take sorted draws for a slow chain.

        Args:
            num_samples: Number of samples; default the `ess`. More than that only repeats points.
            seed: Seed of the resampling.
            with_logL: Whether to add the log-likelihoods of the samples, in nats, as ``logL``.

        Returns:
            Column name -> values, shape ``(num_samples,)``.

        Raises:
            ValueError: If `num_samples` is below one or no draw has a weight.
        """
        most = np.nan_to_num(self.ess, nan=1.0, posinf=np.inf)  # of a stranger's file it may be anything
        num = (
            max(1, int(min(most, len(self.log_weights))))
            if num_samples is None
            else _positive("posterior draws", num_samples, len(self.names))
        )
        seed = integer(0)("`seed`", seed)
        self._demand_weights("posterior")
        rows = self._equal_rows(num, seed)
        values = dict(zip(self.names, self.samples[rows].T.copy(), strict=True))
        return values | ({"logL": self.log_likelihood[rows]} if with_logL else {})

    @with_own_arithmetic
    def to_anesthetic(self) -> Any:
        """Weighted samples for anesthetic's plots and statistics.

        Draws whose weight is zero, or underflows to zero beside the largest, are left out: they say nothing about the
        posterior, while their infinite log L makes anesthetic's statistics NaN and its plots warn.

        Returns:
            `anesthetic.MCMCSamples` with labels, a column ``logL`` and weights relative to the largest.

        Raises:
            ValueError: If no draw has a weight.
        """
        self._demand_weights("to_anesthetic")
        return self._frame(self._relative_weights() > 0)

    @with_own_arithmetic
    def to_nested_samples(self) -> Any:
        r"""Present the draws as a nested-sampling run, with the tools of `anesthetic.NestedSamples`.

        An importance-sampled run has no contours; its prior volumes come from the weights. With the draws sorted by
        log L and :math:`v = \pi / Q = w / L`, the prior mass above draw i, and the number of live points whose mean
        shrinkage n / (n + 1) reproduces it, are

        .. math::
            X_i = \frac1N \Bigl(\tfrac12 v_i + \sum_{j > i} v_j\Bigr), \qquad
            n_i = \frac{X_i}{X_{i-1} - X_i}, \qquad X_{-1} = 1 .

        The v are not normalised by their sum, a noisy estimate of 1: the upper volumes, which carry the evidence, stay
        as the draws have them. What is missing from 1 belongs to the draws of zero likelihood, if there are any; else,
        and if there is too much, the lower half of the prior mass is scaled to fit. `logZ`, `D_KL`, `beta`, `prior`
        and `stats` then work. Measured, `logZ()` is the headline's to 3 % of its error. Only below an information of
        one nat does it move, by up to two errors, since it knows that the prior's mass is one (at 0.04 nats: 0.005
        from the truth where the headline is 0.010). What asks for birth contours (`live_points`, `truncate`,
        `recompute`, merging) does not exist here. `to_csv` keeps the rest.

        **The error bar of `logZ(n)` and `stats(n)` is not the headline's.** It is that of a nested-sampling run with
        these live points, of which a good proposal needs few on the way up: measured, 2 to 240 times `logZ_err`
        (25 times for a Gaussian in 4 dimensions), with a mean off by as much. Take `logZ_err`, or pass the frame of
        :meth:`bootstrap_log_weights` in place of n.

        Returns:
            `anesthetic.NestedSamples` with columns ``logL`` and ``nlive``, at ``beta = 1``, sorted by log L. Draws
            outside the prior (zero weight at non-zero likelihood) are left out.

        Raises:
            ValueError: If no draw has a weight, or the draws do not cover the prior, so that no volume is known.
        """
        import anesthetic

        self._demand_weights("to_nested_samples")
        rows = self._nested_rows()
        nested = anesthetic.NestedSamples(
            self.samples[rows], columns=list(self.names), labels=list(self.labels), logL=self.log_likelihood[rows]
        )
        nested["nlive"] = num_live(self.log_likelihood[rows], self.log_weights[rows], self.num_draws)
        nested.set_label("nlive", r"$n_\mathrm{live}$")
        nested.beta = 1  # recomputes the weights from nlive
        nested.root = None  # `to_hdf` asks for it
        return nested

    @no_type_check  # its own messages come before a run-time checker's
    @with_own_arithmetic
    def bootstrap_log_weights(self, num_samples: int = 200, seed: int = 0) -> Any:
        r"""Log-weights of the draws under the Bayesian bootstrap, which carry the error of the importance estimate.

        .. math::
            W_{is} = \log w_i + \log d_{is}, \qquad d_{\cdot s} \sim \mathrm{Dirichlet}(1, \dots, 1) \text{ over all } N
            \text{ draws}.

        ``result.to_nested_samples().stats(W)`` then has one row per column of W: its mean is the importance estimate
        and its spread the headline's error. Draws count as independent: where they were stratified, and so better,
        the spread is on the wide side.

        Args:
            num_samples: Number of bootstrap samples S.
            seed: Seed of the bootstrap.

        Returns:
            `pandas.DataFrame` of nats, shape ``(n, S)``, rows as in :meth:`to_nested_samples`; only for ``beta = 1``.

        Raises:
            ValueError: If `num_samples` is below one.
        """
        import pandas

        num_samples = _positive("bootstrap samples", num_samples, len(self.samples))
        seed = integer(0)("`seed`", seed)
        rng = np.random.default_rng(seed)
        rows = self._nested_rows()
        counts = rng.exponential(size=(len(rows), num_samples))
        # A Dirichlet is exponentials over their sum, and the draws without a row (all of weight zero) are in the sum.
        missing = self.num_draws - len(rows)
        total = counts.sum(axis=0) + (rng.gamma(missing, size=num_samples) if missing else 0.0)
        return pandas.DataFrame(self.log_weights[rows, None] + np.log(counts) - np.log(total))

    @no_type_check  # its own messages come before a run-time checker's
    @with_own_arithmetic
    def plot_2d(self, params: list[str] | None = None, **kwargs: Any) -> Any:
        """Corner plot of the posterior: densities on the diagonal, 68 % and 95 % contours below.

        Args:
            params: Columns to plot; default all that have a value at every draw, or the first twelve of more.
            **kwargs: For `anesthetic.MCMCSamples.plot_2d`, such as ``kind="scatter"`` or ``label="run 1"``.

        Returns:
            The axes, an `anesthetic` frame of matplotlib's, onto which further results can be plotted by ``axes=``.

        Raises:
            ValueError: If a name is not a column or has no values, or no draw has a weight.
        """
        self._demand_weights("plot_2d")
        alive = self._relative_weights() > 0
        columns = dict(zip(self.names, self.samples[alive].T, strict=True)) | {"logL": self.log_likelihood[alive]}
        if params is None:
            params = [name for name in self.names if np.isfinite(columns[name]).all()][:MAX_PLOT_PARAMS]
        params = list(texts("`params`", params))
        unknown = [name for name in params if name not in columns or not np.isfinite(columns[name]).any()]
        if unknown or not params:
            known = tuple(name for name, column in columns.items() if np.isfinite(column).any())
            raise ValueError(f"`params` expected names among {known}; got {unknown or params}.")
        axes = kwargs.pop("axes", params)
        kwargs.setdefault("kind", "kde")
        with steady():
            return self._drawn().plot_2d(axes, **kwargs)

    def _drawn(self) -> Any:
        """Samples of which anesthetic can draw every column.

        They are of equal weights: those of others it joins in triangles, which fail between integers and on curves.
        """
        import anesthetic

        rows = self._equal_rows(int(np.clip(np.nan_to_num(self.ess), 1000, 10_000)), seed=0)
        columns = [np.where(np.isfinite(c), c, np.nan) for c in (*self.samples[rows].T, self.log_likelihood[rows])]
        *samples, log_likelihood = [spread(column, seed) for seed, column in enumerate(columns)]
        labels = [settable(label) for label in self.labels]
        return anesthetic.MCMCSamples(
            np.column_stack(samples), columns=list(self.names), labels=labels, logL=log_likelihood
        )

    @no_type_check  # its own messages come before a run-time checker's
    @with_own_arithmetic
    def save(self, root: str | os.PathLike[str]) -> None:
        """Write ``root.csv``, which `anesthetic.read_chains` reads, and ``root.json`` with everything else.

        The CSV holds every draw, those of weight zero included, with its importance weight, the parameters, ``logL``
        and ``log_weights``; the JSON the evidence, diagnostics, settings and trace. :func:`load` gives back an equal
        result. Each file is replaced at once, so that an interrupted save leaves no half of one. If the name contains
        a dot, give `read_chains` the name with ``.csv``: it takes the last dot for the start of a suffix.

        Args:
            root: Path of the run, such as ``"chains/run"``; a suffix .csv or .json is ignored, folders are made.

        Example:
            >>> import tempfile, anesthetic
            >>> x = np.linspace(0, 1, 5)[:, None]
            >>> result = Results(names=("x",), samples=x, log_likelihood=-x[:, 0], log_weights=-x[:, 0], num_draws=5,
            ...                  logZ=-0.46, logZ_err=0.2, ess=4.5, num_calls=5)
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     result.save(folder + "/run")
            ...     print(load(folder + "/run") == result, len(anesthetic.read_chains(folder + "/run")))
            True 5
        """
        frame = self._frame(np.full(len(self.samples), True))
        frame["log_weights"] = self.log_weights
        frame.set_label("log_weights", r"$\ln w$")
        files.write(root, frame, self._header())

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take the state of a pickle or a deep copy, whose arrays are read-only as well."""
        self.__dict__.update(state)
        for name in ARRAYS:
            getattr(self, name).setflags(write=False)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Results):
            return NotImplemented
        # By text and by bytes, since NaN differs from itself: two results are equal if their files would be.
        return repr(self._timeless()) == repr(other._timeless()) and all(
            getattr(self, name).tobytes() == getattr(other, name).tobytes() for name in ARRAYS
        )

    @with_own_arithmetic
    def __repr__(self) -> str:
        per_sample = f"{self.num_calls / self.ess:.1f}" if self.ess > 0 else "infinitely many"
        lines = [
            f"Results of {len(self.names)} parameters: {', '.join(map(printable, self.names[:6]))}"
            + ", ..." * (len(self.names) > 6)
            + f" ({len(self.derived)} of them derived)" * bool(self.derived),
            f"  logZ         {self.logZ:.4f} +- {self.logZ_err:.4f} nats",
            f"  information  {self.information:.2f} nats",
            f"  ESS          {self.ess:.0f} of {len(self.log_weights)} draws",
            f"  calls        {self.num_calls}, {per_sample} per effective sample",
            f"  weights      k-hat {self.khat:.2f}, largest share {self.max_weight_share:.2g}",
        ]
        lines += [] if self.finished else [f"  UNFINISHED   {printable(self.stop_reason) or 'no reason given'}"]
        lines += [f"  ALARM        {printable(alarm)}" for alarm in self.alarms]
        return "\n".join(lines)

    def _header(self) -> dict[str, Any]:
        return {f.name: files.plain(getattr(self, f.name)) for f in fields(self) if f.name not in ARRAYS}

    def _timeless(self) -> dict[str, Any]:
        """Header without the times of its steps: the same run on a slower machine is the same result."""
        trace = [{name: value for name, value in step.items() if name != "seconds"} for step in self.trace]
        return self._header() | {"trace": trace}

    def _relative_weights(self) -> np.ndarray:
        """Weights over the largest; all zero if there is none."""
        largest = self.log_weights.max(initial=-np.inf)
        return np.exp(self.log_weights - (largest if np.isfinite(largest) else 0.0))

    def _shares(self) -> np.ndarray:
        weights = self._relative_weights()
        return weights / weights.sum()

    def _equal_rows(self, num: int, seed: int) -> np.ndarray:
        """Rows of equally weighted draws, in random order."""
        rng = np.random.default_rng(seed)
        edges = np.cumsum(self._shares())
        positions = np.minimum((np.arange(num) + rng.random()) / num, np.nextafter(1, 0))  # the sum may round up to 1
        return rng.permutation(np.searchsorted(edges / edges[-1], positions, side="right"))

    def _demand_weights(self, method: str) -> None:
        if not np.isfinite(self.log_weights).any():
            raise ValueError(
                f"`{method}` expected at least one draw of positive weight; all {self.num_draws} have weight zero. "
                f"The run ended without evidence ({self.stop_reason or 'no reason given'}): let it make more calls."
            )

    def _frame(self, keep: np.ndarray) -> Any:
        import anesthetic

        return anesthetic.MCMCSamples(
            self.samples[keep],
            columns=list(self.names),
            labels=list(self.labels),
            logL=self.log_likelihood[keep],
            weights=self._relative_weights()[keep],
        )

    def _nested_rows(self) -> np.ndarray:
        """Rows inside the prior, sorted by log L: a draw outside has weight zero although its likelihood is not."""
        rows = np.argsort(self.log_likelihood, kind="stable")
        return rows[np.isfinite(self.log_weights[rows]) | np.isneginf(self.log_likelihood[rows])]


@no_type_check  # its own messages come before a run-time checker's
@with_own_arithmetic
def load(root: str | os.PathLike[str]) -> Results:
    """Read a result that :meth:`Results.save` wrote.

    Args:
        root: Path of the run, with or without .csv or .json.

    Returns:
        A result equal to the one that was saved, bit for bit.

    Raises:
        FileNotFoundError: If one of the two files is missing.
        ValueError: If they are damaged, not nsflow's, of a newer format, or do not belong together.
    """
    header, values = files.read(root)
    info = files.paths(root)[1]
    header = {"derived": [], **header}  # results of version 0.1.0 have none
    declared, keywords = get_type_hints(Results), {}
    for f in fields(Results):
        if f.name in ARRAYS:
            continue
        if f.name not in header:
            raise ValueError(f"`load` expected {f.name!r} in {info}; it is missing. Restore the file.")
        is_tuple = f.name in ("names", "labels", "derived", "alarms") and isinstance(header[f.name], list)
        keywords[f.name] = tuple(header[f.name]) if is_tuple else header[f.name]
        if not conforms(keywords[f.name], declared[f.name]):
            shown = repr(header[f.name])[:80]
            raise ValueError(
                f"`load` expected another {f.name!r} in {info}; got {shown}. Restore the file from a copy."
            )
    if header["columns"] != [*keywords["names"], "logL", "log_weights"]:
        raise ValueError(f"`load` expected the names and columns in {info} to agree. Restore the file from a copy.")
    try:
        return Results(samples=values[:, :-2], log_likelihood=values[:, -2], log_weights=values[:, -1], **keywords)
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"`load` expected in {info} what a run writes; {error} Restore the file from a copy."
        ) from error


def _positive(what: str, num_samples: Any, width: int) -> int:
    count = scalar(num_samples)
    if not isinstance(count, int) or count < 1:
        raise ValueError(f"`num_samples` expected a positive number of {what}; got {shown(num_samples)}.")
    require_memory("`num_samples`", count, 8 * width)
    return count


def _label(name: str, label: str) -> str:
    """Add the dollar signs that anesthetic needs to TeX; a plain name such as log_mass stays plain."""
    tex = label != name and "$" not in label and any(sign in label for sign in "\\^_{")
    return f"${label}$" if tex else label


def _check(result: Results) -> None:
    k, n = len(result.names), np.size(result.log_likelihood)
    if k == 0:
        raise ValueError("`names` expected at least one column; got none.")
    taken = sorted({name for name in result.names if name in RESERVED or result.names.count(name) > 1})
    if taken:
        raise ValueError(
            f"`names` expected distinct columns other than {RESERVED}; got {taken}. Rename the parameters."
        )
    for name, shape in (("samples", (n, k)), ("log_likelihood", (n,)), ("log_weights", (n,))):
        if getattr(result, name).shape != shape:
            raise ValueError(f"`{name}` expected shape {shape}; got {getattr(result, name).shape}.")
    for name in ("log_likelihood", "log_weights"):
        if not (getattr(result, name) < np.inf).all():
            raise ValueError(f"`{name}` expected finite values or -inf; got NaN or +inf. Set what failed to -inf.")
    if np.isfinite(result.log_weights[np.isneginf(result.log_likelihood)]).any():
        raise ValueError("`log_weights` expected -inf wherever `log_likelihood` is -inf; got a finite weight there.")
    if result.derived != result.names[k - len(result.derived) :]:
        raise ValueError(f"`derived` expected the last of the names {result.names}; got {result.derived}.")
    if result.num_draws < n:
        raise ValueError(f"`num_draws` expected at least the {n} draws in `samples`; got {result.num_draws}.")
