"""Rearrangement: a permutation that makes clusters contiguous and can be undone."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from iar_study.codebook import ORDERINGS, Rearrangement
from iar_study.codebook.rearrangement import load_rearrangement
from iar_study.errors import InputError
from iar_study.storage import save_arrays


@st.composite
def labelled(draw):
    """Cluster labels of 1 ... 40 codes in which no cluster is empty."""
    n_clusters = draw(st.integers(1, 8))
    rest = draw(st.lists(st.integers(0, n_clusters - 1), max_size=32))
    return np.array(draw(st.permutations([*range(n_clusters), *rest])))


@given(labelled())
def test_clusters_become_contiguous(labels):
    arranged = Rearrangement.from_labels(labels)
    in_new_order = labels[arranged.order]
    for j, (first, end) in enumerate(zip(arranged.boundaries[:-1], arranged.boundaries[1:], strict=True)):
        assert (in_new_order[first:end] == j).all()
    np.testing.assert_array_equal(arranged.labels, labels)


@given(labelled(), st.data())
def test_tokens_go_there_and_back(labels, data):
    arranged = Rearrangement.from_labels(labels)
    tokens = data.draw(arrays(np.int32, (3, 5), elements=st.integers(0, len(labels) - 1)))
    moved = arranged.tokens(tokens)
    assert moved.dtype == tokens.dtype
    np.testing.assert_array_equal(arranged.original_tokens(moved), tokens)


@given(labelled(), st.data())
def test_rearranged_tokens_find_their_rows_in_the_rearranged_table(labels, data):
    arranged = Rearrangement.from_labels(labels)
    table = data.draw(arrays(np.float32, (len(labels), 2), elements=st.floats(-1, 1, width=32)))
    tokens = np.arange(len(labels))
    np.testing.assert_array_equal(arranged.rows(table)[arranged.tokens(tokens)], table[tokens])


def test_identity_is_one_cluster_in_the_original_order():
    identity = Rearrangement.identity(5)
    np.testing.assert_array_equal(identity.permutation, np.arange(5))
    np.testing.assert_array_equal(identity.boundaries, [0, 5])


@pytest.mark.parametrize(
    ("permutation", "boundaries"),
    [([0, 0, 1], [0, 3]), ([0, 1, 2], [0, 2]), ([0, 1, 2], [0, 0, 3]), ([0, 1, 2], [1, 3])],
)
def test_what_is_no_rearrangement_is_refused(permutation, boundaries):
    with pytest.raises(InputError):
        Rearrangement(np.array(permutation), np.array(boundaries))


@given(labelled(), st.sampled_from(["uint8", "int16", "int32", "int64"]), st.data())
def test_tensors_are_translated_like_arrays_and_keep_their_dtype(labels, dtype, data):
    arranged = Rearrangement.from_labels(labels)
    tokens = data.draw(arrays(dtype, (2, 3), elements=st.integers(0, len(labels) - 1)))
    moved = arranged.tokens(torch.from_numpy(tokens))
    assert moved.dtype == torch.from_numpy(tokens).dtype
    np.testing.assert_array_equal(moved.numpy(), arranged.tokens(tokens))
    assert torch.equal(arranged.original_tokens(moved), torch.from_numpy(tokens))


@given(labelled())
def test_rows_of_arrays_and_tensors_go_there_and_back(labels):
    arranged = Rearrangement.from_labels(labels)
    table = np.arange(2 * len(labels), dtype=np.float32).reshape(-1, 2)
    np.testing.assert_array_equal(arranged.original_rows(arranged.rows(table)), table)
    weight = torch.nn.Parameter(torch.from_numpy(table).bfloat16())
    assert torch.equal(arranged.rows(weight), torch.from_numpy(arranged.rows(table)).bfloat16())
    assert torch.equal(arranged.original_rows(arranged.rows(weight)), weight)


@pytest.mark.parametrize("within", ORDERINGS)
@pytest.mark.parametrize("between", ORDERINGS)
def test_every_order_keeps_the_clusters(within, between):
    rng = np.random.default_rng(0)
    labels, vectors = rng.permutation(np.repeat(np.arange(5), [1, 2, 9, 4, 8])), rng.normal(size=(24, 3))
    arranged = Rearrangement.from_labels(labels, vectors, within=within, between=between)
    same = labels[:, None] == labels
    np.testing.assert_array_equal(arranged.labels[:, None] == arranged.labels, same)
    if between == "none":
        np.testing.assert_array_equal(arranged.labels, labels)
    if within == "none":
        for j in range(5):
            assert (np.diff(arranged.order[arranged.boundaries[j] : arranged.boundaries[j + 1]]) > 0).all()


def test_an_order_needs_the_vectors():
    with pytest.raises(InputError, match="needs the codes' vectors"):
        Rearrangement.from_labels(np.array([0, 1]), within="chain")


@given(labelled())
def test_what_is_saved_is_what_is_loaded(tmp_path_factory, labels):
    path = tmp_path_factory.mktemp("saved") / "r.safetensors"
    arranged = Rearrangement.from_labels(labels)
    arranged.save(path, {"strategy": "balanced"})
    of_trial = path.with_name("codebook.safetensors")  # as a training keeps it
    save_arrays(
        of_trial, {"codebook": np.zeros(2), "permutation": arranged.permutation, "boundaries": arranged.boundaries}
    )
    for loaded in (Rearrangement.load(path), load_rearrangement(path), Rearrangement.load(of_trial)):
        np.testing.assert_array_equal(loaded.permutation, arranged.permutation)
        np.testing.assert_array_equal(loaded.boundaries, arranged.boundaries)


def test_the_authors_format_goes_there_and_back(tmp_path):
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(4), 8))
    arranged = Rearrangement.from_labels(labels)
    mapping, size = arranged.to_iar_mapping()
    path = tmp_path / "mapping.pt"
    arranged.save(path)
    saved = torch.load(path, weights_only=True)
    assert saved.dtype == torch.int64
    np.testing.assert_array_equal(saved.numpy(), mapping)
    tensors = (mapping, saved, path)
    for loaded in [Rearrangement.from_iar_mapping(tensor, size) for tensor in tensors] + [load_rearrangement(path, 4)]:
        np.testing.assert_array_equal(loaded.labels, labels)
        np.testing.assert_array_equal(loaded.permutation, arranged.permutation)


def test_what_the_authors_format_cannot_hold_is_refused(tmp_path):
    unequal = Rearrangement.from_labels(np.array([0, 0, 1]))
    with pytest.raises(InputError, match="equal clusters only; these hold 1 to 2"):
        unequal.to_iar_mapping()
    path = tmp_path / "mapping.pt"
    Rearrangement.from_labels(np.array([0, 0, 1, 1])).save(path)
    for wrong in (None, 3):
        with pytest.raises(InputError, match="holds 4 codes but no cluster size"):
            load_rearrangement(path, wrong)
    with pytest.raises(InputError, match="cluster_size 3 does not divide the 4 codes"):
        Rearrangement.from_iar_mapping(path, 3)
    with pytest.raises(InputError, match="row of whole numbers"):
        Rearrangement.from_iar_mapping(np.zeros(4), 2)


@pytest.mark.parametrize("content", [b"", b"no tensor", "truncated", "dictionary"])
def test_a_damaged_mapping_is_one_clear_line(tmp_path, content):
    path = tmp_path / "mapping.pt"
    torch.save({"a": 1} if content == "dictionary" else torch.arange(1000), path)
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content == "truncated":
        path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(InputError, match=r"mapping\.pt") as caught:
        Rearrangement.from_iar_mapping(path, 2)
    assert "\n" not in str(caught.value)


def test_another_file_is_no_rearrangement(tmp_path):
    from safetensors.numpy import save_file

    save_file({"codebook": np.zeros((2, 2))}, tmp_path / "x.safetensors")
    with pytest.raises(InputError, match="no rearrangement: it holds codebook"):
        Rearrangement.load(tmp_path / "x.safetensors")
