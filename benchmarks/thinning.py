"""Draw one frozen mixture for long, with its thinning and without, and print what the thinning is worth.

    python benchmarks/thinning.py [--problems shells-2,eggbox-2] [--seed 0] [--draws 20000]

A run is opened up and taken to its frozen phase. Its mixture is then drawn as it is, and with every thinned component
replaced by the proposal under it, so many calls of each. Efficiency is the effective sample size of a call; the
surrogate's error is weighted by the posterior.
"""

import argparse

import jax
import numpy as np
from samplers import build, model

import nsflow
from nsflow.importance.evidence import log_evidence
from nsflow.likelihood.likelihood import as_likelihood, evaluate
from nsflow.nested.state import Phase, State
from nsflow.numerics.precision import float64
from nsflow.proposals.meta_proposal import MetaProposal
from nsflow.proposals.rejection import Thinned, acceptance, expected_calls


def frozen_state(name: str, seed: int) -> State:
    """Take a run to its frozen phase."""
    log_likelihood, prior = model(build(name))
    key = jax.random.key(seed)
    state = nsflow.init(key, nsflow.Problem(as_likelihood(log_likelihood), prior))
    num_steps = 0
    while state.phase is not Phase.FROZEN:
        num_steps += 1
        state, _ = nsflow.step(jax.random.fold_in(key, num_steps), state)
    return state


@float64
def measure(state: State, proposal: MetaProposal, num_calls: int) -> tuple[str, float]:
    """Draw a mixture; return its evidence and efficiency, and the surrogate's error where there is one."""
    scale = num_calls / expected_calls(proposal)
    mixture = MetaProposal(proposal.components, tuple(max(2, round(scale * n)) for n in proposal.num_draws))
    draws = mixture.sample(jax.random.key(1))
    log_likelihood = evaluate(state.problem.likelihood, state.problem.prior.forward(draws.x)).log_likelihood
    log_weights = log_likelihood + np.asarray(state.problem.prior.latent_log_prob(draws.x)) - draws.log_Q
    estimate = log_evidence(log_weights, draws.component, np.array(mixture.num_draws))
    error = float("nan")
    thinned = [q for q in mixture.components if isinstance(q, Thinned)]
    if thinned:
        weights = np.exp(log_weights - np.logaddexp.reduce(log_weights))
        matter = weights > 0
        difference = thinned[-1].surrogate(draws.x[matter]) - log_likelihood[matter]
        error = float(np.sqrt(weights[matter] @ difference**2))
    efficiency = estimate.ess / len(draws.x)
    return f"{efficiency:.2f} of {len(draws.x)} calls, logZ {estimate.logZ:.4f} +- {estimate.logZ_err:.4f}", error


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", default="loggamma-10,mixture-5,shells-2,eggbox-2")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--draws", type=int, default=20_000)
    args = parser.parse_args()
    for name in args.problems.split(","):
        state = frozen_state(name, args.seed)
        assert state.frozen is not None
        proposal = state.frozen.proposal
        bare = MetaProposal(
            tuple(q.proposal if isinstance(q, Thinned) else q for q in proposal.components),
            tuple(round(n * acceptance(q)) for q, n in zip(proposal.components, proposal.num_draws, strict=True)),
        )
        before, _ = measure(state, bare, args.draws)
        after, error = measure(state, proposal, args.draws)
        print(f"{name}: exact logZ {build(name).logz:.4f}, surrogate off by {error:.4f} nats (rms)")
        print(f"  without thinning: efficiency {before}")
        print(f"  with thinning:    efficiency {after}", flush=True)


if __name__ == "__main__":
    main()
