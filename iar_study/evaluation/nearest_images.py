"""Whether samples repeat training images: the nearest ones to each, by their pixels."""

from __future__ import annotations

import numpy as np
from sklearn.neighbors import NearestNeighbors

from iar_study.errors import InputError


def nearest_images(pictures: np.ndarray, images: np.ndarray, count: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Return the `count` images nearest to each picture, the nearest first.

    Parameters
    ----------
    pictures : uint8 (n, h, w, c).
    images : uint8 (N, h, w, c), such as those of the training.

    Returns
    -------
    indices : int64 (n, count), into `images`.
    distances : float64 (n, count), root mean squared difference of the pixels, in levels of 0 to 255.

    Raises
    ------
    InputError : pictures and images of different shapes, or fewer images than `count`.
    """
    if pictures.shape[1:] != images.shape[1:]:
        raise InputError(f"samples are {pictures.shape[1:]} each, images {images.shape[1:]}; they must be alike")
    if len(images) < count:
        raise InputError(f"{count} nearest of {len(images)} images were asked for")
    flat = images.reshape(len(images), -1).astype(np.float32)
    # By brute force: with hundreds of pixels a tree rules out next to nothing.
    search = NearestNeighbors(n_neighbors=count, algorithm="brute").fit(flat)
    distances, indices = search.kneighbors(pictures.reshape(len(pictures), -1).astype(np.float32))
    return indices, distances.astype(np.float64) / flat.shape[1] ** 0.5
