"""Problems that samplers get wrong without noticing, each with a known evidence."""

import numpy as np
from problems import LOG_2PI, Problem, Uniform
from scipy import special


def _normal(x, mean, width, xp):
    """Log-density of N(mean, width^2 I), the coordinates of a row together."""
    d = x.shape[1]
    return -0.5 * xp.sum(((x - mean) / width) ** 2, axis=1) - d * np.log(width) - 0.5 * d * LOG_2PI


def slab(d=5):
    """Half of the evidence in a Gaussian of width 1, half in one of width 0.1 within it, its centre 0.7 away.

    The spike is e^-11.5 of the slab's volume and lies above its top: levels that end with the slab's evidence lose it.
    """

    def log_likelihood(x, xp=np):
        return xp.logaddexp(_normal(x, 0.0, 1.0, xp), _normal(x, 0.7 / d**0.5, 0.1, xp)) - np.log(2.0)

    return Problem(f"slab-{d}", [Uniform(-10, 10)] * d, log_likelihood, -d * np.log(20.0), "analytic")


def skilling(d=20):
    """Skilling's two Gaussians: widths 0.1 and 0.01, the narrow one 0.031 off in each coordinate with 0.99 of it all.

    Skilling (2006), Section 3.3; a run that ends with the wide one's evidence is off by log 101.
    """

    def log_likelihood(x, xp=np):
        return xp.logaddexp(_normal(x, 0.0, 0.1, xp), np.log(100.0) + _normal(x, 0.031, 0.01, xp))

    logz = np.log(100.0 + special.erf(5 / np.sqrt(2)) ** d)
    return Problem(f"skilling-{d}", [Uniform(-0.5, 0.5)] * d, log_likelihood, float(logz), "analytic")


def cauchy(d=5):
    """A Cauchy distribution of width 0.1 in every coordinate: no moments."""
    edge, width = 50.0, 0.1

    def log_likelihood(x, xp=np):
        return -xp.sum(xp.log1p((x / width) ** 2), axis=1) - d * np.log(np.pi * width)

    mass = 2 / np.pi * np.arctan(edge / width)
    logz = d * np.log(mass / (2 * edge))
    return Problem(f"cauchy-{d}", [Uniform(-edge, edge)] * d, log_likelihood, float(logz), "analytic")


def corner(d=10):
    """Exponentials of scale 0.02 into the corner of the unit cube."""
    scale = 0.02

    def log_likelihood(x, xp=np):
        return -xp.sum(x, axis=1) / scale

    logz = d * np.log(scale * -np.expm1(-1 / scale))
    return Problem(f"corner-{d}", [Uniform(0, 1)] * d, log_likelihood, float(logz), "analytic")


def plateau(d=5):
    """The likelihood says e^-40 on 99 % of the prior; in a cube of the other 1 %, a Gaussian a tenth as wide."""
    half = 0.5 * 0.01 ** (1 / d)
    width = half / 5

    def log_likelihood(x, xp=np):
        inside = xp.all(xp.abs(x) < half, axis=1)
        return xp.where(inside, -0.5 * xp.sum((x / width) ** 2, axis=1), -40.0)

    peak = d * (np.log(width) + 0.5 * LOG_2PI + np.log(special.erf(5 / np.sqrt(2))))
    logz = np.logaddexp(peak, np.log(0.99) - 40.0)
    return Problem(f"plateau-{d}", [Uniform(-0.5, 0.5)] * d, log_likelihood, float(logz), "analytic")


def noisy(d=10):
    """A Gaussian whose log-likelihood is off by 0.1 nats, rms: a sine that turns too fast to follow."""
    amplitude = 0.1 * np.sqrt(2)

    def log_likelihood(x, xp=np):
        noise = amplitude * xp.sin(1e7 * xp.sum(x * np.sqrt(np.arange(2, d + 2)), axis=1))
        return _normal(x, 0.0, 0.5, xp) + noise

    logz = -d * np.log(20.0) + np.log(special.i0(amplitude))
    return Problem(f"noisy-{d}", [Uniform(-10, 10)] * d, log_likelihood, float(logz), "analytic")


def correlated(d=10, rho=0.999):
    """A Gaussian whose coordinates all have correlation 0.999."""
    cov = 0.5**2 * (rho + (1 - rho) * np.eye(d))
    chol_inv = np.linalg.inv(np.linalg.cholesky(cov))
    norm = np.sum(np.log(np.diag(chol_inv))) - 0.5 * d * LOG_2PI

    def log_likelihood(x, xp=np):
        return norm - 0.5 * xp.sum((x @ chol_inv.T) ** 2, axis=1)

    return Problem(f"correlated-{d}", [Uniform(-10, 10)] * d, log_likelihood, -d * np.log(20.0), "analytic")


def banana(d=20):
    """Pairs (a, b) with a ~ N(0, 1) and b - a^2 / 2 ~ N(0, 0.1^2): shears keep the volume, so logZ is the box's."""

    def log_likelihood(x, xp=np):
        a, b = x[:, ::2], x[:, 1::2]
        return _normal(a, 0.0, 1.0, xp) + _normal(b - 0.5 * a**2, 0.0, 0.1, xp)

    priors = [Uniform(-8, 8), Uniform(-4, 36)] * (d // 2)
    return Problem(f"banana-{d}", priors, log_likelihood, -d // 2 * np.log(16.0 * 40.0), "analytic")


def bend(d=6):
    """A ridge b = 2 a^2 +- 0.05 with a ~ N(0, 1), a thousandth of the prior wide, and Gaussians of width 0.2."""

    def log_likelihood(x, xp=np):
        a, b = x[:, :1], x[:, 1:2]
        ridge = _normal(a, 0.0, 1.0, xp) + _normal(b - 2.0 * a**2, 0.0, 0.05, xp)
        return ridge + _normal(x[:, 2:], 2.0, 0.2, xp)

    priors = [Uniform(-5, 5), Uniform(-5, 45), *[Uniform(-10, 10)] * (d - 2)]
    mass = special.erf(np.sqrt(45 / 2 / 2))  # of |a| below the box's upper edge
    return Problem(f"bend-{d}", priors, log_likelihood, np.log(mass / 500) - (d - 2) * np.log(20.0), "analytic")


def core():
    """Half of the evidence on a thin shell in 4-d, half in a core of width 0.05 at its centre.

    One draw of the prior in a hundred lies in the core's basin, and a scout that leaps out of it climbs the shell.
    """
    radius, width = 3.0, 0.02

    def log_likelihood(x, xp=np):
        r = xp.sqrt(xp.sum(x**2, axis=1))
        shell = _normal(r[:, None], radius, width, xp) - np.log(2 * np.pi**2 * radius**3)
        return xp.logaddexp(shell, _normal(x, 0.0, 0.05, xp))

    # The shell's area is 2 pi^2 r^3, whose mean is that at the radius times 1 + 3 (width / radius)^2.
    logz = np.log(2.0 + 3 * (width / radius) ** 2) - 4 * np.log(10.0)
    return Problem("core-4", [Uniform(-5, 5)] * 4, log_likelihood, float(logz), "analytic")


def frequencies():
    """Two sines and an offset in 40 noisy data of 20 time units: either sine may be either one, hence two equal modes.

    A climb from a draw of the prior ends on one of them with a chance of 0.02, and on one of a hundred others else.
    """
    rng = np.random.default_rng(5)
    times, noise = np.sort(rng.uniform(0, 20, 40)), 0.6
    data = 1.5 * np.sin(0.42 * np.pi * times) + np.cos(1.06 * np.pi * times) + noise * rng.normal(size=40)

    def waves(f, xp):
        """Cosines and sines of n frequencies, shape (n, 40) each."""
        return [xp.cos(2 * np.pi * f[:, None] * times), xp.sin(2 * np.pi * f[:, None] * times)]

    def log_likelihood(x, xp=np):
        terms = [*waves(x[:, 0], xp), *waves(x[:, 1], xp), xp.ones((len(x), 40))]
        mean = sum(x[:, k + 2, None] * term for k, term in enumerate(terms))
        return -0.5 * xp.sum(((data - mean) / noise) ** 2, axis=1) - 40 * np.log(noise) - 20 * LOG_2PI

    # Gaussian integrals over the amplitudes, whose box is far away, on a grid of both frequencies. Equal ones, where
    # the amplitudes have no end, fit 28 nats worse.
    grid = np.linspace(0.02, 0.9, 500)
    first, second = (index.ravel() for index in np.meshgrid(grid, grid, indexing="ij"))
    apart = np.abs(first - second) > 0.01
    best = np.full(grid.size**2, -np.inf)
    terms = [*waves(first[apart], np), *waves(second[apart], np), np.ones((np.sum(apart), 40))]
    design = np.stack(terms, axis=2) / noise
    normal, projected = design.transpose(0, 2, 1) @ design, design.transpose(0, 2, 1) @ data / noise
    solved = np.linalg.solve(normal, projected[:, :, None])[:, :, 0]
    misfit = np.sum((data / noise) ** 2) - np.sum(projected * solved, axis=1)
    best[apart] = -0.5 * misfit - 0.5 * np.linalg.slogdet(normal)[1]
    constant = 2.5 * LOG_2PI - 40 * np.log(noise) - 20 * LOG_2PI - 5 * np.log(20.0)
    cells = np.log((grid[1] - grid[0]) ** 2 / 0.88**2)
    logz = np.logaddexp.reduce(best) + cells + constant
    priors = [Uniform(0.02, 0.9)] * 2 + [Uniform(-10, 10)] * 5
    return Problem("frequencies-7", priors, log_likelihood, float(logz), "quadrature")


BUILDERS = {
    "frequencies-7": frequencies,
    "core-4": core,
    "slab-5": slab,
    "skilling-20": skilling,
    "skilling-10": lambda: skilling(10),
    "cauchy-5": cauchy,
    "corner-10": corner,
    "plateau-5": plateau,
    "noisy-10": noisy,
    "correlated-10": correlated,
    "banana-20": banana,
    "bend-6": bend,
    "bend-12": lambda: bend(12),
}
