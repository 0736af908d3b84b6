"""Velocity networks, and everything callable as a pytree."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.tree_util import Partial

from nsflow.flow.path import LinearPath, TrigonometricPath
from nsflow.flow.velocity import Architecture, VelocityNetwork, _waves, as_velocity

T, X = jnp.array(0.3), jnp.array([1.0, -2.0])


@pytest.mark.parametrize("path", [LinearPath(), TrigonometricPath()])
def test_untrained_field_is_the_gaussian_part(path):
    """The network starts at zero, so the field is exactly that of two Gaussians."""
    field = Architecture(width=16).init(jax.random.key(0), 2, path)
    np.testing.assert_array_equal(field(T, X), path.gaussian_velocity(T, X))


def test_network_adds_to_the_gaussian_part():
    path = LinearPath()
    field = Architecture(width=16).init(jax.random.key(0), 2, path)
    moved = jax.tree.map(lambda w: w + 0.1, field)
    zero = Architecture(width=16).init(jax.random.key(0), 2, TrigonometricPath())
    network = jax.tree.map(lambda w: w + 0.1, zero)(T, X) - TrigonometricPath().gaussian_velocity(T, X)
    assert np.abs(network).min() > 0.01
    np.testing.assert_allclose(moved(T, X), path.gaussian_velocity(T, X) + network, rtol=1e-5)


@pytest.mark.parametrize(("width", "depth", "frequencies", "times"), [(8, 1, (), ()), (16, 3, (2.0, 4.0), (1.0,))])
def test_architecture_sets_the_shapes(width, depth, frequencies, times):
    """Inputs are the point, and a sine and a cosine of each frequency; then `depth` layers of `width`, then a head."""
    architecture = Architecture(width, depth, frequencies, times)
    kernels = [w.shape for w in jax.tree.leaves(architecture.init(jax.random.key(0), 3, LinearPath())) if w.ndim == 2]
    num_inputs = 3 * (1 + 2 * len(frequencies)) + 2 * len(times)
    sizes = [num_inputs, *[width] * depth, 3]
    assert sorted(kernels) == sorted(zip(sizes[:-1], sizes[1:], strict=True))


def test_network_is_a_perceptron_of_the_point_its_waves_and_the_times():
    """By hand: x, cos kx and sin kx, cos pi k t and sin pi k t; a silu layer; a linear head."""
    network = VelocityNetwork(2, Architecture(8, 1, (2.0, 4.0), (1.0, 3.0)), rngs=nnx.Rngs(0))
    rng = np.random.default_rng(0)
    network.head.kernel[...] = jnp.asarray(rng.normal(size=(8, 2)), jnp.float32)
    (layer,), head, x = network.layers, network.head, np.asarray(X)
    for t in (0.3, 0.8):
        angles = [2 * x, 4 * x, [np.pi * t], [3 * np.pi * t]]
        inputs = np.concatenate([x, *(wave(angle) for angle in angles for wave in (np.cos, np.sin))])
        h = inputs @ np.asarray(layer.kernel[...]) + np.asarray(layer.bias[...])
        expected = (h / (1 + np.exp(-h))) @ np.asarray(head.kernel[...]) + np.asarray(head.bias[...])
        np.testing.assert_allclose(network(jnp.array(t), X), expected, rtol=1e-4, atol=1e-6)


def test_default_architecture_grows_with_the_dimension():
    assert Architecture.of_dims(2) == Architecture(width=64, depth=3)
    assert Architecture.of_dims(10) == Architecture(width=64, depth=2)
    assert Architecture.of_dims(40).width == 160


def test_initial_weights_follow_the_key():
    weights = [jax.tree.leaves(Architecture(width=8).init(jax.random.key(seed), 2, LinearPath())) for seed in (0, 0, 1)]
    assert all(np.array_equal(*pair) for pair in zip(weights[0], weights[1], strict=True))
    assert not all(np.array_equal(*pair) for pair in zip(weights[0], weights[2], strict=True))


def test_network_evaluates_in_float32_and_returns_the_points_precision():
    network = VelocityNetwork(2, Architecture(width=8), rngs=nnx.Rngs(0))
    network.head.bias[...] = jnp.ones(2)
    low = network(T, X)
    with jax.enable_x64(True):
        high = network(jnp.asarray(T, jnp.float64), jnp.asarray(X, jnp.float64))
    assert (low.dtype, high.dtype) == (np.float32, np.float64)
    np.testing.assert_allclose(high, low, rtol=1e-6)
    np.testing.assert_array_equal(low, np.ones(2))


# ---- callables


def rotation(t, x):
    return t * jnp.stack([-x[1], x[0]])


class Rotation(nnx.Module):
    def __init__(self):
        self.speed = nnx.Param(jnp.array(1.0))

    def __call__(self, t, x):
        return self.speed[...] * rotation(t, x)


@pytest.mark.parametrize(
    ("field", "num_leaves"),
    [(rotation, 0), (Rotation(), 1), (Partial(lambda a, t, x: a * rotation(t, x), jnp.array(1.0)), 1)],
    ids=["function", "module", "partial"],
)
def test_any_callable_becomes_a_pytree(field, num_leaves):
    """The arrays are its leaves, it passes through jit as an argument, and it keeps its values."""
    velocity = as_velocity(field)
    leaves, treedef = jax.tree.flatten(velocity)
    assert len(leaves) == num_leaves
    np.testing.assert_allclose(jax.jit(lambda v, t, x: v(t, x))(velocity, T, X), rotation(T, X), rtol=1e-6)
    doubled = jax.tree.unflatten(treedef, [2 * leaf for leaf in leaves])
    np.testing.assert_allclose(doubled(T, X), 2**num_leaves * rotation(T, X), rtol=1e-6)
    assert as_velocity(velocity) is velocity


@pytest.mark.parametrize("frequencies", [(), (3.0,), (1.0, 2.0, 4.0, 8.0), (2.0, 3.0, 6.0), (4.0, 2.0, 1.0)])
def test_waves_are_cosines_and_sines_however_they_are_computed(frequencies):
    """The double-angle formula loses a digit in eight octaves, not more."""
    x = jnp.linspace(-5, 5, 101)
    waves = _waves(x, frequencies)
    assert len(waves) == 2 * len(frequencies)
    for k, cos, sin in zip(frequencies, waves[::2], waves[1::2], strict=True):
        np.testing.assert_allclose(cos, np.cos(k * np.asarray(x)), atol=2e-5)
        np.testing.assert_allclose(sin, np.sin(k * np.asarray(x)), atol=2e-5)


def test_untrained_potential_is_a_gaussians():
    potential = Architecture(width=16).init_potential(jax.random.key(0), 2)
    assert potential(X) == -0.5 * float(X @ X)
    moved = jax.tree.map(lambda w: w + 0.1, potential)
    assert abs(moved(X) - potential(X)) > 0.01
    assert jax.grad(potential)(X).tolist() == (-X).tolist()


@pytest.mark.parametrize(
    ("name", "value"),
    [("width", 0), ("depth", 1.5), ("frequencies", "a"), ("frequencies", 3), ("time_frequencies", (1.0, None))],
)
def test_sizes_that_no_network_has_are_refused_by_name(name, value):
    with pytest.raises(ValueError, match=f"`Architecture.{name}` expected .*; got "):
        Architecture(**{name: value})


def test_lists_of_frequencies_are_kept_as_tuples():
    """A list cannot be hashed, as the options of compiled functions are."""
    assert hash(Architecture(frequencies=[2.0])) == hash(Architecture(frequencies=(2.0,)))
