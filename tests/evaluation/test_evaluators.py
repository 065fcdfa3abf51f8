"""Sets of evaluators: averaging and components by their definitions, names by content, the same digits everywhere."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from iar_study import evaluation
from iar_study.config import ClassifierConfig
from iar_study.errors import InputError
from iar_study.evaluation.classifier import Classifier
from iar_study.evaluation.evaluators import (
    ComponentFeatures,
    averaged,
    load_evaluators,
    packed,
    principal_components,
    weights_of,
)
from iar_study.evaluation.fidelity import frechet_distance
from iar_study.storage import load_metadata, save_arrays

SHIPPED = sorted((Path(evaluation.__file__).parent / "fixed").glob("*.safetensors"))
CONFIG = ClassifierConfig(channels=4)


def noise(count, side, channels, seed=0):
    """Smooth pictures of all kinds."""
    raw = np.random.default_rng(seed).normal(size=(count, side, side, channels))
    smooth = gaussian_filter(raw, (0, 2, 2, 0))
    return np.clip(128 + 60 * smooth / smooth.std(), 0, 255).astype(np.uint8)


def made(path, seed=0, images=None):
    """Write a set of untrained classifiers, with the components of some pictures."""
    import torch

    torch.manual_seed(seed)
    models = [Classifier(CONFIG, 1, 3) for _ in range(5)]
    arrays = packed([weights_of(model) for model in models], principal_components(noise(80, 8, 1)))
    save_arrays(path, arrays, {"config": vars(CONFIG), "channels": 1, "classes": 3})
    return arrays


def test_small_pictures_are_taken_as_they_are_and_of_larger_ones_areas():
    small, double, uneven = (noise(3, side, 3) for side in (32, 64, 48))
    np.testing.assert_array_equal(averaged(small), small / 255)
    blocks = double.reshape(3, 32, 2, 32, 2, 3).mean((2, 4)) / 255
    np.testing.assert_allclose(averaged(double), blocks, rtol=1e-12)
    found = averaged(uneven)  # a pixel and a half each way
    assert found.shape == (3, 32, 32, 3)
    weights = np.array([1, 0.5])
    corner = np.einsum("nijc,i,j->nc", uneven[:, :2, :2] / 255, weights, weights) / 1.5**2
    np.testing.assert_allclose(found[:, 0, 0], corner, rtol=1e-12)
    np.testing.assert_allclose(found.mean((1, 2)), uneven.mean((1, 2)) / 255, rtol=1e-12)


def test_components_are_uncorrelated_and_of_variance_one_on_what_they_were_made_from():
    images = noise(2000, 12, 1)
    found = principal_components(images)
    assert {array.dtype for array in found.values()} == {np.dtype(np.float16)}
    features, probabilities = ComponentFeatures("components", **found)(images)
    assert (features.shape, features.dtype, probabilities) == ((2000, 64), np.float32, None)
    # But for float16 in the weights.
    np.testing.assert_allclose(np.cov(features.T, ddof=0), np.eye(64), atol=0.02)
    vectors = found["vectors"].reshape(64, -1)
    assert (vectors[np.arange(64), np.abs(vectors).argmax(1)] > 0).all()
    exact = np.linalg.svd(images.reshape(2000, -1) / 255 - (images / 255.0).mean(0).ravel(), compute_uv=False)
    np.testing.assert_allclose(found["scales"], 2000**0.5 / exact[:64], rtol=1e-3)


def test_there_are_no_more_components_than_the_pictures_have():
    flat = np.repeat(noise(50, 8, 1)[:, :1, :1], 8, axis=1).repeat(8, axis=2)  # one grey each
    assert len(principal_components(flat)["vectors"]) == 1
    with pytest.raises(InputError, match="the training images are all alike"):
        principal_components(np.zeros((10, 8, 8, 1), np.uint8))


def test_pictures_of_another_size_are_refused():
    components = ComponentFeatures("components", **principal_components(noise(50, 8, 1)))
    components(noise(2, 8, 1).repeat(3, axis=3))  # grey in three channels is grey
    with pytest.raises(InputError, match=r"components is of \(8, 8, 1\) pixels, the images have \(9, 9, 1\)"):
        components(noise(2, 9, 1))


def test_a_set_and_its_members_go_by_what_is_in_them(tmp_path):
    arrays = made(tmp_path / "a.safetensors")
    one = load_evaluators(tmp_path / "a.safetensors")
    names = [member.name for member in one.members]
    assert [name.partition("-")[0] for name in names] == ["classifier"] * 5 + ["components"]
    assert len(set(names)) == 6
    about = load_metadata(tmp_path / "a.safetensors")
    save_arrays(tmp_path / "same.safetensors", arrays, about | {"accuracies": [1.0]})
    same = load_evaluators(tmp_path / "same.safetensors")
    assert (same.name, [member.name for member in same.members]) == (one.name, names)
    arrays["classifier 2/head.bias"] = arrays["classifier 2/head.bias"] + np.float16(1)
    save_arrays(tmp_path / "b.safetensors", arrays, about)
    other = load_evaluators(tmp_path / "b.safetensors")
    assert other.name != one.name
    assert [k for k in range(6) if other.members[k].name != names[k]] == [2]


@pytest.mark.parametrize("file", SHIPPED, ids=[file.stem for file in SHIPPED])
def test_the_package_ships_sets_that_know_their_images(file):
    about, found = load_metadata(file), load_evaluators(file)
    assert found.name == f"set-{about['digest'][:8]}"
    assert about["config"] == vars(ClassifierConfig())  # as `quick` and `full` have it
    assert min(about["accuracies"]) > (0.9 if "fashion" in file.stem else 0.7)
    assert file.stat().st_size < 1.7e6
    assert found.components.projection.shape[1] == 64


DISTANCES = f"""
import sys; sys.path.insert(0, {str(Path(__file__).parents[2])!r})
import torch
from tests.evaluation.test_evaluators import SHIPPED, distances
torch.set_num_threads(1)
print(torch.backends.cpu.get_cpu_capability(), *(repr(each) for file in SHIPPED for each in distances(file)))
"""


def distances(file):
    """FD of fixed pictures by each member of a set."""
    evaluators, about = load_evaluators(file), load_metadata(file)
    side, channels = (28, 1) if about["channels"] == 1 else (32, 3)
    one, other = noise(300, side, channels), noise(300, side, channels, seed=1) // 2
    return [float(frechet_distance(member(one)[0], member(other)[0])) for member in evaluators.members]


def test_another_processor_finds_the_same_digits():
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": "default"}
    told = subprocess.run(
        [sys.executable, "-c", DISTANCES], capture_output=True, text=True, check=True, env=environment
    ).stdout.split()
    assert told[0] == "DEFAULT"
    here = [each for file in SHIPPED for each in distances(file)]
    assert len(here) == 12
    np.testing.assert_allclose([float(each) for each in told[1:]], here, rtol=1e-4)
