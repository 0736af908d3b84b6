"""What a run is made of, as plain JSON and blocks of bytes, and back: classes with a tag, and no code.

Reading builds objects of the classes and calls of the functions that `storable` names, and of nothing else, so that a
file from a stranger can be wrong but cannot run anything.
"""

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import fields, is_dataclass
from functools import partial
from hashlib import blake2b
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from nsflow.flow import velocity
from nsflow.flow.velocity import Blueprint
from nsflow.nested.state import Phase, Problem, Settings
from nsflow.numerics.storable import STORABLE, tag_of, where
from nsflow.prior.prior import Prior

BLOCK = 2**16  # bytes; an array that grew shares all blocks but the last with what it was
INLINE = 256  # bytes of an array that is written into the JSON
COLUMNS = 16  # named tuples of one class from which on a sequence of them is written by columns


class NotStorable(TypeError):  # noqa: N818
    """An object that a checkpoint cannot hold."""


Given = Mapping[str, Any]  # objects that the reader has: they are written by name


def given_by(problem: Problem, settings: Settings) -> Given:
    """Name what a call brings along: likelihood, prior, and every object in the settings.

    Args:
        problem: The problem.
        settings: Its settings.

    Returns:
        Name -> object.
    """
    given: dict[str, Any] = {
        "problem": problem,
        "problem.likelihood": problem.likelihood,
        "problem.prior": problem.prior,
        "settings": settings,
    }

    def walk(name: str, value: Any) -> None:
        for part in fields(value):
            child, path = getattr(value, part.name), f"{name}.{part.name}"
            if hasattr(child, "__dict__") and not isinstance(child, type):
                given[path] = child
                if is_dataclass(child):
                    walk(path, child)

    walk("settings", settings)
    return given


class Encoder:
    """Writes objects as nodes, each of which is a JSON list that refers to earlier ones; equal nodes are one.

    Args:
        given: Objects that the reader has.
        known: Blocks that are stored already.
    """

    def __init__(self, given: Given, known: Collection[str] = ()) -> None:
        self.nodes: list[str] = []
        self.blocks: dict[str, bytes | None] = {}  # None for those that are stored already
        self.num_bytes = 0  # of all blocks
        self._given = {id(value): name for name, value in given.items()}
        self._known = known
        self._place: dict[str, int] = {}
        self._seen: dict[int, tuple[Any, int]] = {}  # with the object, so that its id is not used again

    def encode(self, value: Any) -> int:
        """Write an object and all its parts.

        Args:
            value: The object.

        Returns:
            The index of its node.

        Raises:
            NotStorable: If it is, or contains, something of a class that is not listed.
        """
        if id(value) in self._seen:
            return self._seen[id(value)][1]
        index = self._add(self._node(value))
        self._seen[id(value)] = (value, index)
        return index

    def _add(self, node: list[Any]) -> int:
        text = json.dumps(node, separators=(",", ":"))
        if text not in self._place:
            self._place[text] = len(self.nodes)
            self.nodes.append(text)
        return self._place[text]

    def _node(self, value: Any) -> list[Any]:
        kind: Any = type(value)
        if value is None or kind in (bool, int, float, str):
            return ["value", value]
        if id(value) in self._given:
            return ["given", self._given[id(value)]]
        if isinstance(value, Phase):
            return ["phase", str(value)]
        if isinstance(value, np.generic | np.ndarray | jax.Array):
            return self._array(value)
        if kind is tuple and len(value) >= COLUMNS and len({type(item) for item in value}) == 1:
            if hasattr(value[0], "_fields"):
                return ["rows", self._class(type(value[0])), [self._column(c) for c in zip(*value, strict=True)]]
        if kind in (tuple, list):
            return [kind.__name__, [self.encode(item) for item in value]]
        if isinstance(value, Prior):  # that of the call, with its circles cut open elsewhere
            return ["prior", self.encode(value.phases)]
        if kind in (dict, MappingProxyType) and all(type(key) is str for key in value):
            return ["dict", list(value), [self.encode(item) for item in value.values()]]
        if kind in (partial, Partial) and not value.keywords:
            # JAX keeps a partial within a Partial apart by a wrapper, whose content is `fun`.
            function = getattr(value.func, "fun", value.func)
            return [kind.__name__, self.encode(function), self._arguments(value.args)]
        if not isinstance(value, type) and (tag := tag_of(value)):
            return ["function", tag]
        names = getattr(value, "_fields", None) or ([f.name for f in fields(value)] if is_dataclass(value) else None)
        if isinstance(value, type) or names is None:
            raise _refused(value)
        return ["object", self._class(kind), list(names), [self.encode(getattr(value, n)) for n in names]]

    def _class(self, cls: type) -> str:
        tag = tag_of(cls)
        if tag is None:
            raise _refused(cls)
        return tag

    def _array(self, value: Any) -> list[Any]:
        kind = "scalar" if isinstance(value, np.generic) else "jax" if isinstance(value, jax.Array) else "array"
        array = np.asarray(value)
        if array.dtype.kind not in "biuf":
            raise NotStorable(f"an array of {array.dtype}; numbers are expected")
        data = array.tobytes()
        if len(data) <= INLINE:
            return [kind, array.dtype.str, list(array.shape), data.hex()]
        keys = []
        for start in range(0, len(data), BLOCK):
            block = data[start : start + BLOCK]
            keys.append(key := blake2b(block, digest_size=16).hexdigest())
            self.num_bytes += 0 if key in self.blocks else len(block)
            self.blocks[key] = None if key in self._known else block
        return [kind, array.dtype.str, list(array.shape), keys]

    def _column(self, values: tuple[Any, ...]) -> int:
        types = {type(value) for value in values}
        if types in ({float}, {int}, {bool}) and (types != {int} or max(map(abs, values)) < 2**63):
            return self.encode(np.array(values))
        return self.encode(list(values))

    def _arguments(self, args: tuple[Any, ...]) -> list[int]:
        if not (args and velocity.is_graph(args[0])):
            return [self.encode(item) for item in args]
        try:
            blueprint, weights = velocity.take_apart(args[0], args[-1])
        except TypeError as error:
            raise NotStorable(str(error)) from error
        return [self.encode(item) for item in (blueprint, *args[1:-1], weights)]


def _refused(value: Any) -> NotStorable:
    cls = value if isinstance(value, type) else type(value)
    what = f"the function {where(value)}" if callable(value) and hasattr(value, "__code__") else ""
    return NotStorable(what or f"an object of class {where(cls)}")


def decode(nodes: list[list[Any]], root: int, given: Given, block: Callable[[str], bytes]) -> Any:
    """Read what an :class:`Encoder` wrote.

    Args:
        nodes: Its nodes.
        root: Index of the object.
        given: Objects by name.
        block: The bytes of a key.

    Returns:
        The object.

    Raises:
        ValueError: If a node is none of those that an encoder writes.
    """
    values: list[Any] = []
    for node in nodes:
        values.append(_value(node, values, given, block))
    return values[root]


def _value(node: list[Any], values: list[Any], given: Given, block: Callable[[str], bytes]) -> Any:
    match node:
        case ["value", value]:
            return value
        case ["given", str(name)]:
            return given[name]
        case ["prior", int(phases)]:
            return _read_prior(given["problem.prior"], values[phases])
        case ["phase", str(name)]:
            return Phase(name)
        case ["scalar" | "jax" | "array" as kind, str(dtype), list(shape), data]:
            return _read_array(kind, dtype, shape, data, block)
        case ["rows", str(name), list(columns)]:
            lists = [c.tolist() if isinstance(c, np.ndarray) else c for c in (values[k] for k in columns)]
            return tuple(_class(name)(*row) for row in zip(*lists, strict=True))
        case ["tuple", list(items)]:
            return tuple(values[k] for k in items)
        case ["list", list(items)]:
            return [values[k] for k in items]
        case ["dict", list(keys), list(items)]:
            return dict(zip(keys, (values[k] for k in items), strict=True))
        case ["partial" | "Partial" as kind, int(function), list(args)]:
            return _read_partial(kind, values[function], [values[k] for k in args])
        case ["function", str(name)]:
            return _function(name)
        case ["object", str(name), list(names), list(items)]:
            return _class(name)(**dict(zip(names, (values[k] for k in items), strict=True)))
    raise ValueError(f"a node {str(node)[:80]} that is none")


def _named(tag: str) -> Any:
    if tag not in STORABLE:
        import nsflow.diffusion.energy  # noqa: F401  # the diffusion family, which nothing else here needs
    if tag not in STORABLE:
        raise ValueError(f"something of the class or function {tag[:80]!r}, which nothing here is called")
    return STORABLE[tag]


def _class(tag: str) -> type:
    if not isinstance(found := _named(tag), type):
        raise ValueError(f"an object of {tag[:80]!r}, which is no class")
    return found


def _function(tag: str) -> Callable[..., Any]:
    if isinstance(found := _named(tag), type):
        raise ValueError(f"a call of {tag[:80]!r}, which is no function")
    return found


def _read_prior(prior: Prior, phases: Any) -> Prior:
    if (
        not isinstance(phases, np.ndarray)
        or phases.shape != prior.phases.shape
        or not np.all((phases >= 0) & (phases < 1))
    ):
        raise ValueError(f"phases {str(phases)[:80]} of a prior of {prior.num_dims} coordinates")
    return prior.turn(phases)


def _read_array(kind: str, dtype: str, shape: list[int], data: Any, block: Callable[[str], bytes]) -> Any:
    parsed = np.dtype(dtype)
    if parsed.kind not in "biuf":
        raise ValueError(f"an array of {dtype}")
    raw = bytes.fromhex(data) if isinstance(data, str) else b"".join(block(key) for key in data)
    array = np.frombuffer(raw, parsed).reshape(shape).copy()
    if kind == "scalar":
        return array[()]
    return jnp.asarray(array) if kind == "jax" else array


def _read_partial(kind: str, function: Any, args: list[Any]) -> Any:
    if not (type(function) is partial or not isinstance(function, type) and tag_of(function)):
        raise ValueError("a call of something that is no listed function")
    if args and isinstance(args[0], Blueprint):
        if args[0].architecture.depth > len(args[-1]):  # layers would be built without end
            raise ValueError(f"a network of {args[0].architecture.depth} layers with {len(args[-1])} weights")
        graph, weights = velocity.put_together(args[0], args[-1])
        args = [graph, *args[1:-1], weights]
    return (Partial if kind == "Partial" else partial)(function, *args)
