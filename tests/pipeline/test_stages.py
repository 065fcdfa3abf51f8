"""What trials share: of images all of it is trained, of images that are encoded already nothing is."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from iar_study.codebook import Rearrangement
from iar_study.config import TrialConfig, with_settings
from iar_study.data.encoding import extract_codes
from iar_study.data.images import load_images
from iar_study.data.llamagen_codes import open_codes
from iar_study.errors import InputError
from iar_study.pipeline import making, stages
from iar_study.pipeline.making import decode, facts
from iar_study.pipeline.workspace import Workspace
from iar_study.running.doctor import examine
from iar_study.study.checks import check_settings
from iar_study.study.study import arm_config, load_profile, load_study
from iar_study.tokenizers.given import load_tokenizer
from iar_study.tokenizers.vq import VQConfig, VQModel, to_float, to_uint8
from tests.workspaces import BY_A_SET, ROOT, encode_digits, evaluators_in

SMALL = {"tokenizer.steps": 30, "classifier.steps": 30, "evaluation.samples": 100}


TINY = VQConfig(multipliers=(1, 1), channels=32, z_channels=32, codebook_size=64, code_dim=4, in_channels=1)


@pytest.fixture(scope="module")
def encoded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return encode_digits(tmp_path_factory.mktemp("encoded"))


def smoke(settings: dict[str, str]) -> TrialConfig:
    return with_settings(load_profile(ROOT / "experiments", "smoke").config, settings)


def prepare(workspace: Workspace, settings: dict[str, str]) -> stages.Shared:
    config = smoke(settings)
    stages.check(config)
    return stages.prepare(config, workspace, lambda *at: None)


def products(workspace: Workspace) -> list[str]:
    return sorted(path.name.partition("-")[0] for path in workspace.cache.iterdir())


def test_llamagens_tokenizer_with_images_has_all_that_a_trained_one_has(workspace: Workspace) -> None:
    torch.manual_seed(0)
    given = VQModel(TINY)
    given.save_llamagen(workspace.root / "vq.pt")
    sizes = {"tokenizer.codebook_size": 64, "tokenizer.code_dim": 4, "tokenizer.patch": 2}
    settings = {"classifier.steps": 30, "evaluation.samples": 100, "tokenizer.checkpoint": "vq.pt", **sizes}
    shared = prepare(workspace, settings)
    assert products(workspace) == ["clustering", "clustering", "codes", "evaluators", "exactness", "reference"]
    assert "vq.pt" not in shared.products
    codes, digits = stages.load_codes(shared), load_images(smoke({}).data)
    tokens = given.eval().encode(to_float(digits.test[:20]))
    np.testing.assert_array_equal(codes.test_tokens[:20], tokens.flatten(1))
    np.testing.assert_array_equal(codes.codebook.vectors, given.codebook().numpy())
    known = facts(shared)
    assert 0 < known["tokenizer"]["usage"] <= 1
    assert known["exact"]["decoding"] == 0
    assert evaluators_in(known["reconstruction"], 100) == BY_A_SET
    torch.manual_seed(1)
    VQModel(TINY).save_llamagen(workspace.root / "vq.pt")
    other = prepare(workspace, settings)
    assert other.digests["tokenizer"] != shared.digests["tokenizer"]
    assert other.codes != shared.codes
    VQModel(replace(TINY, in_channels=3)).save_llamagen(workspace.root / "vq.pt")
    with pytest.raises(InputError, match=r"tokenizer\.patch is 4, but 2 in vq\.pt"):
        prepare(workspace, {**settings, "tokenizer.patch": 4})
    with pytest.raises(InputError, match="is for 3 channels"):
        prepare(workspace, settings)


def test_of_images_all_is_made_and_the_codes_have_one_augmentation(workspace: Workspace) -> None:
    shared = prepare(workspace, SMALL)
    made = ["clustering", "clustering", "codes", "evaluators", "exactness", "reference", "tokenizer"]
    assert products(workspace) == made
    assert set(shared.digests) == {"data", "tokenizer", "codes", "evaluators", "rearrangement", "judging"}
    codes, digits = stages.load_codes(shared), load_images(smoke({}).data)
    assert codes.train_tokens.shape == (len(digits.train), 1, 16)
    tokens = load_tokenizer(shared.tokenizer).encode(torch.from_numpy(digits.test / 127.5 - 1).movedim(3, 1).float())
    np.testing.assert_array_equal(codes.test_tokens, tokens.flatten(1))
    assert stages.load_codebook(shared.codes).vectors.shape == (64, 8)
    assert decode(shared, codes.test_tokens, "cpu").shape == digits.test.shape
    known = facts(shared)
    assert set(known["tokenizer"]) == {"psnr", "usage", "perplexity"}
    assert evaluators_in(known["reconstruction"], 100) == BY_A_SET
    assert known["exact"]["decoding"] == 0
    assert known["exact"]["equivariance"] < 1e-12
    assert 0 < known["classifier_accuracy"] <= 1


@pytest.mark.parametrize("encodes", [False, True])
def test_in_a_frozen_workspace_nothing_is_made_and_what_is_made_is_found(
    workspace: Workspace, encoded: dict[str, str], encodes: bool
) -> None:
    frozen, settings = replace(workspace, frozen=True), encoded if encodes else SMALL
    with pytest.raises(stages.NotMade) as missing:
        prepare(frozen, settings)
    assert (missing.value.kind, not workspace.cache.exists()) == ("clustering" if encodes else "tokenizer", True)
    shared = prepare(workspace, settings)
    assert prepare(frozen, settings) == shared
    assert set(shared.products) == {path.name for path in workspace.cache.iterdir()}
    shared.exactness.unlink()
    assert prepare(frozen, settings) == shared  # it does not tell trials apart


def test_of_encoded_images_nothing_is_trained(workspace: Workspace, encoded: dict[str, str]) -> None:
    shared = prepare(workspace, encoded)
    assert products(workspace) == ["clustering", "clustering", "exactness", "use"]
    assert (shared.evaluators, shared.reference) == (None, None)
    assert set(shared.digests) == {"codes", "tokenizer", "rearrangement", "judging"}
    about = {key: shared.data[key] for key in ("image_size", "channels", "train_images", "augmentations", "classes")}
    assert about == {"image_size": 8, "channels": 1, "train_images": 1437, "augmentations": 2, "classes": 10}
    assert shared.data["name"] == encoded["data.name"]


def test_their_codes_stay_on_the_disk(workspace: Workspace, encoded: dict[str, str]) -> None:
    shared = prepare(workspace, encoded)
    codes, digits = stages.load_codes(shared), load_images(smoke({}).data)
    assert isinstance(codes.train_tokens, np.memmap)
    assert (codes.train_tokens.shape, codes.test_tokens.shape, codes.grid) == ((1437, 2, 16), (360, 16), 4)
    np.testing.assert_array_equal(codes.train_labels, digits.train_labels)
    np.testing.assert_array_equal(codes.test_labels, digits.test_labels)
    assert codes.class_names == digits.class_names
    tokenizer = load_tokenizer(Path(encoded["tokenizer.checkpoint"]))
    np.testing.assert_array_equal(stages.load_codebook(shared.codes).vectors, tokenizer.codebook())
    pictures = to_uint8(tokenizer.decode_codes(torch.from_numpy(codes.test_tokens.astype(int)).view(-1, 4, 4)))
    np.testing.assert_array_equal(decode(shared, codes.test_tokens, "cpu"), pictures)


def test_their_use_is_counted_a_part_at_a_time(
    workspace: Workspace, encoded: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(making, "COUNTED_AT_ONCE", 1000)
    shared = prepare(workspace, encoded)
    counts = np.bincount(np.ravel(stages.load_codes(shared).train_tokens), minlength=64)
    share = counts[counts > 0] / counts.sum()
    known = facts(shared)
    assert known["tokenizer"]["usage"] == np.mean(counts > 0)
    assert known["tokenizer"]["perplexity"] == pytest.approx(np.exp(-np.sum(share * np.log(share))))
    assert (known["classifier_accuracy"], known["reconstruction"]) == (None, None)


def test_content_tells_codes_apart_not_their_place(workspace: Workspace, encoded: dict[str, str]) -> None:
    first = prepare(workspace, encoded)
    source = first.folder
    shutil.copytree(source, workspace.root / "moved")
    moved = prepare(workspace, {**encoded, "data.name": "codes:moved"})  # from the current folder
    assert moved.folder == workspace.root / "moved"
    assert moved.digests == first.digests
    assert len(products(workspace)) == 4
    edit_index(
        workspace.root / "moved", "test", "codes.npy", {**open_codes(source / "test").index["codes.npy"], "sha256": "0"}
    )
    stages.encoded_of.cache_clear()
    assert prepare(workspace, {**encoded, "data.name": "codes:moved"}).digests["codes"] != first.digests["codes"]


def test_llamagens_tokenizer_decodes_its_codes(workspace: Workspace) -> None:
    torch.manual_seed(1)
    model = VQModel(VQConfig(multipliers=(1, 1), channels=32, z_channels=8, codebook_size=64, code_dim=4)).eval()
    model.save_llamagen(workspace.root / "vq.pt")
    extract_codes("digits", model, workspace.root / "codes", augmentation="none", batch=500)
    settings = {"data.name": "codes:codes", "tokenizer.checkpoint": "vq.pt", "tokenizer.code_dim": "4"}
    shared = prepare(workspace, settings)
    tokens = stages.load_codes(shared).test_tokens[:3]
    expected = to_uint8(model.decode_codes(torch.from_numpy(tokens.astype(int)).view(-1, 4, 4)))
    np.testing.assert_array_equal(decode(shared, tokens, "cpu"), expected)
    assert shared.data["channels"] == 3


def edit_index(folder: Path, split: str, key: str, value: object) -> None:
    path = folder / split / "index.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"data.name": "codes:nowhere"}, r"no index\.json in .*nowhere/train"),
        (
            {"tokenizer.checkpoint": "none"},
            r"needs the tokenizer that made the codes: --set tokenizer\.checkpoint=FILE",
        ),
        ({"tokenizer.checkpoint": "no.pt"}, r"no file at .*no\.pt"),
        ({"tokenizer.checkpoint": "no.safetensors"}, r"no\.safetensors cannot be read"),
        ({"tokenizer.codebook_size": "128"}, r"codebook_size is 128, but 64 in .*--set tokenizer\.codebook_size=64"),
        ({"tokenizer.code_dim": "4"}, r"code_dim is 4, but 8 in"),
        ({"tokenizer.patch": "4"}, r"patch is 4, but 2 in"),
        ({"data.image_size": "16"}, r"image_size = 16, but .* of images of 8: 4 x 4 tokens"),
        ({"clustering.strategy": "balanced", "clustering.n_clusters": "7"}, "7 does not divide the 64 codes"),
        (
            {"clustering.strategy": "balanced", "loss.coarse_weight": "1", "loss.coarse_clusters": "3"},
            r"coarse_clusters = 3 does not divide the number of clusters, 8",
        ),
        ({"loss.smoothing": "0.1", "loss.smoothing_over": "cluster"}, "needs more than one cluster"),
        ({"data.name": "digits", "tokenizer.checkpoint": "vq.pt"}, "no file at vq.pt"),
        ({"data.name": "codes:", "tokenizer.checkpoint": "none"}, "unknown data 'codes:'; did you mean 'codes:PATH'"),
    ],
)
def test_settings_that_do_not_fit_are_one_line(
    workspace: Workspace, encoded: dict[str, str], settings: dict[str, str], message: str
) -> None:
    def check(config: TrialConfig) -> None:
        check_settings(config)
        stages.check(config)

    with pytest.raises(InputError, match=message) as error:
        check(smoke(encoded | settings))
    assert "\n" not in str(error.value)


def test_arms_of_another_codebook_than_that_of_encoded_images_are_refused(encoded: dict[str, str]) -> None:
    study = load_study(ROOT / "experiments", "codebook-size")
    sizes = {"-quarter": 16, "-half": 32, "": 64, "-double": 128}
    for arm in study.arms:
        config = arm_config(study, arm, smoke(encoded), 0)
        assert config.tokenizer.codebook_size == sizes[arm.name.removeprefix("baseline").removeprefix("iar")]
        if config.tokenizer.codebook_size == 64:
            stages.check(config)
        else:
            with pytest.raises(InputError, match=r"codebook_size is \d+, but 64 in .*tokenizer\.safetensors") as error:
                stages.check(config)
            assert "\n" not in str(error.value)


def test_an_order_makes_another_product_of_the_same_clusters(workspace: Workspace, encoded: dict[str, str]) -> None:
    settings = {**encoded, "clustering.strategy": "balanced"}
    found = [
        prepare(workspace, {**settings, **order})
        for order in ({}, {"clustering.within": "path"}, {"clustering.between": "chain"}, {"clustering.within": "none"})
    ]
    plain, within, between, again = (Rearrangement.load(shared.rearrangement) for shared in found)
    assert len({shared.digests["rearrangement"] for shared in found}) == 3
    assert found[0].rearrangement == found[3].rearrangement
    assert {shared.judging for shared in found} == {found[0].judging}
    np.testing.assert_array_equal(plain.permutation, again.permutation)
    np.testing.assert_array_equal(within.labels, plain.labels)
    assert (within.permutation != plain.permutation).any()
    order = between.labels[plain.order[plain.boundaries[:-1]]]  # of the clusters
    assert sorted(order) == list(range(8)) != list(order)
    np.testing.assert_array_equal(order[plain.labels], between.labels)


def test_no_clusters_have_no_order(workspace: Workspace, encoded: dict[str, str]) -> None:
    plain = prepare(workspace, encoded)
    ordered = prepare(workspace, {**encoded, "clustering.within": "chain", "clustering.between": "path"})
    assert ordered.rearrangement == plain.rearrangement


@pytest.mark.parametrize(
    ("split", "key", "value", "message"),
    [
        ("test", "classes", 9, "differ in classes;"),
        ("test", "class_names", list("abcdefghij"), "differ in class_names;"),
        ("test", "codebook_size", 32, "differ in codebook_size;"),
        ("test", "source", {"tokenizer": "0"}, "is not the tokenizer that made the codes"),
        ("both", "codebook_size", 32, "are of 32 codes, but .* has 64"),
    ],
)
def test_codes_that_do_not_fit_are_one_line(
    workspace: Workspace, encoded: dict[str, str], split: str, key: str, value: object, message: str
) -> None:
    folder = workspace.root / "codes"
    shutil.copytree(encoded["data.name"].removeprefix("codes:"), folder)
    for name in ("train", "test") if split == "both" else (split,):
        edit_index(folder, name, key, value)
    with pytest.raises(InputError, match=message):
        stages.check(smoke({**encoded, "data.name": f"codes:{folder}"}))


def test_tokens_that_form_no_square_are_refused(workspace: Workspace, encoded: dict[str, str]) -> None:
    source, folder = Path(encoded["data.name"].removeprefix("codes:")), workspace.root / "codes"
    shutil.copytree(source, folder)
    for split in ("train", "test"):
        cut = np.load(source / split / "codes.npy")[..., :15]
        np.save(folder / split / "codes.npy", cut)
        entry = {"shape": list(cut.shape), "dtype": str(cut.dtype), "sha256": ""}
        edit_index(folder, split, "codes.npy", entry)
        edit_index(folder, split, "tokens", 15)
    with pytest.raises(InputError, match=r"15 tokens an image, in .*, do not form a square"):
        stages.check(smoke({**encoded, "data.name": f"codes:{folder}"}))


def test_doctor_counts_them(workspace: Workspace, encoded: dict[str, str]) -> None:
    (found,) = [finding for finding in examine(encoded["data.name"]) if finding.what.startswith("data codes:")]
    assert found.fits
    assert found.text == "1,437 + 360 images, 10 classes, 2 augmentations, 16 tokens of 64 codes"
    (absent,) = [finding for finding in examine("codes:nowhere") if finding.what.startswith("data codes:")]
    assert not absent.fits


def test_a_compiler_that_cannot_link_is_told_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "find_spec", lambda name: SimpleNamespace(origin="/folder/torch/__init__.py"))
    stages.check(smoke({"compute.compile": "true"}))
    monkeypatch.setattr(stages, "find_spec", lambda name: SimpleNamespace(origin="/a folder/torch/__init__.py"))
    stages.check(smoke({}))
    with pytest.raises(InputError, match=r"cannot link below a folder with a space .* /a folder/torch"):
        stages.check(smoke({"compute.compile": "true"}))
