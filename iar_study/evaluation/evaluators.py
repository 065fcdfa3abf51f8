"""The evaluators of a data set: five small classifiers and one feature space that knows no classes, named by digests.

One classifier is one opinion: trained again from another seed it sees the same samples several percent nearer or
farther, more than what a study is to find. So FD is measured by all members of a set, and their geometric mean stands
for it. The principal components are no network and see no labels: what they agree to is no taste of classifiers.

A set is made once from a data set's training images, its weights are rounded to float16, so that file and memory hold
the same, and what it measures goes by the digest of these weights: with another set, the metric has another name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from iar_study.config import ClassifierConfig
from iar_study.errors import InputError
from iar_study.evaluation.classifier import Classifier
from iar_study.evaluation.features import ClassifierFeatures, Extractor, with_channels
from iar_study.evaluation.metrics import WIDTHS
from iar_study.storage import content_digest, load_arrays

CLASSIFIERS = 5
"""In a set. The k-th of the set with seed s is trained with the seed 5 s + k, so that no two sets share one."""

SIDE = 32
"""Pixels along the side that larger images are averaged down to before their components are taken."""

LEAST_VARIANCE = 1e-6
"""Of the first component's: what varies less is rounding."""

AT_ONCE = 2**22
"""Pixels that are held in float64 at a time: 32 MB."""


class ComponentFeatures:
    """The whitened principal components of the training images' pixels: each has variance 1 there.

    Parameters
    ----------
    name : see `Extractor`.
    mean : float (h, w, C), of pixels from 0 to 1.
    vectors : float (k, h, w, C), of length 1.
    scales : float (k,), 1 over the standard deviation along each.
    """

    batch = 500
    identity: str | None = None

    def __init__(self, name: str, mean: np.ndarray, vectors: np.ndarray, scales: np.ndarray) -> None:
        self.name, self.mean = name, mean.astype(np.float64)
        self.projection = (vectors.reshape(len(vectors), -1).astype(np.float64) * scales.astype(np.float64)[:, None]).T

    def __call__(self, images: np.ndarray) -> tuple[np.ndarray, None]:
        """See `Extractor`; float64 inside, so that the features are the same on every machine but for rounding.

        Raises `InputError` for pictures of another size, or coloured ones where the training images were grey.
        """
        pixels = averaged(with_channels(images, self.mean.shape[-1]))
        if pixels.shape[1:] != self.mean.shape:
            raise InputError(f"{self.name} is of {self.mean.shape} pixels, the images have {pixels.shape[1:]}")
        return ((pixels - self.mean).reshape(len(pixels), -1) @ self.projection).astype(np.float32), None


@dataclass(frozen=True)
class Evaluators:
    """A set of evaluators, each named by the digest of its own weights, the set by that of all."""

    name: str
    classifiers: tuple[ClassifierFeatures, ...]
    components: ComponentFeatures

    @property
    def members(self) -> tuple[Extractor, ...]:
        """All, the first classifier first: what takes long is measured by it alone."""
        return (*self.classifiers, self.components)


def averaged(images: np.ndarray) -> np.ndarray:
    """Return the pixels of uint8 images (n, H, W, C), from 0 to 1: float64 (n, h, w, C), no side longer than `SIDE`.

    A pixel is the mean of the area that it covers.
    """
    if max(images.shape[1:3]) <= SIDE:
        return images / 255.0
    rows, columns = (_overlaps(length) for length in images.shape[1:3])
    some = _images_at_once(images)
    parts = (images[first : first + some] / 255.0 for first in range(0, len(images), some))
    return np.concatenate([np.einsum("ih,nhwc,jw->nijc", rows, part, columns, optimize=True) for part in parts])


def _images_at_once(images: np.ndarray) -> int:
    return max(1, AT_ONCE // images[0].size)


def _overlaps(length: int) -> np.ndarray:
    """Return the share of each of `length` pixels in each of at most `SIDE` wider ones, float64 (side, length)."""
    side = min(length, SIDE)
    edges = np.arange(side + 1)[:, None] * length / side
    covered = np.clip(edges - np.arange(length), 0, 1)  # of each pixel, what lies before each edge
    return np.diff(covered, axis=0) * side / length


def principal_components(images: np.ndarray) -> dict[str, np.ndarray]:
    """Return `mean`, `vectors` and `scales`, as `ComponentFeatures` takes them, of uint8 images (n, H, W, C), float16.

    There are 64, or as many as have `LEAST_VARIANCE`; in each vector the entry that is farthest from 0 is positive.

    Raises
    ------
    InputError : the images are all alike.
    """
    some = _images_at_once(images)
    parts = [images[first : first + some] for first in range(0, len(images), some)]
    mean = sum(averaged(part).sum(0) for part in parts) / len(images)
    scatter = np.zeros((mean.size, mean.size))
    for part in parts:
        centred = (averaged(part) - mean).reshape(-1, mean.size)
        scatter += centred.T @ centred
    variances, columns = np.linalg.eigh(scatter / len(images))
    variances, vectors = variances[::-1][: WIDTHS["components"]], columns.T[::-1][: WIDTHS["components"]]
    if variances[0] <= 0:
        raise InputError("the training images are all alike: nothing can be compared in them")
    some = variances > LEAST_VARIANCE * variances[0]
    variances, vectors = variances[some], vectors[some]
    # An eigenvector's sign is LAPACK's choice; left to it, the digest of the set could change with it.
    vectors *= np.sign(vectors[np.arange(len(vectors)), np.abs(vectors).argmax(1)])[:, None]
    # Above float16's largest number, as of a deviation below 1.5e-5, a scale would become infinite.
    scales = np.minimum(variances**-0.5, np.finfo(np.float16).max)
    return {
        "mean": mean.astype(np.float16),
        "vectors": vectors.reshape(-1, *mean.shape).astype(np.float16),
        "scales": scales.astype(np.float16),
    }


def weights_of(model: Classifier) -> dict[str, np.ndarray]:
    """Return the weights of a trained classifier, float16; what batch normalisation counted is left out."""
    state = model.state_dict()
    return {name: state[name].numpy().astype(np.float16) for name in state if not name.endswith("num_batches_tracked")}


def classifier_of(
    weights: Mapping[str, np.ndarray], config: ClassifierConfig, channels: int, classes: int
) -> Classifier:
    """Return the classifier of these weights, in evaluation mode."""
    model = Classifier(config, channels, classes)
    model.load_state_dict({name: torch.from_numpy(array.astype(np.float32)) for name, array in weights.items()})
    return model.eval()


def packed(classifiers: list[dict[str, np.ndarray]], components: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the arrays of a set, as its file has them."""
    members = {f"classifier {k}": weights for k, weights in enumerate(classifiers)} | {"components": components}
    return {f"{member}/{name}": array for member, arrays in members.items() for name, array in arrays.items()}


def load_evaluators(path: Path) -> Evaluators:
    """Return the set of a product `evaluators`, or of a file that the package ships."""
    arrays, about = load_arrays(path)
    members: dict[str, dict[str, np.ndarray]] = {}
    for key in sorted(arrays):
        member, _, name = key.partition("/")
        members.setdefault(member, {})[name] = arrays[key]
    config, sizes = ClassifierConfig(**about["config"]), (about["channels"], about["classes"])
    names = {member: f"{member.partition(' ')[0]}-{content_digest(weights)[:8]}" for member, weights in members.items()}
    components = members.pop("components")
    return Evaluators(
        f"set-{content_digest(arrays)[:8]}",
        tuple(ClassifierFeatures(classifier_of(members[each], config, *sizes), names[each]) for each in members),
        ComponentFeatures(names["components"], **components),
    )
