"""JAX likelihoods shared among devices: the same values as on one."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from nsflow.likelihood.likelihood import JaxLikelihood, evaluate

SCRIPT = """
import json, sys
import jax, jax.numpy as jnp, numpy as np
from nsflow.likelihood.likelihood import JaxLikelihood, evaluate
from tests.test_devices import PARAMS, log_likelihood, summary

devices = jax.devices()
assert len(devices) == 4
meshes = [jax.make_mesh((2,), ("points",), devices=devices[:2]), jax.make_mesh((4,), ("points",)),
          jax.make_mesh((2, 2), ("a", "b"))]
print(json.dumps([summary(JaxLikelihood(log_likelihood, mesh=mesh)) for mesh in meshes]))
"""
PARAMS = {"a": np.linspace(-3, 3, 271), "b": np.linspace(-1, 1, 3 * 271).reshape(271, 3)}


def log_likelihood(params):
    """What a partitioner would rather gather: a factorisation, and a loop of its own length for each point."""
    import jax
    import jax.numpy as jnp

    covariance = jnp.eye(3) + jnp.outer(params["b"], params["b"])
    chol = jnp.linalg.cholesky(covariance)
    steps = jax.lax.while_loop(lambda n: n < 10 * jnp.abs(params["a"]), lambda n: n + 1, 0)
    log_l = -0.5 * params["a"] ** 2 - jnp.sum(jnp.log(jnp.diag(chol))) - steps
    return log_l, {"trace": jnp.trace(covariance)}


def summary(likelihood):
    """Values, and on how many devices they were computed."""
    import jax

    evaluation = evaluate(likelihood, PARAMS)
    with jax.enable_x64(True):
        output, _ = likelihood._batched({name: array[:16] for name, array in PARAMS.items()})
    return {
        "log_likelihood": evaluation.log_likelihood.tolist(),
        "trace": evaluation.derived["trace"].tolist(),
        "num_devices": len(output.sharding.device_set),
    }


@pytest.fixture(scope="module")
def shared():
    """271 points, which neither 2 nor 4 devices share evenly, in a process that has four."""
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu"}
    run = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


@pytest.mark.parametrize(("i", "num_devices"), [(0, 2), (1, 4), (2, 4)], ids=["two", "four", "two by two"])
def test_values_are_those_of_one_device(shared, i, num_devices):
    alone = summary(JaxLikelihood(log_likelihood))
    assert alone["num_devices"] == 1
    assert shared[i]["num_devices"] == num_devices
    np.testing.assert_allclose(shared[i]["log_likelihood"], alone["log_likelihood"], rtol=1e-14)
    np.testing.assert_allclose(shared[i]["trace"], alone["trace"], rtol=1e-14)
