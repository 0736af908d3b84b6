"""Declared types: what conforms, and what does not."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pytest
from jaxtyping import Float

from nsflow.results.declaration import conforms, departure


@pytest.mark.parametrize(
    ("declared", "right", "wrong"),
    [
        (int, [0, -1, np.int64(3)], [True, 1.0, 10**25, None, "1"]),
        (float, [0, 1.5, np.float64(2), np.inf], [True, "1", None, 1j]),
        (bool, [True, np.bool_(False)], [0, None]),
        (str, ["a"], [b"a", None]),
        (int | None, [1, None], ["a"]),
        (tuple[int, ...], [(), (1, 2)], [(1, "a"), [1], None]),
        (tuple[float, float], [(1.0, 2)], [(1.0,), (1.0, 2.0, 3.0)]),
        (tuple[tuple[int, ...], ...], [((1,), ())], [(1,)]),
        (list[str], [["a"], []], [["a", 1], ("a",)]),
        (dict[str, int], [{"a": 1}, {}], [{"a": "b"}, {1: 1}, []]),
        (Mapping[str, np.ndarray], [{"a": np.zeros(1)}], [{"a": 1}]),
        (Callable[[int], int], [abs], [1]),
        (Any, [None, 1], []),
        (Float[np.ndarray, " n"], [np.zeros(3)], [np.zeros((3, 1)), np.zeros(3, int), [1.0]]),
    ],
    ids=str,
)
def test_what_conforms(declared, right, wrong):
    assert all(conforms(value, declared) for value in right)
    assert not any(conforms(value, declared) for value in wrong)


class Pair(NamedTuple):
    x: Float[np.ndarray, "n d"]
    weight: Float[np.ndarray, " n"]


@dataclass
class Holder:
    pair: Pair
    count: int = 1


def test_departures_name_the_field_and_lengths_belong_together():
    assert departure(Pair(np.zeros((3, 2)), np.zeros(3))) == ""
    assert departure(Pair(np.zeros((3, 2)), np.zeros(4))).startswith("Pair.weight expected")
    assert departure(Pair(np.zeros((4, 2)), np.zeros(4))) == ""  # n is another in each object
    assert departure(Holder(Pair(np.zeros((0, 2)), np.zeros(0)))) == ""
    assert departure(Holder(None)) == "Holder.pair expected Pair; got None"
    assert departure(Holder(Pair(0, 0), "x" * 200)) == f"Holder.count expected int; got '{'x' * 79}..."
