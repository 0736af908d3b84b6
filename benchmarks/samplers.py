"""nsflow and its peers, each as a function of (problem, seed, ess) that counts every likelihood call.

Peers sample the unit cube, `problem.log_likelihood_cube`, through `Counted`, and run at the settings that their
authors ship or recommend for evidences; what differs from a default is said in the docstring. Each imports its package
inside the function: no environment needs all of them.
"""

import os
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import problems
import traps


def build(name: str) -> Any:
    """A problem of `problems.py` or `traps.py`; families such as gauss-7 in any dimension."""
    builders = problems.BUILDERS | traps.BUILDERS
    if name in builders:
        return builders[name]()
    family, _, dims = name.rpartition("-")
    if not hasattr(problems, family) or not dims.isdigit():
        raise ValueError(f"Expected one of {', '.join(builders)}, or a family with its dimension; got {name!r}.")
    return getattr(problems, family)(int(dims))


class Counted:
    """A likelihood on the unit cube that counts its points."""

    def __init__(self, problem: Any):
        self.problem = problem
        self.num_calls = 0

    def many(self, u: np.ndarray) -> np.ndarray:
        u = np.atleast_2d(np.asarray(u, float))
        self.num_calls += len(u)
        values = self.problem.log_likelihood_cube(u)
        return np.where(np.isfinite(values), values, -1e300)

    def one(self, u: np.ndarray) -> float:
        return float(self.many(u)[0])


def kish(log_weights: np.ndarray) -> float:
    """Effective sample size of weights."""
    weights = np.exp(log_weights - np.max(log_weights))
    return float(np.sum(weights) ** 2 / np.sum(weights**2))


def model(problem: Any, cost: float = 0.0) -> tuple[Any, Any]:
    """Likelihood and prior of a problem, as a user of nsflow would write them; a costly one sleeps in Python."""
    import jax.numpy as jnp
    import numpyro.distributions as dist

    from nsflow import HostLikelihood, Prior

    names = [f"x{i}" for i in range(problem.dim)]
    uniforms = (dist.Uniform(p.low, p.high) for p in problem.priors)

    def log_likelihood(params):
        x = jnp.stack([params[name] for name in names])
        return problem.log_likelihood(x[None], jnp)[0]

    def costly(params):
        time.sleep(cost * len(params["x0"]))
        return problem.log_likelihood(np.stack([params[name] for name in names], axis=1))

    likelihood = HostLikelihood(costly, vectorized=True) if cost else log_likelihood
    return likelihood, Prior(dict(zip(names, uniforms, strict=True)))


def nsflow(problem: Any, seed: int, ess: float, cost: float = 0.0) -> dict:
    """nsflow with its defaults: the prior in its own parameters, the likelihood traced by JAX; compilation is timed."""
    import jax

    import nsflow

    compile_s = 0.0

    def listen(event: str, seconds: float, **_: Any) -> None:
        nonlocal compile_s
        compile_s += seconds if event.endswith("_duration") and "/compile/" in event else 0.0

    jax.monitoring.register_event_duration_secs_listener(listen)
    result = nsflow.run(*model(problem, cost), seed=seed, ess=ess)
    return {
        "logZ": result.logZ,
        "logZ_err": result.logZ_err,
        "ess": result.ess,
        "num_calls": result.num_calls,
        "khat": result.khat,
        "max_weight_share": result.max_weight_share,
        "num_draws": result.num_draws,
        "finished": result.finished,
        "alarms": list(result.alarms),
        "compile_s": round(compile_s, 1),
        "versions": result.versions,
    }


def nautilus(problem: Any, seed: int, ess: float) -> dict:
    """Nautilus, its exploration discarded: its authors' way to an unbiased evidence. It quotes no error; ESS^-1/2."""
    from nautilus import Sampler

    counted = Counted(problem)
    sampler = Sampler(
        lambda u: u, counted.many, n_dim=problem.dim, n_live=2000, vectorized=True, pass_dict=False, seed=seed
    )
    sampler.run(n_eff=ess, discard_exploration=True, verbose=False)
    return {
        "logZ": sampler.log_z,
        "logZ_err": sampler.n_eff**-0.5,
        "ess": sampler.n_eff,
        "num_calls": counted.num_calls,
    }


def dynesty(problem: Any, seed: int, ess: float) -> dict:  # noqa: ARG001
    """Dynesty's static sampler with 1000 live points; its ESS is what that gives, not a target."""
    from dynesty import NestedSampler

    counted = Counted(problem)
    rng = np.random.default_rng(seed)
    sampler = NestedSampler(counted.one, lambda u: u, problem.dim, nlive=1000, rstate=rng)
    sampler.run_nested(print_progress=False)
    found = sampler.results
    return {
        "logZ": found.logz[-1],
        "logZ_err": found.logzerr[-1],
        "ess": kish(found.logwt),
        "num_calls": counted.num_calls,
    }


def ultranest(problem: Any, seed: int, ess: float) -> dict:  # noqa: ARG001
    """UltraNest's reactive sampler; above ten dimensions 2 d slice steps, as its documentation advises."""
    from ultranest import ReactiveNestedSampler, stepsampler

    counted = Counted(problem)
    np.random.seed(seed)
    sampler = ReactiveNestedSampler([f"x{i}" for i in range(problem.dim)], counted.many, lambda u: u, vectorized=True)
    if problem.dim > 10:
        direction = stepsampler.generate_mixture_random_direction
        sampler.stepsampler = stepsampler.SliceSampler(nsteps=2 * problem.dim, generate_direction=direction)
    found = sampler.run(show_status=False, viz_callback=False)
    with np.errstate(divide="ignore"):
        log_weights = np.log(found["weighted_samples"]["weights"])
    return {
        "logZ": found["logz"],
        "logZ_err": found["logzerr"],
        "ess": kish(log_weights),
        "num_calls": counted.num_calls,
    }


def inessai(problem: Any, seed: int, ess: float) -> dict:  # noqa: ARG001
    """The importance nested sampler of nessai; its evidence from independent draws, which are counted too."""
    from nessai.flowsampler import FlowSampler
    from nessai.model import Model

    counted = Counted(problem)

    class Cube(Model):
        names = [f"x{i}" for i in range(problem.dim)]
        bounds = {f"x{i}": [0.0, 1.0] for i in range(problem.dim)}

        def log_prior(self, x):
            return np.log(self.in_bounds(x), dtype=float)

        def log_likelihood(self, x):
            values = counted.many(self.unstructured_view(x))
            return values if np.ndim(x) else values[0]

        def to_unit_hypercube(self, x):
            return x.copy()

        def from_unit_hypercube(self, x):
            return x.copy()

    with tempfile.TemporaryDirectory() as folder:
        sampler = FlowSampler(
            Cube(), output=folder, importance_nested_sampler=True, seed=seed, resume=False, plot=False,
            checkpointing=False, signal_handling=False,
        )  # fmt: skip
        sampler.run(plot=False, save=False)
        return {
            "logZ": sampler.logZ,
            "logZ_err": sampler.logZ_error,
            "ess": sampler.ns.state.effective_n_posterior_samples,
            "num_calls": counted.num_calls,
        }


def pocomc(problem: Any, seed: int, ess: float) -> dict:
    """PocoMC; the evidence from as many draws of its last flow as the target ESS."""
    from pocomc import Prior, Sampler
    from scipy.stats import uniform

    counted = Counted(problem)
    sampler = Sampler(Prior([uniform(0.0, 1.0)] * problem.dim), counted.many, vectorize=True, random_state=seed)
    sampler.run(n_total=int(ess), n_evidence=int(ess), progress=False)
    logZ, logZ_err = sampler.evidence()
    _, weights, *_ = sampler.posterior(trim_importance_weights=False)
    with np.errstate(divide="ignore"):
        return {"logZ": logZ, "logZ_err": logZ_err, "ess": kish(np.log(weights)), "num_calls": counted.num_calls}


def blackjax_nss(problem: Any, seed: int, ess: float) -> dict:  # noqa: ARG001
    """blackjax's nested slice sampler: 1000 live points, 100 replaced at once, 5 d slice steps, stop at log 1e-3.

    Its likelihood is traced, so its calls are those that its own record says: two ends, the expansions and the
    shrinkage of each slice.
    """
    import blackjax
    import jax
    import jax.numpy as jnp
    from blackjax.ns.utils import finalise, log_weights

    jax.config.update("jax_enable_x64", True)
    num_live = 1000

    def log_likelihood(u):
        inside = jnp.clip(u, 1e-300, 1 - 1e-16)  # the prior refuses what is outside
        value = problem.log_likelihood_cube(inside[None], jnp)[0]
        return jnp.where(jnp.isfinite(value), value, -1e300)

    def log_prior(u):
        return jnp.where(jnp.all((u >= 0) & (u <= 1)), 0.0, -jnp.inf)

    sampler = blackjax.nss(log_prior, log_likelihood, num_inner_steps=5 * problem.dim, num_delete=num_live // 10)
    key, key_init = jax.random.split(jax.random.key(seed))
    state = jax.jit(sampler.init)(jax.random.uniform(key_init, (num_live, problem.dim)))
    step, dead, num_calls = jax.jit(sampler.step), [], num_live
    while state.integrator.logZ_live - state.integrator.logZ > -3:
        key, key_step = jax.random.split(key)
        state, info = step(key_step, state)
        slices = info.update_info
        num_calls += int(jnp.sum(slices.num_expansions) + jnp.sum(slices.num_shrink) + 2 * slices.num_shrink.size)
        dead.append(jax.device_get(info._replace(update_info=None)))
    volumes = np.asarray(
        log_weights(jax.random.key(seed + 10_000), finalise(state, dead, update_info=False), shape=200)
    )
    evidences = np.logaddexp.reduce(np.nan_to_num(volumes, nan=-np.inf), axis=0)
    return {
        "logZ": np.mean(evidences),
        "logZ_err": np.std(evidences),
        "ess": kish(np.nan_to_num(np.mean(volumes, axis=1), nan=-np.inf)),
        "num_calls": num_calls,
    }


SAMPLERS: dict[str, Callable[[Any, int, float], dict]] = {
    "nsflow": nsflow,
    "nautilus": nautilus,
    "dynesty": dynesty,
    "ultranest": ultranest,
    "i-nessai": inessai,
    "pocomc": pocomc,
    "blackjax-nss": blackjax_nss,
}


def python_of(sampler: str, default: str) -> str:
    """Interpreter of a sampler's environment: nsflow's own, or the one that NSFLOW_PEERS_PYTHON names."""
    return default if sampler == "nsflow" else os.environ.get("NSFLOW_PEERS_PYTHON", default)
