import numpy as np
import pytest

from iar_study.errors import InputError
from iar_study.evaluation.nearest_images import nearest_images


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (40, 5, 5, 3), dtype=np.uint8)


def test_against_all_pairs(images):
    pictures = np.random.default_rng(1).integers(0, 256, (7, 5, 5, 3), dtype=np.uint8)
    apart = pictures[:, None].astype(float) - images[None]
    expected = np.sqrt((apart**2).mean(axis=(2, 3, 4)))
    indices, distances = nearest_images(pictures, images, 3)
    np.testing.assert_array_equal(indices, expected.argsort(axis=1)[:, :3])
    np.testing.assert_allclose(distances, np.sort(expected, axis=1)[:, :3], rtol=1e-4)


def test_a_copy_is_found_at_no_distance(images):
    indices, distances = nearest_images(images[[31, 2]], images)
    assert indices.tolist() == [[31], [2]]
    np.testing.assert_allclose(distances, 0, atol=0.1)


def test_what_does_not_fit_is_an_input_error(images):
    with pytest.raises(InputError, match="must be alike"):
        nearest_images(images[..., :1], images)
    with pytest.raises(InputError, match="41 nearest of 40"):
        nearest_images(images, images, 41)
