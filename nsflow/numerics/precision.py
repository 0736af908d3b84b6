"""In how many bits JAX computes, whatever the caller's configuration says."""

import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, ParamSpec, TypeVar

import jax

from nsflow.numerics.arithmetic import own_arithmetic

P = ParamSpec("P")
R = TypeVar("R")


def standard_promotion(function: Callable[P, R]) -> Callable[P, R]:
    """Run `function` with JAX's standard type promotion: other people's code inside mixes types.

    Args:
        function: Any function that calls JAX.

    Returns:
        The same function.

    Example:
        >>> import jax.numpy as jnp
        >>> standard_promotion(lambda: (jnp.ones(2, jnp.int32) + jnp.ones(2, jnp.float32)).dtype)()
        dtype('float32')
    """
    return _within(function, _standard)


def float64(function: Callable[P, R]) -> Callable[P, R]:
    """Run `function` with 64-bit JAX types, leaving the global configuration as it was.

    Log-likelihoods of 1e6 nats occur; float32 resolves them to 0.06 nats. Type promotion is the standard one
    inside: priors and likelihoods are other people's code and mix types. Numpy's errors for floats and JAX's guards of
    transfers are ours inside: the caller chose them for code of their own.

    Args:
        function: Any function that calls JAX.

    Returns:
        The same function, evaluated in 64-bit mode.

    Example:
        >>> import jax.numpy as jnp
        >>> float64(lambda: jnp.ones(2).dtype)()
        dtype('float64')
    """
    return _within(function, own_arithmetic, _doors, _standard)


def full_precision(function: Callable[P, R]) -> Callable[P, R]:
    """Run or trace `function` with matrix products in the precision of their factors.

    Accelerators round the factors of float32 products to TF32 or bfloat16 unless they are told otherwise. On an H200
    this moved points by up to 7e-4, more than the inverse of a flow may miss its point by: densities were NaN.

    Args:
        function: Any function that calls JAX.

    Returns:
        The same function.

    Example:
        >>> import jax.numpy as jnp
        >>> jaxpr = jax.make_jaxpr(full_precision(jnp.dot))(jnp.ones((2, 2)), jnp.ones(2))
        >>> str(jaxpr.eqns[0].params["precision"][0])
        'HIGHEST'
    """
    return _within(function, lambda: jax.default_matmul_precision("highest"))


@contextmanager
def _standard() -> Iterator[None]:
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@contextmanager
def _doors() -> Iterator[None]:
    with jax.enable_x64(True), jax.transfer_guard("allow"):
        yield


def _within(function: Callable[P, R], *contexts: Callable[[], AbstractContextManager[Any]]) -> Callable[P, R]:
    """Run a function in contexts that are made anew for each call."""

    @functools.wraps(function)
    def inside(*args: P.args, **kwargs: P.kwargs) -> R:
        with ExitStack() as stack:
            for context in contexts:
                stack.enter_context(context())
            return function(*args, **kwargs)

    return inside
