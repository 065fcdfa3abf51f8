import subprocess
import sys
from dataclasses import FrozenInstanceError, replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from iar_study.config import DataConfig
from iar_study.data.images import Images, data_folder, load_images
from iar_study.errors import InputError


def tiny(**changes):
    rng = np.random.default_rng(0)
    parts = {
        "name": "tiny",
        "train": rng.integers(0, 256, (6, 4, 4, 3), dtype=np.uint8),
        "train_labels": np.array([0, 1, 0, 1, 0, 1]),
        "test": rng.integers(0, 256, (2, 4, 4, 3), dtype=np.uint8),
        "test_labels": np.array([0, 1]),
        "class_names": ("cat", "dog"),
    }
    return Images(**parts | changes)


def test_images_tell_their_size_and_cannot_be_changed():
    images = tiny()
    assert (images.size, images.channels) == (4, 3)
    with pytest.raises(FrozenInstanceError):
        images.name = "other"


def test_digest_follows_the_content_not_the_name():
    images = tiny()
    assert images.digest == tiny(name="other").digest
    assert len(images.digest) == 64
    altered = images.train.copy()
    altered[0, 0, 0, 0] ^= 1
    others = [
        replace(images, train=altered),
        replace(images, train_labels=images.train_labels[::-1].copy()),
        replace(images, class_names=("cat", "fox")),
    ]
    assert len({images.digest, *(other.digest for other in others)}) == 4


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"train": np.zeros((6, 4, 4, 3))}, "train split of tiny: expected square uint8 images, got float64"),
        ({"train": np.zeros((6, 4, 5, 3), np.uint8)}, "square"),
        ({"train": np.zeros((6, 4, 4), np.uint8)}, "square uint8"),
        ({"test": np.zeros((2, 4, 4, 2), np.uint8)}, "test split of tiny: expected images with 1 or 3 channels"),
        ({"test": np.zeros((0, 4, 4, 3), np.uint8), "test_labels": np.zeros(0, np.int64)}, "test split of tiny"),
        ({"test": np.zeros((2, 5, 5, 3), np.uint8)}, r"train is \(4, 4, 3\), test is \(5, 5, 3\)"),
        ({"train_labels": np.zeros(5, np.int64)}, r"expected int64 labels \(6,\), got int64 \(5,\)"),
        ({"train_labels": np.zeros(6, np.int32)}, "expected int64 labels"),
        ({"test_labels": np.array([0, 2])}, "labels 0..2, 2 classes"),
        ({"test_labels": np.array([-1, 0])}, "labels -1..0"),
    ],
)
def test_parts_that_do_not_fit_are_refused(changes, complaint):
    with pytest.raises(InputError, match=complaint):
        tiny(**changes)


def test_digits_are_scikit_learns_scaled_to_bytes_and_split():
    images = load_images(DataConfig(name="digits"))
    assert images.train.shape == (1437, 8, 8, 1)
    assert images.test.shape == (360, 8, 8, 1)
    assert images.class_names == tuple("0123456789")
    assert (images.train.min(), images.train.max()) == (0, 255)
    source = {(d.tobytes(), label) for d, label in zip(load_digits().images, load_digits().target, strict=True)}
    both = (
        np.concatenate([images.train, images.test])[..., 0],
        np.concatenate([images.train_labels, images.test_labels]),
    )
    assert {(np.rint(d / 255 * 16).tobytes(), label) for d, label in zip(*both, strict=True)} == source
    share = np.bincount(images.test_labels) / (np.bincount(images.train_labels) + np.bincount(images.test_labels))
    np.testing.assert_allclose(share, 0.2, atol=0.01)
    assert images.digest == load_images(DataConfig(name="digits", image_size=8)).digest


@pytest.mark.parametrize("config", [DataConfig("digits", 16), DataConfig("fashion-mnist", 32)])
def test_a_size_the_set_does_not_have_is_refused(config):
    with pytest.raises(InputError, match=f"image_size = {config.image_size}, but {config.name} is"):
        load_images(config)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("digit", "did you mean 'digits'"),
        ("fashion_mnist", "did you mean 'fashion-mnist'"),
        ("folder", "'folder:PATH'"),
        ("folder:", "'folder:PATH'"),
        ("imagenet", "known: digits, fashion-mnist, folder:PATH, codes:PATH; one's own is FILE.py:NAME"),
    ],
)
def test_unknown_names_come_with_a_hint(name, hint):
    with pytest.raises(InputError, match=f"unknown data '{name}'; .*{hint}"):
        load_images(DataConfig(name=name))


def test_data_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("IAR_DATA", str(tmp_path))
    assert data_folder() == tmp_path
    monkeypatch.setenv("IAR_DATA", "here")
    assert data_folder() == Path.cwd() / "here"
    monkeypatch.delenv("IAR_DATA")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert data_folder() == tmp_path / "cache" / "iar-study"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert data_folder() == tmp_path / ".cache" / "iar-study"


def test_importing_the_data_package_loads_nothing_heavy():
    heavy = "{'torch', 'sklearn', 'pooch', 'pandas', 'mlflow'}"
    check = f"import sys, iar_study.data; assert not {heavy} & set(sys.modules), {heavy} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", check], check=True)
