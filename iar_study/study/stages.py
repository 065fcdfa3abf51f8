"""What trials share: tokenizer, codes, classifier, reference and clusterings, each computed once.

Every stage is a pure function of its config and of what the stages before it made; its product is one safetensors
file in the workspace's cache, named by a digest of just that. So a changed setting or image makes a new product, and
nothing is ever stale.

Images that are encoded already (`codes:PATH`) come with their tokenizer and without pixels: nothing is trained, there
is nothing to compare samples with, and their codes are read from where they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from iar_study.codebook import Codebook, Rearrangement, cluster_codes
from iar_study.config import (
    ClassifierConfig,
    ClusteringConfig,
    DataConfig,
    TokenizerConfig,
    TrialConfig,
    is_encoded,
)
from iar_study.data.codes import Codes
from iar_study.data.encoding import load_tokenizer, open_splits
from iar_study.data.images import Images, load_images
from iar_study.data.llamagen_codes import CODES
from iar_study.errors import InputError
from iar_study.evaluation.classifier import classify, train_classifier
from iar_study.evaluation.exactness import decoding_gap, equivariance_gap
from iar_study.evaluation.fidelity import Reference
from iar_study.models.patch_vq import PatchVQ
from iar_study.models.vq import to_uint8
from iar_study.storage import digest, load_arrays, load_metadata, save_arrays
from iar_study.study.encoded import Encoded, check_encoded, encoded_of
from iar_study.study.measuring import REFERENCE, extractor_of, load_network, measure_pictures, seen_by
from iar_study.study.workspace import Workspace
from iar_study.training.tokenizer import decode_tokens, describe_tokenizer, encode_images, train_tokenizer

RECIPE = 4
"""Raise it when a change of code makes the same config give other numbers: caches and trials made before are left."""

THREADS = 1
"""CPU threads of a shared stage: fixed, because the bits of a sum depend on it; more do not pay at these sizes."""

COUNTED_AT_ONCE = 2**22
"""Tokens that are read at a time to count them: 32 MB."""

EXACT_IMAGES = 16
"""Held-out images on which it is seen that rearrangement alone changes nothing."""

DECODED_AT_ONCE = 2**20
"""Pixels that are decoded at a time: 16 pictures of 256 x 256, of which VQ-16 needs some GB."""

Progress = Callable[[str, int, int, str], None]
"""(what, steps done, steps in all, detail) is called as a stage goes on."""


@dataclass(frozen=True)
class Shared:
    """The files that a trial needs, and the digests of their content."""

    data: dict[str, Any]
    """name, digest, image size, channels, counts of the images."""
    tokenizer: Path
    codes: Path
    """Tokens and codebook; of images that are encoded already, the use of the codes and the codebook."""
    classifier: Path | None
    reference: Path | None
    """None, as the classifier, where there are no images."""
    rearrangement: Path
    judging: Path
    exactness: Path
    digests: dict[str, str]
    folder: Path | None = None
    """Of images that are encoded already: where their codes are."""

    @property
    def products(self) -> list[str]:
        """Names of the files of these that lie in the workspace's cache."""
        made = (self.codes, self.classifier, self.reference, self.rearrangement, self.judging, self.exactness)
        own = made if self.folder else (self.tokenizer, *made)  # the tokenizer of codes:PATH lies elsewhere
        return [path.name for path in own if path]


@lru_cache(maxsize=2)
def images_of(config: DataConfig) -> Images:
    """Load images once per process."""
    return load_images(config)


def check(config: TrialConfig, load: bool = True) -> None:
    """Raise `InputError` for settings that do not fit the data or this machine, before anything is trained.

    What is known without looking at either, `checks.check_settings` says.

    load : whether the extractor's weights are loaded too, which may fetch them.
    """
    if is_encoded(config.data):
        check_encoded(config)
    else:
        images_of(config.data)
    if load and config.evaluation.extractor != "classifier":
        load_network(config.evaluation.extractor, "cpu")  # its weights should be here before anything is trained
    if config.compute.device == "cuda" and not torch.cuda.is_available():
        raise InputError("compute.device = cuda, but torch finds no GPU here; `iar-study doctor` says what it finds")


def prepare(config: TrialConfig, workspace: Workspace, progress: Progress) -> Shared:
    """Compute, or find in the cache, all that the trial of `config` needs before its own training."""
    torch.set_num_threads(THREADS)
    return stages_of(config, workspace, progress).shared()


class NotMade(Exception):
    """A product is not in the cache of a workspace in which nothing is to be made."""

    def __init__(self, kind: str, path: Path | None = None) -> None:
        super().__init__(f"{kind} is not made")
        self.kind, self.path = kind, path


class Stages:
    """What the trial of `config` shares with others; each product is made, or found in the cache, when asked for.

    In a frozen workspace a product that is not there, or whose making waits for such a one, raises `NotMade`.
    """

    products: ClassVar[dict[str, str]]
    """The attributes that are products, in the order that they are made in -> their kind."""

    def __init__(self, config: TrialConfig, workspace: Workspace, progress: Progress) -> None:
        self.config, self.workspace, self.progress = config, workspace, progress

    @property
    def codebook(self) -> np.ndarray:
        """The codebook vectors, float32 (N, d)."""
        raise NotImplementedError

    @cached_property
    def rearrangement(self) -> Path:
        """The arm's own clustering."""
        return _clustering(self.codebook, self.config.clustering, self.workspace, self.progress)

    @cached_property
    def judging(self) -> Path:
        """The clustering that every arm is judged by."""
        judges = ClusteringConfig("balanced", self.config.evaluation.clusters)
        return _clustering(self.codebook, judges, self.workspace, self.progress)

    def shared(self) -> Shared:
        """Return all products, made. In a frozen workspace those that do not tell trials apart may be missing."""
        raise NotImplementedError

    def _paths(self) -> dict[str, Path]:
        return {name: self._path(name) for name in self.products}

    def _path(self, name: str) -> Path:
        try:
            return getattr(self, name)
        except NotMade as missing:
            return missing.path or Path()


class _OfImages(Stages):
    """All of it is trained, or computed, here."""

    products: ClassVar[dict[str, str]] = {
        "tokenizer": "tokenizer",
        "codes": "codes",
        "classifier": "classifier",
        "rearrangement": "clustering",
        "judging": "clustering",
        "reference": "reference",
        "exactness": "exactness",
    }

    @property
    def images(self) -> Images:
        return images_of(self.config.data)

    @cached_property
    def tokenizer(self) -> Path:
        return _tokenizer(self.images, self.config.tokenizer, self.workspace, self.progress)

    @cached_property
    def codes(self) -> Path:
        return _codes(self.images, self.tokenizer, _digest(self.tokenizer), self.workspace, self.progress)

    @cached_property
    def classifier(self) -> Path:
        return classifier_product(self.images, self.config.classifier, self.workspace, self.progress)

    @cached_property
    def loaded(self) -> Codes:
        return _load_codes(self.codes)

    @property
    def codebook(self) -> np.ndarray:
        return self.loaded.codebook

    @cached_property
    def reference(self) -> Path:
        if self.workspace.frozen and self.config.evaluation.extractor != "classifier":
            raise NotMade("extractor")  # what it sees is known when it is loaded, and its weights might be fetched
        made_from = (self.images, self.tokenizer, self.loaded, self.classifier, self.judging)
        return _reference(*made_from, self.config, self.workspace, self.progress)

    @cached_property
    def exactness(self) -> Path:
        return _exactness(self.loaded, self.tokenizer, _digest(self.codes), self.judging, self.workspace)

    def shared(self) -> Shared:
        images, paths = self.images, self._paths()
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
        telling = ("tokenizer", "codes", "classifier", "rearrangement", "judging")
        digests = {"data": images.digest, **{name: _digest(getattr(self, name)) for name in telling}}
        return Shared(data, **paths, digests=digests)


class _OfCodes(Stages):
    """The tokenizer and the codes are there."""

    products: ClassVar[dict[str, str]] = {
        "codes": "use",
        "rearrangement": "clustering",
        "judging": "clustering",
        "exactness": "exactness",
    }

    @property
    def found(self) -> Encoded:
        return encoded_of(self.config.data.name, self.config.tokenizer.checkpoint)

    @cached_property
    def codes(self) -> Path:
        return _use(self.found, self.workspace, self.progress)

    @property
    def codebook(self) -> np.ndarray:
        return self.found.codebook

    @cached_property
    def exactness(self) -> Path:
        found = self.found
        some = Codes(
            found.train.codes,
            np.array(found.train.labels[:0]),
            found.test.codes[:EXACT_IMAGES, 0],
            np.array(found.test.labels[:EXACT_IMAGES]),
            found.class_names,
            found.codebook,
        )
        return _exactness(some, found.tokenizer, found.digest, self.judging, self.workspace)

    def shared(self) -> Shared:
        found, paths = self.found, self._paths()
        images, augmentations, _ = found.train.codes.shape
        data = {
            "name": self.config.data.name,
            "digest": found.digest,
            "image_size": found.grid * found.patch,
            "channels": found.channels,
            "train_images": images,
            "augmentations": augmentations,
            "test_images": len(found.test.codes),
            "classes": len(found.class_names),
            "class_names": found.class_names,
        }
        digests = {
            "codes": found.digest,
            "tokenizer": found.tokenizer_digest,
            "rearrangement": _digest(self.rearrangement),
            "judging": _digest(self.judging),
        }
        return Shared(
            data,
            found.tokenizer,
            paths["codes"],
            None,
            None,
            paths["rearrangement"],
            paths["judging"],
            paths["exactness"],
            digests,
            found.folder,
        )


def stages_of(config: TrialConfig, workspace: Workspace, progress: Progress) -> Stages:
    """Return the stages of a trial; nothing is made yet."""
    kind = _OfCodes if is_encoded(config.data) else _OfImages
    return kind(config, workspace, progress)


def _digest(product: Path) -> str:
    return load_metadata(product)["digest"]


def _product(workspace: Workspace, kind: str, *key: Any) -> Path:
    """Return where the product that is made from `key` lies; raise `NotMade` where it may not be made and is not."""
    path = workspace.cache / f"{kind}-{digest(RECIPE, THREADS, kind, *key)[:16]}.safetensors"
    if workspace.frozen and not path.exists():
        raise NotMade(kind, path)
    return path


def _save(path: Path, arrays: dict[str, np.ndarray], **metadata: Any) -> None:
    content = digest(*(part for name in sorted(arrays) for part in (name, arrays[name])))
    save_arrays(path, arrays, {**metadata, "digest": content, "recipe": RECIPE})


def _state(module: torch.nn.Module) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in module.state_dict().items()}


def _tokenizer(images: Images, config: TokenizerConfig, workspace: Workspace, progress: Progress) -> Path:
    """Train the VQ autoencoder; its header holds PSNR on held-out images, codebook usage and perplexity."""
    path = _product(workspace, "tokenizer", images.digest, asdict(config))
    if not path.exists():
        model = train_tokenizer(images.train, config, threads=THREADS, progress=lambda *at: progress("tokenizer", *at))
        metrics = describe_tokenizer(model, images.test)
        _save(path, _state(model), config=asdict(config), channels=images.channels, metrics=metrics)
    return path


def _codes(images: Images, tokenizer: Path, tokenizer_digest: str, workspace: Workspace, progress: Progress) -> Path:
    """Encode both splits; the codebook is kept beside the tokens."""
    path = _product(workspace, "codes", images.digest, tokenizer_digest)
    if not path.exists():
        progress("encoding images", 0, 1, "")
        model = PatchVQ.load(tokenizer)
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


def _use(found: Encoded, workspace: Workspace, progress: Progress) -> Path:
    """Count how often training images use each code; the header holds usage and perplexity, as of a tokenizer."""
    tokens = found.train.codes
    path = _product(workspace, "use", found.train.index[CODES]["sha256"], found.tokenizer_digest)
    if not path.exists():
        codebook, images = Codebook(found.codebook, "cosine"), max(1, COUNTED_AT_ONCE // math.prod(tokens.shape[1:]))
        use = np.zeros(len(found.codebook), np.int64)
        for first in range(0, len(tokens), images):
            use += codebook.use(tokens[first : first + images])
            progress("counting codes", min(first + images, len(tokens)), len(tokens), "")
        share = use[use > 0] / use.sum()
        metrics = {"usage": float(np.mean(use > 0)), "perplexity": float(np.exp(-np.sum(share * np.log(share))))}
        _save(path, {"use": use, "codebook": found.codebook}, metrics=metrics)
    return path


def load_codes(shared: Shared) -> Codes:
    """Return the tokens; those of images that are encoded already stay on the disk until they are indexed."""
    if shared.folder is not None:
        train, test = open_splits(shared.folder).values()
        labels = {"train_labels": np.array(train.labels), "test_labels": np.array(test.labels)}
        tokens = {"train_tokens": train.codes, "test_tokens": test.codes[:, 0]}
        names = tuple(shared.data["class_names"])
        return Codes(**tokens, **labels, class_names=names, codebook=load_codebook(shared))
    return _load_codes(shared.codes)


def _load_codes(path: Path) -> Codes:
    arrays, metadata = load_arrays(path)
    arrays["train_tokens"] = arrays["train_tokens"][:, None]  # one augmentation
    return Codes(**arrays, class_names=tuple(metadata["class_names"]))


def load_codebook(shared: Shared) -> np.ndarray:
    """Return the codebook vectors, float32 (N, d)."""
    return load_arrays(shared.codes)[0]["codebook"]


def decode(shared: Shared, tokens: np.ndarray, device: str) -> np.ndarray:
    """Return the pictures, uint8 (n, h, w, c), of tokens, int (n, T), in the codebook's original order."""
    model = load_tokenizer(shared.tokenizer).to(device)
    grid = math.isqrt(tokens.shape[1])
    grids = torch.from_numpy(tokens.astype(np.int64)).view(-1, grid, grid)
    parts = grids.split(max(1, DECODED_AT_ONCE // (grid * model.patch) ** 2))
    return np.concatenate([to_uint8(model.decode_codes(part.to(device))) for part in parts])


def facts(shared: Shared) -> dict[str, Any]:
    """Return what a reader wants to know of the products.

    `tokenizer` : psnr, usage and perplexity on held-out images, or usage and perplexity of the training images where
    these came encoded. `classifier_accuracy` and `reconstruction`, the samples' metrics measured on reconstructions:
    None there. `exact` : what `evaluation.exactness` found, `equivariance` and `decoding`.
    """
    measured = shared.codes if shared.folder else shared.tokenizer
    floor = load_arrays(shared.reference)[1] if shared.reference else None
    return {
        "tokenizer": load_arrays(measured)[1]["metrics"],
        "classifier_accuracy": load_arrays(shared.classifier)[1]["accuracy"] if shared.classifier else None,
        "reconstruction": floor and floor["metrics"],
        "exact": load_arrays(shared.exactness)[1]["gaps"],
    }


def classifier_product(images: Images, config: ClassifierConfig, workspace: Workspace, progress: Progress) -> Path:
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


def _reference(
    images: Images,
    tokenizer: Path,
    codes: Codes,
    classifier: Path,
    judging: Path,
    config: TrialConfig,
    workspace: Workspace,
    progress: Progress,
) -> Path:
    """Measure the held-out images themselves and, as the floor for any sample, their reconstructions."""
    made_from = [_digest(product) for product in (tokenizer, classifier, judging)]
    extractor, count = extractor_of(config, classifier), min(config.evaluation.samples, len(images.test))
    path = _product(workspace, "reference", images.digest, made_from, extractor.name, extractor.identity, count)
    if not path.exists():
        progress("reference", 0, 1, "")
        reference = Reference(seen_by(extractor, classifier, images.test)[0])
        model, arranged = PatchVQ.load(tokenizer), load_rearrangement(judging)
        tokens = codes.test_tokens[:count]
        decoded = decode_tokens(model, tokens)
        rearranged = decode_tokens(model, arranged.tokens(tokens[:10]), torch.from_numpy(arranged.rows(codes.codebook)))
        _save(
            path,
            {
                **{REFERENCE + name: array for name, array in reference.arrays().items()},
                "originals": images.test[:10],
                "decoded": decoded[:10],
                "rearranged": rearranged,
            },
            metrics=measure_pictures(decoded, images.test_labels[:count], reference, extractor, classifier),
        )
        progress("reference", 1, 1, "")
    return path


def _exactness(codes: Codes, tokenizer: Path, codes_digest: str, judging: Path, workspace: Workspace) -> Path:
    """See that rearrangement alone changes neither a loss nor a picture."""
    path = _product(workspace, "exactness", codes_digest, _digest(judging), EXACT_IMAGES)
    if not path.exists():
        tokens, labels = codes.test_tokens[:EXACT_IMAGES], codes.test_labels[:EXACT_IMAGES]
        arranged = load_rearrangement(judging)
        gaps = {
            "equivariance": equivariance_gap(tokens, labels, len(codes.class_names), arranged),
            "decoding": decoding_gap(load_tokenizer(tokenizer), tokens, arranged),
        }
        _save(path, {"gaps": np.array(list(gaps.values()))}, gaps=gaps)
    return path


def _clustering(codebook: np.ndarray, config: ClusteringConfig, workspace: Workspace, progress: Progress) -> Path:
    """Cluster and rearrange the codes; no clusters have no order either."""
    if config.strategy == "none":
        config = replace(config, n_clusters=1, within="none", between="none")
    # An order that is none goes without a name: clusterings from before there were any are found.
    made_of = {key: value for key, value in asdict(config).items() if key == "strategy" or value != "none"}
    path = _product(workspace, "clustering", digest(codebook), made_of)
    if not path.exists():
        what = f"clustering ({config.strategy}, {config.n_clusters})"
        if config.strategy == "none":
            arranged = Rearrangement.identity(len(codebook))
        else:
            labels = cluster_codes(
                codebook, config.strategy, config.n_clusters, config.seed, progress=lambda *at: progress(what, *at)
            )
            points = Codebook(codebook, "cosine").points
            arranged = Rearrangement.from_labels(labels, points, within=config.within, between=config.between)
        _save(path, {"permutation": arranged.permutation, "boundaries": arranged.boundaries}, config=asdict(config))
    return path


def load_rearrangement(path: Path) -> Rearrangement:
    """Return the rearrangement of a cached clustering."""
    return Rearrangement.load(path)
