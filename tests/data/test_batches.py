from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from iar_study.codebook import Codebook, Rearrangement
from iar_study.data.batches import TokenBatches, batch_indices
from iar_study.data.codes import Codes

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


def codes_of(images: int, augmentations: int, tokens: int = 4) -> Codes:
    """Each token tells its image, augmentation and place."""
    content = np.arange(images * augmentations * tokens, dtype=np.int32).reshape(images, augmentations, tokens)
    names, codebook = tuple(map(str, range(images))), Codebook(np.zeros((content.size, 2), np.float32))
    return Codes(content, np.arange(images), content[:, 0], np.arange(images), names, codebook)


def batches_of(codes, batch_size, seed=0, share=slice(None)):
    return TokenBatches(codes, Rearrangement.identity(codes.train_tokens.size), batch_size, seed, share)


@given(batch_size=st.integers(1, 12), processes=st.integers(1, 4), step=st.integers(0, 1000), seed=seeds)
def test_the_shares_of_the_processes_are_the_batch(batch_size, processes, step, seed):
    codes, size = codes_of(30, 5), batch_size * processes
    whole = batches_of(codes, size, seed)[step]
    shares = [slice(rank * batch_size, (rank + 1) * batch_size) for rank in range(processes)]
    parts = [batches_of(codes, size, seed, share)[step] for share in shares]
    for all_of_it, pieces in zip(whole, zip(*parts, strict=True), strict=True):
        assert torch.equal(torch.cat(pieces), all_of_it)


def test_of_every_image_one_augmentation_is_drawn_and_each_equally_often():
    codes = codes_of(images=500, augmentations=10)
    batches = batches_of(codes, 500)
    drawn = np.zeros(10)
    for step in range(20):
        tokens, labels = batches[step]
        image, place = np.divmod(tokens.numpy(), 40)
        np.testing.assert_array_equal(image, np.repeat(labels.numpy()[:, None], 4, axis=1))
        augmentation = place // 4
        assert (augmentation == augmentation[:, :1]).all()
        drawn += np.bincount(augmentation[:, 0], minlength=10)
    assert drawn.sum() == 10_000
    assert abs(drawn / 1000 - 1).max() < 0.15  # five standard deviations


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_the_number_of_loading_workers_and_where_one_starts_do_not_matter(workers, tmp_path):
    codes = codes_of(30, 5)
    np.save(tmp_path / "codes.npy", codes.train_tokens)
    mapped = replace(codes, train_tokens=np.load(tmp_path / "codes.npy", mmap_mode="r"))
    expected = [batches_of(codes, 7)[step] for step in range(4, 12)]
    found = list(batches_of(mapped, 7).from_step(4, 12, workers=workers))
    assert len(found) == len(expected)
    for (tokens, labels), (all_tokens, all_labels) in zip(found, expected, strict=True):
        assert torch.equal(tokens, all_tokens)
        assert torch.equal(labels, all_labels)


def test_tokens_are_in_the_rearranged_order():
    codes = codes_of(6, 1)
    arranged = Rearrangement.from_labels(np.arange(24) % 3)
    tokens, _ = TokenBatches(codes, arranged, 6, seed=0)[0]
    plain, _ = batches_of(codes, 6)[0]
    assert torch.equal(tokens, torch.from_numpy(arranged.permutation)[plain])
