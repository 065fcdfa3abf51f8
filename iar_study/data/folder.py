"""The pictures of a folder, one subfolder a class, decoded to square RGB arrays and kept decoded in a cache."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL
from joblib import cpu_count
from PIL import Image, ImageOps

from iar_study.errors import InputError
from iar_study.storage import digest, load_arrays, save_arrays

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
DECODING = 2
"""Raise it when `read_folder` makes other arrays of the same files, so that older caches are not used."""
TEST_SHARE = 0.1
"""Of each class, where the folder has no test split of its own."""


class Picture(NamedTuple):
    """A file, with what tells that it changed."""

    path: str
    bytes: int
    mtime_ns: int


Classes = dict[str, list[Picture]]


class Split(NamedTuple):
    """Pictures with their classes, int64 (n,)."""

    pictures: list[Picture]
    labels: np.ndarray

    def listing(self, root: Path) -> list[tuple[str, int, int]]:
        """Return what tells that the pictures are still the same ones, as JSON."""
        return [(os.path.relpath(p.path, root), p.bytes, p.mtime_ns) for p in self.pictures]


def read_folder(root: Path, size: int, cache: Path) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Return (arrays, class names) of the pictures under `root`, resized and centre-cropped to `size` x `size`.

    `root` holds train/CLASS/picture and test/CLASS/picture, or CLASS/picture only, of which a fixed tenth of every
    class then becomes the test split. The arrays are train and test, uint8 (n, size, size, 3), and train_labels and
    test_labels, int64 (n,): train in sorted order of class and file, test in a fixed mixed order. They are kept in the
    folder `cache` for the next call.
    Raises `InputError` when the folder is not of that form or a picture cannot be read.
    """
    root, train, test, names = list_folder(root)
    kept = _kept(root, train, test, size, cache)
    arrays = _load_kept(kept)
    if arrays is None:
        decoded = _decode([p.path for split in (train, test) for p in split.pictures], size)
        arrays = {"train": decoded[: len(train.pictures)], "train_labels": train.labels}
        arrays |= {"test": decoded[len(train.pictures) :], "test_labels": test.labels}
        try:
            save_arrays(kept, arrays, {"digest": _digest(arrays)})
        except InputError as error:
            print(f"the decoded images are not kept for the next time: {error}", file=sys.stderr)
    return arrays, names


def is_decoded(root: Path, size: int, cache: Path) -> bool:
    """Whether `read_folder` was called before and kept what it decoded. Raises `InputError` as `list_folder`."""
    root, train, test, _ = list_folder(root)
    return _kept(root, train, test, size, cache).exists()


def _kept(root: Path, train: Split, test: Split, size: int, cache: Path) -> Path:
    listing = [split.listing(root) for split in (train, test)]
    # Pillow's version counts: another release may decode or resize to other bytes.
    return cache / f"{digest(DECODING, PIL.__version__, str(root), size, listing)}.safetensors"


def list_folder(root: Path) -> tuple[Path, Split, Split, tuple[str, ...]]:
    """Return (resolved root, train, test, class names) of the pictures under `root`, as `read_folder` orders them.

    Raises `InputError` when the folder is not of the form that `read_folder` describes.
    """
    try:
        root = root.resolve(strict=True)
        splits = _find_splits(root)
    except OSError as error:
        raise InputError(f"{error.filename or root} cannot be read ({error.strerror}); check the path") from error
    train, test = (
        Split(list(chain(*split.values())), np.repeat(np.arange(len(split)), [*map(len, split.values())]))
        for split in splits
    )
    # What is measured on the first so many held-out pictures must not be measured on the first class alone.
    mixed = np.random.default_rng(0).permutation(len(test.pictures))
    return root, train, Split([test.pictures[i] for i in mixed], test.labels[mixed]), tuple(splits[0])


def _find_splits(root: Path) -> tuple[Classes, Classes]:
    """Return the pictures of train and of test by class, over the same two or more classes."""
    has_train, has_test = (root / "train").is_dir(), (root / "test").is_dir()
    if has_train and has_test:
        train, test = _find_classes(root / "train"), _find_classes(root / "test")
        if train.keys() != test.keys():
            differing = ", ".join(
                f"{name} (only in {'train' if name in train else 'test'})"
                for name in sorted(train.keys() ^ test.keys())
            )
            raise InputError(
                f"train and test under {root} must hold images of the same classes, but differ: {differing}"
            )
        _check_two_classes(root / "train", train)
        return train, test
    classes = _find_classes(root, hint=_lone_split_hint(root) if has_train or has_test else "")
    if sum(map(len, classes.values())) == 1:
        raise InputError(f"only one image under {root}; a train and a test split need at least two in every class")
    _check_two_classes(root, classes)
    if single := [name for name, pictures in classes.items() if len(pictures) == 1]:
        raise InputError(
            f"only one image of {', '.join(single)} under {root}; to be split into train and test, "
            "a class needs two: add images, remove the class, or give train/ and test/ folders"
        )
    return _split(classes)


def _lone_split_hint(root: Path) -> str:
    """Say what to do about train/ without test/, or the other way round."""
    there, absent = ("train", "test") if (root / "train").is_dir() else ("test", "train")
    return f" ({root} has {there}/ but no {absent}/: add it, or give folder:{root / there} to have that one split)"


def _check_two_classes(root: Path, classes: Classes) -> None:
    if len(classes) == 1:
        raise InputError(f"only one class ({next(iter(classes))}) under {root}; at least two are needed")


def _find_classes(root: Path, hint: str = "") -> Classes:
    """Return the pictures in every subfolder, both in sorted order; hidden and other files are passed over."""
    folders = sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and not entry.name.startswith("."))
    classes = {name: pictures for name in folders if (pictures := _find_pictures(root / name))}
    if not classes:
        kinds = " ".join(sorted(SUFFIXES))
        raise InputError(f"no images under {root}{hint}; expected {root}/CLASS/IMAGE with one of {kinds}")
    return classes


def _find_pictures(folder: Path) -> list[Picture]:
    pictures = []
    for entry in os.scandir(folder):
        if entry.name.startswith(".") or Path(entry.name).suffix.lower() not in SUFFIXES or entry.is_dir():
            continue
        stat = entry.stat()
        pictures.append(Picture(entry.path, stat.st_size, stat.st_mtime_ns))
    return sorted(pictures)


def _split(classes: Classes) -> tuple[Classes, Classes]:
    """Set a tenth of every class apart as test, at least one picture (scikit-learn's split may take none)."""
    rng = np.random.default_rng(0)
    train, test = {}, {}
    for name, pictures in classes.items():
        apart = set(rng.permutation(len(pictures))[: max(1, round(TEST_SHARE * len(pictures)))])
        train[name] = [picture for i, picture in enumerate(pictures) if i not in apart]
        test[name] = [picture for i, picture in enumerate(pictures) if i in apart]
    return train, test


def _decode(paths: list[str], size: int) -> np.ndarray:
    """Return the pictures as uint8 (n, size, size, 3), decoded by as many threads as there are cores."""
    from rich.console import Console
    from rich.progress import track

    images = np.empty((len(paths), size, size, 3), np.uint8)

    def fitted(picture: Image.Image) -> Image.Image:
        return ImageOps.fit(picture, (size, size), Image.Resampling.LANCZOS)

    def decode(i: int) -> None:
        images[i] = read_picture(paths[i], fitted)

    with ThreadPoolExecutor(cpu_count()) as threads:
        done = threads.map(decode, range(len(paths)))
        quiet = not sys.stderr.isatty()
        for _ in track(done, "decoding images", len(paths), console=Console(stderr=True), disable=quiet):
            pass
    return images


def read_picture(path: str, shape: Callable[[Image.Image], Image.Image | np.ndarray]) -> np.ndarray:
    """Return what `shape` makes of one picture: RGB, upright, over white where it is transparent.

    Raises `InputError` that names the file when it cannot be read.
    """
    try:
        with Image.open(path) as file:  # of an animation, the first frame
            ImageOps.exif_transpose(file, in_place=True)
            picture = _to_rgb(file)
        return np.asarray(shape(picture))
    except Exception as error:  # Pillow's readers raise all kinds: OSError, SyntaxError, ValueError, struct.error ...
        raise InputError(f"{path} cannot be read as an image ({error}); repair or remove it and run again") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        # Pillow would clip 16 bits to 255; keep the high byte, as it does itself for 16-bit colour.
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError("32 bits a pixel, whose range is not known; save it with 8 or 16 bits")
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        white.alpha_composite(image.convert("RGBA"))
        image = white
    return image.convert("RGB")


def _load_kept(path: Path) -> dict[str, np.ndarray] | None:
    """Return the arrays that an earlier call kept, or None when there are none or they are damaged."""
    if not os.path.exists(path):
        return None
    try:
        arrays, metadata = load_arrays(path)
        if metadata["digest"] == _digest(arrays):
            return arrays
    except (InputError, KeyError, OSError):
        pass
    print(f"{path} is damaged; decoding the images again", file=sys.stderr)
    return None


def _digest(arrays: dict[str, np.ndarray]) -> str:
    return digest(*(arrays[part] for part in ("train", "train_labels", "test", "test_labels")))
