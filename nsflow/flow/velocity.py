"""Fields: networks of flax, and the callables that a flow integrates."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, final, no_type_check

import jax
import jax.numpy as jnp
from flax import nnx
from jax.tree_util import Partial
from jaxtyping import Array, Float

from nsflow.flow.path import AbstractPath
from nsflow.numerics.arguments import integer, real, settle, several
from nsflow.numerics.storable import storable


class Perceptron(nnx.Module):
    """Silu layers and a linear head that is zero at the start of training.

    Args:
        num_inputs: Inputs of the first layer.
        num_outputs: Outputs of the head.
        architecture: Width and depth.
        rngs: Source of the initial weights.
    """

    def __init__(self, num_inputs: int, num_outputs: int, architecture: "Architecture", *, rngs: nnx.Rngs):
        sizes = [num_inputs] + [architecture.width] * architecture.depth
        self.layers = nnx.List([nnx.Linear(m, n, rngs=rngs) for m, n in zip(sizes[:-1], sizes[1:], strict=True)])
        self.head = nnx.Linear(sizes[-1], num_outputs, kernel_init=nnx.initializers.zeros_init(), rngs=rngs)

    def _outputs(self, h: Array) -> Array:
        for layer in self.layers:
            h = nnx.silu(layer(h))
        return self.head(h)


@final
class VelocityNetwork(Perceptron):
    r"""Multilayer perceptron of one point and its time, zero at the start of training.

    Args:
        num_dims: Dimension d of the points.
        architecture: Size of the network and the frequencies of its inputs.
        num_outputs: Outputs k; d if left out.
        rngs: Source of the initial weights.

    Example:
        >>> network = VelocityNetwork(2, Architecture(width=16), rngs=nnx.Rngs(0))
        >>> network(jnp.array(0.5), jnp.ones(2)).tolist()
        [0.0, 0.0]

    References:
        Tancik et al. (2020), *Fourier Features Let Networks Learn High Frequency Functions*, Eq. 5, for the inputs.
    """

    def __init__(self, num_dims: int, architecture: "Architecture", *, num_outputs: int | None = None, rngs: nnx.Rngs):
        self.frequencies = architecture.frequencies
        self.time_frequencies = architecture.time_frequencies
        num_inputs = num_dims * (1 + 2 * len(self.frequencies)) + 2 * len(self.time_frequencies)
        super().__init__(num_inputs, num_outputs or num_dims, architecture, rngs=rngs)

    def __call__(self, t: Float[Array, ""], x: Float[Array, " d"]) -> Float[Array, " k"]:
        """Evaluate in float32, whatever the precision of the point."""
        point, time = x.astype(jnp.float32), t.astype(jnp.float32)
        h = jnp.concatenate(
            [point, *_waves(point, self.frequencies), *_waves(jnp.pi * time[None], self.time_frequencies)]
        )
        return self._outputs(h).astype(x.dtype)


@final
class PotentialNetwork(Perceptron):
    r"""Scalar field whose multilayer perceptron f, zero at the start, is given products of linear functions as well.

    .. math:: -\tfrac12 |x|^2 + f\bigl(x, (A x + a) \odot (B x + b)\bigr) .

    A log-likelihood is often a function of sums of squares, which silu layers learn late or never: of two 10-d shells
    they knew nothing after 6000 steps, and were off by 0.05 to 0.1 nats after 20 000. With products 3000 steps do.

    Args:
        num_dims: Dimension d of the points.
        architecture: Size of the network and the frequencies of its inputs.
        rngs: Source of the initial weights.

    Example:
        >>> PotentialNetwork(2, Architecture(width=16), rngs=nnx.Rngs(0))(jnp.array([1.0, 2.0])).tolist()
        -2.5
    """

    def __init__(self, num_dims: int, architecture: "Architecture", *, rngs: nnx.Rngs):
        self.frequencies = architecture.frequencies
        num_inputs = num_dims * (1 + 2 * len(self.frequencies))
        self.factors = nnx.Linear(num_inputs, 2 * architecture.width, rngs=rngs)
        super().__init__(num_inputs + architecture.width, 1, architecture, rngs=rngs)

    def __call__(self, x: Float[Array, " d"]) -> Float[Array, ""]:
        """Evaluate in the precision of the weights."""
        h = jnp.concatenate([x, *_waves(x, self.frequencies)])
        left, right = jnp.split(self.factors(h), 2)
        return self._outputs(jnp.concatenate([h, left * right]))[0] - 0.5 * jnp.sum(x**2)


def _waves(x: Array, frequencies: Sequence[float]) -> list[Array]:
    """Cosine and sine at each frequency, by the double-angle formula where one doubles the one before.

    Sines are two thirds of the time of a small network on a CPU; this makes them three times cheaper.
    """
    waves: list[Array] = []
    for before, k in zip((0.0, *frequencies), frequencies, strict=False):
        cos, sin = waves[-2:] if waves and k == 2 * before else (jnp.cos(k * x), jnp.sin(k * x))
        waves += [cos**2 - sin**2, 2 * sin * cos] if waves and k == 2 * before else [cos, sin]
    return waves


FREQUENCIES = several(real(lambda k: abs(k) < 1e6, "a number"), "a tuple of frequencies")
SIZES = {
    "width": integer(1, 10**5),
    "depth": integer(1, 10**3),
    "frequencies": FREQUENCIES,
    "time_frequencies": FREQUENCIES,
}


@storable("architecture")
@no_type_check  # its own messages come before a run-time checker's
@dataclass(frozen=True)
class Architecture:
    """Size of a velocity network.

    Args:
        width: Units of each hidden layer.
        depth: Number of hidden layers.
        frequencies: Angular frequencies of the sines and cosines of each whitened coordinate. They raised the
            importance efficiency on the eighteen modes of the eggbox from 0.002 to 0.24, and on a 10-d LogGamma from
            0.62 to 0.70.
        time_frequencies: The same for time, in units of pi.

    Raises:
        ValueError: If a size is not a positive integer, or frequencies are no numbers.
    """

    width: int = 128
    depth: int = 2
    frequencies: tuple[float, ...] = (2.0, 4.0)
    time_frequencies: tuple[float, ...] = (1.0, 2.0, 3.0, 4.0)

    def __post_init__(self) -> None:
        """Refuse values that no network could have."""
        settle(self, SIZES, "Architecture.")

    @classmethod
    def of_dims(cls, num_dims: int) -> "Architecture":
        """Default for a dimension: the Jacobian costs d passes, so few dimensions can afford a larger network.

        Three layers of 128 raised the efficiency on two shells in 2-d from 0.6 to 0.9; on a 10-d LogGamma they gained
        nothing over two layers of 64, at four times the cost.
        """
        return cls(width=64, depth=3) if num_dims <= 5 else cls(width=max(64, 4 * num_dims), depth=2)

    def init(self, key: Array, num_dims: int, path: AbstractPath) -> Partial:
        """Untrained velocity field: the path's Gaussian part plus a network that is zero.

        Args:
            key: JAX random key.
            num_dims: Dimension d of the points.
            path: Path whose Gaussian velocity the network corrects.

        Returns:
            A callable pytree ``velocity(t, x)`` whose leaves are the network's weights.
        """
        graph, weights = nnx.split(VelocityNetwork(num_dims, self, rngs=nnx.Rngs(key)))
        return Partial(_gaussian_plus_network, graph, _Static(path), weights)

    def init_noise(self, key: Array, num_dims: int, path: AbstractPath) -> Partial:
        r"""Untrained mean noise: that of whitened Gaussian data plus a network that is zero.

        .. math:: \hat x_0(t, x) = E[x_0 \mid x_t = x] = \frac{\sigma}{w^2}\,x + \frac{\alpha}{w}\,f(t, x / w), \qquad
            w^2 = \alpha^2 + \sigma^2 .

        The factor of the network bounds its part of the velocity where :math:`\alpha \to 0`. Without it, 400 steps on
        two moons left the velocity of a potential so steep there that one point in six had no inverse.

        Args:
            key: JAX random key.
            num_dims: Dimension d of the points.
            path: Path between base and data.

        Returns:
            A callable pytree ``noise(t, x)`` whose leaves are the network's weights.

        References:
            Karras et al. (2022), *Elucidating the Design Space of Diffusion-Based Generative Models*, Eq. 7.
        """
        graph, weights = nnx.split(VelocityNetwork(num_dims, self, rngs=nnx.Rngs(key)))
        return Partial(_gaussian_noise_plus_network, graph, _Static(path), weights)

    def init_action(self, key: Array, num_dims: int, path: AbstractPath) -> Partial:
        r"""Untrained potential whose gradient is the velocity: the path's Gaussian part plus a network that is zero.

        .. math:: s(t, x) = \tfrac12\, x \cdot v_{gauss}(t, x) + f(t, x) .

        Args:
            key: JAX random key.
            num_dims: Dimension d of the points.
            path: Path between base and data.

        Returns:
            A callable pytree ``action(t, x)``, a scalar, whose leaves are the network's weights.
        """
        graph, weights = nnx.split(VelocityNetwork(num_dims, self, num_outputs=1, rngs=nnx.Rngs(key)))
        return Partial(_gaussian_action_plus_network, graph, _Static(path), weights)

    def init_noise_potential(self, key: Array, num_dims: int, path: AbstractPath) -> Partial:
        r"""Untrained potential whose gradient is the mean noise, and whose scale is that of the energy.

        .. math:: \psi(t, x) = \frac{\sigma}{2 w^2}\,|x|^2 + \alpha\,f(t, x / w), \qquad
            \nabla \psi = \hat x_0, \qquad \log p_t = -\psi / \sigma + \text{const} .

        Args:
            key: JAX random key.
            num_dims: Dimension d of the points.
            path: Path between base and data.

        Returns:
            A callable pytree ``potential(t, x)``, a scalar, whose leaves are the network's weights.
        """
        graph, weights = nnx.split(VelocityNetwork(num_dims, self, num_outputs=1, rngs=nnx.Rngs(key)))
        return Partial(_gaussian_noise_potential_plus_network, graph, _Static(path), weights)

    def init_potential(self, key: Array, num_dims: int) -> Partial:
        """Untrained scalar field: minus half the squared length.

        Args:
            key: JAX random key.
            num_dims: Dimension d of the points.

        Returns:
            A callable pytree ``potential(x)`` whose leaves are the network's weights.
        """
        graph, weights = nnx.split(PotentialNetwork(num_dims, self, rngs=nnx.Rngs(key)))
        return Partial(_network, graph, weights)


@storable("static")
@jax.tree_util.register_static
@dataclass(frozen=True)
class _Static:
    """Hand an object without arrays through a pytree."""

    value: Any


@storable("velocity")
def _gaussian_plus_network(graph: Any, path: _Static, weights: Any, t: Array, x: Array) -> Array:
    return path.value.gaussian_velocity(t, x) + nnx.merge(graph, weights)(t, x)


@storable("noise-velocity")
def _gaussian_noise_plus_network(graph: Any, path: _Static, weights: Any, t: Array, x: Array) -> Array:
    alpha, sigma = path.value.alpha(t), path.value.sigma(t)
    width = jnp.sqrt(alpha**2 + sigma**2)
    return sigma / width**2 * x + alpha / width * nnx.merge(graph, weights)(t, x / width)


@storable("noise-potential-velocity")
def _gaussian_noise_potential_plus_network(graph: Any, path: _Static, weights: Any, t: Array, x: Array) -> Array:
    alpha, sigma = path.value.alpha(t), path.value.sigma(t)
    width = jnp.sqrt(alpha**2 + sigma**2)
    return 0.5 * sigma / width**2 * jnp.sum(x**2) + alpha * nnx.merge(graph, weights)(t, x / width)[0]


@storable("action-velocity")
def _gaussian_action_plus_network(graph: Any, path: _Static, weights: Any, t: Array, x: Array) -> Array:
    return 0.5 * jnp.sum(x * path.value.gaussian_velocity(t, x)) + nnx.merge(graph, weights)(t, x)[0]


# ------------------------------------------------------------- networks in parts


@storable("blueprint")
@dataclass(frozen=True)
class Blueprint:
    """What a network is built from, its weights excepted.

    Args:
        kind: Name of its class.
        num_dims: Dimension d of the points.
        num_outputs: Outputs.
        architecture: Size.
    """

    kind: str
    num_dims: int
    num_outputs: int
    architecture: Architecture

    def build(self) -> tuple[Any, Any]:
        """Graph of the network, and the structure of its weights; no weight is drawn."""
        return _skeleton(self)


@lru_cache
def _skeleton(blueprint: Blueprint) -> tuple[Any, Any]:
    def network() -> Perceptron:
        rngs = nnx.Rngs(0)
        if blueprint.kind == PotentialNetwork.__name__:
            return PotentialNetwork(blueprint.num_dims, blueprint.architecture, rngs=rngs)
        return VelocityNetwork(blueprint.num_dims, blueprint.architecture, num_outputs=blueprint.num_outputs, rngs=rngs)

    graph, weights = nnx.split(nnx.eval_shape(network))
    return graph, jax.tree.structure(weights)


def take_apart(graph: Any, weights: Any) -> tuple[Blueprint, list[Any]]:
    """Turn a split network into its blueprint and the list of its weights.

    Args:
        graph: Graph of a network of this module, as `nnx.split` returns it.
        weights: Its state.

    Returns:
        ``(blueprint, weights)``.

    Raises:
        TypeError: If it is another network.
    """
    network = nnx.merge(graph, weights)
    if type(network) not in (VelocityNetwork, PotentialNetwork):
        raise TypeError(f"expected a network of nsflow; got {type(network).__name__}")
    times = network.time_frequencies if isinstance(network, VelocityNetwork) else ()
    (num_inputs, width), depth = network.layers[0].kernel.shape, len(network.layers)
    if isinstance(network, PotentialNetwork):
        num_inputs -= width
    num_dims = (num_inputs - 2 * len(times)) // (1 + 2 * len(network.frequencies))
    architecture = Architecture(width, depth, network.frequencies, times)
    blueprint = Blueprint(type(network).__name__, num_dims, network.head.kernel.shape[1], architecture)
    if blueprint.build() != (graph, jax.tree.structure(weights)):
        raise TypeError("expected a network as its architecture makes it; got one that was changed")
    return blueprint, jax.tree.leaves(weights)


def put_together(blueprint: Blueprint, weights: Sequence[Any]) -> tuple[Any, Any]:
    """Undo :func:`take_apart`.

    Args:
        blueprint: What the network is built from.
        weights: Its weights.

    Returns:
        ``(graph, weights)``.
    """
    graph, structure = blueprint.build()
    return graph, jax.tree.unflatten(structure, weights)


def is_graph(value: Any) -> bool:
    """Whether something is the graph of a split network."""
    return isinstance(value, nnx.GraphDef)


def as_velocity(field: Callable[[Array, Array], Array]) -> Partial:
    """Turn any callable ``velocity(t, x)`` of one point into a pytree that JAX can transform.

    Args:
        field: A function, a flax network or a pytree that is callable.

    Returns:
        The callable as a pytree; the weights of a network are its leaves.
    """
    if isinstance(field, Partial):
        return field
    if isinstance(field, nnx.Module):
        graph, weights = nnx.split(field)
        return Partial(_network, graph, weights)
    return Partial(field)


@storable("network")
def _network(graph: Any, weights: Any, *inputs: Array) -> Array:
    return nnx.merge(graph, weights)(*inputs)
