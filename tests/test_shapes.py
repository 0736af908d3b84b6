"""Batches of any size in few compiled shapes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nsflow.numerics.batching import by_chunks, draw_in_chunks, in_chunks


@pytest.mark.parametrize("n", [0, 1, 3, 4, 5, 8, 11])
def test_chunks_share_one_shape_and_give_every_row_back(n):
    x, seen = {"a": np.arange(2.0 * n).reshape(n, 2), "b": np.arange(n)}, []

    def function(chunk):
        seen.append(chunk["a"])
        return chunk["a"][:, 0] + chunk["b"], 2 * chunk["a"]

    first, double = by_chunks(function, x, 4)
    np.testing.assert_array_equal(first, x["a"][:, 0] + x["b"])
    np.testing.assert_array_equal(double, 2 * x["a"])
    assert {chunk.shape for chunk in seen} == {(4, 2)}
    assert len(seen) == max(1, -(-n // 4))


def test_fewer_draws_are_the_first_of_more():
    draw = draw_in_chunks(lambda key, n: jax.random.normal(key, (n,)), 16)
    few, many = (np.asarray(draw(jax.random.key(0), n)) for n in (5, 60))
    np.testing.assert_array_equal(few, many[:5])
    assert len(many) == len(np.unique(many)) == 60
    assert len(draw(jax.random.key(0), 0)) == 0


def test_both_can_be_traced():
    assert jax.jit(in_chunks(lambda x: x * 2, 8))(jnp.ones(3)).tolist() == [2.0, 2.0, 2.0]
    assert jax.jit(lambda key: draw_in_chunks(lambda k, n: jax.random.normal(k, (n,)), 8)(key, 3))(
        jax.random.key(0)
    ).shape == (3,)
