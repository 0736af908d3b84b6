"""Execute the code of `docs/explanation/diffusion.md` and draw its pictures.

python tools/diffusion_figures.py [--output docs/images]
"""

import argparse
import re
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from nsflow.flow.ode import integrate

DOCS = Path(__file__).resolve().parent.parent / "docs"
PAGE = DOCS / "explanation" / "diffusion.md"
DOTS = {"s": 1.5, "linewidths": 0, "alpha": 0.6}
COLOURS = ("#1f4e79", "#b5651d", "#3b7a57", "#8c2d4f", "#555555")


def execute() -> dict[str, Any]:
    """Names that the page's code defines."""
    scope: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL):
        exec(block, scope)
    return scope


def bare(axis: Any, title: str = "", limits: tuple[float, float, float, float] | None = (-1.8, 2.8, -1.4, 1.9)) -> None:
    """Leave a panel without ticks."""
    axis.set(xticks=[], yticks=[], title=title)
    if limits:
        axis.set(xlim=limits[:2], ylim=limits[2:], aspect="equal")


def forward(page: dict[str, Any]) -> Any:
    """Paths of a few points, and the marginals of all."""
    figure, axes = plt.subplots(1, 5, figsize=(12, 2.6), layout="constrained")
    paths = np.concatenate([page["points"][:8, None], page["trajectories"]], axis=1)
    for path in paths:
        axes[0].plot(np.linspace(0, 1, len(path[:, 0])), path[:, 0], linewidth=0.8)
    axes[0].set(xlabel="t", ylabel="first coordinate", title="eight points")
    rng = np.random.default_rng(0)
    for axis, t in zip(axes[1:], (0.0, 0.1, 0.3, 1.0), strict=True):
        factor, std = page["process"].transition(jnp.array(0.0), jnp.array(t))
        x = float(factor) * page["points"] + float(std) * rng.normal(size=page["points"].shape)
        axis.scatter(*x.T, color=COLOURS[0], **DOTS)
        bare(axis, f"t = {t}", (-3, 3, -3, 3))
    return figure


def fields(page: dict[str, Any]) -> Any:
    """Held-out log-density while training, and velocities of flow matching and of a score on the points of the path."""
    figure, axes = plt.subplots(2, 4, figsize=(12, 5.6), layout="constrained")
    for (name, (_, info)), colour in zip(page["fits"].items(), COLOURS, strict=True):
        scores = np.array(info.training.scores)
        axes[0, 0].plot(200 * np.arange(len(scores)), scores, ".-", color=colour, label=name, linewidth=0.9)
        losses = np.array(info.training.losses)
        axes[1, 0].plot(200 * np.arange(1, len(losses) + 1), losses - losses[-1], ".-", color=colour, linewidth=0.9)
    axes[0, 0].set(title="held-out log-density, whitened", xlabel="gradient steps", ylim=(-2.9, None))
    axes[0, 0].legend(fontsize=7, frameon=False)
    axes[1, 0].set(title="loss above its last value", xlabel="gradient steps")
    path = page["path"]
    for row, name in zip(axes, ("flow matching", "denoising score matching"), strict=True):
        flow, rng = page["fits"][name][0], np.random.default_rng(0)  # the same points in both rows
        white = np.linalg.solve(flow.scale, (page["points"] - flow.mean).T).T
        for panel, t in zip(row[1:], (0.5, 0.7, 0.9), strict=True):
            at = jnp.asarray(t, jnp.float32)
            x = float(path.alpha(at)) * white + float(path.sigma(at)) * rng.normal(size=white.shape)
            v = jax.vmap(lambda x, at=at, flow=flow: flow.velocity(at, x))(jnp.asarray(x[:250], jnp.float32))
            panel.scatter(*x.T, color="#c8d3de", s=2, linewidths=0)
            # Arrows as long as the way that a point would go in a quarter of the time.
            panel.quiver(
                *x[:250].T,
                *np.asarray(v).T,
                color=COLOURS[0],
                width=0.005,
                angles="xy",
                scale_units="xy",
                scale=4,
            )
            bare(panel, f"{name.removeprefix('denoising ')}, t = {t}", (-2.6, 2.6, -2.6, 2.6))
    return figure


def dynamics(page: dict[str, Any]) -> Any:
    """The data, and draws by each way of following one learned field."""
    names = ("probability-flow ODE", "Euler-Maruyama", "stochastic Heun", "predictor-corrector", "annealed Langevin")
    figure, axes = plt.subplots(1, 6, figsize=(13, 2.3), layout="constrained")
    panels = {"data": page["held_out"], **dict(zip(names, [page["x"], *page["samples"]], strict=True))}
    for axis, (name, x) in zip(axes, panels.items(), strict=True):
        axis.scatter(*np.asarray(x).T, color=COLOURS[0], **DOTS)
        bare(axis, name)
    return figure


def strip(page: dict[str, Any]) -> Any:
    """The flow from prior to posterior, stopped on its way, in the parameters of the problem."""
    figure, axes = plt.subplots(1, 6, figsize=(13, 2.5), layout="constrained")
    flow, z = page["carried"].map, page["carried"].base.sample(jax.random.key(0), 3000, 2)
    for axis, end in zip(axes, (0.0, 0.4, 0.7, 0.85, 0.95, 1.0), strict=True):
        slowed = lambda t, x, end=end: end * flow.velocity(end * t, x)  # noqa: E731
        x = jax.vmap(lambda z, slowed=slowed: integrate(slowed, z, 24, backwards=False))(z)
        axis.scatter(*np.asarray(page["prior"].forward(np.asarray(x, np.float64))["x"]).T, color=COLOURS[0], **DOTS)
        bare(axis, f"t = {end}", (-2, 3, -2, 2.5))
    return figure


def main() -> None:
    """Execute the page, draw its pictures and print its numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=DOCS / "images")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    page = execute()
    print({name: round(float(value), 3) for name, value in page["log_probs"].items()})
    constant, error = page["log_constant"], page["energy"].logZ_err
    print(f"the prior carried to the posterior: {page['carried_log_prob']:.3f}")
    print(f"mass {page['mass']:.4f}, log of the energy's constant {constant:.3f} +- {error:.3f}")
    for draw in (forward, fields, dynamics, strip):
        draw(page).savefig(args.output / f"diffusion-{draw.__name__}.png", dpi=80)
    results = [page["result"], page["by_mixture"]]
    print("pulls", [round(float((r.logZ - page["exact"]) / r.logZ_err), 2) for r in results])


if __name__ == "__main__":
    main()
