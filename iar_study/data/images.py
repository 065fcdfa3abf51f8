"""The images of a study: scikit-learn's digits, Fashion-MNIST, or the pictures of a folder, all as uint8 arrays."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from iar_study import parts
from iar_study.config import SIDES, DataConfig, is_encoded, side_of
from iar_study.data.fashion_mnist import CLASS_NAMES, missing_from, read_fashion_mnist
from iar_study.data.folder import is_decoded, read_folder
from iar_study.errors import InputError
from iar_study.storage import digest


@dataclass(frozen=True, eq=False)  # arrays have no plain equality: compare digests
class Images:
    """A train and a test split of square images with their classes.

    `train` and `test` are uint8 (n, side, side, channels) with 1 or 3 channels; `train_labels` and `test_labels` are
    int64 (n,) and index `class_names`. Raises `InputError` when the parts do not fit together.
    """

    name: str
    train: np.ndarray
    train_labels: np.ndarray
    test: np.ndarray
    test_labels: np.ndarray
    class_names: tuple[str, ...]

    def __post_init__(self) -> None:
        for split, images, labels in (("train", self.train, self.train_labels), ("test", self.test, self.test_labels)):
            where = f"{split} split of {self.name}"
            if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1] != images.shape[2]:
                raise InputError(f"{where}: expected square uint8 images, got {images.dtype} {images.shape}")
            if not len(images) or images.shape[3] not in (1, 3):
                raise InputError(f"{where}: expected images with 1 or 3 channels, got shape {images.shape}")
            if labels.dtype != np.int64 or labels.shape != images.shape[:1]:
                raise InputError(
                    f"{where}: expected int64 labels {images.shape[:1]}, got {labels.dtype} {labels.shape}"
                )
            if labels.min() < 0 or labels.max() >= len(self.class_names):
                raise InputError(f"{where}: labels {labels.min()}..{labels.max()}, {len(self.class_names)} classes")
        if self.train.shape[1:] != self.test.shape[1:]:
            raise InputError(f"{self.name}: train is {self.train.shape[1:]}, test is {self.test.shape[1:]} an image")

    @property
    def size(self) -> int:
        """Side of an image in pixels."""
        return self.train.shape[1]

    @property
    def channels(self) -> int:
        """1 (grey) or 3 (RGB)."""
        return self.train.shape[3]

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of the content: images, labels and class names, not the name of the set."""
        return digest(self.train, self.train_labels, self.test, self.test_labels, self.class_names)


def data_folder() -> Path:
    """Return the folder for downloads and decoded pictures: $IAR_DATA, else iar-study in the user's cache folder."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get("IAR_DATA") or f"{cache}/iar-study").expanduser().absolute()


def has_images(name: str) -> bool:
    """Whether a data set of this name is one that is loaded as a whole, from no path: built in, or one's own."""
    return name in SIDES or ".py:" in name


def load_images(config: DataConfig) -> Images:
    """Return the images that `config` names: `digits`, `fashion-mnist`, `folder:PATH`, or a part of one's own.

    Fashion-MNIST is fetched into `data_folder()` at first use, and the pictures of a folder are kept there decoded.
    Raises `InputError` for an unknown name, an `image_size` the set does not have, and files missing or damaged.
    """
    size, path = side_of(config), config.name.partition(":")[2]
    if config.name == "digits":
        return Images(config.name, **_read_digits(), class_names=tuple("0123456789"))
    if config.name == "fashion-mnist":
        return Images(config.name, **read_fashion_mnist(data_folder() / "fashion-mnist"), class_names=CLASS_NAMES)
    if is_encoded(config):
        raise InputError(f"{config.name} holds codes, not images; name digits, fashion-mnist or folder:PATH")
    if not parts.built_in("data", config.name):
        found = parts.load("data", config.name)()
        if not isinstance(found, Images) or config.image_size not in (None, found.size):
            raise InputError(
                f"data {config.name} is to return iar_study.data.Images, of data.image_size if that is set"
            )
        return found
    assert size is not None  # a folder's
    splits, class_names = read_folder(Path(path).expanduser(), size, data_folder() / "folders")
    return Images(config.name, **splits, class_names=class_names)


def absent(config: DataConfig) -> str:
    """Say what `load_images` would fetch or decode first; "" where the images are at hand.

    Raises `InputError` for a folder that is not of the form of images.
    """
    kind, _, path = config.name.partition(":")
    if config.name == "fashion-mnist" and missing_from(data_folder() / "fashion-mnist"):
        return "Fashion-MNIST is to be fetched"
    if kind == "folder" and path:
        root, size = Path(path).expanduser(), config.image_size or 32
        return "" if is_decoded(root, size, data_folder() / "folders") else f"the images of {path} are to be decoded"
    return ""


def _read_digits() -> dict[str, np.ndarray]:
    # Here, not on top: the package imports fast where no digits are asked for.
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    # The set's levels are 0 ... 16, not 0 ... 255.
    images = np.rint(digits.images[..., None] * (255 / 16)).astype(np.uint8)
    labels = digits.target.astype(np.int64)
    train, test, train_labels, test_labels = train_test_split(
        images, labels, test_size=0.2, stratify=labels, random_state=0
    )
    return {"train": train, "train_labels": train_labels, "test": test, "test_labels": test_labels}
