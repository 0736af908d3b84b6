"""Batches of any size in few compiled shapes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nsflow.shapes import by_chunks, first_of_many, in_few_sizes

SIZES = (1, 3, 4, 5, 63, 64, 65, 200)


@pytest.mark.parametrize("n", [0, 1, 3, 4, 5, 8, 11])
def test_chunks_share_one_shape_and_give_every_row_back(n):
    x, seen = np.arange(2.0 * n).reshape(n, 2), []

    def function(chunk):
        seen.append(chunk)
        return chunk[:, 0], 2 * chunk

    first, double = by_chunks(function, x, 4, fill=np.array([7.0, 8.0]))
    np.testing.assert_array_equal(first, x[:, 0])
    np.testing.assert_array_equal(double, 2 * x)
    assert {chunk.shape for chunk in seen} == {(4, 2)}
    np.testing.assert_array_equal(np.concatenate(seen)[n:], np.tile([7.0, 8.0], (len(seen) * 4 - n, 1)))


def test_padded_sizes_are_few_and_rows_are_kept():
    sizes = set()

    def function(batch):
        sizes.add(len(batch["a"]))
        return {"b": batch["a"] + 1.0}

    for n in SIZES:
        a = np.arange(3.0 * n).reshape(n, 3)
        np.testing.assert_array_equal(in_few_sizes(function)({"a": a})["b"], a + 1.0)
    assert sizes == {64, 128, 256}


def test_fewer_draws_are_the_first_of_more():
    draw = first_of_many(lambda key, n: jax.random.normal(key, (n,)))
    few, many = (np.asarray(draw(jax.random.key(0), n)) for n in (5, 60))
    np.testing.assert_array_equal(few, many[:5])
    assert len(many) == 60


def test_both_can_be_traced():
    assert jax.jit(in_few_sizes(lambda x: x * 2))(jnp.ones(3)).tolist() == [2.0, 2.0, 2.0]
    assert jax.jit(lambda key: first_of_many(lambda k, n: jax.random.normal(k, (n,)))(key, 3))(
        jax.random.key(0)
    ).shape == (3,)
