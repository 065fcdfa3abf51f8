"""Extracted codes, several augmentations of every image, in one memory-mapped file with an index.

LlamaGen keeps two small files an image, 2.6 million for ImageNet. `pack_codes` turns them into a folder of three:

    codes.npy     tokens, (images, augmentations, tokens), of the smallest integers that hold the codebook
    labels.npy    classes, int64 (images,)
    index.json    their shapes, types and SHA-256, the codebook's size, and where they come from

A folder of codes is whole or absent: until it is whole it stands beside its place as `.NAME.partial`. What is written
there is only ever appended, a step of images at a time, so a call that was killed goes on where it stopped and ends
with the same bytes.
"""

from __future__ import annotations

import io
import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from iar_study.errors import InputError
from iar_study.storage import digest, file_sha256, locked, read_json, unwritable, write_json

CODES, LABELS, INDEX = "codes.npy", "labels.npy", "index.json"

LOCK = "lock"
"""In the folder of what is not whole yet, held by who writes it."""

STEP = 1024
"""Images that `pack_codes` reads before it writes them: what a kill can cost."""

Batch = tuple[np.ndarray, np.ndarray]
"""Tokens, int (b, augmentations, tokens), and classes, int (b,), of b images in a row."""

Progress = Callable[[int, int, str], None]
"""(images done, images in all, detail) is called as it goes on."""


@dataclass(frozen=True, eq=False)
class ExtractedCodes:
    """Codes on disk; only what is indexed is read.

    Attributes
    ----------
    codes : int (images, augmentations, tokens), row by row of the grid; of the type that `code_type` names.
    labels : int64 (images,).
    index : the content of `index.json`.
    """

    codes: np.ndarray
    labels: np.ndarray
    index: dict[str, Any]


def code_type(codebook_size: int) -> np.dtype:
    """Return the smallest type for the tokens of a codebook; int16 goes before uint16, which torch hardly knows.

    >>> [str(code_type(size)) for size in (256, 16_384, 40_000, 262_144)]
    ['uint8', 'int16', 'uint16', 'int32']
    """
    kinds = (np.uint8, np.int16, np.uint16, np.int32)
    return np.dtype(next(kind for kind in kinds if codebook_size - 1 <= np.iinfo(kind).max))


def open_codes(folder: Path, check_content: bool = False) -> ExtractedCodes:
    """Open a folder that `pack_codes` or `iar-study encode` wrote, without reading the codes.

    Raises `InputError` when it is not such a folder, when a file is not of the size and type that the index says, and,
    with `check_content`, which reads everything once, when a checksum differs.
    """
    folder = Path(folder)
    if not (folder / INDEX).is_file():
        raise InputError(f"no {INDEX} in {folder}; codes are written by `iar-study encode` and `iar-study pack`")
    index = read_json(folder / INDEX)
    arrays = {}
    for name in (CODES, LABELS):
        path = folder / name
        try:
            array = np.load(path, mmap_mode="r", allow_pickle=False)
            shape, dtype, sha256 = (index[name][key] for key in ("shape", "dtype", "sha256"))
        except (KeyError, TypeError, ValueError, EOFError, OSError) as error:
            raise InputError(f"{path} is damaged ({error}); delete {folder} and make it again") from error
        if (list(array.shape), str(array.dtype)) != (shape, dtype):
            raise InputError(
                f"{path} is {array.dtype} {array.shape}, where {INDEX} says {dtype} {tuple(shape)}; "
                f"delete {folder} and make it again"
            )
        if check_content and file_sha256(path) != sha256:
            raise InputError(f"{path} does not have the SHA-256 of {INDEX}; delete {folder} and make it again")
        arrays[name] = array
    return ExtractedCodes(arrays[CODES], arrays[LABELS], index)


def open_splits(folder: Path) -> dict[str, ExtractedCodes]:
    """Open the codes of `folder`/train and `folder`/test, without reading them.

    Raises `InputError` when one of them is missing or damaged, or when they do not belong together.
    """
    found = {name: open_codes(folder / name) for name in ("train", "test")}
    train, test = (split.index for split in found.values())
    differing = [key for key in ("tokens", "codebook_size", "classes") if train[key] != test[key]]
    if "class_names" in train.keys() & test.keys() and train["class_names"] != test["class_names"]:
        differing.append("class_names")
    if differing:
        raise InputError(f"train and test in {folder} differ in {', '.join(differing)}; encode them again, both alike")
    return found


def pack_codes(
    source: Path,
    folder: Path,
    *,
    codebook_size: int = 16_384,
    classes: int = 1000,
    images: int | None = None,
    step: int = STEP,
    progress: Progress | None = None,
) -> ExtractedCodes:
    """Turn LlamaGen's extracted codes into a folder of codes, or go on with it.

    Parameters
    ----------
    source : LlamaGen's `imagenet{size}_codes` with files `{i}.npy`, int (1, augmentations, tokens); the folder
        `imagenet{size}_labels` with `{i}.npy`, int (1,), stands beside it. Of `..._ten_crop/imagenet{size}_codes` the
        crops of a second range, `..._ten_crop_105/imagenet{size}_codes`, are taken as more augmentations, where they
        are there: LlamaGen then reads either with equal chance.
    folder : where to write; what an earlier call completed is kept, if `source` is unchanged.
    images : take numbers 0 to images - 1 alone, 1,281,167 for ImageNet: where the number of images is no multiple of
        LlamaGen's processes, it encodes the first ones once more at the end. Default: all.
    step : images that are read before they are written.

    Raises
    ------
    InputError : a number is missing, or a file is damaged, of another shape than the first, or out of range; the
        message names it.
    """
    source = Path(source)
    if not source.name.endswith("_codes"):
        raise InputError(f"{source} is not named ..._codes, as LlamaGen names the folder of its codes")
    sources = _crops(source)
    label_folders = [each.with_name(each.name.removesuffix("_codes") + "_labels") for each in sources]
    listings = [_list_numbers(part, images) for pair in zip(sources, label_folders, strict=True) for part in pair]
    total = len(listings[0])
    for part, listing in zip(label_folders, listings[1::2], strict=True):
        if total != len(listing):
            raise InputError(f"{source} has {total} files, but {part} has {len(listing)}; extract them again")
    shape = _read(source / "0.npy").shape
    if len(shape) != 3 or shape[0] != 1 or 0 in shape:
        raise InputError(f"{source / '0.npy'} is of shape {shape}, not (1, augmentations, tokens)")

    def batches(start: int) -> Iterable[Batch]:
        for first in range(start, total, step):
            numbers = range(first, min(first + step, total))
            codes = [_read_all(part, numbers, shape, codebook_size, "codes") for part in sources]
            labels, *others = [_read_all(part, numbers, (1,), classes, "classes") for part in label_folders]
            for part, other in zip(label_folders[1:], others, strict=True):
                if len(at := np.flatnonzero(labels != other)):
                    raise InputError(f"{part / f'{first + at[0]}.npy'} tells another class than {label_folders[0]}")
            yield np.concatenate(codes, axis=1), labels

    plan = {
        "images": total,
        "augmentations": shape[1] * len(sources),
        "tokens": shape[2],
        "codebook_size": codebook_size,
        "classes": classes,
        "source": {"folder": source.name, "files": digest(*listings)},
    }
    return write_codes(folder, plan, batches, step=step, progress=progress)


def _crops(source: Path) -> list[Path]:
    """Return the folders of an extraction: crops of one range, and those of a second where they lie beside it."""
    # The replacement by which LlamaGen's own data set finds them.
    second = Path(f"{source.absolute()}/".replace("ten_crop/", "ten_crop_105/"))
    return [source, second] if second != source.absolute() and second.is_dir() else [source]


def _list_numbers(folder: Path, images: int | None) -> list[tuple[int, int]]:
    """Return (bytes, modification time) of the files 0.npy, 1.npy, ... in order; none may be missing."""
    try:
        with os.scandir(folder) as entries:
            numbered = {int(e.name[:-4]): e for e in entries if e.name.endswith(".npy") and e.name[:-4].isdecimal()}
            count = images if images is not None else max(numbered, default=-1) + 1
            if count < 1:
                raise InputError(f"no files 0.npy, 1.npy, ... in {folder}")
            missing = [i for i in range(count) if i not in numbered]
            if missing:
                raise InputError(
                    f"{folder / f'{missing[0]}.npy'} is missing, {len(missing)} of the numbers 0 to {count - 1} in all"
                )
            stats = [numbered[i].stat() for i in range(count)]
    except OSError as error:
        raise InputError(f"{error.filename or folder} cannot be read ({error.strerror}); check the path") from error
    return [(stat.st_size, stat.st_mtime_ns) for stat in stats]


def _read(path: Path) -> np.ndarray:
    try:
        with open(path, "rb") as file:
            return np.lib.format.read_array(file, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise InputError(f"{path} cannot be read as a NumPy array ({error}); extract it again") from error


def _read_all(folder: Path, numbers: Iterable[int], shape: tuple[int, ...], limit: int, what: str) -> np.ndarray:
    """Return the content of files of a row of numbers, as `_read_checked` has it, one after the other."""
    return np.stack([_read_checked(folder / f"{i}.npy", shape, limit, what)[0] for i in numbers])


def _read_checked(path: Path, shape: tuple[int, ...], limit: int, what: str) -> np.ndarray:
    """Return the integers of one file; raise `InputError` for another shape or values outside of [0, limit)."""
    array = _read(path)
    if array.shape != shape or array.dtype.kind not in "iu":
        raise InputError(f"{path} is {array.dtype} {array.shape}, where integers {shape} are expected")
    if array.min() < 0 or array.max() >= limit:
        raise InputError(f"{path} holds {array.min()} ... {array.max()}, but there are {limit} {what}")
    return array


def write_codes(
    folder: Path,
    plan: Mapping[str, Any],
    batches: Callable[[int], Iterable[Batch]],
    *,
    step: int,
    progress: Progress | None = None,
) -> ExtractedCodes:
    """Write a folder of codes, or go on with it; return at once what an earlier call with the same plan completed.

    Parameters
    ----------
    plan : JSON: `images`, `augmentations`, `tokens`, `codebook_size`, `classes`, and whatever else decides the bytes;
        it becomes the index.
    batches : gives the batches of the images from `start` on, `step` images each; `start` is a multiple of `step`.

    Raises
    ------
    InputError : `folder` holds something else, was begun with another plan, is being written by another process, or
        cannot be written.
    """
    folder = Path(folder).absolute()
    if (folder / INDEX).is_file():
        found = open_codes(folder)
        _check_plan(folder, found.index, plan)
        return found
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} is no folder of codes, and not empty; choose another one")
    partial = folder.with_name(f".{folder.name}.partial")
    try:
        partial.mkdir(parents=True, exist_ok=True)
        with (
            locked(partial / LOCK, partial),
            # To append: a write goes to the end, wherever the last `seek` has left the file.
            open(partial / CODES, "a+b") as codes_file,
            open(partial / LABELS, "a+b") as labels_file,
        ):
            if (partial / INDEX).exists():
                _check_plan(partial, read_json(partial / INDEX), plan)
            else:
                write_json(partial / INDEX, dict(plan))
            images, grid = plan["images"], (plan["augmentations"], plan["tokens"])
            codes = _Rows(codes_file, (images, *grid), code_type(plan["codebook_size"]))
            labels = _Rows(labels_file, (images,), np.dtype(np.int64))
            _fill(codes, labels, batches, step, images, progress)
            index = {**plan, CODES: codes.finish(partial / CODES), LABELS: labels.finish(partial / LABELS)}
            write_json(partial / INDEX, index)
            for stray in (*partial.glob(".*.tmp"), partial / LOCK):  # the .tmp are of a call that was killed
                stray.unlink()
            os.replace(partial, folder)
    except OSError as error:
        raise unwritable(folder, error) from error
    return open_codes(folder)


def _fill(
    codes: _Rows,
    labels: _Rows,
    batches: Callable[[int], Iterable[Batch]],
    step: int,
    images: int,
    progress: Progress | None,
) -> None:
    """Append what is still missing of both files, from a whole step on."""
    # Whole steps alone: pictures encoded in batches that begin elsewhere may differ in last bits, and so in tokens.
    done = min(codes.whole(), labels.whole()) // step * step
    codes.cut(done)
    labels.cut(done)
    if progress:
        progress(done, images, "")
    for batch in batches(done):
        codes.append(batch[0])
        labels.append(batch[1])
        done += len(batch[1])
        if progress:
            progress(done, images, "" if done < images else "checksums")


class _Rows:
    """A .npy file that grows by rows; its length alone says how many it has."""

    def __init__(self, file: BinaryIO, shape: tuple[int, ...], dtype: np.dtype) -> None:
        header = io.BytesIO()
        description = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(header, description)
        self.file, self.shape, self.dtype = file, shape, dtype
        self.header, self.row_bytes = header.getvalue(), dtype.itemsize * math.prod(shape[1:])

    def whole(self) -> int:
        """Return how many rows have been written whole."""
        return max(self.file.seek(0, os.SEEK_END) - len(self.header), 0) // self.row_bytes

    def cut(self, rows: int) -> None:
        """Leave the header and the first `rows` rows."""
        if self.file.seek(0, os.SEEK_END) < len(self.header):
            self.file.truncate(0)
            self.file.write(self.header)
        self.file.truncate(len(self.header) + rows * self.row_bytes)

    def append(self, array: np.ndarray) -> None:
        """Hand rows to the operating system: from there on, no end of this process can undo them."""
        if array.shape[1:] != self.shape[1:]:
            raise InputError(f"rows of shape {array.shape[1:]} do not fit into an array of shape {self.shape}")
        self.file.write(np.ascontiguousarray(array, self.dtype).data)
        self.file.flush()

    def finish(self, path: Path) -> dict[str, Any]:
        """Make sure that the file is on the disk, and return its entry in the index."""
        os.fsync(self.file.fileno())
        return {"shape": list(self.shape), "dtype": str(self.dtype), "sha256": file_sha256(path)}


def _check_plan(folder: Path, found: Mapping[str, Any], plan: Mapping[str, Any]) -> None:
    """Raise `InputError` that names what differs between the plan of `folder` and this one."""
    differing = [key for key in plan if found.get(key) != plan[key]]
    if "source" in differing and isinstance(found.get("source"), dict):
        old, new = found["source"], plan["source"]
        differing = [key for key in differing if key != "source"]
        differing += [f"source.{key}" for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]
    if differing:
        raise InputError(
            f"{folder} was made of something else ({', '.join(differing)} differ); delete it or choose another folder"
        )
