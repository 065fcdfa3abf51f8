import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from iar_study.data.batches import batch_indices

sizes = st.integers(1, 40)
seeds = st.integers(0, 2**32)


def draws(n, batch_size, seed, count):
    """The first `count` indices that training sees."""
    steps = -(-count // batch_size)
    return np.concatenate([batch_indices(n, batch_size, step, seed) for step in range(steps)])[:count]


@given(n=sizes, batch_size=sizes, seed=seeds)
def test_every_epoch_draws_every_index_once(n, batch_size, seed):
    for epoch in draws(n, batch_size, seed, 3 * n).reshape(3, n):
        np.testing.assert_array_equal(np.sort(epoch), np.arange(n))


@given(n=sizes, batch_size=sizes, other=sizes, seed=seeds)
def test_the_order_does_not_depend_on_the_batch_size(n, batch_size, other, seed):
    np.testing.assert_array_equal(draws(n, batch_size, seed, 3 * n), draws(n, other, seed, 3 * n))


@given(n=sizes, batch_size=sizes, step=st.integers(0, 10**6), seed=seeds)
def test_a_step_is_a_pure_function_of_its_arguments(n, batch_size, step, seed):
    first = batch_indices(n, batch_size, step, seed)
    assert first.dtype == np.int64
    assert first.shape == (batch_size,)
    kept = first.copy()
    first[:] = -1  # what a caller does to a batch must not reach a later one
    np.testing.assert_array_equal(batch_indices(n, batch_size, step, seed), kept)


def test_epochs_and_seeds_have_orders_of_their_own():
    epoch = [tuple(batch_indices(100, 100, step, seed)) for step in range(2) for seed in range(2)]
    assert len(set(epoch)) == 4


@pytest.mark.parametrize("arguments", [(0, 1, 0, 0), (5, 0, 0, 0), (5, 1, -1, 0)])
def test_impossible_batches_are_refused(arguments):
    with pytest.raises(ValueError, match="no batch of"):
        batch_indices(*arguments)
