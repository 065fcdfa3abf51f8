"""Sets of pictures that are too many to hold: read as a stream out of an .npz or a folder, and written as an .npz.

The .npz is the one of ADM's evaluator (github.com/openai/guided-diffusion, evaluations/): `arr_0` holds the pictures,
uint8 (N, H, W, C), and `arr_1` maybe their classes. A reference batch also brings the mean and covariance of Inception
features over more images than it holds: `mu` and `sigma` of the pooled ones, `mu_s` and `sigma_s` of the spatial ones.
"""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import IO

import numpy as np
from joblib import cpu_count
from PIL import Image

from iar_study.data.folder import SUFFIXES, read_picture
from iar_study.errors import InputError
from iar_study.storage import digest, file_sha256, replacing

PICTURES, LABELS = "arr_0", "arr_1"
STATISTICS, SPATIAL_STATISTICS = ("mu", "sigma"), ("mu_s", "sigma_s")

Shape = tuple[int, int, int]
"""Height, width, channels."""


@dataclass(frozen=True, eq=False)
class PictureSet:
    """Pictures of one size, in a fixed order, of which some are in memory at a time.

    Attributes
    ----------
    source : where they are, for messages.
    count, shape : how many, and (height, width, channels) of each.
    labels : int64 (count,), or None where the classes are not known.
    class_names : of the labels, where classes have names.
    statistics, spatial_statistics : mu (F,) and sigma (F, F), mu_s (S,) and sigma_s (S, S), float64, of an ADM
        reference batch.
    """

    source: str
    count: int
    shape: Shape
    stream: Callable[[int, int], Iterator[np.ndarray]] = field(repr=False)
    """(first picture, pictures at once) -> their arrays."""
    content: Callable[[], str] = field(repr=False)
    """Computes `digest`."""
    labels: np.ndarray | None = None
    class_names: tuple[str, ...] | None = None
    statistics: tuple[np.ndarray, np.ndarray] | None = None
    spatial_statistics: tuple[np.ndarray, np.ndarray] | None = None

    @classmethod
    def of(cls, source: str, images: np.ndarray, labels: np.ndarray, class_names: tuple[str, ...]) -> PictureSet:
        """Return the set of uint8 images (n, H, W, C) that are in memory, with labels int64 (n,)."""

        def stream(first: int, size: int) -> Iterator[np.ndarray]:
            return (images[i : i + size] for i in range(first, len(images), size))

        _, height, width, channels = images.shape
        shape = (height, width, channels)
        return cls(source, len(images), shape, stream, lambda: digest(images, labels), labels, class_names)

    @property
    def height(self) -> int:
        return self.shape[0]

    @property
    def width(self) -> int:
        return self.shape[1]

    @property
    def channels(self) -> int:
        """1 (grey) or 3 (RGB)."""
        return self.shape[2]

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex): of an .npz the file's own, of a folder over the names and contents of its pictures."""
        return self.content()

    def batches(self, size: int, first: int = 0) -> Iterator[np.ndarray]:
        """Give the pictures from number `first` on, uint8 (size, H, W, C); the last batch may be smaller.

        Raises `InputError` where the source turns out to be damaged, or a picture is of another size.
        """
        for images in self.stream(first, size):
            if first >= self.count:
                return
            yield images[: self.count - first]
            first += len(images)

    def head(self, count: int) -> PictureSet:
        """Return the set of the first `count` pictures; its digest stays that of all."""
        if not 0 < count <= self.count:
            raise InputError(f"{self.source} holds {self.count} images, not {count}; ask for fewer")
        labels = None if self.labels is None else self.labels[:count]
        return replace(self, count=count, labels=labels)


def open_pictures(path: Path) -> PictureSet:
    """Open an .npz, or the pictures of a folder and of its subfolders, without reading the pictures.

    A folder's pictures are in sorted order of path and taken as RGB; where each lies in a subfolder, the first
    subfolder's name is its class.

    Raises
    ------
    InputError : there is nothing, no picture, an array of another type or shape, or pictures of different sizes.
    """
    path = Path(path)
    if path.is_dir():
        return _open_folder(path)
    if path.suffix == ".npz" and path.is_file():
        return _open_npz(path)
    kinds = " ".join(sorted(SUFFIXES))
    raise InputError(f"no images at {path}; give an .npz with {PICTURES}, or a folder with {kinds}")


def open_reference(path: Path, size: int) -> PictureSet:
    """Open pictures, as `open_pictures`, that samples of `size` x `size` pixels are to be measured against.

    Raises `InputError` as `open_pictures`, and where the pictures are of another size.
    """
    pictures = open_pictures(path)
    if pictures.shape[:2] != (size, size):
        raise InputError(
            f"{path} has images of {pictures.height} x {pictures.width} pixels, the samples are of {size} x {size}; "
            f"give a reference of their size"
        )
    return pictures


def write_npz(
    path: Path, batches: Iterable[np.ndarray], count: int, shape: Shape, labels: np.ndarray | None = None
) -> None:
    """Write an uncompressed .npz that numpy and ADM's evaluator read, atomically; equal pictures give equal bytes.

    Parameters
    ----------
    batches : uint8 (b, H, W, C), of the given shape, `count` pictures together.
    labels : integers (count,), written as int64.

    Raises
    ------
    InputError : other pictures or labels come than were promised, or the disk is full.
    """
    if labels is not None and labels.shape != (count,):
        raise InputError(f"{path}: {count} images need as many labels, not {labels.shape}")
    with replacing(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        done = 0
        with _new_member(archive, PICTURES, np.dtype(np.uint8), (count, *shape)) as member:
            for batch in batches:
                done += len(batch)
                if batch.dtype != np.uint8 or batch.shape[1:] != shape or done > count:
                    raise InputError(
                        f"{path}: {count} images, uint8 {shape}, were to come; "
                        f"{done} of {batch.dtype} {batch.shape[1:]} came"
                    )
                member.write(np.ascontiguousarray(batch).data)
        if done != count:
            raise InputError(f"{path}: {count} images were to come; {done} came")
        if labels is not None:
            with _new_member(archive, LABELS, np.dtype(np.int64), labels.shape) as member:
                member.write(labels.astype(np.int64).tobytes())


@contextmanager
def _new_member(archive: zipfile.ZipFile, name: str, dtype: np.dtype, shape: tuple[int, ...]) -> Iterator[IO[bytes]]:
    """Begin an array in the archive; its date is always the same, so that the bytes are."""
    entry = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
    # 50,000 pictures of 256 x 256 take 10 GB, and zipfile must know that before the first byte is written.
    with archive.open(entry, "w", force_zip64=True) as member:
        description = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(member, description)
        yield member


def _open_npz(path: Path) -> PictureSet:
    with _reading(path), zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        if f"{PICTURES}.npy" not in names:
            held = ", ".join(name.removesuffix(".npy") for name in names) or "nothing"
            raise InputError(f"{path} has no {PICTURES}, only {held}; ADM's format has the images there")
        with archive.open(f"{PICTURES}.npy") as member:
            (count, *shape), header = _read_header(path, member)
        height, width, channels = shape
        held_bytes = archive.getinfo(f"{PICTURES}.npy").file_size - header
        if held_bytes != count * height * width * channels:
            raise InputError(f"{path} is damaged: {PICTURES} is shorter or longer than it says; make it again")
        members = (LABELS, *STATISTICS, *SPATIAL_STATISTICS)
        arrays = {name: _read_array(archive, name) for name in members if f"{name}.npy" in names}
    labels = arrays.get(LABELS)
    if labels is not None and (labels.dtype.kind not in "iu" or labels.shape != (count,)):
        raise InputError(
            f"{path}: {LABELS} is {labels.dtype} {labels.shape}, where the classes of {count} images are expected"
        )
    picture = (height, width, channels)
    return PictureSet(
        str(path),
        count,
        picture,
        lambda first, size: _stream_npz(path, count, picture, first, size),
        lambda: _file_digest(path),
        None if labels is None else labels.astype(np.int64),
        statistics=_statistics(path, arrays, STATISTICS),
        spatial_statistics=_statistics(path, arrays, SPATIAL_STATISTICS),
    )


def _read_header(path: Path, member: IO[bytes]) -> tuple[tuple[int, ...], int]:
    """Return ((N, H, W, C), bytes of the header) of the pictures' array."""
    first = np.lib.format.read_magic(member) == (1, 0)
    read = np.lib.format.read_array_header_1_0 if first else np.lib.format.read_array_header_2_0
    shape, fortran_order, dtype = read(member)
    if dtype != np.uint8 or len(shape) != 4 or shape[3] not in (1, 3):
        raise InputError(
            f"{path}: {PICTURES} is {dtype} {shape}, where uint8 (N, height, width, 3 or 1) is expected; "
            f"convert it and save it again"
        )
    if 0 in shape:
        raise InputError(f"{path} holds no images: {PICTURES} is of shape {shape}")
    if fortran_order:
        raise InputError(f"{path}: {PICTURES} is in Fortran's order; save np.ascontiguousarray of it")
    return shape, member.tell()


def _read_array(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    with archive.open(f"{name}.npy") as member:
        return np.lib.format.read_array(member, allow_pickle=False)


def _statistics(
    path: Path, arrays: dict[str, np.ndarray], names: tuple[str, str]
) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the mean and the covariance of these names, float64; None where there are none."""
    given = [arrays[name] for name in names if name in arrays]
    if not given:
        return None
    if len(given) < 2 or given[0].ndim != 1 or given[1].shape != 2 * given[0].shape:
        held = ", ".join(f"{name} {arrays[name].shape}" for name in names if name in arrays)
        raise InputError(f"{path}: {held}, where {names[0]} (F,) and {names[1]} (F, F) are expected; make it again")
    if any(array.dtype.kind != "f" or not np.isfinite(array).all() for array in given):
        raise InputError(f"{path}: {names[0]} or {names[1]} holds what is no number, such as NaN; make it again")
    return given[0].astype(np.float64), given[1].astype(np.float64)


def _stream_npz(path: Path, count: int, shape: Shape, first: int, size: int) -> Iterator[np.ndarray]:
    one = int(np.prod(shape))
    with _reading(path), zipfile.ZipFile(path) as archive, archive.open(f"{PICTURES}.npy") as member:
        _read_header(path, member)
        member.seek(first * one, os.SEEK_CUR)
        for start in range(first, count, size):
            here = min(size, count - start)
            content = member.read(here * one)
            if len(content) < here * one:
                raise EOFError(f"{PICTURES} ends early")
            yield np.frombuffer(content, np.uint8).reshape(here, *shape)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn what zipfile and NumPy say of a damaged file into one line."""
    try:
        yield
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror or error}); check the path") from error
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, KeyError, NotImplementedError, RuntimeError) as error:
        raise InputError(f"{path} is damaged or no .npz of plain arrays ({error}); make it again") from error


def _file_digest(path: Path) -> str:
    with _reading(path):
        return file_sha256(path)


def _open_folder(root: Path) -> PictureSet:
    try:
        names = sorted(_find(root, Path()))
    except OSError as error:
        raise InputError(f"{error.filename or root} cannot be read ({error.strerror}); check the path") from error
    if not names:
        raise InputError(f"no images under {root}; expected files that end with {' '.join(sorted(SUFFIXES))}")
    height, width, channels = _read(root, names[0]).shape
    with ThreadPoolExecutor(cpu_count()) as threads:
        for name, size in zip(names, threads.map(lambda name: _header_size(root / name), names), strict=True):
            if sorted(size) != sorted((width, height)):  # a camera's picture may be stored on its side
                raise InputError(
                    f"{root / name} is {size[0]} x {size[1]} pixels, but {names[0]} is {width} x {height}; "
                    f"all images of a set must be of one size"
                )
    labels = class_names = None
    if all(len(name.parts) > 1 for name in names):
        classes = [name.parts[0] for name in names]
        class_names = tuple(sorted(set(classes)))
        numbers = {name: number for number, name in enumerate(class_names)}
        labels = np.array([numbers[name] for name in classes], np.int64)
    shape = (height, width, channels)
    return PictureSet(
        str(root),
        len(names),
        shape,
        lambda first, size: _stream_folder(root, names, shape, first, size),
        lambda: digest([[name.as_posix(), _file_digest(root / name)] for name in names]),
        labels,
        class_names,
    )


def _find(root: Path, under: Path) -> Iterator[Path]:
    """Give the pictures below `root / under`, relative to `root`; hidden and other files are passed over."""
    with os.scandir(root / under) as entries:
        for entry in entries:
            name = under / entry.name
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                yield from _find(root, name)
            elif name.suffix.lower() in SUFFIXES:
                yield name


def _header_size(path: Path) -> tuple[int, int]:
    """Return (width, height) as the file tells them, without decoding."""
    try:
        with Image.open(path) as picture:
            return picture.size
    except Exception as error:  # Pillow's readers raise all kinds
        raise InputError(f"{path} cannot be read as an image ({error}); repair or remove it and run again") from error


def _read(root: Path, name: Path) -> np.ndarray:
    return read_picture(str(root / name), np.asarray)


def _stream_folder(root: Path, names: list[Path], shape: Shape, first: int, size: int) -> Iterator[np.ndarray]:
    with ThreadPoolExecutor(cpu_count()) as threads:
        for start in range(first, len(names), size):
            here = names[start : start + size]
            pictures = list(threads.map(lambda name: _read(root, name), here))
            for name, picture in zip(here, pictures, strict=True):
                if picture.shape != shape:
                    raise InputError(f"{root / name} is {picture.shape}, but {names[0]} is {shape}; make them alike")
            yield np.stack(pictures)
