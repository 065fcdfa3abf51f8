"""Encode images of one's own with a tokenizer, as LlamaGen's `extract_codes_c2i.py` does, into folders of codes.

Training images are seen from several sides (ten crops, or the picture and its mirror image) and each is encoded, so
that the tokenizer is not needed again; held-out images are encoded once, as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist
from joblib import cpu_count
from PIL import Image

from iar_study.config import DataConfig
from iar_study.data.folder import Split, list_folder, read_picture
from iar_study.data.images import has_images, load_images
from iar_study.data.llamagen_codes import Batch, ExtractedCodes, open_codes, write_codes
from iar_study.errors import InputError
from iar_study.storage import digest
from iar_study.tokenizers.given import tokenizer_digest
from iar_study.tokenizers.vq import Tokenizer, VQModel, to_float

Augmentation = Literal["ten-crop", "flip", "none"]
COUNTS: dict[Augmentation, int] = {"ten-crop": 10, "flip": 2, "none": 1}

Shape = Callable[[Image.Image], np.ndarray]
"""Makes the views of a picture."""


def center_crop(picture: Image.Image, side: int) -> np.ndarray:
    """Return the largest central square, resized to uint8 (side, side, C), as guided-diffusion does.

    A large picture is halved by box averages while it stays twice as large, then resized by bicubic interpolation.
    """
    while min(picture.size) >= 2 * side:
        picture = picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.BOX)
    scale = side / min(picture.size)
    picture = picture.resize((round(picture.width * scale), round(picture.height * scale)), Image.Resampling.BICUBIC)
    pixels = np.asarray(picture).reshape(picture.height, picture.width, -1)
    top, left = (pixels.shape[0] - side) // 2, (pixels.shape[1] - side) // 2
    return pixels[top : top + side, left : left + side]


def ten_crops(square: np.ndarray, side: int) -> np.ndarray:
    """Return the corners and the centre of uint8 (S, S, C), then those of its mirror image: (10, side, side, C).

    The order is torchvision's `TenCrop`: top left, top right, bottom left, bottom right, centre.
    """
    far = len(square) - side
    middle = round(far / 2)
    corners = ((0, 0), (0, far), (far, 0), (far, far), (middle, middle))
    return np.stack([image[y : y + side, x : x + side] for image in (square, square[:, ::-1]) for y, x in corners])


def views(picture: Image.Image, side: int, augmentation: Augmentation, crop_range: float) -> np.ndarray:
    """Return what is encoded of one picture, uint8 (augmentations, side, side, C).

    ten-crop : crops of the centre crop of `int(side * crop_range)` pixels; flip : the centre crop and its mirror image;
    none : the centre crop alone.
    """
    if augmentation == "ten-crop":
        return ten_crops(center_crop(picture, int(side * crop_range)), side)
    square = center_crop(picture, side)
    return np.stack([square, square[:, ::-1]] if augmentation == "flip" else [square])


@dataclass(frozen=True)
class _Split:
    """Pictures that are made one by one: `views(i)` are those of picture i, uint8 (augmentations, side, side, C)."""

    labels: np.ndarray
    views: Callable[[int], np.ndarray]
    digest: str


def extract_codes(
    images: str,
    tokenizer: Tokenizer,
    folder: Path,
    *,
    augmentation: Augmentation = "ten-crop",
    image_size: int | None = None,
    crop_range: float = 1.1,
    batch: int = 16,
    device: str | None = None,
    split: str | None = None,
    progress: Callable[[str, int, int, str], None] | None = None,
) -> dict[str, ExtractedCodes]:
    """Encode the train and the test split of `images` into `folder`/train and `folder`/test, or go on with it.

    Of several processes, which torch.distributed connects, each calls this and encodes its share; the first writes.

    The pictures of train are in the order of class and file, those of test in a fixed mixed order, as in a study on the
    same images. A picture is decoded as `data.folder` does, then cropped as LlamaGen does.

    Parameters
    ----------
    images : `digits`, `fashion-mnist`, a part of one's own, or the path of a folder with train/CLASS/picture and
        test/CLASS/picture, or with CLASS/picture, of which a fixed tenth of every class becomes the test split.
    augmentation, crop_range : of train, see `views`; test has one view, the centre crop.
    image_size : side in pixels; default: a named set's own, else 256 for LlamaGen's tokenizer, 32 for a study's.
    batch : pictures that are encoded at once, a view at a time. As the last bits of a sum may depend on it, an
        interrupted call goes on with the same batch only, and on the same kind of device.
    device : default: cuda where there is one, else cpu.
    split : "train" or "test", to encode that alone: of LlamaGen's codes, of the training images, the other.
    progress : called with (what, pictures done, pictures in all, detail).

    Raises
    ------
    InputError : a picture cannot be read, the images do not fit the tokenizer, or `folder` holds other codes.
    """
    native = load_images(DataConfig(images)).size if has_images(images) else None
    side = image_size or native or (256 if isinstance(tokenizer, VQModel) else 32)
    if side % tokenizer.patch:
        raise InputError(f"images of {side} pixels do not divide into patches of {tokenizer.patch}; set --image-size")
    if batch < 1 or crop_range < 1:
        raise InputError(f"batch {batch} and crop range {crop_range} must be 1 or more")
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise InputError("there is no CUDA device; use --device cpu")
    augmentations: dict[str, Augmentation] = {"train": augmentation, "test": "none"}
    mode = "L" if tokenizer.in_channels == 1 else "RGB"

    def shape_of(seen: Augmentation) -> Shape:
        return lambda picture: views(picture.convert(mode), side, seen, crop_range)

    splits, class_names = _open_images(images, {name: shape_of(seen) for name, seen in augmentations.items()})
    recipe = {"tokenizer": tokenizer_digest(tokenizer), "image_size": side, "batch": batch, "device": device}
    tokenizer = tokenizer.to(device).eval()
    found = {}
    for name, pictures in splits.items():
        if split not in (None, name):
            continue
        seen = augmentations[name]
        plan: dict[str, Any] = {
            "images": len(pictures.labels),
            "augmentations": COUNTS[seen],
            "tokens": (side // tokenizer.patch) ** 2,
            "codebook_size": len(tokenizer.codebook()),
            "classes": len(class_names),
            "class_names": list(class_names),
            "source": {"images": pictures.digest, "augmentation": seen, **recipe},
        }
        if seen == "ten-crop":
            plan["source"]["crop_range"] = crop_range
        encode = partial(_encode, pictures, tokenizer, batch, device)
        shown = partial(progress, f"encoding {name}") if progress else None
        target = Path(folder) / name
        if _place()[0] == 0:
            together = _Together(encode)
            written = write_codes(target, plan, together, step=batch, progress=shown)
            together.end()
        else:
            _follow(encode)
            written = open_codes(target)
        found[name] = written
    return found


def _place() -> tuple[int, int]:
    """Return the number of this process and of all that encode together."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def _told(start: int | None) -> int | None:
    """Return what the first process says, in all of them."""
    box = [start]
    if _place()[1] > 1:
        dist.broadcast_object_list(box)
    return box[0]


class _Together:
    """In the first process: lets the others encode their share from where it begins, or end where all is there."""

    def __init__(self, encode: Callable[[int], Iterable[Batch]]) -> None:
        self.encode, self.begun = encode, False

    def __call__(self, start: int) -> Iterable[Batch]:
        self.begun = True
        _told(start)
        return self.encode(start)

    def end(self) -> None:
        if not self.begun:
            _told(None)
        if _place()[1] > 1:
            dist.barrier()  # what is written can be opened


def _follow(encode: Callable[[int], Iterable[Batch]]) -> None:
    """In another process: encode its share."""
    start = _told(None)
    for _ in encode(start) if start is not None else ():
        pass
    dist.barrier()


def _open_images(images: str, shapes: Mapping[str, Shape]) -> tuple[dict[str, _Split], tuple[str, ...]]:
    """Return the splits, by the names that `shapes` has, and the class names; a folder's pictures stay on the disk."""
    if has_images(images):
        loaded = load_images(DataConfig(name=images))

        def of_array(pixels: np.ndarray, labels: np.ndarray, shape: Shape) -> _Split:
            grey = pixels[..., 0] if loaded.channels == 1 else pixels
            return _Split(labels, lambda i: shape(Image.fromarray(grey[i])), digest(pixels, labels))

        arrays = {"train": (loaded.train, loaded.train_labels), "test": (loaded.test, loaded.test_labels)}
        return {name: of_array(*arrays[name], shape) for name, shape in shapes.items()}, loaded.class_names

    root, train, test, class_names = list_folder(Path(images.removeprefix("folder:")).expanduser())

    def of_folder(split: Split, shape: Shape) -> _Split:
        pictures = split.pictures
        return _Split(
            split.labels,
            lambda i: read_picture(pictures[i].path, shape),
            digest(split.listing(root), split.labels),
        )

    found = {"train": train, "test": test}
    return {name: of_folder(found[name], shape) for name, shape in shapes.items()}, class_names


def _encode(split: _Split, tokenizer: Tokenizer, batch: int, device: str, start: int) -> Iterable[Batch]:
    """Give the tokens and classes of the pictures from `start` on, a batch at a time; processes take them in turns."""
    rank, world = _place()
    with ThreadPoolExecutor(cpu_count()) as threads:
        for first in range(start, len(split.labels), batch * world):
            begins = range(first, first + batch * world, batch)
            batches = [range(at, min(at + batch, len(split.labels))) for at in begins]
            mine = batches[rank]
            tokens: list[np.ndarray | None] = [None] * world
            if mine:
                pictures = np.stack(list(threads.map(split.views, mine)))
                views = [
                    tokenizer.encode(to_float(pictures[:, view]).to(device)).flatten(1).cpu().numpy()
                    for view in range(pictures.shape[1])
                ]
                tokens[rank] = np.stack(views, axis=1)
            if world > 1:
                dist.all_gather_object(tokens, tokens[rank])
            for numbers, found in zip(batches, tokens, strict=True):
                if found is not None:
                    yield found, split.labels[numbers.start : numbers.stop]
