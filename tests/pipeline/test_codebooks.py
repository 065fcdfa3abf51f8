"""What there is to see of a study's codebook is computed once, trains nothing, and needs nothing but its product."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from iar_study.codebook import Codebook, Rearrangement
from iar_study.codebook.analysis import compare_strategies, mean_similarity
from iar_study.errors import InputError
from iar_study.evaluation.near_codes import nearest_codes
from iar_study.pipeline import codebooks, encoded, making, stages
from iar_study.pipeline.cache import list_cache
from iar_study.pipeline.codebooks import (
    CodebookResults,
    codebook_product,
    load_codebook_results,
    pair_similarities,
    principal_plane,
    replace_codes,
    shuffled,
    similarity_by_rank,
)
from iar_study.pipeline.workspace import Workspace
from iar_study.running.display import Display
from iar_study.running.runner import run_study
from iar_study.storage import load_arrays, load_metadata
from iar_study.study.study import load_profile, load_study
from tests.running.test_dry_run import SMALL, tree
from tests.workspaces import encode_digits, make_workspace


def run(workspace: Workspace, settings: dict[str, str] | None = None) -> None:
    study, profile = load_study(workspace.experiments, "components"), load_profile(workspace.experiments, "smoke")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        asked: dict[str, Any] = {"seeds": [0], "arms": ["baseline"], "settings": SMALL | (settings or {})}
        run_study(study, profile, workspace, Display(quiet=True), **asked)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    workspace = make_workspace(tmp_path_factory.mktemp("workspace"))
    run(workspace)
    return workspace


@pytest.fixture(scope="module")
def results(done: Workspace) -> CodebookResults:
    return load_codebook_results(done, "components")


@pytest.fixture
def workspace(done: Workspace, tmp_path: Path) -> Workspace:
    """A copy that a test may change, without the product."""
    for folder in ("cache", "studies", "trials"):
        shutil.copytree(done.root / "runs" / folder, tmp_path / "runs" / folder)
    for product in (tmp_path / "runs" / "cache").glob("codebook-*"):
        product.unlink()
    return Workspace(tmp_path)


def only(folder: Path, pattern: str) -> Path:
    (path,) = folder.glob(pattern)
    return path


def same(one: CodebookResults, other: CodebookResults) -> bool:
    assert one.neighbours is not None
    assert other.neighbours is not None
    arrays = [
        (a.vectors, a.permutation, a.arranged.boundaries, a.use, *vars(a.neighbours).values()) for a in (one, other)
    ]
    texts = [(a.study, a.profile, a.data, a.tokenizer, a.digest, a.scale, a.commands, a.left_out) for a in (one, other)]
    pd.testing.assert_frame_equal(one.strategies, other.strategies)
    return texts[0] == texts[1] and all(np.array_equal(a, b) for a, b in zip(*arrays, strict=True))


def test_it_is_what_the_study_has_made(done: Workspace, results: CodebookResults) -> None:
    arrays = load_arrays(only(done.cache, "codes-*"))[0]
    np.testing.assert_array_equal(results.vectors, arrays["codebook"])
    np.testing.assert_array_equal(results.use, np.bincount(arrays["train_tokens"].ravel(), minlength=64))
    trial = json.loads(only(done.trials, "*/trial.json").read_text())
    judging = [path for path in done.cache.glob("clustering-*") if load_metadata(path)["config"]["strategy"] != "none"]
    arranged = Rearrangement.load(*judging)
    np.testing.assert_array_equal(results.permutation, arranged.permutation)
    np.testing.assert_array_equal(results.labels, arranged.labels)
    n_clusters = trial["config"]["evaluation.clusters"]
    assert results.sizes.tolist() == [64 // n_clusters] * n_clusters
    assert (results.study, results.profile, results.data, results.metric) == (
        "components",
        "smoke",
        "digits",
        "cosine",
    )
    tokenizer = only(done.cache, "tokenizer-*")
    assert (results.tokenizer, results.digest) == (tokenizer.name, load_metadata(tokenizer)["digest"])
    expected = compare_strategies(Codebook(arrays["codebook"]).points, n_clusters).drop(columns="seconds")
    pd.testing.assert_frame_equal(results.strategies, expected, atol=1e-8)
    assert results.left_out == {}
    assert f"iar-study inspect runs/cache/{only(done.cache, 'codes-*').name} --clusters {n_clusters}" in str(
        results.commands
    )


def test_nothing_but_the_product_is_made(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name in ((making, "train_tokenizer"), (making, "train_classifier"), (stages, "load_images")):
        monkeypatch.setattr(module, name, lambda *_, **__: pytest.fail("something is made"))
    before = tree(workspace.root)
    path = codebook_product(workspace, "components")
    after = tree(workspace.root)
    new = after.keys() - before.keys()
    assert new == {str(path)}
    cache = str(workspace.cache)
    assert all(after[name] == before[name] for name in before if name != cache)
    load_codebook_results(workspace, "components")
    assert tree(workspace.root) == after
    assert [each.kind for each in list_cache(workspace)].count("codebook") == 1


def test_two_builds_are_the_same_bytes_whatever_the_threads(workspace: Workspace) -> None:
    path = codebook_product(workspace, "components")
    before = path.read_bytes()
    path.unlink()
    torch.set_num_threads(2)
    try:
        assert codebook_product(workspace, "components") == path
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert path.read_bytes() == before


def test_the_product_is_enough_beside_manifest_and_trials(
    workspace: Workspace, results: CodebookResults, tmp_path: Path
) -> None:
    path, store = codebook_product(workspace, "components"), tmp_path / "store" / "runs"
    shutil.copytree(workspace.studies, store / "studies")
    shutil.copytree(workspace.trials, store / "trials")
    frozen = Workspace(tmp_path / "store", frozen=True)
    with pytest.raises(InputError, match="holds no codebook of study 'components'; export"):
        load_codebook_results(frozen, "components")
    with pytest.raises(InputError, match=r"the codes of study 'components' are not in .*iar-study run components"):
        load_codebook_results(Workspace(frozen.root), "components")
    frozen.cache.mkdir(exist_ok=True)
    shutil.copy(path, frozen.cache)
    assert same(load_codebook_results(frozen, "components"), results)


def test_without_the_tokenizer_all_but_the_pictures_is_there(workspace: Workspace, results: CodebookResults) -> None:
    only(workspace.cache, "tokenizer-*").unlink()
    found = load_codebook_results(workspace, "components")
    assert found.neighbours is None
    np.testing.assert_array_equal(found.use, results.use)
    assert found.digest == results.digest


def test_a_study_that_was_not_run_or_not_begun_is_named(workspace: Workspace) -> None:
    with pytest.raises(InputError, match=r"no results of study 'balance'.*run here so far: components"):
        load_codebook_results(workspace, "balance")
    shutil.rmtree(workspace.trials)
    with pytest.raises(InputError, match="no trial of study 'components' was begun here"):
        load_codebook_results(workspace, "components")


def test_of_images_that_came_encoded_the_tokenizer_may_be_gone(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path)
    settings = encode_digits(tmp_path / "data")
    run(workspace, settings)
    found = load_codebook_results(workspace, "components")
    assert found.neighbours is not None
    assert found.tokenizer == "tokenizer.safetensors"
    assert found.use.sum() > 0
    assert "--tokens" not in found.commands[1]
    codebook_product(workspace, "components").unlink()
    Path(settings["tokenizer.checkpoint"]).unlink()
    encoded.encoded_of.cache_clear()
    without = load_codebook_results(workspace, "components")
    assert without.neighbours is None
    np.testing.assert_array_equal(without.use, found.use)
    pd.testing.assert_frame_equal(without.strategies, found.strategies)


def test_pictures_are_replaced_where_the_code_stands(results: CodebookResults, done: Workspace) -> None:
    shown, size = results.neighbours, len(results.use)
    assert shown is not None
    assert shown.columns == ("true tokens", *(f"rank {r}" for r in (1, 2, 4, 8, 16)), "same cluster", "random code")
    used = results.use[shown.codes[:, 0]]
    assert len(used) == min(12, size)
    assert (np.diff(used) <= 0).all()
    np.testing.assert_array_equal(
        shown.codes[:, 1:6], nearest_codes(results.codebook, [1, 2, 4, 8, 16])[shown.codes[:, 0]]
    )
    np.testing.assert_array_equal(results.labels[shown.codes[:, 6]], results.labels[shown.codes[:, 0]])
    assert (shown.codes[:, 6:] != shown.codes[:, :1]).all()
    tokens = load_arrays(only(done.cache, "codes-*"))[0]["test_tokens"]
    np.testing.assert_array_equal(shown.places.reshape(len(used), -1), tokens[shown.images] == shown.codes[:, :1])


def made_up(size: int, n_clusters: int, tokens: np.ndarray) -> tuple[Codebook, Rearrangement, np.ndarray]:
    vectors = np.random.default_rng(0).normal(size=(size, 3))
    codebook = Codebook(vectors)
    return codebook, Rearrangement.from_labels(np.arange(size) % n_clusters), codebook.use(tokens)


def grey(tokens: np.ndarray) -> np.ndarray:
    """A decoder that draws each token as a pixel of its own."""
    side = round(tokens.shape[1] ** 0.5)
    return tokens.reshape(-1, side, side, 1).astype(np.uint8)


def test_the_codes_are_chosen_by_use_and_the_image_by_how_often_it_has_them() -> None:
    tokens = np.array([[0, 0, 1, 2], [1, 1, 1, 0], [0, 0, 3, 3]])
    codebook, arranged, use = made_up(8, 2, tokens)
    found = replace_codes(codebook, arranged, use, tokens, grey)
    assert found.codes[:, 0].tolist() == [0, 1, 3, 2]
    assert found.images.tolist() == [0, 1, 2, 0]
    for row, image, code in zip(found.pictures, found.images, found.codes, strict=True):
        np.testing.assert_array_equal(row[0, ..., 0].ravel(), tokens[image])
        for picture, other in zip(row, code, strict=True):
            np.testing.assert_array_equal(
                picture[..., 0].ravel(), np.where(tokens[image] == code[0], other, tokens[image])
            )


def test_a_cluster_of_one_code_and_two_codes_in_all() -> None:
    tokens = np.array([[0, 1, 1, 0], [0, 0, 0, 0]])
    codebook, arranged, use = made_up(2, 2, tokens)
    found = replace_codes(codebook, arranged, use, tokens, grey)
    assert found.columns == ("true tokens", "rank 1", "same cluster", "random code")
    assert found.codes.tolist() == [[0, 1, 0, 1], [1, 0, 1, 0]]


def test_the_principal_plane_is_the_same_for_any_sign_of_the_axes() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(200, 5)) * [5, 3, 1, 1, 1]
    plane, shares = principal_plane(vectors)
    centred = vectors - vectors.mean(0)
    values, axes = np.linalg.eigh(centred.T @ centred)
    np.testing.assert_allclose(np.abs(plane), np.abs(centred @ axes[:, [-1, -2]]), atol=1e-5)
    np.testing.assert_allclose(shares, values[[-1, -2]] / values.sum())
    np.testing.assert_allclose(principal_plane(-vectors)[0], -plane, atol=1e-5)
    assert (plane[:, 0] @ centred[:, 0] > 0) == (np.abs(axes[:, -1]).argmax() == 0)


def test_the_plane_of_one_dimension_of_large_codes_and_of_codes_that_are_the_same() -> None:
    plane, shares = principal_plane(np.array([[1.0], [2.0], [4.0]]))
    assert plane[:, 1].tolist() == [0, 0, 0]
    assert shares.tolist() == [1, 0]
    vectors = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    np.testing.assert_allclose(
        principal_plane(vectors * np.float32(2.0**100))[1], principal_plane(vectors)[1], rtol=1e-5
    )
    plane, shares = principal_plane(np.ones((4, 3)))
    assert not plane.any()
    assert shares.tolist() == [0, 0]


def test_similarity_by_rank_is_the_mean_of_the_sorted_similarities() -> None:
    vectors = np.random.default_rng(0).normal(size=(30, 4))
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    expected = np.array([np.sort(np.delete(row, i))[::-1] for i, row in enumerate(unit @ unit.T)]).mean(0)
    found = similarity_by_rank(vectors)
    np.testing.assert_allclose(found.index, np.arange(1, 30) / 29)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_of_a_long_table_some_vectors_stand_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = np.random.default_rng(0).normal(size=(2000, 6)).astype(np.float32)
    whole = similarity_by_rank(vectors)
    monkeypatch.setattr(codebooks, "ROWS", 500)
    monkeypatch.setattr(codebooks, "RANKED", 100)
    some = similarity_by_rank(vectors)
    np.testing.assert_allclose(np.interp(0.1, whole.index, whole), np.interp(0.1, some.index, some), atol=0.03)
    assert shuffled(vectors).shape == (500, 6)


def test_shuffled_keeps_what_each_dimension_holds() -> None:
    vectors = np.random.default_rng(0).normal(size=(50, 3))
    np.testing.assert_array_equal(np.sort(shuffled(vectors), 0), np.sort(vectors, 0))
    assert not np.array_equal(shuffled(vectors), vectors)


def test_every_pair_is_counted_once(results: CodebookResults) -> None:
    found, size = pair_similarities(results), len(results.use)
    assert len(found["within"]) + len(found["between"]) == size * (size - 1) // 2
    assert len(found["within"]) == len(found["within random"]) == (results.sizes * (results.sizes - 1) // 2).sum()
    means = (found["within"].mean(), found["between"].mean())
    np.testing.assert_allclose(means, mean_similarity(results.codebook.points, results.arranged), atol=1e-3)


def test_of_many_pairs_some_are_looked_at(results: CodebookResults, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codebooks, "PAIRS", 64 * 10)
    found = pair_similarities(results)
    assert len(found["within"]) + len(found["between"]) == 10 * 64 - 10 - 45
