"""Named feature extractors: what two sets of pictures are compared in.

The classifiers of a set (see `evaluators`) are trained on the study's own images and see what matters in them.
`inception` is the network of FID, and `dinov2` the one of FD_DINOv2 (arXiv 2306.04675); both come through
torch-fidelity, with weights that are fetched. The Inception file must be the published one: a distance in the features
of another network is another quantity.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import nn

from iar_study import parts
from iar_study.errors import InputError
from iar_study.evaluation.classifier import Classifier, classify
from iar_study.evaluation.inception import INCEPTION_SHA256, INCEPTION_URL, INSTALL, inception_path
from iar_study.storage import file_sha256

SPATIAL_BLOCK, SPATIAL_CHANNELS = "Mixed_6d.branch1x1", 7
"""Where ADM's evaluator takes the features of sFID from: TensorFlow's `mixed_6/conv:0`, the 1x1 branch after its ReLU,
(B, 17, 17, 192), of which the first channels. Of torch-fidelity's blocks, `Mixed_5b` is `mixed` and `Mixed_6d` is
`mixed_6`; that is not `Mixed_6e`, as some have it."""

DINOV2 = "dinov2-vit-l-14"
"""torch-fidelity's name of the size that FD_DINOv2 is measured with, 1,024 features."""

BATCH = 50
"""Pictures that a large network, or a part of one's own, looks at together."""

CONNECT_SECONDS = 10
"""Patience for a server that does not answer."""

Progress = Callable[[int, int, str], None]
"""(done, in all, detail) is called as it goes on."""


class Seen(NamedTuple):
    """What an extractor sees in n pictures.

    Attributes
    ----------
    features : float32 (n, F).
    probabilities : of classes, float32 (n, K); None of an extractor that tells none.
    spatial : float32 (n, 2023), the 17 x 17 places of Inception with 7 channels each, channels varying fastest, as
        ADM's evaluator flattens them; None of another extractor.
    """

    features: np.ndarray
    probabilities: np.ndarray | None = None
    spatial: np.ndarray | None = None


class Extractor(Protocol):
    """Turns pictures into features.

    Attributes
    ----------
    name : as in the keys of metrics, `family/name@count`.
    batch : pictures at once. The last bits of a feature may depend on it.
    identity : what decides the features of a picture, to keep them by; None where they are quickly computed anew.
    """

    name: str
    batch: int
    identity: str | None

    def __call__(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray | None] | Seen:
        """Return what it sees in uint8 images (B, H, W, C): features and probabilities of `Seen`, or all of it."""
        ...


class ClassifierFeatures:
    """The features and probabilities of a trained classifier, on the CPU, where it was trained."""

    batch = 500  # as `classify` takes them: the same bits
    identity: str | None = None

    def __init__(self, model: Classifier, name: str) -> None:
        self.model, self.name = model, name

    @torch.no_grad()
    def __call__(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See `Extractor`; raises `InputError` for coloured pictures where the classifier was trained on grey ones."""
        features, _ = classify(self.model, with_channels(images, self.model.in_channels), self.batch)
        return features, self.model.head(torch.from_numpy(features)).softmax(1).numpy()


class NetworkFeatures:
    """The features of a network of torch-fidelity and, of one that tells classes, the probabilities.

    The network takes uint8 (B, 3, H, W) of any size, resizes them itself as TensorFlow 1 did for FID, and returns
    features and, maybe, logits. `block` names a part of it whose output, (B, C, h, w), spatial features are taken from.
    """

    batch = BATCH

    def __init__(self, name: str, network: nn.Module, identity: str, device: str, block: str | None = None) -> None:
        self.name, self.network, self.device = name, network.to(device).eval(), device
        of = f", {SPATIAL_CHANNELS} channels of {block}" if block else ""
        self.identity: str | None = f"{identity}{of}, {device}, {self.batch} at once"
        self._map: torch.Tensor | None = None
        if block:
            network.get_submodule(block).register_forward_hook(self._keep)

    def _keep(self, _module: nn.Module, _inputs: Any, output: torch.Tensor) -> None:
        self._map = output

    @torch.no_grad()
    def __call__(self, images: np.ndarray) -> Seen:
        """See `Extractor`; grey pictures are taken as RGB."""
        # A copy: pictures out of an .npz are read-only, which torch has no notion of.
        pixels = torch.tensor(with_channels(images, 3)).permute(0, 3, 1, 2).contiguous()
        # On a GPU: no products of 10 bits, and the same bits each time.
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
            features, *logits = self.network(pixels.to(self.device))
        # As torch-fidelity does for the inception score: in float64, of logits without the bias.
        probabilities = logits[0].double().softmax(1).float().cpu().numpy() if logits else None
        spatial = None
        if self._map is not None:
            spatial = self._map[:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1).cpu().numpy()
        return Seen(features.cpu().numpy(), probabilities, spatial)


class OwnFeatures:
    """The features of somebody's own part, called with (uint8 (B, H, W, C), device).

    It returns features (B, F); or these, class probabilities (B, K) and maybe spatial features (B, S), as `Seen` has
    them, each but the first perhaps None.
    """

    batch = BATCH

    def __init__(self, spec: str, device: str) -> None:
        self.part, self.device = parts.load("extractor", spec), device
        self.name = parts.label("extractor", spec)
        self.identity: str | None = f"{parts.identity('extractor', spec)}, {device}, {self.batch} at once"

    def __call__(self, images: np.ndarray) -> Seen:
        """See `Extractor`; raises `InputError` for what is no table with a row for each picture."""
        found = self.part(images, self.device)
        given = found if isinstance(found, tuple) else (found,)
        if not 1 <= len(given) <= len(Seen._fields) or given[0] is None:
            raise InputError(f"extractor {self.name}: expected features, or up to three tables, got {len(given)}")
        features, *others = (None if each is None else np.asarray(each, np.float32) for each in given)
        for array in (features, *others):
            if array is not None and (array.ndim != 2 or len(array) != len(images)):
                raise InputError(f"extractor {self.name}: expected ({len(images)}, features), got {array.shape}")
        assert features is not None
        return Seen(features, *others)


def with_channels(images: np.ndarray, channels: int) -> np.ndarray:
    """Return uint8 images (B, H, W, 1 or 3) with 1 or 3 channels: grey repeated, or RGB that is grey as one channel.

    Raises `InputError` for coloured pictures where grey ones are needed.
    """
    if images.shape[-1] == channels:
        return images
    if channels == 3:
        return np.repeat(images, 3, axis=-1)
    if (images != images[..., :1]).any():
        raise InputError("the images are coloured, but the classifier was trained on grey ones; compare like with like")
    return images[..., :1]


def load_extractor(spec: str, device: str, progress: Progress | None = None) -> Extractor:
    """Return the extractor that `spec` names: `inception`, `inception:FILE`, `dinov2` or one's own.

    Parameters
    ----------
    device : `cpu` or `cuda`, for the networks of torch-fidelity.
    progress : called with (bytes, bytes in all, detail) where weights are fetched.

    Raises
    ------
    InputError : an unknown name, torch-fidelity is missing, or the weights are missing, damaged or others.
    """
    name, _, file = spec.partition(":")
    if name == "inception":
        return _inception(Path(file).expanduser() if file else None, device, progress)
    if spec == "dinov2":
        return _dinov2(device)
    if spec == "set":
        raise InputError("the evaluators of a set are made of a data set; without one, use inception")
    return OwnFeatures(spec, device)


def extract_all(
    extractor: Extractor, batches: Iterable[np.ndarray], total: int, progress: Progress | None = None
) -> Seen:
    """Return what the extractor sees in `total` pictures, a batch of them in memory at a time.

    Parameters
    ----------
    batches : uint8 (b, H, W, C), `total` pictures together; b is `extractor.batch` but for the last.
    progress : called with (pictures done, `total`, detail).

    Raises
    ------
    InputError : there are more or fewer pictures, or they do not fit the extractor.
    """
    outputs: list[np.ndarray | None] = []
    done = 0
    for images in batches:
        computed = Seen(*extractor(images))
        if not outputs:
            outputs = [None if part is None else np.empty((total, part.shape[1]), np.float32) for part in computed]
        if done + len(images) <= total:
            for output, part in zip(outputs, computed, strict=True):
                if output is not None:
                    output[done : done + len(images)] = part
        done += len(images)
        if progress:
            progress(min(done, total), total, "")
    if done != total or not outputs:
        raise InputError(f"{total} images were to come, {done} came; make the file again")
    features, *others = outputs
    assert features is not None
    return Seen(features, *others)


def _inception(file: Path | None, device: str, progress: Progress | None) -> Extractor:
    network = _class("inception", "feature_extractor_inceptionv3", "FeatureExtractorInceptionV3")
    path = file or _fetched_inception(progress)
    if not path.is_file():
        raise InputError(f"no file at {path}; the Inception weights are at {INCEPTION_URL}")
    sha256 = file_sha256(path)
    if sha256 != INCEPTION_SHA256:
        raise InputError(
            f"{path} is not the Inception of FID: its SHA-256 begins with {sha256[:8]}, not {INCEPTION_SHA256[:8]}; "
            f"delete it and fetch {INCEPTION_URL}"
        )
    features = ["2048", "logits_unbiased"]
    loaded = _loaded("inception", network, "inception-v3-compat", features, feature_extractor_weights_path=str(path))
    return NetworkFeatures("inception", loaded, f"inception {sha256}", device, SPATIAL_BLOCK)


def _fetched_inception(progress: Progress | None) -> Path:
    """Return where torch-fidelity keeps the weights, fetched if they are not there yet."""
    path = inception_path()
    if path.is_file():
        return path
    # Here, not on top: needed once in a machine's life.
    import pooch

    pooch.get_logger().setLevel("WARNING")
    bar = _Bar(progress) if progress else False
    fetch = pooch.HTTPDownloader(progressbar=bar, chunk_size=1 << 20, timeout=CONNECT_SECONDS)
    try:
        pooch.retrieve(INCEPTION_URL, f"sha256:{INCEPTION_SHA256}", path.name, path.parent, downloader=fetch)
    except (OSError, ValueError) as error:  # requests' errors are OSErrors, with messages that run over many lines
        reason = "its SHA-256 is another" if isinstance(error, ValueError) else _reason(error)
        raise InputError(
            f"the Inception weights could not be fetched ({reason}): fetch {INCEPTION_URL} elsewhere and put it at "
            f"{path}, or name the file: inception:FILE"
        ) from error
    return path


class _Bar:
    """What pooch asks of a progress bar, passed on."""

    def __init__(self, progress: Progress) -> None:
        self.progress, self.total, self.done = progress, 0, 0

    def update(self, amount: int) -> None:
        self.done += amount
        self.progress(self.done, self.total, INCEPTION_URL)

    def reset(self) -> None:
        self.done = 0

    def close(self) -> None:
        """The last update said that all is done."""


def _dinov2(device: str) -> Extractor:
    network = _class("dinov2", "feature_extractor_dinov2", "FeatureExtractorDinoV2")
    return NetworkFeatures("dinov2", _loaded("dinov2", network, DINOV2, ["dinov2"]), f"dinov2 {DINOV2}", device)


def _class(extractor: str, module: str, name: str) -> Any:
    """Return a class of torch-fidelity."""
    try:
        return getattr(importlib.import_module(f"torch_fidelity.{module}"), name)
    except (ImportError, AttributeError, RuntimeError) as error:  # RuntimeError: a torchvision of another torch
        raise InputError(
            f"the extractor {extractor!r} needs torch-fidelity, which cannot be imported ({_reason(error)}); {INSTALL}"
        ) from error


def _loaded(extractor: str, network: Any, *arguments: Any, **options: Any) -> nn.Module:
    try:
        with _weights_only():
            return network(*arguments, **options)
    except Exception as error:  # of torch.hub, of the network and of what it fetches: errors of all kinds
        source = "torch.hub's facebookresearch/dinov2" if extractor == "dinov2" else "its weights"
        raise InputError(
            f"the extractor {extractor!r} cannot be loaded from {source} ({_reason(error)}); "
            f"check the network and the files in {torch.hub.get_dir()}, or use another extractor"
        ) from error


@contextmanager
def _weights_only() -> Iterator[None]:
    """Let `torch.load` read weights and run no code, although torch-fidelity and torch.hub ask it not to care."""
    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _reason(error: Exception) -> str:
    """Return the first line of an error's message, or its kind where it has none or is requests' long one."""
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    return (str(error).strip() or type(error).__name__).splitlines()[0].partition(". ")[0]
