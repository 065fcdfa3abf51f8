"""The classifier on digits: it learns, repeats itself to the bit, and its features carry its decision."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from iar_study.config import ClassifierConfig
from iar_study.errors import InputError
from iar_study.evaluation.classifier import FEATURES, Classifier, classify
from iar_study.storage import load_arrays, save_arrays
from iar_study.tokenizers.vq import to_float
from iar_study.training.train_classifier import train_classifier

DIGITS = np.rint(load_digits().images[..., None] * (255 / 16)).astype(np.uint8)
LABELS = load_digits().target.astype(np.int64)
TRAIN, TEST = slice(0, 1437), slice(1437, None)
CONFIG = ClassifierConfig(channels=8, steps=150, batch_size=64, lr=4e-3)


@pytest.fixture(scope="module")
def model() -> Classifier:
    return train_classifier(DIGITS[TRAIN], LABELS[TRAIN], 10, CONFIG, threads=1)


def test_learns_the_digits(model: Classifier) -> None:
    features, labels = classify(model, DIGITS[TEST])
    assert (labels == LABELS[TEST]).mean() > 0.9
    assert labels.dtype == np.int64
    assert features.shape == (360, FEATURES)
    assert features.dtype == np.float32
    assert np.linalg.matrix_rank(features - features.mean(0)) > 20  # not collapsed onto ten points


def test_an_image_is_judged_alone(model: Classifier) -> None:
    # Batch normalisation must use its running averages: neighbours in the batch do not matter.
    features, labels = classify(model, DIGITS[TEST])
    few, few_labels = classify(model, DIGITS[TEST][:7], batch=3)
    np.testing.assert_allclose(few, features[:7], atol=1e-5)
    np.testing.assert_array_equal(few_labels, labels[:7])


def test_labels_follow_from_the_features(model: Classifier) -> None:
    features, labels = classify(model, DIGITS[:50])
    logits = model(to_float(DIGITS[:50]))
    torch.testing.assert_close(model.head(torch.from_numpy(features)), logits)
    np.testing.assert_array_equal(labels, logits.argmax(1).numpy())


@pytest.mark.parametrize("threads", [1, 2])
def test_training_again_gives_the_same_bits(threads: int) -> None:
    config = replace(CONFIG, steps=6)
    first = train_classifier(DIGITS, LABELS, 10, config, threads=threads).state_dict()
    torch.rand(7)
    second = train_classifier(DIGITS, LABELS, 10, config, threads=threads).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = train_classifier(DIGITS, LABELS, 10, replace(config, seed=1), threads=threads).state_dict()
    assert not torch.equal(first["head.weight"], other["head.weight"])


def test_survives_storage(model: Classifier, tmp_path: Path) -> None:
    path = tmp_path / "classifier.safetensors"
    save_arrays(path, {name: tensor.numpy() for name, tensor in model.state_dict().items()})
    restored = Classifier(CONFIG, 1, 10)
    restored.load_state_dict({name: torch.from_numpy(array) for name, array in load_arrays(path)[0].items()})
    np.testing.assert_array_equal(classify(restored.eval(), DIGITS[:9])[0], classify(model, DIGITS[:9])[0])


def test_colour_images_and_progress() -> None:
    images = np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), dtype=np.uint8)
    seen: list[tuple[int, int, str]] = []
    config = replace(CONFIG, steps=22, batch_size=4)
    model = train_classifier(images, np.arange(20) % 2, 2, config, threads=1, progress=lambda *at: seen.append(at))
    assert classify(model, images)[0].shape == (20, FEATURES)
    assert [at[:2] for at in seen] == [(20, 22), (22, 22)]


def test_bad_input(model: Classifier) -> None:
    with pytest.raises(InputError, match="labels from 0 to 4"):
        train_classifier(DIGITS, LABELS, 5, CONFIG, threads=1)
    with pytest.raises(InputError, match="expected 1797 labels"):
        train_classifier(DIGITS, LABELS[:-1], 10, CONFIG, threads=1)
    with pytest.raises(InputError, match="batch_size = 1"):
        train_classifier(DIGITS, LABELS, 10, replace(CONFIG, batch_size=1), threads=1)
    with pytest.raises(InputError, match=r"not finite at step 20; lower classifier\.lr"):
        train_classifier(DIGITS, LABELS, 10, replace(CONFIG, steps=20, lr=1e30), threads=1)
    with pytest.raises(InputError, match="for 1 channels, the images have 3"):
        classify(model, np.zeros((2, 8, 8, 3), dtype=np.uint8))


@pytest.mark.usefixtures("keeping_all")
def test_a_training_that_is_cut_off_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    config = replace(CONFIG, steps=30)
    whole = train_classifier(DIGITS, LABELS, 10, config, threads=1).state_dict()
    seen: list[tuple[int, int, str]] = []

    def cut(*at: Any) -> None:
        seen.append(at)
        if len(seen) == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_classifier(DIGITS, LABELS, 10, config, threads=1, folder=tmp_path, progress=cut)
    again = train_classifier(DIGITS, LABELS, 10, config, threads=1, folder=tmp_path, progress=cut).state_dict()
    assert [at[0] for at in seen] == [20, 20, 30]  # cut off before the 20th step was kept
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    with pytest.raises(InputError, match=r"made with other settings: lr = 0\.004, now 0\.002"):
        train_classifier(DIGITS, LABELS, 10, replace(config, lr=2e-3), threads=1, folder=tmp_path)
