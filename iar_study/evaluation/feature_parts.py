"""Features of pictures in parts, each a file of its own: saved at once, and measured together.

Parts may be made by any number of processes, in any order. What is measured of them is the same to the bit, as they are
joined by their numbers, and a part's pictures are looked at in batches that begin with the part.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from iar_study.errors import InputError, listed
from iar_study.evaluation.features import Seen
from iar_study.evaluation.fidelity import Gaussian, Reference
from iar_study.storage import load_joined, save_arrays

LOOKED_AT_ONCE = 500
"""Pictures of a part: what a kill can cost."""


def parts_of(count: int) -> list[tuple[int, int]]:
    """Return the pictures (first, end) of each part of so many.

    >>> parts_of(1200)
    [(0, 500), (500, 1000), (1000, 1200)]
    """
    return [(first, min(first + LOOKED_AT_ONCE, count)) for first in range(0, count, LOOKED_AT_ONCE)]


class FeatureParts:
    """The files of the parts in a folder, which whoever makes it names by all that decides their bits."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, part: int) -> Path:
        """Where the part of this number is, whole, or is to be."""
        return self.folder / f"{part:06}.safetensors"

    def has(self, part: int) -> bool:
        return self.path(part).exists()

    def save(self, part: int, seen: Seen) -> None:
        """Keep what an extractor saw in a part, atomically; raises `InputError` where it cannot be written."""
        arrays = {name: array for name, array in seen._asdict().items() if array is not None}
        save_arrays(self.path(part), arrays)

    def joined(self, parts: Sequence[int]) -> Seen:
        """Return what was seen in parts of these numbers, one after the other.

        Raises `InputError` where one is missing or damaged, or parts do not go together.
        """
        if missing := [part for part in parts if not self.has(part)]:
            raise InputError(f"{self.folder} lacks {listed(self.path(part).name for part in missing)}; run again")
        return Seen(**load_joined([self.path(part) for part in parts]))


def reference_of(
    seen: Seen,
    source: str,
    statistics: tuple[np.ndarray, np.ndarray] | None = None,
    spatial_statistics: tuple[np.ndarray, np.ndarray] | None = None,
    device: str | None = None,
) -> Reference:
    """Return the reference of pictures and of the moments that came with them, as ADM's evaluator takes it.

    Parameters
    ----------
    seen : what the extractor sees in the reference's pictures.
    source : where they are, for messages.
    statistics, spatial_statistics : mean and covariance of features, and of spatial features, over more pictures, as
        `PictureSet` has them. Without both, they are of these pictures. With `statistics` alone there is no spatial
        Gaussian: the two would be of different pictures.
    device : where samples will be measured, see `Reference`.

    Raises
    ------
    InputError : moments of other features than the extractor's, or that are no mean and covariance.
    """
    given = statistics is not None or spatial_statistics is not None
    gaussian = _given(statistics, seen.features, "mu", source)
    spatial = None if seen.spatial is None else _given(spatial_statistics, seen.spatial, "mu_s", source)
    if seen.spatial is not None and not given:
        spatial = Gaussian.of(seen.spatial, "spatial features of the reference", device)
    return Reference(seen.features, gaussian, spatial, device)


def _given(
    moments: tuple[np.ndarray, np.ndarray] | None, features: np.ndarray, name: str, source: str
) -> Gaussian | None:
    if moments is None:
        return None
    mean, covariance = moments
    count, width = features.shape
    if len(mean) != width:
        raise InputError(
            f"{source}: {name} is of {len(mean)} features, the extractor has {width}; use another reference"
        )
    try:
        # Of how many images is not told; more than there are features, so that the covariance is taken as it is.
        return Gaussian.from_moments(mean, covariance, max(count, width + 1))
    except InputError as error:
        raise InputError(f"{source}: {name} and its covariance: {error}; make the file again") from error
