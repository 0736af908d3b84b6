# %% [markdown]
# # Which measurements foretell diabetes? Two linear models and their evidence
#
# Efron et al. (2004, *Least Angle Regression*, Ann. Statist. 32, 407) measured ten covariates of 442 diabetes patients
# at the start and the progression of the disease a year later. We ask whether all ten are needed, or whether sex, body
# mass index, blood pressure and two blood serum values (s3, s5) tell as much. The Bayes factor of the two models
# answers: unneeded parameters lower the evidence. (The five were picked for this page, by the exact evidence of six
# candidate models of the same data: an illustration of a Bayes factor, not a blind test.)
#
# With normal priors, the evidence of a linear model is Gaussian algebra for given noise, and one integral over the
# noise: an exact number stands beside the sampler's.
#
#     python examples/diabetes.py [--output chains] [--ess 4000]

# %%
import argparse
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from scipy.integrate import quad
from scipy.special import logsumexp
from sklearn.datasets import load_diabetes

import nsflow

MODELS = {
    "all ten covariates": ("age", "sex", "bmi", "bp", "s1", "s2", "s3", "s4", "s5", "s6"),
    "five covariates": ("sex", "bmi", "bp", "s3", "s5"),
}

# The prior, in units of the progression score, which runs from 25 to 346. Covariates are standardised.
INTERCEPT = (150.0, 50.0)  # mean and standard deviation
SLOPE = 30.0  # standard deviation, mean zero
NOISE = (20.0, 200.0)  # smallest and largest, log-uniform between them

# %% [markdown]
# ## Model
#
# The progression of patient i is $y_i = \alpha + \sum_j \beta_j x_{ij} + \epsilon_i$ with
# $\epsilon_i \sim N(0, \sigma^2)$.


# %%
def data(covariates):
    """Covariates with mean 0 and variance 1, shape (442, k), and progression scores, shape (442,)."""
    table = load_diabetes(as_frame=True, scaled=False)
    x = table.data[list(covariates)].to_numpy(float)
    return (x - x.mean(axis=0)) / x.std(axis=0), table.target.to_numpy(float)


def model(covariates, x, y):
    """Log-likelihood of one dict of parameters, and their prior."""

    def log_likelihood(params):
        slopes = jnp.stack([params[name] for name in covariates])
        return dist.Normal(params["intercept"] + x @ slopes, params["noise"]).log_prob(y).sum()

    prior = {"intercept": dist.Normal(*INTERCEPT), "noise": dist.LogUniform(*NOISE)}
    return log_likelihood, nsflow.Prior(prior | {name: dist.Normal(0.0, SLOPE) for name in covariates})


# %% [markdown]
# ## Exact evidence
#
# Given the noise, the data are normal with covariance $\sigma^2 I + A A^T$, where $A$ holds the columns of the design,
# each times its prior standard deviation. From the thin singular value decomposition $A = U D V^T$,
#
# $$ \log p(y \mid \sigma) = -\frac12 \sum_j \left[ \frac{(U^T r)_j^2}{\sigma^2 + d_j^2} + \log(\sigma^2 + d_j^2)
#    \right] - \frac{|r - U U^T r|^2}{2 \sigma^2} - (n - k) \log\sigma - \frac n2 \log 2\pi $$
#
# with $r = y - \mathrm{E}[\alpha]$. What remains is one integral over $\log\sigma$, whose prior is flat.


# %%
def exact_log_evidence(x, y):
    """Log-evidence in nats: algebra for the coefficients, quadrature for the noise."""
    design = np.column_stack([np.ones(len(y)) * INTERCEPT[1], x * SLOPE])
    u, d, _ = np.linalg.svd(design, full_matrices=False)
    residual = y - INTERCEPT[0]
    inside = u.T @ residual
    outside = np.sum((residual - u @ inside) ** 2)

    def log_marginal(log_noise):
        variance = np.exp(2 * log_noise)
        fit = np.sum(inside**2 / (variance + d**2) + np.log(variance + d**2)) + outside / variance
        return -0.5 * (fit + 2 * (len(y) - len(d)) * log_noise + len(y) * np.log(2 * np.pi))

    low, high = np.log(NOISE)
    grid = np.linspace(low, high, 401)
    values = np.array([log_marginal(log_noise) for log_noise in grid])
    peak = grid[values.argmax()]
    # Cut at the peak, which is a few per cent wide, and divide by its height: the integrand is 1 there.
    parts = [
        quad(lambda t: np.exp(log_marginal(t) - values.max()), *ends, epsabs=0, epsrel=1e-10, limit=200)[0]
        for ends in ((low, peak), (peak, high))
        if ends[0] < ends[1]
    ]
    return values.max() + logsumexp(np.log(parts)) - np.log(high - low)


# %% [markdown]
# ## Comparison
#
# A run per model, the Bayes factor with its error, the chains on disk and a picture: both posteriors of the parameters
# that the models share.


# %%
def main(output="chains", ess=4000, seed=0):
    """Run both models, print and save; return (result, exact log-evidence) of each."""
    output = Path(output)
    output.mkdir(parents=True, exist_ok=True)
    results = {}
    print(f"{'model':<20}{'logZ (nsflow)':>24}{'exact':>14}{'pull':>8}{'calls':>9}")
    for number, (name, covariates) in enumerate(MODELS.items()):
        print(f"  sampling {len(covariates) + 2} parameters ...", flush=True)
        x, y = data(covariates)
        exact = exact_log_evidence(x, y)
        result = nsflow.run(*model(covariates, x, y), seed=seed + number, ess=ess)
        results[name] = result, exact
        pull = (result.logZ - exact) / result.logZ_err
        print(f"{name:<20}{result.logZ:>14.4f} +- {result.logZ_err:.4f}{exact:>14.4f}{pull:>8.1f}{result.num_calls:>9}")
        for alarm in result.alarms:
            print(f"{'':<20}ALARM: {alarm}")

    (full, exact_full), (small, exact_small) = results.values()
    log_bayes, error = small.logZ - full.logZ, np.hypot(small.logZ_err, full.logZ_err)
    print(f"\nlog Bayes factor of five over ten covariates: {log_bayes:.3f} +- {error:.3f}", end=" ")
    print(f"(exact {exact_small - exact_full:.3f})")

    full.save(output / "diabetes")
    small.save(output / "diabetes_five")
    print("  drawing both posteriors ...", flush=True)
    plot(full, small, output / "diabetes.png")
    print(f"Wrote {output}/diabetes.csv, .json and .png, {output}/diabetes_five.csv and .json")
    return results


def plot(full, small, path):
    """Triangle plot of both posteriors."""
    names = [*MODELS["five covariates"], "noise"]
    axes = full.plot_2d(names, label="all ten covariates")
    small.plot_2d(axes=axes, label="five covariates")
    axes.iloc[-1, 0].legend(loc="lower right", bbox_to_anchor=(len(axes), len(axes)), fontsize="medium")
    figure = axes.iloc[0, 0].figure
    figure.set_size_inches(8, 8)
    figure.savefig(path, dpi=100)


# %%
if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Evidence of two linear models of the diabetes data.")
    parser.add_argument("--output", default="chains", help="folder for the chains and the plot (default: chains)")
    parser.add_argument("--ess", type=float, default=4000, help="effective sample size of each run (default: 4000)")
    arguments = parser.parse_args()
    main(arguments.output, arguments.ess)
