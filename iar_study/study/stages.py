"""What trials share: tokenizer, codes, classifier, reference and clusterings, each computed once.

Every stage is a pure function of its config and of what the stages before it made; its product is one safetensors
file in the workspace's cache, named by a digest of just that. So a changed setting or image makes a new product, and
nothing is ever stale.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from iar_study.codebook import EQUAL_SIZES, Rearrangement, cluster_codes
from iar_study.config import ClassifierConfig, ClusteringConfig, DataConfig, TokenizerConfig, TrialConfig
from iar_study.data.codes import Codes
from iar_study.data.images import Images, load_images
from iar_study.errors import InputError
from iar_study.evaluation.classifier import Classifier, classify, train_classifier
from iar_study.evaluation.fidelity import frechet_distance
from iar_study.models.patch_vq import PatchVQ
from iar_study.storage import digest, load_arrays, save_arrays
from iar_study.study.workspace import Workspace
from iar_study.training.tokenizer import decode_tokens, describe_tokenizer, encode_images, train_tokenizer

RECIPE = 2
"""Raise it when a change of code makes the same config give other numbers: caches and trials made before are left."""

THREADS = 1
"""CPU threads of a shared stage: fixed, because the bits of a sum depend on it; more do not pay at these sizes."""

Progress = Callable[[str, int, int, str], None]
"""(what, steps done, steps in all, detail) is called as a stage goes on."""


@dataclass(frozen=True)
class Shared:
    """The files that a trial needs, and the digests of their content."""

    data: dict[str, Any]
    """name, digest, image size, channels, counts of the images."""
    tokenizer: Path
    codes: Path
    classifier: Path
    reference: Path
    rearrangement: Path
    judging: Path
    digests: dict[str, str]


@lru_cache(maxsize=2)
def images_of(config: DataConfig) -> Images:
    """Load images once per process."""
    return load_images(config)


def check(config: TrialConfig) -> None:
    """Raise `InputError` for settings that do not fit each other or the images, before anything is trained."""
    images = images_of(config.data)
    size, patch = config.tokenizer.codebook_size, config.tokenizer.patch
    if images.size % patch:
        raise InputError(
            f"images of {images.size} x {images.size} pixels do not divide into patches of {patch}: "
            f"choose another tokenizer.patch or data.image_size"
        )
    if images.size // patch < 2:
        raise InputError(
            f"images of {images.size} x {images.size} pixels are a single patch of {patch}: "
            f"nothing is left to predict; choose a smaller tokenizer.patch"
        )
    wanted = {"evaluation.clusters": config.evaluation.clusters}
    if config.clustering.strategy in EQUAL_SIZES:
        wanted["clustering.n_clusters"] = config.clustering.n_clusters
    for key, n_clusters in wanted.items():
        if size % n_clusters:
            raise InputError(
                f"equal clusters: {key} = {n_clusters} does not divide the {size} codes of tokenizer.codebook_size"
            )
    if config.clustering.strategy != "none" and config.clustering.n_clusters > size:
        raise InputError(f"clustering.n_clusters = {config.clustering.n_clusters} exceeds the {size} codes")
    if config.compute.device == "cuda" and not torch.cuda.is_available():
        raise InputError("compute.device = cuda, but torch finds no GPU here; `iar-study doctor` says what it finds")


def prepare(config: TrialConfig, workspace: Workspace, progress: Progress) -> Shared:
    """Compute, or find in the cache, all that the trial of `config` needs before its own training."""
    torch.set_num_threads(THREADS)
    images = images_of(config.data)
    data = {
        "name": images.name,
        "digest": images.digest,
        "image_size": images.size,
        "channels": images.channels,
        "train_images": len(images.train),
        "test_images": len(images.test),
        "classes": len(images.class_names),
        "class_names": images.class_names,
    }
    tokenizer = _tokenizer(images, config.tokenizer, workspace, progress)
    tokenizer_digest = _digest(tokenizer)
    codes = _codes(images, tokenizer, tokenizer_digest, workspace, progress)
    classifier = _classifier(images, config.classifier, workspace, progress)
    codebook = load_arrays(codes)[0]["codebook"]
    rearrangement = _clustering(codebook, config.clustering, workspace, progress)
    judges = ClusteringConfig("balanced", config.evaluation.clusters)
    judging = _clustering(codebook, judges, workspace, progress)
    reference = _reference(images, tokenizer, classifier, judging, config.evaluation.samples, workspace, progress)
    digests = {
        "data": images.digest,
        "tokenizer": tokenizer_digest,
        "codes": _digest(codes),
        "classifier": _digest(classifier),
        "rearrangement": _digest(rearrangement),
        "judging": _digest(judging),
    }
    return Shared(data, tokenizer, codes, classifier, reference, rearrangement, judging, digests)


def _digest(product: Path) -> str:
    return load_arrays(product)[1]["digest"]


def _product(workspace: Workspace, kind: str, *key: Any) -> Path:
    return workspace.cache / f"{kind}-{digest(RECIPE, THREADS, kind, *key)[:16]}.safetensors"


def _save(path: Path, arrays: dict[str, np.ndarray], **metadata: Any) -> None:
    content = digest(*(part for name in sorted(arrays) for part in (name, arrays[name])))
    save_arrays(path, arrays, {**metadata, "digest": content})


def _state(module: torch.nn.Module) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in module.state_dict().items()}


def _restore(module: torch.nn.Module, arrays: dict[str, np.ndarray]) -> None:
    module.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()})
    module.eval()


def _tokenizer(images: Images, config: TokenizerConfig, workspace: Workspace, progress: Progress) -> Path:
    """Train the VQ autoencoder; its header holds PSNR on held-out images, codebook usage and perplexity."""
    path = _product(workspace, "tokenizer", images.digest, asdict(config))
    if not path.exists():
        model = train_tokenizer(images.train, config, threads=THREADS, progress=lambda *at: progress("tokenizer", *at))
        metrics = describe_tokenizer(model, images.test)
        _save(path, _state(model), config=asdict(config), channels=images.channels, metrics=metrics)
    return path


def load_tokenizer(path: Path) -> PatchVQ:
    """Return the tokenizer of a cached product."""
    return PatchVQ.load(path)


def _codes(images: Images, tokenizer: Path, tokenizer_digest: str, workspace: Workspace, progress: Progress) -> Path:
    """Encode both splits; the codebook is kept beside the tokens."""
    path = _product(workspace, "codes", images.digest, tokenizer_digest)
    if not path.exists():
        progress("encoding images", 0, 1, "")
        model = load_tokenizer(tokenizer)
        arrays = {
            "train_tokens": encode_images(model, images.train),
            "train_labels": images.train_labels,
            "test_tokens": encode_images(model, images.test),
            "test_labels": images.test_labels,
            "codebook": model.codebook().detach().numpy(),
        }
        _save(path, arrays, class_names=images.class_names)
        progress("encoding images", 1, 1, "")
    return path


def load_codes(path: Path) -> Codes:
    """Return the tokens of a cached product."""
    arrays, metadata = load_arrays(path)
    arrays.pop("codebook")
    return Codes(**arrays, class_names=tuple(metadata["class_names"]))


def load_codebook(path: Path) -> np.ndarray:
    """Return the codebook vectors, float32 (N, d), of a cached codes product."""
    return load_arrays(path)[0]["codebook"]


def _classifier(images: Images, config: ClassifierConfig, workspace: Workspace, progress: Progress) -> Path:
    """Train the classifier; its header holds its accuracy on held-out images."""
    path = _product(workspace, "classifier", images.digest, asdict(config))
    if not path.exists():
        model = train_classifier(
            images.train,
            images.train_labels,
            len(images.class_names),
            config,
            threads=THREADS,
            progress=lambda *at: progress("classifier", *at),
        )
        accuracy = float((classify(model, images.test)[1] == images.test_labels).mean())
        _save(
            path,
            _state(model),
            config=asdict(config),
            channels=images.channels,
            classes=len(images.class_names),
            accuracy=accuracy,
        )
    return path


def load_classifier(path: Path) -> Classifier:
    """Return the classifier of a cached product."""
    arrays, metadata = load_arrays(path)
    model = Classifier(ClassifierConfig(**metadata["config"]), metadata["channels"], metadata["classes"])
    _restore(model, arrays)
    return model


def _reference(
    images: Images,
    tokenizer: Path,
    classifier: Path,
    judging: Path,
    samples: int,
    workspace: Workspace,
    progress: Progress,
) -> Path:
    """Measure the held-out images themselves and, as the floor for any sample, their reconstructions."""
    made_from = [_digest(product) for product in (tokenizer, classifier, judging)]
    path = _product(workspace, "reference", images.digest, made_from, samples)
    if not path.exists():
        progress("reference", 0, 1, "")
        model = load_tokenizer(tokenizer)
        judge = load_classifier(classifier)
        features, _ = classify(judge, images.test)
        tokens = encode_images(model, images.test[:samples])
        decoded = decode_tokens(model, tokens)
        reconstructed, labels = classify(judge, decoded)
        arranged = load_rearrangement(judging)
        rearranged_codebook = torch.from_numpy(arranged.rows(model.codebook().detach().numpy()))
        _save(
            path,
            {
                "features": features,
                "originals": images.test[:10],
                "decoded": decoded[:10],
                "rearranged": decode_tokens(model, arranged.tokens(tokens[:10]), rearranged_codebook),
            },
            fd_reconstruction=frechet_distance(features, reconstructed),
            class_agreement=float((labels == images.test_labels[:samples]).mean()),
        )
        progress("reference", 1, 1, "")
    return path


def _clustering(codebook: np.ndarray, config: ClusteringConfig, workspace: Workspace, progress: Progress) -> Path:
    """Cluster and rearrange the codes."""
    if config.strategy == "none":
        config = replace(config, n_clusters=1)
    path = _product(workspace, "clustering", digest(codebook), asdict(config))
    if not path.exists():
        what = f"clustering ({config.strategy}, {config.n_clusters})"
        if config.strategy == "none":
            arranged = Rearrangement.identity(len(codebook))
        else:
            labels = cluster_codes(
                codebook, config.strategy, config.n_clusters, config.seed, progress=lambda *at: progress(what, *at)
            )
            arranged = Rearrangement.from_labels(labels)
        _save(path, {"permutation": arranged.permutation, "boundaries": arranged.boundaries}, config=asdict(config))
    return path


def load_rearrangement(path: Path) -> Rearrangement:
    """Return the rearrangement of a cached clustering."""
    return Rearrangement.load(path)
